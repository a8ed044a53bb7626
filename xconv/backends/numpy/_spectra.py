"""Windows under small matrices on NumPy: channels last, axis by axis, in kept memory.

With the channels behind the pixels, one axis of a window is a few rows of neighbours, and the matrix of the axis times
those rows is a product that BLAS runs without a copy of either side. What comes out lies as the product reads it.
"""

import math
from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from ..._geometry import Geometry
from ..._typing import Array, DType, Shape
from ...primitives import Matrices, Rows, Team
from . import _turning
from ._scratch import Take

#: Elements of temporary memory that are worth one more image at a time: threads wait for each other between operations,
#: so that a few large ones take less time than many that stay in a second-level cache.
NEAR = 2**20
#: The same for filters, of which more go through each call, but in no more memory than their spectra take.
NEXT = 2**21
#: Numbers in spectra of filters that are worth more than one thread, and the most of these: they share the memory.
SHARED, SHARES = 2**20, 4
#: The numbers of the matrices are ratios of smaller numbers, and are told apart by doubles.
MOST_DENOMINATOR = 2**12


class Layout(NamedTuple):
    """How windows and their spectra lie in memory; the last axis counts real numbers."""

    #: (*frequencies, groups, n, *pixels, channels of a group).
    spectra: Shape
    #: Frequencies times groups.
    blocks: int
    #: Images that are worked on at a time.
    parts: tuple[slice, ...]
    #: Threads that may work on them.
    shares: int
    #: Elements of temporary memory for each.
    spare: int
    #: The dtype of the real and the imaginary parts.
    real: DType
    #: The matrices, and their transposes cut into steps.
    matrices: tuple[Array, ...]
    transposes: tuple[tuple[Array, ...], ...]

    def shared(self, team: Team | None) -> Team | None:
        """Those of a team who may work on the parts."""
        return team and team._replace(limit=min(team.limit, self.shares))

    def images_of(self, v: Array, part: slice) -> Array:
        """Some images of the spectra."""
        return v[(*(slice(None),) * (1 + len(self.matrices)), part)]


