"""im2col's matrix product with columns that are never written out: a kernel gathers them as it multiplies.

The forward pass and the input gradient read x, w or dy once from memory and write their result, and nothing else. The
sum is that of a matrix product, with its error: ``|err| <= K * eps * conv(|x|, |w|)``, element by element. The weight
gradient, a long sum for few results, is im2col's. Where a tap reads nothing, as most do in the input gradient of a
large stride, it is multiplied by a zero: a NaN among the filters then reaches results that it has no part in. (S.
Chetlur et al., *cuDNN: Efficient Primitives for Deep Learning*, 2014, section 3, describes the way.)
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cupy

from ..._geometry import Geometry
from ..._typing import Array, DType, Function, Kind
from ...algorithms import Gemm
from ...primitives import Costs, Primitives
from . import _implicit_kernel as kernel
from ._lines import Memory
from ._steps import CLEAR, COPY, Blocks, each, flat

#: Elements of temporary memory for a tile, which it is cut by for the weight gradient's sake: the other two functions
#: take next to none, and should fill the device.
LEAST_TILE = 2**26
#: Channels of a tap are padded by less than so many.
PADDING = 8


class Implicit(Gemm):
    name = "implicit"
    strays = frozenset({"input_grad"})

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if kind != "real":
            return f"it multiplies real floating-point numbers, and these are {kind}"
        if not g.channels_last:
            return 'it takes `layout` "channels_last"'
        if g.groups != 1:
            return f"it takes one group, and there are {g.groups}"
        if len(g.axes) > 3:
            return f"it takes up to 3 spatial axes, and there are {len(g.axes)}"
        return None

    def lack(self, backend: Primitives, dtype: DType, precision: str) -> str | None:
        del backend
        if dtype.itemsize == 2 or (precision == "tf32" and dtype.name == "float32"):
            return None
        return f'its kernel takes float16, bfloat16, and float32 with `precision` "tf32", and these are {dtype.name}'

    def filters(self, g: Geometry) -> int:
        return g.taps * max(g.c_out * (g.c_in + PADDING), g.c_in * (g.c_out + PADDING))

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        del g, costs
        return LEAST_TILE

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)

    def cost(self, function: Function, g: Geometry, costs: Costs) -> float:
        if function == "weight_grad":
            return super().cost(function, g, costs)
        return costs.multiply * g.macs + costs.moved(self.traffic(g))

    def transform(self, backend: Any, g: Geometry, w: Array) -> Array:
        return _filters(backend, w, g, adjoint=False)

    def adjoint_operand(self, backend: Any, g: Geometry, w: Array) -> Array:
        return _filters(backend, w, g, adjoint=True)

    def forward(self, backend: Any, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        return _product(backend, x, u, g, out, adjoint=False)

    def input_grad(self, backend: Any, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        return _product(backend, dy, u, g, out, adjoint=True)


@lru_cache(maxsize=256)
def ready(g: Geometry, source: Memory, result: Memory, adjoint: bool) -> tuple[Callable[..., None], int]:  # noqa: FBT001
    """The kernel on flat views of the source, the packed filters and the result, and how many blocks it takes."""
    made = kernel.product(g, source, result, adjoint=adjoint)
    compiled = cupy.RawKernel(made.code, made.name)  # which CuPy compiles once a device

    def run(blocks: tuple[int], threads: tuple[int], arrays: tuple[Array, ...]) -> None:
        capability = int(arrays[0].device.compute_capability)
        if capability < kernel.LEAST_CAPABILITY:
            msg = f"`algorithm` 'implicit' takes a device of compute capability 8.0, and this has {capability / 10}"
            raise ValueError(msg)
        compiled(blocks, threads, arrays)

    return run, made.blocks


def _filters(backend: Any, w: Array, g: Geometry, *, adjoint: bool) -> Array:
    """The filters in the order in which the kernel takes them."""
    w = w.swapaxes(0, 1) if adjoint else w
    filters, channels = w.shape[:2]
    u = backend.do.empty((filters, *g.kernel, kernel.width(channels, w.itemsize)), w.dtype)
    if u.shape[-1] > channels:
        each(backend.do, CLEAR, u)
    each(backend.do, COPY, w.transpose(0, *range(2, w.ndim), 1), u[..., :channels])
    return u


def _product(backend: Any, x: Array, u: Array, g: Geometry, out: Array | None, *, adjoint: bool) -> Array:
    """``conv(x, w)``; with `adjoint`, its transpose for ``x = dy``. In `out` if that is handed over."""
    out = backend.image(g, g.x_shape if adjoint else g.y_shape, x) if out is None else out
    if out.size:
        views, (source, _, result) = zip(*map(flat, (x, u, out)), strict=True)
        run, blocks = ready(g, source, result, adjoint)
        backend.do.perform(Blocks(run, views, blocks, kernel.THREADS), x, u, out)
    return out
