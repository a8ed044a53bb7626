"""NumPy: strided windows, products, depthwise convolution and transforms, all in kept memory."""

import math
from dataclasses import replace

import numpy as np

from ..._axis import Run
from ..._geometry import Geometry
from ..._typing import Array, DType, Index, Pooled, Shape
from ...algorithms import PORTABLE
from ...primitives import Costs, Grid, Matrices, Team, along, block_order, divisor, own
from .._backend import MIB, Backend
from . import _depthwise, _folding, _fourier, _pooling, _spectra, _windows
from ._costs import numpy_costs
from ._mec import Mec
from ._memory import KeptMemory
from ._products import by_image, multiply
from ._scratch import KEEP

#: Rows so few that the sum over all pixels is faster with the other operand in front, and the result turned around.
FEW_ROWS = 128
#: So few numbers are summed over the images in less time than an operation for each image takes.
FEW_SUMS = 2**13


class NumpyBackend(KeptMemory):
    """NumPy arrays."""

    tile_bytes = 12 * MIB
    sees_numbers = True
    algorithms = PORTABLE | {"mec": Mec()}

    def of(self, arrays: dict[str, Array]) -> Backend:
        del arrays
        return self

    def tile_size(self, algorithm: str, g: Geometry, dtype: DType, whole: float, shares: int) -> float:
        del g, dtype
        most = KEEP if algorithm == "pointwise" else self.tile_bytes  # whose tiles hold nothing for the caches
        return most if shares == 1 else min(most, max(self.least_tile, whole // min(shares, self.shares)))

    def costs(self, dtype: DType, precision: str) -> Costs:
        del precision
        return numpy_costs(np.dtype(self.accumulator(dtype)))

    # windows

    def taps_first(self, g: Geometry) -> bool:
        return g.channels_last and g.groups == 1

    def im2col(self, x: Array, g: Geometry, out: Array | None = None) -> Array:
        g = g.in_rows if out is None and self.taps_first(g) else g
        return _windows.columns(self.scratch.take, x, g, out)

    def col2im(self, cols: Array, g: Geometry, out: Array | None = None) -> Array:
        return _folding.folded_columns(self.scratch.take, cols, g, out)

    def extend(self, x: Array, g: Geometry) -> Array:
        made = self.scratch.take((*x.shape[:2], *g.padded), x.dtype)
        _windows.extend(made, x, g)
        return made

    def retract(self, dx: Array, runs: tuple[Run, ...]) -> Array:
        return _windows.retracted(self.scratch.take, dx, runs)

    # pooling

    def pool(self, x: Array, g: Geometry, how: Pooled, out: Array | None = None) -> Array:
        out = self.scratch.take(g.y_shape, x.dtype) if out is None else out
        if how == "max":
            return _pooling.largest(self.scratch.take, x, g, out)
        total = _pooling.total(self.scratch.take, x, g, out)
        return np.divide(total, divisor(self.xp, g, how, total), out=total)

    def pool_grad(
        self, dy: Array, x: Array | None, g: Geometry, whole: Geometry, how: Pooled, out: Array | None = None
    ) -> Array:
        if how == "max":
            return _pooling.gradient(self.scratch.take, dy, x, whole)[own(g, whole)]
        out = self.scratch.take(g.x_shape, dy.dtype) if out is None else out
        shares = np.divide(dy, divisor(self.xp, whole, how, dy), out=self.scratch.take(dy.shape, dy.dtype))
        return _pooling.total_back(self.scratch.take, shares, g, out)

    # depthwise

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        y = self.view(out, g.y_shape, x.dtype)
        y = self.scratch.take(g.y_shape, x.dtype) if y is None else y
        if y.size:
            _depthwise.forward(self.scratch.take, x, w, g, y)
        return y

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        if dy.size == 0 or not np.isfinite(w).all():  # zeros between the outputs are multiplied below
            return _depthwise.input_grad_by_tap(self.scratch.take, dy, w, g)
        dx = self.view(out, g.x_shape, dy.dtype)
        dx = self.scratch.take(g.x_shape, dy.dtype) if dx is None else dx
        _depthwise.input_grad(self.scratch.take, dy, w, g, dx)
        return dx

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        if dy.size == 0:
            return np.zeros(g.w_shape, dy.dtype)
        mark = self.scratch.used
        with np.errstate(invalid="ignore"):
            dw = _depthwise.weight_grad(self.scratch.take, dy, x, g)
        if np.isfinite(dw).all():
            return dw
        self.scratch.used = mark  # zero times infinity may be in sums where it does not belong
        return _depthwise.weight_grad_by_tap(self.scratch.take, dy, x, g)

    # spectra

    def spectra(self, x: Array, g: Geometry, matrices: Matrices, *, team: Team | None = None) -> Array:
        layout = _spectra.layout(g, matrices, x.dtype, lasting=team is not None)
        v = (self.scratch if team is None else self.reserve).take(layout.spectra, x.dtype)

        def spread(i: int) -> None:
            part = layout.parts[i]
            images = _channels_behind(x, g)[:, part]
            _spectra.spread(self.scratch.take, images, g, layout, layout.images_of(v, part))

        if x.size:
            self.each(spread, len(layout.parts), layout.spare * x.itemsize, layout.shared(team))
        else:
            v.fill(0)
        return v.reshape(1, layout.blocks, g.batch * g.pixels, layout.spectra[-1]).transpose(0, 1, 3, 2)

    def spectra_adjoint(
        self, v: Array, g: Geometry, matrices: Matrices, out: Array | None = None, *, team: Team | None = None
    ) -> Array:
        layout = _spectra.layout(g, matrices, v.dtype, lasting=team is not None)
        x = (self.scratch.take if team is None else np.empty)(g.x_shape, v.dtype) if out is None else out

        def gather(i: int) -> None:
            part = layout.parts[i]
            spectra = layout.images_of(v.transpose(0, 1, 3, 2).reshape(layout.spectra), part)
            _spectra.gather(self.scratch.take, spectra, g, layout, _channels_behind(x, g)[:, part])

        if x.size:
            self.each(gather, len(layout.parts), layout.spare * x.itemsize, layout.shared(team))
        return x

    # blocks

    def fourier(self, x: Array, g: Geometry, grid: Grid, *, team: Team | None = None) -> Array:
        dtype, rank = np.result_type(x.dtype, np.complex64), len(g.axes)
        parts, spare = _fourier_parts(g, grid, lasting=team is not None)
        if team is not None:
            self.scratch.reset(spare * x.itemsize)
        take = (self.scratch if team is None else self.reserve).take
        if grid.behind:
            v = take((g.c_in, g.batch, *g.out, *grid.frequencies), dtype)
            v = v.transpose(*range(2 + rank, v.ndim), *range(2 + rank))
        else:
            v = take((*grid.frequencies, g.c_in, g.batch, *g.out), dtype)
        mark, blocks = self.scratch.used, v.transpose(block_order(rank))
        for part, smaller in parts if v.size else ():
            self.scratch.used = mark
            _fourier.transform(self.scratch.take, x[part], smaller, grid, blocks[part])
        self.scratch.used = mark
        return v.reshape(1, math.prod(grid.frequencies) * g.groups, g.c_in // g.groups, g.batch * g.pixels)

    def fourier_inverse(
        self, v: Array, g: Geometry, grid: Grid, out: Array | None = None, *, team: Team | None = None
    ) -> Array:
        dtype = np.empty(0, v.dtype).real.dtype if grid.real else v.dtype
        parts, spare = _fourier_parts(g, grid, lasting=team is not None)
        if team is not None:
            self.scratch.reset(spare * dtype.itemsize)
        x = (self.scratch.take if team is None else np.empty)(g.x_shape, dtype) if out is None else out
        if v.size:
            v = v.reshape(*grid.frequencies, g.c_in, g.batch, *g.out)
            v, mark = v.transpose(block_order(len(g.axes))), self.scratch.used
            for part, smaller in parts:
                self.scratch.used = mark
                _fourier.inverse(self.scratch.take, v[part], smaller, grid, x[part])
        return x

    # products

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        (n, blocks, depth, pixels), rows = v.shape, u.shape[-2]
        is_thin = (rows == 1 or depth == 1) and depth <= n * blocks * rows * pixels
        if is_thin and out is None and _blocks_behind(v) and _blocks_behind(u):
            if rows == 1 and self._is_kept(v):  # it is read once, and less leaves the cache
                return self._summed(u, v, v[:, :, :1])
            return self._summed(u, v, self._blocks_last((n, blocks, rows, pixels), v.dtype))
        if v.strides[2] <= v.strides[3]:  # channels last, and so is the result
            behind = v.strides[1] < v.strides[3]
            if out is None:
                memory = (n * pixels, blocks, rows) if behind else (blocks, n * pixels, rows)
                together = self.scratch.take(memory, v.dtype).swapaxes(0, 1 if behind else 0)
                out = together.reshape(blocks, n, pixels, rows).transpose(1, 0, 3, 2)
            if n == 1 or (_is_joined(v) and _is_joined(out)):
                multiply(self._images_last(v).mT, u.mT, self._images_last(out).mT)
            else:
                multiply(v.mT, u.mT, out.mT)
            return out
        if depth == 1 and out is None:  # a call of the BLAS for every block would take longer than its work
            return np.multiply(u, v, out=self.scratch.take((n, blocks, rows, pixels), v.dtype))
        many = rows * depth > 2 * (rows + depth) * pixels  # to pack `u` for every image would take longer than copies
        if n > 1 and (many or _is_joined(v)):  # the images lie next to each other: one product
            together = self.scratch.take((blocks, rows, n * pixels), v.dtype)
            multiply(u, self._images_last(v), together)
            return together.reshape(blocks, rows, n, pixels).transpose(2, 0, 1, 3)
        if out is None:
            out = self.scratch.take((n, blocks, rows, pixels), v.dtype)
        return multiply(u, v, out)

    def _images_last(self, a: Array) -> Array:
        n, blocks, rows, pixels = a.shape
        if n == 1:
            return a[0]
        if not _is_joined(a):
            memory = self.scratch.take((blocks, rows, n, pixels), a.dtype)
            memory[...] = a.transpose(1, 2, 0, 3)
            return memory.reshape(blocks, rows, n * pixels)
        return a.transpose(1, 2, 0, 3).reshape(blocks, rows, n * pixels)

    def outer(self, s: Array, v: Array) -> Array:
        (n, blocks, depth, pixels), rows = v.shape, s.shape[2]
        if n == 1 and pixels <= blocks * rows * depth and _blocks_behind(v) and _blocks_behind(s):
            conjugate = v if v.dtype.kind != "c" or self._is_kept(v) else self._blocks_last(v.shape, v.dtype)
            if v.dtype.kind == "c":
                np.conj(v, out=conjugate)
            return self._summed(s, conjugate.mT, self._blocks_last((1, blocks, rows, depth), v.dtype))[0]
        if by_image(n, rows, depth, pixels) and not (_is_joined(s) and _is_joined(v)):
            if n * blocks * rows * depth <= FEW_SUMS and depth <= pixels and v.dtype.kind != "c":
                each = np.matmul(s, v.mT, out=self.scratch.take((n, blocks, rows, depth), v.dtype))
                return np.add.reduce(each, axis=0, out=self.scratch.take((blocks, rows, depth), v.dtype))
            total = self._outer(s[:1], v[:1])
            mark = self.scratch.used
            for i in range(1, n):
                self.scratch.used = mark
                np.add(total, self._outer(s[i : i + 1], v[i : i + 1]), out=total)
            return total
        return self._outer(s, v)

    def _outer(self, s: Array, v: Array) -> Array:
        """The same as one product."""
        blocks, rows, depth = s.shape[1], s.shape[2], v.shape[2]
        s, v = self._images_last(s), self._images_last(v)
        if rows <= FEW_ROWS and rows < depth and v.dtype.kind != "c" and v.strides[2] < v.strides[1]:
            return np.matmul(v, s.mT, out=self.scratch.take((blocks, depth, rows), v.dtype)).mT
        out = self.scratch.take((blocks, rows, depth), v.dtype)
        if v.dtype.kind != "c":
            return np.matmul(s, v.mT, out=out)
        # s @ v^H is the conjugate of conj(s) @ v^T, and s is the smaller one
        conjugate = np.conj(s, out=self.scratch.take(s.shape, s.dtype))
        return np.conj(np.matmul(conjugate, v.mT, out=out), out=out)

    def _is_kept(self, a: Array) -> bool:
        """Whether `a` lies in memory of the tile, and not of the caller."""
        return np.may_share_memory(a, self.scratch.block)

    def _blocks_last(self, shape: Shape, dtype: DType) -> Array:
        """Memory for products that are made number by number."""
        n, blocks, rows, columns = shape
        return self.scratch.take((n, rows, columns, blocks), dtype).transpose(0, 3, 1, 2)

    def _summed(self, u: Array, v: Array, out: Array) -> Array:
        """``u @ v``, number by number: an operation for each term, so there must not be more of them than results."""
        np.multiply(u[..., :1], v[..., :1, :], out=out)
        if u.shape[-1] > 1:
            more = self._blocks_last(out.shape, out.dtype)
            for i in range(1, u.shape[-1]):
                np.multiply(u[..., i : i + 1], v[..., i : i + 1, :], out=more)
                np.add(out, more, out=out)
        return out


def _fourier_parts(g: Geometry, grid: Grid, *, lasting: bool) -> tuple[list[tuple[Index, Geometry]], int]:
    """The images or channels that are transformed at a time, and the temporary memory for that.

    A few, so that it stays in the cache; but all where those of one lie apart, unless they are filters.
    """
    spare, axis = _fourier.spare(g, grid), 0 if g.batch > 1 else 1
    if spare <= _fourier.AT_A_TIME or not (lasting or grid.behind):
        return [((), g)], spare
    parts, count = [], g.x_shape[axis]
    step = max(1, _fourier.AT_A_TIME * count // spare)
    for first in range(0, count, step):
        size = min(step, count - first)
        smaller = replace(g, c_in=size) if axis else replace(g, batch=size)
        parts.append((along(axis, slice(first, first + size)), smaller))
    return parts, step * (spare // count)


def _is_joined(a: Array) -> bool:
    """Whether the pixels of an image lie behind those of the one before, so that all are one axis."""
    return bool(a.strides[0] == a.shape[3] * a.strides[3])


def _blocks_behind(a: Array) -> bool:
    """Whether the blocks of an operand lie behind all else, as the frequencies of products of single numbers do."""
    return bool(a.size > 0 and a.shape[-3] > 1 and a.strides[-3] == a.itemsize)


def _channels_behind(x: Array, g: Geometry) -> Array:
    """Images ``(n, c, *size)`` as ``(groups, n, *size, channels of a group)``."""
    x = x.reshape(g.batch, g.groups, g.c_in // g.groups, *g.size)
    return x.transpose(1, 0, *range(3, x.ndim), 2)
