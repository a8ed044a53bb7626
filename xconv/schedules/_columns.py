"""im2col and its adjoint over tiles."""

import math

from .._geometry import Geometry, Tile
from .._typing import Array, Index
from ..algorithms import Algorithm
from ..primitives import Costs, Whole
from ._tiled import Tiled, input_of


class Im2col(Tiled):
    """All windows, ``(n, c, *kernel, *out)``, with their axes in memory in the geometry's order."""

    function = "im2col"
    over = "outputs"

    @classmethod
    def scratch(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> int:
        del algorithm
        return costs.columns_spare(g)

    @classmethod
    def reads(cls, g: Geometry) -> int:
        del g
        return 0  # nothing is multiplied, or cast

    @classmethod
    def cost_of(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        del algorithm
        return costs.im2col(g)

    def run(self, x: Array) -> Array:
        def piece(tile: Tile, out: Array | None) -> Array:
            g, part = self._read(tile, x)
            return self.backend.im2col(part, g, out)

        g = self.geometry
        order = g.order or tuple(range(len(g.columns_shape)))
        whole = Whole(g.columns_shape, self.dtype, order, _columns)
        return self.backend.assemble(whole, self.tiles, piece, self.team)


class Col2im(Tiled):
    """The adjoint of that."""

    function = "col2im"
    over = "inputs"

    @classmethod
    def scratch(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> int:
        del algorithm
        return costs.spare(g)

    @classmethod
    def reads(cls, g: Geometry) -> int:
        return math.prod(g.columns_shape)

    @classmethod
    def cost_of(cls, algorithm: Algorithm, g: Geometry, costs: Costs) -> float:
        del algorithm
        return costs.col2im(g)

    def run(self, cols: Array) -> Array:
        def piece(tile: Tile, out: Array | None) -> Array:
            g = tile.geometry
            if g.pixels == 0:
                return self.backend.zeros(g.x_shape, self.accumulator, cols, out)
            return self.backend.col2im(self._operand(self.backend.part(cols, _columns(tile))), g, out)

        g = self.geometry
        order = tuple(range(len(g.x_shape)))
        whole = Whole(g.x_shape, self.dtype, order, input_of, blank=not g.is_covered)
        return self.backend.assemble(whole, self.tiles, piece, self.team)


def _columns(tile: Tile) -> Index:
    """Where the windows of a tile lie among all, ``(n, c, *kernel, *out)``."""
    return (tile.y[0], slice(None), *(slice(None) for _ in tile.geometry.axes), *tile.y[2:])
