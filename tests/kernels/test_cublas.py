"""Stacks of products: what is handed to cuBLAS, checked by a cuBLAS of its own that works on host memory."""

import importlib
import itertools
import sys
from types import SimpleNamespace

import cupy
import numpy as np
import pytest

from kernels.blas import HostBlas
from xconv.backends.cupy import _cublas
from xconv.backends.cupy._steps import CLEAR, COPY, SUM, Each, Now


class HostArray(np.ndarray):
    """A NumPy array that says where it is as a CuPy array does."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class OnHost(Now):
    """Takes steps on arrays of NumPy."""

    def empty(self, shape, dtype):
        return host(shape, dtype, range(len(shape)))

    def perform(self, step, *arrays):
        if not isinstance(step, Each):
            step([a.data for a in arrays], tuple((i, 0) for i in range(len(arrays))))
        elif step.run is SUM:
            np.add(*arrays[:2], out=arrays[2])
        else:
            assert step.run in {COPY, CLEAR}
            arrays[-1][...] = arrays[0] if step.run is COPY else 0


def gemm(a, b, out, **options):
    _cublas.gemm(OnHost(), a, b, out, **options)


@pytest.fixture
def blas(monkeypatch):
    blas = HostBlas()
    monkeypatch.setattr(_cublas, "_cublas", lambda: blas)
    monkeypatch.setattr(cupy.cuda.device, "get_cublas_handle", lambda: blas.HANDLE)
    yield blas
    assert blas.mode == blas.callers_mode


def host(shape, dtype, order, rng=None):
    """An array whose axes lie in memory in this order, of small integers."""
    memory = np.zeros([shape[axis] for axis in order], dtype)
    a = memory.transpose([order.index(axis) for axis in range(len(shape))])
    if rng is not None:
        a[...] = rng.integers(-4, 5, shape)
        if a.dtype.kind == "c":
            a[...] += 1j * rng.integers(-4, 5, shape)
    return a.view(HostArray)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "f2"])
@pytest.mark.parametrize("orders", list(itertools.product([(0, 1, 2), (0, 2, 1), (1, 0, 2)], repeat=3)))
def test_every_memory_order(blas, orders, dtype):
    rng = np.random.default_rng(0)
    for batch, m, n, k in [(1, 3, 4, 5), (3, 2, 5, 4), (2, 1, 3, 2), (2, 3, 1, 2), (2, 3, 4, 1), (4, 8, 8, 16)]:
        a, b = host((batch, m, k), dtype, orders[0], rng), host((batch, k, n), dtype, orders[1], rng)
        out = host((batch, m, n), dtype, orders[2])
        gemm(a, b, out, tf32=False)
        assert np.array_equal(out, np.matmul(a, b))
        gemm(a, b, out, tf32=False, add=True)
        assert np.array_equal(out, 2 * np.matmul(a, b))


def test_no_cublas(monkeypatch):
    _cublas._cublas.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", None)
    monkeypatch.delitem(vars(importlib.import_module("cupy_backends.cuda.libs")), "cublas", raising=False)
    with pytest.raises(RuntimeError, match=r"^CuPy finds no cuBLAS, .* `cupy-cuda13x\[ctk\]`$"):
        _cublas._cublas()


def test_one_matrix_for_the_stack(blas):
    rng = np.random.default_rng(1)
    a, b = host((1, 3, 4), "f4", (0, 1, 2), rng), host((5, 4, 6), "f4", (0, 1, 2), rng)
    out = host((5, 3, 6), "f4", (0, 1, 2))
    gemm(a, b, out, tf32=False)
    assert np.array_equal(out, np.matmul(a, b))
    assert blas.calls == [(5, blas.CUBLAS_COMPUTE_32F)]


def test_halves_give_their_sum_in_float32(blas):
    a, b = host((1, 2, 3), "f2", (0, 1, 2)), host((1, 3, 2), "f2", (0, 1, 2))
    a[...], b[...] = 1000, 100
    out = host((1, 2, 2), "f4", (0, 1, 2))
    gemm(a, b, out, tf32=True)
    assert np.all(out == 300_000)  # beyond float16
    assert blas.calls == [(1, blas.CUBLAS_COMPUTE_32F)]


def test_rows_that_are_too_far_apart(blas, monkeypatch):
    """For cuBLAS to count the steps between them: operands are copied, and the result is put in its place."""
    monkeypatch.setattr(_cublas, "LONGEST_STEP", 50)
    blas.longest = 50
    rng = np.random.default_rng(3)
    for far in itertools.product([True, False], repeat=3):
        shapes = (2, 3, 4), (2, 4, 5), (2, 3, 5)
        wide = [
            host((n, rows, 100 if f else columns), "f4", (0, 1, 2), rng)
            for f, (n, rows, columns) in zip(far, shapes, strict=True)
        ]
        a, b, out = (array[..., :columns] for array, (_, _, columns) in zip(wide, shapes, strict=True))
        rest = wide[2][..., 5:].copy()
        gemm(a, b, out, tf32=False)
        assert np.array_equal(out, np.matmul(a, b))
        gemm(a, b, out, tf32=False, add=True)
        assert np.array_equal(out, 2 * np.matmul(a, b))
        assert np.array_equal(wide[2][..., 5:], rest)


@pytest.mark.parametrize("askew", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("tight", [True, False])
def test_halves_that_begin_anywhere_are_multiplied_at_once(blas, askew, tight):
    """What begins anywhere in a stack, or has such steps in it, is copied, and results are put in their place."""
    rng = np.random.default_rng(2)
    shapes = (3, 3, 5), (3, 5, 7), (3, 3, 7)
    made = []
    for each, shape in zip(askew, shapes, strict=True):
        size = shape[1] * shape[2] if each and tight else 40
        memory = host((1, 1, 8 + 3 * size), "f2", (0, 1, 2), rng)[0, 0, 8 - each :]  # at odd multiples of 2 bytes
        begin = -memory.ctypes.data % 16 // 2 + each
        memory = memory[begin:]
        made.append(np.lib.stride_tricks.as_strided(memory, shape, (2 * size, 2 * shape[2], 2), subok=True))
    a, b, out = made
    expected = np.matmul(a, b)
    gemm(a, b, out, tf32=False)
    assert np.array_equal(out, expected)
    gemm(a, b, out, tf32=False, add=True)
    assert np.array_equal(out, 2 * expected)
    assert [count for count, _ in blas.calls] == [3, 3]
    assert blas.askew == 0


def test_a_step_alone_may_be_askew(blas):
    """The first matrix lies as it must, and the second does not."""
    rng = np.random.default_rng(4)
    memory = host((1, 1, 64), "f2", (0, 1, 2), rng)[0, 0]
    memory = memory[-memory.ctypes.data % 16 // 2 :]
    a = np.lib.stride_tricks.as_strided(memory, (2, 3, 5), (30, 10, 2), subok=True)
    b, out = host((2, 5, 8), "f2", (0, 1, 2), rng), host((2, 3, 8), "f2", (0, 1, 2))
    gemm(a, b, out, tf32=False)
    assert np.array_equal(out, np.matmul(a, b))
    assert blas.askew == 0


def test_rows_that_overlap_and_stacks_in_reverse(blas):
    """What cuBLAS does with them is not said: they are copied."""
    rng = np.random.default_rng(5)
    line, b = host((2, 1, 4), "f4", (0, 1, 2), rng), host((2, 4, 5), "f4", (0, 1, 2), rng)
    overlapping = np.lib.stride_tricks.as_strided(line, (1, 3, 4), (16, 8, 4), subok=True)
    lines = np.broadcast_to(line, (2, 3, 4), subok=True)
    for a in (lines, np.broadcast_to(overlapping, (2, 3, 4), subok=True), host((2, 3, 4), "f4", (0, 1, 2), rng)[::-1]):
        out = host((2, 3, 5), "f4", (0, 1, 2))
        gemm(a, b, out, tf32=False)
        assert np.array_equal(out, np.matmul(a, b))


@pytest.mark.parametrize(("dtype", "tf32"), [("f4", True), ("c8", True), ("f8", False), ("c16", False)])
def test_tf32_is_for_32_bits_and_on_request(blas, dtype, tf32):
    a = host((1, 2, 2), dtype, (0, 1, 2))
    for asked in (True, False):
        gemm(a, a, host((1, 2, 2), dtype, (0, 1, 2)), tf32=asked)
    expected = blas.CUBLAS_COMPUTE_32F if tf32 else blas.CUBLAS_COMPUTE_64F
    assert [kind for _, kind in blas.calls] == [blas.CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else expected, expected]


def test_empty_sums_and_empty_results(blas):
    out = host((2, 3, 4), "f4", (0, 1, 2))
    out[...] = 7
    nothing = host((2, 3, 0), "f4", (0, 1, 2)), host((2, 0, 4), "f4", (0, 1, 2))
    gemm(*nothing, out, tf32=False, add=True)
    assert np.all(out == 7)
    gemm(*nothing, out, tf32=False)
    assert np.all(out == 0)
    gemm(
        host((2, 0, 5), "f4", (0, 1, 2)), host((2, 5, 4), "f4", (0, 1, 2)), host((2, 0, 4), "f4", (0, 1, 2)), tf32=False
    )
    assert not blas.calls
