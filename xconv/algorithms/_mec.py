"""MEC, memory-efficient convolution: im2col along all axes but the first, and one matrix product per row of outputs.

What the windows of a row see lies in consecutive rows of the image. So these are unfolded once, and not once per tap of
the first axis; the columns of one row of outputs are a view of them, and overlap in memory with those of the next row.
The products are as many as there are rows, and short: that pays where unfolding takes much of the time, with few
filters on long rows. The sum is that of a matrix product, with its error: ``|err| <= K * eps * conv(|x|, |w|)``,
element by element. The gradients are im2col's, but for an input gradient by reflected filters, which is a convolution.
(M. Cho, D. Brand, *MEC: Memory-Efficient Convolution for Deep Neural Network*, 2017.)
"""

import math

from .._geometry import Geometry
from .._typing import Array, DType, Function, Kind
from ..backends import Backend, Costs
from ._gemm import Gemm


class Mec(Gemm):
    name = "mec"

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if len(g.axes) < 2:
            return "it takes at least 2 spatial axes"
        rows = g.axes[0]
        if rows.dilation > 1 and rows.kernel > 1:
            return "the dilation of the first axis is above 1"
        if rows.kernel <= rows.stride:
            return "no two windows share a row"
        return super().refusal(g, kind)

    def lack(self, backend: Backend, dtype: DType, precision: str) -> str | None:
        del dtype, precision
        return None if backend.views_overlap else f"{backend.name} does not multiply views that overlap in memory"

    def scratch(self, function: Function, g: Geometry, backend: Backend) -> int:
        most = super().scratch(function, g, backend)
        return most - math.prod(g.columns_shape) + _unfolded(g) if function == "forward" else most

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape) + 2 * _unfolded(g)

    def cost(self, function: Function, g: Geometry, costs: Costs) -> float:
        return costs.by_row(g, _unfolded(g)) if function == "forward" else super().cost(function, g, costs)

    def transform(self, backend: Backend, g: Geometry, w: Array) -> Array:
        depth = g.c_in // g.groups * g.taps
        return backend.xp.reshape(backend.xp.moveaxis(w, 1, 2), (g.groups, g.c_out // g.groups, depth))

    def adjoint_operand(self, backend: Backend, g: Geometry, w: Array) -> Array:
        return backend.xp.matrix_transpose(super().transform(backend, g, w))

    def forward(self, backend: Backend, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        return backend.product_by_row(u, x, g, out)


def _unfolded(g: Geometry) -> int:
    """Elements of the columns of all rows, which share most of them."""
    rows = g.axes[0]
    seen = (rows.out - 1) * rows.stride + rows.kernel
    return math.prod(g.columns_shape) // max(1, rows.kernel * rows.out) * seen
