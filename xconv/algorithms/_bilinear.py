r"""The driver: every convolution algorithm as three linear maps, and both gradients from their adjoints.

A convolution is linear in the image and in the filters, so an algorithm for it can be written

.. math:: y = S\,(U(w) \circ V(x))

with an *analysis* V of the image, a *transform* U of the filters and a *synthesis* S of the result, all linear. The
product in the middle is one batched matrix product that contracts the channels. The gradients are

.. math:: dx = V^T (U(w)^H \circ S^T(dy)), \qquad dw = U^T (S^T(dy) \circ V(x)^H),

so nothing is left to derive for an algorithm but the adjoints of its three maps: that of im2col is col2im. (For
bilinear algorithms see S. Winograd, *Arithmetic Complexity of Computations*, 1980, ch. II and III.)

The shapes of U(w), V(x) and the product are in `primitives.Primitives`: ``u (blocks, rows, depth)``,
``v (n, blocks, depth, pixels)`` and ``p (n, blocks, rows, pixels)``.
"""

from abc import abstractmethod

from .._geometry import Geometry
from .._typing import Array, Function, Shape
from ..primitives import Costs, Primitives, Product, Team
from ._algorithm import Algorithm


class Bilinear(Algorithm):
    """An algorithm that is three linear maps."""

    @abstractmethod
    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        """U: the filters as the left operand of the product."""

    @abstractmethod
    def transform_adjoint(self, backend: Primitives, g: Geometry, u: Array, team: Team) -> Array:
        """Its adjoint."""

    @abstractmethod
    def analysis(self, backend: Primitives, g: Geometry, x: Array) -> Array:
        """V: the image as the right operand of the product."""

    @abstractmethod
    def analysis_adjoint(self, backend: Primitives, g: Geometry, v: Array, out: Array | None) -> Array:
        """Its adjoint, written into `out` where that saves a copy."""

    @abstractmethod
    def synthesis(self, backend: Primitives, g: Geometry, p: Array, out: Array | None) -> Array:
        """S: the result from the product, written into `out` where that saves a copy."""

    @abstractmethod
    def synthesis_adjoint(self, backend: Primitives, g: Geometry, dy: Array) -> Array:
        """Its adjoint."""

    def product_shape(self, g: Geometry) -> Shape | None:
        """The product's shape, where S leaves every element in its place, so that it can be written into the result."""
        del g
        return None

    # What each map costs, and the product between them.

    @abstractmethod
    def analysis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        """V, or its adjoint."""

    def synthesis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        """S, or its adjoint, where it is more than another shape."""
        del g, costs, adjoint
        return 0

    @abstractmethod
    def product_size(self, g: Geometry) -> Product:
        """The sizes of ``U(w)`` and ``V(x)``."""

    def product_costs(self, costs: Costs) -> Costs:
        """The costs of the numbers that are multiplied."""
        return costs

    # What the maps add up to.

    def cost(self, function: Function, g: Geometry, costs: Costs) -> float:
        p, of_product = self.product_size(g), self.product_costs(costs)
        cost = self.analysis_cost(g, costs, adjoint=function == "input_grad")
        cost += self.synthesis_cost(g, costs, adjoint=function != "forward")
        if function == "weight_grad":
            return cost + of_product.outer(p)
        if function == "input_grad":
            p = p._replace(rows=p.depth, depth=p.rows)
        return cost + of_product.product(p)

    def adjoint_operand(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        """``U(conj(w))^H``, which is ``U(w)^T`` where U has real coefficients."""
        return backend.xp.matrix_transpose(self.transform(backend, g, w, team))

    def forward(self, backend: Primitives, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        shape = self.product_shape(g)
        landing = None if shape is None else backend.view(out, shape, u.dtype)
        p = backend.product(u, self.analysis(backend, g, x), landing)
        return out if p is landing else self.synthesis(backend, g, p, out)

    def input_grad(self, backend: Primitives, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        p = self.synthesis_adjoint(backend, g, dy)
        return self.analysis_adjoint(backend, g, backend.product(u, p), out)

    def weight_grad(self, backend: Primitives, g: Geometry, dy: Array, x: Array) -> Array:
        """The adjoint in ``U(w)``, whose sum over all tiles is brought back to w by `transform_adjoint`."""
        p = self.synthesis_adjoint(backend, g, dy)
        return backend.outer(p, self.analysis(backend, g, x))
