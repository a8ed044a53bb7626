"""What a call runs: one convolution, with everything decided but the numbers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from .._geometry import Geometry
from .._typing import Array, DType, Function, Shape
from ..primitives import Primitives


@dataclass(frozen=True, eq=False)
class Schedule(ABC):
    """How a convolution is run, on arrays in the caller's layout; nothing is checked."""

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
    def run(self, function: Function, *arrays: Array | None, **options: bool) -> Array:
        """A function of the convolution, as the way to it in `WAYS` has it."""
