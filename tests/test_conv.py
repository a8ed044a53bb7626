"""What a convolution is: its sizes, its dtypes, its options, and the identities between them."""

import math
import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from oracle import W_LAYOUTS, Oracle, in_w_layout

import xconv
from xconv._arguments import geometry
from xconv.algorithms import Gemm
from xconv.algorithms._pointwise import Pointwise
from xconv.primitives import Team

pytestmark = pytest.mark.usefixtures("exact")


def integers(rng, *shapes, limit=5):
    return [rng.integers(-limit, limit + 1, shape).astype(np.float64) for shape in shapes]


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_every_rank(lib, rng, rank):
    size, kernel = (5, 4, 3, 3)[:rank], (3, 2, 1, 2)[:rank]
    x, w, b = integers(rng, (2, 4, *size), (6, 2, *kernel), (6,))
    oracle = Oracle(x.shape, w.shape, padding=1, groups=2)
    y = oracle.conv(x, w) + b.reshape(-1, *(1,) * rank)
    result = xconv.conv(lib.array(x), lib.array(w), lib.array(b), padding=1, groups=2)
    lib.check(result, y, dtype=lib.real)


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 3)])
def test_same(lib, rng, stride, size, kernel, dilation):
    x, w = integers(rng, (1, 1, size), (1, 1, kernel))
    total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    less, more = total // 2, total - total // 2
    for padding, pair in (("same", (less, more)), ("same_lower", (more, less))):
        y = xconv.conv(lib.array(x), lib.array(w), stride=stride, dilation=dilation, padding=padding)
        expected = Oracle(x.shape, w.shape, stride=stride, dilation=dilation, padding=(pair,)).conv(x, w)
        assert expected.shape[2] == math.ceil(size / stride)
        lib.check(y, expected)


