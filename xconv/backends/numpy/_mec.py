"""MEC, memory-efficient convolution: im2col along all axes but the first, and one matrix product per row of outputs.

What the windows of a row see lies in consecutive rows of the image. So these are unfolded once, and not once per tap of
the first axis; the columns of one row of outputs are a view of them, and overlap in memory with those of the next row.
The products are as many as there are rows, and short: that pays where unfolding takes much of the time, with few
filters on long rows. The sum is that of a matrix product, with its error: ``|err| <= K * eps * conv(|x|, |w|)``,
element by element. The gradients are im2col's, but for an input gradient by reflected filters, which is a convolution.
(M. Cho, D. Brand, *MEC: Memory-Efficient Convolution for Deep Neural Network*, 2017.)
"""

import math
from typing import Any

from ..._geometry import Geometry
from ..._typing import Array, Function, Kind
from ...algorithms import Gemm
from ...primitives import Costs, Team
from ._products import multiply
from ._windows import rows


class Mec(Gemm):
    name = "mec"

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if len(g.axes) < 2:
            return "it takes at least 2 spatial axes"
        first = g.axes[0]
        if first.dilation > 1 and first.kernel > 1:
            return "the dilation of the first axis is above 1"
        if first.kernel <= first.stride:
            return "no two windows share a row"
        return super().refusal(g, kind)

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        most = super().scratch(function, g, costs)
        return most - math.prod(g.columns_shape) + _unfolded(g) if function == "forward" else most

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape) + 2 * _unfolded(g)

    def cost(self, function: Function, g: Geometry, costs: Any) -> float:
        return costs.by_row(g, _unfolded(g)) if function == "forward" else super().cost(function, g, costs)

    def once(self, function: Function, g: Geometry, costs: Costs) -> float:
        """The channels come behind the taps of the first axis."""
        del function
        return costs.moved(math.prod(g.w_shape), 3)

    def transform(self, backend: Any, g: Geometry, w: Array, team: Team) -> Array:
        del team
        depth = g.c_in // g.groups * g.taps
        return backend.xp.reshape(backend.xp.moveaxis(w, 1, 2), (g.groups, g.c_out // g.groups, depth))

    def adjoint_operand(self, backend: Any, g: Geometry, w: Array, team: Team) -> Array:
        return backend.xp.matrix_transpose(super().transform(backend, g, w, team))

    def forward(self, backend: Any, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        shape = (g.batch, g.groups, g.c_out // g.groups, g.out[0], math.prod(g.out[1:]))
        y = backend.view(out, shape, x.dtype)
        y = backend.scratch.take(shape, x.dtype) if y is None else y
        multiply(u[:, None], rows(backend.scratch.take, x, g), y.transpose(0, 1, 3, 2, 4))
        return y.reshape(g.y_shape)


def _unfolded(g: Geometry) -> int:
    """Elements of the columns of all rows, which share most of them."""
    first = g.axes[0]
    seen = (first.out - 1) * first.stride + first.kernel
    return math.prod(g.columns_shape) // max(1, first.kernel * first.out) * seen
