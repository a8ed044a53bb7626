"""The largest element of every window of NumPy arrays, where it was read, and the sum of all, in kept memory.

The axes are taken one after the other: the largest of a window is that of its rows' largest. So a kernel takes as many
operations as it is long on all axes together; for the largest, a long axis takes the logarithm of that, by windows of
twice the length.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from ..._axis import Axis
from ..._geometry import Geometry
from ..._typing import Array, DType, Shape
from ...primitives import along
from ._scratch import Take

#: Makes an array of another by what windows along one axis read: ``line(at, axis, x, out)``.
Line: TypeAlias = Callable[[int, Axis, Array, Array], Array]

#: With more taps along an axis, its windows are taken one by one.
MANY_TAPS = 1024
#: The most taps whose numbers fit into a byte, below that of none.
IN_A_BYTE = 255


def largest(take: Take, x: Array, g: Geometry, out: Array) -> Array:
    """The largest element of every window, into `out`."""
    return _by_axis(partial(_along, take), take, x, g, out)


def total(take: Take, x: Array, g: Geometry, out: Array) -> Array:
    """The sum of every window, into `out`."""
    return _by_axis(_added, take, x, g, out)


def total_back(take: Take, dy: Array, g: Geometry, out: Array) -> Array:
    """The adjoint of that."""
    return _by_axis(_added_back, take, dy, g, out, back=True)


def _by_axis(line: Line, take: Take, x: Array, g: Geometry, out: Array, *, back: bool = False) -> Array:
    """What `line` makes of windows along one axis, of one axis after the other; `back` from the last to the first."""
    steps = [(at, a) for at, a in enumerate(g.axes, start=2) if a.kernel > 1 or a.is_padded or a.out != a.size]
    steps = steps[::-1] if back else steps
    for at, axis in steps[:-1]:
        length = axis.size if back else axis.out
        x = line(at, axis, x, _made(take, g, (*x.shape[:at], length, *x.shape[at + 1 :]), x.dtype))
    if steps:
        return line(*steps[-1], x, out)
    out[...] = x
    return out


def _added(at: int, axis: Axis, x: Array, out: Array) -> Array:
    """The sum of every window along one axis, in the order of the taps, into `out`."""
    out.fill(0)
    if axis.kernel > MANY_TAPS:
        for output in range(axis.out):
            np.add.reduce(x[along(at, axis.window(output))], axis=at, out=out[along(at, output)])
        return out
    for outputs, elements in map(axis.seen, range(axis.kernel)):
        part = out[along(at, outputs)]
        np.add(part, x[along(at, elements)], out=part)
    return out


def _added_back(at: int, axis: Axis, dy: Array, out: Array) -> Array:
    """The adjoint of that, in the same order."""
    out.fill(0)
    if axis.kernel > MANY_TAPS:
        for output in range(axis.out):
            part = out[along(at, axis.window(output))]
            np.add(part, dy[along(at, slice(output, output + 1))], out=part)
        return out
    for outputs, elements in map(axis.seen, range(axis.kernel)):
        part = out[along(at, elements)]
        np.add(part, dy[along(at, outputs)], out=part)
    return out


def gradient(take: Take, dy: Array, x: Array, g: Geometry) -> Array:
    """What of `dy` every element gets: all of a window's, where it is the first of the largest."""
    order = g.in_layout(tuple(range(dy.ndim)))
    made = _made(take, g, (g.batch, g.c_in, *g.padded), dy.dtype)
    made.fill(0)
    steps = [step // dy.itemsize for step in made.strides]
    found = _first(take, x, g)
    places = _made(take, g, g.y_shape, np.dtype(np.intp))
    taps = _sums(g.kernel, [a.dilation * s for a, s in zip(g.axes, steps[2:], strict=True)])
    np.take(taps, found, out=places, mode="clip")
    strides = [*steps[:2], *(a.stride * s for a, s in zip(g.axes, steps[2:], strict=True))]
    for part in (slice(0, 2), slice(2, None)):  # the images, and what is within each
        lengths = [n if i in range(dy.ndim)[part] else 1 for i, n in enumerate(g.y_shape)]
        np.add(places, _sums(lengths, strides).reshape(lengths), out=places)
    places, dy = (a.transpose(order).reshape(-1) for a in (places, dy))
    np.add.at(made.transpose(order).reshape(-1, copy=False), places, dy)
    outer, inner = g.kept
    if not g.is_cropped:
        return made[outer]
    dx = take(g.x_shape, made.dtype)
    dx.fill(0)
    dx[inner] = made[outer]
    return dx


def _sums(lengths: Sequence[int], steps: Sequence[int]) -> Array:
    """Where every index lies in memory with these steps, one behind the other."""
    sums = np.zeros(1, np.intp)
    for length, step in zip(lengths, steps, strict=True):
        sums = (sums[:, None] + step * np.arange(length)).reshape(-1)
    return sums


def spare(g: Geometry, itemsize: int, *, mean: bool, back: bool) -> int:
    """Bytes that a function needs at once beside what it takes and makes, at most."""
    if mean and back:
        sizes = (math.prod(g.size[i:]) * math.prod(g.out[:i]) for i in range(len(g.axes) + 1))
        return itemsize * g.batch * g.c_in * sum(sizes)
    size, made, lines = math.prod(g.x_shape), 0, 0
    for axis in g.axes:
        line = size // max(1, axis.size)
        size = line * axis.out
        made += size
        lines += 2 * line * axis.padded if _doubles(axis) else 0
    if not back:
        return itemsize * (made + lines)
    width, outputs = 1 if g.taps < IN_A_BYTE else 4, math.prod(g.y_shape)
    summed = g.batch * g.c_in * math.prod(g.padded) + math.prod(g.x_shape) + 2 * outputs
    found = (itemsize + 4 * width + 2) * made + width * math.prod(g.x_shape)
    sums = 2 * np.dtype(np.intp).itemsize * (g.pixels + g.batch * g.c_in + g.taps)
    return itemsize * (lines + summed) + found + 24 * outputs + sums


def _made(take: Take, g: Geometry, shape: Shape, dtype: DType) -> Array:
    """Memory that lies as the caller's images do."""
    made = take(g.in_layout(shape), dtype)
    return np.moveaxis(made, -1, 1) if g.channels_last else made


def _doubles(axis: Axis) -> bool:
    """Whether windows of twice the length, again and again, are fewer operations than taps."""
    return (axis.kernel.bit_length() + 1) * axis.stride < axis.kernel and axis.out > 0


def _along(take: Take, at: int, axis: Axis, x: Array, out: Array) -> Array:
    """The largest of every window along one axis, into `out`."""
    if _doubles(axis):
        return _doubled(take, at, axis, x, out)
    if axis.kernel > MANY_TAPS:
        for output in range(axis.out):
            window = x[along(at, axis.window(output))]
            np.maximum.reduce(window, axis=at, out=out[along(at, output)], initial=lowest(x.dtype))
        return out
    taps = [axis.seen(tap) for tap in range(axis.kernel)]
    taps.sort(key=lambda tap: tap[0].start - tap[0].stop)  # those first that most outputs see
    everywhere = [x[along(at, elements)] for outputs, elements in taps if outputs == slice(0, axis.out)]
    if len(everywhere) > 1:
        np.maximum(everywhere[0], everywhere[1], out=out)
    else:
        out[...] = everywhere[0] if everywhere else lowest(x.dtype)
    for outputs, elements in taps[min(2, len(everywhere)) :]:
        part = out[along(at, outputs)]
        np.maximum(part, x[along(at, elements)], out=part)
    return out


def _doubled(take: Take, at: int, axis: Axis, x: Array, out: Array) -> Array:
    """The same by windows of twice the length, again and again, and two of these that cover the kernel."""
    shape = (*x.shape[:at], axis.padded, *x.shape[at + 1 :])
    line, other, width = take(shape, x.dtype), take(shape, x.dtype), 1
    outer, inner = axis.kept
    line[along(at, slice(0, outer.start))] = line[along(at, slice(outer.stop, None))] = lowest(x.dtype)
    line[along(at, outer)] = x[along(at, inner)]
    while 2 * width < axis.kernel:
        reach = width * axis.dilation
        longer = other[along(at, slice(0, line.shape[at] - reach))]
        np.maximum(line[along(at, slice(None, -reach))], line[along(at, slice(reach, None))], out=longer)
        line, other, width = longer, line, 2 * width
    more = (axis.kernel - width) * axis.dilation
    first, last = slice(0, axis.span, axis.stride), slice(more, more + axis.span, axis.stride)
    return np.maximum(line[along(at, first)], line[along(at, last)], out=out)


def _first(take: Take, x: Array, g: Geometry) -> Array:
    """The number of the tap that reads the largest, of equals the first; any where a window sees nothing.

    Of the rows' firsts, that is the first in the first row.
    """
    dtype: DType = np.dtype(np.uint8 if g.taps < IN_A_BYTE else np.uint32)
    found, step = _made(take, g, x.shape, dtype), g.taps
    found.fill(0)
    for at, axis in enumerate(g.axes, start=2):
        step //= axis.kernel
        shape = (*x.shape[:at], axis.out, *x.shape[at + 1 :])
        best = _along(take, at, axis, x, _made(take, g, shape, x.dtype))
        numbers, other, equal = (_made(take, g, shape, d) for d in (dtype, dtype, np.dtype(bool)))
        missed = equal.view(np.uint8) if dtype.itemsize == 1 else _made(take, g, shape, dtype)
        numbers.fill(np.iinfo(dtype).max)
        with_nan = x.dtype.kind not in "iu" and not np.equal(best, best, out=equal).all()
        for tap in range(axis.kernel):
            outputs, elements = axis.seen(tap)
            part, later = along(at, outputs), x[along(at, elements)]
            hit, number = equal[part], other[part]
            np.equal(later, best[part], out=hit)
            if with_nan:
                hit |= later != later  # noqa: PLR0124
            bits = np.subtract(hit.view(np.uint8), 1, out=missed[part], dtype=dtype)  # all but for a hit
            np.add(found[along(at, elements)], dtype.type(tap * step), out=number)
            np.minimum(numbers[part], np.bitwise_or(number, bits, out=number), out=numbers[part])
        x, found = best, numbers
    return found


def lowest(dtype: DType) -> float:
    """What no number is below."""
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else -math.inf