@pytest.mark.parametrize("algorithm", ["gemm", "mec", "depthwise"])
@pytest.mark.parametrize("padding", [0, (1, (420, 20))])
def test_taps_far_apart(lib, rng, algorithm, padding):
    """So far that an output reads what is nowhere near, or nothing, of an axis."""
    if algorithm == "mec" and lib.name != "numpy":
        pytest.skip("NumPy's")
    shape = (8, 1, 3, 3) if algorithm == "depthwise" else (2, 8, 3, 3)
    options = {"padding": padding, "dilation": (1, 700), "stride": (1, 3), "groups": 8 // shape[1]}
    x, w = integers(rng, (1, 8, 5, 1460), shape)
    oracle = Oracle(x.shape, w.shape, **options)
    (dy,) = integers(rng, oracle.y_shape)
    assert geometry(x.shape, w.shape, **options).far == (False, True)
    options["algorithm"] = algorithm
    x_, w_, dy_ = map(lib.array, (x, w, dy))
    lib.check(xconv.conv(x_, w_, **options), oracle.conv(x, w))
    lib.check(xconv.conv_input_grad(dy_, w_, x.shape, **options), oracle.input_grad(dy, w))
    lib.check(xconv.conv_weight_grad(dy_, x_, w.shape, **options), oracle.weight_grad(dy, x))


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("options", [{"stride": 4000}, {"dilation": 4000}, {"stride": 4000, "dilation": 5000}], ids=str)
def test_padding_that_no_window_sees(lib, rng, mode, options):
    if lib.module_is("jax") and mode != "reflect":
        pytest.skip("compiles every strip, and the other modes run the same code")
    x, w = integers(rng, (1, 2, 3, 4), (2, 2, 2, 3))
    options = {name: (1, value) for name, value in options.items()}
    options |= {"padding": (0, (5001, 5000)), "pad_mode": mode}
    oracle = Oracle(x.shape, w.shape, **options)
    (dy,) = integers(rng, oracle.y_shape)
    x_, w_, dy_ = map(lib.array, (x, w, dy))
    lib.check(xconv.conv(x_, w_, **options), oracle.conv(x, w))
    lib.check(xconv.conv_input_grad(dy_, w_, x.shape, **options), oracle.input_grad(dy, w))
    lib.check(xconv.conv_weight_grad(dy_, x_, w.shape, **options), oracle.weight_grad(dy, x))


def test_valid_is_no_padding(lib, rng):
    x, w = integers(rng, (1, 2, 5, 6), (3, 2, 2, 3))
    lib.check(xconv.conv(lib.array(x), lib.array(w), padding="valid"), Oracle(x.shape, w.shape).conv(x, w))


@pytest.mark.parametrize("padding", [1, (1, 1), [1, 1], ((1, 1), 1), [[1, 1], (1, 1)], np.array([1, 1]), np.array(1)])
def test_spellings_of_a_padding(lib, rng, padding):
    x, w = integers(rng, (1, 2, 5, 6), (3, 2, 2, 3))
    y = xconv.conv(lib.array(x), lib.array(w), padding=padding, stride=np.int64(2), dilation=[1, np.int8(1)])
    lib.check(y, Oracle(x.shape, w.shape, padding=1, stride=2).conv(x, w))


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pad_modes_are_those_of_numpy(lib, rng, mode, size):
    """Also where the padding is several times as long as the array."""
    x, w = integers(rng, (2, 1, size, size + 1), (1, 1, 3, 2))
    padded = np.pad(x, ((0, 0), (0, 0), (7, 2), (0, 9)), mode=mode)
    y = xconv.conv(lib.array(x), lib.array(w), padding=((7, 2), (0, 9)), pad_mode=mode)
    lib.check(y, Oracle(padded.shape, w.shape).conv(padded, w))


@pytest.mark.parametrize("value", [2, -0.5, math.inf, math.nan])
@pytest.mark.parametrize("size", [0, 1, 6])
@pytest.mark.parametrize("stride", [(2, 1), 1], ids=str)
def test_a_padding_of_a_value_is_numpys(lib, rng, value, size, stride):
    """In the result, and in the filters' gradient; the input's gradient does not see it."""
    x, w = integers(rng, (2, 4, size, 7), (6, 2, 3, 2))
    steps, padding = {"stride": stride, "dilation": (1, 2)}, ((4, 3), (-2, 4))
    padded = np.pad(x, ((0, 0), (0, 0), (4, 3), (0, 4)), constant_values=value)[..., 2:]
    oracle = Oracle(padded.shape, w.shape, **steps, groups=2)
    (dy,) = integers(rng, oracle.y_shape)
    x_, w_, dy_, options = *map(lib.array, (x, w, dy)), {**steps, "padding": padding, "pad_value": value}
    with np.errstate(invalid="ignore"):
        dx = Oracle(x.shape, w.shape, **steps, padding=padding, groups=2).input_grad(dy, w)
        lib.check(xconv.conv_input_grad(dy_, w_, x.shape, **options, groups=2), dx, dtype=lib.real)
        for found, expected in (
            (xconv.conv(x_, w_, **options, groups=2), oracle.conv(padded, w)),
            (xconv.conv_weight_grad(dy_, x_, w.shape, **options, groups=2), oracle.weight_grad(dy, padded)),
            (xconv.im2col(x_, (3, 2), **options), Oracle(padded.shape, (1, 4, 3, 2), **steps).im2col(padded)),
        ):
            assert found.dtype == lib.dtype(lib.real)
            assert np.array_equal(lib.numpy(found), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("dtypes", "value", "result"),
    [
        (("float16", "float16"), 0.1, "float16"),
        (("float16", "float32"), 0.1, "float32"),
        (("uint8", "uint8"), np.float32(200), "uint8"),
        (("int8", "int8"), 300, "int32"),
        (("uint32", "uint32"), 2**32 - 1, "uint32"),
        (("int64", "int64"), 2**53 + 1, "int64"),
        (("uint64", "uint64"), 2**64 - 1, "uint64"),
        (("float32", "float32"), 10**30, "float32"),
        (("complex64", "complex64"), 1 - 2j, "complex64"),
        (("complex64", "complex64"), math.nan, "complex64"),
        (("float32", "complex64"), 3j, "complex64"),
    ],
)
def test_a_padding_holds_what_the_result_can(lib, rng, dtypes, value, result):
    if not (lib.can_multiply(dtypes[0]) and lib.has(result)):
        pytest.skip(f"{lib.name} lacks one of {dtypes}")
    x, w = (rng.integers(0, 4, shape).astype(one) for shape, one in zip(((2, 3, 9), (4, 3, 3)), dtypes, strict=True))
    padded = np.pad(x.astype(result), ((0, 0), (0, 0), (2, 1)), constant_values=value)
    options = {"dtype": lib.dtype(result)} if result == "int32" else {}
    y = xconv.conv(lib.array(x), lib.array(w), padding=((2, 1),), pad_value=value, **options)
    expected = xconv.conv(lib.array(padded), lib.array(w), **options)
    assert y.dtype == expected.dtype == lib.dtype(result)
    assert np.array_equal(lib.numpy(y), lib.numpy(expected), equal_nan=True)


def test_layouts(lib, rng):
    x, w, b = integers(rng, (2, 4, 5, 6), (6, 2, 3, 2), (6,))
    options = {"stride": (2, 1), "padding": 1, "groups": 2}
    oracle = Oracle(x.shape, w.shape, **options)
    (dy,) = integers(rng, oracle.y_shape)
    last = [lib.array(np.moveaxis(a, 1, -1)) for a in (x, dy)]
    w_, options["layout"] = lib.array(w), "channels_last"
    y = oracle.conv(x, w) + b.reshape(-1, 1, 1)
    lib.check(xconv.conv(last[0], w_, lib.array(b), **options), np.moveaxis(y, 1, -1))
    dx = xconv.conv_input_grad(last[1], w_, last[0].shape, **options)
    lib.check(dx, np.moveaxis(oracle.input_grad(dy, w), 1, -1))
    lib.check(xconv.conv_weight_grad(last[1], last[0], w.shape, **options), oracle.weight_grad(dy, x))


@pytest.mark.parametrize("w_layout", W_LAYOUTS)
def test_orders_of_filters(lib, rng, w_layout):
    """In every function, and those that come out are in the order of those that went in."""
    x, w, b = integers(rng, (2, 4, 5, 6), (6, 2, 3, 2), (6,))
    options = {"stride": (2, 1), "padding": 1, "groups": 2}
    oracle = Oracle(x.shape, w.shape, **options)
    (dy,) = integers(rng, oracle.y_shape)
    filters = in_w_layout(w, w_layout)
    x_, dy_, w_, b_ = map(lib.array, (x, dy, filters, b))
    options["w_layout"] = w_layout
    lib.check(xconv.conv(x_, w_, b_, **options), oracle.conv(x, w) + b.reshape(-1, 1, 1))
    lib.check(xconv.conv_input_grad(dy_, w_, x.shape, **options), oracle.input_grad(dy, w))
    dw = in_w_layout(oracle.weight_grad(dy, x), w_layout)
    lib.check(xconv.conv_weight_grad(dy_, x_, filters.shape, **options), dw)
    options["w_layout"] = w_layout.translate(str.maketrans("oi", "io"))  # its input channels are those of `dy`
    lib.check(xconv.conv_transpose(dy_, w_, **options), oracle.input_grad(dy, w))


def test_depthwise_filters_of_keras(lib, rng):
    """Output m of channel c is the channel c * multiplier + m of the result: (*k, c_in, multiplier), in one reshape."""
    x, w = integers(rng, (2, 5, 6, 3), (2, 3, 3, 4))
    y = np.zeros((2, 4, 4, 12))
    for c, m in np.ndindex(3, 4):
        for o, p in np.ndindex(4, 4):
            y[:, o, p, 4 * c + m] = np.sum(x[:, o : o + 2, p : p + 3, c] * w[..., c, m], axis=(1, 2))
    filters = lib.array(w.reshape(2, 3, 1, 12))
    lib.check(xconv.conv(lib.array(x), filters, groups=3, layout="channels_last", w_layout="...io"), y)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("layout", "views"), [("channels_first", "oi... i...o"), ("channels_last", "o...i ...io")])
