"""A kernel of one tap is a matrix product as it stands: V and S are the identity, and no column is ever built."""

from .._geometry import Geometry
from .._typing import Array, Function, Kind
from ..primitives import Costs, Primitives
from ._gemm import Gemm


class Pointwise(Gemm):
    name = "pointwise"
    adds_up = False

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        del kind
        if g.taps > 1:
            return f"the kernel {g.kernel} has more than one tap"
        if any(axis.stride > 1 for axis in g.axes):
            return "it takes every pixel, and the stride is above 1"
        if g.is_padded:
            return "it takes no padding"
        return None

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        del function, costs
        return 2 * g.batch * (g.c_in + g.c_out) * g.pixels

    def halves(self, function: Function, g: Geometry, costs: Costs) -> int:
        del function, g, costs
        return 0  # there are no columns

    def traffic(self, g: Geometry) -> int:
        return g.batch * (g.c_in + g.c_out) * g.pixels + g.c_out * g.c_in // g.groups

    def analysis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        del g, costs, adjoint
        return 0

    def analysis(self, backend: Primitives, g: Geometry, x: Array) -> Array:
        return backend.reshape(x, (g.batch, g.groups, g.c_in // g.groups, g.pixels))

    def input_grad(self, backend: Primitives, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        landing = backend.view(out, (g.batch, g.groups, g.c_in // g.groups, g.pixels), u.dtype)
        v = backend.product(u, self.synthesis_adjoint(backend, g, dy), landing)
        return out if v is landing else self.analysis_adjoint(backend, g, v, out)

    def analysis_adjoint(self, backend: Primitives, g: Geometry, v: Array, out: Array | None) -> Array:
        del out
        return backend.xp.reshape(v, g.x_shape)
