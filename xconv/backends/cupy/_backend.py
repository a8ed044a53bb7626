"""CuPy: our own kernels for windows and depthwise convolution, cuBLAS for products; and cuDNN, on request.

Columns lie in memory as their product likes them. With channels last, pixel by pixel and the kernel before the
channels: one product serves all images and writes the result in place. With channels first and large planes, image by
image: a stack of products writes the result in place. With small planes the images come behind the kernel: one product
serves all, and its result is put in order as it is written out.
"""

import math
from dataclasses import replace
from functools import cache, lru_cache, partial
from importlib import import_module
from typing import Any

import cupy
import numpy as np

from ... import _config
from ..._geometry import Geometry
from ..._typing import Array, DType, Pooled
from ...algorithms import PORTABLE
from ...primitives import Costs, Rows
from ...schedules import Tiled
from .._backend import MIB, Backend
from . import _kernels, _pooling
from . import _texts as texts
from ._costs import COPIED, DOUBLE, HALF, SINGLE, TF32, KernelCosts
from ._cublas import gemm
from ._cudnn import Cudnn
from ._implicit import Implicit
from ._lines import THREADS, WIDEST
from ._memory import OnDevice
from ._program import Program, Recorder, Views
from ._steps import COPY, Launch, copied, each, flat, lying, ordered, total
from ._tensor_cores import LEAST_CAPABILITY

#: Pixels of a plane from which on every image has its own product.
LARGE_PLANE = 1024
#: Algorithms whose calls become programs, and the most tiles of these.
PROGRAMMED, MOST_PROGRAMMED_TILES = {"gemm", "pointwise", "depthwise", "implicit", "winograd", "cudnn"}, 64
#: Programs that are kept with a schedule, one for every way in which arrays lie in memory.
MOST_PROGRAMS = 64
#: Algorithms that take no temporary memory to speak of, where padding is zeros and sums have the dtype of the result.
IN_PLACE = {"pointwise", "depthwise"}


