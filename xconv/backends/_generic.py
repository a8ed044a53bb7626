"""The primitives in the pure array-API standard: the backend of every library without a file of its own.

The code can be traced (``jax.jit``) and differentiated (PyTorch, JAX): nothing that was read is written to
afterwards. The other backends override what their library does better.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import islice
from time import perf_counter
from typing import Any

import array_api_compat
import array_api_extra as xpx

from .._axis import Run
from .._geometry import Geometry, Tile
from .._typing import Array, Device, DType, Index, Kind, Namespace, Shape
from . import _depthwise, _fourier, _spectra, _windows
from ._costs import Costs
from ._fourier import Grid
from ._pieces import zeros
from ._spectra import Matrices, Rows
from ._threads import Team

MIB = 2**20

#: Numbers that some libraries can store, and hardly compute with.
STORED = re.compile(r"u?int[124]$|float[468](_|$)|torch\.(uint(16|32|64)|complex32)$")

#: Makes the part of a result that belongs to a tile. It is handed the memory where the part will lie, or None; it
#: may write there and return that, or return an array of its own.
Piece = Callable[[Tile, Array | None], Array]


_NOTHING = nullcontext()


class RefusedError(ValueError):
    """cuDNN turns a convolution down."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"`algorithm` 'cudnn' cannot serve this convolution: {reason}")


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
    #: Whether views of its arrays may overlap in memory and be multiplied as they are: it has `product_by_row`.
    views_overlap = False
    #: Whether arrays lie in chunks, of another library, that are convolved one by one.
    chunked = False
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
        """Where `x` is; None where the library does not tell."""
        try:
            return array_api_compat.device(x)
        except AttributeError:  # MLX's arrays lie in memory that all its devices share
            return None

    def place(self, x: Array) -> str:
        """The name of the device of `x`, for a record of times."""
        return str(self.device(x))

    def adopts(self, array: Array) -> bool:
        """Whether an array of another library may come along with this library's."""
        del array
        return False

    def check_arrays(self, arrays: dict[str, Array]) -> None:
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

    def call(self, tiled: Any, *arrays: Array, **options: bool) -> Array:
        """Run a function that was cut into tiles on the device of its first array.

        What the backend remembers of that for later calls is in ``tiled.remembered``.
        """
        with self.on_device_of(arrays[0]):
            made: Array = tiled.run(*arrays, **options)
        return made

    # costs

    def tile_size(self, algorithm: str, g: Geometry, dtype: DType, whole: float, *, shared: bool) -> float:
        """Bytes of temporary memory for a tile of a call by some algorithm that would take `whole` in one piece."""
        del algorithm, g, dtype, whole, shared
        return self.tile_bytes

    def costs(self, dtype: DType, precision: str) -> Costs:
        """What the primitives below cost for arrays of this dtype."""
        del precision
        width = self.itemsize(self.accumulator(dtype)) / 4
        is_complex = self.kind(dtype) == "complex"
        multiply = Costs.complex_multiply / 2 if is_complex else 1
        return Costs(multiply * width, 12 * width, 400_000, is_complex=is_complex)

    def seconds(self, run: Callable[[], Array], calls: int) -> float | None:
        """Time of so many calls, until their results are there; None where these are only traced."""
        start = perf_counter()
        for _ in range(calls):
            made = run()
        read = {"integer": int, "real": float, "complex": complex}[self.kind(made.dtype) or "real"]
        try:
            read(made[(0,) * made.ndim])  # the one thing that waits in every library
        except (TypeError, RuntimeError):
            return None
        return perf_counter() - start

    # memory

    def astype(self, x: Array, dtype: DType) -> Array:
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def cast(self, x: Array, dtype: DType) -> Array:
        """The same as `astype`, for as long as a tile is worked on."""
        return self.astype(x, dtype)

    def reshape(self, x: Array, shape: Shape) -> Array:
        """`x` in another shape, for as long as a tile is worked on."""
        return self.xp.reshape(x, shape)

    def view(self, out: Array | None, shape: Shape, dtype: DType) -> Array | None:
        """The memory of `out` in another shape, to write a product of `dtype` into; None where that cannot be."""
        del out, shape, dtype
        return None

    def zeros(self, shape: Shape, dtype: DType, like: Array, out: Array | None = None) -> Array:
        """Zeros on the device of `like`, to write into; batched or sharded where a transformation made `like` so.

        In `out` if possible.
        """
        del out
        return zeros(self.xp, shape, dtype, like)

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
        return _windows.columns(self.xp, x, g)

    def col2im(self, cols: Array, g: Geometry, out: Array | None = None) -> Array:
        """The adjoint of `im2col`: adds each element of the columns to the input element that it was read from."""
        del out
        return _windows.folded(self.xp, cols, g)

    def spare(self, g: Geometry) -> int:
        """Elements that `im2col` and `col2im` need at once beside the columns they make or take, at most."""
        return _windows.spare(g)

    def columns_spare(self, g: Geometry) -> int:
        """The same for `im2col` alone, which takes nothing for what lies between taps that are far apart."""
        return _windows.columns_spare(g)

    def columns(self, g: Geometry) -> int:
        """Elements of memory that `im2col` makes for a product, or `col2im` is handed by one."""
        return math.prod(g.columns_shape)

    def extend(self, x: Array, g: Geometry) -> Array:
        """`x` with its padding written out, for the pad modes that read it from the array."""
        return _windows.extend(self.xp, x, g)

    # depthwise: x (n, c_in, *size), w (c_out, 1, *kernel), y (n, c_out, *out)

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """The convolution of every channel with its own filters; in `out` if possible."""
        del out
        return _depthwise.forward(self.xp, x, w, g)

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """The transpose of `depthwise` in x."""
        del out
        return _depthwise.input_grad(self.xp, dy, w, g)

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        """The adjoint of `depthwise` in w."""
        return _depthwise.weight_grad(self.xp, dy, x, g)

    def depthwise_spare(self, g: Geometry) -> int:
        """Elements that the three need at once beside what they take and make, at most."""
        return _depthwise.spare(g)

    def retract(self, dx: Array, runs: tuple[Run, ...]) -> Array:
        """The adjoint of what `runs` read: the gradient of the padding, brought to where it was taken from."""
        return _windows.retract(self.xp, dx, runs)

    # tiles of windows, each under a small matrix per axis

    def spectra(self, x: Array, g: Geometry, matrices: Matrices, *, lasting: bool = False) -> Array:
        """Every window of `x` under the matrices ``(frequencies, kernel)`` of its axes, as the right side of a product.

        Of the shape ``(1, frequencies * groups, depth, n * pixels)``: all images share a product. With `lasting` it
        outlives the tile.
        """
        del lasting
        return _spectra.transform(self, x, g, matrices)

    def spectra_adjoint(
        self, v: Array, g: Geometry, matrices: Matrices, out: Array | None = None, *, lasting: bool = False
    ) -> Array:
        """The adjoint of `spectra`, for the real matrices that they are; in `out` if possible."""
        del lasting
        return _spectra.adjoint(self, v, g, matrices, out)

    def spectra_spare(self, g: Geometry, matrices: Matrices) -> int:
        """Elements that `spectra` and its adjoint need at once beside what they take and make, at most."""
        return _spectra.spare(self, g, matrices)

    def contract(self, matrix: Rows, v: Array, axis: int, *, behind: bool = False) -> Array:
        """`v` with one of its axes under a small matrix ``(new, old)``; the new axis is the first, or the last."""
        constant = self.xp.asarray(matrix, dtype=v.dtype, device=self.device(v))
        if behind:
            return self.xp.tensordot(v, constant, axes=((axis,), (1,)))
        return self.xp.tensordot(constant, v, axes=((1,), (axis,)))

    # blocks, each under a Fourier transform per axis

    def fourier(self, x: Array, g: Geometry, grid: Grid, *, lasting: bool = False) -> Array:
        """The spectra of every window of `x`, as the right side of a product, all images in one.

        Of the shape ``(1, frequencies * groups, depth, n * pixels)``. With `lasting` they outlive the tile.
        """
        del lasting
        return _fourier.transform(self, x, g, grid)

    def fourier_inverse(
        self, v: Array, g: Geometry, grid: Grid, out: Array | None = None, *, lasting: bool = False
    ) -> Array:
        """The adjoint of `fourier`: windows that overlap are added up; in `out` if possible."""
        del out, lasting
        return _fourier.inverse(self, v, g, grid)

    def fft(self, x: Array, at: int, length: int, *, half: bool) -> Array:
        """The orthonormal transform of `x`, with zeros behind it, along one axis; `half` of one of real numbers."""
        transform = self.xp.fft.rfft if half else self.xp.fft.fft
        return transform(x, n=length, axis=at, norm="ortho")

    def ifft(self, x: Array, at: int, length: int, *, half: bool) -> Array:
        """The inverse of `fft`."""
        transform = self.xp.fft.irfft if half else self.xp.fft.ifft
        return transform(x, n=length, axis=at, norm="ortho")

    def fourier_spare(self, g: Geometry, grid: Grid) -> int:
        """Numbers that `fourier` and its adjoint need at once beside what they take and make, at most."""
        return 4 * _fourier.spare(g, grid)

    # a product whose columns are never written out, where the library has a kernel of ours for it

    def implicit_lack(self, dtype: DType, precision: str) -> str | None:
        """Why there is no such product of this dtype; None where there is one, and with it the two below."""
        del dtype, precision
        return f"{self.name} has no kernel for it"

    def implicit_filters(self, w: Array, g: Geometry, *, adjoint: bool) -> Array:
        """The filters in the order in which `implicit` takes them."""

    def implicit(self, x: Array, u: Array, g: Geometry, out: Array | None, *, adjoint: bool) -> Array:
        """``conv(x, w)``; with `adjoint`, its transpose for ``x = dy``. In `out` if that is handed over."""

    # products

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        """``u @ v`` for every image and block, ``(n, blocks, rows, pixels)``; in `out` if that is handed over."""
        del out
        return self.xp.matmul(u, v)

    def product_by_row(self, u: Array, x: Array, g: Geometry, out: Array | None) -> Array:
        """``conv(x, w)`` in a product for each row of outputs; u has the taps of the first axis before the channels."""

    def outer(self, s: Array, v: Array) -> Array:
        """The sum of ``s @ v^H`` over all images and pixels, ``(blocks, rows, depth)``."""
        (*_, rows, pixels), depth = s.shape, v.shape[2]
        if rows * depth <= (rows + depth) * pixels:  # a product per image takes no more memory than copies of both
            return self.xp.sum(self.product(s, self.adjoint(v)), axis=0, dtype=v.dtype)
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

    # NVIDIA's library

    def lacks_cudnn(self) -> str | None:
        """Why there is no `cudnn`; None where there is."""
        return "it takes arrays of CuPy, and needs the extra `xconv[cudnn]`"

    def cudnn(self, function: str, g: Geometry, a: Array, b: Array, out: Array | None, workspace: int) -> Array:
        """One of cuDNN's functions, in `out` if possible, with so many elements of workspace at most.

        ``"conv"`` of x and w, ``"input_grad"`` of dy and w, or ``"weight_grad"`` of dy and x. RefusedError where cuDNN
        does not have it.
        """
        del function, g, a, b, out, workspace
        raise RefusedError(str(self.lacks_cudnn()))

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
