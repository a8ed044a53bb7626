"""What only some libraries need of the backends, with NumPy in their place."""

import re
from types import SimpleNamespace

import array_api_compat
import numpy as np
import pytest

import xconv
from xconv import backends
from xconv._planner import scheduled
from xconv.backends.jax import JaxBackend
from xconv.backends.numpy import NumpyBackend
from xconv.primitives import device

pytestmark = pytest.mark.numpy_only


class LikeJax:
    """NumPy with the option that products have in JAX."""

    __name__ = "jax.numpy"

    def __init__(self):
        self.precisions = set()

    def __getattr__(self, name):
        return getattr(np, name)

    def matmul(self, u, v, *, precision):
        self.precisions.add(precision)
        return np.matmul(u, v)


@pytest.fixture
def like_jax(monkeypatch):
    namespace = LikeJax()
    monkeypatch.setattr(backends, "_by_type", {})
    monkeypatch.setattr(backends, "_by_namespace", {})
    monkeypatch.setattr(array_api_compat, "is_numpy_array", lambda _: False)
    monkeypatch.setattr(array_api_compat, "is_jax_array", lambda _: True)
    monkeypatch.setattr(array_api_compat, "array_namespace", lambda *_: namespace)
    # What these two ask JAX itself.
    monkeypatch.setattr(JaxBackend, "common", backends.Backend.common)
    monkeypatch.setattr("xconv.backends.jax._backend.staged", lambda: False)
    return namespace


def results(x, w, dy, **options):
    yield xconv.conv(x, w, **options)
    yield xconv.conv_input_grad(dy, w, x.shape, **options)
    yield xconv.conv_weight_grad(dy, x, w.shape, **options)


@pytest.mark.parametrize(("precision", "name"), [("ieee", "highest"), ("tf32", "tensorfloat32")])
def test_tiles_are_joined_and_products_ask_for_precision(rng, like_jax, monkeypatch, precision, name):
    x, w = rng.integers(-4, 5, (2, 3, 20, 17)) * 1.0, rng.integers(-4, 5, (4, 3, 3, 2)) * 1.0
    dy = rng.integers(-4, 5, (2, 4, 9, 16)) * 1.0
    with xconv.config(precision=precision, workspace=40_000):
        assert xconv.plan(x, w, stride=(2, 1)).tiles > 4
        found = list(results(x, w, dy, stride=(2, 1), algorithm="gemm"))
    assert like_jax.precisions == {name}
    monkeypatch.undo()
    for one, other in zip(found, results(x, w, dy, stride=(2, 1), algorithm="gemm"), strict=True):
        assert np.array_equal(one, other)


def test_columns_with_the_kernel_before_the_channels(rng, monkeypatch):
    x, w = rng.integers(-4, 5, (2, 9, 8, 3)) * 1.0, rng.integers(-4, 5, (4, 3, 3, 2)) * 1.0
    dy = rng.integers(-4, 5, (2, 4, 7, 4)) * 1.0
    options = {"stride": (2, 1), "layout": "channels_last", "algorithm": "gemm"}
    expected = list(results(x, w, dy, **options))
    scheduled.cache_clear()
    monkeypatch.setattr(NumpyBackend, "taps_first", lambda _, g: not g.channels_last)
    for one, other in zip(results(x, w, dy, **options), expected, strict=True):
        assert np.array_equal(one, other)


def test_what_has_not_been_measured_is_chosen_by_name_only(monkeypatch):
    x, w = np.ones((8, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
    assert xconv.plan(x, w).algorithm == "winograd"
    scheduled.cache_clear()
    monkeypatch.setattr(NumpyBackend, "unproven", frozenset({"winograd"}))
    plan = xconv.plan(x, w)
    others = [c.name for c in plan.candidates if c.refusal is None and c.name != "winograd"]
    assert plan.algorithm == others[0]
    assert re.search(
        r"  winograd +predicted cost .*; it has not been found to be fast on numpy; ask for it by name", repr(plan)
    )
    assert xconv.plan(x, w, algorithm="winograd").algorithm == "winograd"
    scheduled.cache_clear()


def test_only_what_threads_share_is_cut_for_them():
    x, w = np.ones((8, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
    alone = pytest.importorskip("array_api_strict")
    assert xconv.plan(x, w).tiles % 2 == 0
    images, filters = np.ones((15, 128, 28, 28), np.float32), np.ones((64, 128, 1, 1), np.float32)
    assert xconv.plan(images, filters).tiles == 2  # of three, one thread would wait for the other
    assert xconv.plan(alone.asarray(x), alone.asarray(w)).tiles == 1


@pytest.mark.parametrize("attributes", [{"layout": "torch.sparse_coo"}, {"layout": "torch.strided", "is_nested": True}])
def test_only_dense_arrays(attributes):
    with pytest.raises(TypeError, match=r"`x` must be a dense array, got (one of layout|a nested one)"):
        backends.Backend(np).of({"x": SimpleNamespace(**attributes, device=None)})


def test_only_sizes_in_numbers():
    with pytest.raises(TypeError, match=r"`x` must have sizes in numbers, got shape \('n', 3\): export"):
        backends.Backend(np).shape("x", SimpleNamespace(shape=("n", 3)))


def test_libraries_that_do_not_tell_the_device():
    assert device(SimpleNamespace()) is None


def test_what_cannot_be_read_is_not_timed():
    class Traced:
        dtype, ndim = np.dtype(float), 2

        def __getitem__(self, index):
            return "no number"[: len(index)]

    assert NumpyBackend().seconds(lambda: np.ones((2, 3)), 2) > 0
    with pytest.raises(ValueError, match="could not convert"):
        NumpyBackend().seconds(Traced, 1)
    Traced.__getitem__ = lambda self, index: self
    assert NumpyBackend().seconds(Traced, 1) is None
