"""Fourier's algorithm: its values against plain loops, in blocks of any length, and its error against its promise."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import Backend
from oracle import Oracle
from strategies import cases

import xconv
from xconv._planner import scheduled
from xconv.algorithms import _fourier
from xconv.algorithms._fourier import best_lengths, smooth

MIB = 2**20


@pytest.fixture(autouse=True)
def transforms(request):
    if "lib" in request.fixturenames and request.getfixturevalue("lib").backend is Backend.STRICTEST:
        pytest.skip("has no fft extension")


def test_smooth():
    assert [smooth(n) for n in (0, 1, 7, 11, 13, 97, 161, 1025)] == [1, 1, 8, 12, 15, 100, 162, 1080]


def drawn(case, dtype, *shapes):
    """Arrays of the whole numbers from -7 to 7, complex ones if `dtype` is."""
    arrays = case.integers(*shapes)
    return [a + 1j * np.roll(a, 1) if dtype == "complex128" else a for a in arrays]


def check_values(lib, case, dtype):
    oracle = Oracle(case.x_shape, case.w_shape, **case.options)
    x, w, dy = drawn(case, dtype, case.x_shape, case.w_shape, oracle.y_shape)
    options = {**case.options, "layout": case.layout, "algorithm": "fft"}
    x_, w_, dy_ = lib.array(case.in_layout(x)), lib.array(w), lib.array(case.in_layout(dy))
    shape = case.shape_in_layout(case.x_shape)
    # Elements up to 10, and no more of them in a window than there are; 1e-6 of that in float32.
    unit = 1e-6 if lib.real == "float32" else 1e-13
    bound = unit * 100 * max(1, x.size, w.size, dy.size)
    for result, expected in (
        (xconv.conv(x_, w_, **options), case.in_layout(oracle.conv(x, w))),
        (xconv.conv_input_grad(dy_, w_, shape, **options), case.in_layout(oracle.input_grad(dy, w))),
        (xconv.conv_weight_grad(dy_, x_, case.w_shape, **options), oracle.weight_grad(dy, x)),
    ):
        lib.check(result, expected, bound=bound)


dtypes = st.sampled_from(["float64", "float64", "complex128"])


def test_any_geometry(lib):
    @settings(max_examples=max(5, settings().max_examples * lib.share // 500))
    @given(case=cases(), dtype=dtypes)
    def check(case, dtype):
        check_values(lib, case, dtype if lib.has(dtype) or dtype == "float64" else "float64")

    check()


def test_any_length(lib):
    """Blocks of a single output and of all, and transforms that are longer than they must be."""

    @settings(max_examples=max(5, settings().max_examples * lib.share // 500))
    @given(case=cases(), dtype=dtypes, surplus=st.lists(st.integers(0, 9), min_size=3, max_size=3))
    def check(case, dtype, surplus):
        def some_lengths(g):
            return tuple(axis.extent + more for axis, more in zip(g.axes, surplus, strict=False))

        scheduled.cache_clear()
        try:
            with mock.patch.object(_fourier, "best_lengths", some_lengths):
                check_values(lib, case, dtype if lib.has(dtype) or dtype == "float64" else "float64")
        finally:
            scheduled.cache_clear()

    check()


def test_lengths(rng):
    """They are smooth, hold a window, and are worth their choice: a tenth of the image for a small kernel."""
    x, w = rng.standard_normal((1, 1, 4000)), rng.standard_normal((1, 1, 31))
    (length,) = best_lengths(xconv.plan(x, w).schedule.geometry)
    assert smooth(length) == length
    assert 31 <= length <= 400
    whole = rng.standard_normal((1, 1, 3901))
    assert best_lengths(xconv.plan(x, whole).schedule.geometry) == (4000,)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((3, 4, 33, 27), (6, 2, 5, 9), {}),
        ((2, 4, 100), (4, 2, 7), {"stride": 3, "dilation": 2}),
        ((1, 4, 9, 12, 9), (2, 2, 3, 1, 3), {"stride": (1, 2, 1)}),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_tiles_and_threads(rng, x_shape, w_shape, options, dtype):
    """Tiles may end anywhere, and change nothing but the rounding; threads change nothing at all."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape))
    options = {"padding": 2, "groups": 2, "algorithm": "fft", **options}
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
        for workspace in (2 * least, 4 * least):
            tiled = []
            for threads in (1, 2):
                with xconv.config(workspace=workspace, threads=threads):
                    tiled.append(function())
            assert np.array_equal(*tiled)
            assert np.allclose(tiled[0], whole, rtol=0, atol=1e-12 * np.max(np.abs(whole)))


