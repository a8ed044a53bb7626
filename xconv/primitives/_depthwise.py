"""Depthwise convolution tap by tap, in the pure array-API standard.

Shapes are ``x (n, c_in, *size)``, ``w (c_out, 1, *kernel)`` and ``y (n, c_out, *out)``.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product as combinations

from .._geometry import Geometry
from .._typing import Array, Namespace
from . import _windows
from ._pieces import pad

#: The product of two stacks of matrices.
Product = Callable[[Array, Array], Array]


def forward(xp: Namespace, x: Array, w: Array, g: Geometry) -> Array:
    """The convolution of every channel with its own filters."""
    parts = _by_channel(xp, w, g)
    y = None
    for tap, seen in _seen(xp, x, g):
        term = parts[(..., *tap, *(None for _ in g.axes))] * seen
        y = term if y is None else y + term
    return xp.reshape(y, g.y_shape)


def input_grad(xp: Namespace, product: Product, dy: Array, w: Array, g: Geometry) -> Array:
    """The transpose of `forward` in x: columns of each channel, as a product with its filters."""
    filters = g.c_out // g.c_in
    u = xp.matrix_transpose(xp.reshape(w, (g.c_in, filters, g.taps)))
    v = xp.reshape(dy, (g.batch, g.c_in, filters, g.pixels))
    cols = u * v if filters == 1 else product(u, v)
    return _windows.folded(xp, xp.reshape(cols, g.columns_shape), g)


def weight_grad(xp: Namespace, dy: Array, x: Array, g: Geometry) -> Array:
    """The adjoint of `forward` in w."""
    dy = xp.reshape(dy, (g.batch, g.c_in, g.c_out // g.c_in, *g.out))
    axes = (0, *range(3, dy.ndim))
    if xp.isdtype(x.dtype, "complex floating"):
        x = xp.conj(x)
    sums = [xp.sum(dy * seen, axis=axes, dtype=dy.dtype) for _, seen in _seen(xp, x, g)]
    return xp.reshape(xp.stack(sums, axis=-1), g.w_shape)


def spare(g: Geometry) -> int:
    """Elements that the three need at once beside what they take and make, at most."""
    return math.prod(g.columns_shape) + _windows.spare(g) + 3 * math.prod(g.y_shape)


def _by_channel(xp: Namespace, w: Array, g: Geometry) -> Array:
    return xp.reshape(w, (1, g.c_in, g.c_out // g.c_in, *g.kernel))


def _seen(xp: Namespace, x: Array, g: Geometry) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Every tap, and what it sees for all outputs, ``(n, c, 1, *out)``."""
    for at, axis in enumerate(g.axes, start=2):
        x = pad(xp, x, at, axis.lo, axis.hi)
    for tap in combinations(*(range(axis.kernel) for axis in g.axes)):
        starts = [t * a.dilation for t, a in zip(tap, g.axes, strict=True)]
        spans = (slice(s, s + (a.out - 1) * a.stride + 1, a.stride) for s, a in zip(starts, g.axes, strict=True))
        yield tap, x[(slice(None), slice(None), None, *spans)]