class CupyBackend(OnDevice):
    """CuPy arrays, on the device they are on, in CuPy's current stream."""

    #: Smaller tiles would stay in no cache, and each costs the host some launches.
    tile_bytes = 1536 * MIB
    algorithms = PORTABLE | {"implicit": Implicit(), "cudnn": Cudnn()}
    unproven = frozenset({"winograd", "fft"})
    #: Whether the device has the instructions of the implicit product.
    tensor_cores = True

    def tile_size(self, algorithm: str, g: Geometry, dtype: DType, whole: float, shares: int) -> float:
        # What writes nothing but its result gains nothing by being cut; half types with a bias wait for it in float32.
        in_place = algorithm in IN_PLACE and not g.is_filled and self.accumulator(dtype) == dtype
        return math.inf if in_place else super().tile_size(algorithm, g, dtype, whole, shares)

    def costs(self, dtype: DType, precision: str) -> Costs:
        if self.accumulator(dtype) != dtype:
            rates = HALF
        elif dtype.itemsize // (2 if dtype.kind == "c" else 1) == 8:
            rates = DOUBLE
        else:
            rates = TF32 if precision == "tf32" else SINGLE
        is_complex = dtype.kind == "c"
        multiply = rates.product * (4 if is_complex else 1)
        return KernelCosts(multiply, COPIED * dtype.itemsize, 0, is_complex=is_complex, rates=rates)

    @property
    def tf32(self) -> bool:
        """Whether products of float32 may be those of TF32."""
        return _config.current().precision == "tf32"

    # calls

    def of(self, arrays: dict[str, Array]) -> Backend:
        first, *others = [a.device for a in arrays.values()]
        if any(device != first for device in others):
            super().of(arrays)
        return _older() if _available() and int(first.compute_capability) < LEAST_CAPABILITY else self

    def call(self, tiled: Tiled, *arrays: Array, **options: bool) -> Array:
        with _device_of(arrays[0]):
            lie = [None if a is None else (a.strides, a.dtype, a.data.ptr % WIDEST) for a in arrays]
            device = arrays[0].device.id
            key = (device, *lie, *options.values())
            programs: dict[Any, Program] = tiled.remembered
            program = programs.get(key)
            if program is None and not _is_programmed(tiled):
                return tiled.run(*arrays, **options)
            if program is None or (program.calls >= texts.WORTH_A_TEXT - 1 and not program.literal):
                program = _written(tiled, arrays, options, device, literal=program is not None)
                if key not in programs and len(programs) >= MOST_PROGRAMS:
                    programs.pop(next(iter(programs)), None)  # the oldest
                programs[key] = program
            return program(*arrays)

    # windows

    def taps_first(self, g: Geometry) -> bool:
        return g.channels_last and g.groups == 1

    def im2col(self, x: Array, g: Geometry, out: Array | None = None) -> Array:
        if out is None:
            rank = len(g.axes)
            kernel, pixels = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
            if self.taps_first(g):
                out = ordered(self.do, g.columns_shape, x.dtype, (0, *pixels, *kernel, 1))
            elif _images_behind(g):
                out = ordered(self.do, g.columns_shape, x.dtype, (1, *kernel, 0, *pixels), line=1 + rank)
            else:
                out = ordered(self.do, g.columns_shape, x.dtype, (0, 1, *kernel, *pixels), line=rank)
        return self._made(_kernels.im2col, g, x, out=out)

    def col2im(self, cols: Array, g: Geometry, out: Array | None = None) -> Array:
        return self._made(_kernels.col2im, g, cols, out=self.image(g, g.x_shape, cols) if out is None else out)

    def extend(self, x: Array, g: Geometry) -> Array:
        if g.pad_mode != "constant":
            return super().extend(x, g)
        made = ordered(self.do, (*x.shape[:2], *g.padded), x.dtype, g.in_layout(tuple(range(x.ndim))))
        value = self.do.kept(_constant(((g.pad_value,),), x.dtype, self.do.device_of(x)))
        outer, inner = g.kept
        each(self.do, COPY, value.reshape((1,) * x.ndim), made)
        each(self.do, COPY, x[inner], made[outer])
        return made

    def pool(self, x: Array, g: Geometry, how: Pooled, out: Array | None = None) -> Array:
        return self._made(_pooling.POOLS[how], g, x, out=self.image(g, g.y_shape, x) if out is None else out)

    def pool_grad(
        self, dy: Array, x: Array | None, g: Geometry, whole: Geometry, how: Pooled, out: Array | None = None
    ) -> Array:
        out = self.image(g, g.x_shape, dy) if out is None else out
        if how == "max":
            found = ordered(self.do, g.y_shape, _pooling.numbers(g), g.in_layout(tuple(range(dy.ndim))))
            self._made(_pooling.max_taps, whole, x, out=found)
            return self._made(_pooling.max_pool_grad, g, dy, found, out=out)
        if how == "mean_seen":
            dy = self._made(_pooling.avg_shares, whole, dy, out=self.image(g, g.y_shape, dy))
        return self._made(_pooling.SHARES[how], g, dy, out=out)

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        out = self.image(g, g.y_shape, x) if out is None else out
        return self._made(_kernels.depthwise, g, x, self._block(w, g), out=out)

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        out = self.image(g, g.x_shape, dy) if out is None else out
        return self._made(_kernels.depthwise_input_grad, g, dy, self._block(w, g), out=out)

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        taps, pixels = g.taps, g.batch * g.pixels
        lanes = max(1, min(THREADS // max(1, g.c_out), pixels // taps))  # partial sums take no more memory than dy
        axes = tuple(range(2 + len(g.axes)))
        order = (*axes[1:], 0) if g.channels_last else axes
        parts = ordered(self.do, (g.c_out, *g.kernel, lanes), self.accumulator(dy.dtype), order)
        sums = total(self.do, self._made(_kernels.depthwise_weight_grad, g, dy, x, out=parts), len(g.axes) + 1)
        return self.xp.reshape(sums, g.w_shape)

    def _block(self, w: Array, g: Geometry) -> Array:
        """The filters in one block of memory, those of channels that are neighbours side by side with channels last."""
        axes = tuple(range(w.ndim))
        order = (*axes[1:], 0) if g.channels_last else axes
        step = w.itemsize
        for axis in reversed(order):
            if w.shape[axis] > 1 and w.strides[axis] != step:
                return copied(self.do, w, order=order)
            step *= w.shape[axis]
        return w

    def _made(self, write: texts.Writer, g: Geometry, *inputs: Array, out: Array) -> Array:
        """`out`, after the kernel that `write` writes has filled it."""
        if out.size:
            views, memories = zip(*map(flat, (*inputs, out)), strict=True)
            made = texts.ready(write, g, memories, self.do.literal)
            self.do.perform(Launch(made.run, views, made.numbers, made.size), *inputs, out)
        return out

    # products

    def contract(self, matrix: Rows, v: Array, axis: int, *, behind: bool = False) -> Array:
        new, old, others = len(matrix), v.shape[axis], [other for other in range(v.ndim) if other != axis]
        rest = tuple([v.shape[other] for other in others])
        a = self.do.kept(_constant(matrix, v.dtype, self.do.device_of(v))).reshape(1, new, old)
        b = self.xp.reshape(v.transpose(axis, *others), (1, old, math.prod(rest)))
        if behind:
            a, b = b.swapaxes(1, 2), a.swapaxes(1, 2)
        out = self.do.empty((1, a.shape[1], b.shape[2]), v.dtype)
        gemm(self.do, a, b, out, tf32=False)  # the matrices make more of an error than TF32 has to begin with
        return self.xp.reshape(out, (*rest, new) if behind else (new, *rest))

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        if self.kind(v.dtype) == "integer":
            return self.xp.matmul(u, v)
        (n, blocks, _, pixels), rows = v.shape, u.shape[1]
        shape, dtype = (n, blocks, rows, pixels), self.accumulator(v.dtype)
        together, several = _together(v), blocks > 1
        if together is None and several and n * math.prod(u.shape) > 2 * min(math.prod(v.shape), math.prod(shape)):
            v = copied(self.do, v, order=(1, 2, 0, 3))  # which is less than the filters once an image
            together = _together(v)
        if together is not None:
            if out is None or _together(out) is None:
                order = (0, 3, 1, 2) if v.strides[2] < v.strides[3] else (1, 2, 0, 3)
                out = ordered(self.do, shape, dtype, order)
            self._multiply(u, together, _together(out))
            return out
        if out is None or (several and _stack(out) is None):
            out = ordered(self.do, shape, dtype, (0, 1, 2, 3), line=1)
        if several:  # every image has its copy of the filters, so that all products are one stack
            u = each(self.do, COPY, u, self.do.empty((n, *u.shape), u.dtype)).reshape(n * blocks, *u.shape[1:])
            v = v if _stack(v) is not None else copied(self.do, v, order=(0, 1, 2, 3))
        self._multiply(u, _stack(v), _stack(out))
        return out

    def outer(self, s: Array, v: Array) -> Array:
        kind = self.kind(v.dtype)
        if kind == "integer":
            return super().outer(s, v)
        if kind == "complex":  # s @ v^H is the conjugate of conj(s) @ v^T, and smaller to conjugate
            return self.conj(self._outer(self.conj(s), v))
        return self._outer(s, v)

    def _outer(self, s: Array, v: Array) -> Array:
        (n, blocks, rows, pixels), depth = s.shape, v.shape[2]
        dtype = self.accumulator(v.dtype)
        together = _together(v)
        if together is not None:
            one = _together(s)
            one = _together(copied(self.do, s, order=(1, 2, 0, 3))) if one is None else one
            out = self.do.empty((blocks, rows, depth), dtype)
            self._multiply(one, together.swapaxes(1, 2), out)
            return out
        s, v = (a if _stack(a) is not None else copied(self.do, a, order=(0, 1, 2, 3)) for a in (s, v))
        # So many images are summed side by side, and then added up; the sums take up to twice the memory of s.
        lanes = max(1, min(n, 2 * n * pixels // max(1, depth)))
        parts = self.do.empty((lanes, blocks, rows, depth), dtype)
        for first in range(0, n, lanes):
            images = slice(first, min(n, first + lanes))
            into = parts[: images.stop - first]
            self._multiply(*(_stack(a) for a in (s[images], v[images].swapaxes(2, 3), into)), add=first > 0)
        return total(self.do, parts, 0) if lanes > 1 else parts[0]

    def _multiply(self, a: Array, b: Array, out: Array, *, add: bool = False) -> None:
        gemm(self.do, a, b, out, tf32=self.tf32, add=add)


class OlderCupyBackend(CupyBackend):
    """On a device from before compute capability 8.0."""

    tensor_cores = False


@cache
def _older() -> OlderCupyBackend:
    return OlderCupyBackend()


@lru_cache(maxsize=256)
def _constant(matrix: Rows, dtype: DType, device: int) -> Array:
    """A small matrix on the current device, and there when this returns: other streams take it from then on."""
    del device
    return import_module("array_api_compat.cupy").asarray(np.array(matrix, dtype), blocking=True)


@cache
def _available() -> bool:
    return bool(cupy.is_available())


def _device_of(a: Array) -> Any:
    """The device of an array, to make it the current one."""
    if not _available():
        msg = "CuPy finds no CUDA device to compute on: is the driver installed, and recent enough for this CuPy?"
        raise RuntimeError(msg)
    return a.device


def _images_behind(g: Geometry) -> bool:
    """Whether the columns of all images are together, so that one product serves them."""
    depth = g.c_in // max(1, g.groups) * g.taps
    return g.batch > 1 and (g.pixels < LARGE_PLANE or (g.groups > 1 and depth > 2 * g.pixels))


def _together(a: Array) -> Array | None:
    """``a (n, blocks, rows, pixels)`` as ``(blocks, rows, n * pixels)``, where that takes no copy."""
    n, blocks, rows, pixels = a.shape
    if n > 1 and a.strides[0] != pixels * a.strides[3]:
        return None
    return a.transpose(1, 2, 0, 3).reshape(blocks, rows, n * pixels)


def _stack(a: Array) -> Array | None:
    """``a (n, blocks, rows, columns)`` as ``(n * blocks, rows, columns)``, where that takes no copy."""
    n, blocks, rows, columns = a.shape
    if n > 1 and blocks > 1 and a.strides[0] != blocks * a.strides[1]:
        return None
    return a.reshape(n * blocks, rows, columns)


# Programs


class _OnPaper(CupyBackend):
    """Runs schedules on symbols."""

    def __init__(self, do: Recorder) -> None:
        super().__init__(do, Views(do))


def _is_programmed(tiled: Tiled) -> bool:
    """Whether all that a function comes down to are steps: no operations of CuPy's own."""
    name = tiled.algorithm.name
    if tiled.geometry.pad_mode != "constant" or len(tiled.tiles) > MOST_PROGRAMMED_TILES:
        return False
    multiplies = tiled.function in {"forward", "input_grad", "weight_grad"} and name != "depthwise"
    return name in PROGRAMMED and not (multiplies and tiled.dtype.kind in "iu")


def _written(
    tiled: Tiled, arrays: tuple[Array | None, ...], options: dict[str, bool], device: int, *, literal: bool
) -> Program:
    """The program of a call."""
    do = Recorder(device, literal=literal)
    on_paper = replace(tiled, backend=_OnPaper(do))
    lie = [None if a is None else (lying(a)[0], a.data.ptr % WIDEST) for a in arrays]
    return do.record(partial(on_paper.run, **options), *lie)
