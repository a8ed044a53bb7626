"""The example that trains a network, whole, on CuPy's arrays."""

import importlib
import sys
from pathlib import Path

import cupy
import pytest

from kernels.standin import StandIn


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    yield importlib.import_module("digits")
    for name in ("digits", "_backends", "_figure"):
        sys.modules.pop(name, None)


def test_digits_learns(digits, monkeypatch, tmp_path, capsys):
    """As well as with NumPy, where seed 0 gets all 360 digits right that it was not shown."""
    monkeypatch.setattr(cupy, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["digits.py", "--backend=cupy", f"--output={tmp_path / 'digits.png'}"])
    with StandIn().installed() as standin, pytest.raises(SystemExit) as ended:
        digits.main()
    assert ended.value.code == 0
    assert "test accuracy: 100.0%" in capsys.readouterr().out
    assert (tmp_path / "digits.png").exists()
    verbs = {name.split("_")[1] for name in standin.names}
    assert {"im2col", "col2im"} <= verbs
    assert standin.blas.calls
