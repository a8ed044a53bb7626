"""Any geometry, against plain loops: both sides compute with small integers in floats, so they must be equal."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis.strategies import booleans, data, integers, none, permutations, sampled_from
from oracle import Oracle, in_w_layout
from strategies import cases

import xconv
from xconv import _geometry
from xconv.algorithms import RefusedError
from xconv.backends.numpy import _windows

pytestmark = pytest.mark.usefixtures("exact")


def kind(what, lib, case):
    padding = "value" if case.options["pad_value"] else case.options["pad_mode"]
    return what, len(case.x_shape) - 2, padding, lib.name


def check_geometry(lib, case, **forced):
    oracle = Oracle(case.x_shape, case.w_shape, **case.options)
    x, w, dy = case.integers(case.x_shape, case.w_shape, oracle.y_shape)
    options = {**case.options, "layout": case.layout, "w_layout": case.w_layout, **forced}
    filters = in_w_layout(w, case.w_layout)
    x_, w_, dy_ = lib.array(case.in_layout(x)), lib.array(filters), lib.array(case.in_layout(dy))
    y = oracle.conv(x, w)
    lib.check(xconv.conv(x_, w_, **options), case.in_layout(y), dtype=lib.real)
    dx = oracle.input_grad(dy, w)
    shape = case.shape_in_layout(case.x_shape)
    lib.check(xconv.conv_input_grad(dy_, w_, shape, **options), case.in_layout(dx), dtype=lib.real)
    dw = oracle.weight_grad(dy, x)
    expected = in_w_layout(dw, case.w_layout)
    lib.check(xconv.conv_weight_grad(dy_, x_, filters.shape, **options), expected, dtype=lib.real)
    # The loops themselves: <conv(x, w), dy> = <x, dx> = <w, dw>.
    assert np.vdot(y, dy) == np.vdot(w, dw)
    assert np.vdot(y - oracle.conv(np.zeros_like(x), w), dy) == np.vdot(x, dx)


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
    @given(case=cases(), data=data())
    def check(case, data):
        check_geometry(lib, case, algorithm="gemm")
        check_windows(lib, case, data.draw(orders(case)))
        compared[kind("by phase", lib, case)] += 1

    check()
    _windows._images.cache_clear()


def test_any_geometry_of_far_taps(lib, compared, monkeypatch):
    """Where every tap that shares nothing with the next one is far from it."""
    if lib.module_is("jax"):
        pytest.skip("compiles every shape, and others run the same code")
    monkeypatch.setattr(_geometry, "FAR", 1e-9)
    _windows._images.cache_clear()

    @lib.examples(4)
    @given(case=cases(), far=integers(4, 9), data=data())
    def check(case, far, data):
        case.options["dilation"] = tuple(d * far for d in case.options["dilation"])
        padding = zip(case.options["padding"], case.options["dilation"], case.w_shape[2:], strict=True)
        case.options["padding"] = tuple((lo, hi + d * (k - 1)) for (lo, hi), d, k in padding)
        check_geometry(lib, case, algorithm="gemm")
        check_windows(lib, case, data.draw(orders(case)))
        compared[kind("far taps", lib, case)] += 1

    check()
    _windows._images.cache_clear()


def test_what_is_not_finite(lib):
    """One such number reaches the results whose sums it is in, and no others, by every algorithm that may be chosen."""
    if lib.name == "dask" or lib.module_is("jax"):
        pytest.skip("plans those of its chunks' library, or compiles every shape of every plan")

    @lib.examples(8)
    @given(case=cases(), bad=sampled_from([np.inf, np.nan]), by_channel=booleans())
    def check(case, bad, by_channel):
        if by_channel and case.x_shape[1] > 0:
            case = replace(case, w_shape=(2 * case.x_shape[1], 1, *case.w_shape[2:]))
            case.options["groups"] = case.x_shape[1]
        with np.errstate(invalid="ignore"):
            check_what_is_not_finite(lib, case, bad)

    check()


def check_what_is_not_finite(lib, case, bad):
    plain = Oracle(case.x_shape, case.w_shape, **case.options)
    of_padded, pad = plain, np.asarray
    if case.options["pad_mode"] == "constant":  # what a padding holds is multiplied like all other numbers
        padding = [(0, 0), (0, 0), *case.options["padding"]]
        within = tuple(slice(max(-lo, 0), -max(-hi, 0) or None) for lo, hi in padding)
        grown = [(max(lo, 0), max(hi, 0)) for lo, hi in padding]
        pad = lambda x: np.pad(x, grown, constant_values=case.options["pad_value"])[within]  # noqa: E731
        options = {**case.options, "padding": 0, "pad_value": 0}
        of_padded = Oracle(pad(np.zeros(case.x_shape)).shape, case.w_shape, **options)

    def image(a):
        return lib.array(case.in_layout(a))

    x, w = np.zeros(case.x_shape), np.zeros(case.w_shape)
    schedule = xconv.plan(image(x), lib.array(w), layout=case.layout, **case.options).schedule
    for function, make, shapes in (
        ("forward", lambda x, w: case.in_layout(of_padded.conv(pad(x), w)), (case.x_shape, case.w_shape)),
        ("input_grad", lambda dy, w: case.in_layout(plain.input_grad(dy, w)), (plain.y_shape, case.w_shape)),
        ("weight_grad", lambda dy, x: of_padded.weight_grad(dy, pad(x)), (plain.y_shape, case.x_shape)),
    ):
        for i in (0, 1):
            operands = case.integers(*shapes)
            if operands[i].size == 0:
                continue
            operands[i].flat[case.seed % operands[i].size] = bad
            first, second = operands
            given = image(first), image(second) if function == "weight_grad" else lib.array(second)
            expected = make(first, second)
            for tiled in schedule._all(function):
                with suppress(RefusedError):
                    found = schedule.backend.call(tiled, *given)
                    assert np.array_equal(lib.numpy(found), expected, equal_nan=True), tiled.name


@pytest.mark.parametrize("function", ["conv_input_grad", "conv_transpose"])
def test_filters_that_are_not_finite(lib, function):
    """Taps that reach over the border reach nothing there, by a convolution with reflected filters neither."""
    w = np.ones((2, 2, 3, 3))
    w[0, 0, 0, 0] = np.inf
    options = {"x_shape": (1, 2, 66, 66)} if function == "conv_input_grad" else {}
    dy = lib.array(np.ones((1, 2, 64, 64)))
    dx = lib.numpy(getattr(xconv, function)(dy, lib.array(w), *options.values()))[0, 0]
    assert np.isinf(dx[:64, :64]).all()
    assert np.isfinite(dx[64:]).all()
    assert np.isfinite(dx[:, 64:]).all()


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
    @given(case=cases(), data=data())
    def check(case, data):
        check_windows(lib, case, data.draw(none() | orders(case)))
        compared[kind("im2col and col2im", lib, case)] += 1

    check()


def orders(case):
    return permutations(range(2 * len(case.x_shape) - 2)).map(tuple)


def check_windows(lib, case, axes):
    options = {k: v for k, v in case.options.items() if k != "groups"}
    kernel = case.w_shape[2:]
    oracle = Oracle(case.x_shape, (1, case.x_shape[1], *kernel), **options)
    (x,) = case.integers(case.x_shape)
    cols = oracle.im2col(x)
    order = axes or tuple(range(cols.ndim))
    found = xconv.im2col(lib.array(x), kernel, **options, axes=axes)
    lib.check(found, cols.transpose(order), dtype=lib.real)
    assert axes is None or lib.is_in_order(found)
    if options.pop("pad_value") == 0 and options.pop("pad_mode") == "constant":
        (cols,) = case.integers(cols.shape)
        x = xconv.col2im(lib.array(cols.transpose(order)), case.x_shape[2:], **options, axes=axes)
        lib.check(x, oracle.col2im(cols), dtype=lib.real)
