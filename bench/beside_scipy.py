"""Full convolutions of complex numbers, by loops of scipy.signal over the pairs of channels: for `bench.planner`."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from .geometries import Geometry


def _full(size: int, kernel: int, rank: int, filters: int) -> Geometry:
    ones, padding = (1,) * rank, (kernel - 1,) * rank
    return Geometry((1, 1, *(size,) * rank), (filters, 1, *(kernel,) * rank), ones, padding, ones, 1, "complex64")


GEOMETRIES = (_full(192, 24, 2, 8), *(_full(64, 5, 3, filters) for filters in (1, 2, 3, 4)))


def call(function: str, x: Any, w: Any, dy: Any) -> Callable[[], Any]:
    """A function as its result is written in SciPy, whose kernels are reflected ones."""
    from scipy.signal import convolve, correlate

    axes = tuple(range(2, w.ndim))
    v = np.ascontiguousarray(np.flip(w, axes))
    n, o, i = (range(length) for length in (len(x), *w.shape[:2]))
    return {
        "forward": lambda: _table(n, o, i, lambda n, o, i: convolve(x[n, i], v[o, i])),
        "input_grad": lambda: _table(n, i, o, lambda n, i, o: correlate(dy[n, o], v[o, i], "valid")),
        "weight_grad": lambda: np.flip(_table(o, i, n, lambda o, i, n: correlate(dy[n, o], x[n, i], "valid")), axes),
    }[function]


def _table(rows: range, columns: range, summed: range, product: Callable[..., Any]) -> Any:
    """An array of products, summed over one of their three numbers."""
    return np.array([[reduce(add, [product(r, c, s) for s in summed]) for c in columns] for r in rows])
