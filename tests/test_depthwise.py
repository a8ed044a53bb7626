"""Depthwise convolution: what it computes between the rows of a plane must not be seen anywhere."""

import numpy as np
import pytest
from oracle import Oracle

import xconv
from xconv.backends.numpy import _depthwise

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
    broken = w.copy()
    broken[place[1], 0, 2, 1] = bad
    x_, w_, dy_, broken_ = (lib.array(a) for a in (x, w, dy, broken))
    plain, options = Oracle(x.shape, w.shape, **options), {**options, "algorithm": "depthwise"}
    for function, definition in (
        (lambda: xconv.conv(x_, w_, **options), lambda: plain.conv(x, w)),
        (lambda: xconv.conv_input_grad(dy_, broken_, x.shape, **options), lambda: plain.input_grad(dy, broken)),
        (lambda: xconv.conv_weight_grad(dy_, x_, w.shape, **options), lambda: plain.weight_grad(dy, x)),
    ):
        with np.errstate(invalid="ignore"):
            found, expected = lib.numpy(function()), definition()
        assert np.array_equal(np.isfinite(found), np.isfinite(expected))
        assert not np.isfinite(expected).all()
        finite = np.isfinite(expected)
        assert np.allclose(found[finite], expected[finite], rtol=0, atol=1e-5)


def test_no_warning_about_what_nobody_sees():
    """Rows of zeros meet an infinite number on the way, and not in the result."""
    x, dy = np.ones((1, 1, 6, 6)), np.ones((1, 1, 2, 2))
    x[0, 0, 0, 0] = np.inf
    dw = xconv.conv_weight_grad(dy, x, (1, 1, 3, 3), stride=3, algorithm="depthwise")
    assert np.array_equal(dw, xconv.conv_weight_grad(dy, x, (1, 1, 3, 3), stride=3, algorithm="gemm"))


@pytest.mark.parametrize("stride", [1, 3])
def test_complex(rng, lib, stride):
    """Like "gemm", whose gradients are the adjoints: one side is conjugated."""
    if not lib.has("complex128"):
        pytest.skip("has no complex128")
    x, w = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in SHAPES)
    options = {"padding": (2, 1), "groups": 3, "stride": stride, "dilation": (1, 2)}
    y = xconv.conv(x, w, **options)
    x_, w_, y_ = (lib.array(a) for a in (x, w, y))
    for function in (
        lambda **how: xconv.conv(x_, w_, **options, **how),
        lambda **how: xconv.conv_input_grad(y_, w_, x.shape, **options, **how),
        lambda **how: xconv.conv_weight_grad(y_, x_, w.shape, **options, **how),
    ):
        lib.check(function(algorithm="depthwise"), lib.numpy(function(algorithm="gemm")), bound=1e-12)
    y[0, 0, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        dw, expected = (
            lib.numpy(xconv.conv_weight_grad(lib.array(y), x_, w.shape, **options, algorithm=name))
            for name in ("depthwise", "gemm")
        )
    assert np.allclose(dw, expected, rtol=1e-12, equal_nan=True)


def test_auto_takes_it():
    x, w = np.ones((8, 128, 7, 7), np.float32), np.ones((128, 1, 3, 3), np.float32)
    p = xconv.plan(x, w, padding=1, groups=128)
    assert [f.algorithm for f in (p.forward, p.input_grad, p.weight_grad)] == ["depthwise"] * 3


@pytest.mark.parametrize("kernel", [(17, 1), (1, 17), (17, 3)])
def test_the_longest_axis_goes_into_the_product(kernel):
    """As sums of shifted lines, 17 taps of the first axis took five times as long."""
    p = xconv.plan(np.ones((2, 3, 40, 40)), np.ones((3, 1, *kernel)), groups=3, algorithm="depthwise")
    line = _depthwise.line(p.schedule.geometry)
    assert (len(line.inner), len(line.outer)) == (17, max(1, min(kernel)))


def test_what_it_moves_has_no_columns():
    x, w = np.ones((2, 4, 9, 9), np.float32), np.ones((4, 1, 3, 3), np.float32)
    p = xconv.plan(x, w, groups=4, algorithm="depthwise")
    assert p.forward.bytes == 4 * (x.size + w.size + 2 * 4 * 7 * 7)
