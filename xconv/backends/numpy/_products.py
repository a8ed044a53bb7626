"""What NumPy's BLAS multiplies, and how."""

from functools import cache

import numpy as np

from ..._typing import Array
from . import _threads

#: The names that OpenBLAS gives to the processors for which it has small products: up to so many multiply-adds, they
#: read their operands where they lie, while any other product first copies both into an order of its own.
PROCESSORS = {"skylakex", "cooperlake", "sapphirerapids"}
SMALL = 10**6


@cache
def has_small() -> bool:
    """Whether the BLAS that NumPy calls has small products."""
    found = _threads.blas_libraries()
    return bool(found) and all(
        library.internal_api == "openblas" and library.architecture.lower() in PROCESSORS for library in found
    )


def by_image(n: int, rows: int, depth: int, pixels: int) -> bool:
    """Whether every image has a product of its own: to sum them up takes less than to put them beside each other."""
    return n > 1 and rows * depth <= (rows + depth) * pixels and depth <= n * pixels


def multiply(u: Array, v: Array, out: Array) -> Array:
    """``u @ v`` into `out`."""
    if u.strides[-1] < 0 or u.strides[-2] < 0:  # reflected filters: the BLAS reads forwards
        u = np.ascontiguousarray(u)
    return np.matmul(u, v, out=out)
