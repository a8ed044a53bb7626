"""The windows of images on NumPy arrays, and their adjoint, in kept memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..._axis import Run
from ..._geometry import ALL, Geometry
from ..._typing import Array, DType, Index, Shape
from ...primitives import along, inverse
from ...primitives._windows import follow
from ._products import is_apart
from ._scratch import Take

#: Kernels with no more taps have theirs remembered: to name a tap takes longer than to add a small image.
FEW_TAPS = 64
#: So few channels are too short a run to be added for themselves.
FEW_CHANNELS = 8
#: Rows are worth sorting for taps that are so many times as many as the stride.
WORTH_SORTING = 3


def columns(take: Take, x: Array, g: Geometry, out: Array | None) -> Array:
    """Every window of the zero-padded `x`, ``(n, c, *kernel, *out)``; in `out` if that is handed over."""
    images = _images(g, x.itemsize)
    if not images.strides:  # they are read where they lie
        made = take(images.windows, x.dtype).transpose(images.back) if out is None else out
        if g.is_padded:
            made.fill(0)
            for tap, outputs, elements in _each_tap(g):
                made[(*ALL, *tap)][outputs] = x[elements]
        else:
            made.transpose(images.order)[...] = windows(x, g).transpose(images.order)
        return made
    padded = with_zeros(take, x, g, images.padded, images.lie)
    if images.phases > 1:
        by_phase = padded.reshape(*padded.shape[:-1], padded.shape[-1] // images.phases, images.phases).swapaxes(-1, -2)
        padded = take(by_phase.shape, x.dtype)
        padded[...] = by_phase
    memory = take(images.windows, x.dtype) if out is None else out.transpose(images.order)
    for phase in range(images.phases):
        taps = memory[images.taps[phase]]
        taps[...] = np.ndarray(taps.shape, x.dtype, padded, phase * padded.strides[-2], images.strides)
    return memory.transpose(images.back) if out is None else out


def spare(g: Geometry) -> int:
    """Elements that `columns` and `folded` need at once beside the columns they make or take, at most."""
    return max(columns_spare(g), math.prod(g.x_shape))


def columns_spare(g: Geometry) -> int:
    """Elements that `columns` alone needs at once beside those it makes, at most."""
    if g.is_apart:
        return 0
    padded, phases = _rows_by_phase(g.gathered())
    return math.prod(padded) * min(2, phases)


def rows(take: Take, x: Array, g: Geometry) -> Array:
    """The columns of every row of outputs, ``(n, groups, out[0], depth, pixels of the row)``; they overlap in memory.

    In a row's columns, the taps of the first axis come before the channels.
    """
    gathered = g.gathered()  # not along the first axis, whose taps are neighbours
    first, behind, channels = g.axes[0], gathered.axes[1:], g.c_in // g.groups
    padded = with_zeros(take, x, g, (g.batch, g.c_in, *gathered.padded))
    plane, *steps = padded.strides[1:]
    image = (g.batch, g.groups, (first.out - 1) * first.stride + first.kernel, channels)
    windows = np.ndarray(
        (*image, *g.kernel[1:], *g.out[1:]),
        x.dtype,
        padded,
        0,
        (
            *(padded.strides[0], channels * plane, steps[0], plane),
            *(a.dilation * step for a, step in zip(behind, steps[1:], strict=True)),
            *(a.stride * step for a, step in zip(behind, steps[1:], strict=True)),
        ),
    )
    memory = take(windows.shape, x.dtype)
    memory[...] = windows
    shape = (*image[:2], first.out, channels * g.taps, math.prod(g.out[1:]))
    item, row = x.itemsize, memory.strides[2]
    strides = (*memory.strides[:2], first.stride * row, shape[-1] * item, item)
    return np.ndarray(shape, x.dtype, memory, 0, strides)


def with_zeros(take: Take, x: Array, g: Geometry, shape: Shape, lie: Shape = ()) -> Array:
    """What is gathered of images, with their padding of zeros, and with anything behind that.

    It has the axes ``(n, c, *size)``, or these in the order `lie`.
    """
    made = take(shape, x.dtype)
    if g.is_padded:
        made.fill(0)
    images = made.transpose(inverse(lie)) if lie else made
    for outer, inner in g.segments() if any(g.far) else (g.kept,):
        images[outer] = x[inner]
    return made


def windows(x: Array, g: Geometry) -> Array:
    """Every window of images without padding, as a view."""
    by_tap = (a.dilation * step for a, step in zip(g.axes, x.strides[2:], strict=True))
    by_output = (a.stride * step for a, step in zip(g.axes, x.strides[2:], strict=True))
    strides = (*x.strides[:2], *by_tap, *by_output)
    if x.flags.c_contiguous:  # in a tenth of the time
        return np.ndarray(g.columns_shape, x.dtype, x, 0, strides)
    return as_strided(x, g.columns_shape, strides)


def folded_columns(take: Take, cols: Array, g: Geometry, out: Array | None) -> Array:
    """The adjoint of `columns`: tap by tap, or output by output where these are fewer; in `out` if possible."""
    lie = () if cols.strides[-1] == cols.itemsize else _lie(cols.strides)
    if g.is_apart and not g.is_padded and (lie or g.taps > FEW_TAPS):
        out = _blank(take, g, cols.dtype, lie, out)
        windows(out, g)[...] = cols
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
    taps = _taps(g) if g.taps <= FEW_TAPS else _each_tap(g)
    return _added(take, g, ((x, seen(tap)[outputs]) for tap, outputs, x in taps), dtype, lie, out)


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


def extend(made: Array, x: Array, g: Geometry, at: int = 2) -> None:
    """Write `x` with its padding from the axis `at` on into `made`, run by run; the axes before have theirs."""
    if g.pad_mode == "constant":
        outer, inner = g.kept
        made.fill(g.pad_value)
        made[outer] = x[inner]
        return
    if at == x.ndim:
        made[...] = x
        return
    axis, end = g.axes[at - 2], 0
    for run in axis.runs(g.pad_mode, slice(0, axis.padded)):
        begin, middle = end, end + run.period
        end += run.repeats * run.period
        once = made[along(at, slice(begin, middle))]
        extend(once, follow(np, x[along(at, run.source)], run._replace(repeats=1), at), g, at + 1)
        if run.repeats > 1:
            again = made[along(at, slice(middle, end))]
            shape = (*made.shape[:at], run.repeats - 1, run.period, *made.shape[at + 1 :])
            again.reshape(shape, copy=False)[...] = np.expand_dims(once, at)


def retracted(take: Take, dx: Array, runs: tuple[Run, ...]) -> Array:
    """The adjoint of what `runs` read: the gradient of the padding, brought to where it was taken from."""
    for at, run in enumerate(runs, start=2):
        before, behind = dx.shape[:at], dx.shape[at + 1 :]
        if run.repeats > 1:
            each = dx.reshape((*before, run.repeats, run.period, *behind), copy=False)
            dx = np.sum(each, axis=at, out=take((*before, run.period, *behind), dx.dtype))
        if run.step < 0:
            dx = np.flip(dx, at)
        elif run.back:
            there = take((*before, run.length, *behind), dx.dtype)
            there[...] = dx[along(at, slice(run.length))]
            there[along(at, run.inner)] += np.flip(dx[along(at, slice(run.length, None))], at)
            dx = there
    return dx


def each_tap(g: Geometry) -> Iterator[tuple[Shape, Index]]:
    """Every tap, and what it sees in the padded images."""
    for tap in product(*(range(a.kernel) for a in g.axes)):
        starts = (t * a.dilation for t, a in zip(tap, g.axes, strict=True))
        places = (slice(s, s + (a.out - 1) * a.stride + 1, a.stride) for s, a in zip(starts, g.axes, strict=True))
        yield tap, (slice(None), slice(None), *places)


def _each_tap(g: Geometry) -> Iterator[tuple[Shape, Index, Index]]:
    """Every tap, the outputs for which it sees elements of the images, and these."""
    for tap in product(*(range(a.kernel) for a in g.axes)):
        seen = [a.seen(t) for t, a in zip(tap, g.axes, strict=True)]
        yield tap, (*ALL, *(outputs for outputs, _ in seen)), (*ALL, *(elements for _, elements in seen))


def _each_output(g: Geometry) -> Iterator[tuple[tuple[Any, ...], Index]]:
    """Every output with the taps that see elements of the images, as an index of the columns, and these elements."""
    for output in product(*(range(a.out) for a in g.axes)):
        seen = [a.window(o) for o, a in zip(output, g.axes, strict=True)]
        taps = (a.taps_of(o, elements) for o, elements, a in zip(output, seen, g.axes, strict=True))
        yield (*ALL, *taps, *output), (*ALL, *seen)


@lru_cache(maxsize=256)
def _taps(g: Geometry) -> tuple[tuple[Shape, Index, Index], ...]:
    return tuple(_each_tap(g))


class _Images(NamedTuple):
    """How the windows of padded images lie in memory: as a caller wants them, and the padded images alike.

    A row of outputs with a stride reads every so many elements. Where many taps do, the rows are first sorted by phase,
    after which a tap reads elements that follow one another.
    """

    #: The padded images, or what is gathered of them, with rows that are a multiple of the phases long; and the order
    #: of their axes, where it is another.
    padded: Shape
    lie: Shape
    phases: int
    #: The taps of each phase, as an index of the windows.
    taps: tuple[Index, ...]
    windows: Shape
    #: Those of the windows in the padded images; none where there is no padding, and they are read where they lie.
    strides: tuple[int, ...]
    #: The order of axes that leads there, and the one that leads back.
    order: tuple[int, ...]
    back: tuple[int, ...]


def _rows_by_phase(g: Geometry) -> tuple[Shape, int]:
    """The shape of the padded images, with rows that are a multiple of the phases long, and how many these are."""
    last, in_rows = g.axes[-1], g.images_order[-1] == 1 + len(g.axes)
    sorts = in_rows and last.dilation == 1 and last.kernel >= WORTH_SORTING * last.stride and not g.is_empty
    phases = last.stride if sorts else 1
    return (g.batch, g.c_in, *g.padded[:-1], -(-last.padded // phases) * phases), phases


def _order(g: Geometry) -> Shape:
    """The axes of columns that nobody has a wish for: image by image, or as all images of a tile share a product."""
    behind = tuple(range(2, 2 + 2 * len(g.axes)))
    if is_apart(g.batch, g.c_out // max(1, g.groups), g.taps * g.c_in // max(1, g.groups), g.pixels):
        return (0, 1, *behind)
    return (1, *behind[: len(g.axes)], 0, *behind[len(g.axes) :])


@lru_cache(maxsize=1024)
def _images(g: Geometry, itemsize: int) -> _Images:
    in_place = g.is_apart or not (g.is_padded or any(g.far))
    g = g.gathered()
    rank = len(g.axes)
    padded, phases = _rows_by_phase(g)
    lie = g.images_order if g.order else ()
    memory = tuple(padded[axis] for axis in g.images_order)
    steps = [itemsize * math.prod(memory[i + 1 :]) for i in inverse(g.images_order)]
    strides = [*steps[:2], *(a.dilation * s for a, s in zip(g.axes, steps[2:], strict=True))]
    strides += [a.stride * s for a, s in zip(g.axes, steps[2:], strict=True)]
    strides[-1] //= phases
    order = g.order or _order(g)
    return _Images(
        memory,
        lie,
        phases,
        tuple(along(order.index(1 + rank), slice(phase, None, phases)) for phase in range(phases)),
        tuple(g.columns_shape[i] for i in order),
        () if in_place and phases == 1 else tuple(strides[i] for i in order),
        order,
        inverse(order),
    )
