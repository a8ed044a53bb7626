"""The windows of images on NumPy arrays, in kept memory; and padding that is read from the image, there and back."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from ..._axis import Run
from ..._geometry import ALL, Geometry
from ..._typing import Array, Index, Shape
from ...primitives import along, inverse
from ...primitives._windows import follow
from ._products import by_image
from ._scratch import Take

#: Kernels with no more taps have theirs remembered: to name a tap takes longer than to add a small image.
FEW_TAPS = 64
#: Rows are worth sorting for taps that are so many times as many as the stride.
WORTH_SORTING = 3


def columns(take: Take, x: Array, g: Geometry, out: Array | None) -> Array:
    """Every window of the zero-padded `x`, ``(n, c, *kernel, *out)``; in `out` if that is handed over."""
    images = _images(g, x.itemsize)
    seen = windows(x, g) if images.phases == 1 and not (g.is_padded or any(g.far)) else None
    if seen is not None or g.is_apart:
        made = take(images.windows, x.dtype).transpose(images.back) if out is None else out
        if seen is not None:
            made.transpose(images.order)[...] = seen.transpose(images.order)
            return made
        if g.is_padded:
            made.fill(0)
        for tap, outputs, elements in taps(g):
            made[(*ALL, *tap)][outputs] = x[elements]
        return made
    padded = with_zeros(take, x, g, images.padded, images.lie)
    if images.phases > 1:
        by_phase = padded.reshape(*padded.shape[:-1], padded.shape[-1] // images.phases, images.phases).swapaxes(-1, -2)
        padded = take(by_phase.shape, x.dtype)
        padded[...] = by_phase
    memory = take(images.windows, x.dtype) if out is None else out.transpose(images.order)
    for phase in range(images.phases):
        part = memory[images.taps[phase]]
        part[...] = np.ndarray(part.shape, x.dtype, padded, phase * padded.strides[-2], images.strides)
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


def windows(x: Array, g: Geometry) -> Array | None:
    """Every window of images without padding, as a view; None where these have gaps in memory."""
    memory = x if x.flags.c_contiguous else x.transpose(0, *range(2, x.ndim), 1)
    if not memory.flags.c_contiguous:
        return None
    by_tap = (a.dilation * step for a, step in zip(g.axes, x.strides[2:], strict=True))
    by_output = (a.stride * step for a, step in zip(g.axes, x.strides[2:], strict=True))
    return np.ndarray(g.columns_shape, x.dtype, memory, 0, (*x.strides[:2], *by_tap, *by_output))


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


def taps(g: Geometry) -> Iterable[tuple[Shape, Index, Index]]:
    """Every tap, the outputs for which it sees elements of the images, and these."""
    return _few_taps(g) if g.taps <= FEW_TAPS else _each_tap(g)


@lru_cache(maxsize=256)
def _few_taps(g: Geometry) -> tuple[tuple[Shape, Index, Index], ...]:
    return tuple(_each_tap(g))


def _each_tap(g: Geometry) -> Iterator[tuple[Shape, Index, Index]]:
    for tap in product(*(range(a.kernel) for a in g.axes)):
        seen = [a.seen(t) for t, a in zip(tap, g.axes, strict=True)]
        yield tap, (*ALL, *(outputs for outputs, _ in seen)), (*ALL, *(elements for _, elements in seen))


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
    #: Those of the windows in the padded images.
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
    if by_image(g.batch, g.c_out // max(1, g.groups), g.taps * g.c_in // max(1, g.groups), g.pixels):
        return (0, 1, *behind)
    return (1, *behind[: len(g.axes)], 0, *behind[len(g.axes) :])


@lru_cache(maxsize=1024)
def _images(g: Geometry, itemsize: int) -> _Images:
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
        tuple(strides[i] for i in order),
        order,
        inverse(order),
    )
