"""Depthwise convolution on NumPy arrays: whole planes, shifted as they lie in memory, in kept memory.

The padded planes of a channel lie behind each other, and a tap is a distance in that one line. What the longest axis of
a kernel reads is a few shifted copies of the line; one small product a channel puts them together for all other taps,
and the sum over these is one of shifted lines, too. Where a window would reach over the end of a row, the line holds
numbers that mean nothing, and nobody reads them.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from ..._geometry import Geometry
from ..._typing import Array, Index, Shape
from . import _folding, _windows
from ._scratch import Take

#: The copies of a line are a multiple of so many elements long, so that each begins with a cache line.
ROW = 16


class Line(NamedTuple):
    """How the planes ``(c, n, *padded)`` lie in one line; planning asks for it, so that it lists no taps."""

    shape: Shape
    filters: int
    #: The axis of the kernel that has most taps.
    long: int
    #: Distances to the taps of this axis, and of each of the others.
    inner: range
    others: tuple[range, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Filters of a channel, times the taps of all other axes together."""
        return self.filters * math.prod(map(len, self.others))

    @property
    def outer(self) -> list[int]:
        """Distances to these taps."""
        return [sum(taps) for taps in product(*self.others)]


def line(g: Geometry) -> Line:
    # Where an axis has no elements, nor has the line, and any step will do.
    steps = [max(1, a.dilation * math.prod(g.padded[i + 1 :])) for i, a in enumerate(g.axes)]
    distances = [range(0, a.kernel * step, step) for a, step in zip(g.axes, steps, strict=True)]
    long = max(range(len(g.axes)), key=lambda i: (g.axes[i].kernel, i))
    inner = distances.pop(long)
    return Line((g.c_in, g.batch, *g.padded), g.c_out // g.c_in, long, inner, tuple(distances))


def spare(g: Geometry) -> int:
    """Elements that any of the three functions needs at once, at most."""
    lay = line(g)
    farthest = lay.inner[-1] + sum(taps[-1] for taps in lay.others)
    return (2 * len(lay.inner) + lay.filters + lay.rows) * (lay.size + farthest + ROW) + math.prod(g.w_shape)


def sizes(g: Geometry) -> tuple[int, int, int]:
    """Elements of the line, taps of the longest axis, and rows for all other taps."""
    lay = line(g)
    return lay.size, len(lay.inner), lay.rows


def forward(take: Take, x: Array, w: Array, g: Geometry, y: Array) -> None:
    """The convolution of every channel with its own filters, into `y`."""
    lay = line(g)
    sums = take((lay.rows, lay.size), x.dtype)
    seen = _seen(take, x, g, lay)
    np.matmul(_filters(w, g, lay), _by_channel(seen, g), out=_by_channel(sums, g))
    sums = sums.reshape(lay.filters, -1, lay.size)
    for i, distance in enumerate(lay.outer[1:], start=1):
        total = sums[:, 0, : lay.size - distance]
        np.add(total, sums[:, i, distance:], out=total)
    _in_order(y, g)[...] = _outputs(sums[:, 0].reshape(lay.filters, *lay.shape), g)


def input_grad(take: Take, dy: Array, w: Array, g: Geometry, dx: Array) -> None:
    """The transpose of `forward` in x, into `dx`."""
    lay = line(g)
    seen = take((len(lay.inner), lay.size), dy.dtype)
    left = _filters(w, g, lay).transpose(0, 2, 1)
    np.matmul(left, _by_channel(_spread(take, dy, g, lay), g), out=_by_channel(seen, g))
    for i, distance in enumerate(lay.inner[1:], start=1):
        total = seen[0, distance:]
        np.add(total, seen[i, : lay.size - distance], out=total)
    outer, inner = g.kept
    if g.is_cropped:
        dx[...] = 0
    dx.swapaxes(0, 1)[inner] = seen[0].reshape(lay.shape)[outer]


def input_grad_by_tap(take: Take, dy: Array, w: Array, g: Geometry) -> Array:
    """The same for filters with numbers that are not finite, of which none may meet a zero that is no output."""
    filters = g.c_out // g.c_in
    dy = dy.reshape(g.batch, g.c_in, filters, *g.out)
    term, total = take(dy.shape, dy.dtype), take((g.batch, g.c_in, *g.out), dy.dtype)
    w = w.reshape(g.c_in, filters, *g.kernel)

    def seen(tap: Shape) -> Array:
        np.multiply(dy, w[(..., *tap, *(None for _ in g.axes))], out=term)
        return np.sum(term, axis=2, out=total)

    return _folding.folded(take, g, dy.dtype, seen)


def weight_grad(take: Take, dy: Array, x: Array, g: Geometry) -> Array:
    """The adjoint of `forward` in w."""
    lay = line(g)
    spread = _spread(take, dy, g, lay)
    seen = _seen(take, x, g, lay)
    if x.dtype.kind == "c":
        np.conj(seen, out=seen)
    dw = take((g.c_in, lay.rows, len(lay.inner)), x.dtype)
    np.matmul(_by_channel(spread, g), _by_channel(seen, g).transpose(0, 2, 1), out=dw)
    others = (k for i, k in enumerate(g.kernel) if i != lay.long)
    dw = dw.reshape(g.c_in, lay.filters, *others, len(lay.inner))
    return np.moveaxis(dw, -1, 2 + lay.long).reshape(g.w_shape)


def weight_grad_by_tap(take: Take, dy: Array, x: Array, g: Geometry) -> Array:
    """The same where numbers that are not finite must not meet the zeros between the outputs."""
    padded = _windows.with_zeros(take, x, g, (g.batch, g.c_in, *g.padded))[:, :, None]
    if x.dtype.kind == "c":
        np.conj(padded, out=padded)
    dy = dy.reshape(g.batch, g.c_in, -1, *g.out)
    term, dw = take(dy.shape, dy.dtype), take((g.c_in, dy.shape[2], *g.kernel), dy.dtype)
    for tap, (_, _, *place) in _each_tap(g):
        np.multiply(dy, padded[(..., *place)], out=term)
        np.sum(term, axis=(0, *range(3, term.ndim)), out=dw[(..., *tap)])
    return dw.reshape(g.w_shape)


def _each_tap(g: Geometry) -> Iterator[tuple[Shape, Index]]:
    """Every tap, and what it sees in the padded images."""
    for tap in product(*(range(a.kernel) for a in g.axes)):
        starts = (t * a.dilation for t, a in zip(tap, g.axes, strict=True))
        places = (slice(s, s + (a.out - 1) * a.stride + 1, a.stride) for s, a in zip(starts, g.axes, strict=True))
        yield tap, (slice(None), slice(None), *places)


def _filters(w: Array, g: Geometry, lay: Line) -> Array:
    """The filters of each channel as a matrix ``(filters * outer taps, inner taps)``."""
    w = np.moveaxis(w.reshape(g.c_in, lay.filters, *g.kernel), 2 + lay.long, -1)
    return w.reshape(g.c_in, -1, len(lay.inner))


def _seen(take: Take, x: Array, g: Geometry, lay: Line) -> Array:
    """What every inner tap sees of the padded planes, ``(taps, line)``; the first one sees them as they are."""
    length = -(-(lay.size + lay.inner[-1]) // ROW) * ROW
    seen = take((len(lay.inner), length), x.dtype)
    planes = seen[0]
    if g.is_padded:
        planes.fill(0)
    else:
        planes[lay.size :] = 0
    outer, inner = g.kept
    planes[: lay.size].reshape(lay.shape)[outer] = x[inner].swapaxes(0, 1)
    seen = seen[:, : lay.size]
    for row, distance in zip(seen[1:], lay.inner[1:], strict=True):
        row[...] = planes[distance : distance + lay.size]
    return seen


def _spread(take: Take, dy: Array, g: Geometry, lay: Line) -> Array:
    """The result's gradient between zeros, where every outer tap brings it: ``(filters * taps, line)``."""
    made = take((lay.filters, *lay.shape), dy.dtype)
    made.fill(0)
    _outputs(made, g)[...] = _in_order(dy, g)
    outer = lay.outer
    if len(outer) == 1:
        return made.reshape(lay.filters, lay.size)
    spread = take((lay.filters, len(outer), lay.size), dy.dtype)
    for i, distance in enumerate(outer):
        spread[:, i, :distance] = 0
        spread[:, i, distance:] = made.reshape(lay.filters, lay.size)[:, : lay.size - distance]
    return spread.reshape(-1, lay.size)


def _outputs(planes: Array, g: Geometry) -> Array:
    """The elements of ``(filters, c, n, *padded)`` where a window begins."""
    return planes[(..., *(slice(0, (a.out - 1) * a.stride + 1, a.stride) for a in g.axes))]


def _in_order(y: Array, g: Geometry) -> Array:
    """A result ``(n, c * filters, *out)`` as ``(filters, c, n, *out)``."""
    return y.reshape(g.batch, g.c_in, -1, *g.out, copy=False).transpose(2, 1, 0, *range(3, y.ndim + 1))


def _by_channel(lines: Array, g: Geometry) -> Array:
    """``(rows, line)`` as one matrix per channel."""
    return lines.reshape(len(lines), g.c_in, -1, copy=False).swapaxes(0, 1)
