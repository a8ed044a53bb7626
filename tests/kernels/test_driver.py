"""The host's side of CuPy as it is, on a CUDA driver without a device, which computes nothing."""

import re
import subprocess
import sys
from pathlib import Path

import cupy
import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.skipif(sys.platform != "linux" or cupy.is_available(), reason="needs Linux and takes a driver's place")
def test_every_call_gets_through_to_its_launches():
    """CuPy's own checks of arguments, its memory and its compiler take all that xconv hands them, without a warning."""
    command = [sys.executable, "-W", "error", "-m", "kernels.driver"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    calls, launches, modules = map(int, re.findall(r"\d+", done.stdout))
    assert calls > 100
    assert launches > 4 * calls
    assert modules > 50
