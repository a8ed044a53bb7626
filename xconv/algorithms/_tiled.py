"""Every function over tiles: cut the arrays, run an algorithm on each piece, put the pieces together.

Tiles of the forward pass and of the weight gradient cut the outputs, those of the input gradient cut the inputs, so
no two of them write to one place. Padding that is read from the array itself is written out tile by tile on the way
in; on the way back its gradient is computed like that of any other part of the input, and added where it was read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from .._geometry import Border, Geometry, Tile
from .._typing import Array, DType, Index, Shape
from ..backends import Backend, Piece, Team
from ._bilinear import Algorithm


@dataclass(frozen=True, eq=False)
class Schedule:
    """How a convolution is run: by which algorithm, with what arithmetic, in which pieces.

    The methods take and return arrays in the caller's layout and check nothing.
    """

    algorithm: Algorithm
    backend: Backend
    geometry: Geometry
    dtype: DType
    #: The dtype in which products are summed.
    accumulator: DType
    channels_last: bool
    team: Team
    #: Partial sums of the weight gradient that may grow side by side.
    lanes: int
    #: Temporary memory of the largest tile, at most.
    tile_bytes: int
    tiles: tuple[Tile, ...]
    input_tiles: tuple[Tile, ...]
    borders: tuple[Border, ...]

    @cached_property
    def x_shape(self) -> Shape:
        return self._in_layout(self.geometry.x_shape)

    @cached_property
    def y_shape(self) -> Shape:
        return self._in_layout(self.geometry.y_shape)

    def forward(self, x: Array, w: Array, b: Array | None) -> Array:
        backend, g, x = self.backend, self.geometry, self._channels_first(x)
        u, bias = self._transform(w), self._bias(b)

        def piece(i: int, out: Array | None) -> Array:
            smaller, part = self._read(self.tiles[i], x)
            y = self.algorithm.forward(backend, smaller, self._cast(part), u, out)
            return y if bias is None else backend.add(y, bias)

        places = [tile.y for tile in self.tiles]
        return self._assembled(g.y_shape, places, piece, x)

    def input_grad(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        """The gradient; plus `b`, and without conjugation, for the transposed convolution."""
        backend, g, dy = self.backend, self.geometry, self._channels_first(dy)
        transpose = backend.adjoint if conjugate else backend.xp.matrix_transpose
        u_adjoint, bias = transpose(self._transform(w)), self._bias(b)

        def part(tile: Tile) -> Array:
            smaller = tile.geometry.zero_padded()
            if smaller.pixels == 0:  # a gap that no window sees
                return backend.zeros(smaller.x_shape, self.accumulator, dy)
            return self.algorithm.input_grad(backend, smaller, self._cast(dy[tile.y]), u_adjoint)

        def piece(i: int, _: Array | None) -> Array:
            dx = part(self.input_tiles[i])
            return dx if bias is None else backend.add(dx, bias)

        dx = self._assembled(g.x_shape, [tile.x for tile in self.input_tiles], piece, dy)
        if self.borders:
            dx = self._channels_first(dx)
            for border in self.borders:
                dx = backend.add_at(dx, border.source, partial(self._retracted, part, border))
            dx = self._callers_layout(dx)
        return dx

    def _retracted(self, part: Callable[[Tile], Array], border: Border) -> Array:
        return self.backend.retract(part(border.tile), border.runs)

    def weight_grad(self, dy: Array, x: Array) -> Array:
        backend, g = self.backend, self.geometry
        dy, x = self._channels_first(dy), self._channels_first(x)

        def piece(i: int, _: Array | None) -> Array:
            smaller, part = self._read(self.tiles[i], x)
            return self.algorithm.weight_grad(backend, smaller, self._cast(dy[self.tiles[i].y]), self._cast(part))

        return backend.total(
            g.w_shape, self.dtype, len(self.tiles), piece, like=x, team=self.team, lanes=self.lanes
        )

    def im2col(self, x: Array) -> Array:
        g = self.geometry

        def piece(i: int, _: Array | None) -> Array:
            smaller, part = self._read(self.tiles[i], x)
            return self.backend.im2col(part, smaller.axes)

        places = [self._of_columns(tile.y) for tile in self.tiles]
        shape = (g.batch, g.c_in, *g.kernel, *g.out)
        return self._assembled(shape, places, piece, x)

    def col2im(self, cols: Array) -> Array:
        g = self.geometry

        def piece(i: int, _: Array | None) -> Array:
            tile = self.input_tiles[i]
            if tile.geometry.pixels == 0:
                return self.backend.zeros(tile.geometry.x_shape, self.accumulator, cols)
            return self.backend.col2im(self._cast(cols[self._of_columns(tile.y)]), tile.geometry.axes)

        return self._assembled(g.x_shape, [tile.x for tile in self.input_tiles], piece, cols)

    def _transform(self, w: Array) -> Array:
        return self.algorithm.transform(self.backend, self.geometry, self._cast(w))

    def _bias(self, b: Array | None) -> Array | None:
        return None if b is None else self.backend.xp.reshape(self._cast(b), (1, -1, *(1 for _ in self.geometry.axes)))

    def _cast(self, a: Array) -> Array:
        return self.backend.astype(a, self.accumulator)

    def _read(self, tile: Tile, x: Array) -> tuple[Geometry, Array]:
        """The input of a tile, with no padding left but zeros."""
        g, part = tile.geometry, x[tile.x]
        if g.pad_mode != "constant" and g.is_padded:
            return g.extended(), self.backend.extend(part, g)
        return g.zero_padded(), part

    def _assembled(self, shape: Shape, places: list[Index], piece: Piece, like: Array) -> Array:
        result = self.backend.assemble(
            shape, self.dtype, places, piece, like=like, team=self.team, channels_last=self.channels_last
        )
        return self._callers_layout(result)

    def _of_columns(self, y: Index) -> Index:
        """The index of columns that belongs to an index of outputs."""
        return (y[0], slice(None), *(slice(None) for _ in self.geometry.axes), *y[2:])

    def _in_layout(self, shape: Shape) -> Shape:
        return (shape[0], *shape[2:], shape[1]) if self.channels_last else shape

    def _channels_first(self, a: Array) -> Array:
        return self.backend.xp.moveaxis(a, -1, 1) if self.channels_last else a

    def _callers_layout(self, a: Array) -> Array:
        return self.backend.xp.moveaxis(a, 1, -1) if self.channels_last else a
