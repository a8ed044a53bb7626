"""What the primitives cost on a CUDA device, as measured on an H200: the unit is a multiply-add of float32 by cuBLAS.

That is 41 TFLOP/s in the products of convolutions, beside copies at 4.2 TB/s.
"""

import math
from typing import NamedTuple

from ..._geometry import Geometry
from ..._typing import Function
from ...primitives import Costs, Product
from ._lines import UNROLLED
from ._pooling import numbers
from ._steps import LINE

#: A byte that is copied: read and written.
COPIED = 9.7
#: im2col and col2im, in copies of half of what they read and write.
WINDOWS = 1.1
#: Sums from which on a product over pixels fills a device, and what it takes with fewer, in a product over channels.
MANY, FEW = 2**18, 1.25
#: A multiply-add of a depthwise convolution with more taps than are written out.
LOOPED: dict[Function, float] = {"forward": 70, "input_grad": 70, "weight_grad": 700}
#: The same multiply-add where every element is copied on its own, and a slice has more than one tap, or pixels of the
#: result are a stride apart.
RAGGED = 1.6
#: A call of cuDNN, 5 us.
GRAPH = 1e8
#: Copies that cuDNN makes of images whose channels come first, for its tensor cores.
REORDERED = 1.7


class Rates(NamedTuple):
    """A multiply-add of each kind."""

    product: float
    #: Of the implicit product: with channels in whole chunks, and else; of its weight gradient with pixels together,
    #: and else.
    packed: float
    loose: float
    weights: tuple[float, float]
    #: Of cuDNN: the forward pass, the input gradient, the weight gradient.
    cudnn: tuple[float, float, float]
    #: Whether cuDNN's is done by tensor cores, which take channels last.
    tensor_cores: bool = True


#: Nobody has measured it, or there is no such thing.
NONE = 20.0
HALF = Rates(0.16, 0.164, 0.26, (NONE, NONE), (0.11, 0.11, 0.11))
TF32 = Rates(0.234, 0.35, 0.455, (0.85, 1), (0.17, 0.17, 0.28))
SINGLE = Rates(1, 0.67, 0.75, (1.2, 1.3), (1, 1.2, 2.5), tensor_cores=False)
DOUBLE = Rates(0.8, NONE, NONE, (NONE, NONE), (NONE, NONE, NONE), tensor_cores=False)


class KernelCosts(Costs):
    """Our kernels read what they write columns of, and nothing twice; and all memory is kept."""

    page = 0.0

    def __init__(
        self, multiply: float, move: float, call: float, *, is_complex: bool = False, rates: Rates = DOUBLE
    ) -> None:
        super().__init__(multiply, move, call, is_complex=is_complex)
        self.rates = rates

    @property
    def is_half(self) -> bool:
        return self.rates is HALF

    def _touched(self, elements: float) -> float:
        """Elements that are read or written."""
        return self.moved(elements) / 2

    def im2col(self, g: Geometry) -> float:
        return WINDOWS * self._touched(math.prod(g.x_shape) + math.prod(g.columns_shape))

    def col2im(self, g: Geometry) -> float:
        return 2 * self.im2col(g)  # and a product writes its columns, of half types in float32

    def columns(self, g: Geometry) -> int:
        return g.batch * g.c_in * g.taps * -(-g.pixels // LINE) * LINE

    def spare(self, g: Geometry) -> int:
        del g
        return 0

    def columns_spare(self, g: Geometry) -> int:
        return self.spare(g)

    def product(self, p: Product) -> float:
        touched = p.n * p.blocks * (p.depth + p.rows) * p.pixels + p.blocks * p.rows * p.depth
        return max(self.multiply * p.multiply_adds, self._touched(touched))

    def outer(self, p: Product) -> float:
        return (FEW if p.blocks * p.rows * p.depth < MANY else 1) * self.product(p)

    def depthwise(self, function: Function, g: Geometry) -> float:
        """Where taps are written out, what is loaded for them stays in the first-level cache."""
        if g.taps > UNROLLED:
            return LOOPED[function] * g.macs
        return self.moved(g.macs / 8 + math.prod(g.x_shape) + math.prod(g.y_shape))

    def depthwise_spare(self, g: Geometry) -> int:
        return math.prod(g.y_shape)  # partial sums of the filters' gradient

    def pool(self, g: Geometry, *, mean: bool, back: bool) -> float:
        del mean
        touched = self.moved(g.batch * g.c_in * (math.prod(g.size) + g.pixels))
        return 2 * touched if back else touched

    def pool_spare(self, g: Geometry, *, mean: bool, back: bool) -> int:
        """The shares of means, or the numbers of taps, which may be larger than what is pooled."""
        return math.prod(g.y_shape) * (1 if mean else numbers(g).itemsize) if back else 0

    def implicit(self, function: Function, g: Geometry, multiply_adds: int) -> float:
        """So many multiply-adds of products whose columns are gathered."""
        if function == "weight_grad":
            return self.rates.weights[g.channels_last] * multiply_adds
        channels = (g.c_out if function == "input_grad" else g.c_in) // max(1, g.groups)
        if g.channels_last and channels % LINE == 0:
            return self.rates.packed * multiply_adds
        apart = function == "input_grad" and any(a.stride > 1 for a in g.axes)
        return self.rates.loose * (RAGGED if apart or channels % (2 * LINE) else 1) * multiply_adds

    def cudnn(self, function: Function, g: Geometry) -> float:
        """A convolution of one group by cuDNN, whose calls take the host longest; in groups it is a guess."""
        arrays = math.prod(g.x_shape) + math.prod(g.y_shape)
        orders = REORDERED * self.moved(arrays) if self.rates.tensor_cores and not g.channels_last else 0
        rate = self.rates.cudnn[("forward", "input_grad", "weight_grad").index(function)]
        return max(1, g.groups) * rate * g.macs + orders + GRAPH
