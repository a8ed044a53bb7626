"""What every algorithm is asked."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from .._geometry import Geometry
from .._typing import Array, DType, Function, Kind, Shape
from ..primitives import Costs, Primitives, Team


class RefusedError(ValueError):
    """An algorithm turns a convolution down when it is about to run."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"`algorithm` {name!r} cannot serve this convolution: {reason}")


class Algorithm(ABC):
    """An algorithm for a convolution under zero padding, on arrays of the accumulating dtype. Stateless."""

    name: ClassVar[str]
    #: Whether it takes half types as they are, where the backend's products of them are summed in float32.
    takes_half: ClassVar[bool] = False
    #: Whether its input gradient is added up in the memory that it is handed.
    adds_up: ClassVar[bool] = False
    #: Whether ``|err| <= K * eps * conv(|x|, |w|)`` holds for every element, and NaN stays in the windows that see it.
    componentwise: ClassVar[bool] = True
    #: Functions in which it multiplies filters by zeros where a tap reads nothing.
    strays: ClassVar[frozenset[Function]] = frozenset()

    @abstractmethod
    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        """Why this algorithm cannot serve the geometry, or a dtype of this kind; None where it can."""

    def lack(self, backend: Primitives, dtype: DType, precision: str) -> str | None:
        """What this algorithm needs and the array library has not, for this dtype; None where it has all."""
        del backend, dtype, precision
        return None

    def is_componentwise(self, dtype: DType, precision: str) -> bool:
        """The same, where it depends on what is multiplied."""
        del dtype, precision
        return self.componentwise

    def fitted(self, g: Geometry, kind: Kind) -> "Algorithm":
        """The algorithm with those choices made that all tiles of `g` must share."""
        del g, kind
        return self

    @abstractmethod
    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        """Elements of temporary memory that a function takes for `g`, at most."""

    def halves(self, function: Function, g: Geometry, costs: Costs) -> int:
        """Elements among these that have the operand's dtype, where that is a half type."""
        del function, g, costs
        return 0

    def filters(self, g: Geometry) -> int:
        """Elements of the filters as `forward` takes them, and of what else it takes to make these, at most."""
        return math.prod(g.w_shape)

    @abstractmethod
    def least_tile(self, g: Geometry, costs: Costs) -> int:
        """Elements of temporary memory under which a tile is too small to be worth its calls and what they share."""

    def grain(self, g: Geometry) -> Shape | None:
        """Outputs per axis that are computed together: a part of them would take as much time as all."""
        del g
        return None

    @abstractmethod
    def traffic(self, g: Geometry) -> int:
        """Elements that a function reads and writes, its temporary arrays included."""

    @abstractmethod
    def multiplications(self, g: Geometry) -> int:
        """Multiply-adds of a function."""

    @abstractmethod
    def cost(self, function: Function, g: Geometry, costs: Costs) -> float:
        """Predicted time of a function for one tile, in the unit of `costs`."""

    def once(self, function: Function, g: Geometry, costs: Costs) -> float:
        """The same of what is done to the filters, once for all tiles: nothing where they are taken as they lie."""
        del function, g
        return costs.moved(0, 3)

    @abstractmethod
    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        """The filters as `forward` takes them; made once for all tiles, by the threads that will work on these."""

    @abstractmethod
    def adjoint_operand(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        """The filters as `input_grad` takes them, which does not conjugate: `w` has been, where it must be."""

    @abstractmethod
    def forward(self, backend: Primitives, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        """``conv(x, w)``, written into `out` where that saves a copy."""

    @abstractmethod
    def input_grad(self, backend: Primitives, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        """The transpose of `forward` in x, written into `out` where that saves a copy."""

    @abstractmethod
    def weight_grad(self, backend: Primitives, g: Geometry, dy: Array, x: Array) -> Array:
        """The adjoint in what `transform` makes of w: x is conjugated."""

    def transform_adjoint(self, backend: Primitives, g: Geometry, u: Array, team: Team) -> Array:
        """The adjoint of `transform`, for the sum of `weight_grad` over all tiles."""
        del backend, g, team
        return u
