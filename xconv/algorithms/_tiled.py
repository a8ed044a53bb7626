"""Every function over tiles: cut the arrays, run an algorithm on each piece, put the pieces together.

Tiles of the forward pass and of the weight gradient cut the outputs, those of the input gradient cut the inputs, so
no two of them write to one place. Padding that is read from the array itself is written out tile by tile on the way
in; on the way back its gradient is computed like that of any other part of the input, and added where it was read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any

from .._geometry import Border, Geometry, Tile
from .._typing import Array, DType, Index, Shape
from ..backends import Piece, RefusedError, Team
from ._algorithm import Algorithm
from ._schedule import Schedule


def _by_its_backend(method: Callable[..., Array]) -> Callable[..., Array]:
    """Has the backend of a library with devices run a method of a schedule; or the next best, where it is refused."""

    @wraps(method)
    def run(self: "Tiled", *arrays: Array, **options: bool) -> Array:
        try:
            if self.backend.has_devices:
                return self.backend.call(method, self, *arrays, **options)
            return method(self, *arrays, **options)
        except RefusedError:
            if self.otherwise is None:
                raise
        instead: Array = getattr(self.otherwise, method.__name__)(*arrays, **options)
        return instead

    return run


@dataclass(frozen=True, eq=False)
class Tiled(Schedule):
    """By which algorithm, with what arithmetic, in which pieces."""

    algorithm: Algorithm
    #: The dtype of what is multiplied.
    operand: DType
    team: Team
    #: Partial sums of the weight gradient that may grow side by side.
    lanes: int
    #: Bytes of temporary memory on one thread, at most.
    workspace: int
    tiles: Sequence[Tile]
    input_tiles: Sequence[Tile]
    #: Those of the weight gradient, which cut the outputs, too.
    weight_tiles: Sequence[Tile]
    #: Makes the parts of a padding that is not zeros, for the input gradient.
    find_borders: Callable[[], Iterator[Border]]
    #: The convolution with reflected filters that makes the input gradient, where that is cheaper than folding back.
    reflection: "Tiled | None" = None
    #: What runs where another library refuses, unless its algorithm was asked for by name.
    otherwise: "Tiled | None" = None
    #: What the backend remembers of calls.
    remembered: dict[Any, Any] = field(default_factory=dict, init=False)

    def chosen(self, function: str, like: Array) -> "Tiled":
        del function, like
        return self

    @_by_its_backend
    def forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        backend, x = self.backend, self._channels_first(x)
        u, bias = self.algorithm.transform(backend, self.geometry, backend.astype(w, self.operand)), self._bias(b)
        rounded_once = bias is None or self.dtype == self.accumulator

        def piece(tile: Tile, out: Array | None) -> Array:
            g, part = self._read(tile, x)
            y = self.algorithm.forward(backend, g, self._operand(part), u, out if rounded_once else None)
            return y if bias is None else backend.add(y, bias, out)

        result = self._assembled(self.geometry.y_shape, self.tiles, _output, piece, self.dtype, self._order)
        return self._callers_layout(result)

    @_by_its_backend
    def input_grad(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        if self.reflection:
            return self.reflection.forward(dy, self._reflected(w, conjugate=conjugate), b)
        backend, dy = self.backend, self._channels_first(dy)
        w = backend.astype(backend.conj(w) if conjugate else w, self.operand)
        u, bias = self.algorithm.adjoint_operand(backend, self.geometry, w), self._bias(b)

        rounded_once = bias is None or self.dtype == self.accumulator

        def part(tile: Tile, out: Array | None) -> Array:
            g = tile.geometry.zero_padded()
            if g.pixels == 0:  # a gap that no window sees
                return backend.zeros(g.x_shape, self.accumulator, dy, out)
            return self.algorithm.input_grad(backend, g, self._operand(dy[tile.y]), u, out)

        def retracted(tile: Tile) -> Iterator[tuple[Index, Array]]:
            strip = part(tile, None)
            for block, runs, source in g.reads(tile.x[2:]):
                yield (*tile.x[:2], *source), backend.retract(strip[block], runs)

        def piece(tile: Tile, out: Array | None) -> Array:
            dx = part(tile, out if rounded_once else None)
            return dx if bias is None else backend.add(dx, bias, out)

        # What is added to later is not rounded before.
        g = self.geometry
        dtype = self.dtype if g.pad_mode == "constant" else self.accumulator
        dx = self._assembled(g.x_shape, self.input_tiles, _input, piece, dtype, self._order)
        if g.pad_mode != "constant":
            for border in self._borders:
                for tile in border.parts():
                    dx = backend.add_at(dx, retracted(tile))
        return self._callers_layout(backend.astype(dx, self.dtype))

    @_by_its_backend
    def weight_grad(self, dy: Array, x: Array) -> Array:
        backend, dy, x = self.backend, self._channels_first(dy), self._channels_first(x)

        def piece(tile: Tile, _: Array | None) -> Array:
            g, part = self._read(tile, x)
            return self.algorithm.weight_grad(backend, g, self._operand(dy[tile.y]), self._operand(part))

        total = backend.total(self.weight_tiles, piece, team=self.team, lanes=self.lanes)
        return backend.astype(self.algorithm.transform_adjoint(backend, self.geometry, total), self.dtype)

    @_by_its_backend
    def im2col(self, x: Array, *, images_last: bool) -> Array:
        def piece(tile: Tile, out: Array | None) -> Array:
            g, part = self._read(tile, x)
            return self.backend.im2col(part, g, out)

        g = self.geometry
        order = tuple(range(len(g.columns_shape)))
        order = (*order[1:], 0) if images_last else order
        return self._assembled(g.columns_shape, self.tiles, _columns, piece, self.dtype, order)

    @_by_its_backend
    def col2im(self, cols: Array) -> Array:
        def piece(tile: Tile, out: Array | None) -> Array:
            g = tile.geometry
            if g.pixels == 0:
                return self.backend.zeros(g.x_shape, self.accumulator, cols, out)
            return self.backend.col2im(self._operand(cols[_columns(tile)]), g, out)

        g = self.geometry
        order = tuple(range(len(g.x_shape)))
        return self._assembled(g.x_shape, self.input_tiles, _input, piece, self.dtype, order)

    @property
    def _borders(self) -> Iterable[Border]:
        return self._few_borders if len(self.geometry.axes) <= 3 else self.find_borders()

    @cached_property
    def _few_borders(self) -> tuple[Border, ...]:
        return tuple(self.find_borders())

    def _reflected(self, w: Array, *, conjugate: bool) -> Array:
        """The filters with which the adjoint of a convolution of stride 1 is a convolution, too."""
        g, xp = self.geometry, self.backend.xp
        w = xp.reshape(xp.flip(w, axis=tuple(range(2, w.ndim))), (g.groups, -1, *g.w_shape[1:]))
        w = xp.reshape(xp.moveaxis(w, 2, 1), (g.c_in, -1, *g.kernel))
        return self.backend.conj(w) if conjugate else w

    def _bias(self, b: Array | None) -> Array | None:
        if b is None:
            return None
        b = self.backend.astype(b, self.accumulator)
        return self.backend.xp.reshape(b, (1, -1, *(1 for _ in self.geometry.axes)))

    def _operand(self, a: Array) -> Array:
        """What a tile reads of `a`, as its algorithm multiplies it."""
        return self.backend.cast(a, self.operand)

    def _read(self, tile: Tile, x: Array) -> tuple[Geometry, Array]:
        """The input of a tile, with no padding left but zeros."""
        g, part = tile.geometry, x[tile.x]
        if g.pad_mode != "constant" and g.is_padded:
            return g.extended(), self.backend.extend(part, g)
        return g.zero_padded(), part

    def _assembled(
        self,
        shape: Shape,
        tiles: Sequence[Tile],
        place: Callable[[Tile], Index],
        piece: Piece,
        dtype: DType,
        order: tuple[int, ...],
    ) -> Array:
        return self.backend.assemble(shape, dtype, tiles, place, piece, team=self.team, order=order)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The axes of an image in the order in which they lie in the caller's memory."""
        return self.geometry.in_layout(tuple(range(2 + len(self.geometry.axes))))

    def _channels_first(self, a: Array) -> Array:
        return self.backend.xp.moveaxis(a, -1, 1) if self.geometry.channels_last else a

    def _callers_layout(self, a: Array) -> Array:
        return self.backend.xp.moveaxis(a, 1, -1) if self.geometry.channels_last else a


def _input(tile: Tile) -> Index:
    return tile.x


def _output(tile: Tile) -> Index:
    return tile.y


def _columns(tile: Tile) -> Index:
    """Where the windows of a tile lie among all, ``(n, c, *kernel, *out)``."""
    return (tile.y[0], slice(None), *(slice(None) for _ in tile.geometry.axes), *tile.y[2:])
