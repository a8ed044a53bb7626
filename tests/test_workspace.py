"""``config(workspace=)`` bounds the temporary memory of every function, and changes no result."""

import gc
import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import product

import numpy as np
import pytest

import xconv
from xconv._arguments import geometry
from xconv._tiler import tiles
from xconv.backends import backend_of
from xconv.backends.numpy import _windows as of_numpy
from xconv.primitives import _windows

pytestmark = pytest.mark.numpy_only

MIB = 2**20


@pytest.fixture(autouse=True)
def exact():
    """Only the algorithms whose sums of small integers are exact."""
    with xconv.config(numerics="strict"):
        yield


#: What is not arrays: tiles and views, a thread, and what caches of geometries exchange for it. As documented.
OBJECTS = 200_000


def temporary_peak(function):
    """Bytes that `function` takes at its peak beside its result, and the result.

    It runs for the second time, in a thread that has kept no memory of an earlier call. A collection of garbage between
    the two would empty the interpreter's lists of free tuples, which thousands of tiles fill again.
    """
    gc.disable()
    try:
        function()
        backend_of({"x": np.empty(0)}).reserve.blocks.clear()
        tracemalloc.start()
        with ThreadPoolExecutor(1) as fresh:
            result = fresh.submit(copy_context().run, function).result()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
    return peak - result.nbytes, result


