"""Fourier transforms of the blocks of an image on NumPy arrays, in kept memory.

Every axis is padded in memory, and its overlapping windows are transformed to the middle of the next axis with its
padding: from where they lie, if no zeros are between or behind their elements. (NumPy itself would put zeros behind
them, but then transforms them one by one.) It takes one loop for all lines that lie at the same distance from each
other, and one for each where they do not, so that many short ones are copied before and behind.
With ``norm="ortho"`` it transforms float32 in float32; without, it would take the way through float64, whose memory is
fresh each time.
"""

import math
from typing import Any

import numpy as np

from ..._axis import Axis
from ..._geometry import Geometry
from ..._typing import Array, DType, Shape
from ...primitives import Grid, along
from ._scratch import Take

#: Elements of temporary memory that the transforms of some images or filters take at a time.
AT_A_TIME = 2**18
#: To begin a loop takes as long as to copy so many numbers.
LEAST_LOOP = 1536


def transform(take: Take, x: Array, g: Geometry, grid: Grid, v: Array) -> None:
    """The spectra of all windows of `x`, into ``v (n, c, out, frequencies, out, frequencies, ...)``."""
    rank, x, memory = len(g.axes), x[g.kept[1]], _Steps(take, g, grid, x.dtype)
    lines, middle = _begun(memory, x.shape, g, grid, rank - 1, x.dtype)
    middle[...] = x
    for i in reversed(range(rank)):
        at, length = 2 + i, grid.lengths[i]
        windows = _cut(memory, lines, g, grid, i)
        shape = (*windows.shape[: at + 1], grid.frequencies[i], *windows.shape[at + 2 :])
        fft = np.fft.rfft if grid.is_half(i) else np.fft.fft
        is_long = _in_a_loop(windows, windows if i else v, at + 1, at - 1) * length >= LEAST_LOOP
        made = None
        if not (is_long and (i or _is_behind(v))):
            if _in_a_loop(windows, windows, at + 1) * length < LEAST_LOOP:
                windows = memory.copy(windows)
            made = fft(windows, axis=at + 1, norm="ortho", out=memory.take(shape, v.dtype))
        lines, target = _begun(memory, shape, g, grid, i - 1, v.dtype) if i else (v, v)
        if made is None:
            fft(windows, axis=at + 1, norm="ortho", out=target)
        else:
            target[...] = made


def inverse(take: Take, v: Array, g: Geometry, grid: Grid, x: Array) -> None:
    """The adjoint of `transform`, into `x`."""
    real = v.real.dtype  # x may be of a half type
    memory = _Steps(take, g, grid, real if grid.real else v.dtype)
    for i, axis in enumerate(g.axes):
        at, length = 2 + i, grid.lengths[i]
        if not _is_behind(v) or _in_a_loop(v, v, at + 1) * length < LEAST_LOOP:
            v = memory.copy(v)
        ifft = np.fft.irfft if grid.is_half(i) else np.fft.ifft
        shape = (*v.shape[: at + 1], length, *v.shape[at + 2 :])
        lines = memory.take(shape, real if grid.is_half(i) else v.dtype)
        ifft(v, n=length, axis=at + 1, norm="ortho", out=lines)
        v = _joined(memory, lines[_every(at + 1, axis, grid.spacing[i])], at, axis)[along(at, axis.kept[0])]
    if g.is_cropped:
        x[...] = 0
    x[g.kept[1]] = v


def spare(g: Geometry, grid: Grid) -> int:
    """Numbers of temporary memory for either direction."""
    return 2 * g.batch * g.c_in * _most(g, grid)


def _most(g: Geometry, grid: Grid) -> int:
    """The numbers that one step of either direction makes of an image with one channel, at most."""
    most, behind = 0, 1
    for i in reversed(range(len(g.axes))):
        axis, before = g.axes[i], math.prod(g.size[:i])
        lines = max(axis.padded, axis.out * grid.lengths[i]) * behind
        behind *= axis.out * grid.frequencies[i] * (2 if grid.is_half(i) else 1)
        most = max(most, before * lines, before * behind)
    return most


