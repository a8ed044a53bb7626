"""CuPy on a CUDA device: what cannot be seen without one. For --backend=cupy.

Tests that are marked as `alone` look at time, or take most of the memory: nothing else may run on the device meanwhile.
Where cuDNN has no engine for a convolution, its test is skipped, and says for which.
"""

import importlib
from functools import wraps

import numpy as np
import pytest
from libraries import Backend
from oracle import Oracle

import xconv
from xconv.algorithms import PORTABLE, RefusedError
from xconv.backends import backend_of

LAYER = (8, 16, 30, 28), (32, 16, 3, 3), {"padding": 1}
GEOMETRIES = {
    "layer": LAYER,
    "strided": ((8, 16, 31, 28), (24, 16, 3, 5), {"padding": (1, 2), "stride": (2, 1)}),
    "dilated": ((4, 8, 33, 30), (8, 4, 3, 3), {"dilation": 2, "padding": ((0, 3), 1), "groups": 2}),
    "last": ((8, 30, 28, 16), (32, 16, 3, 3), {"padding": 1, "layout": "channels_last"}),
    "depthwise": ((8, 16, 30, 28), (16, 1, 3, 3), {"padding": 1, "groups": 16}),
    "pointwise": ((8, 16, 30, 28), (32, 16, 1, 1), {}),
    "reflected": ((4, 8, 20, 20), (8, 8, 5, 5), {"padding": 4, "pad_mode": "reflect"}),
    "symmetric": ((4, 8, 20, 20), (8, 8, 5, 5), {"padding": 4, "pad_mode": "symmetric"}),
    "value": ((4, 8, 20, 20), (8, 8, 5, 5), {"padding": ((4, 2), (-1, 3)), "pad_value": 3}),
    "line": ((4, 6, 1000), (6, 2, 9), {"groups": 3, "stride": 2}),
    "volume": ((2, 4, 9, 10, 11), (6, 4, 3, 2, 3), {"padding": 1}),
}
FUNCTIONS = ("conv", "input_grad", "weight_grad")


@pytest.fixture(autouse=True)
def cupy(request):
    """The library; its absence, or that of a device, is an error where it was asked for."""
    if Backend.CUPY not in (request.config.getoption("backend") or ()):
        pytest.skip("runs with --backend=cupy")
    Backend.CUPY.library()
    return importlib.import_module("cupy")


@pytest.fixture(params=["auto", "cudnn"])
def algorithm(request):
    """By name, what `auto` does not choose by itself."""
    if request.param == "cudnn":
        pytest.importorskip("cudnn", exc_type=ImportError)
    return request.param


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return request.param


@pytest.fixture(params=GEOMETRIES)
def geometry(request):
    return GEOMETRIES[request.param]


@pytest.fixture
def convolution(cupy, rng, geometry, algorithm):
    """Arrays of normal numbers in float32, and the options."""
    x_shape, w_shape, options = geometry
    return draw(cupy, rng, x_shape, w_shape, {**options, "algorithm": algorithm})


def draw(cupy, rng, x_shape, w_shape, options, dtype="float32", values=None):
    values = values or rng.standard_normal
    x, w = (cupy.asarray(values(shape).astype(dtype)) for shape in (x_shape, w_shape))
    dy = cupy.asarray(values(xconv.plan(x, w, **options).y_shape).astype(dtype))
    return x, w, dy, options


def functions(x, w, dy, options):
    """By name, what these arrays are for."""
    runs = {
        "conv": lambda: xconv.conv(x, w, **options),
        "input_grad": lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        "weight_grad": lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    }
    return {name: or_skipped(run, f"{name}, {x.dtype} {x.shape}, {w.shape}, {options}") for name, run in runs.items()}


def or_skipped(run, what):
    """`run`, and a skip of the test where another library has nothing for it."""

    @wraps(run)
    def call():
        try:
            return run()
        except RefusedError as error:
            pytest.skip(f"refused: {what}: {error}")

    return call


