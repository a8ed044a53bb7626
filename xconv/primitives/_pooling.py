"""The largest element of every window, and the sum of all, in the pure array-API standard.

Axis by axis from the last one on. For the largest, an element takes the place of those before it where it is larger, or
the first that is no number. So the first of equals stays, and derivatives of the chain go to it alone.
"""

import math
from collections.abc import Iterator

from .._axis import Axis
from .._geometry import Geometry
from .._typing import Array, DType, Index, Namespace, Pooled
from . import _windows
from ._pieces import along, pad, zeros


def largest(xp: Namespace, x: Array, g: Geometry) -> Array:
    """The largest element of every window, ``(n, c, *out)``."""
    for at, axis in _axes(g):
        (x,) = _along(xp, at, axis, x)
    return x * 1 if g.taps == 1 else x  # or it would share its memory with the input


def first(xp: Namespace, x: Array, g: Geometry) -> Array:
    """The number of the tap that reads it, of equals the first; any where a window sees nothing."""
    taps, behind = zeros(xp, x.shape, xp.int32, x), 1
    for at, axis in _axes(g):
        x, taps = _along(xp, at, axis, x, taps, behind)
        behind *= axis.kernel
    return taps


def spread(xp: Namespace, dy: Array, found: Array, g: Geometry) -> Array:
    """The result's gradient as columns, each of its elements at the tap that was found."""
    none = zeros(xp, dy.shape, dy.dtype, dy)
    taps = [xp.where(found == tap, dy, none) for tap in range(g.taps)]
    return xp.reshape(xp.stack(taps, axis=2), g.columns_shape)


def total(xp: Namespace, x: Array, g: Geometry) -> Array:
    """The sum of every window, ``(n, c, *out)``."""
    for at, axis in _axes(g):
        x = pad(xp, x, at, axis.lo, axis.hi)
        starts = range(0, axis.extent, axis.dilation)
        first, *others = (x[along(at, slice(start, start + max(0, axis.span), axis.stride))] for start in starts)
        x = sum(others, first)
    return x


def total_back(xp: Namespace, dy: Array, g: Geometry) -> Array:
    """The adjoint of that."""
    for at, axis in enumerate(g.axes, start=2):
        dy = pad(xp, _windows.fold(xp, [dy] * axis.kernel, at, axis), at, -axis.lo, -axis.hi)
    return dy


def spare(g: Geometry, *, mean: bool, back: bool) -> int:
    """Elements that a function needs at once beside what it takes and makes, at most."""
    size, most = math.prod(g.x_shape), 0
    for _, axis in _axes(g):
        line = size // max(1, axis.size)
        size = line * axis.out
        most = max(most, line * (axis.padded + axis.stride) + 6 * size)
    if not back:
        return most
    return 6 * most if mean else 4 * most + 2 * math.prod(g.columns_shape) + _windows.spare(g)


def counts(xp: Namespace, g: Geometry, dtype: DType, like: Array) -> Array:
    """How many elements every window sees, ``(*out)``; on the device of `like`."""
    made, behind, none = None, len(g.axes), zeros(xp, (1,), dtype, like)
    for axis in g.axes:
        behind -= 1
        parts = [xp.broadcast_to(none + n, (length,)) for length, n in axis.counts]
        line = xp.reshape(xp.concat(parts), (axis.out, *(1,) * behind))
        made = line if made is None else made * line
    return made


def divisor(xp: Namespace, g: Geometry, how: Pooled, like: Array) -> Array | int:
    """How many elements a window's mean is one of, in the dtype and on the device of `like`."""
    return g.taps if how == "mean" else counts(xp, g, like.dtype, like)


def own(part: Geometry, whole: Geometry) -> Index:
    """Where the inputs of a part lie among all that the windows read which see them."""
    starts = (a.lo - b.lo for a, b in zip(part.axes, whole.axes, strict=True))
    places = (slice(at, at + size) for at, size in zip(starts, part.size, strict=True))
    return (slice(None), slice(None), *places)


def _axes(g: Geometry) -> Iterator[tuple[int, Axis]]:
    return reversed(list(enumerate(g.axes, start=2)))


def _along(xp: Namespace, at: int, axis: Axis, x: Array, taps: Array | None = None, step: int = 1) -> list[Array]:
    """The largest of every window along one axis; and the number of its tap, if that along the axes behind is given."""
    integral = xp.isdtype(x.dtype, "integral")
    best: list[Array] = []
    given = [pad(xp, x, at, axis.lo, axis.hi, _lowest(xp, x.dtype))]
    if taps is not None:
        given.append(pad(xp, taps, at, axis.lo, axis.hi))
    for tap in range(axis.kernel):
        start = tap * axis.dilation
        later = [a[along(at, slice(start, start + max(0, axis.span), axis.stride))] for a in given]
        if taps is not None:
            later[1] = later[1] + tap * step
        if not best:
            best = later
            continue
        better = later[0] > best[0]
        if not integral:
            better = xp.logical_or(better, xp.logical_and(later[0] != later[0], best[0] == best[0]))
        outputs, _ = axis.seen(tap)
        before = -((start - axis.dilation - axis.lo) // axis.stride)  # the first output whose taps up to here see any
        unseen = slice(outputs.start, min(outputs.stop, before))
        best = [_taken(xp, better, new, old, at, unseen) for new, old in zip(later, best, strict=True)]
    return best


def _lowest(xp: Namespace, dtype: DType) -> float:
    """What no number is below."""
    return int(xp.iinfo(dtype).min) if xp.isdtype(dtype, "integral") else -math.inf


def _taken(xp: Namespace, better: Array, later: Array, best: Array, at: int, unseen: slice) -> Array:
    """The better ones, and the later ones where nothing was before."""
    best = xp.where(better, later, best)
    if unseen.start >= unseen.stop:
        return best
    parts = (best, slice(0, unseen.start)), (later, unseen), (best, slice(unseen.stop, None))
    return xp.concat([a[along(at, part)] for a, part in parts], axis=at)
