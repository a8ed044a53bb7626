"""im2col's matrix product with columns that are never written out: a kernel gathers them as it multiplies.

The forward pass and the input gradient read x, w or dy once from memory and write their result, and nothing else. The
sum is that of a matrix product, with its error: ``|err| <= K * eps * conv(|x|, |w|)``, element by element. The weight
gradient, a long sum for few results, is im2col's. Where a tap reads nothing, as most do in the input gradient of a
large stride, it is multiplied by a zero: a NaN among the filters then reaches results that it has no part in. (S.
Chetlur et al., *cuDNN: Efficient Primitives for Deep Learning*, 2014, section 3, describes the way.)
"""

import math

from .._geometry import Geometry
from .._typing import Array, DType, Function, Kind
from ..backends import Backend, Costs
from ._gemm import Gemm

#: Elements of temporary memory for a tile, which it is cut by for the weight gradient's sake: the other two functions
#: take next to none, and should fill the device.
LEAST_TILE = 2**26
#: Channels of a tap are padded by less than so many.
PADDING = 8


class Implicit(Gemm):
    name = "implicit"

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if kind != "real":
            return f"it multiplies real floating-point numbers, and these are {kind}"
        if not g.channels_last:
            return 'it takes `layout` "channels_last"'
        if g.groups != 1:
            return f"it takes one group, and there are {g.groups}"
        if len(g.axes) > 3:
            return f"it takes up to 3 spatial axes, and there are {len(g.axes)}"
        return None

    def lack(self, backend: Backend, dtype: DType, precision: str) -> str | None:
        return backend.implicit_lack(dtype, precision)

    def filters(self, g: Geometry) -> int:
        return g.taps * max(g.c_out * (g.c_in + PADDING), g.c_in * (g.c_out + PADDING))

    def least_tile(self, g: Geometry, backend: Backend) -> int:
        del g, backend
        return LEAST_TILE

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)

    def cost(self, function: Function, g: Geometry, costs: Costs) -> float:
        if function == "weight_grad":
            return super().cost(function, g, costs)
        return costs.multiply * g.macs + costs.moved(self.traffic(g))

    def transform(self, backend: Backend, g: Geometry, w: Array) -> Array:
        return backend.implicit_filters(w, g, adjoint=False)

    def adjoint_operand(self, backend: Backend, g: Geometry, w: Array) -> Array:
        return backend.implicit_filters(w, g, adjoint=True)

    def forward(self, backend: Backend, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        return backend.implicit(x, u, g, out, adjoint=False)

    def input_grad(self, backend: Backend, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        return backend.implicit(dy, u, g, out, adjoint=True)
