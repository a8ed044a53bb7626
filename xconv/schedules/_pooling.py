"""Pooling over tiles: the largest element of every window, or its mean, and what comes back from either.

A mean is a depthwise convolution with filters of ones, divided by the number of elements that a window counts. What
comes back to a tile of the inputs depends on all that the windows read which see it.
"""

import math
from collections.abc import Callable
from typing import ClassVar

from .._geometry import Geometry, Side, Tile
from .._typing import Array, DType, Function, Index
from ..algorithms import Algorithm
from ..primitives import Costs, Piece, Whole, counts
from ._tiled import Forward, InputGrad, Tiled, input_of, output_of


class Pooling(Tiled):
    """What makes an element for every window, or takes it back to the inputs."""

    over: ClassVar[Side] = "outputs"

    def _assembled(self, piece: Piece) -> Array:
        g = self.geometry
        shape, place = (g.y_shape, output_of) if self.over == "outputs" else (g.x_shape, input_of)
        whole = Whole(shape, self.dtype, self._order, place)
        return self._callers_layout(self.backend.assemble(whole, self.tiles, piece, self.team))

    def _taken_back(self, dy: Array, back: Callable[[Tile, Array, Array | None], Array]) -> Array:
        """What `back` makes for every tile of the inputs, of the part of `dy` whose windows see these."""
        backend, dy = self.backend, self._channels_first(dy)

        def piece(tile: Tile, out: Array | None) -> Array:
            g = tile.geometry
            if g.pixels == 0:  # a gap that no window sees
                return backend.zeros(g.x_shape, self.accumulator, dy, out)
            return back(tile, backend.cast(backend.part(dy, tile.y), self.accumulator), out)

        return self._assembled(piece)


class MaxPool(Pooling):
    """The largest element of every window."""

    function: ClassVar[Function] = "max_pool"

    @classmethod
    def scratch(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> int:
        del algorithm
        spare = costs.max_pool_spare(g, gradient=cls.over == "windows")
        return math.prod(g.x_shape) + math.prod(g.y_shape) + spare

    @classmethod
    def reads(cls, g: Geometry) -> int:
        return math.prod(g.y_shape) if cls.over == "windows" else 0  # the largest are found in what is there

    @classmethod
    def filters(cls, algorithm: Algorithm, g: Geometry) -> int:
        del algorithm, g
        return 0

    @classmethod
    def cost_of(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        del algorithm
        return costs.max_pool(g, gradient=cls.over == "windows")

    def run(self, x: Array) -> Array:
        backend, x = self.backend, self._channels_first(x)
        return self._assembled(lambda tile, out: backend.max_pool(backend.part(x, tile.x), tile.geometry, out))


class MaxPoolGrad(MaxPool):
    """The gradient of that: each element of `dy`, where the first of the largest was read."""

    function = "max_pool_grad"
    over = "windows"

    def run(self, dy: Array, x: Array) -> Array:  # type: ignore[override]
        backend, x = self.backend, self._channels_first(x)

        def back(tile: Tile, part: Array, _: Array | None) -> Array:
            g, (whole, reads, *_) = tile.geometry, tile.whole
            return backend.max_pool_grad(part, backend.part(x, reads), whole)[own(g, whole)]

        return self._taken_back(dy, back)


class AvgPool(Pooling):
    """The mean of every window."""

    function: ClassVar[Function] = "avg_pool"
    #: The same with filters of ones, and without a division.
    sums: ClassVar[type[Tiled]] = Forward

    @classmethod
    def scratch(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> int:
        return cls.sums.scratch(algorithm, g, costs) + g.pixels

    @classmethod
    def reads(cls, g: Geometry) -> int:
        return cls.sums.reads(g)

    @classmethod
    def cost_of(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        return cls.sums.cost_of(algorithm, g, costs)

    def run(self, x: Array, *, count_include_pad: bool) -> Array:
        backend, x = self.backend, self._channels_first(x)
        rounded_once = self.dtype == self.accumulator

        def piece(tile: Tile, out: Array | None) -> Array:
            u = self.algorithm.transform(backend, tile.geometry, self._ones(self.operand, x))
            part = self._operand(backend.part(x, tile.x))
            y = self.algorithm.forward(backend, tile.geometry, part, u, out if rounded_once else None)
            y /= self._counted(tile.geometry, x, count_include_pad=count_include_pad)
            return y

        return self._assembled(piece)

    def _ones(self, dtype: DType, like: Array) -> Array:
        """Filters that add up."""
        return self.backend.zeros(self.geometry.w_shape, dtype, like) + 1

    def _counted(self, g: Geometry, like: Array, *, count_include_pad: bool) -> Array | int:
        """How many elements a window counts."""
        if count_include_pad or not g.is_padded:
            return g.taps
        return counts(self.backend.xp, g, self.accumulator, like)


class AvgPoolGrad(AvgPool):
    """The gradient of that: an equal share of each element of `dy` for all that it is the mean of."""

    function = "avg_pool_grad"
    over = "windows"
    sums = InputGrad

    def run(self, dy: Array, *, count_include_pad: bool) -> Array:
        backend = self.backend

        def back(tile: Tile, part: Array, out: Array | None) -> Array:
            part = part / self._counted(tile.whole.geometry, dy, count_include_pad=count_include_pad)
            u = self.algorithm.adjoint_operand(backend, tile.geometry, self._ones(self.accumulator, dy))
            return self.algorithm.input_grad(backend, tile.geometry, part, u, out)

        return self._taken_back(dy, back)


def own(part: Geometry, whole: Geometry) -> Index:
    """Where the inputs of a tile lie among all that the windows read which see them."""
    starts = (a.lo - b.lo for a, b in zip(part.axes, whole.axes, strict=True))
    places = (slice(at, at + size) for at, size in zip(starts, part.size, strict=True))
    return (slice(None), slice(None), *places)