def plain(function, *arrays, options):
    """A function of NumPy's arrays in float64, summed as it is written: where a sum is zero, so is the result."""
    wide = (array.astype("float64") for array in arrays)
    return functions(*wide, {**options, "algorithm": "gemm"})[function]()


def same_bits(a, b):
    return a.get().tobytes() == b.get().tobytes()


def need(cupy, gigabytes):
    free = cupy.cuda.runtime.memGetInfo()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free memory, and there are {free:.1f}")


def test_the_same_bits_every_time(convolution, function):
    """With general and with specialised kernels."""
    run = functions(*convolution)[function]
    first = run()
    assert all(same_bits(run(), first) for _ in range(20))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numpy_gets_the_same(cupy, rng, geometry, algorithm, function, dtype):
    """Small integers: sums are exact in any order, and halves round them once."""
    x_shape, w_shape, options = geometry
    options = {**options, "algorithm": algorithm}
    arrays = draw(cupy, rng, x_shape, w_shape, options, dtype, values=lambda shape: rng.integers(-4, 5, shape))
    expected = plain(function, *(array.get() for array in arrays[:3]), options=options).astype(dtype)
    run = functions(*arrays)[function]
    for _ in range(4):  # the fourth is done by a specialised kernel
        assert np.array_equal(run().get(), expected)


def test_memory_of_any_order(convolution, function):
    x, w, dy, options = convolution

    def elsewhere(a):
        big = cupy_like(a).zeros([2 * n + 3 for n in a.shape[::-1]], a.dtype).transpose()
        part = big[tuple(slice(2 * n, None, -2) for n in a.shape)]
        part = part[tuple(slice(0, n) for n in a.shape)]
        part[...] = a
        assert not part.flags.c_contiguous
        return part

    expected = functions(x, w, dy, options)[function]()
    made = functions(*map(elsewhere, (x, w, dy)), options)[function]()
    assert np.allclose(made.get(), expected.get(), rtol=1e-4, atol=1e-4)


def cupy_like(a):
    return importlib.import_module(type(a).__module__.partition(".")[0])


@pytest.mark.alone
def test_more_than_2_31_column_elements(cupy):
    """Each element comes back as often as a window has seen it."""
    need(cupy, 12)
    side = 2100
    x = cupy.arange(64 * side * side, dtype="int32").reshape(1, 64, side, side) % 9 - 4
    x = x.astype("int8")
    cols = xconv.im2col(x, 3, padding=1)
    assert cols.size > 2**31
    assert bool((cols[0, -1, 1, 1] == x[0, -1]).all())
    assert bool((cols[0, -1, 0, 0, 1:, 1:] == x[0, -1, :-1, :-1]).all())
    assert not bool(cols[0, -1, 2, 2, -1].any())
    along = np.full(side, 3, np.int8)
    along[[0, -1]] = 2
    seen = cupy.asarray(along[:, None] * along)
    assert bool((xconv.col2im(cols, side, padding=1) == x * seen).all())


@pytest.mark.alone
def test_more_than_2_31_inputs_and_outputs(cupy):
    need(cupy, 24)
    x = cupy.ones((3, 1, 27000, 27000), "float16")
    assert x.size > 2**31
    x[-1, 0, -2:, -2:] = 5
    w = cupy.asarray([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]], "float16")
    y = xconv.conv(x, w, algorithm="depthwise")
    assert y.size > 2**31
    corner = xconv.conv(x[-1:, :, -8:, -8:].get(), w.get(), algorithm="gemm")
    assert np.array_equal(y[-1:, :, -6:, -6:].get(), corner)
    del y
    dx = xconv.conv_input_grad(x, w, (3, 1, 27002, 27002), algorithm="depthwise")
    corner = xconv.conv_input_grad(x[-1:, :, -8:, -8:].get(), w.get(), (1, 1, 10, 10), algorithm="gemm")
    assert np.array_equal(dx[-1:, :, -8:, -8:].get(), corner[..., -8:, -8:])


