r"""Winograd's convolution: small tiles of the image and of the result as polynomials, multiplied point by point.

F(m, k) makes m neighbouring outputs of k taps with ``m + k - 1`` products instead of ``m * k``:

.. math:: y = A^T\,((G w) \circ (B^T x)),

on every axis at once, with constant matrices from the Lagrange interpolation of a product of polynomials (Toom and
Cook), transposed. The channels are contracted per frequency, so each frequency is one block of the product. V is B on
overlapping tiles of the image, S is A on the tiles of the result, and U is G on the filters; padding and the ragged end
of the last tile are zeros on the one side, and cut off on the other.

With a stride s, the taps that lie s apart are the kernel of a convolution with stride 1, and so are few of many taps.
The taps of an axis are cut into such parts, F(m, k) is made for each, and the frequencies of all of them are those of
the axis: four outputs of three taps with a stride of 2 take 9 products instead of 12, and those of five taps 11 instead
of 20 (Huang et al., *DWM: A Decomposable Winograd Method for Convolution Acceleration*, AAAI 2020).

The points are 0, 1, -1, 1/2, -2, -1/2, 2 in this order, and infinity: small ones in pairs of reciprocals, whose errors
are small (Barabasz, Anderson, Soodhalter, Gregg, *Error analysis and improving the accuracy of Winograd convolution for
deep neural networks*, ACM TOMS 46, 2020, sec. 5). In float32, ``max|err| / max|y|`` of 64 channels of normal numbers in
two dimensions was measured as 2e-6 for 3 taps, with a stride of 2, too, and at most 1e-5 for any other window; of the
gradients as 1.2e-5, of positive numbers, too, and 2e-5 in three dimensions.
"""

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

from .._axis import Axis
from .._geometry import Geometry
from .._typing import Array, Function, Kind, Shape
from ..primitives import Costs, Primitives, Product, Rows, Team
from ._bilinear import Bilinear

POINTS = tuple(Fraction(*ratio) for ratio in ((0, 1), (1, 1), (-1, 1), (1, 2), (-2, 1), (-1, 2), (2, 1)))
#: Taps of a part, for which the points are good with four outputs; and of an axis.
MOST_TOGETHER, MOST_TAPS = 5, 16
MOST_AXES = 30
#: How many times as large the error becomes with every axis of parts of so many frequencies, and with all axes at most.
GROWTH = {1: 1, 3: 1, 4: 1, 5: 4.5, 6: 3, 7: 8, 8: 8}
MOST_GROWTH = 64
#: And by how much more with a stride: an element of the input gradient is a sum over the few taps of one part.
STRIDED = 1.5
#: Elements of temporary memory for a tile: every frequency is a product of its own, and should not be a thin one. From
#: the first number on, there are two tiles; from twice the second one on, more.
WHOLE_TILE, LEAST_TILE = 2**21, 2**22
Matrix = tuple[tuple[Fraction, ...], ...]


class Bank(NamedTuple):
    """The exact matrices of F(m, k), each with one row per frequency: A, G and the transpose of B."""

    synthesis: Matrix
    transform: Matrix
    analysis: Matrix


@cache
def bank(outputs: int, taps: int, stride: int = 1) -> Bank:
    """F(outputs, taps) of each part of the taps, one behind the other; the inputs are the window of all outputs."""
    window, rows = (outputs - 1) * stride + taps, Bank((), (), ())
    for part in parts(taps, stride):
        own, reads = _interpolated(outputs, len(part)), range(part.start, window, stride)
        rows = Bank(
            synthesis=(*rows.synthesis, *own.synthesis),
            transform=(*rows.transform, *(_spread(row, part, taps) for row in own.transform)),
            analysis=(*rows.analysis, *(_spread(row, reads, window) for row in own.analysis)),
        )
    return rows


