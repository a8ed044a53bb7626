"""Pooling: the largest element of every window, its mean, and what comes back from either."""

import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Pool
from strategies import cases

import xconv

#: The shape of x, and how it is pooled.
GEOMETRIES = {
    "1d": ((2, 3, 9), (3,), {"padding": 1, "stride": 2}),
    "2d": ((2, 3, 7, 8), (3, 2), {"padding": (1, (0, 1)), "stride": (2, 1)}),
    "2d-tiles": ((1, 2, 6, 9), (2, 3), {}),
    "gaps": ((1, 2, 9, 11), (2, 1), {"stride": (4, 3), "padding": ((1, 0), 0)}),
    "dilated": ((1, 2, 8, 9), (2, 3), {"stride": 1, "dilation": (3, 2), "padding": ((2, 3), 1)}),
    "cropped": ((1, 2, 8, 7), (2, 2), {"stride": 1, "padding": ((-2, 1), (1, -1))}),
    "3d": ((1, 2, 4, 5, 3), (2, 3, 2), {"padding": 1, "stride": (1, 2, 2)}),
    "4d": ((1, 1, 3, 2, 4, 3), (2, 1, 2, 3), {"stride": 1}),
    "nothing": ((1, 2, 3, 4), (2, 2), {"padding": (3, 2), "stride": 1, "dilation": (1, 2)}),
    "long": ((1, 2, 30, 5), (11, 2), {"stride": 1, "padding": ((4, 6), 0)}),
    "very long": ((1, 1, 40, 3), (17, 1), {"stride": 2, "dilation": 2, "padding": ((9, 3), 0)}),
    "many taps": ((1, 1, 17, 18), (16, 16), {"stride": 1, "padding": (1, 0)}),
    "one tap": ((2, 2, 4, 3), (1, 1), {}),
}
geometries = pytest.mark.parametrize("name", GEOMETRIES)
layouts = pytest.mark.parametrize("layout", ["channels_first", "channels_last"])


def pooled(lib, name):
    if lib.module_is("jax") and name != "2d":
        pytest.skip("it compiles every new shape")
    shape, kernel, options = GEOMETRIES[name]
    return Pool(shape, kernel, **options), kernel, options


def integers(rng, *shapes, limit=3):
    """Small ones, of which many are equal."""
    return [rng.integers(-limit, limit + 1, shape).astype(np.float64) for shape in shapes]


def special(rng, x):
    """`x` with some infinities of either sign, and few NaN."""
    for value, share in ((np.inf, 0.1), (-np.inf, 0.4), (np.nan, 0.05)):
        x = np.where(rng.random(x.shape) < share, value, x)
    return x


def equal(lib, actual, expected):
    """The same numbers, NaN among them."""
    values = lib.numpy(actual)
    assert values.shape == expected.shape
    np.testing.assert_array_equal(values.astype(expected.dtype), expected)


def check_max(lib, x, dy, oracle, kernel, options, layout="channels_first"):
    turned = [np.moveaxis(a, 1, -1) if layout == "channels_last" else a for a in (x, dy)]
    x_, dy_ = map(lib.array, turned)
    y, dx = oracle.max(x), oracle.max_grad(dy, x)
    y, dx = (np.moveaxis(a, 1, -1) if layout == "channels_last" else a for a in (y, dx))
    equal(lib, xconv.max_pool(x_, kernel, **options, layout=layout), y)
    equal(lib, xconv.max_pool_grad(dy_, x_, kernel, **options, layout=layout), dx)


@layouts
@geometries
def test_max(lib, rng, name, layout):
    """Against plain loops, among equals, NaN and infinities."""
    oracle, kernel, options = pooled(lib, name)
    x, dy = integers(rng, oracle.x_shape, oracle.y_shape)
    check_max(lib, x, dy, oracle, kernel, options, layout)
    check_max(lib, special(rng, x), dy, oracle, kernel, options, layout)