@pytest.mark.alone
def test_the_current_stream(cupy):
    """Work waits for what was put into the caller's stream before it, and for nothing else."""
    spin = cupy.RawKernel(
        """extern "C" __global__ void late(float* x, int n) {
          long long begin = clock64();
          while (clock64() - begin < 300000000LL) {}
          for (int i = 0; i < n; ++i) x[i] = 1;
        }""",
        "late",
    )
    x, w = cupy.full((1, 4, 16, 16), cupy.nan, "float32"), cupy.ones((4, 4, 3, 3), "float32")
    dy = cupy.ones((1, 4, 14, 14), "float32")
    cupy.cuda.Device().synchronize()
    for function, expected in (
        (lambda: xconv.conv(x, w, algorithm="gemm"), 36),
        (lambda: xconv.conv_weight_grad(dy, x, w.shape, algorithm="gemm"), 196),
        (lambda: xconv.im2col(x, 3), 1),
    ):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(
                4
            ):  # until all kernels are compiled, and the pool has memory for this stream: to get it waits
                function()
        stream.synchronize()
        x.fill(cupy.nan)
        cupy.cuda.Device().synchronize()
        with stream:
            spin((1,), (1,), (x, np.int32(x.size)))
            result = function()
            waits = not stream.done
        stream.synchronize()
        assert waits  # the call came back before the device had done it
        assert bool((result == expected).all())


