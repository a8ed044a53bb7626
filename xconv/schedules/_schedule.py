"""What a call runs: one convolution, with everything decided but the numbers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from .._geometry import Geometry
from .._typing import Array, DType, Function, Shape
from ..primitives import Primitives, inverse


@dataclass(frozen=True, eq=False)
class Schedule(ABC):
    """How a convolution is run, on arrays in the caller's layouts; nothing is checked."""

    backend: Primitives
    geometry: Geometry
    #: The dtype of the result, and the one in which products are summed.
    dtype: DType
    accumulator: DType
    #: Where the axes ``(c_out, c_in / groups, *kernel)`` are in the caller's filters; None where these have that order.
    w_axes: tuple[int, ...] | None

    @cached_property
    def x_shape(self) -> Shape:
        return self.geometry.in_layout(self.geometry.x_shape)

    @cached_property
    def y_shape(self) -> Shape:
        return self.geometry.in_layout(self.geometry.y_shape)

    @cached_property
    def w_shape(self) -> Shape:
        shape = self.geometry.w_shape
        return shape if self.w_axes is None else tuple(shape[at] for at in inverse(self.w_axes))

    def filters(self, w: Array) -> Array:
        """The caller's filters in the order in which they are computed with: a view."""
        return w if self.w_axes is None else self.backend.xp.permute_dims(w, self.w_axes)

    def in_w_layout(self, dw: Array) -> Array:
        """Filters in the order of the caller's: a view."""
        return dw if self.w_axes is None else self.backend.xp.permute_dims(dw, inverse(self.w_axes))

    @abstractmethod
    def run(self, function: Function, *arrays: Array | None, **options: bool) -> Array:
        """A function of the convolution, as the way to it in `WAYS` has it."""
