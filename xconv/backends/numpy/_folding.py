"""The adjoint of windows on NumPy arrays: their elements, added to those of the images that they were read from."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np

from ..._geometry import ALL, Geometry
from ..._typing import Array, DType, Index, Shape
from ...primitives import inverse
from ._scratch import Take
from ._windows import FEW_TAPS, taps, windows

#: So few channels are too short a run to be added for themselves.
FEW_CHANNELS = 8


def folded_columns(take: Take, cols: Array, g: Geometry, out: Array | None) -> Array:
    """The adjoint of `columns`: tap by tap, or output by output where these are fewer; in `out` if possible."""
    lie = () if cols.strides[-1] == cols.itemsize else _lie(cols.strides)
    if g.is_apart and not g.is_padded and (lie or g.taps > FEW_TAPS):
        out = _blank(take, g, cols.dtype, lie, out)
        if (seen := windows(out, g)) is not None:
            seen[...] = cols
            return out
    in_rows = cols.strides[1 :: len(g.axes)][:2] == (cols.itemsize, g.c_in * cols.itemsize)
    if in_rows and g.axes[-1].dilation == 1 and g.c_in <= FEW_CHANNELS and not g.is_apart:
        return _added_by_row(take, cols, g, _blank(take, g, cols.dtype, lie, out))
    if g.pixels < g.taps:
        return _added(take, g, ((x, cols[window]) for window, x in _each_output(g)), cols.dtype, lie, out)
    by_tap = cols.transpose(_kernel_in_front(len(g.axes)))
    return folded(take, g, cols.dtype, by_tap.__getitem__, lie, out)


def _added_by_row(take: Take, cols: Array, g: Geometry, out: Array) -> Array:
    """The same with a few channels behind all else: those of all taps of a row lie beside each other, and are one part.

    The rows of some outputs overlap; so every so many of them are added at a time, which do not.
    """
    *others, last = g.axes
    wide = take((g.batch, *g.size[:-1], last.padded, g.c_in), cols.dtype)
    wide.fill(0)
    width, apart = last.kernel * g.c_in, -(-last.kernel // last.stride)
    step, item = last.stride * wide.strides[-2], wide.itemsize
    rows = np.ndarray((*wide.shape[:-2], last.out, width), wide.dtype, wide, 0, (*wide.strides[:-2], step, item))
    rank = len(g.axes)
    read = cols.transpose(0, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank), 1)
    read = read.reshape(*read.shape[:-2], width)
    for tap in product(*(range(a.kernel) for a in others)):
        seen = [a.seen(t) for t, a in zip(tap, others, strict=True)]
        outputs, elements = (tuple(part) for part in zip(*seen, strict=True)) if seen else ((), ())
        for first in range(min(apart, last.out)):
            some = slice(first, None, apart)
            part = rows[(slice(None), *elements, some)]
            np.add(part, read[(slice(None), *outputs, some, *tap)], out=part)
    outer, inner = last.kept
    np.moveaxis(out, 1, -1)[..., inner, :] = wide[..., outer, :]
    return out


@lru_cache(maxsize=256)
def _lie(strides: tuple[int, ...]) -> Shape:
    """The order of the axes of images in which those of columns with these strides lie in memory."""
    steps = (*strides[:2], *strides[1 + len(strides) // 2 :])
    return tuple(sorted(range(len(steps)), key=lambda axis: -abs(steps[axis])))


@cache
def _kernel_in_front(rank: int) -> tuple[int, ...]:
    """The order of the axes of columns."""
    return (*range(2, 2 + rank), 0, 1, *range(2 + rank, 2 + 2 * rank))


def folded(
    take: Take, g: Geometry, dtype: DType, seen: Callable[[Shape], Array], lie: Shape = (), out: Array | None = None
) -> Array:
    """The adjoint: what each tap has `seen`, ``(n, c, *out)``, added to where it was read from.

    The axes of the sums lie in memory in this order, which is best that of what is seen.
    """
    return _added(take, g, ((x, seen(tap)[outputs]) for tap, outputs, x in taps(g)), dtype, lie, out)


def _blank(take: Take, g: Geometry, dtype: DType, lie: Shape, out: Array | None) -> Array:
    """`out`, or images that hold zeros where not all is in a window, with axes that lie in this order."""
    if out is not None and out.dtype == dtype:
        return out
    made = take(tuple(g.x_shape[axis] for axis in lie) or g.x_shape, dtype)
    if not g.is_covered:
        made.fill(0)
    return made.transpose(inverse(lie)) if lie else made


def _added(
    take: Take, g: Geometry, parts: Iterable[tuple[Index, Array]], dtype: DType, lie: Shape, out: Array | None
) -> Array:
    """Images that are the sum of these parts of them."""
    out = _blank(take, g, dtype, lie, out)
    for place, added in parts:
        part = out[place]
        if g.is_apart:
            part[...] = added
        else:
            np.add(part, added, out=part)
    return out


def _each_output(g: Geometry) -> Iterator[tuple[tuple[Any, ...], Index]]:
    """Every output with the taps that see elements of the images, as an index of the columns, and these elements."""
    for output in product(*(range(a.out) for a in g.axes)):
        seen = [a.window(o) for o, a in zip(output, g.axes, strict=True)]
        taps = (a.taps_of(o, elements) for o, elements, a in zip(output, seen, g.axes, strict=True))
        yield (*ALL, *taps, *output), (*ALL, *seen)
