"""im2col and one matrix product: every convolution, in the fewest operations of the plain sum.

V is im2col and its adjoint col2im; U and S only reshape. The error is that of a matrix product,
``|err| <= K * eps * conv(|x|, |w|)`` with K the number of products in a sum, element by element.
(K. Chellapilla, S. Puri, P. Simard, *High Performance Convolutional Neural Networks for Document Processing*, 2006.)
"""

import math
from functools import cache

from .._geometry import Geometry
from .._typing import Array, Function, Kind, Shape
from ..primitives import Costs, Primitives, Product, Team, inverse
from ._bilinear import Bilinear

#: Elements of temporary memory for a tile, if the filters have as many: every product reads all of them.
LEAST_TILE = 2**21


class Gemm(Bilinear):
    name = "gemm"
    takes_half = True
    adds_up = True

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        del kind
        return (
            "`x` has more than 31 spatial axes, and its columns more than the 64 that arrays have"
            if len(g.axes) > 31
            else None
        )

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        # In order, then with all images together, and a conjugate of that.
        outputs = (3 if costs.is_complex and function == "weight_grad" else 2) * math.prod(g.y_shape)
        if function == "input_grad":
            return costs.columns(g) + costs.spare(g) + outputs + math.prod(g.x_shape)
        return costs.columns(g) + costs.columns_spare(g) + outputs

    def halves(self, function: Function, g: Geometry, costs: Costs) -> int:
        return costs.columns(g) if function in {"forward", "weight_grad"} else 0

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        del costs
        return min(LEAST_TILE, math.prod(g.w_shape))

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape) + 2 * math.prod(g.columns_shape)

    def multiplications(self, g: Geometry) -> int:
        return g.macs

    def analysis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        return costs.col2im(g) if adjoint else costs.im2col(g)

    def product_size(self, g: Geometry) -> Product:
        groups = max(1, g.groups)
        return Product(g.batch, groups, g.c_out // groups, g.c_in // groups * g.taps, g.pixels)

    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        del team
        if backend.taps_first(g):
            w = backend.xp.permute_dims(w, (0, *range(2, w.ndim), 1))
        return backend.xp.reshape(w, (g.groups, g.c_out // g.groups, g.c_in // g.groups * g.taps))

    def transform_adjoint(self, backend: Primitives, g: Geometry, u: Array, team: Team) -> Array:
        del team
        if backend.taps_first(g):
            u = backend.xp.reshape(u, (g.c_out, *g.kernel, g.c_in))
            return backend.xp.permute_dims(u, (0, u.ndim - 1, *range(1, u.ndim - 1)))
        return backend.xp.reshape(u, g.w_shape)

    def analysis(self, backend: Primitives, g: Geometry, x: Array) -> Array:
        cols = backend.im2col(x, g)
        if backend.taps_first(g):
            cols = backend.xp.permute_dims(cols, _taps_in_front(len(g.axes)))
        return backend.xp.reshape(cols, (g.batch, g.groups, g.c_in // g.groups * g.taps, g.pixels))

    def analysis_adjoint(self, backend: Primitives, g: Geometry, v: Array, out: Array | None) -> Array:
        if backend.taps_first(g):
            cols = backend.xp.reshape(v, (g.batch, *g.kernel, g.c_in, *g.out))
            return backend.col2im(backend.xp.permute_dims(cols, inverse(_taps_in_front(len(g.axes)))), g, out)
        return backend.col2im(backend.xp.reshape(v, g.columns_shape), g, out)

    def synthesis(self, backend: Primitives, g: Geometry, p: Array, out: Array | None) -> Array:
        del out
        return backend.xp.reshape(p, g.y_shape)

    def synthesis_adjoint(self, backend: Primitives, g: Geometry, dy: Array) -> Array:
        return backend.reshape(dy, self.product_shape(g))

    def product_shape(self, g: Geometry) -> Shape:
        return (g.batch, g.groups, g.c_out // g.groups, g.pixels)


@cache
def _taps_in_front(rank: int) -> Shape:
    """The axes of columns with the channels behind the kernel."""
    return (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