@pytest.mark.parametrize("count_include_pad", [True, False])
@layouts
@geometries
def test_avg(lib, rng, name, layout, count_include_pad):
    oracle, kernel, options = pooled(lib, name)
    x, dy = integers(rng, oracle.x_shape, oracle.y_shape)
    x, dy = 720720 * x, 720720 * dy  # divided by all numbers to 16, these are whole
    options = {**options, "layout": layout, "count_include_pad": count_include_pad}
    turned = [np.moveaxis(a, 1, -1) if layout == "channels_last" else a for a in (x, dy)]
    x_, dy_ = map(lib.array, turned)
    if not count_include_pad and 0 in oracle.sizes(count_include_pad=False):
        for call in (
            lambda: xconv.avg_pool(x_, kernel, **options),
            lambda: xconv.avg_pool_grad(dy_, x_.shape, kernel, **options),
        ):
            with pytest.raises(ValueError, match="`padding` must leave an element in every window"):
                call()
        return
    y = oracle.avg(x, count_include_pad=count_include_pad)
    dx = oracle.avg_grad(dy, count_include_pad=count_include_pad)
    y, dx = (np.moveaxis(a, 1, -1) if layout == "channels_last" else a for a in (y, dx))
    bound = 4 * np.finfo(lib.real).eps * oracle.kernel[0] * 720720 * 3 * 300
    lib.check(xconv.avg_pool(x_, kernel, **options), y, dtype=lib.real, bound=bound)
    lib.check(xconv.avg_pool_grad(dy_, turned[0].shape, kernel, **options), dx, dtype=lib.real, bound=bound)


