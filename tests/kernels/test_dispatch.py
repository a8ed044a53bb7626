"""The whole way of a call on CuPy arrays, from the public function to the kernels and cuBLAS, on the CPU."""

import cupy
import numpy as np
import pytest
from oracle import Oracle

import xconv
from kernels.standin import StandIn, device, host
from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv.backends import backend_of
from xconv.backends.cupy import _texts

OPTIONS = {"stride": (2, 1), "padding": ((1, 2), 0), "dilation": (1, 2)}


@pytest.fixture
def standin():
    with StandIn().installed() as standin:
        yield standin


def numbers(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(0 if dtype.startswith("u") else -2, 3, shape)
    return (values + 1j * rng.integers(-2, 3, shape) if dtype.startswith("complex") else values).astype(dtype)


def same(actual, expected, dtype):
    assert type(actual) is cupy.ndarray
    assert actual.dtype == dtype
    assert np.array_equal(host(actual), expected.astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64", "int8", "int64", "uint16"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_three_functions(standin, dtype, layout, groups):
    x, w, b = (device(numbers(shape, dtype)) for shape in ((3, 4, 6, 8), (6, 4 // groups, 3, 2), (6,)))
    oracle = Oracle(x.shape, w.shape, **OPTIONS, groups=groups)
    dy = device(numbers(oracle.y_shape, dtype, seed=1))
    options = {**OPTIONS, "groups": groups, "layout": layout}

    def in_layout(a):
        return cupy.moveaxis(a, 1, -1) if layout == "channels_last" else a

    def back(a):
        return cupy.moveaxis(a, -1, 1) if layout == "channels_last" else a

    y = oracle.conv(host(x), host(w))
    same(back(xconv.conv(in_layout(x), w, **options)), y, dtype)
    same(back(xconv.conv(in_layout(x), w, b, **options)), y + host(b)[:, None, None], dtype)
    dx = xconv.conv_input_grad(in_layout(dy), w, in_layout(x).shape, **options)
    same(back(dx), oracle.input_grad(host(dy), host(w)), dtype)
    dw = xconv.conv_weight_grad(in_layout(dy), in_layout(x), w.shape, **options)
    same(dw, oracle.weight_grad(host(dy), host(x)), dtype)
    verbs = [name.split("_")[1] for name in standin.names]
    assert verbs.count("im2col") == 3
    assert verbs.count("col2im") == 1
    assert bool(standin.blas.calls) == (np.dtype(dtype).kind not in "iu")


def test_a_call_runs_on_the_device_of_its_arrays(standin):
    """Whichever is current: kernels are launched there (the stand-in looks), and results come from its memory."""
    second = standin.devices[1]
    with second:
        x, w = device(numbers((2, 3, 6, 6))), device(numbers((4, 3, 3, 3)))
    y = xconv.conv(x, w)
    dx, dw = xconv.conv_input_grad(y, w, x.shape), xconv.conv_weight_grad(y, x, w.shape)
    cols = xconv.im2col(x, 3)
    results = (y, dx, dw, cols, xconv.col2im(cols, (6, 6)), xconv.plan(x, w).conv(x, w))
    assert {r.device for r in results} == {second}
    assert standin.entered == standin.devices[:1]


def test_two_devices(standin):
    x = device(numbers((2, 3, 6, 6)))
    with standin.devices[1]:
        w = device(numbers((4, 3, 3, 3)))
    with pytest.raises(TypeError, match="`x` and `w` must be on one device, got device 0 and device 1"):
        xconv.conv(x, w)
    with pytest.raises(TypeError, match="`dy` and `w` must be on one device"):
        xconv.conv_input_grad(device(numbers((2, 4, 4, 4))), w, x.shape)
    assert not standin.launches


@pytest.mark.filterwarnings("ignore:.*meta")
def test_chunks_of_dask(standin):
    """Tasks run on the chunks' library, and so do halos and sums."""
    dask_array = pytest.importorskip("dask.array")
    x, w, b = (numbers(shape) for shape in ((3, 4, 9, 8), (6, 2, 3, 2), (6,)))
    oracle = Oracle(x.shape, w.shape, **OPTIONS, groups=2)
    dy = numbers(oracle.y_shape, seed=1)
    x_, w_, b_, dy_ = (
        dask_array.from_array(device(a), chunks=chunks, asarray=False)
        for a, chunks in ((x, (2, 4, 5, 4)), (w, -1), (b, -1), (dy, (1, 6, 3, 3)))
    )
    options = {**OPTIONS, "groups": 2}
    results = (
        (xconv.conv(x_, w_, b_, **options), oracle.conv(x, w) + b[:, None, None]),
        (xconv.conv_input_grad(dy_, w_, x.shape, **options), oracle.input_grad(dy, w)),
        (xconv.conv_weight_grad(dy_, x_, w.shape, **options), oracle.weight_grad(dy, x)),
    )
    assert not standin.launches
    for found, expected in results:
        assert type(found._meta) is cupy.ndarray
        made = np.empty(found.shape, found.dtype)
        for place, chunk in zip(np.ndindex(found.numblocks), found.to_delayed().ravel(), strict=True):
            values = chunk.compute(scheduler="synchronous")
            assert type(values) is cupy.ndarray
            edges = [np.cumsum([0, *sizes]) for sizes in found.chunks]
            made[tuple(slice(e[i], e[i + 1]) for e, i in zip(edges, place, strict=True))] = host(values)
        assert np.array_equal(made, expected)


def test_windows(standin):
    x = device(numbers((2, 3, 5, 6)))
    oracle = Oracle(x.shape, (1, 3, 3, 2), **OPTIONS)
    cols = xconv.im2col(x, (3, 2), **OPTIONS)
    same(cols, oracle.im2col(host(x)), "float32")
    same(xconv.col2im(cols, (5, 6), **OPTIONS), oracle.col2im(host(cols)), "float32")
    assert standin.names == ["xconv_im2col_2d_i32_1", "xconv_col2im_2d_i32_1"]


def test_a_kernel_reads_the_callers_memory(standin):
    """Whatever a view looks like, it is neither copied nor moved."""
    whole = device(numbers((4, 9, 8, 3)))
    for x in (whole, whole[::2, 1:8, ::-1], whole.transpose(3, 0, 2, 1), cupy.broadcast_to(whole[:1], (4, 9, 8, 3))):
        standin.launches.clear()
        cols = xconv.im2col(x, 2)
        same(cols, Oracle(x.shape, (1, x.shape[1], 2, 2)).im2col(host(x)), "float32")
        ((_, arguments),) = standin.launches
        low, high = np.lib.array_utils.byte_bounds(host(x))
        assert (arguments[0].data.ptr, arguments[0].nbytes) == (low, high - low)
        assert (arguments[-1].data.ptr, arguments[-1].nbytes) == (cols.data.ptr, cols.nbytes)


def test_a_geometry_that_returns_gets_a_kernel_of_its_own(standin):
    x = device(numbers((2, 3, 5, 6)))
    results = [xconv.im2col(x, 3, padding=1) for _ in range(5)]
    assert all(np.array_equal(host(results[0]), host(result)) for result in results)
    general, special = "xconv_im2col_2d_i32_1", "xconv_im2col_n2_c3_o1_5x6_k3x3_s1x1_d1x1_l1x1_h1x1_i32_1"
    assert standin.names == [general] * 2 + [special] * 3
    assert len(standin.launches[0][1]) > 2
    assert len(standin.launches[-1][1]) == 2


def test_a_kernel_belongs_to_a_memory_order(standin):
    """Arrays of one shape, one after the other, until all have kernels of their own."""
    values = numbers((2, 3, 5, 6))
    orders = [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)]
    arrays = [device(values.transpose(order).copy().transpose(np.argsort(order))) for order in orders]
    arrays.append(device(values.astype("float64")))
    for _ in range(5):
        for x in arrays:
            same(xconv.im2col(x, 3, padding=1), Oracle(x.shape, (1, 3, 3, 3), padding=1).im2col(values), x.dtype)
    assert len(set(standin.names)) > 1


def test_there_are_only_so_many_kernels(standin, monkeypatch):
    monkeypatch.setattr(_texts, "MOST_TEXTS", 0)
    x = device(numbers((2, 3, 5, 6)))
    results = [xconv.im2col(x, 3, padding=1) for _ in range(5)]
    assert all(np.array_equal(host(results[0]), host(result)) for result in results)
    assert standin.names == ["xconv_im2col_2d_i32_1"] * 5


def test_memory_in_another_shape(standin):
    """As a view where that is possible; and in no other case."""
    x = device(numbers((2, 4, 3, 3)))
    view = backend_of({"x": x}).view
    assert view(x, (2, 2, 2, 9), x.dtype).data.ptr == x.data.ptr
    assert view(x.transpose(0, 2, 3, 1), (2, 2, 2, 9), x.dtype) is None
    assert view(x, (2, 2, 2, 9), "float64") is None
    assert view(None, (2, 2, 2, 9), x.dtype) is None


def test_channels_last_are_read_in_packs(standin):
    x, w = device(numbers((2, 6, 7, 8))), device(numbers((8, 8, 3, 3)))
    y = xconv.conv(x, w, padding=1, layout="channels_last", algorithm="gemm")
    expected = Oracle((2, 8, 6, 7), w.shape, padding=1).conv(np.moveaxis(host(x), -1, 1), host(w))
    same(y, np.moveaxis(expected, 1, -1), "float32")
    assert standin.names == ["xconv_im2col_2d_i32_4"]
    assert standin.blas.calls == [(1, standin.blas.CUBLAS_COMPUTE_32F)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_large_planes_are_multiplied_image_by_image(standin, n):
    x, w = device(numbers((n, 4, 40, 40))), device(numbers((6, 2, 1, 2)))
    oracle = Oracle(x.shape, w.shape, groups=2)
    dy, options = device(numbers(oracle.y_shape)), {"groups": 2, "algorithm": "gemm"}
    same(xconv.conv(x, w, **options), oracle.conv(host(x), host(w)), "float32")
    assert standin.names == ["xconv_im2col_2d_i32_1"]  # and the products were written in place
    assert sum(count for count, _ in standin.blas.calls) == 2 * n
    same(xconv.conv_input_grad(dy, w, x.shape, **options), oracle.input_grad(host(dy), host(w)), "float32")
    same(xconv.conv_weight_grad(dy, x, w.shape, **options), oracle.weight_grad(host(dy), host(x)), "float32")


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_reaches_cublas(standin, precision):
    x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
    with xconv.config(precision=precision):
        xconv.conv(x, w, algorithm="gemm")
    fast = standin.blas.CUBLAS_COMPUTE_32F_FAST_TF32
    assert [compute == fast for _, compute in standin.blas.calls] == [precision == "tf32"]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_depthwise(standin, channels_last, dtype):
    axes = (Axis(7, 3, 2, 1, 1, 1), Axis(8, 2, 1, 2, 0, 1))
    g = Geometry(2, 4, 8, 4, axes, channels_last=channels_last)
    x, w, dy = (device(numbers(shape, dtype)) for shape in (g.x_shape, g.w_shape, g.y_shape))
    options = {"stride": (2, 1), "padding": (1, (0, 1)), "dilation": (1, 2), "groups": 4}
    oracle = Oracle(g.x_shape, g.w_shape, **options)
    backend = backend_of({"x": x})
    wide = "float32" if dtype == "float16" else dtype
    same(backend.depthwise(x, w, g), oracle.conv(host(x), host(w)), wide)
    same(backend.depthwise_input_grad(dy, w, g), oracle.input_grad(host(dy), host(w).conj()), wide)
    same(backend.depthwise_weight_grad(dy, x, g), oracle.weight_grad(host(dy), host(x)), wide)
    assert [name.removesuffix("_2d_i32_1") for name in standin.names] == [
        "xconv_depthwise", "xconv_depthwise_input_grad", "xconv_depthwise_weight_grad",
    ]  # fmt: skip


def test_transposed(standin):
    x, w, b = (device(numbers(shape)) for shape in ((2, 4, 5, 5), (4, 3, 3, 3), (3,)))
    y = xconv.conv_transpose(x, w, b, stride=2, padding=1, output_padding=1)
    expected = Oracle((2, 3, 10, 10), w.shape, stride=2, padding=1).input_grad(host(x), host(w))
    same(y, expected + host(b)[:, None, None], "float32")


def test_empty_arrays(standin):
    for n, c, f in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        x, w = device(numbers((n, c, 4, 4))), device(numbers((f, c, 3, 3)))
        y = xconv.conv(x, w)
        same(y, np.zeros((n, f, 2, 2)), "float32")
        same(xconv.conv_input_grad(y, w, x.shape), np.zeros(x.shape), "float32")
        same(xconv.conv_weight_grad(y, x, w.shape), np.zeros(w.shape), "float32")


def test_arrays_of_two_libraries(standin):
    x, w = numbers((1, 1, 4, 4)), numbers((1, 1, 3, 3))
    with pytest.raises(TypeError, match=r"cupy\.ndarray and numpy\.ndarray"):
        xconv.conv(device(x), w)


@pytest.mark.skipif(cupy.is_available(), reason="there is a driver")
def test_a_missing_driver():
    with StandIn().installed():
        x, w = device(numbers((1, 1, 4, 4))), device(numbers((1, 1, 3, 3)))
    with pytest.raises(RuntimeError, match=r"^CuPy finds no CUDA device to compute on"):
        xconv.conv(x, w)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_several_channels_at_once_only_where_they_are_aligned(standin, multiplier):
    """A view may begin in the middle of what is loaded at once; so may its filters."""
    channels, line = 8, (2, 6, 7, 8)
    filters = (channels * multiplier, 1, 3, 3)
    values, weights = numbers(line), numbers(filters, seed=1)
    oracle = Oracle((2, channels, 6, 7), filters, padding=1, groups=channels)
    expected = np.moveaxis(oracle.conv(np.moveaxis(values, -1, 1), weights), 1, -1)
    for x_shift, w_shift in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x = device(np.zeros(values.size + x_shift, "float32"))[x_shift:].reshape(line)
        host(x)[...] = values
        # in the order in which a backend keeps filters, so that it takes them as they are
        w = device(np.zeros(weights.size + w_shift, "float32"))[w_shift:].reshape(1, 3, 3, -1).transpose(3, 0, 1, 2)
        host(w)[...] = weights
        for _ in range(3):  # general, and specialised
            y = xconv.conv(x, w, padding=1, groups=channels, layout="channels_last", algorithm="depthwise")
            same(y, expected, "float32")
            packed = not standin.names[-1].endswith("_1")
            assert packed == (multiplier == 1 and x_shift == w_shift == 0)
        full = numbers((4, 8, 3, 3))
        y = xconv.conv(x, device(full), padding=1, layout="channels_last", algorithm="gemm")
        plain = Oracle((2, 8, 6, 7), full.shape, padding=1).conv(np.moveaxis(values, -1, 1), full)
        same(y, np.moveaxis(plain, 1, -1), "float32")
        columns = next(name for name in reversed(standin.names) if "im2col" in name)
        assert columns.endswith("_1") == bool(x_shift)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_channel_in_is_no_reason_to_leave_the_tensor_cores(standin, dtype):
    """Many filters on one channel are a product; many channels with a filter each are none."""
    x, w = device(np.zeros((2, 1, 64, 64), dtype)), device(np.zeros((128, 1, 7, 7), dtype))
    assert xconv.plan(x, w).algorithm == "gemm"
    x, w = device(np.zeros((2, 32, 64, 64), dtype)), device(np.zeros((32, 1, 3, 3), dtype))
    assert xconv.plan(x, w, groups=32).algorithm == "depthwise"
