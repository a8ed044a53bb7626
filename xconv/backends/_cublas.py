"""Stacks of matrix products by cuBLAS, which CuPy's own matmul does not offer in this generality.

Half types stay half on the way in, are summed in float32, and come out as either; TF32 is used when asked for and not
otherwise; operands and results may lie in memory row by row or column by column, and are neither copied nor moved.
"""

from functools import cache
from typing import Any

import cupy
import numpy as np

from .._typing import Array

#: By dtype: the names of cuBLAS's data type and of the type it computes in, and the dtype of its factors.
TYPES = {
    "float16": ("CUDA_R_16F", "CUBLAS_COMPUTE_32F", "float32"),
    "bfloat16": ("CUDA_R_16BF", "CUBLAS_COMPUTE_32F", "float32"),
    "float32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F", "float32"),
    "float64": ("CUDA_R_64F", "CUBLAS_COMPUTE_64F", "float64"),
    "complex64": ("CUDA_C_32F", "CUBLAS_COMPUTE_32F", "complex64"),
    "complex128": ("CUDA_C_64F", "CUBLAS_COMPUTE_64F", "complex128"),
}
#: Half types in a stack must begin at multiples of so many bytes, or cuBLAS refuses some shapes of them.
HALF_ALIGNMENT = 16
#: cuBLAS takes steps from row to row as 32-bit integers.
LONGEST_STEP = 2**31 - 1


def gemm(a: Array, b: Array, out: Array, *, tf32: bool, add: bool = False) -> None:
    """``out = a @ b`` for stacks ``(batch, m, k)`` and ``(batch, k, n)``; with `add`, ``out += a @ b``.

    In `a` and `b`, one matrix may serve the whole stack (a step of 0).
    """
    if out.size == 0:
        return
    if _leading(out) is None:  # column by column: the transposed product is row by row
        a, b, out = b.swapaxes(1, 2), a.swapaxes(1, 2), out.swapaxes(1, 2)
    if _leading(out) is None:
        made = cupy.empty(out.shape, out.dtype)
        gemm(a, b, made, tf32=tf32)
        out[...] = out + made if add else made
        return
    if a.shape[-1] == 0:
        if not add:
            out.fill(0)
        return
    a, b = (x if _leading(x) or _leading(x.swapaxes(1, 2)) else x.copy() for x in (a, b))
    whole = all(x.itemsize > 2 or x.strides[0] % HALF_ALIGNMENT == 0 for x in (a, b, out))
    for part in (slice(None),) if whole else (slice(i, i + 1) for i in range(len(out))):
        _multiply(a[part], b[part], out[part], tf32=tf32, add=add)


def _multiply(a: Array, b: Array, out: Array, *, tf32: bool, add: bool) -> None:
    """One call of cuBLAS. It knows matrices column by column, where each of ours is its own transpose."""
    cublas, runtime = _cublas(), cupy.cuda.runtime
    kind, compute, factors = TYPES[a.dtype.name]
    if tf32 and compute == "CUBLAS_COMPUTE_32F" and a.itemsize > 2:
        compute = "CUBLAS_COMPUTE_32F_FAST_TF32"
    one, start = np.ones((), factors), np.array(1 if add else 0, factors)
    operands: list[Any] = []
    transposed: list[int] = []
    for x, name in ((b, kind), (a, kind), (out, TYPES[out.dtype.name][0])):
        leading = _leading(x)
        transposed.append(cublas.CUBLAS_OP_N if leading else cublas.CUBLAS_OP_T)
        leading = leading or _leading(x.swapaxes(1, 2))
        operands.append((x.data.ptr, getattr(runtime, name), leading, x.strides[0] // x.itemsize))
    cublas.gemmStridedBatchedEx(
        cupy.cuda.device.get_cublas_handle(),
        *transposed[:2],
        out.shape[2],
        out.shape[1],
        a.shape[2],
        one.ctypes.data,
        *operands[0],
        *operands[1],
        start.ctypes.data,
        *operands[2],
        len(out),
        getattr(cublas, compute),
        cublas.CUBLAS_GEMM_DEFAULT,
    )


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
