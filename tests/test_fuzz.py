"""Any geometry, against plain loops: both sides compute with small integers in floats, so they must be equal."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis.strategies import integers
from oracle import Oracle
from strategies import cases

import xconv
from xconv import _geometry
from xconv.backends.numpy import _windows

pytestmark = pytest.mark.usefixtures("exact")


def kind(what, lib, case):
    return what, len(case.x_shape) - 2, case.options["pad_mode"], lib.name


def check_geometry(lib, case, **forced):
    oracle = Oracle(case.x_shape, case.w_shape, **case.options)
    x, w, dy = case.integers(case.x_shape, case.w_shape, oracle.y_shape)
    options = {**case.options, "layout": case.layout, **forced}
    x_, w_, dy_ = lib.array(case.in_layout(x)), lib.array(w), lib.array(case.in_layout(dy))
    y = oracle.conv(x, w)
    lib.check(xconv.conv(x_, w_, **options), case.in_layout(y), dtype=lib.real)
    dx = oracle.input_grad(dy, w)
    shape = case.shape_in_layout(case.x_shape)
    lib.check(xconv.conv_input_grad(dy_, w_, shape, **options), case.in_layout(dx), dtype=lib.real)
    dw = oracle.weight_grad(dy, x)
    lib.check(xconv.conv_weight_grad(dy_, x_, case.w_shape, **options), dw, dtype=lib.real)
    # The loops themselves: <conv(x, w), dy> = <x, dx> = <w, dw>.
    assert np.vdot(y, dy) == np.vdot(x, dx) == np.vdot(w, dw)


def test_any_geometry(lib, compared):
    @lib.examples()
    @given(case=cases())
    def check(case):
        check_geometry(lib, case)
        compared[kind("conv and both gradients", lib, case)] += 1

    check()


def test_any_geometry_in_tiles(lib, compared):
    """With the least workspace that works, every result is still the same."""
    if lib.name == "dask":
        pytest.skip("its tasks have workspaces of their own")

    @lib.examples(4)
    @given(case=cases())
    def check(case):
        with xconv.config(workspace=least_workspace(lib, case)):
            check_geometry(lib, case)
        compared[kind("conv and both gradients in the smallest tiles", lib, case)] += 1

    check()


def test_any_depthwise_geometry(lib, compared):
    @lib.examples(4)
    @given(case=cases(), filters=integers(1, 3))
    def check(case, filters):
        channels = case.x_shape[1]
        assume(channels > 0)
        case = replace(case, w_shape=(channels * filters, 1, *case.w_shape[2:]))
        case.options["groups"] = channels
        check_geometry(lib, case, algorithm="depthwise")
        compared[kind("depthwise", lib, case)] += 1

    check()


@pytest.mark.numpy_only
def test_any_geometry_by_row(lib, compared):
    @lib.examples(4)
    @given(case=cases())
    def check(case):
        (stride, *_), (dilation, *_) = case.options["stride"], case.options["dilation"]
        assume(len(case.x_shape) > 3 and stride < case.w_shape[2] and dilation == 1)
        check_geometry(lib, case, algorithm="mec")
        compared[kind("by row", lib, case)] += 1

    check()


@pytest.mark.numpy_only
def test_any_geometry_by_phase(lib, compared, monkeypatch):
    """As wide kernels with a stride are unfolded."""
    monkeypatch.setattr(_windows, "WORTH_SORTING", 1)
    _windows._images.cache_clear()

    @lib.examples(4)
    @given(case=cases())
    def check(case):
        check_geometry(lib, case, algorithm="gemm")
        compared[kind("by phase", lib, case)] += 1

    check()
    _windows._images.cache_clear()


def test_any_geometry_of_far_taps(lib, compared, monkeypatch):
    """Where every tap that shares nothing with the next one is far from it."""
    monkeypatch.setattr(_geometry, "FAR", 1e-9)
    _windows._images.cache_clear()

    @lib.examples(4)
    @given(case=cases(), far=integers(4, 9))
    def check(case, far):
        case.options["dilation"] = tuple(d * far for d in case.options["dilation"])
        padding = zip(case.options["padding"], case.options["dilation"], case.w_shape[2:], strict=True)
        case.options["padding"] = tuple((lo, hi + d * (k - 1)) for (lo, hi), d, k in padding)
        check_geometry(lib, case, algorithm="gemm")
        compared[kind("far taps", lib, case)] += 1

    check()
    _windows._images.cache_clear()


def least_workspace(lib, case):
    """The least workspace that every function works with, as the refusals of a smaller one give it."""
    x, w = (lib.array(np.zeros(shape)) for shape in (case.shape_in_layout(case.x_shape), case.w_shape))
    options = {**case.options, "layout": case.layout}
    dy, least = lib.array(np.zeros(xconv.plan(x, w, **options).y_shape)), 1
    for function in (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    ):
        try:
            with xconv.config(workspace=1):
                function()
        except ValueError as error:
            least = max(least, int(str(error).split("at least ")[1].split()[0]))
    return least


def test_windows(lib, compared):
    @lib.examples(4)
    @given(case=cases())
    def check(case):
        options = {k: v for k, v in case.options.items() if k != "groups"}
        kernel = case.w_shape[2:]
        oracle = Oracle(case.x_shape, (1, case.x_shape[1], *kernel), **options)
        (x,) = case.integers(case.x_shape)
        cols = oracle.im2col(x)
        lib.check(xconv.im2col(lib.array(x), kernel, **options), cols, dtype=lib.real)
        if options.pop("pad_mode") == "constant":
            (cols,) = case.integers(cols.shape)
            size = case.x_shape[2:]
            lib.check(xconv.col2im(lib.array(cols), size, **options), oracle.col2im(cols), dtype=lib.real)
        compared[kind("im2col and col2im", lib, case)] += 1

    check()