def test_the_mean_of_equals_is_what_they_are(lib):
    for number in (0.1, 7.0):
        x = np.full((1, 2, 9, 9), number)
        y = lib.numpy(xconv.avg_pool(lib.array(x), 3))
        assert np.max(np.abs(y - number)) <= 9 * np.finfo(lib.real).eps * number
    equal(lib, xconv.avg_pool(lib.array(np.full((1, 1, 7, 7), 3.0)), 7), np.full((1, 1, 1, 1), 3.0))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integers(lib, rng, dtype):
    if lib.module_is("jax") and dtype not in {"int8", "int32"}:
        pytest.skip("it compiles every new shape")
    if not lib.has(dtype):
        pytest.skip("has none")
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, (2, 2, 7, 6), dtype=dtype, endpoint=True)
    x[0, :, :3] = info.min
    for padding in (1, 3):
        oracle = Pool(x.shape, (3, 2), stride=2, padding=padding)
        dy = rng.integers(0, 5, oracle.y_shape).astype(dtype)
        x_, dy_ = lib.array(x), lib.array(dy)
        y = xconv.max_pool(x_, (3, 2), stride=2, padding=padding)
        lib.check(y, oracle.max(x), dtype=dtype)
        dx = xconv.max_pool_grad(dy_, x_, (3, 2), stride=2, padding=padding)
        lib.check(dx, oracle.max_grad(dy, x), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floating(lib, rng, dtype):
    """Half types are summed in float32, and rounded once."""
    if lib.name in {"strict", "strictest"} and dtype != "float32":
        pytest.skip("has no half types")
    if lib.name == "torch":
        to = {"float16": lib.xp.float16, "bfloat16": lib.xp.bfloat16, "float32": lib.xp.float32}[dtype]
        make, back = (lambda a: lib.xp.asarray(a.astype(np.float32)).to(to)), lambda a: lib.numpy(a.to(lib.xp.float64))
    else:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        make, back = (lambda a: lib.array(a.astype(kind))), lambda a: lib.numpy(a).astype(np.float64)
    x, dy = integers(rng, (2, 2, 7, 6), (2, 2, 4, 3))
    oracle = Pool(x.shape, (3, 2), stride=2, padding=(1, 0))
    x_, dy_ = make(x), make(dy)
    options = {"stride": 2, "padding": (1, 0)}
    results = (
        (xconv.max_pool(x_, (3, 2), **options), oracle.max(x), 0),
        (xconv.max_pool_grad(dy_, x_, (3, 2), **options), oracle.max_grad(dy, x), 0),
        (xconv.avg_pool(x_, (3, 2), **options), oracle.avg(x), 2**-7),
        (xconv.avg_pool_grad(dy_, x.shape, (3, 2), **options), oracle.avg_grad(dy), 2**-6),
    )
    for actual, expected, bound in results:
        assert actual.dtype == x_.dtype
        assert np.max(np.abs(back(actual) - expected)) <= bound * 3


def test_complex_mean(lib, rng):
    if not lib.has("complex128"):
        pytest.skip("has none")
    re, im, dre, dim = integers(rng, *(2 * [(1, 2, 6, 5)]), *(2 * [(1, 2, 3, 2)]))
    x, dy = re + 1j * im, dre + 1j * dim
    oracle = Pool(x.shape, (2, 2))
    equal(lib, xconv.avg_pool(lib.array(x), 2), oracle.avg(x))
    equal(lib, xconv.avg_pool_grad(lib.array(dy), x.shape, 2), oracle.avg_grad(dy))


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 2, 0), (0, 0, 0)])
def test_empty(lib, shape):
    """No images, no channels, and elements that are padding alone."""
    x, out = lib.array(np.zeros(shape)), shape[2] + 2
    dy = lib.array(np.ones((*shape[:2], out)))
    options = {"stride": 1, "padding": 2}
    equal(lib, xconv.max_pool(x, 3, **options), np.full((*shape[:2], out), -np.inf if shape[2] == 0 else 0))
    equal(lib, xconv.max_pool_grad(dy[..., :], x, 3, **options) * 0, np.zeros(shape))
    equal(lib, xconv.avg_pool(x, 3, **options), np.zeros((*shape[:2], out)))
    equal(lib, xconv.avg_pool_grad(dy, shape, 3, **options) * 0, np.zeros(shape))


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "same_lower"}, {"padding": "valid"}, {"padding": [[1, 0], 2]}]
)
def test_paddings_are_those_of_a_convolution(lib, rng, options):
    (x,) = integers(rng, (1, 2, 6, 7))
    options = {**options, "stride": 2}
    sums = xconv.conv(x, np.ones((2, 1, 2, 3)), groups=2, algorithm="depthwise", **options)
    lib.check(xconv.avg_pool(lib.array(x), (2, 3), **options), sums / 6, bound=100 * np.finfo(lib.real).eps)
    if options["padding"] == "valid":
        equal(lib, xconv.max_pool(lib.array(x), (2, 3), **options), xconv.im2col(x, (2, 3), stride=2).max(axis=(2, 3)))


def test_adjoint(lib, rng):
    x, dy = (2520 * a for a in integers(rng, (2, 2, 9, 8), (2, 2, 5, 4)))
    for count in (True, False):
        options = {"stride": 2, "padding": 1, "count_include_pad": count}
        y = lib.numpy(xconv.avg_pool(lib.array(x), 3, **options)).astype(np.float64)
        dx = lib.numpy(xconv.avg_pool_grad(lib.array(dy), x.shape, 3, **options)).astype(np.float64)
        assert np.vdot(dy, y) == pytest.approx(np.vdot(dx, x), rel=1e-5 if lib.real == "float32" else 1e-12)


