"""Depthwise convolution without columns: one multiply-add per tap, on the planes as they lie.

Where every group has one input channel, im2col would write each element once per tap, for one multiplication each. The
error is that of the plain sum of K taps, element by element: ``|err| <= K * eps * conv(|x|, |w|)``.

How that is done is the backend's: in one kernel where it has its own, and on NumPy in products with few rows, as its
matrix products are so much faster than its other operations.
"""

import math

from .._geometry import Geometry
from .._typing import Array, Function, Kind
from ..primitives import Costs, Primitives, Team
from ._algorithm import Algorithm

#: Elements of temporary memory for a tile: the longer its lines are, the less is lost between them.
LEAST_TILE = 3 * 2**20


class Depthwise(Algorithm):
    name = "depthwise"
    takes_half = True

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        del kind
        if g.c_in != g.groups or g.c_in == 0:
            return f"it takes one input channel per group, and there are {g.c_in} in {g.groups}"
        return None

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        del function
        return math.prod(g.x_shape) + math.prod(g.y_shape) + costs.depthwise_spare(g)

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        del g, costs
        return LEAST_TILE

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)

    def multiplications(self, g: Geometry) -> int:
        return g.macs

    def cost(self, function: Function, g: Geometry, costs: Costs) -> float:
        return costs.depthwise(function, g)

    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        del backend, g, team
        return w

    def adjoint_operand(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        return self.transform(backend, g, w, team)

    def forward(self, backend: Primitives, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        return backend.depthwise(x, u, g, out)

    def input_grad(self, backend: Primitives, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        return backend.depthwise_input_grad(dy, u, g, out)

    def weight_grad(self, backend: Primitives, g: Geometry, dy: Array, x: Array) -> Array:
        return backend.depthwise_weight_grad(dy, x, g)