@lru_cache(maxsize=1024)
def layout(g: Geometry, matrices: Matrices, dtype: DType, *, lasting: bool = False) -> Layout:
    real = np.empty(0, dtype).real.dtype
    frequencies = tuple(len(rows) for rows in matrices)
    spectra = (*frequencies, g.groups, g.batch, *g.out, g.c_in // g.groups)
    most, shares = min(NEXT, math.prod(spectra)) if lasting else NEAR, 1
    if lasting and math.prod(spectra) > SHARED and SHARES * _each(g, matrices) <= most:
        most, shares = most // SHARES, SHARES
    images, memory = _together(g, matrices, most)
    steps = (axis.stride if axis.out > 1 else axis.kernel for axis in g.axes)
    return Layout(
        spectra=spectra,
        blocks=math.prod(frequencies) * g.groups,
        parts=tuple(slice(first, min(first + images, g.batch)) for first in range(0, g.batch, images)),
        shares=shares,
        spare=memory,
        real=real,
        matrices=tuple(_matrix(rows, real) for rows in matrices),
        transposes=tuple(_transpose(rows, real, step) for rows, step in zip(matrices, steps, strict=True)),
    )


@cache
def _matrix(rows: Rows, real: DType) -> Array:
    """The rows with all the precision of `real`, which may be more than that of a double."""
    ratios = [[Fraction(number).limit_denominator(MOST_DENOMINATOR).as_integer_ratio() for number in r] for r in rows]
    numerators, denominators = np.moveaxis(np.asarray(ratios, real), -1, 0)
    return np.divide(numerators, denominators, order="C")


@cache
def _transpose(rows: Rows, real: DType, step: int) -> tuple[Array, ...]:
    """The transpose, cut into steps."""
    matrix = _matrix(rows, real)
    return tuple(matrix[:, cut : cut + step].T.copy() for cut in range(0, matrix.shape[1], step))


def spare(g: Geometry, matrices: Matrices) -> int:
    """Elements of temporary memory for the images of a tile that are worked on at a time."""
    return _together(g, matrices, NEAR)[1]


def _together(g: Geometry, matrices: Matrices, most: int) -> tuple[int, int]:
    """How many images are worked on at a time, in about `most` elements, and what that takes."""
    each = _each(g, matrices)
    images = max(1, min(g.batch, most // max(1, each)))
    turning = _turning.spare(math.prod(g.size), g.c_in // max(1, g.groups))
    return images, images * each + max(0, turning - images * each // 2)


def _each(g: Geometry, matrices: Matrices) -> int:
    """Elements of temporary memory for an image: the padded one, and those between two axes."""
    total, behind = math.prod(g.padded), 1
    for i in reversed(range(1, len(matrices))):
        behind *= len(matrices[i]) * g.axes[i].out
        total += math.prod(g.padded[:i]) * behind
    # The adjoint has lines instead, and what it adds to them: twice as much as what leads to the spectra.
    return g.c_in * 2 * total


def spread(take: Take, x: Array, g: Geometry, lay: Layout, v: Array) -> None:
    """The spectra of all windows of ``x (groups, n, *size, channels)``, into `v` in the order of `Layout.spectra`."""
    n, rank = x.shape[1], len(g.axes)
    padded = take((g.groups, n, *g.padded, x.shape[-1]), x.dtype)
    outer, inner = g.kept
    if g.is_padded:
        padded.fill(0)
    _turning.turn(take, padded[:, :, *outer[2:]], x[:, :, *inner[2:]])
    cur, v = padded.view(lay.real), v.view(lay.real)
    done, tail = 1, cur.shape[-1]
    item = lay.real.itemsize
    first = next(i for i, axis in enumerate(g.axes) if axis.kernel > 1)
    for i in reversed(range(first, rank)):
        axis, matrix = g.axes[i], lay.matrices[i]
        if axis.kernel == 1:  # the identity
            tail *= axis.out
            continue
        rest = n * math.prod(g.padded[:i])
        row = tail * item
        line = axis.padded * row
        windows = np.ndarray(
            (done, g.groups, rest, axis.out, axis.kernel, tail),
            lay.real,
            cur,
            0,
            (g.groups * rest * line, rest * line, line, axis.stride * row, row, item),
        )
        shape = (len(matrix), done, g.groups, rest, axis.out, tail)
        target = take(shape, lay.real) if i > first else v.reshape(shape, copy=False)
        np.matmul(matrix, windows, out=target.transpose(1, 2, 3, 4, 0, 5))
        cur, done, tail = target, done * len(matrix), tail * axis.out


def gather(take: Take, v: Array, g: Geometry, lay: Layout, x: Array) -> None:
    """The adjoint of `spread`, into the images `x`."""
    n = x.shape[1]
    cur = v.view(lay.real)
    done, rest = math.prod(len(matrix) for matrix in lay.matrices), n
    tail = cur.shape[-1] * g.pixels
    for axis, steps in zip(g.axes, lay.transposes, strict=True):
        step, frequencies = steps[0].shape
        done, tail = done // frequencies, tail // axis.out
        if axis.kernel == 1:
            rest *= axis.out
            continue
        spectra = cur.reshape(frequencies, done, g.groups, rest, axis.out, tail).transpose(1, 2, 3, 4, 0, 5)
        line = take((done, g.groups, rest, axis.padded, tail), lay.real)
        *before, row, item = line.strides
        first = line[..., : axis.out * step, :].reshape(*spectra.shape[:-2], step, tail, copy=False)
        np.matmul(steps[0], spectra, out=first)
        line[..., axis.out * step :, :] = 0
        more = take((*spectra.shape[:-2], step if len(steps) > 1 else 0, tail), lay.real)
        for k, matrix in enumerate(steps[1:], start=1):
            added = np.matmul(matrix, spectra, out=more[..., : len(matrix), :])
            seen = np.ndarray(added.shape, lay.real, line, k * step * row, (*before, step * row, row, item))
            np.add(seen, added, out=seen)
        cur, rest = line, rest * axis.padded
    images = cur.reshape(g.groups, n, *g.padded, -1).view(v.dtype)
    outer, inner = g.kept
    if g.is_cropped:
        x[...] = 0
    x[:, :, *inner[2:]] = images[:, :, *outer[2:]]
