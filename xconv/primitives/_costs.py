"""What the primitives cost: time, in multiply-adds of float32 in a large product, and temporary memory, in elements.

An algorithm costs what the primitives cost that it is made of. Of the times, only the ratios matter: between a
multiply-add, moving an element, and a call of the library.
"""

import math
from typing import NamedTuple

from .._geometry import Geometry
from .._typing import Function
from . import _depthwise, _fourier, _pooling, _spectra, _windows
from ._fourier import Grid
from ._spectra import Matrices

#: Bytes that C libraries keep for the next call, at most.
KEPT = 2**25


class Product(NamedTuple):
    """Sizes of ``u (blocks, rows, depth)`` by ``v (n, blocks, depth, pixels)``."""

    n: int
    blocks: int
    rows: int
    depth: int
    pixels: int

    @property
    def multiply_adds(self) -> int:
        return math.prod(self)


class Costs:
    """The primitives of the pure array-API standard."""

    #: A complex multiply-add, in those of real numbers.
    complex_multiply = 3.6
    #: A multiply-add of a product for each frequency, whose operands are small and lie apart, in those of a large one.
    spectral = 3.0
    #: A byte of fresh memory, which is a page fault every 4096.
    page = 5.0
    #: A product of a stack, in calls of the library; and an element of a tap's product or sum, in copies of it.
    of_stack, summand = 0.005, 1.2
    #: A number of a spectrum: on every axis, once more for each doubling of its length, and for each line.
    axis, doubling, line = 1.5, 1.3, 26.0

    def __init__(self, multiply: float, move: float, call: float, *, is_complex: bool = False) -> None:
        #: A multiply-add, an element that is copied, and an operation of the library.
        self.multiply, self.move, self.call = multiply, move, call
        self.is_complex = is_complex

    def moved(self, elements: float, calls: float = 1) -> float:
        """Copies of so many elements."""
        return calls * self.call + self.move * elements

    def fresh(self, size: float) -> float:
        """Temporary memory of so many bytes for a tile, in so far as it comes anew from the system for each."""
        return self.page * max(0, size - KEPT)

    @property
    def of_spectra(self) -> "Costs":
        """The costs of complex numbers made of these, in products of which each is one frequency's."""
        multiply, move = self.spectral * self.multiply, self.move
        if self.is_complex:
            return type(self)(multiply, move, self.call, is_complex=True)
        return type(self)(self.complex_multiply * multiply, 2 * move, self.call, is_complex=True)

    # windows: an axis after the other, its taps put together

    def im2col(self, g: Geometry) -> float:
        calls, elements = self._stages(g)
        return self.moved(elements, calls)

    def col2im(self, g: Geometry) -> float:
        calls, elements = self._stages(g)
        return self.moved(3 * elements, 3 * calls)

    def columns(self, g: Geometry) -> int:
        """Memory that `im2col` makes for a product, or `col2im` is handed by one."""
        return math.prod(g.columns_shape)

    def spare(self, g: Geometry) -> int:
        """Memory that `im2col` and `col2im` need at once beside the columns they make or take, at most."""
        return _windows.spare(g)

    def columns_spare(self, g: Geometry) -> int:
        """The same for `im2col` alone, which takes nothing for what lies between taps that are far apart."""
        return _windows.columns_spare(g)

    def _stages(self, g: Geometry) -> tuple[int, float]:
        """The operations of im2col, and the elements that they write."""
        calls, elements = 0, 0.0
        for i, axis in enumerate(g.axes):
            done = math.prod(a.kernel * a.out for a in g.axes[: i + 1])
            elements += g.batch * g.c_in * done * math.prod(a.padded for a in g.axes[i + 1 :])
            calls += axis.kernel + 4 * axis.is_padded + 1
        return calls, elements + g.batch * g.c_in * math.prod(g.padded)

    # products

    def product(self, p: Product) -> float:
        """Each operand is put in order for it, and the result is read and written."""
        moved = p.n * p.blocks * (p.depth + 2 * p.rows) * p.pixels + p.blocks * p.rows * p.depth
        return self.multiply * p.multiply_adds + self.moved(moved, 2) + self._stack(p)

    def outer(self, p: Product) -> float:
        moved = p.n * p.blocks * (p.depth + p.rows) * p.pixels + 2 * p.blocks * p.rows * p.depth
        return self.multiply * p.multiply_adds + self.moved(moved, 3) + self._stack(p)

    def _stack(self, p: Product) -> float:
        return self.of_stack * self.call * p.n * p.blocks

    # depthwise: a multiplication and an addition for every tap

    def depthwise(self, function: Function, g: Geometry) -> float:
        filters = g.c_out // max(1, g.c_in)
        if function == "input_grad":
            return self.product(Product(g.batch, g.c_in, g.taps, filters, g.pixels)) + self.col2im(g)
        return self.moved(self.summand * g.taps * math.prod(g.y_shape) + math.prod(g.x_shape), 4 * g.taps)

    def depthwise_spare(self, g: Geometry) -> int:
        """Memory that the three functions need at once beside what they take and make, at most."""
        return _depthwise.spare(g)

    # pooling: a comparison for every tap, and a copy of what is larger

    def pool(self, g: Geometry, *, mean: bool, back: bool) -> float:
        """The largest of every window or its mean; or `back`, to what was read."""
        taps = sum(g.kernel)
        elements = 3 * math.prod(g.y_shape) * taps + math.prod(g.x_shape)
        return self.moved(elements, 3 * taps) + (self.col2im(g) if back and not mean else 0)

    def pool_spare(self, g: Geometry, *, mean: bool, back: bool) -> int:
        """Memory that it needs beside what it takes and makes, at most."""
        return _pooling.spare(g, mean=mean, back=back)

    # windows under small matrices, and under Fourier transforms

    def spectra(self, g: Geometry, matrices: Matrices, *, adjoint: bool) -> float:
        cost, size = self.col2im(g) if adjoint else self.im2col(g), math.prod(g.columns_shape)
        for rows in matrices:
            new, old = len(rows), len(rows[0])
            cost += self.product(Product(1, 1, new, old, size // max(1, old))) + self.moved(size)
            size = size // max(1, old) * new
        return cost + self.moved(size)

    def spectra_spare(self, g: Geometry, matrices: Matrices) -> int:
        """Memory that `spectra` and its adjoint need at once beside what they take and make, at most."""
        return self.spare(g) + _spectra.spare(g, matrices)

    def fourier(self, g: Geometry, grid: Grid) -> float:
        points = g.batch * g.c_in * g.pixels * math.prod(grid.lengths)
        each = sum(self.axis + self.doubling * math.log2(max(2, n)) + self.line / n for n in grid.lengths)
        return self.moved(points * each, 6 * len(g.axes))

    def fourier_spare(self, g: Geometry, grid: Grid) -> int:
        """Numbers that `fourier` and its adjoint need at once beside what they take and make, at most."""
        return 4 * _fourier.spare(g, grid)
