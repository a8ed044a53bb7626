"""Pooling over tiles: the largest element of every window, or its mean, and what comes back from either.

What comes back to a tile of the inputs depends on all that the windows read which see it.
"""

import math
from collections.abc import Callable
from typing import ClassVar

from .._geometry import Geometry, Side, Tile
from .._typing import Array, Function, Pooled
from ..algorithms import Algorithm
from ..primitives import Costs, Piece, Whole
from ._tiled import Tiled, input_of, output_of


class Pooling(Tiled):
    """What makes an element for every window, or takes it back to the inputs."""

    over: ClassVar[Side] = "outputs"
    #: Whether it is the mean of a window, and not its largest element.
    mean: ClassVar[bool] = False

    @classmethod
    def scratch(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> int:
        del algorithm
        return math.prod(g.x_shape) + math.prod(g.y_shape) + costs.pool_spare(g, mean=cls.mean, back=cls.is_back())

    @classmethod
    def reads(cls, g: Geometry) -> int:
        if cls.is_back():
            return math.prod(g.y_shape)
        return math.prod(g.x_shape) if cls.mean else 0  # the largest are found in what is there

    @classmethod
    def filters(cls, algorithm: Algorithm, g: Geometry) -> int:
        del algorithm, g
        return 0

    @classmethod
    def cost_of(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        del algorithm
        return costs.pool(g, mean=cls.mean, back=cls.is_back())

    @classmethod
    def is_back(cls) -> bool:
        """Whether it takes elements of windows back to the inputs."""
        return cls.over == "windows"

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
            return back(tile, self._operand(backend.part(dy, tile.y)), out)

        return self._assembled(piece)

    def _mean(self, *, count_include_pad: bool) -> Pooled:
        return "mean" if count_include_pad or not self.geometry.is_padded else "mean_seen"


class MaxPool(Pooling):
    """The largest element of every window."""

    function: ClassVar[Function] = "max_pool"

    def run(self, x: Array) -> Array:
        backend, x = self.backend, self._channels_first(x)
        return self._assembled(lambda tile, out: backend.pool(backend.part(x, tile.x), tile.geometry, "max", out))


class MaxPoolGrad(Pooling):
    """The gradient of that: each element of `dy`, where the first of the largest was read."""

    function: ClassVar[Function] = "max_pool_grad"
    over = "windows"

    def run(self, dy: Array, x: Array) -> Array:
        backend, x = self.backend, self._channels_first(x)

        def back(tile: Tile, part: Array, out: Array | None) -> Array:
            whole, reads, *_ = tile.whole
            return backend.pool_grad(part, backend.part(x, reads), tile.geometry, whole, "max", out)

        return self._taken_back(dy, back)


class AvgPool(Pooling):
    """The mean of every window."""

    function: ClassVar[Function] = "avg_pool"
    mean = True

    def run(self, x: Array, *, count_include_pad: bool) -> Array:
        backend, x, how = self.backend, self._channels_first(x), self._mean(count_include_pad=count_include_pad)

        def piece(tile: Tile, out: Array | None) -> Array:
            return backend.pool(self._operand(backend.part(x, tile.x)), tile.geometry, how, out)

        return self._assembled(piece)


class AvgPoolGrad(Pooling):
    """The gradient of that: an equal share of each element of `dy` for all that it is the mean of."""

    function: ClassVar[Function] = "avg_pool_grad"
    over = "windows"
    mean = True

    def run(self, dy: Array, *, count_include_pad: bool) -> Array:
        backend, how = self.backend, self._mean(count_include_pad=count_include_pad)

        def back(tile: Tile, part: Array, out: Array | None) -> Array:
            return backend.pool_grad(part, None, tile.geometry, tile.whole.geometry, how, out)

        return self._taken_back(dy, back)