def test_inputs_as_they_lie(lib, rng):
    """Turned around, broadcast, with gaps; never written to, and no result is a view of them."""
    if lib.name not in {"numpy", "cupy", "cupy-on-host"}:
        pytest.skip("lies as it lies")
    x, dy = integers(rng, (2, 3, 8, 8), (2, 3, 4, 4))
    oracle = Pool(x.shape, (2, 2))
    plain, back = oracle.max(x), oracle.max_grad(dy, x)
    x_ = lib.array(np.ascontiguousarray(x.transpose(3, 1, 0, 2))).transpose(2, 1, 3, 0)
    dy_ = lib.array(np.flip(dy).copy())[::-1, ::-1, ::-1, ::-1]
    equal(lib, xconv.max_pool(x_, 2), plain)
    equal(lib, xconv.max_pool_grad(dy_, x_, 2), back)
    equal(lib, xconv.avg_pool_grad(dy_, x.shape, 2), oracle.avg_grad(dy))
    one = lib.array(np.ones((1, 1, 1, 1)))
    wide = lib.xp.broadcast_to(one, (2, 3, 8, 8))
    equal(lib, xconv.avg_pool(wide, 2), np.ones((2, 3, 4, 4)))
    same = xconv.max_pool(x_, 1)
    same[...] = 7
    equal(lib, x_, x)


@pytest.mark.numpy_only
def test_read_only(rng):
    x, dy = integers(rng, (1, 2, 6, 6), (1, 2, 3, 3))
    x.flags.writeable = dy.flags.writeable = False
    with xconv.config(threads=2):
        assert np.array_equal(xconv.max_pool_grad(dy, x, 2), Pool(x.shape, (2, 2)).max_grad(dy, x))
    assert xconv.max_pool(x, 1).flags.writeable


@layouts
@pytest.mark.parametrize("name", ["2d", "gaps", "dilated", "cropped", "nothing", "long", "3d"])
def test_tiles_change_nothing(lib, rng, name, layout):
    """A workspace that has room for little, down to a tile of a few elements: the same in every bit."""
    if lib.name == "dask":
        pytest.skip("its tasks have workspaces of their own")
    if lib.module_is("jax"):
        pytest.skip("it compiles every tile; in loops, it does so in test_jax")
    oracle, kernel, options = pooled(lib, name)
    x, dy = special(rng, rng.standard_normal(oracle.x_shape)), rng.standard_normal(oracle.y_shape)
    x_, dy_ = (lib.array(np.moveaxis(a, 1, -1) if layout == "channels_last" else a) for a in (x, dy))
    options = {**options, "layout": layout}
    counted = {**options, "count_include_pad": 0 in oracle.sizes(count_include_pad=False)}
    calls = {
        "max_pool": lambda: xconv.max_pool(x_, kernel, **options),
        "max_pool_grad": lambda: xconv.max_pool_grad(dy_, x_, kernel, **options),
        "avg_pool": lambda: xconv.avg_pool(x_, kernel, **counted),
        "avg_pool_grad": lambda: xconv.avg_pool_grad(dy_, x_.shape, kernel, **counted),
    }
    for function, call in calls.items():
        with np.errstate(invalid="ignore"):  # of infinities
            whole = lib.numpy(call())
            least = least_workspace(call)
            for workspace in (least, 2 * least, 5 * least) if lib.name == "numpy" else (6 * least,):
                with xconv.config(workspace=workspace):
                    np.testing.assert_array_equal(lib.numpy(call()), whole, err_msg=function)


def least_workspace(call):
    try:
        with xconv.config(workspace=1):
            call()
    except ValueError as error:
        return int(str(error).split("at least ")[1].split(" ")[0])
    return 1


