"""NumPy's products in pieces: the same sums, whatever the pieces are and however the operands lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases
from test_fuzz import check_geometry

import xconv
from xconv._planner import scheduled
from xconv.backends.numpy import _products as products


@pytest.fixture
def pieces(monkeypatch):
    """Products are cut up on any processor; the shapes of the pieces, with the depth behind."""
    made, matmul = [], np.matmul

    def noted(u, v, out):
        made.append((*out.shape[-2:], u.shape[-1]))
        return matmul(u, v, out=out)

    monkeypatch.setattr(products.np, "matmul", noted)
    monkeypatch.setattr(products, "in_pieces", lambda: True)
    forget()
    yield made
    forget()


@pytest.fixture
def tiny(pieces, monkeypatch):
    """Into pieces of a few elements."""
    for name, value in {"SMALL": 60, "COLUMNS": 4, "MOST_COLUMNS": 8, "LEAST_ROWS": 2}.items():
        monkeypatch.setattr(products, name, value)
    return pieces


def forget():
    products._piece.cache_clear()
    scheduled.cache_clear()


def integers(rng, shape, *, turned):
    """Small ones, in rows or in columns."""
    made = rng.integers(-9, 10, (*shape[:-2], shape[-1], shape[-2]) if turned else shape).astype(np.float32)
    return made.mT if turned else made


@pytest.mark.numpy_only
def test_any_product(lib, tiny):
    length, turned = st.integers(0, 30), st.booleans()

    @lib.examples(4)
    @given(rows=length, depth=st.integers(0, 9), columns=length, blocks=st.integers(1, 2), by=st.tuples(*[turned] * 3))
    def check(rows, depth, columns, blocks, by):
        rng = np.random.default_rng(rows + 31 * depth + 997 * columns)
        shapes = (blocks, rows, depth), (3, blocks, depth, columns), (3, blocks, rows, columns)
        u, v, out = (integers(rng, shape, turned=t) for shape, t in zip(shapes, by, strict=True))
        tiny.clear()
        assert products.multiply(u, v, out) is out
        assert np.array_equal(out, u @ v)
        if rows > 3 and 2 < depth < 8:  # two rows of four columns are within the limit
            assert max(map(np.prod, tiny)) <= products.SMALL or len(tiny) > 1

    check()


@pytest.mark.numpy_only
def test_any_geometry(lib, tiny):
    @lib.examples(4)
    @given(case=cases())
    def check(case):
        with xconv.config(numerics="strict"):
            check_geometry(lib, case)

    check()


def test_winograd(tiny, rng):
    x, w = rng.random((2, 6, 9, 8)), rng.random((4, 3, 3, 3))
    options = {"groups": 2, "padding": 1}
    y = xconv.conv(x, w, **options, algorithm="winograd")
    np.testing.assert_allclose(y, xconv.conv(x, w, **options, algorithm="gemm"), rtol=1e-12)
    dx = xconv.conv_input_grad(y, w, x.shape, **options, algorithm="winograd")
    np.testing.assert_allclose(dx, xconv.conv_input_grad(y, w, x.shape, **options, algorithm="gemm"), rtol=1e-12)


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "expected"),
    [
        (64, 147, 12544, [(64, 64, 147)]),
        (64, 576, 3136, [(21, 64, 576), (1, 3136, 576)]),
        (32, 27, 16384, [(32, 1024, 27)]),
        (128, 1152, 28, [(25, 28, 1152), (3, 28, 1152)]),
        (64, 64, 196, [(64, 196, 64)]),  # small as it is
        (3, 576, 3136, [(3, 3136, 576)]),  # too few rows
        (512, 4608, 784, [(512, 784, 4608)]),  # too few would fit
        (512, 128, 784, [(512, 784, 128)]),  # many rows and long sums: copied once, read many times
        (512, 64, 1024, [(170, 64, 64), (2, 1024, 64)]),  # short sums
    ],
)
def test_pieces(pieces, rows, depth, columns, expected):
    products.multiply(*(np.zeros(shape, np.float32) for shape in ((rows, depth), (depth, columns), (rows, columns))))
    assert pieces == expected


def test_other_numbers_stay_whole(pieces):
    for dtype in (np.complex64, np.int64):
        products.multiply(*(np.zeros(shape, dtype) for shape in ((64, 200), (200, 500), (64, 500))))
    assert pieces == [(64, 500, 200)] * 2


@pytest.mark.parametrize(
    ("x", "w", "stride", "with_small_products", "without"),
    [
        ((8, 4, 64, 64), (4, 4, 9, 9), 1, "mec", "mec"),
        ((8, 3, 224, 224), (64, 3, 7, 7), 2, "mec", "gemm"),
        ((8, 32, 14, 14), (32, 32, 3, 3), 1, "mec", "gemm"),  # short rows
        ((8, 128, 28, 28), (128, 128, 3, 3), 1, "gemm", "gemm"),
        ((5, 1, 10, 10), (20, 1, 3, 3), 1, "gemm", "gemm"),
        ((1, 1, 32, 32), (16, 1, 3, 3), 1, "gemm", "gemm"),  # too small for so many calls
        ((8, 128, 28, 28), (128, 1, 3, 3), 1, "mec", "depthwise"),
        ((8, 128, 7, 7), (128, 1, 3, 3), 1, "depthwise", "depthwise"),
    ],
)
def test_what_is_chosen(monkeypatch, x, w, stride, with_small_products, without):
    options = {"stride": stride, "padding": w[-1] // 2, "groups": x[1] // w[1]}
    for small, expected in ((True, with_small_products), (False, without)):
        monkeypatch.setattr(products, "in_pieces", lambda small=small: small)
        forget()
        with xconv.config(numerics="strict"):
            assert xconv.plan(*(np.zeros(shape, np.float32) for shape in (x, w)), **options).algorithm == expected
    forget()


def test_only_where_small_products_are(monkeypatch):
    class Library:
        internal_api, architecture = "openblas", "SkylakeX"

    def found(*libraries):
        products.in_pieces.cache_clear()
        monkeypatch.setattr(products._threads, "blas_libraries", lambda: list(libraries))
        return products.in_pieces()

    other, mkl = Library(), Library()
    other.architecture, mkl.internal_api = "Haswell", "mkl"
    assert found(Library())
    assert not any(found(*libraries) for libraries in ((), (other,), (mkl,), (Library(), other)))
    products.in_pieces.cache_clear()
