"""How a convolution is run: each function by an algorithm, over tiles."""

from .._typing import Function
from ._columns import Col2im, Im2col
from ._pooling import AvgPool, AvgPoolGrad, MaxPool, MaxPoolGrad
from ._schedule import Schedule
from ._tiled import STRAYING, Forward, InputGrad, Reflected, Tiled, WeightGrad

__all__ = ["STRAYING", "WAYS", "Schedule", "Tiled"]

#: The ways to compute each function.
WAYS: dict[Function, tuple[type[Tiled], ...]] = {
    "forward": (Forward,),
    "input_grad": (Reflected, InputGrad),
    "weight_grad": (WeightGrad,),
    "im2col": (Im2col,),
    "col2im": (Col2im,),
    "max_pool": (MaxPool,),
    "max_pool_grad": (MaxPoolGrad,),
    "avg_pool": (AvgPool,),
    "avg_pool_grad": (AvgPoolGrad,),
}
