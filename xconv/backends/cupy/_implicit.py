"""im2col's matrix product with columns that are never written out: kernels gather them as they multiply.

A function reads its operands from memory and writes its result, and next to nothing else. The sum is that of a matrix
product, with its error, ``|err| <= K * eps * conv(|x|, |w|)`` element by element, and sums of half types are float32.
Float32 is multiplied by three TF32 products, with K + 8 for K, and by one where `precision` is "tf32"; three lose what
is below 1e-38 of an operand. What a tap reads beyond dy is multiplied by a zero: a NaN among the filters then reaches
results of the input gradient that it has no part in. (S. Chetlur et al., *cuDNN: Efficient Primitives for Deep
Learning*, 2014, section 3, describes the way.)

The weight gradient of half types is im2col's, and so is the input gradient of a stride with many phases.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import cupy

from ..._geometry import Geometry
from ..._typing import Array, DType, Function, Kind
from ...algorithms import Gemm, RefusedError
from ...primitives import Costs, Primitives, Team
from . import _implicit_kernel as kernel
from . import _texts as texts
from ._steps import CLEAR, COPY, Blocks, each, flat, total
from ._tensor_cores import LEAST_CAPABILITY, TYPES

#: Elements of temporary memory for a tile, which it is cut by for im2col's sake: kernels take next to none, and should
#: fill the device.
LEAST_TILE = 2**26
#: What older devices lack.
NEEDED = f"it takes a device of compute capability {LEAST_CAPABILITY / 10}"


class Ready(NamedTuple):
    """A kernel on flat views of its arrays, and how many blocks of threads it takes."""

    run: Callable[..., None]
    blocks: int
    threads: int


class Implicit(Gemm):
    name = "implicit"
    strays = frozenset({"input_grad"})

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if kind != "real":
            return f"it multiplies real floating-point numbers, and these are {kind}"
        if len(g.axes) > 3:
            return f"it takes up to 3 spatial axes, and there are {len(g.axes)}"
        if any(a.size + abs(a.lo) + abs(a.hi) + a.extent + a.stride >= kernel.FARTHEST for a in g.axes):
            return f"it counts along an axis, padding, taps and stride included, up to {kernel.FARTHEST}"
        return None

    def lack(self, backend: Any, dtype: DType, precision: str) -> str | None:
        del precision
        if not getattr(backend, "tensor_cores", True):  # chunks of Dask lie on no device yet
            return NEEDED
        if dtype.name in TYPES:
            return None
        return f"its kernels take float16, bfloat16 and float32, and these are {dtype.name}"

    def is_componentwise(self, dtype: DType, precision: str) -> bool:
        return dtype.itemsize == 2 or precision == "tf32"

    def scratch(self, function: Function, g: Geometry, costs: Any) -> int:
        if _is_columns(function, g, costs):
            return super().scratch(function, g, costs)
        if function == "weight_grad":
            return (1 + kernel.most_lanes(g)) * math.prod(g.w_shape)
        # A sum of halves waits for its bias in float32.
        return math.prod(g.y_shape if function == "forward" else g.x_shape) if costs.is_half else 0

    def halves(self, function: Function, g: Geometry, costs: Any) -> int:
        return super().halves(function, g, costs) if _is_columns(function, g, costs) else 0

    def filters(self, g: Geometry) -> int:
        if not _is_phased(g):
            return super().filters(g) + kernel.filters_size(g, 2, adjoint=False)
        return max(kernel.filters_size(g, 2, adjoint=adjoint) for adjoint in (False, True))

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        del g, costs
        return LEAST_TILE

    def traffic(self, g: Geometry) -> int:
        return math.prod(g.x_shape) + math.prod(g.y_shape) + math.prod(g.w_shape)

    def cost(self, function: Function, g: Geometry, costs: Any) -> float:
        if _is_columns(function, g, costs):
            return super().cost(function, g, costs)
        return float(costs.implicit(function, g, _multiply_adds(function, g)))

    def transform(self, backend: Any, g: Geometry, w: Array, team: Team) -> Array:
        del team
        return _filters(backend, w, g, adjoint=False)

    def adjoint_operand(self, backend: Any, g: Geometry, w: Array, team: Team) -> Array:
        if not _is_phased(g):
            return backend.xp.matrix_transpose(super().transform(backend, g, w, team))
        return _filters(backend, w, g, adjoint=True)

    def forward(self, backend: Any, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        return _convolution(backend, x, u, g, out, adjoint=False)

    def input_grad(self, backend: Any, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        if not _is_phased(g):
            return super().input_grad(backend, g, dy, u, out)
        return _convolution(backend, dy, u, g, out, adjoint=True)

    def weight_grad(self, backend: Any, g: Geometry, dy: Array, x: Array) -> Array:
        if x.itemsize == 2:
            return super().transform_adjoint(backend, g, super().weight_grad(backend, g, dy, x), Team())
        sums = backend.do.empty((kernel.lanes(g), *g.w_shape), x.dtype)
        if math.prod(g.y_shape) * math.prod(g.w_shape) == 0:
            each(backend.do, CLEAR, sums)
        else:
            _perform(backend, GRADIENTS[backend.tf32], g, x, dy, sums, dy)
        return total(backend.do, sums, 0) if len(sums) > 1 else sums[0]

    def transform_adjoint(self, backend: Primitives, g: Geometry, u: Array, team: Team) -> Array:
        del backend, g, team
        return u


def _is_phased(g: Geometry) -> bool:
    """Whether the input gradient has a kernel for each of its phases."""
    return math.prod(a.stride for a in g.axes) <= kernel.MOST_PHASES


def _is_columns(function: Function, g: Geometry, costs: Any) -> bool:
    """Whether a function is im2col's."""
    return (function == "weight_grad" and costs.is_half) or (function == "input_grad" and not _is_phased(g))