@pytest.mark.filterwarnings("ignore:cupyx.allow_synchronize")  # is experimental
def test_nothing_waits_for_the_device(convolution, function):
    from cupyx import allow_synchronize

    run = functions(*convolution)[function]
    for _ in range(4):
        run()
    with allow_synchronize(False):
        run()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_summed_in_float32(cupy, rng, algorithm, function, dtype):
    """Rounded once at the end: ``eps / 2 |y|``, beside ``K eps conv(|x|, |w|)`` of the sum in float32."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    eps, eps32 = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype], 2.0**-23
    x_shape, w_shape, options = LAYER
    x, w, dy, _ = draw(cupy, rng, x_shape, w_shape, options, dtype)
    hx, hw, hdy = (a.astype("float64").get() for a in (x, w, dy))
    oracle = Oracle(x_shape, w_shape, **options)
    reference, operands, products = {
        "conv": (oracle.conv, (hx, hw), 16 * 9),
        "input_grad": (oracle.input_grad, (hdy, hw), 32 * 9),
        "weight_grad": (oracle.weight_grad, (hdy, hx), 8 * 30 * 28),
    }[function]
    expected = reference(*operands)
    bound = eps / 2 * abs(expected) + products * eps32 * reference(*map(abs, operands)) + 2.0**-25
    result = functions(x, w, dy, {**options, "algorithm": algorithm})[function]()
    assert result.dtype == x.dtype
    assert np.all(abs(result.astype("float64").get() - expected) <= bound)


LARGE = (2, 3, 60, 57), (4, 3, 17, 15), {"padding": 8}


def served():
    """Every algorithm with the geometries that it may serve, and one of large kernels."""
    found = []
    for key, (x_shape, w_shape, options) in {**GEOMETRIES, "large": LARGE}.items():
        g = xconv.plan(np.zeros(x_shape), np.zeros(w_shape), **options).schedule.geometry
        names = [name for name, algorithm in PORTABLE.items() if algorithm.refusal(g, "real") is None]
        for name in (*names, "implicit", "cudnn"):
            found.append(pytest.param(name, (x_shape, w_shape, options), id=f"{name}-{key}"))  # noqa: PERF401
    return found


#: By dtype: its rounding, that of the sum, and the error of an algorithm that transforms, over the largest element.
ERRORS = {"float16": (2.0**-11, 2.0**-23, 1e-5), "float32": (0, 2.0**-23, 1e-5), "float64": (0, 2.0**-52, 1e-12)}


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("name", "served_geometry"), served())
def test_every_algorithm_by_its_name(cupy, rng, name, served_geometry, function, dtype):
    """Also those that `auto` does not choose on a device."""
    x_shape, w_shape, options = served_geometry
    x, w, dy, _ = draw(cupy, rng, x_shape, w_shape, options, dtype)
    algorithm, g = backend_of({"x": x}).algorithms[name], xconv.plan(x, w, **options).schedule.geometry
    if reason := algorithm.refusal(g, "real") or algorithm.lack(backend_of({"x": x}), x.dtype, "ieee"):
        pytest.skip(f"{name}: {reason}")
    options = {**options, "algorithm": name}
    on_host = [array.get() for array in (x, w, dy)]
    exact = plain(function, *on_host, options=options)
    size = plain(function, *map(abs, on_host), options=options)
    one, terms, transformed = ERRORS[dtype]
    spatial = dy.size // w_shape[0]
    products = {"conv": w[0].size, "input_grad": w[0].size * w_shape[0] // w_shape[1], "weight_grad": spatial}[function]
    products += 8 * (name == "implicit")
    bound = products * terms * size if algorithm.componentwise else transformed * np.max(abs(exact))
    bound = bound + one * abs(exact) + 2.0**-25 * (dtype == "float16")
    run = functions(x, w, dy, options)[function]
    for _ in range(4):
        error = abs(run().get() - exact)
        assert np.all(error <= bound), (
            f"{np.max(error / bound)} of the bound, {np.max(error) / np.max(abs(exact))} of all"
        )


#: Shapes of x, channels first, and w, and options, for the kernels on tensor cores: many tiles of pixels and filters;
#: channels, filters and depths that fill chunks and tiles, and that do not; every rank, stride, dilation and side of
#: the padding; groups; more taps than there are bits.
IMPLICIT = {
    "layer": ((4, 64, 30, 28), (160, 64, 3, 3), {"padding": 1}),
    "deep": ((2, 256, 9, 10), (96, 256, 3, 3), {"padding": 1}),
    "narrow": ((2, 8, 17, 16), (24, 8, 3, 3), {"padding": ((0, 2), 1), "stride": (2, 1)}),
    "ragged": ((3, 13, 19, 18), (37, 13, 2, 3), {"padding": (2, -1), "dilation": (2, 1)}),
    "image": ((2, 3, 40, 37), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    "line": ((3, 24, 500), (40, 24, 5), {"stride": 3, "padding": ((1, 4),)}),
    "volume": ((2, 16, 7, 8, 9), (48, 16, 3, 2, 3), {"padding": 1, "stride": (1, 2, 1)}),
    "pixel": ((2, 72, 5, 5), (130, 72, 1, 1), {}),
    "groups": ((2, 48, 21, 20), (96, 16, 3, 3), {"padding": 1, "groups": 3, "stride": 2}),
}
#: Dtypes and precisions, by three products and by one.
PRECISE = [("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")]
LAYOUTS = ["channels_first", "channels_last"]


@pytest.fixture
def tensor_cores(cupy):
    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("needs compute capability 8.0")


def laid(shape, layout):
    return (shape[0], *shape[2:], shape[1]) if layout == "channels_last" else shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "precision"), PRECISE)
@pytest.mark.parametrize("name", IMPLICIT)
def test_the_implicit_product(cupy, tensor_cores, rng, name, function, dtype, precision, layout):
    """Sums of small integers are exact: they are those of NumPy, rounded once, and the same on every run."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x_shape, w_shape, options = IMPLICIT[name]
    options = {**options, "layout": layout}
    arrays = draw(
        cupy, rng, laid(x_shape, layout), w_shape, options, dtype, values=lambda shape: rng.integers(-2, 3, shape)
    )
    expected = plain(function, *(array.get() for array in arrays[:3]), options=options)
    run = functions(*arrays[:3], {**options, "algorithm": "implicit"})[function]
    with xconv.config(precision=precision):
        result = run()
        assert result.dtype == arrays[0].dtype
        assert np.array_equal(result.get(), expected.astype(result.dtype))
        assert all(same_bits(run(), result) for _ in range(20))


