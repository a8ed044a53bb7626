"""Fourier transforms of the blocks of an image on NumPy arrays, in kept memory.

Every axis is padded in memory, its overlapping windows are copied to whole lines with their zeros behind them, and the
transform goes from there to memory of the same order: NumPy takes an inner loop for all lines that lie behind each
other, and one for each where they do not. With ``norm="ortho"`` it transforms float32 in float32; without, it would
take the way through float64, whose memory is fresh each time.
"""

from typing import Any

import numpy as np

from ..._axis import Axis
from ..._geometry import Geometry
from ..._typing import Array, DType, Shape
from ...primitives import Grid, along
from ._scratch import Take


def transform(take: Take, x: Array, g: Geometry, grid: Grid, v: Array) -> None:
    """The spectra of all windows of `x`, into ``v (n, c, out, frequencies, out, frequencies, ...)``."""
    rank = len(g.axes)
    x = x[g.kept[1]]
    line, middle = _begun(take, x.shape, g, grid, rank - 1, x.dtype)
    middle[...] = x
    for i in reversed(range(rank)):
        at = 2 + i
        whole = line if _is_whole(g, grid, i) else _cut(take, line, g, grid, i)
        made = take((*whole.shape[: at + 1], grid.frequencies[i], *whole.shape[at + 2 :]), v.dtype)
        fft = np.fft.rfft if grid.is_half(i) else np.fft.fft
        fft(whole, axis=at + 1, norm="ortho", out=made)
        if i == 0:
            v[...] = made
        else:
            line, target = _begun(take, made.shape, g, grid, i - 1, v.dtype)
            target[...] = made


def inverse(take: Take, v: Array, g: Geometry, grid: Grid, x: Array) -> None:
    """The adjoint of `transform`, into `x`."""
    whole = take(v.shape, v.dtype)
    whole[...] = v
    v = whole
    for i, axis in enumerate(g.axes):
        at = 2 + i
        ifft = np.fft.irfft if grid.is_half(i) else np.fft.ifft
        lines = take((*v.shape[: at + 1], grid.lengths[i], *v.shape[at + 2 :]), x.dtype if grid.is_half(i) else v.dtype)
        ifft(v, n=grid.lengths[i], axis=at + 1, norm="ortho", out=lines)
        v = _joined(take, lines[_every(at + 1, axis, grid.spacing[i])], at, axis)[along(at, axis.kept[0])]
    if g.is_cropped:
        x[...] = 0
    x[g.kept[1]] = v


def _is_whole(g: Geometry, grid: Grid, i: int) -> bool:
    """Whether the axis `i` is one block, which is transformed where it is put together."""
    return g.axes[i].out == 1 == grid.spacing[i]


def _begun(take: Take, shape: Shape, g: Geometry, grid: Grid, i: int, dtype: DType) -> tuple[Array, Array]:
    """Memory for the axis `i` of this shape with zeros before and behind it, and what is between them."""
    at, axis, whole = 2 + i, g.axes[i], _is_whole(g, grid, i)
    line = take((*shape[:at], grid.lengths[i] if whole else axis.padded, *shape[at + 1 :]), dtype)
    kept = axis.kept[0]
    line[along(at, slice(kept.start))] = 0
    line[along(at, slice(kept.stop, None))] = 0
    return np.expand_dims(line, at) if whole else line, line[along(at, kept)]


def _cut(take: Take, line: Array, g: Geometry, grid: Grid, i: int) -> Array:
    """The windows of an axis, with the zeros between and behind their elements."""
    at, axis, length = 2 + i, g.axes[i], grid.lengths[i]
    windows = _windows(line, at, axis)
    whole = take((*windows.shape[: at + 1], length, *windows.shape[at + 2 :]), line.dtype)
    if axis.kernel < length:
        whole.fill(0)
    whole[_every(at + 1, axis, grid.spacing[i])] = windows
    return whole


def _windows(line: Array, at: int, axis: Axis) -> Array:
    """The axis `at` of padded memory as windows that overlap, ``(..., out, kernel, ...)``."""
    shape = (*line.shape[:at], axis.out, axis.kernel, *line.shape[at + 1 :])
    steps = line.strides
    strides = (*steps[:at], axis.stride * steps[at], *steps[at:])
    return np.ndarray(shape, line.dtype, line, 0, strides)


def _joined(take: Take, windows: Array, at: int, axis: Axis) -> Array:
    """The adjoint of `_windows`."""
    if axis.out == 1:
        return windows[along(at, 0)]
    line = take((*windows.shape[:at], axis.padded, *windows.shape[at + 2 :]), windows.dtype)
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
