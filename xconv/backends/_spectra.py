"""Windows under small matrices, one per axis, in the array-API standard on top of a backend's columns."""

import math
from typing import TYPE_CHECKING

from .._geometry import Geometry
from .._typing import Array

if TYPE_CHECKING:
    from ._generic import Backend

#: A small matrix in plain numbers.
Rows = tuple[tuple[float, ...], ...]
#: One ``(frequencies, kernel)`` per axis.
Matrices = tuple[Rows, ...]


def transform(backend: "Backend", x: Array, g: Geometry, matrices: Matrices) -> Array:
    """Every window as the right side of a product: ``(1, frequencies * groups, depth, n * pixels)``."""
    xp, rank = backend.xp, len(matrices)
    v = backend.im2col(x, g)  # (*frequencies done, n, c, *kernel left, *out)
    for matrix in reversed(matrices):
        v = backend.contract(matrix, v, 1 + rank)
    frequencies = v.shape[:rank]
    v = xp.reshape(v, (*frequencies, g.batch, g.groups, g.c_in // g.groups, g.pixels))
    v = xp.permute_dims(v, (*range(rank), rank + 1, rank + 2, rank, rank + 3))
    return xp.reshape(v, (1, math.prod(frequencies) * g.groups, g.c_in // g.groups, g.batch * g.pixels))


def adjoint(backend: "Backend", v: Array, g: Geometry, matrices: Matrices, out: Array | None) -> Array:
    """The adjoint of `transform`, for the real matrices that they are; in `out` if possible."""
    xp, rank = backend.xp, len(matrices)
    frequencies = tuple(len(matrix) for matrix in matrices)
    v = xp.reshape(v, (*frequencies, g.c_in, g.batch, *g.out))
    v = xp.permute_dims(v, (*range(rank), rank + 1, rank, *range(2 + rank, 2 + 2 * rank)))
    for matrix in matrices:  # v is (*frequencies left, n, c, *out, *kernel done)
        v = backend.contract(tuple(zip(*matrix, strict=True)), v, 0, behind=True)
    v = xp.permute_dims(v, (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)))
    return backend.col2im(v, g, out)


def spare(backend: "Backend", g: Geometry, matrices: Matrices) -> int:
    """Elements that `transform` and its adjoint need at once beside what they take and make, at most."""
    each = math.prod(max(len(matrix), len(matrix[0])) for matrix in matrices)
    return backend.spare(g) + math.prod(g.columns_shape) + 2 * g.batch * g.c_in * g.pixels * each
