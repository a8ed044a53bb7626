"""The operands of a case, and what every operation on them must give: plain sums over the taps, in float64."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .cases import OPERATIONS, Case, first, last


@dataclass(frozen=True)
class Problem:
    """Random operands, and the results by name."""

    operands: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        arrays = {f"expected_{name}": array for name, array in self.expected.items()}
        np.savez(path, **self.operands, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Problem":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        expected = {name.removeprefix("expected_"): a for name, a in arrays.items() if name.startswith("expected_")}
        return cls({name: a for name, a in arrays.items() if not name.startswith("expected_")}, expected)


def make(case: Case) -> Problem:
    """Draw the operands from a generator that the case's name seeds, and compute the reference."""
    rng = np.random.default_rng(seed(case))
    operands = {name: rng.standard_normal(case.shape(name)).astype(case.dtype) for name in ("x", "w", "dy")}
    double = {name: array.astype(np.float64) for name, array in operands.items()}
    expected = {
        name: array
        for operation in case.operations
        if operation != "backward"  # its results are those of the two gradients
        for name, array in reference(case, operation, double).items()
    }
    return Problem(operands, expected)


def seed(case: Case) -> int:
    """Give every case random numbers of its own, the same on every run."""
    return zlib.crc32(case.name.encode())


def reference(case: Case, operation: str, operands: dict[str, Any]) -> dict[str, Any]:
    """Compute an operation in float64, on arrays of NumPy or CuPy: one small matrix product per tap."""
    return {name: _REFERENCES[name](case, operands) for name in OPERATIONS[operation].results}


def _y(case: Case, given: dict[str, Any]) -> Any:
    filters, padded = _filters(case, given["w"]), _padded(case, given["x"])
    y = np.zeros_like(padded, shape=(*_groups(case), case.w_shape[0] // case.groups, _pixels(case)))
    for tap, place in _taps(case):
        y += filters[(..., *tap)] @ padded[place].reshape(*_groups(case), case.w_shape[1], -1)
    return last(case, y.reshape(case.y_shape))


def _dx(case: Case, given: dict[str, Any]) -> Any:
    filters = _filters(case, given["w"])
    dy = first(case, given["dy"]).reshape(*_groups(case), case.w_shape[0] // case.groups, -1)
    padded = np.zeros_like(dy, shape=_padded_shape(case))
    for tap, place in _taps(case):
        seen = padded[place]
        seen += (filters[(..., *tap)].swapaxes(-1, -2) @ dy).reshape(seen.shape)
    return last(case, padded[_inner(case)])


def _dw(case: Case, given: dict[str, Any]) -> Any:
    padded = _padded(case, given["x"])
    dy = first(case, given["dy"]).reshape(*_groups(case), case.w_shape[0] // case.groups, -1)
    dw = np.zeros_like(dy, shape=(case.groups, case.w_shape[0] // case.groups, *case.w_shape[1:]))
    for tap, place in _taps(case):
        pixels = padded[place].reshape(*_groups(case), case.w_shape[1], -1)
        dw[(..., *tap)] = (dy @ pixels.swapaxes(-1, -2)).sum(axis=0)
    return dw.reshape(case.w_shape)


def _cols(case: Case, given: dict[str, Any]) -> Any:
    padded = _padded(case, given["x"])
    cols = np.zeros_like(padded, shape=case.shape("cols"))
    for tap, place in _taps(case):
        cols[(slice(None), slice(None), *tap)] = padded[place]
    return cols


def _folded(case: Case, given: dict[str, Any]) -> Any:
    padded = np.zeros_like(given["cols"], shape=_padded_shape(case))
    for tap, place in _taps(case):
        padded[place] += given["cols"][(slice(None), slice(None), *tap)]
    return padded[_inner(case)]


_REFERENCES = {"y": _y, "dx": _dx, "dw": _dw, "cols": _cols, "folded": _folded}


def _groups(case: Case) -> tuple[int, int]:
    return case.x_shape[0], case.groups


def _pixels(case: Case) -> int:
    return int(np.prod(case.out))


def _filters(case: Case, w: Any) -> Any:
    return w.reshape(case.groups, -1, *case.w_shape[1:])


def _padded_shape(case: Case) -> tuple[int, ...]:
    return (*case.x_shape[:2], *(size + 2 * case.padding for size in case.x_shape[2:]))


def _padded(case: Case, x: Any) -> Any:
    padded = np.zeros_like(x, shape=_padded_shape(case))
    padded[_inner(case)] = first(case, x)
    return padded


def _inner(case: Case) -> tuple[Any, ...]:
    """Where the image lies in the padded one."""
    return (..., *(slice(case.padding, case.padding + size) for size in case.x_shape[2:]))


def relative_error(result: Any, expected: Any) -> float:
    """Find the largest error, relative to the largest element of the reference."""
    if tuple(result.shape) != tuple(expected.shape):
        msg = f"the result has shape {tuple(result.shape)} in place of {tuple(expected.shape)}"
        raise ValueError(msg)
    return float(abs(result - expected).max() / abs(expected).max())


def _taps(case: Case) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Every tap of the kernel, with the index of the padded elements that it is multiplied with."""
    for tap in product(*map(range, case.kernel)):
        starts = (t * case.dilation for t in tap)
        steps = (slice(s, s + (o - 1) * case.stride + 1, case.stride) for s, o in zip(starts, case.out, strict=True))
        yield tap, (..., *steps)