@pytest.mark.parametrize(("dtype", "precision"), [("float16", "ieee"), ("float32", "ieee"), ("float32", "tf32")])
def test_the_implicit_product_of_any_memory(cupy, tensor_cores, rng, dtype, precision):
    """Views that begin and step anywhere; neighbours that are not numbers are not read."""
    whole = cupy.full((2, 20, 19, 40), cupy.nan, dtype)
    w = cupy.asarray(rng.integers(-2, 3, (24, 16, 3, 3)).astype(dtype))
    views = whole[..., :16], whole[..., 1:17], whole[:, ::2, ::-1, 3:35:2], whole[:, :16].transpose(0, 3, 2, 1)
    for x in views:
        whole.fill(cupy.nan)
        x[...] = cupy.asarray(rng.integers(-2, 3, x.shape).astype(dtype))
        with xconv.config(precision=precision):
            y = xconv.conv(x, w, padding=1, layout="channels_last", algorithm="implicit")
        on_host = (a.get().astype("float64") for a in (x, w))
        expected = xconv.conv(*on_host, padding=1, layout="channels_last", algorithm="gemm")
        assert np.array_equal(y.get(), expected.astype(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "precision"), [("float16", "ieee"), ("float32", "ieee"), ("float32", "tf32")])
def test_the_error_of_the_implicit_product(cupy, tensor_cores, rng, function, dtype, precision, layout):
    """Where TF32 is asked for, operands are rounded to 10 bits; sums are float32, in whatever way the device rounds."""
    x_shape, w_shape, options = IMPLICIT["deep"]
    options = {**options, "layout": layout}
    x, w, dy, _ = draw(cupy, rng, laid(x_shape, layout), w_shape, options, dtype)
    on_host = [a.get() for a in (x, w, dy)]
    with xconv.config(precision=precision):
        found = functions(x, w, dy, {**options, "algorithm": "implicit"})[function]().get()
    exact = plain(function, *on_host, options=options)
    size = plain(function, *map(abs, on_host), options=options)
    products = {"conv": 256 * 9, "input_grad": 96 * 9, "weight_grad": 2 * 9 * 10}[function] + 8
    operands, result = (0, 2.0**-11) if dtype == "float16" else (2.0**-10 * (precision == "tf32"), 0)
    assert np.all(abs(found - exact) <= (operands + products * 2.0**-23) * size + result * abs(exact))


@pytest.mark.parametrize("distribution", ["normal", "positive"])
def test_three_products_are_as_exact_as_float32(cupy, tensor_cores, rng, distribution):
    """One float32 addition after the other makes more of an error."""
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((1, 288, 12, 12), (64, 288, 3, 3)))
    x, w = (np.abs(a) if distribution == "positive" else a for a in (x, w))
    exact = xconv.conv(x.astype("float64"), w.astype("float64"))
    plain = np.zeros(exact.shape, "float32")
    for c, i, j in np.ndindex(288, 3, 3):
        plain += w[:, c, i, j, None, None] * x[:, c, None, i : i + 10, j : j + 10]
    found = xconv.conv(cupy.asarray(x), cupy.asarray(w), algorithm="implicit").get()
    assert np.abs(found - exact).max() <= np.abs(plain - exact).max()


