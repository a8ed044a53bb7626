"""The example that trains a network, whole, on CuPy's arrays."""

import importlib
import sys
from pathlib import Path

import cupy
import pytest

from kernels.standin import StandIn


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    yield importlib.import_module("digits")
    for name in ("digits", "_backends", "_figure"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("default")  # of the libraries that read and draw
@pytest.mark.usefixtures("exact")
def test_digits_learns(digits, monkeypatch, tmp_path, capsys):
    """In four of its thirty epochs, as much as with NumPy."""
    monkeypatch.setattr(cupy, "is_available", lambda: True)
    monkeypatch.setattr(digits, "REQUIRED", 0.9)

    def printed(backend):
        monkeypatch.setattr(sys, "argv", ["digits.py", f"--backend={backend}", "--epochs=4", f"--output={drawn}"])
        with pytest.raises(SystemExit) as ended:
            digits.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    drawn = tmp_path / "digits.png"
    with StandIn().installed() as standin:
        out = printed("cupy")
    assert drawn.exists()
    assert {"im2col", "col2im"} <= {name.split("_")[1] for name in standin.names}
    assert standin.blas.calls
    assert out == printed("numpy")
