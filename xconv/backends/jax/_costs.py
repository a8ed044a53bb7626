"""What the primitives of the JAX backend cost, measured under `jax.jit` on one thread of a processor with AVX-512."""

import math

from ..._geometry import Geometry
from ..._typing import Function, Kind
from ...primitives import KEPT, Costs, Grid, Matrices, Product


class JaxCosts(Costs):
    """Compiled loops: calls cost little, and elements much where nothing that was tuned for it works on them.

    The constants are fitted to the times of all algorithms for 41 random geometries of float32, float64 and complex64,
    those of columns to the times of 324 of these alone, those of complex products and of spectra to 19 and 20 shapes on
    an Intel Xeon; `page`, and the factors of dtypes, are set by hand.
    What the compiler takes is not counted, but where a program has a line for every tap: long ones take minutes.
    """

    #: A complex multiply-add, of any width: XLA has no fast product of these.
    complex_multiply = 8.3
    #: To copy an element of a window, more where it lies apart from its neighbours, to begin a row of these, and a byte
    #: of columns in fresh memory, which is asked for at every axis.
    window, apart, row, unfolded = 37.0, 6.5, 150.0, 70.0
    #: To add an element back, and to fold a tap of an axis.
    folding = 10.0
    #: To put an element of an operand in order for a product, to write a result, and each product of a stack.
    packing, writing, block = 11.3, 4.3, 490.0
    #: Each product of a stack of complex ones; and a number of a window's spectrum by small matrices, in fresh memory.
    complex_block, spectrum = 1950.0, 90.0
    #: A multiply-add of a depthwise convolution, one in the sum of its weight gradient, and the line for a tap.
    thin, summing, tap = 2.5, 26.0, 3600.0
    axis, doubling, line = 0.6, 0.5, 15.0
    page = 10.0

    def __init__(self, multiply: float, move: float, call: float, *, is_complex: bool = False) -> None:
        super().__init__(multiply, move, call, is_complex=is_complex)
        self.width = move / 12

    @property
    def of_spectra(self) -> Costs:
        width = 1 if self.is_complex else 2
        costs = JaxCosts(self.complex_multiply, width * self.move, self.call, is_complex=True)
        costs.block = self.complex_block
        return costs

    def fresh(self, size: float) -> float:
        """Loops are joined and take far less memory than is planned for: what is written out counts its own."""
        del size
        return 0

    def _written(self, elements: float) -> float:
        return self.page * max(0, 4 * self.width * elements - KEPT)

    def im2col(self, g: Geometry) -> float:
        padded = math.prod(g.x_shape) if g.is_padded else 0
        written = self.unfolded * max(0, 4 * self.width * math.prod(g.columns_shape) - KEPT)
        return self._windows(g, self.window, g.batch * g.c_in) + written + self.moved(padded)

    def col2im(self, g: Geometry) -> float:
        """Every tap is written as long as the axis that it is added to, be there one output of it or many."""
        elements = 0
        for i, axis in enumerate(g.axes):
            done = math.prod(a.kernel * a.out for a in g.axes[:i])
            left = math.prod(a.padded for a in g.axes[i + 1 :])
            elements += done * axis.kernel * -(-axis.padded // axis.stride) * left
        return self.width * self.folding * g.batch * g.c_in * elements + self._program(sum(g.kernel))

    def columns_spare(self, g: Geometry) -> int:
        return super().columns_spare(g) + math.prod(g.x_shape)  # to cut a tile out is to copy it

    def _windows(self, g: Geometry, each: float, planes: int) -> float:
        """What is done with each element of every window of so many planes."""
        elements = planes * g.taps * g.pixels
        if g.axes[-1].stride > 1:
            each += self.apart
        return self.width * each * elements + self.row * elements / max(1, g.out[-1])

    def product(self, p: Product) -> float:
        packed = p.n * p.blocks * p.depth * (p.pixels + p.rows)
        written = p.n * p.blocks * p.rows * p.pixels
        return self._products(p, packed, written)

    def outer(self, p: Product) -> float:
        packed = p.n * p.blocks * (p.depth + p.rows) * p.pixels
        written = 2 * p.n * p.blocks * p.rows * p.depth
        return self._products(p, packed, written)

    def _products(self, p: Product, packed: int, written: int) -> float:
        moved = self.width * (self.packing * packed + self.writing * written)
        return self.multiply * p.multiply_adds + moved + self.block * p.n * p.blocks + self.call

    def depthwise(self, function: Function, g: Geometry) -> float:
        if function == "input_grad" and g.c_out > g.c_in:
            return super().depthwise(function, g)
        planes, each = g.batch * g.c_out, self.summing if function == "weight_grad" else self.thin
        if function == "input_grad":
            return self._windows(g, each, planes) + self.col2im(g)
        return self._windows(g, each, planes) + self.moved(math.prod(g.x_shape)) + self._program(g.taps)

    def _program(self, lines: int) -> float:
        """The more so, the longer it takes to compile."""
        return self.tap * lines * (1 + lines / 64)

    def spectra(self, g: Geometry, matrices: Matrices, *, adjoint: bool) -> float:
        numbers = g.batch * g.c_in * g.pixels * math.prod(map(len, matrices))
        return super().spectra(g, matrices, adjoint=adjoint) + self.width * self.spectrum * numbers

    def fourier(self, g: Geometry, grid: Grid) -> float:
        calls, points = self.moved(0, 6 * len(g.axes)), g.batch * g.c_in * g.pixels * math.prod(grid.lengths)
        numbers = (super().fourier(g, grid) - calls) / self.width  # of any width take as long
        return calls + numbers + self._written(points)


def jax_costs(itemsize: int, kind: Kind) -> Costs:
    """The costs of numbers of so many bytes."""
    width = itemsize / 4
    slower = {"real": 1.0 if width == 1 else 2 * width, "complex": JaxCosts.complex_multiply}
    multiply = slower.get(str(kind), 4 * width)
    return JaxCosts(multiply, 12 * width, 17_000, is_complex=kind == "complex")
