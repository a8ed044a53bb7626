"""What a call runs: one convolution, with everything decided but the numbers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from .._geometry import Geometry
from .._typing import Array, DType, Shape
from ..primitives import Primitives


@dataclass(frozen=True, eq=False)
class Schedule(ABC):
    """How a convolution is run. The methods take and return arrays in the caller's layout and check nothing."""

    backend: Primitives
    geometry: Geometry
    #: The dtype of the result, and the one in which products are summed.
    dtype: DType
    accumulator: DType

    @cached_property
    def x_shape(self) -> Shape:
        return self.geometry.in_layout(self.geometry.x_shape)

    @cached_property
    def y_shape(self) -> Shape:
        return self.geometry.in_layout(self.geometry.y_shape)

    @abstractmethod
    def forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        """The convolution, plus `b`."""

    @abstractmethod
    def input_grad(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        """The gradient; plus `b`, and without conjugation, for the transposed convolution."""

    @abstractmethod
    def weight_grad(self, dy: Array, x: Array) -> Array:
        """The filters' gradient."""

    @abstractmethod
    def im2col(self, x: Array, *, images_last: bool) -> Array:
        """All windows, ``(n, c, *kernel, *out)``; with `images_last`, in memory that has the images behind the rest."""

    @abstractmethod
    def col2im(self, cols: Array) -> Array:
        """The adjoint of that."""
