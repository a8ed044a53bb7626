"""What the primitives of the NumPy backend cost: fitted on one thread of an AMD EPYC (Zen 4) and an Intel Xeon.

Both have AVX-512, and run the same kernels of OpenBLAS. On the Xeon alone: transforms under small matrices, small
products, what a product writes, and elements that are added back.
"""

import math
from functools import cache

from ..._geometry import Geometry
from ..._typing import DType, Function
from ...primitives import Costs, Grid, Matrices, Product
from . import _depthwise, _fourier, _pooling, _products, _spectra, _windows

#: A multiply-add of a large product, in those of one of usual size.
PRODUCT = 0.45
#: Products with fewer rows take as long as with so many; twice as many where they are not small ones.
FULL = 4
#: Elements of a line of the cache.
LINE = 16


class NumpyCosts(Costs):
    """Columns and products in kept memory."""

    #: To copy an element of a window, and to begin a row of these.
    window, row = 12.0, 75.0
    #: To add an element back, more for one between others of its row's neighbours, and with a stride or channels last,
    #: one that is read from a line of the cache for itself, and to begin a row of these; each of many taps, in calls.
    folding, between, strided, apart, folded_row, named = 4.5, 8.0, 13.0, 27.0, 280.0, 3.0
    #: To put an element of an operand in order for a product, for the sum of an outer one, and to write a result; to do
    #: neither in a small product; and each product of a stack.
    packing, summing, writing, reading, stacked, single = 7.0, 10.0, 10.0, 3.0, 400.0, 10.0
    #: To bring a number to windows under small matrices or back, to make one of theirs, and the multiply-adds that this
    #: takes; to add up what the adjoint makes where windows overlap; and each product of these stacks.
    turned, made, small, overlap, tiny = 24.0, 8.0, 2.0, 50.0, 1400.0
    #: An element of a depthwise convolution that is shifted, and the multiply-adds.
    shifted, thin = 14.0, 0.7
    #: To bring a channel from behind the pixels in front of them.
    turning = 45.0
    #: A product for each row of outputs: its call, its multiply-adds, and these where the BLAS copies every operand.
    row_call, row_product, copied = 3000.0, 1.5, 1.3
    #: How much of its time a Fourier transform takes whose frequencies lie behind all else.
    behind = 0.9
    page = 10.0
    axis, doubling, line = 1.15, 0.83, 33.0
    #: Operations of the library.
    fourier_calls, spectra_calls, depthwise_calls, product_calls = 14.0, 18.0, 15.0, 1.0

    def __init__(self, multiply: float, move: float, call: float, *, is_complex: bool = False) -> None:
        super().__init__(multiply, move, call, is_complex=is_complex)
        self.width = move / 12

    def im2col(self, g: Geometry) -> float:
        columns = math.prod(g.columns_shape)
        cost = self.width * self.window * columns + self.row * columns / _run(g)
        return cost + self.moved(math.prod(g.x_shape), 6)

    def col2im(self, g: Geometry) -> float:
        """Tap by tap, or output by output where these are fewer: then what is read for one lies apart."""
        columns = math.prod(g.columns_shape)
        if g.pixels < g.taps:
            each, row = self.apart * min(g.pixels, LINE) / LINE, g.kernel[-1]
        else:
            each, row = self.folding + (self.between if len(g.axes) > 1 else 0), _run(g)
            each += self.strided if g.axes[-1].stride > 1 or g.channels_last else 0
        cost = self.width * each * columns + self.folded_row * columns / max(1, row)
        calls = min(g.taps, g.pixels) * (self.named if g.taps > _windows.FEW_TAPS else 1)
        return cost + self.moved(math.prod(g.x_shape), 6 + calls)

    def spare(self, g: Geometry) -> int:
        return _windows.spare(g)

    def columns_spare(self, g: Geometry) -> int:
        return _windows.columns_spare(g)

    def product(self, p: Product) -> float:
        """Each operand is put in order for it; a sum of one number is none, and made without the BLAS."""
        if p.depth == 1:
            return self.width * self.single * p.multiply_adds + 2 * self.call
        packed = p.n * p.blocks * p.depth * p.pixels + p.blocks * p.rows * p.depth
        written = p.n * p.blocks * p.rows * p.pixels
        is_small = self._is_small(p.rows * p.depth * p.pixels)
        moved = self.reading * (packed + written) if is_small else self.packing * packed + self.writing * written
        calls = self.stacked * p.n * p.blocks + self.product_calls * self.call
        return self.multiply * p.multiply_adds + self.width * moved + calls

    def _is_small(self, multiply_adds: int) -> bool:
        """Whether the BLAS reads the operands of a product where they lie."""
        return multiply_adds <= _products.SMALL and _products.has_small() and not self.is_complex

    def outer(self, p: Product) -> float:
        packed = p.n * p.blocks * (p.depth + p.rows) * p.pixels + 2 * p.blocks * p.rows * p.depth
        calls = self.stacked * p.blocks + self.product_calls * self.call
        return self.multiply * p.multiply_adds + self.width * self.summing * packed + calls

    def by_row(self, g: Geometry, unfolded: int) -> float:
        """A row of outputs may end in the middle of a register; for products that are not small, filters are copied."""
        filters, row = max(1, g.c_out // g.groups), max(1, math.prod(g.out[1:]))
        is_small = self._is_small(g.w_shape[1] * g.taps * filters * row)
        work = g.macs * max(filters, FULL if is_small else 2 * FULL) / filters
        copies = 0 if is_small else self.packing * work / row
        slower = 1 if _products.has_small() else self.copied
        products = slower * self.row_product * work + copies + self.row_call * g.batch * g.groups * g.out[0]
        turned = self.turning * math.prod(g.x_shape) if g.channels_last and g.c_in > 1 else 0
        columns = self.width * (self.window * unfolded + turned) + self.row * unfolded / max(1, g.out[-1])
        return self.multiply * products + columns + 16 * self.call

    def pool(self, g: Geometry, *, mean: bool, back: bool) -> float:
        """A pass over the rows, and one over the outputs for every tap of the last axis; more to find the largest."""
        elements = math.prod(g.x_shape) + math.prod(g.y_shape) * sum(g.kernel)
        return self.moved(3 * elements if back and not mean else elements, sum(g.kernel))

    def pool_spare(self, g: Geometry, *, mean: bool, back: bool) -> int:
        itemsize = round(4 * self.width)
        return -(-_pooling.spare(g, itemsize, mean=mean, back=back) // itemsize)

    def depthwise(self, function: Function, g: Geometry) -> float:
        del function
        size, taps, rows = _depthwise.sizes(g)
        products = self.multiply * self.thin * size * (55 + 12 * taps + 2 * rows + 3 * rows * taps)
        return products + self.width * self.shifted * size * (taps + rows + 2) + self.depthwise_calls * self.call

    def depthwise_spare(self, g: Geometry) -> int:
        return _depthwise.spare(g)

    def spectra(self, g: Geometry, matrices: Matrices, *, adjoint: bool) -> float:
        """Axis by axis with the channels behind, in products of a few rows."""
        small, made, added, products, behind = 0, 0, 0, 0, 1
        for i, (axis, rows) in reversed(list(enumerate(zip(g.axes, matrices, strict=True)))):
            each = math.prod(a.out for a in g.axes[i + 1 :]) * g.c_in // max(1, g.groups)
            stack = g.batch * g.groups * math.prod(g.padded[:i]) * behind * axis.out
            behind *= len(rows)
            if axis.kernel > 1:
                products += stack
                small += stack * each * len(rows) * axis.kernel
                made += stack * each * len(rows)
                added += stack * each * max(0, axis.kernel - axis.stride) if adjoint and axis.out > 1 else 0
        numbers = self.turned * math.prod(g.x_shape) + self.made * made + self.overlap * added
        calls = self.tiny * products + self.spectra_calls * self.call
        return self.multiply * self.small * small + self.width * numbers + calls

    def spectra_spare(self, g: Geometry, matrices: Matrices) -> int:
        return _spectra.spare(g, matrices)

    def fourier(self, g: Geometry, grid: Grid) -> float:
        once = super().fourier(g, grid) + self.fourier_calls * len(g.axes) * self.call
        return once * self.behind if grid.behind else once

    def fourier_spare(self, g: Geometry, grid: Grid) -> int:
        spare, count = _fourier.spare(g, grid), g.batch if g.batch > 1 else g.c_in
        return min(spare, max(_fourier.AT_A_TIME, spare // max(1, count))) if grid.behind else spare


def _run(g: Geometry) -> int:
    """Elements of a window that are copied in a row: of one output, taps are neighbours; and channels that are last."""
    last = g.axes[-1]
    if g.channels_last and g.groups == 1:
        return max(1, g.c_in * (last.kernel if last.dilation == 1 else 1))
    return max(1, last.out if last.out > 1 else last.kernel)


@cache
def numpy_costs(dtype: DType) -> Costs:
    width = dtype.itemsize / 4
    slower = {"i": 40.0, "u": 40.0, "c": Costs.complex_multiply / 2}  # the BLAS multiplies no integers
    return NumpyCosts(PRODUCT * slower.get(dtype.kind, 1) * width, 12 * width, 50_000, is_complex=dtype.kind == "c")