@pytest.mark.parametrize("w_layout", W_LAYOUTS)
def test_filters_that_columns_are_multiplied_by_where_they_lie(rng, w_layout, layout, views):
    x, w = rng.random((2, 9, 9, 9)), in_w_layout(rng.random((6, 9, 3, 2)), w_layout)
    schedule = xconv.plan(x, w, layout=layout, w_layout=w_layout).schedule
    u = Gemm().transform(schedule.backend, schedule.geometry, schedule.filters(w), Team())
    assert np.shares_memory(u, w) == (w_layout in views.split())


@pytest.mark.numpy_only
def test_filters_in_another_order_are_not_copied_first(rng):
    """A kernel of one tap is multiplied as it lies, and a gradient is a view of the memory that it was computed in."""
    x, w = rng.standard_normal((1, 8, 5)), rng.standard_normal((1, 8, 16))
    schedule = xconv.plan(x, w, w_layout="...io").schedule
    assert np.shares_memory(Pointwise().transform(schedule.backend, schedule.geometry, schedule.filters(w), Team()), w)
    dw = xconv.conv_weight_grad(np.ones((1, 16, 5)), x, w.shape, w_layout="...io")
    assert dw.transpose(2, 1, 0).flags.c_contiguous


def test_arrays_by_name(lib, rng):
    x, w, b = map(lib.array, integers(rng, (2, 4, 5), (6, 4, 3), (6,)))
    y = xconv.conv(x, w, b)
    calls = (
        (xconv.conv(b=b, w=w, x=x), y),
        (xconv.conv_input_grad(w=w, x_shape=x.shape, dy=y), xconv.conv_input_grad(y, w, x.shape)),
        (xconv.conv_weight_grad(x=x, dy=y, w_shape=w.shape), xconv.conv_weight_grad(y, x, w.shape)),
        (xconv.conv_transpose(w=w, x=y), xconv.conv_transpose(y, w)),
        (cols := xconv.im2col(kernel_size=3, x=x), xconv.im2col(x, 3)),
        (xconv.col2im(size=5, cols=cols), xconv.col2im(cols, 5)),
    )
    for by_name, by_place in calls:
        lib.check(by_name, lib.numpy(by_place))


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [
        ((0, 2, 5), (3, 2, 3)),
        ((2, 0, 5), (3, 0, 3)),
        ((2, 2, 5), (0, 2, 3)),
        ((2, 2, 0), (3, 2, 1)),
        ((0, 0, 0, 0), (0, 0, 1, 1)),
    ],
)
def test_empty(lib, rng, x_shape, w_shape):
    x, w, b = integers(rng, x_shape, w_shape, (w_shape[0],))
    oracle = Oracle(x_shape, w_shape, padding=1)
    y = oracle.conv(x, w) + b.reshape(-1, *(1,) * (len(x_shape) - 2))
    lib.check(xconv.conv(lib.array(x), lib.array(w), lib.array(b), padding=1), y)
    (dy,) = integers(rng, oracle.y_shape)
    lib.check(xconv.conv_input_grad(lib.array(dy), lib.array(w), x_shape, padding=1), oracle.input_grad(dy, w))
    lib.check(xconv.conv_weight_grad(lib.array(dy), lib.array(x), w_shape, padding=1), oracle.weight_grad(dy, x))


# Identities


