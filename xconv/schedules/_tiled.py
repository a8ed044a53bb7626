"""One function of a convolution over tiles: cut the arrays, run an algorithm on each piece, put the pieces together.

Tiles of the forward pass and of the weight gradient cut the outputs, those of the input gradient cut the inputs, so
no two of them write to one place. Padding that is not zeros is written out tile by tile on the way in; on the way back
the gradient of what is read from the array is computed like that of any other part of the input, and added where it was
read.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from .._geometry import Geometry, Side, Tile
from .._tiler import Border
from .._typing import Array, DType, Function, Index
from ..algorithms import Algorithm, RefusedError
from ..primitives import Costs, Primitives, Team, Whole, inverse

#: What is said of a way on which NaN and infinity do not stay where they belong.
STRAYING = "multiplies filters by zeros that no tap reads"


@dataclass(frozen=True, eq=False)
class Tiled:
    """By which algorithm, with what arithmetic, in which pieces."""

    #: What the algorithm is asked for, and the side of the convolution that the tiles cut.
    function: ClassVar[Function]
    over: ClassVar[Side]
    #: The function itself, of arrays in the caller's layout; it checks nothing.
    run: ClassVar[Callable[..., Array]]

    backend: Primitives
    geometry: Geometry
    algorithm: Algorithm
    #: The dtype of the result, of what is multiplied, and the one in which products are summed.
    dtype: DType
    operand: DType
    accumulator: DType
    tiles: Sequence[Tile]
    team: Team
    #: Partial sums that may grow side by side.
    lanes: int
    #: Bytes of temporary memory on one thread, at most.
    workspace: int
    #: The predicted time, in multiply-adds of float32.
    cost: float
    #: Whether to look for filters that are not finite, and turn down those that would stray.
    looks: bool
    #: Makes the parts of a padding that is not zeros.
    find_borders: Callable[[], Iterator[Border]]
    #: What the backend remembers of calls.
    remembered: dict[Any, Any] = field(default_factory=dict, init=False)

    # What the planner asks.

    @classmethod
    def geometry_of(cls, g: Geometry) -> Geometry | None:
        """The convolution that is computed where `g` is asked for; None where there is none."""
        return g

    @classmethod
    def label(cls, algorithm: Algorithm) -> str:
        return algorithm.name

    @classmethod
    def scratch(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> int:
        """Elements of temporary memory for a tile."""
        return algorithm.scratch(cls.function, g, costs)

    @classmethod
    def reads(cls, g: Geometry) -> int:
        """Elements that a tile reads, and that are cast where they are of another dtype than what is multiplied."""
        return math.prod(g.x_shape)

    @classmethod
    def filters(cls, algorithm: Algorithm, g: Geometry) -> int:
        """Elements of the filters as they are taken, and of what else it takes to make these."""
        return algorithm.filters(g)

    @classmethod
    def cost_of(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        """Predicted time of a tile."""
        return algorithm.cost(cls.function, g, costs)

    @classmethod
    def once(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        """Predicted time of what is done once for all tiles."""
        return algorithm.once(cls.function, g, costs)

    @classmethod
    def strays(cls, algorithm: Algorithm, g: Geometry) -> bool:
        """Whether filters meet zeros that are not there, so that an infinite one reaches results it has no part in."""
        del g
        return cls.function in algorithm.strays

    @property
    def name(self) -> str:
        """The algorithm, and the way to it."""
        return self.label(self.algorithm)

    # What a call runs.

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
        g, part = tile.geometry, self.backend.part(x, tile.x)
        if g.is_filled and g.is_padded:
            if g.pad_value:  # which the dtype of `x` may not hold
                part = self.backend.cast(part, self.dtype)
            return g.extended(), self.backend.extend(part, g)
        return g.zero_padded(), part

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The axes of an image in the order in which they lie in the caller's memory."""
        return self.geometry.in_layout(tuple(range(2 + len(self.geometry.axes))))

    def _channels_first(self, a: Array) -> Array:
        return self.backend.xp.permute_dims(a, inverse(self._order)) if self.geometry.channels_last else a

    def _callers_layout(self, a: Array) -> Array:
        return self.backend.xp.permute_dims(a, self._order) if self.geometry.channels_last else a


class Forward(Tiled):
    """The convolution, plus `b`."""

    function = "forward"
    over = "outputs"

    def run(self, x: Array, w: Array, b: Array | None = None) -> Array:
        backend, x = self.backend, self._channels_first(x)
        w, bias = backend.astype(w, self.operand), self._bias(b)
        u = self.algorithm.transform(backend, self.geometry, w, self.team)
        rounded_once = bias is None or self.dtype == self.accumulator

        def piece(tile: Tile, out: Array | None) -> Array:
            g, part = self._read(tile, x)
            y = self.algorithm.forward(backend, g, self._operand(part), u, out if rounded_once else None)
            return y if bias is None else backend.add(y, bias, out)

        result = backend.assemble(self._whole, self.tiles, piece, self.team)
        return self._callers_layout(result)

    @cached_property
    def _whole(self) -> Whole:
        return Whole(self.geometry.y_shape, self.dtype, self._order, output_of)


