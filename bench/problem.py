"""The operands of a case, and what every operation on them must give: plain sums over the taps, in float64."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case


@dataclass(frozen=True)
class Problem:
    """Random operands, and the results by name."""

    x: np.ndarray
    w: np.ndarray
    dy: np.ndarray
    expected: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        arrays = {f"expected_{name}": array for name, array in self.expected.items()}
        np.savez(path, allow_pickle=False, x=self.x, w=self.w, dy=self.dy, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Problem":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        expected = {name.removeprefix("expected_"): a for name, a in arrays.items() if name.startswith("expected_")}
        return cls(arrays["x"], arrays["w"], arrays["dy"], expected)


def make(case: Case) -> Problem:
    """Draw the operands from a generator that the case's name seeds, and compute the reference."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    x, w, dy = (rng.standard_normal(shape).astype(case.dtype) for shape in (case.x_shape, case.w_shape, case.y_shape))
    return Problem(x, w, dy, reference(case, x, w, dy))


def reference(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the convolution and its gradients in float64: one small matrix product per tap."""
    n, groups, rank = case.x_shape[0], case.groups, case.rank
    edge = [(0, 0), (0, 0)] + [(case.padding, case.padding)] * rank
    padded = np.pad(x.astype(np.float64), edge)
    filters = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
    grad = dy.astype(np.float64).reshape(n, groups, w.shape[0] // groups, -1)
    y, dpadded, dfilters = np.zeros_like(grad), np.zeros_like(padded), np.zeros_like(filters)
    for tap, place in _taps(case):
        matrix, seen = filters[(..., *tap)], padded[place]
        pixels = seen.reshape(n, groups, w.shape[1], -1)
        y += matrix @ pixels
        dpadded[place] += (matrix.swapaxes(-1, -2) @ grad).reshape(seen.shape)
        dfilters[(..., *tap)] = (grad @ pixels.swapaxes(-1, -2)).sum(axis=0)
    inner = tuple(slice(case.padding, case.padding + size) for size in case.x_shape[2:])
    return {"y": y.reshape(case.y_shape), "dx": dpadded[(..., *inner)], "dw": dfilters.reshape(w.shape)}


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Find the largest error, relative to the largest element of the reference."""
    if result.shape != expected.shape:
        msg = f"the result has shape {result.shape} in place of {expected.shape}"
        raise ValueError(msg)
    return float(np.max(np.abs(result - expected)) / np.max(np.abs(expected)))


def _taps(case: Case) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Every tap of the kernel, with the index of the padded elements that it is multiplied with."""
    for tap in product(*map(range, case.kernel)):
        starts = (t * case.dilation for t in tap)
        steps = (slice(s, s + (o - 1) * case.stride + 1, case.stride) for s, o in zip(starts, case.out, strict=True))
        yield tap, (..., *steps)
