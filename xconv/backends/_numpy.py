"""NumPy: strided windows, columns and products in kept memory, tiles on threads that each hold one BLAS thread."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from .._geometry import Geometry, Tile
from .._typing import Array, DType, Index, Kind, Shape
from . import _fourier, _numpy_depthwise, _numpy_fourier, _numpy_spectra, _numpy_windows, _threads
from ._costs import Costs
from ._fourier import Grid
from ._generic import MIB, Backend, Piece, inverse
from ._numpy_costs import numpy_costs
from ._numpy_products import multiply
from ._pieces import along
from ._scratch import Reserve, Scratch
from ._spectra import Matrices
from ._threads import Team

#: Bytes of a tile beside which NumPy's buffers do not matter; with less, to make them short takes much of a small call.
WORTH_SHORT_BUFFERS = 2**17
#: Elements of temporary memory that the Fourier transforms of some images or filters take at a time.
AT_A_TIME = 2**18
#: Elements of a sum that are worth another thread's while.
JOINED = 2**19
#: Rows so few that the sum over all pixels is faster with the other operand in front, and the result turned around.
FEW_ROWS = 128

KINDS: dict[str, Kind] = {"i": "integer", "u": "integer", "f": "real", "c": "complex"}


def check_type(name: str, array: Array) -> None:
    """TypeError for the subclasses of ndarray whose meaning a convolution would lose."""
    if isinstance(array, (np.ma.MaskedArray, np.matrix)):
        msg = f"`{name}` must be a plain array, got {type(array).__qualname__}"
        raise TypeError(msg)


class DtypesOfNumpy(Backend):
    """A library whose dtypes are those of NumPy, and of ml_dtypes."""

    def kind(self, dtype: DType) -> Kind:
        known = KINDS.get(dtype.kind)
        return "real" if known is None and dtype.name == "bfloat16" else known  # of ml_dtypes

    def to_dtype(self, dtype: object) -> DType:
        with suppress(TypeError):
            dtype = np.dtype(dtype).newbyteorder("=")  # type: ignore[call-overload]
        return super().to_dtype(dtype)

    def itemsize(self, dtype: DType) -> int:
        return int(np.dtype(dtype).itemsize)


class NumpyBackend(DtypesOfNumpy):
    """NumPy arrays. The tiles' size is that of the second-level caches of today's processors."""

    tile_bytes = 4 * MIB
    #: No smaller tile is worth its own call, and so many are enough for every processor to get its share.
    least_tile, shares = MIB, 4
    parallel = True
    views_overlap = True
    has_devices = False

    def __init__(self) -> None:
        super().__init__(np)
        self.scratch, self.reserve = Scratch(), Reserve()

    def tile_size(self, algorithm: str, g: Geometry, dtype: DType, whole: float, *, shared: bool) -> float:
        del algorithm, g, dtype
        return min(self.tile_bytes, max(self.least_tile, whole // self.shares)) if shared else self.tile_bytes

    def costs(self, dtype: DType, precision: str) -> Costs:
        del precision
        return numpy_costs(np.dtype(self.accumulator(dtype)))

    def reshape(self, x: Array, shape: Shape) -> Array:
        try:
            return x.reshape(shape, copy=False)
        except ValueError:
            made = self.scratch.take(x.shape, x.dtype)
            made[...] = x
            return made.reshape(shape)

    def view(self, out: Array | None, shape: Shape, dtype: DType) -> Array | None:
        if out is None or out.dtype != dtype:
            return None
        try:
            return out.reshape(shape, copy=False)
        except ValueError:
            return None

    def cast(self, x: Array, dtype: DType) -> Array:
        if x.dtype == dtype:
            return x
        made = self.scratch.take(x.shape, dtype)
        made[...] = x
        return made

    def zeros(self, shape: Shape, dtype: DType, like: Array, out: Array | None = None) -> Array:
        del like, out
        made = self.scratch.take(shape, dtype)
        made.fill(0)
        return made

    def add(self, y: Array, b: Array, out: Array | None = None) -> Array:
        del out
        return np.add(y, b, out=y)

    def add_at(self, x: Array, parts: Iterator[tuple[Index, Array]]) -> Array:
        self.scratch.reset()
        with _short_buffers():
            for index, part in parts:
                x[index] += part
        return x

    def im2col(self, x: Array, g: Geometry, out: Array | None = None) -> Array:
        return _numpy_windows.columns(self.scratch.take, x, g, out)

    def col2im(self, cols: Array, g: Geometry, out: Array | None = None) -> Array:
        del out
        return _numpy_windows.folded_columns(self.scratch.take, cols, g)

    def extend(self, x: Array, g: Geometry) -> Array:
        made = self.scratch.take((*x.shape[:2], *g.padded), x.dtype)
        _numpy_windows.extend(made, x, g)
        return made

    def spare(self, g: Geometry) -> int:
        return _numpy_windows.spare(g)

    def columns_spare(self, g: Geometry) -> int:
        return _numpy_windows.columns_spare(g)

    # depthwise

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        y = self.view(out, g.y_shape, x.dtype)
        y = self.scratch.take(g.y_shape, x.dtype) if y is None else y
        if y.size:
            _numpy_depthwise.forward(self.scratch.take, x, w, g, y)
        return y

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        if dy.size == 0 or not np.isfinite(w).all():  # zeros between the outputs are multiplied below
            return _numpy_depthwise.input_grad_by_tap(self.scratch.take, dy, w, g)
        dx = self.view(out, g.x_shape, dy.dtype)
        dx = self.scratch.take(g.x_shape, dy.dtype) if dx is None else dx
        _numpy_depthwise.input_grad(self.scratch.take, dy, w, g, dx)
        return dx

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        if dy.size == 0:
            return np.zeros(g.w_shape, dy.dtype)
        mark = self.scratch.used
        with np.errstate(invalid="ignore"):
            dw = _numpy_depthwise.weight_grad(self.scratch.take, dy, x, g)
        if np.isfinite(dw).all():
            return dw
        self.scratch.used = mark  # zero times infinity may be in sums where it does not belong
        return super().depthwise_weight_grad(dy, x, g)

    def depthwise_spare(self, g: Geometry) -> int:
        return _numpy_depthwise.spare(g)

    # spectra

    def spectra(self, x: Array, g: Geometry, matrices: Matrices, *, lasting: bool = False) -> Array:
        layout = _numpy_spectra.layout(g, matrices, x.dtype, lasting=lasting)
        if lasting:
            self.scratch.reset(layout.spare * x.itemsize)
        v = (self.reserve if lasting else self.scratch).take(layout.spectra, x.dtype)
        if x.size == 0:
            v.fill(0)
        else:
            images, mark = _channels_behind(x, g), self.scratch.used
            for part in layout.parts:
                self.scratch.used = mark
                _numpy_spectra.spread(self.scratch.take, images[:, part], g, layout, layout.images_of(v, part))
        return v.reshape(1, layout.blocks, g.batch * g.pixels, layout.spectra[-1]).transpose(0, 1, 3, 2)

    def spectra_adjoint(
        self, v: Array, g: Geometry, matrices: Matrices, out: Array | None = None, *, lasting: bool = False
    ) -> Array:
        layout = _numpy_spectra.layout(g, matrices, v.dtype, lasting=lasting)
        if lasting:
            self.scratch.reset(layout.spare * v.itemsize)
        x = (np.empty if lasting else self.scratch.take)(g.x_shape, v.dtype) if out is None else out
        if x.size:
            v = v.transpose(0, 1, 3, 2).reshape(layout.spectra)
            images, mark = _channels_behind(x, g), self.scratch.used
            for part in layout.parts:
                self.scratch.used = mark
                _numpy_spectra.gather(self.scratch.take, layout.images_of(v, part), g, layout, images[:, part])
        return x

    def spectra_spare(self, g: Geometry, matrices: Matrices) -> int:
        return _numpy_spectra.spare(g, matrices)

    # blocks

    def fourier(self, x: Array, g: Geometry, grid: Grid, *, lasting: bool = False) -> Array:
        dtype, rank = np.result_type(x.dtype, np.complex64), len(g.axes)
        parts, spare = self._fourier_parts(g, grid, lasting=lasting)
        if lasting:
            self.scratch.reset(spare * x.itemsize)
        take = (self.reserve if lasting else self.scratch).take
        if grid.behind:
            v = take((g.c_in, g.batch, *g.out, *grid.frequencies), dtype)
            v = v.transpose(*range(2 + rank, v.ndim), *range(2 + rank))
        else:
            v = take((*grid.frequencies, g.c_in, g.batch, *g.out), dtype)
        mark, blocks = self.scratch.used, v.transpose(_fourier.block_order(rank))
        for part, smaller in parts if v.size else ():
            self.scratch.used = mark
            _numpy_fourier.transform(self.scratch.take, x[part], smaller, grid, blocks[part])
        self.scratch.used = mark
        return v.reshape(1, math.prod(grid.frequencies) * g.groups, g.c_in // g.groups, g.batch * g.pixels)

    def fourier_inverse(
        self, v: Array, g: Geometry, grid: Grid, out: Array | None = None, *, lasting: bool = False
    ) -> Array:
        dtype = np.empty(0, v.dtype).real.dtype if grid.real else v.dtype
        parts, spare = self._fourier_parts(g, grid, lasting=lasting)
        if lasting:
            self.scratch.reset(spare * dtype.itemsize)
        x = (np.empty if lasting else self.scratch.take)(g.x_shape, dtype) if out is None else out
        if v.size:
            v = v.reshape(*grid.frequencies, g.c_in, g.batch, *g.out)
            v, mark = v.transpose(_fourier.block_order(len(g.axes))), self.scratch.used
            for part, smaller in parts:
                self.scratch.used = mark
                _numpy_fourier.inverse(self.scratch.take, v[part], smaller, grid, x[part])
        return x

    def _fourier_parts(self, g: Geometry, grid: Grid, *, lasting: bool) -> tuple[list[tuple[Index, Geometry]], int]:
        """The images or channels that are transformed at a time, and the temporary memory for that.

        A few, so that it stays in the cache; but all where those of one lie apart, unless they are filters.
        """
        spare, axis = _numpy_fourier.spare(g, grid), 0 if g.batch > 1 else 1
        if spare <= AT_A_TIME or not (lasting or grid.behind):
            return [((), g)], spare
        parts, count = [], g.x_shape[axis]
        step = max(1, AT_A_TIME * count // spare)
        for first in range(0, count, step):
            size = min(step, count - first)
            smaller = replace(g, c_in=size) if axis else replace(g, batch=size)
            parts.append((along(axis, slice(first, first + size)), smaller))
        return parts, step * (spare // count)

    def fourier_spare(self, g: Geometry, grid: Grid) -> int:
        spare, count = _numpy_fourier.spare(g, grid), g.batch if g.batch > 1 else g.c_in
        return min(spare, max(AT_A_TIME, spare // max(1, count))) if grid.behind else spare

    # products

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        (n, blocks, depth, pixels), rows = v.shape, u.shape[-2]
        if _blocks_behind(v) and 1 in (rows, depth) and out is None:
            if rows == 1 and np.may_share_memory(v, self.scratch.block):  # it is read once, and less leaves the cache
                return self._summed(u, v, v[:, :, :1])
            return self._summed(u, v, self._blocks_last((n, blocks, rows, pixels), v.dtype))
        if v.strides[2] <= v.strides[3] and out is None:  # channels last, and so is the result
            together = self.scratch.take((blocks, n * pixels, rows), v.dtype)
            multiply(np.matrix_transpose(self._images_last(v)), np.matrix_transpose(u), together)
            return together.reshape(blocks, n, pixels, rows).transpose(1, 0, 3, 2)
        if depth == 1 and out is None:  # a call of the BLAS for every block would take longer than its work
            return np.multiply(u, v, out=self.scratch.take((n, blocks, rows, pixels), v.dtype))
        if n > 1 and v.strides[0] == pixels * v.strides[3]:  # the images lie next to each other: one product
            together = self.scratch.take((blocks, rows, n * pixels), v.dtype)
            multiply(u, self._images_last(v), together)
            return together.reshape(blocks, rows, n, pixels).transpose(2, 0, 1, 3)
        if n > 1 and rows * depth > 2 * (rows + depth) * pixels:  # to pack `u` for every image would take longer
            return self._pixels_together(u, v)
        if out is None:
            out = self.scratch.take((n, blocks, rows, pixels), v.dtype)
        return multiply(u, v, out)

    def _pixels_together(self, u: Array, v: Array) -> Array:
        """One product for all images, whose pixels lie beside each other: few pixels make long lines that way."""
        (n, blocks, depth, pixels), rows = v.shape, u.shape[-2]
        memory = self.scratch.take((blocks, depth, pixels, n), v.dtype)
        for i, image in enumerate(v):  # for all at once, NumPy would copy in runs of n
            memory[..., i] = image
        together = self.scratch.take((blocks, rows, pixels * n), v.dtype)
        multiply(u, memory.reshape(blocks, depth, pixels * n), together)
        return together.reshape(blocks, rows, pixels, n).transpose(3, 0, 1, 2)

    def product_by_row(self, u: Array, x: Array, g: Geometry, out: Array | None) -> Array:
        shape = (g.batch, g.groups, g.c_out // g.groups, g.out[0], math.prod(g.out[1:]))
        y = self.view(out, shape, x.dtype)
        y = self.scratch.take(shape, x.dtype) if y is None else y
        multiply(u[:, None], _numpy_windows.rows(self.scratch.take, x, g), y.transpose(0, 1, 3, 2, 4))
        return y.reshape(g.y_shape)

    def _images_last(self, a: Array) -> Array:
        n, blocks, rows, pixels = a.shape
        if n == 1:
            return a[0]
        if a.strides[0] != pixels * a.strides[3]:
            memory = self.scratch.take((blocks, rows, n, pixels), a.dtype)
            memory[...] = a.transpose(1, 2, 0, 3)
            return memory.reshape(blocks, rows, n * pixels)
        return a.transpose(1, 2, 0, 3).reshape(blocks, rows, n * pixels)

    def outer(self, s: Array, v: Array) -> Array:
        (n, blocks, depth, _), rows = v.shape, s.shape[2]
        if n == 1 and _blocks_behind(v) and _blocks_behind(s):
            out = self._blocks_last((1, blocks, rows, depth), v.dtype)
            return self._summed(s, np.matrix_transpose(np.conj(v, out=v)), out)[0]
        s, v = self._images_last(s), self._images_last(v)
        (blocks, rows, _), depth = s.shape, v.shape[1]
        if rows <= FEW_ROWS and rows < depth and v.dtype.kind != "c" and v.strides[2] < v.strides[1]:
            return np.matmul(v, s.mT, out=self.scratch.take((blocks, depth, rows), v.dtype)).mT
        out = self.scratch.take((blocks, rows, depth), v.dtype)
        if v.dtype.kind != "c":
            return np.matmul(s, v.mT, out=out)
        # s @ v^H is the conjugate of conj(s) @ v^T, and s is the smaller one
        conjugate = np.conj(s, out=self.scratch.take(s.shape, s.dtype))
        return np.conj(np.matmul(conjugate, v.mT, out=out), out=out)

    def _blocks_last(self, shape: Shape, dtype: DType) -> Array:
        """Memory for products that are made number by number."""
        n, blocks, rows, columns = shape
        return self.scratch.take((n, rows, columns, blocks), dtype).transpose(0, 3, 1, 2)

    def _summed(self, u: Array, v: Array, out: Array) -> Array:
        """``u @ v``, number by number."""
        np.multiply(u[..., :1], v[..., :1, :], out=out)
        if u.shape[-1] > 1:
            more = self._blocks_last(out.shape, out.dtype)
            for i in range(1, u.shape[-1]):
                np.multiply(u[..., i : i + 1], v[..., i : i + 1, :], out=more)
                np.add(out, more, out=out)
        return out

    def assemble(
        self,
        shape: Shape,
        dtype: DType,
        tiles: Sequence[Tile],
        place: Callable[[Tile], Index],
        piece: Piece,
        *,
        team: Team,
        order: tuple[int, ...],
    ) -> Array:
        result = np.empty([shape[axis] for axis in order], dtype).transpose(inverse(order))

        def fill(i: int) -> None:
            self.scratch.reset(team.memory)
            tile = tiles[i]
            target = result[place(tile)]
            made = piece(tile, target)
            if made is not target:
                target[...] = made

        _run(fill, len(tiles), team)
        return result

    def total(
        self,
        tiles: Sequence[Tile],
        piece: Piece,
        *,
        team: Team,
        lanes: int = 1,
    ) -> Array:
        lanes = min(lanes, len(tiles))
        sums: list[Array] = [None] * lanes

        def add_up(lane: int) -> None:
            for i in range(lane, len(tiles), lanes):
                self.scratch.reset(team.memory)
                made = piece(tiles[i], None)
                if i > lane:
                    sums[lane] += made
                else:
                    sums[lane] = self._held(made) if lane else made.copy(order="K")
                del made  # or it would still be there beside that of the next tile

        _run(add_up, lanes, team)
        if lanes > 1:
            self._join(sums, team)
        return np.ascontiguousarray(sums[0])

    def _join(self, sums: list[Array], team: Team) -> None:
        """Add the others to the first one, in parts. They may lie in memory in other orders."""
        first, *others = sums
        axis = max(range(first.ndim), key=lambda axis: (first.shape[axis] > 1, first.strides[axis]))
        length = first.shape[axis]
        parts = max(1, min(self.shares, length, first.size // JOINED))

        def join(i: int) -> None:
            part = along(axis, slice(length * i // parts, length * (i + 1) // parts))
            for lane in others:
                first[part] += lane[part]

        _run(join, parts, team)

    def _held(self, a: Array) -> Array:
        """A copy that lies in memory as `a` does, and takes less time than a fresh one."""
        order = tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))
        held = self.reserve.take(a.transpose(order).shape, a.dtype).transpose(inverse(order))
        held[...] = a
        return held


def _run(task: Callable[[int], None], count: int, team: Team) -> None:
    """Do the tasks of a team, with short buffers where that is worth a thought."""
    if not team.heavy and team.memory < WORTH_SHORT_BUFFERS:
        _threads.run(task, count, team)
        return
    with _short_buffers():
        _threads.run(task, count, team)


@contextmanager
def _short_buffers() -> Iterator[None]:
    """Let NumPy add and cast arrays with gaps by way of 1024 elements at a time.

    By itself it takes 8192, which cost more memory, and more time.
    """
    before = np.setbufsize(1024)
    try:
        yield
    finally:
        np.setbufsize(before)


def _blocks_behind(v: Array) -> bool:
    """Whether the blocks of an operand lie behind all else, as the frequencies of products of single numbers do."""
    return bool(v.size) and v.shape[1] > 1 and bool(v.strides[1] == v.itemsize)


def _channels_behind(x: Array, g: Geometry) -> Array:
    """Images ``(n, c, *size)`` as ``(groups, n, *size, channels of a group)``."""
    x = x.reshape(g.batch, g.groups, g.c_in // g.groups, *g.size)
    return x.transpose(1, 0, *range(3, x.ndim), 2)
