"""Depthwise convolution: what it computes between the rows of a plane must not be seen anywhere."""

import numpy as np
import pytest

import xconv

SHAPES = ((2, 3, 7, 6), (6, 1, 3, 4))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 3, 5), (1, 2, 6, 5)], ids=str)
def test_what_is_not_finite_stays_in_its_windows(rng, lib, bad, place, stride):
    """As in the plain sum: an element reaches the results whose sums it is in, and no others."""
    x, w = (rng.standard_normal(shape) for shape in SHAPES)
    x[place] = bad
    options = {"padding": 1, "groups": 3, "stride": stride}
    y = xconv.conv(np.ones(x.shape), w, **options)
    dy = rng.standard_normal(y.shape)
    x_, w_, dy_ = (lib.array(a) for a in (x, w, dy))
    broken = w.copy()
    broken[place[1], 0, 2, 1] = bad
    broken_ = lib.array(broken)
    for function in (
        lambda **how: xconv.conv(x_, w_, **options, **how),
        lambda **how: xconv.conv_input_grad(dy_, broken_, x.shape, **options, **how),
        lambda **how: xconv.conv_weight_grad(dy_, x_, w.shape, **options, **how),
    ):
        with np.errstate(invalid="ignore"):
            found, expected = (lib.numpy(function(algorithm=name)) for name in ("depthwise", "gemm"))
        assert np.array_equal(np.isfinite(found), np.isfinite(expected))
        assert not np.isfinite(expected).all()
        finite = np.isfinite(expected)
        assert np.allclose(found[finite], expected[finite], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
def test_complex(rng, stride):
    """Like "gemm", whose gradients are the adjoints: one side is conjugated."""
    x, w = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in SHAPES)
    options = {"padding": (2, 1), "groups": 3, "stride": stride, "dilation": (1, 2)}
    y = xconv.conv(x, w, **options)
    for function in (
        lambda **how: xconv.conv(x, w, **options, **how),
        lambda **how: xconv.conv_input_grad(y, w, x.shape, **options, **how),
        lambda **how: xconv.conv_weight_grad(y, x, w.shape, **options, **how),
    ):
        assert np.allclose(function(algorithm="depthwise"), function(algorithm="gemm"), rtol=0, atol=1e-12)


def test_auto_takes_it():
    x, w = np.ones((8, 128, 28, 28), np.float32), np.ones((128, 1, 3, 3), np.float32)
    assert xconv.plan(x, w, padding=1, groups=128).algorithm == "depthwise"
