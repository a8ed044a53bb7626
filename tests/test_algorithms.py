"""What every algorithm promises, whichever it is: tiles and threads, error, half types, memory, and JAX's `jit`."""

import math
import tracemalloc

import numpy as np
import pytest
from libraries import Backend
from oracle import Oracle

import xconv
from xconv.algorithms._fourier import best_lengths

MIB = 2**20

#: Shapes of x and w, and options, that several tiles and any rank make something of.
CUT = {
    "gemm": [((3, 4, 13, 11), (6, 2, 3, 5), {"stride": 2}), ((2, 4, 40), (4, 2, 7), {"dilation": 3})],
    "mec": [
        ((3, 4, 13, 11), (6, 2, 3, 5), {"stride": 2}),
        ((2, 4, 9, 8, 7), (4, 2, 3, 2, 1), {"dilation": (1, 2, 1)}),
    ],
    "pointwise": [((3, 4, 13, 11), (6, 2, 1, 1), {"padding": 0})],
    "depthwise": [((3, 2, 23, 11), (4, 1, 3, 5), {}), ((2, 2, 90), (2, 1, 7), {"stride": 2})],
    "winograd": [
        ((3, 4, 13, 11), (6, 2, 3, 5), {}),
        ((2, 4, 40), (4, 2, 7), {}),
        ((1, 4, 6, 7, 9), (2, 2, 3, 1, 3), {"padding": (2, 0, 2)}),
    ],
    "fft": [
        ((3, 4, 33, 27), (6, 2, 5, 9), {}),
        ((2, 4, 100), (4, 2, 7), {"stride": 3, "dilation": 2}),
        ((1, 4, 9, 12, 9), (2, 2, 3, 1, 3), {"stride": (1, 2, 1)}),
    ],
}

#: Kernels, with a stride and a size of images, at which the error was looked at; the first ones are enough for JAX,
#: which compiles every new shape.
MEASURED = {
    "winograd": [
        ((3, 3), 1, (17, 14)),
        ((7,), 1, (60,)),
        ((3,), 1, (60,)),
        ((5,), 1, (60,)),
        ((5, 5), 1, (17, 14)),
        ((7, 5), 1, (17, 14)),
        ((1, 7), 1, (17, 14)),
        ((3, 3, 3), 1, (9, 9, 9)),
        ((5, 5, 5), 1, (9, 9, 9)),
        ((3, 3), 2, (17, 14)),
        ((7, 5), 2, (21, 18)),
        ((11,), 4, (60,)),
        ((16,), 1, (60,)),
        ((3, 3, 3), 2, (11, 9, 9)),
    ],
    "fft": [
        ((31, 31), 1, (64, 50)),
        ((31,), 2, (300,)),
        ((3,), 1, (300,)),
        ((3, 3), 1, (64, 50)),
        ((9, 2), 2, (64, 50)),
        ((5, 5, 5), 1, (16, 14, 15)),
    ],
}


def flat(table):
    return [pytest.param(name, *row, id=f"{name}-{i}") for name, rows in table.items() for i, row in enumerate(rows)]


def functions(x, w, dy, **options):
    """The three, ready to be called."""
    return (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    )


def least_workspace(function):
    with pytest.raises(ValueError, match="at least") as caught, xconv.config(workspace=1):
        function()
    return int(str(caught.value).split("at least ")[1].split()[0])


def peak_of(function):
    """Bytes of memory beside the result."""
    tracemalloc.start()
    try:
        result = function()
        return tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.numpy_only
