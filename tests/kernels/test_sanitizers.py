"""The kernels once more, under the compiler's checks for undefined behaviour and for memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def run(what, *slip):
    """In a process of its own, into which the address sanitizer is loaded first."""
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    here = Path(__file__).parents[1]
    paths = f"{here}:{here.parent}"
    settings = {
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": paths,
    }
    command = [sys.executable, "-m", "kernels.sanitized", what, *slip]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)


def test_no_undefined_behaviour():
    done = run("threads")
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("pattern", "slip", "error"),
    [
        (r"sum\[j\] \+=", "sum[j + 8] +=", "out of bounds|insufficient space"),
        (r"I n = ", "I n = 2147483647 + (I)i + ", "signed integer overflow"),
        (r"% \(N\)\w+\);", "% (N)0);", "division by zero"),
    ],
)
def test_they_are_at_work(pattern, slip, error):
    done = run("threads", pattern, slip)
    assert done.returncode != 0
    assert re.search(error, done.stderr)