class InputGrad(Tiled):
    """The gradient; plus `b`, and without conjugation, for the transposed convolution."""

    function = "input_grad"
    over = "inputs"

    @classmethod
    def geometry_of(cls, g: Geometry) -> Geometry | None:
        return g.linear()

    @classmethod
    def reads(cls, g: Geometry) -> int:
        return math.prod(g.y_shape)

    def run(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        backend, dy = self.backend, self._channels_first(dy)
        w = backend.astype(backend.conj(w) if conjugate else w, self.operand)
        u, bias = self.algorithm.adjoint_operand(backend, self.geometry, w, self.team), self._bias(b)

        rounded_once = bias is None or self.dtype == self.accumulator

        def part(tile: Tile, out: Array | None) -> Array:
            g = tile.geometry.zero_padded()
            if g.pixels == 0:  # a gap that no window sees
                return backend.zeros(g.x_shape, self.accumulator, dy, out)
            return self.algorithm.input_grad(backend, g, self._operand(backend.part(dy, tile.y)), u, out)

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
        blank = self.algorithm.adds_up and not g.is_covered
        dx = backend.assemble(Whole(g.x_shape, dtype, self._order, input_of, blank), self.tiles, piece, self.team)
        if g.pad_mode != "constant":
            for border in self._borders:
                for tile in border.parts():
                    dx = backend.add_at(dx, retracted(tile))
        return self._callers_layout(backend.astype(dx, self.dtype))

    @property
    def _borders(self) -> Iterable[Border]:
        return self._few_borders if len(self.geometry.axes) <= 3 else self.find_borders()

    @cached_property
    def _few_borders(self) -> tuple[Border, ...]:
        return tuple(self.find_borders())


class Reflected(Forward):
    """The input gradient of stride 1 and zero padding, as the convolution with reflected filters that it is."""

    #: To reflect an element of a filter takes as much time as to copy so many.
    reflecting = 6

    @classmethod
    def geometry_of(cls, g: Geometry) -> Geometry | None:
        return None if g.is_empty else g.reflected()

    @classmethod
    def label(cls, algorithm: Algorithm) -> str:
        return f"{algorithm.name}, reflected"

    @classmethod
    def filters(cls, algorithm: Algorithm, g: Geometry) -> int:
        return super().filters(algorithm, g) + math.prod(g.w_shape)

    @classmethod
    def once(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        return super().once(algorithm, g, costs) + costs.moved(cls.reflecting * math.prod(g.w_shape), 4)

    @classmethod
    def strays(cls, algorithm: Algorithm, g: Geometry) -> bool:
        del algorithm
        return any(axis.lo > 0 or axis.hi > 0 for axis in g.axes)

    def run(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        xp = self.backend.xp
        if self.looks and self.strays(self.algorithm, self.geometry) and not xp.all(xp.isfinite(w)):
            raise RefusedError(self.algorithm.name, f"it {STRAYING}, and some are not finite")
        return super().run(dy, self._reflected(w, conjugate=conjugate), b)

    def _reflected(self, w: Array, *, conjugate: bool) -> Array:
        g, xp = self.geometry, self.backend.xp
        w = xp.reshape(xp.flip(w, axis=tuple(range(2, w.ndim))), (g.groups, g.c_in // g.groups, *w.shape[1:]))
        w = xp.reshape(xp.moveaxis(w, 2, 1), g.w_shape)
        return self.backend.conj(w) if conjugate else w


class WeightGrad(Tiled):
    """The filters' gradient."""

    function = "weight_grad"
    over = "outputs"

    @classmethod
    def reads(cls, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape)

    def run(self, dy: Array, x: Array) -> Array:
        backend, dy, x = self.backend, self._channels_first(dy), self._channels_first(x)

        def piece(tile: Tile, _: Array | None) -> Array:
            g, part = self._read(tile, x)
            return self.algorithm.weight_grad(backend, g, self._operand(backend.part(dy, tile.y)), self._operand(part))

        total = backend.total(self.tiles, piece, team=self.team, lanes=self.lanes)
        dw = self.algorithm.transform_adjoint(backend, self.geometry, total, self.team)
        return backend.astype(dw, self.dtype)


def input_of(tile: Tile) -> Index:
    return tile.x


def output_of(tile: Tile) -> Index:
    return tile.y
