"""Windows under small matrices, one per axis, in the array-API standard on top of columns."""

import math
from collections.abc import Callable

from .._geometry import Geometry
from .._typing import Array, Namespace

#: A small matrix in plain numbers.
Rows = tuple[tuple[float, ...], ...]
#: One ``(frequencies, kernel)`` per axis.
Matrices = tuple[Rows, ...]
#: Puts one axis of an array under a small matrix.
Contract = Callable[..., Array]


def transform(xp: Namespace, contract: Contract, v: Array, g: Geometry, matrices: Matrices) -> Array:
    """Columns as the right side of a product: ``(1, frequencies * groups, depth, n * pixels)``."""
    rank = len(matrices)
    for matrix in reversed(matrices):  # v is (*frequencies done, n, c, *kernel left, *out)
        v = contract(matrix, v, 1 + rank)
    frequencies = v.shape[:rank]
    v = xp.reshape(v, (*frequencies, g.batch, g.groups, g.c_in // g.groups, g.pixels))
    v = xp.permute_dims(v, (*range(rank), rank + 1, rank + 2, rank, rank + 3))
    return xp.reshape(v, (1, math.prod(frequencies) * g.groups, g.c_in // g.groups, g.batch * g.pixels))


def adjoint(xp: Namespace, contract: Contract, v: Array, g: Geometry, matrices: Matrices) -> Array:
    """The adjoint of `transform`, for the real matrices that they are: columns to be folded."""
    rank = len(matrices)
    frequencies = tuple(len(matrix) for matrix in matrices)
    v = xp.reshape(v, (*frequencies, g.c_in, g.batch, *g.out))
    v = xp.permute_dims(v, (*range(rank), rank + 1, rank, *range(2 + rank, 2 + 2 * rank)))
    for matrix in matrices:  # v is (*frequencies left, n, c, *out, *kernel done)
        v = contract(tuple(zip(*matrix, strict=True)), v, 0, behind=True)
    return xp.permute_dims(v, (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)))


def spare(g: Geometry, matrices: Matrices) -> int:
    """Elements that `transform` and its adjoint need at once beside what they take and make, at most."""
    each = math.prod(max(len(matrix), len(matrix[0])) for matrix in matrices)
    return math.prod(g.columns_shape) + 2 * g.batch * g.c_in * g.pixels * each