class _Steps:
    """Memory for the steps of a transform: each puts what it makes where the one before it has read."""

    def __init__(self, take: Take, g: Geometry, grid: Grid, dtype: DType) -> None:
        size = g.batch * g.c_in * _most(g, grid) * dtype.itemsize
        self.next, self.last = take((size,), np.dtype(np.uint8)), take((size,), np.dtype(np.uint8))

    def take(self, shape: Shape, dtype: DType) -> Array:
        """Memory, that of the step before the last one."""
        self.next, self.last = self.last, self.next
        return np.ndarray(shape, dtype, self.last)

    def copy(self, a: Array) -> Array:
        made = self.take(a.shape, a.dtype)
        made[...] = a
        return made


def _in_a_loop(a: Array, b: Array, axis: int, first: int = 0) -> int:
    """The lines along an axis that NumPy takes in one loop, going from `a` to `b`; of axes from the `first` one."""
    count, begun = 1, (0, 0)
    for i in reversed(range(first, a.ndim)):
        if i == axis or a.shape[i] == 1:
            continue
        steps = a.strides[i], b.strides[i]
        if count > 1 and steps != (begun[0] * count, begun[1] * count):
            break
        begun = begun if count > 1 else steps
        count *= a.shape[i]
    return count


def _is_behind(v: Array) -> bool:
    """Whether the frequencies lie behind all else."""
    return bool(v.strides[-1] == v.itemsize)


def _is_whole(g: Geometry, grid: Grid, i: int) -> bool:
    """Whether the axis `i` is one block, which is transformed where it is put together."""
    return g.axes[i].out == 1 == grid.spacing[i]


def _begun(memory: _Steps, shape: Shape, g: Geometry, grid: Grid, i: int, dtype: DType) -> tuple[Array, Array]:
    """Memory for the axis `i` of this shape with zeros before and behind it, and what is between them."""
    at, axis = 2 + i, g.axes[i]
    kept = axis.kept[0]
    length = grid.lengths[i] if _is_whole(g, grid, i) else axis.padded
    lines = memory.take((*shape[:at], length, *shape[at + 1 :]), dtype)
    lines[along(at, slice(kept.start))] = 0
    lines[along(at, slice(kept.stop, None))] = 0
    return lines, lines[along(at, kept)]


def _cut(memory: _Steps, lines: Array, g: Geometry, grid: Grid, i: int) -> Array:
    """The windows of an axis, with the zeros between and behind their elements."""
    at, axis, length = 2 + i, g.axes[i], grid.lengths[i]
    if _is_whole(g, grid, i):
        return np.expand_dims(lines, at)
    windows = _windows(lines, at, axis)
    if axis.kernel == length:
        return windows
    spread = memory.take((*windows.shape[: at + 1], length, *windows.shape[at + 2 :]), lines.dtype)
    spread.fill(0)
    spread[_every(at + 1, axis, grid.spacing[i])] = windows
    return spread


def _windows(line: Array, at: int, axis: Axis) -> Array:
    """The axis `at` of padded memory as windows that overlap, ``(..., out, kernel, ...)``."""
    shape = (*line.shape[:at], axis.out, axis.kernel, *line.shape[at + 1 :])
    steps = line.strides
    strides = (*steps[:at], axis.stride * steps[at], *steps[at:])
    return np.ndarray(shape, line.dtype, line, 0, strides)


def _joined(memory: _Steps, windows: Array, at: int, axis: Axis) -> Array:
    """The adjoint of `_windows`."""
    if axis.out == 1:
        return windows[along(at, 0)]
    line = memory.take((*windows.shape[:at], axis.padded, *windows.shape[at + 2 :]), windows.dtype)
    if axis.kernel == axis.stride:
        line.reshape(windows.shape, copy=False)[...] = windows
        return line
    line.fill(0)
    for i in range(axis.out):
        line[along(at, slice(i * axis.stride, i * axis.stride + axis.kernel))] += windows[along(at, i)]
    return line


def _every(at: int, axis: Axis, step: int) -> tuple[Any, ...]:
    """The places of a window whose elements are `step` apart."""
    return along(at, slice(0, (axis.kernel - 1) * step + 1, step))