@cache
def parts(taps: int, stride: int) -> tuple[range, ...]:
    """The taps of an axis, in parts that read neighbours where every `stride`-th element is kept, of not too many."""
    found = []
    for first in range(stride):
        phase = range(first, taps, stride)
        count = -(-len(phase) // MOST_TOGETHER)
        found += [phase[len(phase) * i // count : len(phase) * (i + 1) // count] for i in range(count)]
    return tuple(found)


def _spread(row: tuple[Fraction, ...], places: range, length: int) -> tuple[Fraction, ...]:
    """The numbers of a row at these places, and zeros elsewhere."""
    numbers = dict(zip(places, row, strict=False))
    return tuple(numbers.get(i, Fraction(0)) for i in range(length))


def _interpolated(outputs: int, taps: int) -> Bank:
    """F(outputs, taps) over the first points and infinity."""
    if taps == 1:
        unit = tuple(tuple(Fraction(i == j) for i in range(outputs)) for j in range(outputs))
        return Bank(unit, ((Fraction(1),),) * outputs, unit)
    points = POINTS[: outputs + taps - 2]
    others = [[q for q in points if q != p] for p in points]
    scales = [math.prod((p - q for q in rest), start=Fraction(1)) for p, rest in zip(points, others, strict=True)]
    return Bank(
        synthesis=(*(_powers(p, outputs) for p in points), _last(outputs)),
        transform=(
            *(tuple(x / scale for x in _powers(p, taps)) for p, scale in zip(points, scales, strict=True)),
            _last(taps),
        ),
        analysis=(*((*_from_roots(rest), Fraction(0)) for rest in others), _from_roots(points)),
    )


def _powers(point: Fraction, count: int) -> tuple[Fraction, ...]:
    return tuple(point**i for i in range(count))


def _last(count: int) -> tuple[Fraction, ...]:
    """The value at infinity: the leading coefficient."""
    return (*(Fraction(0),) * (count - 1), Fraction(1))


def _from_roots(roots: tuple[Fraction, ...] | list[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of the polynomial with these roots, the constant one first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return tuple(coefficients)


class Side(NamedTuple):
    """One of the three linear maps: the tiles as windows of a geometry, and the matrix of every axis."""

    geometry: Geometry
    matrices: tuple[Rows, ...]

    @property
    def elements(self) -> int:
        """Elements of the spectra."""
        g = self.geometry
        return g.batch * g.c_in * g.pixels * math.prod(len(rows) for rows in self.matrices)


class Sides(NamedTuple):
    image: Side
    result: Side
    filters: Side

    @property
    def exchanged(self) -> Side:
        """The filters with their axes exchanged: an image for each input channel, with a channel for each filter."""
        g, matrices = self.filters
        return Side(replace(g, batch=g.c_in, c_in=g.batch, groups=self.image.geometry.groups), matrices)

    @property
    def frequencies(self) -> int:
        return math.prod(len(rows) for rows in self.image.matrices)


@cache
def outputs(kernel: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Outputs of a tile on every axis, by the windows alone; None where the error would be too large."""
    windows = [(k, stride) for k, stride in zip(kernel, strides, strict=True) if k > 1]
    longest = [max(map(len, parts(*window))) for window in windows]
    strided = math.prod(STRIDED for _, stride in windows if stride > 1)
    for most in (4, 2):
        if strided * math.prod(GROWTH[most + k - 1] for k in longest) <= MOST_GROWTH:
            return tuple(1 if k == 1 else most for k in kernel)
    return None


@lru_cache(maxsize=1024)
def sides(g: Geometry) -> Sides:
    steps = outputs(g.kernel, _strides(g)) or ()
    image, result, filters = [], [], []
    for axis, m in zip(g.axes, steps, strict=True):
        k, s, covered = axis.kernel, axis.stride, -(-axis.out // m) * m
        end = (covered - 1) * s + k - axis.size - axis.lo
        image.append(Axis(axis.size, (m - 1) * s + k, m * s, 1, axis.lo, end))
        result.append(Axis(axis.out, m, m, 1, 0, covered - axis.out))
        filters.append(Axis(k, k))
    banks = [_plain(m, k, s) for m, k, s in zip(steps, g.kernel, _strides(g), strict=True)]
    synthesis, transform, analysis = zip(*banks, strict=True)
    return Sides(
        Side(replace(g, axes=tuple(image)), analysis),
        Side(replace(g, c_in=g.c_out, axes=tuple(result)), synthesis),
        Side(replace(g, batch=g.c_out, c_in=g.c_in // g.groups, groups=1, axes=tuple(filters)), transform),
    )


def _strides(g: Geometry) -> Shape:
    return tuple(axis.stride for axis in g.axes)


@cache
def _plain(outputs: int, taps: int, stride: int) -> tuple[Rows, Rows, Rows]:
    exact = bank(outputs, taps, stride)
    synthesis, transform, analysis = (tuple(tuple(map(float, row)) for row in matrix) for matrix in exact)
    return synthesis, transform, analysis


class Winograd(Bilinear):
    name = "winograd"
    componentwise = False

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if kind == "integer":
            return "its matrices hold fractions, and the numbers are integers"
        if any(axis.stride > 1 and axis.is_apart for axis in g.axes):
            return "no two windows share an element on an axis with a stride"
        if any(axis.dilation > 1 and axis.kernel > 1 for axis in g.axes):
            return "the dilation is above 1"
        if g.taps == 1:
            return "a kernel of one tap has nothing to save"
        if max(g.kernel) > MOST_TAPS:
            return f"the kernel {g.kernel} has more than {MOST_TAPS} taps on an axis"
        if len(g.axes) > MOST_AXES:
            return f"its spectra of {len(g.axes)} spatial axes have more than the 64 axes of an array"
        if outputs(g.kernel, _strides(g)) is None:
            return f"its error would be too large for a kernel {g.kernel} with strides {_strides(g)}"
        return None

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        image, result, _ = sides(g)
        spare = max(costs.spectra_spare(*image), costs.spectra_spare(*result))
        larger = max(image.elements, result.elements)
        conjugate = larger if costs.is_complex and function == "weight_grad" else 0
        spectra = image.elements + result.elements + conjugate
        return spectra + spare + math.prod(g.x_shape) + math.prod(g.y_shape)

    def filters(self, g: Geometry) -> int:
        """Their spectra, and what lies between two axes: of as many as fit beside these, or of one."""
        side, channels = sides(g).filters, max(g.c_out, g.c_in // max(1, g.groups))
        sizes = [len(rows) for rows in side.matrices]
        between = sum(math.prod(g.kernel[:i]) * math.prod(sizes[i:]) for i in range(1, len(sizes) + 1))
        return side.elements + max(side.elements, 2 * channels * between)

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        half = 2 * self.scratch("forward", g, costs) // 3  # two tiles have more in all, for what they share
        return max(min(LEAST_TILE, max(WHOLE_TILE, half)), 3 * sides(g).filters.elements // 2)

    def grain(self, g: Geometry) -> Shape | None:
        return outputs(g.kernel, _strides(g))

    def traffic(self, g: Geometry) -> int:
        return sum(2 * side.elements + 2 * math.prod(side.geometry.x_shape) for side in sides(g))

    def multiplications(self, g: Geometry) -> int:
        transforms = sum(_transform_multiplications(side) for side in sides(g))
        return self.product_size(g).multiply_adds + transforms

    def analysis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        return costs.spectra(*sides(g).image, adjoint=adjoint)

    def synthesis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        return costs.spectra(*sides(g).result, adjoint=not adjoint)

    def product_size(self, g: Geometry) -> Product:
        everything, groups = sides(g), max(1, g.groups)
        image = everything.image.geometry
        blocks = everything.frequencies * groups
        return Product(1, blocks, g.c_out // groups, g.c_in // groups, g.batch * image.pixels)

    def once(self, function: Function, g: Geometry, costs: Costs) -> float:
        """Spectra of the filters are as large as no cache, and those of their gradient are read from there, too."""
        filters, gradient = sides(g).filters, function == "weight_grad"
        return costs.spectra(*filters, adjoint=gradient) + costs.moved((2 if gradient else 1) * filters.elements)

    # Products whose columns have their channels behind read the transpose of what these two make, so both make it so
    # that its transpose is what lies in order.

    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        exchanged = backend.xp.permute_dims(w, (1, 0, *range(2, w.ndim)))
        return backend.spectra(exchanged, *sides(g).exchanged, team=team)[0, ...]

    def adjoint_operand(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        """``U(conj(w))^H``, which is ``U(w)^T`` since the matrices are real."""
        xp, everything = backend.xp, sides(g)
        u = backend.spectra(w, *everything.filters, team=team)  # (1, frequencies, depth, c_out)
        shape = (everything.frequencies * g.groups, g.c_out // g.groups, g.c_in // g.groups)
        return xp.matrix_transpose(xp.reshape(xp.matrix_transpose(u), shape))

    def transform_adjoint(self, backend: Primitives, g: Geometry, u: Array, team: Team) -> Array:
        xp, everything = backend.xp, sides(g)
        u = xp.reshape(u, (1, everything.frequencies, g.c_out, g.c_in // g.groups))
        return backend.spectra_adjoint(xp.matrix_transpose(u), *everything.filters, team=team)

    def analysis(self, backend: Primitives, g: Geometry, x: Array) -> Array:
        return backend.spectra(x, *sides(g).image)

    def analysis_adjoint(self, backend: Primitives, g: Geometry, v: Array, out: Array | None) -> Array:
        return backend.spectra_adjoint(v, *sides(g).image, out)

    def synthesis(self, backend: Primitives, g: Geometry, p: Array, out: Array | None) -> Array:
        return backend.spectra_adjoint(p, *sides(g).result, out)

    def synthesis_adjoint(self, backend: Primitives, g: Geometry, dy: Array) -> Array:
        return backend.spectra(dy, *sides(g).result)


def _transform_multiplications(side: Side) -> int:
    """Multiply-adds of a transform, one axis after the other, the last first."""
    g, total = side.geometry, 0
    for i, rows in enumerate(side.matrices):
        before = math.prod(axis.padded for axis in g.axes[:i])
        behind = math.prod(axis.out * len(r) for axis, r in zip(g.axes[i + 1 :], side.matrices[i + 1 :], strict=True))
        total += before * behind * g.axes[i].out * len(rows) * len(rows[0])
    return g.batch * g.c_in * total
