"""Examples on CuPy's arrays: the one that trains a network, whole, and the convolutions that stand in for sigpy's."""

import importlib
import sys
from pathlib import Path

import cupy
import numpy as np
import pytest
import sigpy_conv

from kernels.standin import StandIn, device


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


def test_sigpys_convolutions():
    """The three of sigpy, complex and with a stride, are on CuPy's arrays what they are on NumPy's."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.integers(-4, 5, shape) + 1j * rng.integers(-4, 5, shape)).astype(np.complex64)

    data, filt = draw(2, 3, 7, 6), draw(4, 3, 3, 2)
    options = {"mode": "full", "strides": (2, 1), "multi_channel": True}
    output = sigpy_conv.convolve(data, filt, **options)
    dy = draw(*output.shape)
    expected = [output, sigpy_conv.convolve_data_adjoint(dy, filt, data.shape, **options)]
    expected.append(sigpy_conv.convolve_filter_adjoint(dy, data, filt.shape, **options))
    with StandIn().installed():
        on_cupy, w, out = map(device, (data, filt, dy))
        actual = [
            sigpy_conv.convolve(on_cupy, w, **options),
            sigpy_conv.convolve_data_adjoint(out, w, data.shape, **options),
            sigpy_conv.convolve_filter_adjoint(out, on_cupy, filt.shape, **options),
        ]
        assert all(isinstance(array, cupy.ndarray) for array in actual)
        actual = [array.get() for array in actual]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3, strict=True)
