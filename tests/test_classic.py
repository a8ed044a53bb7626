"""The classic four: shapes, order of the columns and values of the tutorial, and its gradients."""

import tracemalloc

import numpy as np
import pytest

import xconv

pytestmark = pytest.mark.usefixtures("exact")


def naive_columns(X, kh, kw, padding, stride):
    """One column per window, written out: rows in the order C, HF, WF; columns in the order H', W', D."""
    X = np.pad(X, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    oh, ow = (X.shape[2] - kh) // stride + 1, (X.shape[3] - kw) // stride + 1
    columns = [
        X[d, :, i * stride : i * stride + kh, j * stride : j * stride + kw].ravel()
        for i in range(oh)
        for j in range(ow)
        for d in range(len(X))
    ]
    return np.array(columns).T


def test_the_tutorials_example(lib, rng):
    X = rng.integers(-5, 6, (5, 1, 10, 10)).astype(float)
    cols = xconv.im2col_indices(lib.array(X), 3, 3, padding=1, stride=1)
    assert cols.shape == (9, 500)
    lib.check(cols, naive_columns(X, 3, 3, 1, 1), dtype=lib.real)


@pytest.mark.parametrize(("kh", "kw", "padding", "stride"), [(3, 3, 1, 1), (2, 3, 0, 1), (3, 1, 1, 2), (1, 3, 0, 2)])
def test_columns_and_back(lib, rng, kh, kw, padding, stride):
    X = rng.integers(-5, 6, (3, 2, 7, 9)).astype(float)
    expected = naive_columns(X, kh, kw, padding, stride)
    lib.check(xconv.im2col_indices(lib.array(X), kh, kw, padding, stride), expected)
    cols = rng.integers(-5, 6, expected.shape).astype(float)
    back = xconv.col2im_indices(lib.array(cols), X.shape, kh, kw, padding, stride)
    assert back.shape == X.shape
    assert np.vdot(cols, expected) == np.vdot(lib.numpy(back), X)


@pytest.mark.numpy_only
def test_columns_are_written_once_and_read_where_they_are(rng):
    X = rng.standard_normal((16, 8, 20, 20))
    tracemalloc.start()
    try:
        cols = xconv.im2col_indices(X, 3, 3)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * cols.nbytes
        assert np.shares_memory(cols, cols.base)
        assert cols.base.nbytes == cols.nbytes
        for given in (cols, np.asfortranarray(cols), np.repeat(cols, 2, axis=1)[:, ::2]):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            back = xconv.col2im_indices(given, X.shape)
            assert tracemalloc.get_traced_memory()[1] - before < 0.5 * cols.nbytes
            assert np.allclose(back, xconv.col2im_indices(cols, X.shape))
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bias", [(4, 1), (4,)])
def test_layer(lib, rng, bias):
    X, W, b = (rng.integers(-3, 4, s).astype(float) for s in ((5, 2, 7, 8), (4, 2, 3, 2), bias))
    X_, W_, b_ = (lib.array(a) for a in (X, W, b))
    out, cache = xconv.conv_forward(X_, W_, b_, stride=1, padding=1)
    columns = naive_columns(X, 3, 2, 1, 1)
    product = W.reshape(4, -1) @ columns + b.reshape(4, 1)
    expected = product.reshape(4, 7, 9, 5).transpose(3, 0, 1, 2)
    lib.check(out, expected, dtype=lib.real)
    dout = rng.integers(-3, 4, expected.shape).astype(float)
    dX, dW, db = xconv.conv_backward(lib.array(dout), cache)
    rows = dout.transpose(1, 2, 3, 0).reshape(4, -1)
    lib.check(dW, (rows @ columns.T).reshape(W.shape), dtype=lib.real)
    lib.check(db, rows.sum(axis=1).reshape(bias), dtype=lib.real)
    expected_dX = lib.numpy(xconv.col2im_indices(lib.array(W.reshape(4, -1).T @ rows), X.shape, 3, 2))
    lib.check(dX, expected_dX, dtype=lib.real)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("columns", [(), (None,), (np.zeros((18, 18)),)], ids=["without", "none", "with"])
def test_caches_of_other_code(lib, rng, kind, columns):
    """The published function returns its columns, too: (X, W, b, stride, padding, X_col)."""
    X, W, b, dout = (lib.array(rng.integers(-3, 4, s)) for s in ((2, 2, 5, 5), (3, 2, 3, 3), (3, 1), (2, 3, 3, 3)))
    _, cache = xconv.conv_forward(X, W, b, stride=2)
    for found, expected in zip(
        xconv.conv_backward(dout, kind((*cache, *columns))), xconv.conv_backward(dout, cache), strict=True
    ):
        lib.check(found, lib.numpy(expected))


def test_defaults_are_stride_1_and_padding_1(lib):
    X, W, b = lib.array(np.ones((1, 1, 4, 4))), lib.array(np.ones((1, 1, 3, 3))), lib.array(np.zeros((1, 1)))
    out, _ = xconv.conv_forward(X, W, b)
    assert out.shape == (1, 1, 4, 4)
    assert xconv.im2col_indices(X, 3, 3).shape == (9, 16)
    assert xconv.col2im_indices(xconv.im2col_indices(X, 3, 3), (1, 1, 4, 4)).shape == (1, 1, 4, 4)


def test_width_is_checked_with_the_width(lib):
    """The published code checks it with the filter's height, and refuses this."""
    X, W, b = np.ones((1, 1, 5, 4)), np.ones((1, 1, 3, 2)), np.zeros(1)
    out, _ = xconv.conv_forward(lib.array(X), lib.array(W), lib.array(b), stride=2, padding=0)
    lib.check(out, np.full((1, 1, 2, 2), 6.0))


@pytest.mark.numpy_only
def test_bias_gradient_sums_half_in_single():
    X, W, b = np.ones((5000, 2, 1, 1), np.float16), np.ones((2, 2, 1, 1), np.float16), np.zeros((2, 1), np.float16)
    out, cache = xconv.conv_forward(X, W, b, padding=0)
    _, _, db = xconv.conv_backward(np.ones_like(out), cache)
    assert db.dtype == np.float16
    assert np.all(db == np.float16(5000))


def test_integers_take_the_dtype_of_the_others(lib, rng):
    """As in the tutorial's own code, images of bytes meet filters of floats."""
    X, W, b = (rng.integers(0, 9, shape) for shape in ((2, 3, 5, 5), (4, 3, 3, 3), (4, 1)))
    given = lib.array(X, "uint8"), lib.array(W, "float32"), lib.array(b, "int64" if lib.has("int64") else "int32")
    out, cache = xconv.conv_forward(*given)
    whole = [lib.array(a, "float32") for a in (X, W, b)]
    expected, all_float = xconv.conv_forward(*whole)
    lib.check(out, lib.numpy(expected), dtype="float32")
    for gradient, same in zip(xconv.conv_backward(out, cache), xconv.conv_backward(out, all_float), strict=True):
        lib.check(gradient, lib.numpy(same), dtype="float32")
    columns, _ = xconv.conv_forward(*(lib.array(a, "int32") for a in (X, W, b)))
    lib.check(columns, lib.numpy(expected).astype(int), dtype="int32")


def test_gradients_have_the_dtypes_of_what_they_are_made_of(lib):
    """Those of other arrays do not matter; integers take that of the floating-point numbers beside them."""
    if not lib.has("float64"):
        pytest.skip("has one floating-point dtype")
    X, W, dout = np.ones((1, 1, 4, 4)), np.ones((2, 1, 3, 3)), np.ones((1, 2, 4, 4))
    for dtypes, expected in (
        (("float64", "float32", "float32"), ("float32", "float64", "float32")),
        (("uint8", "float32", "float32"), ("float32", "float32", "float32")),
        (("float32", "float32", "int32"), ("float32", "float32", "float32")),
        (("int16", "int16", "int32"), ("int32", "int32", "int32")),
    ):
        x, w, dy = (lib.array(a, dtype) for a, dtype in zip((X, W, dout), dtypes, strict=True))
        _, cache = xconv.conv_forward(x, w, lib.array(np.zeros((2, 1)), dtypes[1]))
        gradients = xconv.conv_backward(dy, cache)
        assert [g.dtype for g in gradients] == [lib.dtype(name) for name in expected]