def test_what_is_not_finite_in_the_implicit_product(cupy, tensor_cores, rng, function):
    """Infinities and not-a-numbers come out as they do of float32."""
    x_shape, w_shape, options = IMPLICIT["narrow"]
    x, w, dy, _ = draw(cupy, rng, x_shape, w_shape, options)
    x.view("uint32")[0, 3, 4, 5] = 0x7FFFFFFF  # not a number, as GPUs make it
    x[1, 2, 3, 4], dy[1, 2, 3, 4] = cupy.inf, -cupy.inf
    if function == "conv":  # in the input gradient it would meet zeros that are not there
        w[5, 2, 1, 1] = cupy.inf
    found = functions(x, w, dy, {**options, "algorithm": "implicit"})[function]().get()
    with np.errstate(all="ignore"):
        on_host = (a.get().astype("float64") for a in (x, w, dy))
        expected = functions(*on_host, {**options, "algorithm": "gemm"})[function]().astype("float32")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_large_numbers_in_the_implicit_product(cupy, tensor_cores, rng):
    """The largest has no TF32 that is near; it is summed in float32."""
    largest = np.finfo("float32").max
    x = rng.uniform(-largest, largest, (2, 8, 9, 9)).astype("float32")
    x[0, 3, 4, 4], w = largest, (rng.standard_normal((8, 8, 3, 3)) / 100).astype("float32")
    found = xconv.conv(cupy.asarray(x), cupy.asarray(w), algorithm="implicit").get()
    exact, size = (xconv.conv(a.astype("float64"), b.astype("float64")) for a, b in ((x, w), (abs(x), abs(w))))
    assert np.all(abs(found - exact) <= 80 * 2.0**-23 * size)


def test_tf32_only_on_request(cupy, rng, algorithm):
    """TF32 is a permission: the products are such that there is something to win by it."""
    x_shape, w_shape, options = (8, 128, 24, 24), (128, 128, 3, 3), {"padding": 1}
    x, w, dy, _ = draw(cupy, rng, x_shape, w_shape, options)
    on_host = [array.get() for array in (x, w, dy)]
    exact = plain("conv", *on_host, options=options)
    size = plain("conv", *map(abs, on_host), options=options)
    run = functions(x, w, dy, {**options, "algorithm": "gemm" if algorithm == "auto" else algorithm})["conv"]
    errors = {}
    for precision, eps in (("ieee", 128 * 9 * 2.0**-23), ("tf32", 2.0**-9 + 128 * 9 * 2.0**-23)):
        with xconv.config(precision=precision):
            errors[precision] = abs(run().get() - exact)
        assert np.all(errors[precision] <= eps * size), precision
    if int(cupy.cuda.Device().compute_capability) >= 80:
        assert errors["tf32"].max() > 4 * errors["ieee"].max()  # it was in fact used


@pytest.mark.alone
def test_the_workspace_is_a_bound(cupy, rng, algorithm, function):
    """What is in use at one time is no more than the results and the workspace; what the pool keeps does not count."""
    from cupy.cuda import MemoryHook

    class Meter(MemoryHook):
        used = most = 0

        def malloc_postprocess(self, **call):
            self.used += call["mem_size"]
            self.most = max(self.most, self.used)

        def free_postprocess(self, **call):
            self.used -= call["mem_size"]

    x_shape, w_shape, options = (4, 32, 200, 180), (32, 32, 3, 3), {"padding": 1, "algorithm": algorithm}
    x, w, dy, _ = draw(cupy, rng, x_shape, w_shape, options)
    workspace = 8 * 2**20
    run, result = functions(x, w, dy, options)[function], {"conv": dy, "input_grad": x, "weight_grad": w}[function]
    run()
    with xconv.config(workspace=workspace):
        run()
        with Meter() as meter:
            made = run()
    assert made.shape == result.shape
    assert result.nbytes <= meter.most <= result.nbytes + workspace + 2**16  # CuPy rounds sizes up


@pytest.mark.alone
def test_planes_as_long_as_cublas_cannot_count(cupy):
    """Rows of the operands and of the result are 2^31 elements apart and more."""
    need(cupy, 40)
    side = 47000
    x = cupy.zeros((1, 2, side, side), "float16")
    x[0, 0, -1, -1], x[0, 1, -1, -1], x[0, 1, 0, 0] = 1, 2, 3
    w = cupy.asarray([[1, 10], [100, 1000]], "float16").reshape(2, 2, 1, 1)
    y = xconv.conv(x, w, algorithm="pointwise")
    assert [float(y[0, c, i, i]) for c in (0, 1) for i in (0, -1)] == [30, 21, 3000, 2100]
    assert int(cupy.count_nonzero(y)) == 4


