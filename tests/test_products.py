"""NumPy's products: the same sums, however the operands lie; and what is chosen by what the BLAS has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xconv
from xconv._planner import scheduled
from xconv.backends.numpy import NumpyBackend
from xconv.backends.numpy import _products as products

#: The axes ``(n, blocks, rows, pixels)`` in the order in which they lie in memory.
ORDERS = [(0, 1, 2, 3), (0, 3, 1, 2), (1, 0, 3, 2), (1, 2, 0, 3), (0, 2, 3, 1), (2, 3, 0, 1)]


def forget():
    scheduled.cache_clear()


def lying(rng, shape, order, dtype, *, apart):
    """Small integers in memory of this order; images that lie `apart` are every second one."""
    full = (2 * shape[0], *shape[1:]) if apart else shape
    made = rng.integers(-9, 10, [full[axis] for axis in order]).astype(dtype)
    if made.dtype.kind == "c":
        made += 1j * rng.integers(-9, 10, made.shape).astype(made.real.dtype)
    made = made.transpose([order.index(axis) for axis in range(4)])
    return made[::2] if apart else made


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_any_product(lib, dtype):
    length, order, apart = st.integers(1, 6), st.sampled_from(ORDERS), st.booleans()

    @lib.examples(6)
    @given(
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), length, length, st.sampled_from([1, 2, 9, 60, 3000])),
        orders=st.tuples(order, order, order),
        apart=st.tuples(apart, apart, apart),
        lands=st.booleans(),
    )
    def check(sizes, orders, apart, lands):
        (n, blocks, rows, depth, pixels), backend = sizes, NumpyBackend()
        rng = np.random.default_rng(sum(sizes))
        u = lying(rng, (1, blocks, rows, depth), (0, 1, 2, 3), dtype, apart=False)[0]
        v = lying(rng, (n, blocks, depth, pixels), orders[0], dtype, apart=apart[0])
        s = lying(rng, (n, blocks, rows, pixels), orders[1], dtype, apart=apart[1])
        out = lying(rng, (n, blocks, rows, pixels), orders[2], dtype, apart=apart[2]) if lands else None
        kept = v.copy(), s.copy()
        assert np.array_equal(backend.product(u, v, out), np.einsum("bij,nbjp->nbip", u, v))
        assert np.array_equal(backend.outer(s, v), np.einsum("nbip,nbjp->bij", s, v.conj()))
        assert all(np.array_equal(one, other) for one, other in zip((v, s), kept, strict=True))

    check()


def test_reflected_filters_lie_forwards(rng):
    u, v = rng.integers(-9, 10, (2, 3, 4)) * 1.0, rng.integers(-9, 10, (2, 4, 5)) * 1.0
    for turned in (u[:, ::-1], u[..., ::-1]):
        out = np.empty((2, 3, 5))
        assert products.multiply(turned, v, out) is out
        assert np.array_equal(out, turned @ v)


@pytest.mark.parametrize(
    ("x", "w", "stride", "with_small_products", "without"),
    [
        ((8, 4, 64, 64), (4, 4, 9, 9), 1, "mec", "mec"),
        ((8, 3, 224, 224), (64, 3, 7, 7), 2, "mec", "gemm"),
        ((8, 32, 14, 14), (32, 32, 3, 3), 1, "mec", "gemm"),  # short rows
        ((8, 128, 28, 28), (128, 128, 3, 3), 1, "gemm", "gemm"),
        ((5, 1, 10, 10), (20, 1, 3, 3), 1, "gemm", "gemm"),
        ((1, 1, 32, 32), (16, 1, 3, 3), 1, "gemm", "gemm"),  # too small for so many calls
        ((8, 128, 20, 20), (128, 1, 3, 3), 1, "mec", "depthwise"),
        ((8, 128, 7, 7), (128, 1, 3, 3), 1, "depthwise", "depthwise"),
    ],
)
def test_what_is_chosen(monkeypatch, x, w, stride, with_small_products, without):
    options = {"stride": stride, "padding": w[-1] // 2, "groups": x[1] // w[1]}
    for small, expected in ((True, with_small_products), (False, without)):
        monkeypatch.setattr(products, "has_small", lambda small=small: small)
        forget()
        with xconv.config(numerics="strict"):
            assert xconv.plan(*(np.zeros(shape, np.float32) for shape in (x, w)), **options).algorithm == expected
    forget()


def test_only_where_small_products_are(monkeypatch):
    class Library:
        internal_api, architecture = "openblas", "SkylakeX"

    def found(*libraries):
        products.has_small.cache_clear()
        monkeypatch.setattr(products._threads, "blas_libraries", lambda: list(libraries))
        return products.has_small()

    other, mkl = Library(), Library()
    other.architecture, mkl.internal_api = "Haswell", "mkl"
    assert found(Library())
    assert not any(found(*libraries) for libraries in ((), (other,), (mkl,), (Library(), other)))
    products.has_small.cache_clear()
