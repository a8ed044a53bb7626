"""CuPy: our own kernels for windows and depthwise convolution, cuBLAS for products; and cuDNN, on request.

Columns lie in memory as their product likes them. With channels last, pixel by pixel and the kernel before the
channels: one product serves all images and writes the result in place. With channels first and large planes, image by
image: a stack of products writes the result in place. With small planes the images come behind the kernel: one product
serves all, and its result is put in order as it is written out.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import cupy
import numpy as np

from .. import _config
from .._geometry import Geometry, Tile
from .._typing import Array, DType, Index, Shape
from . import _implicit, _kernels
from ._cublas import gemm
from ._generic import MIB, Piece, RefusedError, inverse
from ._kernels import WIDEST, Kernel, Memory
from ._numpy import DtypesOfNumpy
from ._threads import Team

#: Pixels of a plane from which on every image has its own product.
LARGE_PLANE = 1024
#: Calls with one geometry before its kernel gets a text of its own, and the most such texts in a process: to compile
#: one takes some tenths of a second, and CuPy keeps it.
WORTH_A_TEXT, MOST_TEXTS = 3, 256
#: Threads that fill a GPU.
THREADS = 2**17

Writer: TypeAlias = Callable[..., Kernel]


class CupyBackend(DtypesOfNumpy):
    """CuPy arrays, on the device they are on, in CuPy's current stream."""

    #: Columns of this size stay in the second-level cache of a data-centre GPU (40 to 60 MB).
    tile_bytes = 32 * MIB
    #: But the host takes some 50 us to launch a tile: there are no more than these, unless they were larger than that.
    most_tiles, most_tile_bytes = 8, 256 * MIB

    unproven = frozenset({"winograd", "fft", "implicit", "cudnn"})

    def __init__(self) -> None:
        super().__init__(import_module("array_api_compat.cupy"))

    def operand(self, dtype: DType) -> DType:
        return dtype

    def tile_size(self, whole: float, *, shared: bool) -> float:
        del shared
        return max(self.tile_bytes, min(whole / self.most_tiles, self.most_tile_bytes))

    def balance(self, dtype: DType, precision: str) -> int:
        """Of an H100 or H200: 67 TFLOP/s in float32, 500 in TF32, 800 in the half types, beside 4.3 TB/s."""
        if dtype.itemsize == 2:
            return 200
        return 230 if precision == "tf32" and dtype == np.float32 else 32

    def on_device_of(self, x: Array) -> AbstractContextManager[object]:
        if not _available():
            msg = "CuPy finds no CUDA device to compute on: is the driver installed, and recent enough for this CuPy?"
            raise RuntimeError(msg)
        return x.device  # type: ignore[no-any-return]

    def zeros(self, shape: Shape, dtype: DType, like: Array) -> Array:
        del like
        return cupy.zeros(shape, dtype)

    def view(self, out: Array | None, shape: Shape, dtype: DType) -> Array | None:
        if out is None or out.dtype != dtype:
            return None
        strides = out.strides
        try:  # NumPy knows whether that takes a copy; it never looks into this memory
            np.lib.stride_tricks.as_strided(np.empty(1, np.uint8), out.shape, strides).reshape(shape, copy=False)
        except ValueError:
            return None
        return out.reshape(shape)

    def add(self, y: Array, b: Array, out: Array | None = None) -> Array:
        return y + b if out is None else _sum(y, b, out)

    # windows

    def taps_first(self, g: Geometry) -> bool:
        return g.channels_last and g.groups == 1

    def im2col(self, x: Array, g: Geometry, out: Array | None = None) -> Array:
        rank = len(g.axes)
        kernel, pixels = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
        if self.taps_first(g):
            order = (0, *pixels, *kernel, 1)
        elif g.batch > 1 and g.pixels < LARGE_PLANE:
            order = (1, *kernel, 0, *pixels)
        else:
            order = (0, 1, *kernel, *pixels)
        return _made(_kernels.im2col, g, x, out=_ordered(g.columns_shape, x.dtype, order) if out is None else out)

    def col2im(self, cols: Array, g: Geometry, out: Array | None = None) -> Array:
        return _made(_kernels.col2im, g, cols, out=self._image(g, g.x_shape, cols) if out is None else out)

    def spare(self, g: Geometry) -> int:
        del g
        return 0

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        return _made(_kernels.depthwise, g, x, _block(w, g), out=self._image(g, g.y_shape, x) if out is None else out)

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        out = self._image(g, g.x_shape, dy) if out is None else out
        return _made(_kernels.depthwise_input_grad, g, dy, _block(w, g), out=out)

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        taps, pixels = g.taps, g.batch * g.pixels
        lanes = max(1, min(THREADS // max(1, g.c_out), pixels // taps))  # partial sums take no more memory than dy
        axes = tuple(range(2 + len(g.axes)))
        order = (*axes[1:], 0) if g.channels_last else axes
        parts = _ordered((g.c_out, *g.kernel, lanes), self.accumulator(dy.dtype), order)
        sums = self.xp.sum(_made(_kernels.depthwise_weight_grad, g, dy, x, out=parts), axis=-1, dtype=parts.dtype)
        return self.xp.reshape(sums, g.w_shape)

    def depthwise_work(self, g: Geometry, balance: int) -> int:
        return g.macs * balance // 8  # the sums stay in registers, and what is loaded for them in the first-level cache

    def depthwise_spare(self, g: Geometry) -> int:
        return math.prod(g.y_shape)  # partial sums of the filters' gradient

    def _image(self, g: Geometry, shape: Shape, like: Array) -> Array:
        """Memory for an image, in the caller's layout and the dtype of sums."""
        axes = range(2, len(shape))
        return _ordered(shape, self.accumulator(like.dtype), (0, *axes, 1) if g.channels_last else (0, 1, *axes))

    # a product whose columns are never written out

    def implicit_lack(self, dtype: DType, precision: str) -> str | None:
        if dtype.itemsize == 2 or (precision == "tf32" and dtype == np.float32):
            return None
        return f'its kernel takes float16, bfloat16, and float32 with `precision` "tf32", and these are {dtype.name}'

    def implicit_filters(self, w: Array, g: Geometry, *, adjoint: bool) -> Array:
        return _implicit.packed_filters(w, g, adjoint=adjoint)

    def implicit(self, x: Array, u: Array, g: Geometry, out: Array | None, *, adjoint: bool) -> Array:
        out = self._image(g, g.x_shape if adjoint else g.y_shape, x) if out is None else out
        if out.size:
            (source, read), (result, written) = _flat(x), _flat(out)
            _implicit.launch(g, read, written, (source, u, result), adjoint=adjoint)
        return out

    # products

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        if self.kind(v.dtype) == "integer":
            return self.xp.matmul(u, v)
        n, blocks, _, pixels = v.shape
        shape = (n, blocks, u.shape[1], pixels)
        together = _together(v)
        if together is not None and (out is None or _together(out) is None):
            order = (0, 3, 1, 2) if v.strides[2] < v.strides[3] else (1, 2, 0, 3)
            out = _ordered(shape, self.accumulator(v.dtype), order)
        elif out is None:
            out = _ordered(shape, self.accumulator(v.dtype), (0, 1, 2, 3))
        if together is not None:
            gemm(u, together, _together(out), tf32=_tf32())
        elif n > blocks:
            for i in range(blocks):
                gemm(cupy.broadcast_to(u[i], (n, *u.shape[1:])), v[:, i], out[:, i], tf32=_tf32())
        else:
            for i in range(n):
                gemm(u, v[i], out[i], tf32=_tf32())
        return out

    def outer(self, s: Array, v: Array) -> Array:
        kind = self.kind(v.dtype)
        if kind == "integer":
            return super().outer(s, v)
        if kind == "complex":  # s @ v^H is the conjugate of conj(s) @ v^T, and smaller to conjugate
            return self.xp.conj(self._outer(self.xp.conj(s), v))
        return self._outer(s, v)

    def _outer(self, s: Array, v: Array) -> Array:
        (n, blocks, rows, _), depth = s.shape, v.shape[2]
        dtype = self.accumulator(v.dtype)
        together = _together(v)
        if together is not None:
            one = _together(s)
            if one is None:
                moved = _ordered(s.shape, s.dtype, (1, 2, 0, 3))
                moved[...] = s
                one = _together(moved)
            out = cupy.empty((blocks, rows, depth), dtype)
            gemm(one, together.swapaxes(1, 2), out, tf32=_tf32())
            return out
        if n * blocks * rows * depth <= 2 * s.size:
            parts = cupy.empty((n, blocks, rows, depth), dtype)
            for i in range(blocks):
                gemm(s[:, i], v[:, i].swapaxes(1, 2), parts[:, i], tf32=_tf32())
            return self.xp.sum(parts, axis=0, dtype=dtype)
        out = cupy.empty((blocks, rows, depth), dtype)
        for i in range(n):
            gemm(s[i], v[i].swapaxes(1, 2), out, tf32=_tf32(), add=i > 0)
        return out

    # NVIDIA's library

    def lacks_cudnn(self) -> str | None:
        return None if find_spec("cudnn") else "it needs the extra `xconv[cudnn]`"

    def cudnn(self, function: str, g: Geometry, a: Array, b: Array, out: Array | None, workspace: int) -> Array:
        try:
            from ._cudnn import convolve
        except (ImportError, OSError) as error:
            reason = f"its frontend cannot be imported: {error}"
            raise RefusedError(reason) from error
        accumulator = self.accumulator(a.dtype)
        size = workspace * self.itemsize(accumulator)
        return convolve(function, g, a, b, out, accumulator=accumulator, tf32=_tf32(), workspace=size)

    # tiles

    def assemble(
        self,
        shape: Shape,
        dtype: DType,
        tiles: Sequence[Tile],
        place: Callable[[Tile], Index],
        piece: Piece,
        *,
        team: Team,
        order: tuple[int, ...],
    ) -> Array:
        del team
        result = _ordered(shape, dtype, order)
        for tile in tiles:
            target = result[place(tile)]
            made = piece(tile, target)
            if made is not target:
                _copy(made, target)
        return result


@cache
def _available() -> bool:
    return bool(cupy.is_available())


def _tf32() -> bool:
    return _config.current().precision == "tf32"


def _ordered(shape: Shape, dtype: DType, order: tuple[int, ...]) -> Array:
    """New memory in which the axes lie in this order."""
    return cupy.empty([shape[axis] for axis in order], dtype).transpose(inverse(order))


def _block(w: Array, g: Geometry) -> Array:
    """The filters in one block of memory, in which the filters of channels that are neighbours are neighbours too."""
    if not g.channels_last:
        return cupy.ascontiguousarray(w)
    return cupy.ascontiguousarray(w.transpose(*range(1, w.ndim), 0)).transpose(-1, *range(w.ndim - 1))


def _together(a: Array) -> Array | None:
    """``a (n, blocks, rows, pixels)`` as ``(blocks, rows, n * pixels)``, where that takes no copy."""
    n, blocks, rows, pixels = a.shape
    if n > 1 and a.strides[0] != pixels * a.strides[3]:
        return None
    return a.transpose(1, 2, 0, 3).reshape(blocks, rows, n * pixels)


_sum = cupy.ElementwiseKernel("T y, T b", "U z", "z = U(y + b)", "xconv_add")
_copy = cupy.ElementwiseKernel("T y", "U z", "z = U(y)", "xconv_copy")


# Launching kernels


def _made(write: Writer, g: Geometry, *inputs: Array, out: Array) -> Array:
    """`out`, after the kernel that `write` writes has filled it."""
    if out.size:
        views, memories = zip(*map(_flat, (*inputs, out)), strict=True)
        run, numbers, size = _texts.ready(write, g, memories)
        run(*views[:-1], *numbers, views[-1], size=size)
    return out


def _flat(a: Array) -> tuple[Array, Memory]:
    """All memory between the first and the last element of `a`, and where in it the elements are."""
    steps = tuple(stride // a.itemsize for stride in a.strides)
    ends = [(length - 1) * step for length, step in zip(a.shape, steps, strict=True)]
    start = -sum(end for end in ends if end < 0)
    span = 1 + sum(map(abs, ends)) if a.size else 0
    view = cupy.ndarray((span,), a.dtype, memptr=a.data - start * a.itemsize)
    return view, Memory(a.dtype.name, a.itemsize, a.shape, steps, start, view.data.ptr % WIDEST == 0)


class _Texts:
    """Chooses between the general text of a kernel and one that is specialised to the geometry."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: Counter[Any] = Counter()
        self.special: dict[Any, tuple[Any, tuple[int, ...], int]] = {}

    def ready(self, write: Writer, g: Geometry, memories: tuple[Memory, ...]) -> tuple[Any, tuple[int, ...], int]:
        """The kernel, the numbers that it takes behind its inputs, and its threads."""
        key = (write, g, memories)
        if (found := self.special.get(key)) is not None:
            return found
        with self.lock:
            self.calls[key] += 1
            worth = self.calls[key] >= WORTH_A_TEXT and len(self.special) < MOST_TEXTS
            if len(self.calls) > 16 * MOST_TEXTS:
                self.calls.clear()
        if not worth:
            return _general(write, g, memories)
        return self.special.setdefault(key, _compiled(write(g, *memories, literal=True)))


_texts = _Texts()


@lru_cache(maxsize=1024)
def _general(write: Writer, g: Geometry, memories: tuple[Memory, ...]) -> tuple[Any, tuple[int, ...], int]:
    return _compiled(write(g, *memories, literal=False))


def _compiled(kernel: Kernel) -> tuple[Any, tuple[int, ...], int]:
    run = _elementwise(kernel.inputs, kernel.outputs, kernel.operation, kernel.name)
    return run, kernel.numbers, kernel.size


@lru_cache(maxsize=1024)
def _elementwise(inputs: str, outputs: str, operation: str, name: str) -> Any:
    return cupy.ElementwiseKernel(inputs, outputs, operation, name)
