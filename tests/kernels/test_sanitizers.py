"""The kernels once more, under the compiler's checks for undefined behaviour and for memory."""

import os
import subprocess
import sys

import pytest

from kernels.cases import VERBS, case, geometries
from kernels.cpu import harness

SANITIZE = "XCONV_SANITIZE"


def test_under_sanitizers():
    """In a process of its own, into which the address sanitizer is loaded first."""
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = {**os.environ, SANITIZE: "1", "LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


pytestmark = []
if SANITIZE in os.environ:
    del test_under_sanitizers

    @pytest.mark.parametrize("literal", [True, False])
    def test_any_geometry(literal):
        cases = [
            case(verb, g, ("float32", "int8", "float16")[i % 3], literal=literal, seed=i // 2, scattered=i % 4 > 1)
            for i, g in enumerate(geometries(24, seed=3))
            for verb in VERBS
        ]
        harness().prepare([(c.kernel, c.flats) for c in cases if c.kernel.size])
        for c in cases:
            c.check(harness())

    @pytest.mark.parametrize(("pattern", "slip"), [("sum[j] +=", "sum[j + 1] +="), ("I n =", "I n = 2147483647 + ")])
    def test_sanitizers_are_at_work(pattern, slip):
        pass
