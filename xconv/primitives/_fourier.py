"""Fourier transforms of the blocks of an image, axis by axis, in the pure array-API standard.

Blocks are the windows of a geometry, and are cut out whole. All transforms are orthonormal.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from .._axis import Axis
from .._geometry import Geometry
from .._typing import Array, Namespace, Shape
from ._pieces import along, pad, zeros


class Grid(NamedTuple):
    """What a block becomes on every axis."""

    #: Elements of the transform; behind the block are zeros.
    lengths: Shape
    #: Steps from one element of the block to the next; between them are zeros.
    spacing: Shape
    #: Whether the numbers are real, and half of the last axis' frequencies tell everything.
    real: bool
    #: Whether products are made number by number, and the frequencies lie behind all else if the library can choose.
    behind: bool = False

    @property
    def frequencies(self) -> Shape:
        *others, last = self.lengths
        return (*others, last // 2 + 1 if self.real else last)

    def is_half(self, i: int) -> bool:
        """Whether the transform along axis `i` is one of real numbers."""
        return self.real and i == len(self.lengths) - 1


def transform(xp: Namespace, fft: Callable[..., Array], x: Array, g: Geometry, grid: Grid) -> Array:
    """The spectra of all windows, as the right side of a product: ``(1, frequencies * groups, depth, n * out)``."""
    shape = (1, math.prod(grid.frequencies) * g.groups, g.c_in // max(1, g.groups), g.batch * g.pixels)
    if 0 in (*x.shape, *g.out):  # of which not every library makes a transform
        return zeros(xp, shape, xp.result_type(x.dtype, xp.complex64), x)
    for i, axis in reversed(list(enumerate(g.axes))):  # x is (n, c, *size[:i+1], out, frequencies, ...)
        x = _spread(xp, _cut(xp, x, 2 + i, axis), 3 + i, grid.spacing[i])
        x = fft(x, 3 + i, grid.lengths[i], half=grid.is_half(i))
    return xp.reshape(xp.permute_dims(x, product_order(len(g.axes))), shape)


def inverse(xp: Namespace, ifft: Callable[..., Array], v: Array, g: Geometry, grid: Grid) -> Array:
    """The adjoint of `transform`, which undoes it where the windows do not overlap."""
    if 0 in (*g.x_shape, *g.out):
        return zeros(xp, g.x_shape, xp.real(v[:0, ...]).dtype if grid.real else v.dtype, v)
    x = xp.reshape(v, (*grid.frequencies, g.c_in, g.batch, *g.out))
    x = xp.permute_dims(x, block_order(len(g.axes)))
    for i, axis in enumerate(g.axes):  # x is (n, c, *size[:i], out, frequencies, ...)
        x = ifft(x, 3 + i, grid.lengths[i], half=grid.is_half(i))
        step = grid.spacing[i]
        x = _join(xp, x[along(3 + i, slice(0, (axis.kernel - 1) * step + 1, step))], 2 + i, axis)
    return x


def spare(g: Geometry, grid: Grid) -> int:
    """Numbers of temporary memory for either direction: for every axis its lines, its windows, and their transforms."""
    total, behind, parts = 0, 1, 1
    for i in reversed(range(len(g.axes))):
        axis, before = g.axes[i], math.prod(g.size[:i])
        total += before * (axis.padded + axis.out * grid.lengths[i]) * behind * parts
        behind, parts = behind * axis.out * grid.frequencies[i], 2 if grid.real else 1
        total += before * behind * parts
    return g.batch * g.c_in * total


def product_order(rank: int) -> tuple[int, ...]:
    """The axes ``(n, c, out, frequencies, out, frequencies, ...)`` as ``(*frequencies, c, n, *out)``."""
    return (*range(3, 3 + 2 * rank, 2), 1, 0, *range(2, 2 + 2 * rank, 2))


def block_order(rank: int) -> tuple[int, ...]:
    """The way back."""
    pairs = ((rank + 2 + i, i) for i in range(rank))
    return (rank + 1, rank, *(axis for pair in pairs for axis in pair))


def _cut(xp: Namespace, x: Array, at: int, axis: Axis) -> Array:
    """The axis `at` as windows, ``(..., out, kernel, ...)``: each is some strides in a row."""
    strides = -(-axis.kernel // axis.stride)
    count = axis.out + strides - 1
    x = pad(xp, x, at, axis.lo, count * axis.stride - axis.size - axis.lo)
    x = xp.reshape(x, (*x.shape[:at], count, axis.stride, *x.shape[at + 1 :]))
    parts = [x[along(at, slice(j, j + axis.out))] for j in range(strides)]
    return xp.concat(parts, axis=at + 1)[along(at + 1, slice(axis.kernel))]


def _join(xp: Namespace, x: Array, at: int, axis: Axis) -> Array:
    """The adjoint of `_cut`."""
    strides = -(-axis.kernel // axis.stride)
    count = axis.out + strides - 1
    x = pad(xp, x, at + 1, 0, strides * axis.stride - axis.kernel)
    parts = [x[along(at + 1, slice(j * axis.stride, (j + 1) * axis.stride))] for j in range(strides)]
    total = pad(xp, parts[0], at, 0, strides - 1)
    for j, part in enumerate(parts[1:], start=1):
        total = total + pad(xp, part, at, j, strides - 1 - j)
    x = xp.reshape(total, (*x.shape[:at], count * axis.stride, *x.shape[at + 2 :]))
    return pad(xp, x, at, -axis.lo, axis.size + axis.lo - count * axis.stride)


def _spread(xp: Namespace, x: Array, at: int, step: int) -> Array:
    """Put ``step - 1`` zeros behind each element of the axis `at`."""
    if step == 1:
        return x
    shape = (*x.shape[:at], x.shape[at] * step, *x.shape[at + 1 :])
    return xp.reshape(pad(xp, xp.expand_dims(x, axis=at + 1), at + 1, 0, step - 1), shape)
