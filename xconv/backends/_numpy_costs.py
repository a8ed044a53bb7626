"""What the primitives of the NumPy backend cost, measured on one thread of processors with AVX-512.

In nanoseconds there, with 85 multiply-adds of float32 in each: to copy a window 0.15 an element and 5.5 a row, to add
it back 0.55 and 9, an operation 1000; and for a number of a spectrum 1.3 an axis, 0.1 a doubling of its length.
"""

import math
from functools import cache

from .._geometry import Geometry
from .._typing import DType, Function
from . import _numpy_depthwise
from ._costs import Costs
from ._numpy_products import in_pieces
from ._spectra import Matrices

#: To begin a row of a window, and to add it to others.
ROW, FOLDING, FOLDED_ROW = 470, 4, 770
#: Elements of one register.
REGISTER = 16
#: Multiply-adds in the time of a call of the BLAS for a row, and in that of copying an element of the filters.
CALL, COPYING = 2500, 12
#: Products with fewer rows take as long as with so many; twice as many where they are not small ones.
FULL = 4
#: Products of many small matrices take so many times as long as one of a large one.
SMALL = 1.4
#: The product with a small matrix takes as much time as one with so many columns, at least.
NARROW = 96


class NumpyCosts(Costs):
    """Columns and products in kept memory."""

    def im2col(self, g: Geometry) -> float:
        columns = math.prod(g.columns_shape)
        return self.moved(columns + math.prod(g.x_shape), 6) + ROW * columns / max(1, g.out[-1])

    def col2im(self, g: Geometry) -> float:
        columns = math.prod(g.columns_shape)
        calls = 6 + min(g.taps, columns)
        return self.moved(FOLDING * columns + math.prod(g.x_shape), calls) + FOLDED_ROW * columns / max(1, g.out[-1])

    def by_row(self, g: Geometry, unfolded: int) -> float:
        """A row of outputs may end in the middle of a register; for products that are not small, filters are copied."""
        filters, row = max(1, g.c_out // g.groups), max(1, math.prod(g.out[1:]))
        work = g.macs * max(filters, FULL if in_pieces() else 2 * FULL) / filters
        copies = 0 if in_pieces() else COPYING * work / row
        products = work * (1.5 if row % REGISTER else 1.3) + copies + CALL * g.batch * g.groups * g.out[0]
        return self.multiply * products + self.moved(unfolded, 8) + ROW * unfolded / max(1, g.out[-1])

    def depthwise(self, function: Function, g: Geometry) -> float:
        del function
        return self.multiply * _numpy_depthwise.work(g) + 10 * self.call

    def spectra(self, g: Geometry, matrices: Matrices, *, adjoint: bool) -> float:
        """Axis by axis with the channels behind, in products of a few rows."""
        cost, behind = 0.0, 1
        for i, rows in reversed(list(enumerate(matrices))):
            axis = g.axes[i]
            before = math.prod(a.padded for a in g.axes[:i])
            tail = math.prod(a.out for a in g.axes[i + 1 :]) * (g.c_in // max(1, g.groups))
            cost += SMALL * before * behind * max(NARROW, tail) * axis.out * len(rows) * len(rows[0])
            behind *= len(rows)
        elements = g.batch * g.c_in * g.pixels * behind
        products = g.batch * g.groups * cost
        return self.multiply * products + self.moved(2 * elements + 2 * math.prod(g.x_shape), 8)


@cache
def numpy_costs(dtype: DType) -> Costs:
    width = dtype.itemsize / 4
    slower = {"i": 40.0, "u": 40.0, "c": Costs.complex_multiply / 2}  # the BLAS multiplies no integers
    return NumpyCosts(slower.get(dtype.kind, 1) * width, 12 * width, 85_000, is_complex=dtype.kind == "c")
