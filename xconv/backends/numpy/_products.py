"""Matrix products in the pieces that NumPy's BLAS multiplies fastest.

For processors with AVX-512, OpenBLAS has a second way to multiply: up to a million multiply-adds, it reads its operands
where they lie, while any other product first copies both into an order of its own. Where the rows are a few filters, to
copy the columns takes as long as to multiply them. So a large product is faster in many small ones.
"""

from functools import cache, lru_cache

import numpy as np

from ..._typing import Array, DType
from . import _threads

#: The names that OpenBLAS gives to the processors for which it has small products.
PROCESSORS = {"skylakex", "cooperlake", "sapphirerapids"}
#: The most multiply-adds of one.
SMALL = 10**6
#: As many columns as fit into the registers at once, and the most that a piece has.
COLUMNS, MOST_COLUMNS = 64, 1024
#: With so many rows and so long sums, to pack both operands takes little of the time.
MANY_ROWS, MUCH_DEPTH = 256, 128
#: A piece with fewer rows reads its columns for too little work, and a product with fewer yet is left as it is.
LEAST_ROWS, FEWEST_ROWS = 8, 4


@cache
def in_pieces() -> bool:
    """Whether the BLAS that NumPy calls has small products."""
    found = _threads.blas_libraries()
    return bool(found) and all(
        library.internal_api == "openblas" and library.architecture.lower() in PROCESSORS for library in found
    )


def multiply(u: Array, v: Array, out: Array) -> Array:
    """``u @ v`` into `out`."""
    if u.strides[-1] < 0 or u.strides[-2] < 0:  # reflected filters: the BLAS reads forwards
        u = np.ascontiguousarray(u)
    (rows, depth), columns = u.shape[-2:], v.shape[-1]
    is_small = rows * depth * columns <= SMALL
    height, width = (rows, columns) if is_small or not in_pieces() else _piece(rows, depth, columns, v.dtype)
    if (height, width) == (rows, columns):
        return np.matmul(u, v, out=out)
    low, left = rows // height * height, columns // width * width
    pieces = _cut(_cut(out[..., :low, :left], -2, height), -1, width)  # (..., how many, height, how many, width)
    np.matmul(
        _cut(u[..., :low, :], -2, height)[..., None, :, :, :],
        np.moveaxis(_cut(v[..., :left], -1, width), -2, -3)[..., None, :, :],
        out=np.moveaxis(pieces, -2, -4),
    )
    if left < columns:
        np.matmul(u[..., :low, :], v[..., left:], out=out[..., :low, left:])
    if low < rows:
        np.matmul(u[..., low:, :], v, out=out[..., low:, :])
    return out


def _cut(a: Array, axis: int, length: int) -> Array:
    """One axis as two, of which the second has this length."""
    at = axis % a.ndim
    return a.reshape(*a.shape[:at], a.shape[at] // length, length, *a.shape[at + 1 :], copy=False)


@lru_cache(maxsize=1024)
def _piece(rows: int, depth: int, columns: int, dtype: DType) -> tuple[int, int]:
    """The rows and columns of a piece."""
    packs_well = rows >= MANY_ROWS and depth >= MUCH_DEPTH
    if rows < FEWEST_ROWS or packs_well or dtype.char not in "fd":
        return rows, columns
    width = min(COLUMNS, columns)
    most = SMALL // (depth * width)
    if most < min(LEAST_ROWS, rows):
        return rows, columns
    height = rows // -(-rows // most)
    return height, min(most // height * width, MOST_COLUMNS, columns // width * width)