def _multiply_adds(function: Function, g: Geometry) -> int:
    """Those of whole tiles."""
    groups = max(1, g.groups)
    filters = (g.c_in if function == "input_grad" else g.c_out) // groups
    tile = kernel.tile(filters)
    if function == "weight_grad":
        rows, depth = g.c_in // groups * g.taps, g.batch * g.pixels
    elif function == "forward":
        rows, depth = g.batch * g.pixels, -(-(g.c_in // groups * g.taps) // 16) * 16
    else:
        strides = math.prod(a.stride for a in g.axes)
        rows = g.batch * math.prod(g.size)
        depth = -(-(g.c_out // groups * g.taps) // (strides * 16)) * 16
    return groups * (-(-rows // tile.rows) * tile.rows) * (-(-filters // tile.filters) * tile.filters) * depth


@lru_cache(maxsize=1024)
def _raw(code: str, name: str) -> Any:
    return cupy.RawKernel(code, name)  # which CuPy compiles once a device


def _compiled(products: list[kernel.Product]) -> list[Ready]:
    return [Ready(partial(_run, _raw(p.code, p.name), p.numbers), p.blocks, p.threads) for p in products]


def _run(raw: Any, numbers: tuple[Any, ...], blocks: tuple[int], threads: tuple[int], arrays: tuple[Any, ...]) -> None:
    if int(arrays[0].device.compute_capability) < LEAST_CAPABILITY:  # a plan was made on another one
        raise RefusedError(Implicit.name, NEEDED)
    raw(blocks, threads, (*arrays, *numbers))


#: Who writes the kernels, by whether it is the input gradient, and by whether products are those of TF32.
CONVOLUTIONS = {
    (adjoint, tf32): partial(kernel.convolutions, adjoint=adjoint, tf32=tf32)
    for adjoint in (False, True)
    for tf32 in (False, True)
}
GRADIENTS = {tf32: partial(kernel.weight_gradient, tf32=tf32) for tf32 in (False, True)}


def _perform(backend: Any, write: texts.Writer, g: Geometry, a: Array, b: Array, out: Array, which: Array) -> None:
    """Take the kernels on an image, what it is multiplied by, and the result; they depend on how two of these lie."""
    views, memories = zip(*map(flat, (a, b, out)), strict=True)
    lies = memories[0], memories[2] if which is out else memories[1]
    for made in texts.ready(write, g, lies, backend.do.literal, _compiled):
        backend.do.perform(Blocks(made.run, views, made.blocks, made.threads), a, b, out)


def _filters(backend: Any, w: Array, g: Geometry, *, adjoint: bool) -> Array:
    """The filters of all phases in the order in which the kernels take them."""
    groups = max(1, g.groups)
    w = w.reshape(groups, g.c_out // groups, *w.shape[1:])
    w = w.swapaxes(1, 2) if adjoint else w
    filters, channels = w.shape[1:3]
    u = backend.do.empty((kernel.filters_size(g, w.itemsize, adjoint=adjoint),), w.dtype)
    phases = kernel.phases(g, w.itemsize, adjoint=adjoint)
    if any(phase.depth > math.prod(phase.kernel) * channels for phase in phases):
        each(backend.do, CLEAR, u)
    for phase in phases:
        taps = w[(..., *(side.taps for side in phase.sides))]
        rows = u[phase.start : phase.start + groups * filters * phase.depth].reshape(groups, filters, phase.depth)
        length = math.prod(phase.kernel) * channels
        to = rows[..., :length].reshape(groups, filters, *phase.kernel, channels)
        each(backend.do, COPY, taps.transpose(0, 1, *range(3, taps.ndim), 2), to)
    return u


def _convolution(backend: Any, x: Array, u: Array, g: Geometry, out: Array | None, *, adjoint: bool) -> Array:
    """``conv(x, w)``; with `adjoint`, its transpose for ``x = dy``. In `out` if that is handed over."""
    out = backend.image(g, g.x_shape if adjoint else g.y_shape, x) if out is None else out
    if out.size:
        _perform(backend, CONVOLUTIONS[adjoint, backend.tf32], g, x, u, out, out)
    return out