@pytest.mark.parametrize(
    ("kernel", "stride"), [((3,), 1), ((31,), 2), ((3, 3), 1), ((31, 31), 1), ((9, 2), 2), ((5, 5, 5), 1)], ids=str
)
def test_error_in_float32(rng, lib, kernel, stride):
    """max|err| <= 1e-5 max|y|, for the convolution and both gradients."""
    size = {1: (300,), 2: (64, 50), 3: (16, 14, 15)}[len(kernel)]
    x = rng.standard_normal((2, 6, *size)).astype(np.float32)
    w = rng.standard_normal((4, 6, *kernel)).astype(np.float32)
    exact, options = {"algorithm": "gemm", "stride": stride}, {"algorithm": "fft", "stride": stride}
    y = xconv.conv(x.astype(np.float64), w.astype(np.float64), **exact)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    x_, w_, dy_ = lib.array(x), lib.array(w), lib.array(dy)
    dx = xconv.conv_input_grad(dy.astype(np.float64), w.astype(np.float64), x.shape, **exact)
    dw = xconv.conv_weight_grad(dy.astype(np.float64), x.astype(np.float64), w.shape, **exact)
    for result, expected in (
        (xconv.conv(x_, w_, **options), y),
        (xconv.conv_input_grad(dy_, w_, x.shape, **options), dx),
        (xconv.conv_weight_grad(dy_, x_, w.shape, **options), dw),
    ):
        lib.check(result, expected, dtype="float32", bound=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("biased", [False, True])
def test_half(rng, biased):
    x, w = rng.standard_normal((2, 3, 22, 22)).astype(np.float16), rng.standard_normal((4, 3, 9, 9)).astype(np.float16)
    b = np.ones(4, np.float16) if biased else None
    y = xconv.conv(x, w, b, algorithm="fft")
    expected = xconv.conv(x.astype(np.float64), w.astype(np.float64), algorithm="gemm") + biased
    assert y.dtype == np.float16
    assert np.max(np.abs(y - expected)) <= 2.0**-11 * np.max(np.abs(expected)) + 1e-5 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "reason"),
    [
        ((9, 9), (3, 3), "int32", "the numbers are integers"),
        ((9,) + 31 * (1,), (3,) + 31 * (1,), "float32", "more than the 64 axes"),
    ],
)
def test_refusals(lib, shape, kernel, dtype, reason):
    x, w = lib.array(np.ones((1, 1, *shape)), dtype), lib.array(np.ones((1, 1, *kernel)), dtype)
    with pytest.raises(ValueError, match=f"'fft' cannot serve this convolution: .*{reason}"):
        xconv.conv(x, w, algorithm="fft")


def test_a_library_without_the_extension():
    strictest = Backend.STRICTEST.library()
    with strictest.active():
        x, w = strictest.array(np.ones((1, 1, 64, 64))), strictest.array(np.ones((1, 1, 31, 31)))
        with pytest.raises(ValueError, match=r"'fft' cannot serve this convolution: .* has no `fft` extension"):
            xconv.conv(x, w, algorithm="fft")
        assert xconv.plan(x, w).algorithm != "fft"


def test_auto_takes_it_only_where_it_may():
    x, w = np.ones((1, 1, 512, 512), np.float32), np.ones((1, 1, 31, 31), np.float32)
    assert xconv.plan(x, w, padding=15).algorithm == "fft"
    with xconv.config(numerics="strict"):
        assert xconv.plan(x, w, padding=15).algorithm != "fft"
    x, w = np.ones((8, 3, 224, 224), np.float32), np.ones((64, 3, 7, 7), np.float32)
    assert xconv.plan(x, w, stride=2, padding=3).algorithm == "gemm"


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("workspace", [5 * MIB, 10 * MIB])
def test_workspace(rng, dtype, workspace):
    x = rng.standard_normal((3, 4, 200, 190)).astype(dtype)
    w = rng.standard_normal((6, 2, 15, 11)).astype(dtype)
    options = {"groups": 2, "padding": 2, "algorithm": "fft"}
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
        assert peak <= workspace + 100_000


def test_plan_counts_what_it_does():
    """Blocks of 10 outputs: 16 numbers of 2 * 2 * 3 of the image, as many of the result, and 9 of the filters."""
    p = xconv.plan(np.ones((2, 3, 26)), np.ones((3, 3, 7)), algorithm="fft")
    assert p.schedule.algorithm.lengths == (16,)
    assert p.flops == 2 * (16 * 33 * 4 * 5 / 4 + 8 * 4 * 9 * 4)


def test_jax_jit():
    """No traced constant survives a trace."""
    jax = pytest.importorskip("jax")
    x, w = jax.numpy.ones((1, 2, 9)), jax.numpy.ones((2, 2, 3))
    run = jax.jit(lambda x, w: xconv.conv(x, w, algorithm="fft"))
    assert np.allclose(run(x, w), 6, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: xconv.conv(x, w, algorithm="fft").sum()))(x)
    assert np.allclose(gradient, xconv.conv_input_grad(jax.numpy.ones((1, 2, 7)), w, x.shape), rtol=1e-5)