def test_groups_are_a_concatenation(lib, rng):
    x, w = integers(rng, (2, 6, 7), (9, 2, 3))
    parts = [xconv.conv(lib.array(x[:, i : i + 2]), lib.array(w[i // 2 * 3 :][:3])) for i in (0, 2, 4)]
    whole = xconv.conv(lib.array(x), lib.array(w), groups=3)
    lib.check(whole, np.concatenate([lib.numpy(p) for p in parts], axis=1))


def test_dilation_is_a_kernel_stuffed_with_zeros(lib, rng):
    x, w = integers(rng, (2, 2, 9, 8), (3, 2, 3, 2))
    stuffed = np.zeros((3, 2, 5, 4))
    stuffed[:, :, ::2, ::3] = w
    dilated = xconv.conv(lib.array(x), lib.array(w), dilation=(2, 3))
    lib.check(dilated, lib.numpy(xconv.conv(lib.array(x), lib.array(stuffed))))


def test_stride_is_a_subsampling(lib, rng):
    x, w = integers(rng, (2, 2, 9, 8), (3, 2, 3, 2))
    every = lib.numpy(xconv.conv(lib.array(x), lib.array(w), padding=1))
    lib.check(xconv.conv(lib.array(x), lib.array(w), padding=1, stride=(2, 3)), every[:, :, ::2, ::3])


def test_bilinear(lib, rng):
    x, other_x, w, other_w = integers(rng, (2, 2, 5), (2, 2, 5), (3, 2, 3), (3, 2, 3))

    def conv(x, w):
        return lib.numpy(xconv.conv(lib.array(x), lib.array(w), padding=1))

    lib.check(lib.array(conv(2 * x + other_x, w)), 2 * conv(x, w) + conv(other_x, w))
    lib.check(lib.array(conv(x, 2 * w + other_w)), 2 * conv(x, w) + conv(x, other_w))


def test_gradients_of_gradients(lib, rng):
    """Each gradient is bilinear as well, and its own adjoints are again the three functions."""
    x, w, v = integers(rng, (2, 4, 6, 5), (6, 2, 3, 2), (2, 4, 6, 5))
    options = {"stride": (2, 1), "padding": ((1, 2), 0), "groups": 2, "pad_mode": "reflect"}
    oracle = Oracle(x.shape, w.shape, **options)
    (dy,) = integers(rng, oracle.y_shape)
    dx = lib.numpy(xconv.conv_input_grad(lib.array(dy), lib.array(w), x.shape, **options))
    in_dy = lib.numpy(xconv.conv(lib.array(v), lib.array(w), **options))
    in_w = lib.numpy(xconv.conv_weight_grad(lib.array(dy), lib.array(v), w.shape, **options))
    assert np.vdot(v, dx) == np.vdot(in_dy, dy) == np.vdot(in_w, w)


def test_one_by_one_takes_no_columns(lib, rng):
    x, w = integers(rng, (2, 6, 5, 4), (8, 3, 1, 1))
    x_, w_ = lib.array(x), lib.array(w)
    if lib.name != "dask":
        assert xconv.plan(x_, w_, groups=2).algorithm == "pointwise"
    y = Oracle(x.shape, w.shape, groups=2).conv(x, w)
    for algorithm in ("auto", "pointwise", "gemm"):
        lib.check(xconv.conv(x_, w_, groups=2, algorithm=algorithm), y)


# dtypes

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_wrap(lib, rng, name):
    if not lib.can_multiply(name):
        pytest.skip(f"{lib} has no products of {name}")
    info = np.iinfo(name)
    x, w = (rng.integers(info.min, info.max, s, name, endpoint=True) for s in ((2, 4, 5), (3, 4, 3)))
    exact = sum(
        np.einsum("ncp,oc->nop", x[:, :, t : t + 3].astype(object), w[:, :, t].astype(object)) for t in range(3)
    )
    wrapped = (exact % 2**info.bits).astype(f"uint{info.bits}").astype(name)
    lib.check(xconv.conv(lib.array(x), lib.array(w)), wrapped, dtype=name)


def test_wider_result(lib, rng):
    x, w = (rng.integers(-128, 128, s, np.int8) for s in ((2, 4, 5), (3, 4, 3)))
    oracle = Oracle(x.shape, w.shape)
    x_, w_, wide = lib.array(x), lib.array(w), lib.dtype("int32")
    lib.check(xconv.conv(x_, w_, dtype=wide), oracle.conv(x, w), dtype="int32")
    dy = rng.integers(-128, 128, oracle.y_shape, np.int8)
    dx = xconv.conv_input_grad(lib.array(dy), w_, x.shape, dtype=wide)
    lib.check(dx, oracle.input_grad(dy, w), dtype="int32")
    dw = xconv.conv_weight_grad(lib.array(dy), x_, w.shape, dtype=wide)
    lib.check(dw, oracle.weight_grad(dy, x), dtype="int32")


def test_integers_promote(lib, rng):
    x, w = rng.integers(0, 255, (1, 2, 5)).astype(np.uint8), rng.integers(-128, 128, (3, 2, 3)).astype(np.int8)
    y = Oracle(x.shape, w.shape).conv(x, w)
    lib.check(xconv.conv(lib.array(x), lib.array(w)), (y + 2**15) % 2**16 - 2**15, dtype="int16")


@pytest.mark.parametrize(("mine", "common"), [("float32", "float64"), ("complex64", "complex128")])
def test_floats_promote(lib, rng, mine, common):
    if not lib.has(common):
        pytest.skip(f"{lib} has no {common}")
    x, w = integers(rng, (1, 2, 5), (3, 2, 3))
    expected = Oracle(x.shape, w.shape).conv(x, w).astype(common)
    lib.check(xconv.conv(lib.array(x, mine), lib.array(w, common)), expected, dtype=common)
    lib.check(xconv.conv(lib.array(x, mine), lib.array(w, mine)), expected, dtype=mine)
    wide = xconv.conv(lib.array(x, mine), lib.array(w, mine), dtype=lib.dtype(common))
    lib.check(wide, expected, dtype=common)


def test_complex_gradients_are_adjoints(lib, rng):
    if not lib.has("complex128"):
        pytest.skip(f"{lib} has no complex128")
    options = {"stride": 2, "padding": 2, "pad_mode": "wrap"}
    oracle = Oracle((2, 2, 6), (3, 2, 3), **options)
    x, w, dy = (
        np.asarray(re + 1j * im)
        for re, im in (integers(rng, s, s) for s in (oracle.x_shape, oracle.w_shape, oracle.y_shape))
    )
    x_, w_, dy_ = (lib.array(a) for a in (x, w, dy))
    y = xconv.conv(x_, w_, **options)
    dx = xconv.conv_input_grad(dy_, w_, x.shape, **options)
    dw = xconv.conv_weight_grad(dy_, x_, w.shape, **options)
    lib.check(y, oracle.conv(x, w), dtype="complex128")
    lib.check(dx, oracle.input_grad(dy, w), dtype="complex128")
    lib.check(dw, oracle.weight_grad(dy, x), dtype="complex128")
    assert np.vdot(dy, lib.numpy(y)) == np.vdot(lib.numpy(dx), x)


@pytest.mark.numpy_only
def test_half_sums_in_single(lib, rng):
    """1 + 2048 terms of 1: a float16 sum would stop at 2048."""
    x, w = np.ones((1, 2049, 3), np.float16), np.ones((1, 2049, 1), np.float16)
    assert np.all(xconv.conv(x, w) == np.float16(2049))
    oracle = Oracle((2, 8, 9), (4, 8, 3), padding=1, stride=2)
    x, w, dy = (rng.standard_normal(s).astype(np.float16) for s in ((2, 8, 9), (4, 8, 3), oracle.y_shape))
    options = {"padding": 1, "stride": 2}
    for result, exact in (
        (xconv.conv(x, w, **options), oracle.conv(x, w)),
        (xconv.conv_input_grad(dy, w, x.shape, **options), oracle.input_grad(dy, w)),
        (xconv.conv_weight_grad(dy, x, w.shape, **options), oracle.weight_grad(dy, x)),
    ):
        lib.check(result, exact, dtype="float16", bound=0.51 * np.spacing(np.abs(exact).astype(np.float16)) + 1e-5)
    lib.check(xconv.conv(x, w, **options, dtype=np.float32), oracle.conv(x, w), dtype="float32", bound=1e-5)


@pytest.mark.numpy_only
def test_bfloat16_of_ml_dtypes(lib, rng):
    x, w = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((2, 8, 9), (4, 8, 3)))
    y = xconv.conv(x, w)
    exact = Oracle(x.shape, w.shape).conv(x.astype(float), w.astype(float))
    assert y.dtype == ml_dtypes.bfloat16
    assert np.all(np.abs(y.astype(float) - exact) <= 2.0**-8 * np.abs(exact) + 1e-5)


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_error_bound(lib, rng, real):
    """|err| <= K * eps * conv(|x|, |w|), element by element, for all three functions."""
    if not lib.has(real):
        pytest.skip(f"{lib} has no {real}")
    oracle = Oracle((2, 16, 8, 9), (8, 16, 3, 3), padding=1)
    x, w, dy = (
        rng.standard_normal(s) * 10.0 ** rng.integers(-3, 3, s)
        for s in (oracle.x_shape, oracle.w_shape, oracle.y_shape)
    )
    x, w, dy = (a.astype(real) for a in (x, w, dy))
    x_, w_, dy_ = (lib.array(a) for a in (x, w, dy))
    eps = np.finfo(real).eps
    with xconv.config(numerics="strict"):
        for result, function, a, b, terms in (
            (xconv.conv(x_, w_, padding=1), oracle.conv, x, w, 16 * 9),
            (xconv.conv_input_grad(dy_, w_, x.shape, padding=1), oracle.input_grad, dy, w, 8 * 9),
            (xconv.conv_weight_grad(dy_, x_, w.shape, padding=1), oracle.weight_grad, dy, x, 2 * 72),
        ):
            # The oracle itself rounds in float64: one more sum of as many terms.
            bound = terms * (eps + np.finfo(float).eps) * function(np.abs(a), np.abs(b))
            lib.check(result, function(a, b), dtype=real, bound=bound)


def test_nan_and_infinity_stay_in_their_windows(lib):
    x = np.zeros((1, 1, 7, 7))
    x[0, 0, 2, 3], x[0, 0, 5, 5] = np.nan, np.inf
    with xconv.config(numerics="strict"):
        y = lib.numpy(xconv.conv(lib.array(x), lib.array(np.ones((1, 1, 3, 3))), padding=1))[0, 0]
    seen = np.zeros((7, 7), bool)
    seen[1:4, 2:5] = seen[4:7, 4:7] = True
    assert np.array_equal(~np.isfinite(y), seen)


# Inputs in any memory


@pytest.mark.numpy_only
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_any_memory(lib, rng, layout):
    base = rng.integers(-5, 6, (8, 12, 14, 16)).astype(np.float64)
    shape = (2, 4, 5, 6) if layout == "channels_first" else (2, 5, 6, 4)
    swapped = base[:2, :6, :5, :4].swapaxes(1, 3) if layout == "channels_first" else base[:2, :4, :6, :5].swapaxes(1, 3)
    inputs = {
        "strided": base[::4, ::3, 2:12:2, ::3][:2, : shape[1], : shape[2], : shape[3]],
        "negative": base[1::-1, shape[1] - 1 :: -1, shape[2] - 1 :: -1, shape[3] - 1 :: -1],
        "fortran": np.asfortranarray(base[:2, : shape[1], : shape[2], : shape[3]]),
        "swapped": swapped,
        "broadcast": np.broadcast_to(base[:1, :1, : shape[2], :1], shape),
        "big-endian": base[:2, : shape[1], : shape[2], : shape[3]].astype(">f8"),
    }
    w = np.asfortranarray(base[:6, :2, :3, :2])[:, :, ::-1]
    for name, x in inputs.items():
        assert x.shape[0] == 2
        x.flags.writeable = False
        before = x.copy()
        first = x if layout == "channels_first" else np.moveaxis(x, -1, 1)
        oracle = Oracle(first.shape, (6, first.shape[1] // 2, *w.shape[2:]), groups=2, padding=1)
        filters = w[:, : oracle.w_shape[1]]
        y = xconv.conv(x, filters, groups=2, padding=1, layout=layout)
        expected = oracle.conv(np.asarray(first, float), filters)
        lib.check(y, expected if layout == "channels_first" else np.moveaxis(expected, 1, -1), dtype="float64")
        assert y.flags.c_contiguous, name
        assert y.flags.writeable
        assert np.array_equal(x, before), name
        dy = np.broadcast_to(1.0, y.shape)
        dx = xconv.conv_input_grad(dy, filters, x.shape, groups=2, padding=1, layout=layout)
        exact = oracle.input_grad(np.ones(oracle.y_shape), filters)
        lib.check(dx, exact if layout == "channels_first" else np.moveaxis(exact, 1, -1))
        dw = xconv.conv_weight_grad(dy, x, filters.shape, groups=2, padding=1, layout=layout)
        lib.check(dw, oracle.weight_grad(np.ones(oracle.y_shape), np.asarray(first, float)))
        assert dx.flags.c_contiguous, name
        assert dw.flags.c_contiguous, name


@pytest.mark.numpy_only
def test_subclasses_become_plain(rng):
    """A subclass that is a plain array with another name is taken as one, and shares its backend."""

    class Named(np.ndarray):
        pass

    x, w = integers(rng, (1, 2, 5), (3, 2, 3))
    y = xconv.conv(x.view(Named), w)
    assert type(y) is np.ndarray
    assert np.array_equal(y, xconv.conv(x, w))


@pytest.mark.numpy_only
def test_results_own_their_memory(lib, rng):
    """The next call must not write into what the last one returned, kept memory or not."""
    x, w = integers(rng, (2, 3, 6, 6), (4, 3, 3, 3))
    for function in (
        lambda: xconv.conv(x, w),
        lambda: xconv.conv_input_grad(xconv.conv(x, w), w, x.shape),
        lambda: xconv.conv_weight_grad(xconv.conv(x, w), x, w.shape),
        lambda: xconv.im2col(x, 3),
        lambda: xconv.conv(x, w[:, :, :1, :1]),
    ):
        result = function()
        copy = result.copy()
        xconv.conv(x + 1, w)
        function()
        assert np.array_equal(result, copy)


# The transposed convolution


def transposed(x, w, groups, stride, dilation, cut):
    """By definition: every input element adds its filters to the full output, of which `cut` is then taken."""
    full_size = [(n - 1) * stride + dilation * (k - 1) + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    c, f = x.shape[1] // groups, w.shape[1]
    full = np.zeros((len(x), groups * f, *(n + 20 for n in full_size)))
    for p in np.ndindex(*x.shape[2:]):
        for t in np.ndindex(*w.shape[2:]):
            at = tuple(10 + i * stride + j * dilation for i, j in zip(p, t, strict=True))
            for g in range(groups):
                part = x[(..., *p)][:, g * c :][:, :c] @ w[(..., *t)][g * c :][:c]
                full[(..., *at)][:, g * f : (g + 1) * f] += part
    return full[(..., *(slice(10 + lo, 10 + lo + n) for lo, n in cut))]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "pair", "dilation", "extra"),
    [(1, (0, 0), 1, 0), (2, (1, 1), 1, 1), (3, (0, 1), 2, 2), (2, (-1, -1), 3, 2)],
)
def test_transpose(lib, rng, rank, stride, pair, dilation, extra):
    x, w, b = integers(rng, (2, 4, *(4, 3, 2)[:rank]), (4, 3, *(3, 2, 1)[:rank]), (6,))
    cut = [
        (pair[0], (n - 1) * stride - sum(pair) + dilation * (k - 1) + 1 + extra)
        for n, k in zip(x.shape[2:], w.shape[2:], strict=True)
    ]
    y = transposed(x, w, 2, stride, dilation, cut) + b.reshape(-1, *(1,) * rank)
    options = {"stride": stride, "padding": (pair,) * rank, "dilation": dilation, "groups": 2, "output_padding": extra}
    x_, last, w_, b_ = (lib.array(a) for a in (x, np.moveaxis(x, 1, -1), w, b))
    lib.check(xconv.conv_transpose(x_, w_, b_, **options), y, dtype=lib.real)
    options["layout"] = "channels_last"
    lib.check(xconv.conv_transpose(last, w_, b_, **options), np.moveaxis(y, 1, -1))


@pytest.mark.parametrize("padding", ["same", "same_lower", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_transpose_with_a_named_padding(lib, rng, padding, stride):
    """It is the adjoint of the convolution with that padding, from size * stride."""
    x, w = integers(rng, (1, 2, 5), (2, 3, 3))
    y = xconv.conv_transpose(lib.array(x), lib.array(w), stride=stride, padding=padding)
    size = (5 - 1) * stride + 3 if padding == "valid" else 5 * stride
    assert y.shape == (1, 3, size)
    forward = {"stride": stride, "padding": padding}
    lib.check(y, lib.numpy(xconv.conv_input_grad(lib.array(x), lib.array(w), (1, 3, size), **forward)))


@pytest.mark.parametrize("padding", [((-1, 2),), "valid", "same_lower"])
@pytest.mark.parametrize(("stride", "dilation"), [(3, 1), (2, 5)])
def test_transpose_to_a_size(lib, rng, padding, stride, dilation):
    """Each that such a convolution takes to that of the input, and the adjoint of that convolution."""
    x, w = integers(rng, (1, 2, 4), (2, 3, 3))
    x_, w_, forward = lib.array(x), lib.array(w), {"stride": stride, "padding": padding, "dilation": dilation}
    with pytest.raises(ValueError, match="`output_size` must be one") as raised:
        xconv.conv_transpose(x_, w_, **forward, output_size=99)
    least, most = map(int, re.search(r"(\d+) to (\d+)", str(raised.value)).groups())
    assert most - least == (stride if str(padding).startswith("same") else max(stride, dilation)) - 1
    for size in (least, most):
        y = xconv.conv_transpose(x_, w_, **forward, output_size=size)
        assert y.shape == (1, 3, size)
        if size < least + stride:
            lib.check(y, lib.numpy(xconv.conv_input_grad(x_, w_, y.shape, **forward)))
        if padding == "valid":
            lib.check(y, lib.numpy(xconv.conv_transpose(x_, w_, **forward, output_padding=size - least)))
    for size in (least - 1, most + 1):
        with pytest.raises(ValueError, match="`output_size` must be one"):
            xconv.conv_transpose(x_, w_, **forward, output_size=(size,))


@pytest.mark.parametrize("extra", [1, 4])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradients_of_the_transpose(lib, rng, extra, dtype):
    """As its docstring has them, for an `output_padding` beyond the stride, too."""
    if not lib.has(dtype):
        pytest.skip(f"{lib} has no {dtype}")
    x, w = integers(rng, (2, 4, 5, 4), (4, 3, 3, 2))
    options = {"stride": 2, "dilation": 5, "groups": 2}
    y_shape = xconv.conv_transpose(x, w, **options, padding=((1, 0), (0, 2)), output_padding=extra).shape
    (dy,) = integers(rng, y_shape)
    if dtype == "complex128":
        x, w, dy = (a + 1j * np.flip(a, -1) for a in (x, w, dy))
    x_, w_, dy_ = (lib.array(a, dtype) for a in (x, w, dy))
    y = lib.numpy(xconv.conv_transpose(x_, w_, **options, padding=((1, 0), (0, 2)), output_padding=extra))
    options["padding"] = (1, 0 - extra), (0, 2 - extra)
    dx = lib.numpy(xconv.conv(dy_, lib.xp.conj(w_) if dtype == "complex128" else w_, **options))
    dw = lib.numpy(xconv.conv_weight_grad(x_, dy_, w.shape, **options)).conj()
    assert dx.shape == x.shape
    assert np.vdot(dy, y) == np.vdot(dx, x) == np.vdot(dw, w)


def test_transpose_does_not_conjugate(lib):
    if not lib.has("complex128"):
        pytest.skip(f"{lib} has no complex128")
    x, w = np.array([[[1.0 + 0j]]]), np.array([[[2j]]])
    lib.check(xconv.conv_transpose(lib.array(x), lib.array(w)), x * w)
    lib.check(xconv.conv_input_grad(lib.array(x), lib.array(w), (1, 1, 1)), x * w.conj())


# im2col and col2im


def test_windows_of_every_dtype(lib, rng):
    for name in (*INTEGERS, "float32"):
        if not lib.can_multiply(name) or (lib.module_is("jax") and name not in {"int8", "uint32"}):  # it compiles each
            continue
        x = rng.integers(0, 100, (2, 3, 5, 4)).astype(name)
        cols = xconv.im2col(lib.array(x), (2, 3), stride=(2, 1))
        oracle = Oracle(x.shape, (1, 3, 2, 3), stride=(2, 1))
        lib.check(cols, oracle.im2col(x), dtype=name)
        back = oracle.col2im(oracle.im2col(x).astype(float)) % (256 if name.endswith("8") else 1e9)
        expected = back.astype(np.uint8).view(name).astype(float) if name == "int8" else back
        lib.check(xconv.col2im(cols, (5, 4), stride=(2, 1)), expected, dtype=name)


ORDERS = {"rows": (0, 4, 5, 1, 2, 3), "columns": (1, 2, 3, 4, 5, 0), "last": (0, -4, -3, -2, -1, 1), "same": range(6)}


@pytest.mark.parametrize("axes", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("tiled", [False, True])
def test_windows_in_any_order(lib, rng, axes, tiled):
    x = rng.integers(-9, 10, (3, 2, 9, 8)).astype(float)
    options = {"stride": (2, 1), "padding": 1}
    expected = Oracle(x.shape, (1, 2, 3, 2), **options).im2col(x).transpose(axes)
    least = {"numpy": 2**11, "strict": 2**13}.get(lib.name)
    if tiled and least is None:
        pytest.skip("takes no memory beside the result, or is made as the strict library is")
    with xconv.config(workspace=least if tiled else None):
        cols = xconv.im2col(lib.array(x), (3, 2), **options, axes=axes)
        lib.check(cols, expected)
        assert lib.is_in_order(cols)
        back = xconv.col2im(cols, (9, 8), **options, axes=axes)
    plain = xconv.col2im(xconv.im2col(lib.array(x), (3, 2), **options), (9, 8), **options)
    lib.check(back, lib.numpy(plain))


@pytest.mark.numpy_only
@pytest.mark.parametrize("padding", [0, 1, (-1, 0), ((1, -2), (0, 3))], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), ((2, 3), (2, 3)), (2, 3), ((2, 1), (4, 3)), (4, 3)])
@pytest.mark.usefixtures("exact")
def test_windows_that_do_not_overlap(lib, rng, kernel, stride, padding):
    """And some that do: what is between them, and what no window sees, is zero on the way back."""
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    loops = Oracle((2, 2, 9, 12), (3, 2, *kernel), stride=stride, padding=padding)
    x, w, dy = (rng.integers(-9, 10, shape) for shape in ((2, 2, 9, 12), (3, 2, *kernel), loops.y_shape))
    windows = xconv.im2col(lib.array(x), kernel, stride=stride, padding=padding)
    assert np.array_equal(lib.numpy(windows), loops.im2col(x))
    with_gaps = np.repeat(x, 2, axis=-1)[..., ::2]
    assert np.array_equal(xconv.im2col(with_gaps, kernel, stride=stride, padding=padding), loops.im2col(x))
    found = lib.numpy(xconv.col2im(windows, (9, 12), stride=stride, padding=padding))
    assert np.array_equal(found, loops.col2im(loops.im2col(x)))
    for layout, outward in (("channels_first", lambda a: a), ("channels_last", lambda a: np.moveaxis(a, 1, -1).copy())):
        options = {"stride": stride, "padding": padding, "layout": layout}
        dx = xconv.conv_input_grad(lib.array(outward(dy)), lib.array(w), outward(x).shape, **options)
        assert np.array_equal(lib.numpy(dx), outward(loops.input_grad(dy, w)))
        y = xconv.conv(lib.array(outward(x)), lib.array(w), **options)
        assert np.array_equal(lib.numpy(y), outward(loops.conv(x, w)))
        dw = xconv.conv_weight_grad(lib.array(outward(dy)), lib.array(outward(x)), w.shape, **options)
        assert np.array_equal(lib.numpy(dw), loops.weight_grad(dy, x))


@pytest.mark.numpy_only
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("padding", [0, ((1, 0), (0, 2)), (-1, 0)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_windows_as_long_as_their_stride(lib, rng, dilation, padding, layout):
    """By columns: with a dilation they share elements all the same, and with a padding not all are in the images."""
    options = {"stride": (2, 3), "dilation": dilation, "padding": padding}
    loops = Oracle((2, 2, 9, 12), (3, 2, 2, 3), **options)
    w, dy = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((3, 2, 2, 3), loops.y_shape))

    def outward(a):
        return np.moveaxis(a, 1, -1).copy() if layout == "channels_last" else a

    arrays, shape = (lib.array(outward(dy)), lib.array(w)), outward(np.empty(loops.x_shape)).shape
    dx = xconv.conv_input_grad(*arrays, shape, **options, layout=layout, algorithm="gemm")
    assert np.array_equal(lib.numpy(dx), outward(loops.input_grad(dy, w)))


@pytest.mark.numpy_only
def test_windows_are_written_once(rng):
    """In the order that the caller asks for: nothing else is as large."""
    x = rng.standard_normal((8, 16, 20, 20))
    cols = xconv.im2col(x, 3, axes=(0, 4, 5, 1, 2, 3))
    rows = cols.reshape(8 * 18 * 18, 16 * 9, copy=False)
    assert rows.base is cols.base
    assert cols.base.nbytes == cols.nbytes
    tracemalloc.start()
    try:
        xconv.im2col(x, 3, axes=(0, 4, 5, 1, 2, 3))
        assert tracemalloc.get_traced_memory()[1] < 1.1 * cols.nbytes
    finally:
        tracemalloc.stop()


def test_col2im_counts_the_windows(lib):
    cols = np.ones((1, 1, 3, 3, 4, 4))
    once = xconv.col2im(lib.array(cols), 4, padding=1)
    lib.check(once, np.array([[[[4.0, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]]]))


@pytest.mark.numpy_only
def test_half_gradient_of_a_long_padding():
    """3,001 windows of the padding add up to one element: a float16 sum would stop at 2048."""
    dy, w = np.ones((1, 1, 6002), np.float16), np.ones((1, 1, 1), np.float16)
    dx = xconv.conv_input_grad(dy, w, (1, 1, 2), padding=3000, pad_mode="wrap")
    assert dx.dtype == np.float16
    assert np.all(dx == np.float16(3001))


def test_col2im_of_one_tap_is_a_copy(lib):
    cols = lib.array(np.ones((1, 1, 1, 4)))
    image = xconv.col2im(cols, 4)
    if lib.module_is("jax"):
        return  # its arrays cannot be written to
    image[...] = 7
    lib.check(cols, np.ones((1, 1, 1, 4)))


def test_steps_far_beyond_the_array(lib, rng):
    """One output takes any stride, and one tap any dilation."""
    x, w = integers(rng, (1, 2, 5, 4), (3, 2, 3, 1))
    options = {"stride": (2**70, 1), "dilation": (1, 2**70)}
    y = xconv.conv(lib.array(x), lib.array(w), **options)
    oracle = Oracle(x.shape, w.shape, stride=(9, 1))
    lib.check(y, oracle.conv(x, w))
    lib.check(xconv.conv_input_grad(y, lib.array(w), x.shape, **options), oracle.input_grad(lib.numpy(y), w))


def test_dtypes_by_name(lib, rng):
    x, w = integers(rng, (1, 2, 5), (3, 2, 3))
    y = xconv.conv(lib.array(x, "int8"), lib.array(w, "int8"), dtype="int32")
    lib.check(y, Oracle(x.shape, w.shape).conv(x, w), dtype="int32")


@pytest.mark.numpy_only
def test_byte_orders(rng):
    x, w = integers(rng, (1, 2, 5), (3, 2, 3))
    y = xconv.conv(x.astype(">f4"), w.astype("<f4"), dtype=">f8")
    assert y.dtype == np.float64
    assert np.array_equal(y, xconv.conv(x, w))