def functions(x, w, dy, options):
    kernel = w.shape[2:]
    windows = {k: v for k, v in options.items() if k not in {"groups", "layout", "algorithm"}}
    yield "conv", lambda: xconv.conv(x, w, np.ones(len(w), w.dtype), **options)
    yield "input_grad", lambda: xconv.conv_input_grad(dy, w, x.shape, **options)
    yield "weight_grad", lambda: xconv.conv_weight_grad(dy, x, w.shape, **options)
    if "pad_mode" not in options:
        yield (
            "transpose",
            lambda: xconv.conv_transpose(dy, w, np.ones(w.shape[1] * options.get("groups", 1), w.dtype), **options),
        )
    if "layout" not in options:
        yield "im2col", lambda: xconv.im2col(x, kernel, **windows)
        if "pad_mode" not in options:
            cols = xconv.im2col(x, kernel, **windows)
            size = x.shape[2:]
            yield "col2im", lambda: xconv.col2im(cols, size, **windows)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 2},
        {"padding": ((3, 0), 1), "stride": (1, 3), "groups": 2},
        {"padding": ((1, 4), 2), "pad_mode": "reflect"},
        {"padding": ((4, 1), 2), "pad_mode": "symmetric", "stride": 2},
        {"padding": 3, "pad_mode": "wrap", "dilation": 2},
        {"padding": ((5, 2), (-2, 9)), "pad_mode": "constant", "pad_value": 3},
        {"layout": "channels_last", "padding": "same", "stride": 2},
        {"stride": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("workspace", [MIB // 4, 2 * MIB])
def test_bound(rng, options, dtype, workspace):
    shape = (2, 200, 120, 8) if "layout" in options else (2, 8, 200, 120)
    x = rng.integers(-3, 4, shape).astype(dtype)
    w = rng.integers(-3, 4, (6, 8 // options.get("groups", 1), 5, 3)).astype(dtype)
    y = xconv.conv(x, w, **options)
    dy = rng.integers(-3, 4, y.shape).astype(dtype)
    if "pad_mode" in options and dtype == "float16":
        workspace += 4 * x.size  # for the input gradient in float32, until its padding has been added
    for name, function in functions(x, w, dy, options):
        whole = function()
        with xconv.config(workspace=workspace):
            peak, tiled = temporary_peak(function)
        assert peak <= workspace + OBJECTS, (name, peak)
        assert np.array_equal(whole, tiled), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (9, 2), "stride": 1, "padding": ((10, 3), (-4, 2))},
        {"kernel_size": 2, "layout": "channels_last"},
        {"kernel_size": 3, "stride": (1, 5), "dilation": 3, "layout": "channels_last"},
    ],
    ids=str,
)
def test_bound_of_pooling(rng, options, dtype):
    x = rng.integers(-9, 10, (2, 160, 120, 8) if "layout" in options else (2, 8, 160, 120)).astype(dtype)
    y = xconv.max_pool(x, **options)
    dy = rng.integers(0, 3, y.shape).astype(dtype)
    calls = [partial(xconv.max_pool, x, **options), partial(xconv.max_pool_grad, dy, x, **options)]
    if dtype != "int8":
        counted = {**options, "count_include_pad": options["kernel_size"] == (9, 2)}
        calls += [partial(xconv.avg_pool, x, **counted), partial(xconv.avg_pool_grad, dy, x.shape, **counted)]
    for call in calls:
        whole = call()
        with xconv.config(workspace=MIB // 2):
            peak, tiled = temporary_peak(call)
        assert peak <= MIB // 2 + OBJECTS, (call, peak)
        assert np.array_equal(whole, tiled), call


ORDERS = ("as it is", "Fortran", "swapped", "backwards", "with gaps", "broadcast")


def lying(rng, values):
    """`values` in some order of memory."""
    order = rng.choice(ORDERS)
    if order == "Fortran":
        return np.asfortranarray(values)
    if order == "swapped":
        axes = rng.permutation(values.ndim)
        return np.ascontiguousarray(values.transpose(axes)).transpose(np.argsort(axes))
    if order == "backwards":
        return np.flip(np.flip(values).copy())
    if order == "with gaps":
        return np.repeat(values, 2, axis=-1)[..., ::2]
    if order == "broadcast":
        return np.broadcast_to(values[:1], values.shape)
    return values


def some_call(rng):
    """A function of a random convolution of some megabytes, whose algorithm is still open, and what it is."""
    rank, dtype = rng.integers(1, 4), rng.choice(["float32", "float64", "float16", "complex64", "int8"])
    groups = rng.choice([1, 1, 4])
    c_in, c_out = groups * rng.choice([1, 3, 8]), groups * rng.choice([1, 2, 6])
    kernel = rng.integers(1, (10, 6, 4)[rank - 1], rank) if rng.random() < 0.8 else np.ones(rank, int)
    dilation, stride = (
        rng.choice([1, 1, 2], rank),
        rng.choice([1, 1, 3], rank) if rng.random() < 0.5 else np.ones(rank, int),
    )
    extent, batch = (kernel - 1) * dilation + 1, rng.choice([1, 5])
    size = np.maximum(extent, np.rint((2**19 / (batch * c_in)) ** (1 / rank) * rng.uniform(0.7, 1.4, rank)).astype(int))
    options = {
        "stride": tuple(map(int, stride)),
        "dilation": tuple(map(int, dilation)),
        "padding": tuple((int(lo), int(hi)) for lo, hi in rng.integers(0, extent, (2, rank)).T),
        "groups": int(groups),
        "pad_mode": str(rng.choice(["constant", "value", "reflect", "symmetric", "wrap"])),
        "layout": str(rng.choice(["channels_first", "channels_last"])),
    }
    if options["pad_mode"] == "value":
        options |= {"pad_mode": "constant", "pad_value": 3}
    if dtype in {"float16", "int8"} and rng.random() < 0.5:
        options["dtype"] = {"float16": "float32", "int8": "int32"}[dtype]
    shape = (batch, *size, c_in) if options["layout"] == "channels_last" else (batch, c_in, *size)
    w = lying(rng, rng.integers(-3, 4, (c_out, c_in // groups, *kernel)).astype(dtype))
    x = lying(rng, rng.integers(-3, 4, shape).astype(dtype))
    dy = lying(rng, rng.integers(-3, 4, xconv.plan(x, w, **options).y_shape).astype(dtype))
    function, arrays = {
        0: (xconv.conv, (x, w)),
        1: (xconv.conv_input_grad, (dy, w, x.shape)),
        2: (xconv.conv_weight_grad, (dy, x, w.shape)),
    }[int(rng.integers(3))]
    return partial(function, *arrays, **options), f"{function.__name__} of {dtype}, {x.shape} by {w.shape}, {options}"


@pytest.mark.parametrize("seed", range(10))
def test_bound_of_anything(seed):
    """For every order of memory, layout, dtype and function, by every algorithm."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        call, what = some_call(rng)
        for algorithm in rng.permutation(["auto", "gemm", "mec", "pointwise", "depthwise", "winograd", "fft"])[:4]:
            function = partial(call, algorithm=str(algorithm))
            try:
                with xconv.config(workspace=1):
                    function()
            except ValueError as error:
                if "`workspace`" not in str(error):
                    continue  # another one serves
                least = int(str(error).split("at least ")[1].split()[0])
            workspace = max(MIB, 2 * least)
            with xconv.config(workspace=workspace):
                peak, _ = temporary_peak(function)
            assert peak <= workspace + OBJECTS, f"{peak / workspace}: {algorithm}, {what}"


def test_bound_of_the_classic_functions(rng):
    """Images of bytes are converted where they are read, and not as a whole."""
    X = rng.integers(0, 256, (1, 8, 400, 400)).astype(np.uint8)
    W, b = rng.standard_normal((4, 8, 3, 3)).astype(np.float32), np.zeros((4, 1), np.float32)
    out, cache = xconv.conv_forward(X, W, b)
    whole = xconv.conv_forward(X.astype(np.float32), W, b)[0]
    assert out.dtype == whole.dtype
    assert np.allclose(out, whole, rtol=1e-5)

    def forward():
        return xconv.conv_forward(X, W, b)[0]

    def backward():
        return xconv.conv_backward(out, cache)[0]

    for function in (forward, backward):
        with xconv.config(workspace=MIB):
            peak, _ = temporary_peak(function)
        assert peak <= MIB + OBJECTS


def test_operands_that_lie_backwards_are_copied_within_it(rng):
    """As a product cannot read them, whichever side they come to stand on."""
    w, dy = rng.standard_normal((16, 1, 1)), rng.standard_normal((16, 16, 18_000))
    dy = np.flip(np.flip(dy).copy())
    with xconv.config(workspace=MIB):
        peak, _ = temporary_peak(lambda: xconv.conv_input_grad(dy, w, (16, 1, 18_000), algorithm="gemm"))
    assert peak <= MIB + OBJECTS


def test_what_lies_in_the_result_is_not_copied_there(rng):
    """A tile's part may come back as another view of that memory, with other steps along axes of length 1."""
    x, w = rng.standard_normal((5, 154, 321, 2)), rng.standard_normal((32, 1, 6, 3))
    options = {"groups": 2, "padding": (4, 1), "layout": "channels_last", "algorithm": "mec"}
    with xconv.config(workspace=MIB):
        peak, _ = temporary_peak(lambda: xconv.conv(x, w, **options))
    assert peak <= MIB + OBJECTS


@pytest.mark.parametrize("library", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("padding", [0, 299_999])
def test_columns_of_far_taps(rng, library, padding):
    """Nothing between the taps of a tile takes memory."""
    xp = pytest.importorskip(library)
    windows = of_numpy if library == "numpy" else _windows
    signal = rng.standard_normal((1, 1, 10**6))
    x, padded = xp.asarray(signal), np.pad(signal[0, 0], padding)
    g = geometry(x.shape, (1, 1, 3), dilation=300_000, padding=padding)

    def cost(part):
        return 8 * (math.prod(part.columns_shape) + windows.columns_spare(part))

    parts = tiles(g, "outputs", MIB, cost)
    assert len(parts) < 1000
    for tile in parts:
        tracemalloc.start()
        if library == "numpy":
            cols = windows.columns(np.empty, x[tile.x], tile.geometry, None)
        else:
            cols = windows.columns(xp, x[tile.x], tile.geometry)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= MIB + OBJECTS
        for tap in range(3):
            seen = padded[tile.y[2].start + tap * 300_000 : tile.y[2].stop + tap * 300_000]
            assert np.array_equal(np.asarray(cols[0, 0, tap, :]), seen)


def test_a_large_image(rng):
    """1 x 8 x 2048 x 2048 in float32 with a 5 x 5 kernel, whose columns alone would take 3.1 GiB.

    The other side is a sum over the taps, each one product with the whole shifted image.
    """
    side = 2048
    x = rng.integers(-2, 3, (1, 8, side, side)).astype(np.float32)
    w = rng.integers(-2, 3, (2, 8, 5, 5)).astype(np.float32)
    dy = rng.integers(0, 2, (1, 2, side, side)).astype(np.float32)
    padded = np.pad(x[0], ((0, 0), (2, 2), (2, 2)))
    y, dw, dx = np.zeros_like(dy), np.zeros_like(w), np.zeros_like(padded)
    for row, i, j in product(range(0, side, 64), range(5), range(5)):
        seen = (slice(None), slice(row + i, row + i + 64), slice(j, j + side))
        part, out, taps = padded[seen].reshape(8, -1), dy[0, :, row : row + 64].reshape(2, -1), w[:, :, i, j]
        y[0, :, row : row + 64] += (taps @ part).reshape(2, 64, side)
        dx[seen] += (taps.T @ out).reshape(8, 64, side)
        dw[:, :, i, j] += out @ part.T
    with xconv.config(workspace=64 * MIB):
        for function, expected in (
            (lambda: xconv.conv(x, w, padding=2), y),
            (lambda: xconv.conv_input_grad(dy, w, x.shape, padding=2), dx[None, :, 2:-2, 2:-2]),
            (lambda: xconv.conv_weight_grad(dy, x, w.shape, padding=2), dw),
        ):
            peak, result = temporary_peak(function)
            assert peak <= 64 * MIB
            assert np.array_equal(result, expected)
            del result


@pytest.mark.parametrize("layer", [((2, 96, 14, 14), (96, 96, 3, 3)), ((1, 8, 20, 15), (8, 8, 5, 5))], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("algorithm", ["gemm", "mec", "winograd", "fft"])
@pytest.mark.parametrize("slack", [0, 3 * MIB])
def test_bound_of_every_algorithm(rng, layer, dtype, algorithm, slack):
    """With filters that take most of it, too."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in layer)
    options = {"padding": 1, "algorithm": algorithm}
    y = xconv.conv(x, w, **options)
    for name, function in functions(x, w, y, options):
        if name in {"im2col", "col2im"}:
            break
        with xconv.config(workspace=1), pytest.raises(ValueError, match="at least") as caught:
            function()
        workspace = slack + int(str(caught.value).split("at least ")[1].split()[0])
        with xconv.config(workspace=workspace):
            peak, _ = temporary_peak(function)
        assert peak <= workspace + OBJECTS, (name, peak, workspace)


@pytest.mark.parametrize(
    ("layer", "dtype", "options"),
    [
        (((8, 130, 36, 36), (8, 130, 3, 3)), "float32", {}),
        (((4, 8, 48, 48), (8, 8, 5, 5)), "complex64", {"stride": 2}),
    ],
    ids=["channels", "stride"],
)
def test_a_tile_is_transformed_in_parts(rng, layer, dtype, options):
    """Some of its images at a time, each part in the memory of the one before; as it was planned without a bound."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in layer)
    options |= {"algorithm": "winograd"}
    y, plan = xconv.conv(x, w, **options), xconv.plan(x, w, **options)
    planned = {"conv": plan.forward, "input_grad": plan.input_grad, "weight_grad": plan.weight_grad}
    for name, function in functions(x, w, y, options):
        if name not in planned:
            break
        with xconv.config(threads=1):
            peak, _ = temporary_peak(function)
        assert peak <= planned[name].workspace + OBJECTS, (name, peak, planned[name].workspace)


def test_small_filters_are_transformed_within_it(rng):
    """A few at a time, and not as many as would fill a cache."""
    x, w = rng.standard_normal((1, 128, 20, 20)), rng.standard_normal((40, 128, 1, 2))
    y = xconv.conv(x, w)
    for name, function in functions(x, w, y, {"algorithm": "winograd"}):
        if name == "im2col":
            break
        with xconv.config(workspace=1), pytest.raises(ValueError, match="at least") as caught:
            function()
        workspace = int(str(caught.value).split("at least ")[1].split()[0])
        with xconv.config(workspace=workspace):
            peak, _ = temporary_peak(function)
        assert peak <= workspace + OBJECTS, (name, peak, workspace)


def test_what_is_not_finite_takes_no_more(rng):
    """Depthwise, numbers that are not finite are kept from zeros that are not there, in another way."""
    x, w = rng.standard_normal((1, 2, 180, 96)), rng.standard_normal((4, 1, 2, 2))
    options = {"groups": 2, "algorithm": "depthwise"}
    y = xconv.conv(x, w, **options)
    w[1, 0, 1, 1] = y[0, 3, 40, 50] = np.nan
    plan = xconv.plan(x, w, **options)
    for workspace, function in (
        (plan.input_grad.workspace, lambda: xconv.conv_input_grad(y, w, x.shape, **options)),
        (plan.weight_grad.workspace, lambda: xconv.conv_weight_grad(y, x, w.shape, **options)),
    ):
        with xconv.config(workspace=workspace):
            peak, _ = temporary_peak(function)
        assert peak <= workspace + OBJECTS


def test_one_result_of_a_tile_at_a_time(rng):
    """The filters' gradient of a tile is gone before that of the next one is made."""
    x, dy = rng.standard_normal((2, 256, 14, 14)), rng.standard_normal((2, 256, 14, 14))

    def weight_grad():
        return xconv.conv_weight_grad(dy, x, (256, 256, 3, 3), padding=1, algorithm="gemm")

    workspace = 26_521_600
    with xconv.config(workspace=workspace):
        assert temporary_peak(weight_grad)[0] <= workspace + OBJECTS


def test_too_small_is_an_error_that_says_how_much(rng):
    x, w = rng.standard_normal((1, 8, 9, 9)), rng.standard_normal((4, 8, 3, 3))
    with xconv.config(workspace=1000), pytest.raises(ValueError, match="`workspace` must be at least") as caught:
        xconv.conv(x, w)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    with xconv.config(workspace=least):
        y = xconv.conv(x, w)
    assert np.allclose(y, xconv.conv(x, w), rtol=1e-12)
    with xconv.config(workspace=least - 1), pytest.raises(ValueError, match="`workspace`"):
        xconv.conv(x, w)


def test_memory_does_not_grow_with_the_image():
    w = np.ones((4, 4, 3, 3), np.float32)
    images = [np.ones((1, 4, side, 512), np.float32) for side in (1024, 4096)]
    with xconv.config(threads=1):
        peaks = [temporary_peak(lambda x=x: xconv.conv(x, w))[0] for x in images]
    assert max(peaks) <= 12 * MIB + OBJECTS


def test_a_tile_extends_what_it_reads():
    """And not the whole image, which it may read from any side."""
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray(np.arange(200.0 * 200).reshape(1, 1, 200, 200))
    g = geometry(x.shape, (1, 1, 3, 3), padding=1, pad_mode="wrap").part("outputs", slice(0, 1), (slice(0, 2),) * 2)
    tracemalloc.start()
    made = _windows.extend(strict, x[g.x], g.geometry)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000
    assert np.array_equal(
        np.asarray(made), np.pad(np.asarray(x), [(0, 0), (0, 0), (1, 1), (1, 1)], "wrap")[..., :4, :4]
    )


@pytest.mark.parametrize("flags", ["strict"])
def test_generic_backend(rng, flags):
    """The pure standard keeps the bound as well."""
    strict = pytest.importorskip("array_api_strict")
    x, w = strict.asarray(np.ones((2, 8, 150, 120), np.float32)), strict.asarray(np.ones((6, 8, 5, 3), np.float32))
    for padding in ({}, {"pad_mode": "reflect"}, {"pad_value": 3}):
        options = {"padding": ((1, 4), 2), "stride": (1, 2), **padding}
        y = xconv.conv(x, w, **options)
        for function in (
            lambda o=options: xconv.conv(x, w, **o),
            lambda o=options, dy=y: xconv.conv_input_grad(dy, w, x.shape, **o),
            lambda o=options, dy=y: xconv.conv_weight_grad(dy, x, w.shape, **o),
        ):
            tracemalloc.start()
            with xconv.config(workspace=2 * MIB):
                result = function()
            peak = tracemalloc.get_traced_memory()[1] - result.size * 4
            tracemalloc.stop()
            assert peak <= 2 * MIB + OBJECTS
