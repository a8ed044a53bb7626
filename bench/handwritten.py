"""A convolution in four lines of NumPy: what one writes for oneself, knowing its shapes, in either layout.

The windows are a slice where a kernel has one tap, another shape where no two overlap, and `sliding_window_view`
otherwise; a product of matrices does the rest. With the channels last, a pixel's window is a row of a matrix, and all
images share one product; with the channels first, it is a column, and every image has a product of its own.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .cases import Case


def windows(case: Case, x: np.ndarray) -> np.ndarray:
    """View the windows as ``(n, groups, c, *kernel, *out)``."""
    n, rank, s = len(x), case.rank, case.stride
    x = np.moveaxis(x, -1, 1) if case.channels_last else x
    if math.prod(case.kernel) == 1 and not case.padding:
        seen = x[(..., *(slice(None, None, s),) * rank)][(..., *(None,) * rank)]
        seen = seen.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    else:
        padding = [(0, 0), (0, 0), *((case.padding, case.padding),) * rank]
        padded = np.pad(x, padding) if case.padding else x
        seen = sliding_window_view(padded, case.kernel, axis=tuple(range(2, 2 + rank)))
        seen = seen[(slice(None), slice(None), *(slice(None, None, s),) * rank)]
        seen = seen.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    return seen.reshape(n, case.groups, -1, *seen.shape[2:])


def columns(case: Case, x: np.ndarray) -> np.ndarray:
    """Write the windows into the matrices that are multiplied."""
    seen, rank, depth = windows(case, x), case.rank, math.prod(case.w_shape[1:])
    if not case.channels_last:
        return seen.reshape(len(x), case.groups, depth, -1)
    order = (1, 0, *range(3 + rank, 3 + 2 * rank), *range(3, 3 + rank), 2)
    return seen.transpose(order).reshape(case.groups, -1, depth)


def filters(case: Case, w: np.ndarray) -> np.ndarray:
    """Shape the filters as ``(groups, o, depth)``, with the channels behind the taps where they are last."""
    w = w.reshape(case.groups, -1, *w.shape[1:])
    return (np.moveaxis(w, 2, -1) if case.channels_last else w).reshape(case.groups, w.shape[1], -1)


def pixels(case: Case, dy: np.ndarray) -> np.ndarray:
    """Shape the gradient as the product has it."""
    n, o = len(dy), case.w_shape[0] // case.groups
    if not case.channels_last:
        return dy.reshape(n, case.groups, o, -1)
    return np.moveaxis(dy.reshape(-1, case.groups, o), 1, 0)


def forward(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Convolve."""
    del dy
    if not case.channels_last:
        return (filters(case, w) @ columns(case, x)).reshape(case.y_shape)
    y = columns(case, x) @ filters(case, w).mT
    return np.moveaxis(y, 0, 1).reshape(case.shape("y"))


def input_grad(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Multiply back, and add every tap up where it was read."""
    del x
    n, rank, s, p = len(dy), case.rank, case.stride, case.padding
    if case.channels_last:
        cols = np.moveaxis(pixels(case, dy) @ filters(case, w), 0, 1)
        cols = cols.reshape(n, *case.out, case.groups, *case.kernel, case.w_shape[1])
        cols = cols.transpose(0, 1 + rank, 2 + 2 * rank, *range(2 + rank, 2 + 2 * rank), *range(1, 1 + rank))
    else:
        cols = filters(case, w).mT @ pixels(case, dy)
    cols = cols.reshape(*case.x_shape[:2], *case.kernel, *case.out)
    padded = tuple(size + 2 * p for size in case.x_shape[2:])
    channels = case.x_shape[1]
    dx = np.zeros((n, *padded, channels) if case.channels_last else (n, channels, *padded), dy.dtype)
    channels_first = np.moveaxis(dx, -1, 1) if case.channels_last else dx
    for tap in product(*map(range, case.kernel)):
        places = (slice(t, t + (o - 1) * s + 1, s) for t, o in zip(tap, case.out, strict=True))
        channels_first[(..., *places)] += cols[(slice(None), slice(None), *tap)]
    inner = tuple(slice(p, p + size) for size in case.x_shape[2:])
    return dx[(slice(None), *inner)] if case.channels_last else dx[(..., *inner)]


def weight_grad(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Multiply the gradient by the columns."""
    del w
    if not case.channels_last:
        return (pixels(case, dy) @ columns(case, x).mT).sum(axis=0).reshape(case.w_shape)
    dw = pixels(case, dy).mT @ columns(case, x)
    return np.moveaxis(dw.reshape(case.w_shape[0], *case.kernel, -1), -1, 1)


FUNCTIONS: dict[str, Callable[..., Any]] = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}
