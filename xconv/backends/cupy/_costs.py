"""What the primitives cost on a CUDA device."""

import math

from ..._geometry import Geometry
from ..._typing import Function
from ...primitives import Costs, Product
from ._steps import LINE


class KernelCosts(Costs):
    """Our kernels read what they write columns of, and nothing twice; and all memory is kept."""

    page = 0.0

    def im2col(self, g: Geometry) -> float:
        return self.moved(math.prod(g.x_shape) + math.prod(g.columns_shape))

    def col2im(self, g: Geometry) -> float:
        return 2 * self.im2col(g)  # what a thread adds up lies far apart

    def columns(self, g: Geometry) -> int:
        return g.batch * g.c_in * g.taps * -(-g.pixels // LINE) * LINE

    def spare(self, g: Geometry) -> int:
        del g
        return 0

    def columns_spare(self, g: Geometry) -> int:
        return self.spare(g)

    def product(self, p: Product) -> float:
        moved = p.n * p.blocks * (p.depth + p.rows) * p.pixels + p.blocks * p.rows * p.depth
        return self.multiply * p.multiply_adds + self.moved(moved)

    def outer(self, p: Product) -> float:
        return self.product(p)

    def depthwise(self, function: Function, g: Geometry) -> float:
        """The sums stay in registers, and what is loaded for them in the first-level cache."""
        del function
        return self.moved(g.macs / 8 + math.prod(g.x_shape) + math.prod(g.y_shape))

    def depthwise_spare(self, g: Geometry) -> int:
        return math.prod(g.y_shape)  # partial sums of the filters' gradient
