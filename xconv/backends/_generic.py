"""The primitives in the pure array-API standard: the backend of every library without a file of its own.

The code can be traced (``jax.jit``) and differentiated (PyTorch, JAX): nothing that was read is written to
afterwards. The other backends override what their library does better.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import islice, product
from typing import Any

import array_api_compat
import array_api_extra as xpx

from .._geometry import Axis, Geometry, Run, Tile
from .._typing import Array, Device, DType, Index, Kind, Namespace, Shape
from . import _fourier
from ._fourier import Grid
from ._threads import Team

MIB = 2**20

#: Numbers that some libraries can store, and hardly compute with.
STORED = re.compile(r"u?int[124]$|float[468](_|$)|torch\.(uint(16|32|64)|complex32)$")

#: Makes the part of a result that belongs to a tile. It is handed the memory where the part will lie, or None; it
#: may write there and return that, or return an array of its own.
Piece = Callable[[Tile, Array | None], Array]

#: One small matrix per axis, in plain numbers.
Matrices = tuple[tuple[tuple[float, ...], ...], ...]


_NOTHING = nullcontext()


class Backend:
    """The primitives, for one array-API namespace.

    Images are ``x (n, c, *size)`` and their columns ``cols (n, c, *kernel, *out)``. The operands of a product are
    ``u (blocks, rows, depth)`` and ``v (n, blocks, depth, pixels)``; a block is a group, or one frequency of it.
    """

    #: The temporary memory of a tile where nothing else is asked for.
    tile_bytes = 256 * MIB
    #: Names of algorithms that are not chosen by themselves, because nobody has seen that they pay.
    unproven: frozenset[str] = frozenset()
    #: Whether tiles can run in parallel.
    parallel = False
    #: Whether arrays of this library can live on different devices.
    has_devices = True

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    @property
    def name(self) -> str:
        return str(self.xp.__name__).removeprefix("array_api_compat.").removesuffix(".numpy")

    # dtypes and devices

    def kind(self, dtype: DType) -> Kind:
        """What the numbers of this dtype are; None where they have no sums of products."""
        if STORED.match(_name(dtype)) or STORED.match(str(dtype)):
            return None
        if self.xp.isdtype(dtype, "integral"):
            return "integer"
        if self.xp.isdtype(dtype, "complex floating"):
            return "complex"
        if self.xp.isdtype(dtype, "real floating"):
            return "real"
        return None

    def to_dtype(self, dtype: object) -> DType:
        """`dtype`, or the one of that name, if it is of this library and can be summed; TypeError otherwise."""
        found = getattr(self.xp, dtype, None) if isinstance(dtype, str) else dtype
        try:
            known = self.kind(found) is not None
        except (TypeError, ValueError, AttributeError):
            known = False
        if not known:
            msg = f"`dtype` must be an integer, real or complex floating dtype of {self.name}, got {dtype!r}"
            raise TypeError(msg)
        return found

    def accumulator(self, dtype: DType) -> DType:
        """The dtype in which products of `dtype` are summed: float32 for the half types."""
        return self.xp.float32 if _name(dtype) in {"float16", "bfloat16"} else dtype

    def operand(self, dtype: DType) -> DType:
        """The dtype in which an algorithm that takes half types multiplies `dtype`."""
        return self.accumulator(dtype)

    def itemsize(self, dtype: DType) -> int:
        """Bytes of one element."""
        if self.kind(dtype) == "integer":
            return int(self.xp.iinfo(dtype).bits) // 8
        parts = 2 if self.kind(dtype) == "complex" else 1
        return parts * int(self.xp.finfo(dtype).bits) // 8

    def device(self, x: Array) -> Device:
        return array_api_compat.device(x)

    def check_devices(self, arrays: dict[str, Array]) -> None:
        """TypeError unless all arrays are dense and on one device, as far as the library tells."""
        for name, a in arrays.items():
            layout = str(getattr(a, "layout", "torch.strided"))  # of PyTorch
            if layout.startswith("torch.") and layout != "torch.strided":
                msg = f"`{name}` must be a dense array, got one of layout {layout}"
                raise TypeError(msg)
        known = {name: self.device(a) for name, a in arrays.items()}
        # JAX does not tell under jit, and looks after sharded arrays itself.
        known = {name: d for name, d in known.items() if d is not None and not hasattr(d, "device_set")}
        for name, other in zip(known, list(known)[1:], strict=False):
            if known[name] != known[other]:
                msg = f"`{name}` and `{other}` must be on one device, got {known[name]} and {known[other]}"
                raise TypeError(msg)

    def on_device_of(self, x: Array) -> AbstractContextManager[object]:
        """Makes the device of `x` the current one, where the library has such a thing."""
        del x
        return _NOTHING

    # costs

    def tile_size(self, whole: float, *, heavy: bool) -> float:
        """Bytes of temporary memory for a tile of a call that would take `whole` in one piece."""
        del whole, heavy
        return self.tile_bytes

    def balance(self, dtype: DType, precision: str) -> int:
        """Multiply-adds in the time of one element to or from memory."""
        del dtype, precision
        return 16

    # memory

    def astype(self, x: Array, dtype: DType) -> Array:
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def cast(self, x: Array, dtype: DType) -> Array:
        """The same as `astype`, for as long as a tile is worked on."""
        return self.astype(x, dtype)

    def view(self, out: Array | None, shape: Shape, dtype: DType) -> Array | None:
        """The memory of `out` in another shape, to write a product of `dtype` into; None where that cannot be."""
        del out, shape, dtype
        return None

    def zeros(self, shape: Shape, dtype: DType, like: Array) -> Array:
        """Zeros on the device of `like`, to write into; batched or sharded where a transformation made `like` so."""
        if 0 in like.shape:
            return self.xp.zeros(shape, dtype=dtype, device=self.device(like))
        one = self.xp.zeros_like(like[(slice(0, 1),) * like.ndim], dtype=dtype)
        one = self.xp.reshape(one, (1,) * len(shape))
        return self.xp.broadcast_to(one, shape) + one

    def add(self, y: Array, b: Array, out: Array | None = None) -> Array:
        """``y + b``; in `out` if that is handed over, which may be `y` itself."""
        del out
        return y + b

    def add_at(self, x: Array, parts: Iterator[tuple[Index, Array]]) -> Array:
        """`x` with each of the parts added at its index; `x` itself may be changed."""
        for index, part in parts:
            x = xpx.at(x)[index].add(self.astype(part, x.dtype), xp=self.xp)
        return x

    # windows and their adjoint

    def taps_first(self, g: Geometry) -> bool:
        """Whether the columns of `g` lie in memory with the kernel before the channels."""
        del g
        return False

    def im2col(self, x: Array, g: Geometry, out: Array | None = None) -> Array:
        """Every window of the zero-padded ``x (n, c, *size)``, as ``(n, c, *kernel, *out)``; in `out` if possible."""
        del out
        for i, axis in enumerate(g.axes):  # x is (n, c, *kernel[:i], *out[:i], *size[i:])
            at = 2 + 2 * i
            x = self.pad(x, at, axis.lo, axis.hi)
            starts = range(0, axis.extent, axis.dilation)
            span = (axis.out - 1) * axis.stride + 1
            taps = [x[along(at, slice(start, start + span, axis.stride))] for start in starts]
            x = self.xp.stack(taps, axis=2 + i)
        return x

    def col2im(self, cols: Array, g: Geometry, out: Array | None = None) -> Array:
        """The adjoint of `im2col`: adds each element of the columns to the input element that it was read from."""
        del out
        for i, axis in reversed(list(enumerate(g.axes))):  # cols is (n, c, *kernel[:i+1], *out[:i+1], *size[i+1:])
            taps = [cols[along(2 + i, t)] for t in range(axis.kernel)]
            cols = self.pad(self._fold(taps, 2 + 2 * i, axis), 2 + 2 * i, -axis.lo, -axis.hi)
        # Where nothing was added up, the result would share its memory with the columns.
        return cols * 1 if g.taps == 1 else cols

    def _fold(self, taps: list[Array], at: int, axis: Axis) -> Array:
        """Sum the taps along the axis `at`, each shifted to its place in the padded input.

        Output o of a tap at offset t = q * stride + r falls on position o + q of the sub-grid with phase r.
        """
        length = -(-axis.padded // axis.stride)
        blank = self.pad(self.xp.zeros_like(taps[0]), at, 0, length - axis.out)
        phases = [blank] * axis.stride
        for t, tap in enumerate(taps):
            q, r = divmod(t * axis.dilation, axis.stride)
            shifted = self.pad(tap, at, q, length - axis.out - q)
            phases[r] = shifted if phases[r] is blank else phases[r] + shifted
        if axis.stride == 1:
            return phases[0]
        grid = self.xp.stack(phases, axis=at + 1)
        grid = self.xp.reshape(grid, (*grid.shape[:at], length * axis.stride, *grid.shape[at + 2 :]))
        return grid[along(at, slice(0, axis.padded))]

    def spare(self, g: Geometry) -> int:
        """Elements that `im2col` and `col2im` need at once beside the columns they make or take, at most."""
        *others, last = g.axes  # the last axis of im2col, and the first of col2im, is the largest step
        partial = math.prod(a.kernel * a.out for a in others) * (last.padded + last.stride)
        return math.prod(g.columns_shape) + g.batch * g.c_in * (5 * partial + 2 * math.prod(g.padded))

    def pad(self, x: Array, at: int, lo: int, hi: int) -> Array:
        """`x` with zeros before and behind along one axis, or cut off there where `lo` or `hi` is negative."""
        if lo == 0 == hi:
            return x
        size = x.shape[at]
        padded = size + lo + hi
        before = min(max(lo, 0), padded)
        start = min(max(-lo, 0), size)
        stop = max(start, size + min(hi, 0))
        kept = x[along(at, slice(start, stop))]
        first, last = (
            self.zeros((*x.shape[:at], length, *x.shape[at + 1 :]), x.dtype, x)
            for length in (before, padded - before - (stop - start))
        )
        return self.xp.concat([first, kept, last], axis=at)

    def extend(self, x: Array, g: Geometry) -> Array:
        """`x` with its padding written out, for the pad modes that read it from the array."""
        for at, axis in enumerate(g.axes, start=2):
            runs = axis.runs(g.pad_mode, slice(0, axis.padded))
            parts = [self._follow(x[along(at, run.source)], run, at) for run in runs]
            x = self.xp.concat(parts, axis=at) if len(parts) > 1 else parts[0]
        return x

    def _follow(self, x: Array, run: Run, at: int) -> Array:
        """What a run reads, from its source `x`."""
        if run.step < 0:
            x = self.xp.flip(x, axis=at)
        elif run.step == 0:
            back = x[along(at, slice(1, run.length - 1))]
            x = self.xp.concat([x, self.xp.flip(back, axis=at)], axis=at)
        if run.repeats > 1:
            before, behind = x.shape[:at], x.shape[at + 1 :]
            x = self.xp.broadcast_to(self.xp.expand_dims(x, axis=at), (*before, run.repeats, run.period, *behind))
            x = self.xp.reshape(x, (*before, run.repeats * run.period, *behind))
        return x

    # depthwise: x (n, c_in, *size), w (c_out, 1, *kernel), y (n, c_out, *out)

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """The convolution of every channel with its own filters; in `out` if possible."""
        del out
        parts = self._by_channel(w, g)
        y = None
        for tap, seen in self._seen(x, g):
            term = parts[(..., *tap, *(None for _ in g.axes))] * seen
            y = term if y is None else y + term
        return self.xp.reshape(y, g.y_shape)

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """The transpose of `depthwise` in x."""
        rank = len(g.axes)
        filters = g.c_out // g.c_in
        dy = self.xp.reshape(dy, (g.batch, g.c_in, filters, *(1 for _ in g.axes), *g.out))
        cols = dy * self._by_channel(w, g)[(..., *(None for _ in g.axes))]
        cols = cols[:, :, 0, ...] if filters == 1 else self.xp.sum(cols, axis=2, dtype=cols.dtype)
        return self.col2im(self.xp.reshape(cols, (g.batch, g.c_in, *cols.shape[-2 * rank :])), g, out)

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        """The adjoint of `depthwise` in w."""
        dy = self.xp.reshape(dy, (g.batch, g.c_in, g.c_out // g.c_in, *g.out))
        axes = (0, *range(3, dy.ndim))
        sums = [self.xp.sum(dy * self.conj(seen), axis=axes, dtype=dy.dtype) for _, seen in self._seen(x, g)]
        return self.xp.reshape(self.xp.stack(sums, axis=-1), g.w_shape)

    def depthwise_spare(self, g: Geometry) -> int:
        """Elements that the three need at once beside what they take and make, at most."""
        filters = g.c_out // max(1, g.c_in)
        return 2 * filters * math.prod(g.columns_shape) + self.spare(g) + 2 * math.prod(g.y_shape)

    def depthwise_work(self, g: Geometry, balance: int) -> int:
        """The time that `depthwise` takes, as the number of multiply-adds that a product makes in it."""
        del balance
        return 16 * g.macs

    def _by_channel(self, w: Array, g: Geometry) -> Array:
        return self.xp.reshape(w, (1, g.c_in, g.c_out // g.c_in, *g.kernel))

    def _seen(self, x: Array, g: Geometry) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Every tap, and what it sees for all outputs, ``(n, c, 1, *out)``."""
        for at, axis in enumerate(g.axes, start=2):
            x = self.pad(x, at, axis.lo, axis.hi)
        for tap in product(*(range(axis.kernel) for axis in g.axes)):
            starts = [t * a.dilation for t, a in zip(tap, g.axes, strict=True)]
            spans = (slice(s, s + (a.out - 1) * a.stride + 1, a.stride) for s, a in zip(starts, g.axes, strict=True))
            yield tap, x[(slice(None), slice(None), None, *spans)]

    def retract(self, dx: Array, runs: tuple[Run, ...]) -> Array:
        """The adjoint of what `runs` read: the gradient of the padding, brought to where it was taken from."""
        for at, run in enumerate(runs, start=2):
            if run.repeats > 1:
                dx = self.xp.reshape(dx, (*dx.shape[:at], run.repeats, run.period, *dx.shape[at + 1 :]))
                dx = self.xp.sum(dx, axis=at, dtype=dx.dtype)
            if run.step < 0:
                dx = self.xp.flip(dx, axis=at)
            elif run.step == 0:
                there, back = (dx[along(at, part)] for part in (slice(run.length), slice(run.length, run.period)))
                dx = there + self.pad(self.xp.flip(back, axis=at), at, 1, 1)
        return dx

    # tiles of windows, each under a small matrix per axis

    def spectra(self, x: Array, g: Geometry, matrices: Matrices, *, lasting: bool = False) -> Array:
        """Every window of `x` under the matrices ``(frequencies, kernel)`` of its axes, as the right side of a product.

        Of the shape ``(1, frequencies * groups, depth, n * pixels)``: all images share a product. With `lasting` it
        outlives the tile.
        """
        del lasting
        xp, rank = self.xp, len(matrices)
        v = self.im2col(x, g)  # (*frequencies done, n, c, *kernel left, *out)
        for matrix in reversed(matrices):
            constant = xp.asarray(matrix, dtype=v.dtype, device=self.device(x))
            v = xp.tensordot(constant, v, axes=((1,), (1 + rank,)))
        frequencies = v.shape[:rank]
        v = xp.reshape(v, (*frequencies, g.batch, g.groups, g.c_in // g.groups, g.pixels))
        v = xp.permute_dims(v, (*range(rank), rank + 1, rank + 2, rank, rank + 3))
        return xp.reshape(v, (1, math.prod(frequencies) * g.groups, g.c_in // g.groups, g.batch * g.pixels))

    def spectra_adjoint(
        self, v: Array, g: Geometry, matrices: Matrices, out: Array | None = None, *, lasting: bool = False
    ) -> Array:
        """The adjoint of `spectra`, for the real matrices that they are; in `out` if possible."""
        del lasting
        xp, rank = self.xp, len(matrices)
        frequencies = tuple(len(matrix) for matrix in matrices)
        v = xp.reshape(v, (*frequencies, g.c_in, g.batch, *g.out))
        v = xp.permute_dims(v, (*range(rank), rank + 1, rank, *range(2 + rank, 2 + 2 * rank)))
        for matrix in matrices:  # v is (*frequencies left, n, c, *out, *kernel done)
            constant = xp.asarray(matrix, dtype=v.dtype, device=self.device(v))
            v = xp.tensordot(v, constant, axes=((0,), (0,)))
        v = xp.permute_dims(v, (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)))
        return self.col2im(v, g, out)

    def spectra_spare(self, g: Geometry, matrices: Matrices) -> int:
        """Elements that `spectra` and its adjoint need at once beside what they take and make, at most."""
        each = math.prod(max(len(matrix), len(matrix[0])) for matrix in matrices)
        return self.spare(g) + math.prod(g.columns_shape) + 2 * g.batch * g.c_in * g.pixels * each

    # blocks, each under a Fourier transform per axis

    def fourier(self, x: Array, g: Geometry, grid: Grid, *, lasting: bool = False) -> Array:
        """The spectra of every window of `x`, as the right side of a product, all images in one.

        Of the shape ``(1, frequencies * groups, depth, n * pixels)``. With `lasting` they outlive the tile.
        """
        del lasting
        if 0 in (*x.shape, *g.out):  # of which not every library makes a transform
            frequencies, depth = math.prod(grid.frequencies) * g.groups, g.c_in // max(1, g.groups)
            dtype = self.xp.result_type(x.dtype, self.xp.complex64)
            return self.zeros((1, frequencies, depth, g.batch * g.pixels), dtype, x)
        return _fourier.transform(self.xp, self.pad, x, g, grid)

    def fourier_inverse(
        self, v: Array, g: Geometry, grid: Grid, out: Array | None = None, *, lasting: bool = False
    ) -> Array:
        """The adjoint of `fourier`: windows that overlap are added up; in `out` if possible."""
        del out, lasting
        if 0 in (*g.x_shape, *g.out):
            dtype = self.xp.real(v[:0, ...]).dtype if grid.real else v.dtype
            return self.zeros(g.x_shape, dtype, v)
        return _fourier.inverse(self.xp, self.pad, v, g, grid)

    def fourier_spare(self, g: Geometry, grid: Grid) -> int:
        """Numbers that `fourier` and its adjoint need at once beside what they take and make, at most."""
        return 4 * _fourier.spare(g, grid)

    # products

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        """``u @ v`` for every image and block, ``(n, blocks, rows, pixels)``; in `out` if that is handed over."""
        del out
        return self.xp.matmul(u, v)

    def outer(self, s: Array, v: Array) -> Array:
        """The sum of ``s @ v^H`` over all images and pixels, ``(blocks, rows, depth)``."""
        s, v = (self._images_last(a) for a in (s, v))
        return self.product(s, self.adjoint(v))

    def _images_last(self, a: Array) -> Array:
        n, blocks, rows, pixels = a.shape
        return self.xp.reshape(self.xp.permute_dims(a, (1, 2, 0, 3)), (blocks, rows, n * pixels))

    def adjoint(self, u: Array) -> Array:
        """The conjugate transpose over the last two axes."""
        return self.xp.matrix_transpose(self.conj(u))

    def conj(self, u: Array) -> Array:
        return self.xp.conj(u) if self.kind(u.dtype) == "complex" else u

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
        """The array whose part at ``place(tile)`` is ``piece(tile, ...)``; the places cover it and do not overlap.

        Its axes lie in memory in that `order`, where the library lets us choose.
        """
        del team
        first = self.astype(piece(tiles[0], None), dtype)
        if len(tiles) == 1:
            return first
        zeros = self.zeros(tuple(shape[axis] for axis in order), dtype, first)
        out = self.xp.permute_dims(zeros, inverse(order))
        out = xpx.at(out)[place(tiles[0])].set(first, xp=self.xp)
        for tile in islice(tiles, 1, None):
            out = xpx.at(out)[place(tile)].set(self.astype(piece(tile, None), dtype), xp=self.xp)
        return out

    def total(
        self,
        tiles: Sequence[Tile],
        piece: Piece,
        *,
        team: Team,
        lanes: int = 1,
    ) -> Array:
        """The sum of ``piece(tile, ...)``, in an order that does not depend on `team`.

        Tiles are dealt out to `lanes`, which may be added up side by side and are then added in order.
        """
        del team, lanes
        result = piece(tiles[0], None)
        for tile in islice(tiles, 1, None):
            result = result + piece(tile, None)
        return result


@cache
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `order`."""
    return tuple(order.index(axis) for axis in range(len(order)))


def _name(dtype: DType) -> str:
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def along(at: int, index: slice | int) -> tuple[Any, ...]:
    """`index` for the axis `at`, everything of the axes before and behind."""
    return (*(slice(None),) * at, index, ...)
