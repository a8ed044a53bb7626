"""Winograd's algorithm: its matrices exactly, its values against plain loops, its error against its promise."""

import math
import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from strategies import Case

import xconv
from xconv._planner import scheduled
from xconv.algorithms import _winograd
from xconv.algorithms._winograd import MOST_TAPS, bank, outputs

MIB = 2**20


@pytest.mark.parametrize("taps", range(2, MOST_TAPS + 1))
def test_matrices_are_exact(taps):
    """The sum over the frequencies of A[f, j] G[f, k] B[f, i] is 1 where i = j + k, and 0 elsewhere."""
    for m in {2, outputs((taps,))[0]}:
        a, g, b = bank(m, taps)
        for j, k, i in product(range(m), range(taps), range(m + taps - 1)):
            total = sum(x[j] * y[k] * z[i] for x, y, z in zip(a, g, b, strict=True))
            assert total == (1 if i == j + k else 0)


def test_tiles_by_kernel():
    assert outputs((3, 3)) == (4, 4)
    assert outputs((5, 5)) == (4, 4)
    assert outputs((7, 5)) == (2, 2)
    assert outputs((7, 7)) is None
    assert outputs((1, 3)) == (1, 4)
    assert outputs((3, 3, 3)) == (4, 4, 4)
    assert outputs((5, 5, 5)) == (2, 2, 2)
    assert outputs((7, 7, 7)) is None


