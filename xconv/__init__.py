"""Convolution that follows your array: NumPy, CuPy, PyTorch, JAX and every other library of the array-API standard."""

from ._api import col2im, conv, conv_input_grad, conv_transpose, conv_weight_grad, im2col, plan
from ._classic import col2im_indices, conv_backward, conv_forward, im2col_indices
from ._config import config
from ._pooling import avg_pool, avg_pool_grad, max_pool, max_pool_grad
from ._tuning import Tuning

__version__ = "0.1.0.dev0"

__all__ = [
    "Tuning",
    "avg_pool",
    "avg_pool_grad",
    "col2im",
    "col2im_indices",
    "config",
    "conv",
    "conv_backward",
    "conv_forward",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
    "im2col",
    "im2col_indices",
    "max_pool",
    "max_pool_grad",
    "plan",
]