@pytest.mark.parametrize(("algorithm", "x_shape", "w_shape", "options"), flat(CUT))
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_tiles_and_threads(rng, algorithm, x_shape, w_shape, options, dtype):
    """Tiles may end anywhere, and change nothing but the rounding; threads change nothing at all."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape))
    options = {"padding": 2, "groups": 2, "algorithm": algorithm, **options}
    y = xconv.conv(x, w, **options)
    for function in functions(x, w, y, **options):
        whole, least = function(), least_workspace(function)
        for workspace in (2 * least, 4 * least):
            tiled = []
            for threads in (1, 2):
                with xconv.config(workspace=workspace, threads=threads):
                    tiled.append(function())
            assert np.array_equal(*tiled)
            assert np.allclose(tiled[0], whole, rtol=0, atol=1e-12 * np.max(np.abs(whole)))


@pytest.mark.parametrize(("algorithm", "kernel", "stride", "size"), flat(MEASURED))
def test_error_in_float32(rng, lib, algorithm, kernel, stride, size):
    """max|err| <= 1e-5 max|y|, for the convolution and both gradients."""
    if lib.module_is("jax") and (kernel, stride, size) != MEASURED[algorithm][0]:
        pytest.skip("one kernel is enough where every shape is compiled")
    if algorithm == "fft" and lib.backend in {Backend.STRICTEST, Backend.CUPY_ON_HOST}:
        pytest.skip("has no Fourier transforms")
    channels = 24 if algorithm == "winograd" else 6
    x = rng.standard_normal((2, channels, *size)).astype(np.float32)
    w = rng.standard_normal((2 * channels // 3, channels, *kernel)).astype(np.float32)
    out = [(n - k) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    dy = rng.standard_normal((2, len(w), *out)).astype(np.float32)
    exact = functions(*(a.astype(np.float64) for a in (x, w, dy)), stride=stride, algorithm="gemm")
    found = functions(*(lib.array(a) for a in (x, w, dy)), stride=stride, algorithm=algorithm)
    for run, run_exactly in zip(found, exact, strict=True):
        expected = run_exactly()
        lib.check(run(), expected, dtype="float32", bound=1e-5 * np.max(np.abs(expected)))


@pytest.mark.numpy_only
@pytest.mark.parametrize(("taps", "stride", "rank"), [(2, 1, 3), (3, 2, 3), (5, 2, 3), (3, 2, 2), (4, 2, 2), (7, 3, 2)])
def test_error_of_positive_numbers(rng, taps, stride, rank):
    """In which nothing cancels, and sums on the way are large: most of all in the input gradient."""
    x, w = rng.random((1, 64, *(12 + taps,) * rank), "f4"), rng.random((64, 64, *(taps,) * rank), "f4")
    out = (12 // stride + 1,) * rank
    dy = rng.random((1, 64, *out), "f4")
    exact = functions(*(a.astype("f8") for a in (x, w, dy)), stride=stride, algorithm="gemm")
    for run, run_exactly in zip(functions(x, w, dy, stride=stride, algorithm="winograd"), exact, strict=True):
        expected = run_exactly()
        assert np.max(np.abs(run() - expected)) <= 2e-5 * np.max(expected)


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["longdouble", "clongdouble"])
@pytest.mark.parametrize("algorithm", CUT)
def test_error_beyond_double(rng, algorithm, dtype):
    """Of numbers with more bits than a double, none is lost on the way."""
    (c_in, groups), kernel = {"depthwise": (2, 2)}.get(algorithm, (4, 1)), {"pointwise": 1, "fft": 4}.get(algorithm, 3)
    x_shape, w_shape, options = (2, c_in, 9, 7), (4, c_in // groups, kernel, kernel), {"groups": groups}
    oracle = Oracle(x_shape, w_shape, **options)
    parts = (rng.standard_normal((2, *shape)).astype(np.longdouble) / 3 for shape in (x_shape, w_shape, oracle.y_shape))
    x, w, dy = (a + 1j * b if dtype == "clongdouble" else a for a, b in parts)
    expected = oracle.conv(x, w), oracle.input_grad(dy, w), oracle.weight_grad(dy, x)
    for run, exact in zip(functions(x, w, dy, **options, algorithm=algorithm), expected, strict=True):
        found = run()
        assert found.dtype == dtype
        assert np.max(np.abs(found - exact)) <= 32 * np.finfo(dtype).eps * np.max(np.abs(exact))


@pytest.mark.numpy_only
@pytest.mark.parametrize(("algorithm", "kernel", "stride", "size"), flat(MEASURED))
def test_very_large_numbers(rng, algorithm, kernel, stride, size):
    """They overflow on the way only beyond a bound that is known, and not in a plain sum."""
    x = rng.choice([-1.0, 1.0], (1, 2, *size))
    w = rng.choice([-1.0, 1.0], (3, 2, *kernel)) / (2 * math.prod(kernel))  # no output is larger than x
    length = math.prod(best_lengths(xconv.plan(x, w, stride=stride).schedule.geometry))
    grown = {1: 40, 2: 1600, 3: 5000}[len(size)] if algorithm == "winograd" else length**1.5
    most = np.finfo(np.float32).max
    exact = xconv.conv(x, w, stride=stride, algorithm="gemm")
    for scale, allowed in ((most / grown / 1.001, algorithm), (most / 1.001, "gemm")):
        y = xconv.conv((x * scale).astype("f4"), w.astype("f4"), stride=stride, algorithm=allowed)
        assert np.max(np.abs(y / scale - exact)) <= 1e-5
    with np.errstate(all="ignore"):
        y = xconv.conv((x * most / 1.001).astype("f4"), w.astype("f4"), stride=stride, algorithm=algorithm)
    assert not np.all(np.isfinite(y))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("algorithm", "kernel"), [("gemm", 3), ("mec", 3), ("winograd", 3), ("fft", 9)])
def test_half(rng, algorithm, kernel, biased):
    """Summed in float32, and rounded once."""
    x = rng.standard_normal((2, 8, 22, 22)).astype(np.float16)
    w = rng.standard_normal((4, 8, kernel, kernel)).astype(np.float16)
    b = np.ones(4, np.float16) if biased else None
    y = xconv.conv(x, w, b, algorithm=algorithm)
    expected = xconv.conv(x.astype(np.float64), w.astype(np.float64), algorithm="gemm") + biased
    assert y.dtype == np.float16
    assert np.max(np.abs(y - expected)) <= (2.0**-11 + 1e-5) * np.max(np.abs(expected))


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize(
    ("algorithm", "x_shape", "w_shape", "stride", "workspace"),
    [
        ("gemm", (3, 16, 100, 90), (12, 8, 3, 5), 1, MIB),
        ("gemm", (3, 16, 100, 90), (12, 8, 3, 7), 2, MIB),
        ("mec", (3, 16, 100, 90), (12, 8, 3, 5), 1, MIB),
        ("winograd", (3, 16, 100, 90), (12, 8, 3, 5), 1, MIB),
        ("winograd", (3, 16, 100, 90), (12, 8, 3, 5), 1, 4 * MIB),
        ("fft", (3, 4, 200, 190), (6, 2, 15, 11), 1, 5 * MIB),
        ("fft", (3, 4, 200, 190), (6, 2, 15, 11), 1, 10 * MIB),
    ],
)
def test_workspace(rng, dtype, algorithm, x_shape, w_shape, stride, workspace):
    """A bound on the memory of a call; what Python's own objects take is not counted, less than 100 KB."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape))
    options = {"groups": 2, "padding": 2, "stride": stride, "algorithm": algorithm}
    y = xconv.conv(x, w, **options)
    with xconv.config(workspace=workspace):
        for function in functions(x, w, y, **options):
            assert peak_of(function) <= workspace + 100_000


@pytest.mark.parametrize("algorithm", ["gemm", "winograd", "fft"])
def test_jax_jit(algorithm):
    """No traced constant survives a trace."""
    jax = pytest.importorskip("jax")
    x, w = jax.numpy.ones((1, 2, 9)), jax.numpy.ones((2, 2, 3))

    def run(x, w):
        return xconv.conv(x, w, algorithm=algorithm)

    assert np.allclose(jax.jit(run)(x, w), 6, rtol=1e-5)
    assert np.allclose(run(x, w), 6, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: run(x, w).sum()))(x)
    assert np.allclose(gradient, xconv.conv_input_grad(jax.numpy.ones((1, 2, 7)), w, x.shape), rtol=1e-5)