def test_two_devices(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    x = cupy.ones((1, 1, 4, 4), "float32")
    with cupy.cuda.Device(1):
        there, w = cupy.ones((1, 1, 4, 4), "float32"), cupy.ones((1, 1, 3, 3), "float32")
    with pytest.raises(TypeError, match="`x` and `w` must be on one device"):
        xconv.conv(x, w)
    y = xconv.conv(there, w, algorithm="gemm")  # from the other device
    assert y.device.id == 1
    assert bool((y == 9).all())


def test_the_names_of_cublas():
    """What the tests without a device put in its place has the same numbers."""
    from cupy_backends.cuda.libs import cublas
    from kernels.blas import HostBlas

    names = [name for name in vars(HostBlas) if name.startswith("CUBLAS")]
    assert {name: getattr(cublas, name) for name in names} == {name: getattr(HostBlas, name) for name in names}


POOLINGS = {
    "overlap": ((8, 16, 57, 56), 3, {"stride": 2, "padding": 1}),
    "grid": ((8, 16, 56, 56), 2, {}),
    "dilated": ((4, 8, 33, 30), 3, {"stride": (1, 2), "dilation": 2, "padding": ((0, 3), 1)}),
    "many taps": ((2, 4, 40, 41), (16, 17), {"stride": 3, "padding": 8}),
    "line": ((4, 6, 1000), 9, {"stride": 2, "padding": 4}),
    "volume": ((2, 4, 9, 10, 12), 2, {"stride": 1, "padding": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8", "uint8", "int64"])
@pytest.mark.parametrize("name", POOLINGS)
def test_the_largest_of_windows(cupy, rng, name, dtype, layout):
    """Among equals, NaN and infinities, NumPy's numbers; and the same bits every time."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    shape, kernel, options = POOLINGS[name]
    options = {**options, "layout": layout}
    x = rng.integers(0, 4, laid(shape, layout)).astype(dtype)
    if x.dtype.kind not in "iu":
        x[rng.random(x.shape) < 0.2], x[rng.random(x.shape) < 0.01] = -np.inf, np.nan
    there = cupy.asarray(x)
    with np.errstate(invalid="ignore"):
        y = xconv.max_pool(x, kernel, **options)
        dy = rng.integers(0, 3, y.shape).astype(dtype)
        dx = xconv.max_pool_grad(dy, x, kernel, **options)
    for run, expected in (
        (lambda: xconv.max_pool(there, kernel, **options), y),
        (lambda: xconv.max_pool_grad(cupy.asarray(dy), there, kernel, **options), dx),
    ):
        made = [run() for _ in range(4)]
        assert made[0].dtype == dtype
        np.testing.assert_array_equal(made[0].get().astype("float64"), expected.astype("float64"))
        assert all(same_bits(one, made[0]) for one in made)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "complex64"])
@pytest.mark.parametrize("name", ["overlap", "grid", "dilated", "line", "volume"])
def test_the_mean_of_windows(cupy, rng, name, dtype, layout, count_include_pad):
    """Half types are summed in float32 and rounded once."""
    shape, kernel, options = POOLINGS[name]
    options = {**options, "layout": layout, "count_include_pad": count_include_pad}
    wide, eps = np.result_type(dtype, "float64"), float(np.finfo(dtype).eps)
    x = rng.standard_normal(laid(shape, layout)).astype(dtype)
    y = xconv.avg_pool(x.astype(wide), kernel, **options)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = xconv.avg_pool_grad(dy.astype(wide), x.shape, kernel, **options)
    for made, expected in (
        (xconv.avg_pool(cupy.asarray(x), kernel, **options), y),
        (xconv.avg_pool_grad(cupy.asarray(dy), x.shape, kernel, **options), dx),
    ):
        assert made.dtype == dtype
        rounding = eps if dtype == "float16" else 30 * eps
        assert np.all(abs(made.get().astype(wide) - expected) <= rounding * 4)


def test_pooling_of_any_memory(cupy, rng):
    """Views that begin and step anywhere, read where they are; nothing waits for the device."""
    whole = cupy.asarray(rng.integers(-4, 5, (4, 20, 19, 40)).astype("float32"))
    for x in (whole[..., 1:], whole[::2, :, ::-1, 3:35:2], whole.transpose(0, 3, 2, 1)[:, :16]):
        y = xconv.max_pool(x, 3, stride=2, padding=1)
        dy = cupy.flip(cupy.asarray(rng.integers(-4, 5, y.shape).astype("float32")))
        dx = xconv.max_pool_grad(dy, x, 3, stride=2, padding=1)
        assert np.array_equal(y.get(), xconv.max_pool(x.get(), 3, stride=2, padding=1))
        assert np.array_equal(dx.get(), xconv.max_pool_grad(dy.get(), x.get(), 3, stride=2, padding=1))


@pytest.mark.alone
def test_pooling_of_more_than_2_31_elements(cupy):
    need(cupy, 12)
    x = cupy.zeros((2, 1, 33000, 33000), "int8")
    x[0, 0, 0, 1], x[1, 0, -1, -1], x[1, 0, -2, -1] = 3, 5, 5
    y = xconv.max_pool(x, 2)
    assert [int(y[at]) for at in ((0, 0, 0, 0), (1, 0, -1, -1))] == [3, 5]
    assert int(cupy.count_nonzero(y)) == 2
    dx = xconv.max_pool_grad(y, x, 2)
    assert [int(dx[at]) for at in ((0, 0, 0, 1), (1, 0, -1, -1), (1, 0, -2, -1))] == [3, 0, 5]
    assert int(cupy.count_nonzero(dx)) == 2


def any_geometry(rng, number):
    """Shapes of x and w, and options, of one of the first three ranks; every other one has its channels last."""
    rank = 1 + number % 3
    kernel, stride, dilation, groups = (rng.integers(1, 4, n) for n in (rank, rank, rank, 1))
    padding = [(int(lo), int(hi)) for lo, hi in rng.integers(-1, 4, (rank, 2))]
    size = [
        max(1, (k - 1) * d + 1 - sum(p)) + rng.integers(5) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    c_in, c_out = groups[0] * rng.integers(1, 9, 2)
    x_shape = tuple(int(n) for n in (rng.integers(1, 4), c_in, *size))
    w_shape = tuple(int(n) for n in (c_out, c_in // groups[0], *kernel))
    sizes = {name: tuple(int(n) for n in each) for name, each in (("stride", stride), ("dilation", dilation))}
    options = {**sizes, "padding": tuple(padding), "groups": int(groups[0])}
    if number % 2:
        options["layout"], x_shape = "channels_last", (x_shape[0], *x_shape[2:], x_shape[1])
    return x_shape, w_shape, options


def test_any_geometry_by_cudnn(cupy, rng, record_property, function):
    """Small integers, bit for bit what our own algorithm makes of them, in any layout and from any address."""
    pytest.importorskip("cudnn", exc_type=ImportError)
    refused, right = [], 0
    for number in range(200):
        x_shape, w_shape, options = any_geometry(rng, number)
        dtype = ("float32", "float16", "float64")[number % 5 % 3]
        arrays = draw(cupy, rng, x_shape, w_shape, options, dtype, values=lambda shape: rng.integers(-2, 3, shape))
        expected = functions(*arrays[:3], {**options, "algorithm": "gemm"})[function]()
        try:
            made = functions(*arrays[:3], {**options, "algorithm": "cudnn"})[function]()
        except pytest.skip.Exception as skipped:
            refused.append(str(skipped))
            continue
        assert same_bits(made + 0, expected + 0), options  # the sign of a zero is not looked at
        right += bool(expected.any())  # where nothing is to be summed, cuDNN is not asked
    record_property("refused", len(refused))
    assert right, refused[0]
    if refused:
        pytest.skip(f"{right} are right, and {len(refused)} were refused, such as {refused[0]}")
