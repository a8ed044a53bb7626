"""Stacks of matrix products by cuBLAS, which CuPy's own matmul does not offer in this generality.

Half types stay half on the way in, are summed in float32, and come out as either; TF32 is used when asked for and not
otherwise; operands and results may lie in memory row by row or column by column, and are neither copied nor moved.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import cupy
import numpy as np

from ..._typing import Array
from ._lines import WIDEST
from ._steps import CLEAR, COPY, SUM, Doer, Places, Pointers, each, ordered

#: By dtype: the names of cuBLAS's data type and of the type it computes in, and the dtype of its factors.
TYPES = {
    "float16": ("CUDA_R_16F", "CUBLAS_COMPUTE_32F", "float32"),
    "bfloat16": ("CUDA_R_16BF", "CUBLAS_COMPUTE_32F", "float32"),
    "float32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F", "float32"),
    "float64": ("CUDA_R_64F", "CUBLAS_COMPUTE_64F", "float64"),
    "complex64": ("CUDA_C_32F", "CUBLAS_COMPUTE_32F", "complex64"),
    "complex128": ("CUDA_C_64F", "CUBLAS_COMPUTE_64F", "complex128"),
}
#: cuBLAS takes steps from row to row as 32-bit integers.
LONGEST_STEP = 2**31 - 1
#: Its mode in which sums of half types that it splits are not added in half precision; nor is float32 made TF32.
EXACT_SUMS = 16


@dataclass(frozen=True, slots=True)
class Product:
    """One call of cuBLAS: what it is handed but for the handle, and where `b`, `a` and the result begin."""

    sizes: tuple[int, ...]
    one: int
    b: tuple[int, ...]
    a: tuple[int, ...]
    start: int
    out: tuple[int, ...]
    how: tuple[int, ...]

    def __call__(self, pointers: Pointers, places: Places) -> None:
        a, b, out = (pointers[block].ptr + at for block, at in places)
        cublas, handle = _cublas(), cupy.cuda.device.get_cublas_handle()
        arguments = (self.one, b, *self.b, a, *self.a, self.start, out, *self.out)
        callers_mode = cublas.getMathMode(handle)
        cublas.setMathMode(handle, EXACT_SUMS)
        try:
            cublas.gemmStridedBatchedEx(handle, *self.sizes, *arguments, *self.how)
        finally:
            cublas.setMathMode(handle, callers_mode)


def gemm(do: Doer, a: Array, b: Array, out: Array, *, tf32: bool, add: bool = False) -> None:
    """``out = a @ b`` for stacks ``(batch, m, k)`` and ``(batch, k, n)``; with `add`, ``out += a @ b``.

    An operand of one matrix serves the whole stack. All of it is one call.
    """
    if out.size == 0:
        return
    if _leading(out) is None:  # column by column: the transposed product is row by row
        a, b, out = b.swapaxes(1, 2), a.swapaxes(1, 2), out.swapaxes(1, 2)
    if _leading(out) is None or _is_askew(out):
        made = ordered(do, out.shape, out.dtype, (0, 1, 2), line=1)
        gemm(do, a, b, made, tf32=tf32)
        each(do, SUM, out, made, out) if add else each(do, COPY, made, out)
    elif a.shape[-1] == 0:
        if not add:
            each(do, CLEAR, out)
    else:
        a, b = (_taken(do, x) for x in (a, b))
        do.perform(_product(a, b, out, tf32=tf32, add=add), a, b, out)


def _taken(do: Doer, x: Array) -> Array:
    """An operand as cuBLAS takes it."""
    if (_leading(x) or _leading(x.swapaxes(1, 2))) and x.strides[0] >= 0 and not _is_askew(x):
        return x
    return each(do, COPY, x, ordered(do, x.shape, x.dtype, (0, 1, 2), line=1))


def _is_askew(x: Array) -> bool:
    """Whether matrices of a stack do not begin at multiples of 16 bytes: cuBLAS refuses some shapes of half types."""
    return x.itemsize == 2 and len(x) > 1 and (x.data.ptr % WIDEST != 0 or x.strides[0] % WIDEST != 0)


def _product(a: Array, b: Array, out: Array, *, tf32: bool, add: bool) -> Product:
    """The call: matrices go column by column there, where each of ours is its own transpose."""
    cublas, runtime = _cublas(), cupy.cuda.runtime
    kind, compute, factors = TYPES[a.dtype.name]
    if tf32 and compute == "CUBLAS_COMPUTE_32F" and a.itemsize > 2:
        compute = "CUBLAS_COMPUTE_32F_FAST_TF32"
    operands: list[tuple[int, ...]] = []
    transposed: list[int] = []
    for x, name in ((b, kind), (a, kind), (out, TYPES[out.dtype.name][0])):
        leading = _leading(x)
        transposed.append(cublas.CUBLAS_OP_N if leading else cublas.CUBLAS_OP_T)
        leading = leading or _leading(x.swapaxes(1, 2)) or 0
        step = x.strides[0] // x.itemsize if len(x) > 1 else 0
        operands.append((getattr(runtime, name), leading, step))
    one, start = _factor(factors, 1), _factor(factors, int(add))
    return Product(
        (*transposed[:2], out.shape[2], out.shape[1], a.shape[2]),
        one.ctypes.data,
        operands[0],
        operands[1],
        start.ctypes.data,
        operands[2],
        (len(out), getattr(cublas, compute), cublas.CUBLAS_GEMM_DEFAULT),
    )


@cache
def _factor(dtype: str, value: int) -> Any:
    """A number that cuBLAS reads from the memory of the host, which is kept."""
    return np.array(value, dtype)


def _leading(x: Array) -> int | None:
    """Elements from one row of each matrix to the next; None unless rows are contiguous, apart, and not too far."""
    _, rows, columns = x.shape
    row, column = (int(stride) // int(x.itemsize) for stride in x.strides[1:])
    if columns > 1 and column != 1:
        return None
    if rows == 1:
        return int(max(1, columns))
    return row if max(1, columns) <= row <= LONGEST_STEP else None


@cache
def _cublas() -> Any:
    """CuPy's binding, which loads the library."""
    try:
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:
        msg = "CuPy finds no cuBLAS, which comes with the CUDA toolkit, or with CuPy as `cupy-cuda13x[ctk]`"
        raise RuntimeError(msg) from error
    return cublas
