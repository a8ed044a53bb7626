r"""Fourier's way: under the transform, a convolution of any length is one product per frequency.

The result is cut into blocks of m outputs, and the image into windows of N elements that hold what a block reads (the
overlap-save method; T. Stockham, *High-speed convolution and correlation*, 1966). With F the orthonormal transform of N
elements on every axis, and a kernel of K taps,

.. math:: y = F^{-1}\,(\overline{F\,\bar w} \circ F x) \sqrt N, \quad
          dx = F^{-1}\,(F\,\bar w \circ F\,dy) \sqrt N, \quad
          dw = \overline{F^{-1}\,\overline{(F\,dy \circ \overline{F x})}} \sqrt N,

of which the first m, N and K elements count: what wraps around is in the others. So V and U are F on windows and
filters, their adjoints end in its inverse, and S and its adjoint are the same two for the blocks of the result. A
stride leaves out outputs, a dilation puts zeros between the taps.

The error is ``|err| <= c * eps * log(N) * |x| * |w|`` with the norms of a window and of a filter: small outputs next to
large ones are less exact, and a NaN spoils its whole window.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import NamedTuple

from .._axis import Axis
from .._geometry import Geometry
from .._typing import Array, DType, Function, Kind, Shape
from ..primitives import Costs, Grid, Primitives, Product, Team
from ._bilinear import Bilinear

#: As many as fit into the 64 axes of an array, two each.
MOST_AXES = 31
#: Elements of temporary memory for a tile: every frequency is a product of its own, and should not be a thin one.
LEAST_TILE = 2**21
#: Odd factors of lengths are smaller: no memory holds a longer axis.
MOST_ODD = 2**64
#: The numbers of blocks that are tried differ by this factor.
FINER = 1.4


def smooth(least: int) -> int:
    """The smallest number from `least` with no prime factors but 2, 3 and 5, for which all libraries have fast code."""
    least = max(1, least)
    octave = _octave(least.bit_length())
    return octave[bisect_left(octave, least)]


@lru_cache(maxsize=256)
def _octave(bits: int) -> list[int]:
    """All such numbers with so many bits, and the next one, in order: of every odd one, one multiple."""
    found, end, five = [1 << bits], min(1 << bits, MOST_ODD), 1
    while five < end:
        odd = five
        while odd < end:
            found.append(odd << bits - odd.bit_length())
            odd *= 3
        five *= 5
    return sorted(found)


class Side(NamedTuple):
    """What is transformed: windows of a geometry, and how."""

    geometry: Geometry
    grid: Grid

    @property
    def numbers(self) -> int:
        """Real numbers of the spectra, or complex ones of complex numbers."""
        g, grid = self
        return g.batch * g.c_in * g.pixels * math.prod(grid.frequencies) * (2 if grid.real else 1)


class Sides(NamedTuple):
    image: Side
    result: Side
    filters: Side


@lru_cache(maxsize=1024)
def sides(g: Geometry, lengths: Shape, real: bool) -> Sides:  # noqa: FBT001
    image, result, filters = [], [], []
    for axis, length in zip(g.axes, lengths, strict=True):
        outputs = max(1, min(axis.out, (length - axis.extent) // axis.stride + 1))
        blocks = max(1, -(-axis.out // outputs))
        window = (outputs - 1) * axis.stride + axis.extent
        step = outputs * axis.stride if blocks > 1 else window
        end = (blocks - 1) * step + window - axis.size - axis.lo
        image.append(Axis(axis.size, window, step, 1, axis.lo, end))
        result.append(Axis(axis.out, outputs, outputs, 1, 0, blocks * outputs - axis.out))
        filters.append(Axis(axis.kernel, axis.kernel, axis.kernel))
    strides, dilations = zip(*((axis.stride, axis.dilation) for axis in g.axes), strict=True)
    behind = g.groups == 1 and 1 in (g.c_in, g.c_out)
    return Sides(
        Side(replace(g, axes=tuple(image)), Grid(lengths, (1,) * len(lengths), real, behind)),
        Side(replace(g, c_in=g.c_out, axes=tuple(result)), Grid(lengths, strides, real, behind)),
        Side(
            replace(g, batch=g.c_out, c_in=g.c_in // g.groups, groups=1, axes=tuple(filters)),
            Grid(lengths, dilations, real, behind),
        ),
    )


class Price(NamedTuple):
    """What the parts of the algorithm cost, in multiply-adds."""

    #: A number of a spectrum, on every axis and once more for each doubling of its length.
    axis: float
    doubling: float
    #: A product of two complex numbers, and the least for all those of one frequency.
    product: int
    call: int


#: As arithmetic goes: 5/2 operations for a number and doubling (J. Cooley, J. Tukey, 1965).
ARITHMETIC = Price(0, 5 / 4, 4, 0)
#: As time goes: so many multiply-adds of a matrix product, with the copies before and behind each transform.
TIME = Price(192, 24, 4, 2500)


class Cut(NamedTuple):
    """How an axis is cut into blocks, or how several are."""

    #: Products of the lengths, and of the numbers of blocks.
    length: int
    blocks: int
    #: The price of a number of the spectra, in parts of a multiply-add.
    each: int

    def joined(self, other: "Cut") -> "Cut":
        return Cut(self.length * other.length, self.blocks * other.blocks, self.each + other.each)


#: So many parts are a multiply-add. Costs are integers, as they may be too large for floats.
PARTS = 2**20
NO_AXES = Cut(1, 1, 0)


@lru_cache(maxsize=1024)
def best_lengths(g: Geometry) -> Shape:
    """The lengths that take the least time, found on one axis after the other."""
    choices = [_cuts(axis) for axis in g.axes]
    chosen = [choice[-1] for choice in choices]
    cost = _cost_of(g, TIME)
    for i in (*range(len(choices)), *range(len(choices))):
        others = reduce(Cut.joined, chosen[:i] + chosen[i + 1 :], NO_AXES)
        costs = [cost(others.joined(cut)) for cut in choices[i]]
        chosen[i] = choices[i][costs.index(min(costs))]
    return tuple(cut.length for cut in chosen)


def total(g: Geometry, lengths: Shape, price: Price) -> int:
    """What a forward pass costs."""
    cuts = (_cut(axis, length, price) for axis, length in zip(g.axes, lengths, strict=True))
    return _cost_of(g, price)(reduce(Cut.joined, cuts, NO_AXES))


def _cost_of(g: Geometry, price: Price) -> Callable[[Cut], int]:
    """The function that tells what a forward pass costs with all axes cut."""
    channels, filters = g.c_in + g.c_out, math.prod(g.w_shape[:2])

    def cost(cut: Cut) -> int:
        columns = g.batch * cut.blocks
        products = g.groups * max(price.call, price.product * filters // g.groups * columns)
        return cut.length * ((columns * channels + filters) * cut.each + products * PARTS // 2) // PARTS

    return cost


def _cuts(axis: Axis) -> list[Cut]:
    """The ways to cut an axis that are tried, those with short transforms first."""
    spans = ((max(1, -(-axis.out // blocks)) - 1) * axis.stride + axis.extent for blocks in _counts(axis.out))
    return [_cut(axis, length, TIME) for length in sorted(set(map(smooth, spans)))]


def _counts(outputs: int) -> list[int]:
    """Numbers of blocks, from 1 to about `outputs`, ever farther apart."""
    counts, count = [], 1.0
    while count <= max(1, outputs):
        counts.append(int(count))
        count = max(count + 1, count * FINER)
    return counts


def _cut(axis: Axis, length: int, price: Price) -> Cut:
    blocks = -(-axis.out // ((length - axis.extent) // axis.stride + 1))
    return Cut(length, blocks, int(PARTS * (price.axis + price.doubling * math.log2(max(2, length)))))


@dataclass(frozen=True)
class Fourier(Bilinear):
    """The algorithm, for transforms of certain lengths or, as long as there are none, of the best ones."""

    lengths: Shape | None = None
    real: bool = True

    name = "fft"
    componentwise = False

    def fitted(self, g: Geometry, kind: Kind) -> "Fourier":
        return Fourier(best_lengths(g), kind != "complex")

    def sides(self, g: Geometry) -> Sides:
        return sides(g, self.lengths or best_lengths(g), self.real)

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if kind == "integer":
            return "its transforms round, and the numbers are integers"
        if len(g.axes) > MOST_AXES:
            return f"its spectra of {len(g.axes)} spatial axes have more than the 64 axes of an array"
        return None

    def lack(self, backend: Primitives, dtype: DType, precision: str) -> str | None:
        del dtype, precision
        return None if hasattr(backend.xp, "fft") else f"{backend.name} has no `fft` extension"

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        del function
        image, result, _ = self.sides(g)
        spare = max(costs.fourier_spare(*image), costs.fourier_spare(*result))
        return image.numbers + 2 * result.numbers + spare + math.prod(g.x_shape) + math.prod(g.y_shape)

    def filters(self, g: Geometry) -> int:
        return 2 * self.sides(g).filters.numbers + math.prod(g.w_shape)

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        """One row of blocks of one image: a part of a block would cost as much as all of it."""
        outputs = self.sides(g).result.geometry.kernel
        row = g.largest("outputs", [min(1, g.batch), min(outputs[0], g.out[0]), *g.out[1:]])
        shared = max(min(LEAST_TILE, self.scratch("forward", g, costs) // 2), 3 * self.sides(g).filters.numbers // 2)
        return max(shared, self.scratch("forward", row, costs))

    def grain(self, g: Geometry) -> Shape | None:
        return self.sides(g).result.geometry.kernel

    def traffic(self, g: Geometry) -> int:
        return sum(2 * side.numbers + math.prod(side.geometry.x_shape) for side in self.sides(g))

    def multiplications(self, g: Geometry) -> int:
        return total(g, self.lengths or best_lengths(g), ARITHMETIC)

    def analysis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        del adjoint
        return costs.fourier(*self.sides(g).image)

    def synthesis_cost(self, g: Geometry, costs: Costs, *, adjoint: bool) -> float:
        del adjoint
        return costs.fourier(*self.sides(g).result)

    def product_size(self, g: Geometry) -> Product:
        image, groups = self.sides(g).image, max(1, g.groups)
        blocks = math.prod(image.grid.frequencies) * groups
        return Product(1, blocks, g.c_out // groups, g.c_in // groups, g.batch * image.geometry.pixels)

    def product_costs(self, costs: Costs) -> Costs:
        return costs.of_spectra

    def once(self, function: Function, g: Geometry, costs: Costs) -> float:
        del function
        return costs.fourier(*self.sides(g).filters)

    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        return self._left(backend, g, backend.conj(self._spectra(backend, g, backend.conj(w), team)))

    def adjoint_operand(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        return backend.xp.matrix_transpose(self._left(backend, g, self._spectra(backend, g, w, team)))

    def transform_adjoint(self, backend: Primitives, g: Geometry, u: Array, team: Team) -> Array:
        xp, (side, grid) = backend.xp, self.sides(g).filters
        frequencies = math.prod(grid.frequencies)
        v = xp.matrix_transpose(xp.reshape(backend.conj(u), (1, frequencies, g.c_out, side.c_in)))
        dw = backend.conj(backend.fourier_inverse(v, side, grid, team=team))
        return backend.times_root(dw, math.prod(grid.lengths))

    def _spectra(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        side, grid = self.sides(g).filters
        return backend.fourier(backend.times_root(w, math.prod(grid.lengths)), side, grid, team=team)

    def _left(self, backend: Primitives, g: Geometry, v: Array) -> Array:
        """The spectra of the filters, ``(1, frequencies, depth, c_out)``, as the left side of a product."""
        shape = (v.shape[1] * g.groups, g.c_out // g.groups, g.c_in // g.groups)
        return backend.xp.reshape(backend.xp.matrix_transpose(v), shape)

    def analysis(self, backend: Primitives, g: Geometry, x: Array) -> Array:
        return backend.fourier(x, *self.sides(g).image)

    def analysis_adjoint(self, backend: Primitives, g: Geometry, v: Array, out: Array | None) -> Array:
        return backend.fourier_inverse(v, *self.sides(g).image, out)

    def synthesis(self, backend: Primitives, g: Geometry, p: Array, out: Array | None) -> Array:
        return backend.fourier_inverse(p, *self.sides(g).result, out)

    def synthesis_adjoint(self, backend: Primitives, g: Geometry, dy: Array) -> Array:
        return backend.fourier(dy, *self.sides(g).result)