@st.composite
def cases(draw):
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups, c, f = draw(st.integers(1, 2)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    size, kernel, padding = [], [], []
    for _ in range(rank):
        k = draw(st.integers(1, {1: 7, 2: 7, 3: 3}[rank]))
        n = draw(st.integers(0, {1: 14, 2: 9, 3: 5}[rank]))
        lo = draw(st.integers(-1, 4))
        size.append(n)
        kernel.append(k)
        padding.append((lo, draw(st.integers(max(-1, k - n - lo), max(4, k - n - lo)))))
    kernel[draw(st.integers(0, rank - 1))] = 3
    padding = [
        (max(lo, 0) + 1, max(hi, 0) + 1) if k == 3 else (lo, hi) for k, (lo, hi) in zip(kernel, padding, strict=True)
    ]
    mode = "constant" if 0 in size else draw(st.sampled_from(["constant", "constant", "wrap"]))
    options = {"padding": tuple(padding), "groups": groups, "pad_mode": mode}
    layout = draw(st.sampled_from(["channels_first", "channels_last"]))
    shapes = (draw(st.integers(0, 3)), groups * c, *size), (groups * f, c, *kernel)
    return Case(*shapes, options, draw(st.integers(0, 2**16)), layout)


def drawn(case, dtype, *shapes):
    """Arrays of the whole numbers from -7 to 7, complex ones if `dtype` is."""
    arrays = case.integers(*shapes)
    return [a + 1j * np.roll(a, 1) if dtype == "complex128" else a for a in arrays]


def check_values(lib, case, dtype):
    oracle = Oracle(case.x_shape, case.w_shape, **case.options)
    x, w, dy = drawn(case, dtype, case.x_shape, case.w_shape, oracle.y_shape)
    options = {**case.options, "layout": case.layout, "algorithm": "winograd"}
    x_, w_, dy_ = lib.array(case.in_layout(x)), lib.array(w), lib.array(case.in_layout(dy))
    shape = case.shape_in_layout(case.x_shape)
    # Elements up to 10, and sums of as many products as there are; 1e-5 of that is the promise in float32.
    largest = 100 * math.prod(case.w_shape[1:]), 100 * max(1, dy.size)
    unit = 1e-5 if lib.real == "float32" else 1e-12
    for result, expected, scale in (
        (xconv.conv(x_, w_, **options), case.in_layout(oracle.conv(x, w)), largest[0]),
        (xconv.conv_input_grad(dy_, w_, shape, **options), case.in_layout(oracle.input_grad(dy, w)), largest[1]),
        (xconv.conv_weight_grad(dy_, x_, case.w_shape, **options), oracle.weight_grad(dy, x), largest[1]),
    ):
        lib.check(result, expected, bound=unit * scale)


def test_any_geometry(lib):
    @settings(max_examples=max(5, settings().max_examples * lib.share // 500))
    @given(case=cases(), dtype=st.sampled_from(["float64", "float64", "complex128"]))
    def check(case, dtype):
        check_values(lib, case, dtype if lib.has(dtype) or dtype == "float64" else "float64")

    check()


@pytest.mark.parametrize("filters", [0, 2])
def test_cropped(lib, filters):
    """What negative padding leaves out gets no gradient; nothing does where there are no filters."""
    options = {"padding": ((-1, 0), (1, 1)), "groups": 1, "pad_mode": "constant"}
    check_values(lib, Case((1, 1, 9, 9), (filters, 1, 3, 3), options), "float64")


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "shapes", [((3, 4, 13, 11), (6, 2, 3, 5)), ((2, 4, 40), (4, 2, 7)), ((1, 4, 6, 7, 9), (2, 2, 3, 1, 3))]
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_tiles_and_threads(rng, shapes, dtype):
    """Tiles may end anywhere, and change nothing but the rounding; threads change nothing at all."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    options = {"padding": 2, "groups": 2, "algorithm": "winograd"}
    if w.shape[3:4] == (1,):
        options["padding"] = (2, 0, 2)
    y = xconv.conv(x, w, **options)
    for function in (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(y, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(y, x, w.shape, **options),
    ):
        whole = function()
        with pytest.raises(ValueError, match="at least") as caught, xconv.config(workspace=1):
            function()
        least = int(str(caught.value).split("at least ")[1].split()[0])
        for workspace, threads in ((2 * least, 1), (4 * least, 2)):
            with xconv.config(workspace=workspace, threads=threads):
                tiled = function()
            assert np.allclose(tiled, whole, rtol=0, atol=1e-12 * np.max(np.abs(whole)))


@pytest.mark.parametrize("kernel", [(3,), (5,), (7,), (3, 3), (5, 5), (7, 5), (1, 7), (3, 3, 3), (5, 5, 5)], ids=str)
def test_error_in_float32(rng, lib, kernel):
    """max|err| <= 1e-5 max|y|, for the convolution and both gradients."""
    size = {1: (60,), 2: (17, 14), 3: (9, 9, 9)}[len(kernel)]
    x = rng.standard_normal((2, 24, *size)).astype(np.float32)
    w = rng.standard_normal((16, 24, *kernel)).astype(np.float32)
    exact = {"algorithm": "gemm"}
    y = xconv.conv(x.astype(np.float64), w.astype(np.float64), **exact)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    x_, w_, dy_ = lib.array(x), lib.array(w), lib.array(dy)
    dx = xconv.conv_input_grad(dy.astype(np.float64), w.astype(np.float64), x.shape, **exact)
    dw = xconv.conv_weight_grad(dy.astype(np.float64), x.astype(np.float64), w.shape, **exact)
    for result, expected in (
        (xconv.conv(x_, w_, algorithm="winograd"), y),
        (xconv.conv_input_grad(dy_, w_, x.shape, algorithm="winograd"), dx),
        (xconv.conv_weight_grad(dy_, x_, w.shape, algorithm="winograd"), dw),
    ):
        lib.check(result, expected, dtype="float32", bound=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("biased", [False, True])
def test_half(rng, biased):
    x, w = rng.standard_normal((2, 8, 12, 12)).astype(np.float16), rng.standard_normal((4, 8, 3, 3)).astype(np.float16)
    b = np.ones(4, np.float16) if biased else None
    y = xconv.conv(x, w, b, algorithm="winograd")
    expected = xconv.conv(x.astype(np.float64), w.astype(np.float64), algorithm="gemm") + biased
    assert y.dtype == np.float16
    assert np.max(np.abs(y - expected)) <= 2.0**-11 * np.max(np.abs(expected)) + 1e-5 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "dtype", "reason"),
    [
        ((9, 9), (3, 3), {"stride": 2}, "float32", "the stride is above 1"),
        ((9, 9), (3, 3), {"dilation": 2}, "float32", "the dilation is above 1"),
        ((9, 9), (1, 1), {}, "float32", "a kernel of one tap has nothing to save"),
        ((9, 9), (3, 8), {}, "float32", "more than 7 taps"),
        ((9,) + 30 * (1,), (3,) + 30 * (1,), {}, "float32", "more than the 64 axes"),
        ((9, 9), (7, 7), {}, "float32", "its error would be too large"),
        ((9, 9), (3, 3), {}, "int32", "the numbers are integers"),
    ],
)
def test_refusals(lib, shape, kernel, options, dtype, reason):
    x, w = lib.array(np.ones((1, 2, *shape)), dtype), lib.array(np.ones((2, 2, *kernel)), dtype)
    with pytest.raises(ValueError, match=f"'winograd' cannot serve this convolution: .*{reason}"):
        xconv.conv(x, w, **options, algorithm="winograd")


def test_dilation_of_a_single_tap_is_no_matter(rng):
    x, w = rng.standard_normal((1, 2, 9, 9)), rng.standard_normal((2, 2, 3, 1))
    y = xconv.conv(x, w, dilation=(1, 2), algorithm="winograd")
    assert np.allclose(y, xconv.conv(x, w, algorithm="gemm"))


def test_auto_takes_it_only_where_it_may():
    x, w = np.ones((8, 128, 28, 28), np.float32), np.ones((128, 128, 3, 3), np.float32)
    assert xconv.plan(x, w).algorithm == "winograd"
    with xconv.config(numerics="strict"):
        assert xconv.plan(x, w).algorithm == "gemm"
    deep = np.ones((8, 128, 28, 28), np.float32), np.ones((128, 1, 3, 3), np.float32)
    assert xconv.plan(*deep, groups=128).algorithm != "winograd"


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("workspace", [MIB, 4 * MIB])
def test_workspace(rng, dtype, workspace):
    x = rng.standard_normal((3, 16, 100, 90)).astype(dtype)
    w = rng.standard_normal((12, 8, 3, 5)).astype(dtype)
    options = {"groups": 2, "padding": 2, "algorithm": "winograd"}
    y = xconv.conv(x, w, **options)
    for function in (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(y, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(y, x, w.shape, **options),
    ):
        with xconv.config(workspace=workspace):
            tracemalloc.start()
            try:
                result = function()
                peak = tracemalloc.get_traced_memory()[1] - result.nbytes
            finally:
                tracemalloc.stop()
        assert peak <= workspace + 400_000


def test_few_geometries_are_kept():
    scheduled.cache_clear()
    assert _winograd.sides.cache_info().maxsize == 1024


def test_jax_jit():
    """No traced constant survives a trace."""
    jax = pytest.importorskip("jax")
    x, w = jax.numpy.ones((1, 2, 9)), jax.numpy.ones((2, 2, 3))
    run = jax.jit(lambda x, w: xconv.conv(x, w, algorithm="winograd"))
    assert np.allclose(run(x, w), 6)
    assert np.allclose(xconv.conv(x, w, algorithm="winograd"), 6)
    gradient = jax.jit(jax.grad(lambda x: xconv.conv(x, w, algorithm="winograd").sum()))(x)
    assert np.allclose(gradient, xconv.conv_input_grad(jax.numpy.ones((1, 2, 7)), w, x.shape), rtol=1e-5)