def test_any_geometry(lib):
    if lib.module_is("jax"):
        pytest.skip("it compiles every new shape")

    @lib.examples(25)
    @given(case=cases(), limit=st.sampled_from([1, 1000]), workspace=st.sampled_from([None, 2**17]))
    def check(case, limit, workspace):
        shape, kernel = (case.x_shape[0], 2, *case.x_shape[2:]), case.w_shape[2:]
        options = {name: case.options[name] for name in ("stride", "padding", "dilation")}
        oracle = Pool(shape, kernel, **options)
        x, dy = case.integers(shape, oracle.y_shape, limit=limit)
        with xconv.config(workspace=workspace):
            check_max(lib, x, dy, oracle, kernel, options, case.layout)
            options["layout"] = case.layout
            x_, dy_ = lib.array(case.in_layout(x)), lib.array(case.in_layout(dy))
            bound = 1e3 * 1e3 * np.finfo(lib.real).eps
            lib.check(xconv.avg_pool(x_, kernel, **options), case.in_layout(oracle.avg(x)), bound=bound)
            dx = xconv.avg_pool_grad(dy_, x_.shape, kernel, **options)
            lib.check(dx, case.in_layout(oracle.avg_grad(dy)), bound=bound)

    check()


X, COMPLEX = np.ones((2, 3, 6, 7)), np.ones((1, 1, 4), complex)
DY = np.ones((2, 3, 3, 3))
BAD = {
    "list": (lambda: xconv.max_pool([[[1.0]]], 1), TypeError, "`x` must be an array"),
    "ranks": (lambda: xconv.max_pool(X[0, 0], 2), ValueError, "`x` must have a batch, a channel and at least one"),
    "ranks with channels last": (
        lambda: xconv.avg_pool(X[0, 0], 2, layout="channels_last"),
        ValueError,
        "write `x[None, ..., None]` for one image",
    ),
    "rank of a shape": (lambda: xconv.avg_pool_grad(DY, (3, 4), 2), ValueError, "`x_shape` must have a batch"),
    "shape": (lambda: xconv.avg_pool_grad(DY, (2, 3, -6, 7), 2), ValueError, "`x_shape` must be a sequence"),
    "kernel": (
        lambda: xconv.max_pool(X, (2, 2, 2)),
        ValueError,
        "`kernel_size` must have one value per spatial axis (2)",
    ),
    "no kernel": (lambda: xconv.max_pool(X, (2, 0)), ValueError, "`kernel_size` must be at least 1 on every axis"),
    "half a kernel": (lambda: xconv.max_pool(X, 2.5), TypeError, "`kernel_size` must be made of integers"),
    "large kernel": (lambda: xconv.max_pool(X, 7), ValueError, "the dilated kernel must fit into the padded input"),
    "stride": (lambda: xconv.avg_pool(X, 2, stride=0), ValueError, "`stride` must be at least 1"),
    "padding": (lambda: xconv.avg_pool(X, 2, padding="full"), ValueError, "`padding` must be"),
    "dilation": (lambda: xconv.max_pool(X, 2, dilation=(1,)), ValueError, "`dilation` must have one value"),
    "layout": (lambda: xconv.max_pool(X, 2, layout="NHWC"), ValueError, "`layout` must be"),
    "no layout": (lambda: xconv.max_pool(X, 2, layout=None), TypeError, "`layout` must be a string, got None"),
    "complex": (
        lambda: xconv.max_pool(COMPLEX, 2),
        TypeError,
        "`max_pool` takes integers and real numbers, got `x` complex128: take the real part, or the magnitude",
    ),
    "complex gradient": (lambda: xconv.max_pool_grad(COMPLEX[..., :2], COMPLEX, 2), TypeError, "`max_pool_grad` takes"),
    "integers": (
        lambda: xconv.avg_pool(np.ones((1, 1, 4), np.int32), 2),
        TypeError,
        "`avg_pool` takes real and complex floating-point numbers, got `x` int32: convert to float32, for example",
    ),
    "integer gradient": (lambda: xconv.avg_pool_grad(DY.astype(int), X.shape, 2), TypeError, "got `dy` int64"),
    "booleans": (lambda: xconv.max_pool(X > 0, 2), TypeError, "arrays must be of an integer, real or complex"),
    "mixed": (lambda: xconv.max_pool_grad(DY, X.astype(int), 2), TypeError, "do not mix, got `dy` float64, `x` int64"),
    "gradient": (
        lambda: xconv.max_pool_grad(X, X, 2),
        ValueError,
        "`dy` must have the shape of the result, (2, 3, 3, 3)",
    ),
    "gradient of the mean": (lambda: xconv.avg_pool_grad(X, X.shape, 2), ValueError, "`dy` must have the shape of the"),
    "count": (
        lambda: xconv.avg_pool(X, 2, count_include_pad=1),
        TypeError,
        "`count_include_pad` must be True or False",
    ),
    "nothing to count": (
        lambda: xconv.avg_pool(X, 2, padding=2, count_include_pad=False),
        ValueError,
        "`padding` must leave an element in every window that does not count it, got 2 for kernels of size (2, 2)",
    ),
    "memory": (lambda: xconv.max_pool(X, 1, padding=2**22), MemoryError, "the result must fit into memory"),
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.numpy_only
def test_nan_is_found_without_a_warning(rng):
    """Also where all of a window are."""
    x = np.full((1, 1, 5), np.nan)
    assert np.isnan(xconv.max_pool(x, 3, stride=1)).all()
    assert np.array_equal(xconv.max_pool_grad(np.ones((1, 1, 3)), x, 3, stride=1), [[[1.0, 1, 1, 0, 0]]])


@pytest.mark.numpy_only
@pytest.mark.parametrize(("size", "kernel"), [(4000, 1500), (2900, 1025), (40, 1100)])
@pytest.mark.parametrize("stride", [1, 700, 1500])
def test_windows_of_many_taps(rng, size, kernel, stride):
    """They are taken one by one; the numbers of their taps do not fit into a byte."""
    x = rng.integers(-9, 10, (1, 2, size)).astype(float)
    options = {"stride": stride, "padding": 600}
    filled = np.pad(x, ((0, 0), (0, 0), (600, 600)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(filled, kernel, 2)[:, :, ::stride]
    y = xconv.max_pool(x, kernel, **options)
    assert np.array_equal(y, windows.max(-1))
    means = np.where(np.isfinite(windows), windows, 0).sum(-1) / kernel
    np.testing.assert_allclose(xconv.avg_pool(x, kernel, **options), means, atol=1e-12)
    dy = rng.integers(1, 9, y.shape).astype(float)
    dx, shares = np.zeros_like(filled), np.zeros_like(filled)
    for o, first in enumerate(windows.argmax(-1).reshape(2, -1).T):
        for c, at in enumerate(first):
            dx[0, c, o * stride + at] += dy[0, c, o]
        shares[:, :, o * stride : o * stride + kernel] += dy[:, :, o : o + 1] / kernel
    assert np.array_equal(xconv.max_pool_grad(dy, x, kernel, **options), dx[:, :, 600:-600])
    back = xconv.avg_pool_grad(dy, x.shape, kernel, **options)
    np.testing.assert_allclose(back, shares[:, :, 600:-600], atol=1e-12)


@pytest.mark.numpy_only
def test_nothing_takes_longer_than_what_is_there():
    """However long windows and padding are: no step of a plan or a call visits every tap."""
    x, far = np.arange(10.0).reshape(1, 1, 10), {"padding": 10**9}
    begin = time.process_time()
    assert xconv.max_pool(x, 10**9, **far).tolist() == [[[-np.inf, 9]]]
    assert xconv.avg_pool(x, 10**9, **far)[0, 0, 1] == 45 / 10**9
    seen = {"padding": 10**9 - 5, "count_include_pad": False}
    assert xconv.avg_pool(x, 10**9, **seen).tolist() == [[[2, 7]]]
    with pytest.raises(ValueError, match="must leave an element in every window"):
        xconv.avg_pool(x, 10**9, **far, count_include_pad=False)
    images = np.ones((2, 64, 112, 112), np.float32)
    assert xconv.avg_pool_grad(xconv.avg_pool(images, 112), images.shape, 112).shape == images.shape
    assert time.process_time() - begin < 1
