"""The primitives: what algorithms ask of an array library and the array-API standard lacks, in the pure standard.

The code can be traced (``jax.jit``) and differentiated (PyTorch, JAX): nothing that was read is written to
afterwards. Backends override what their library does better.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import array_api_extra as xpx

from .._axis import Run
from .._geometry import Geometry, Tile
from .._typing import Array, DType, Index, Namespace, Pooled, Shape
from . import _depthwise, _fourier, _pooling, _spectra, _windows
from ._fourier import Grid
from ._pieces import device, inverse, zeros
from ._spectra import Matrices, Rows

#: Makes the part of a result that belongs to a tile. It is handed the memory where the part will lie, or None; it
#: may write there and return that, or return an array of its own.
Piece = Callable[[Tile, Array | None], Array]


class Whole(NamedTuple):
    """An array that is put together from the parts of tiles."""

    shape: Shape
    dtype: DType
    #: Its axes in the order in which they lie in memory, where the library lets us choose.
    order: tuple[int, ...]
    #: Where the part of a tile is; the places cover all, and do not overlap.
    place: Callable[[Tile], Index]
    #: Whether it begins as zeros, where the library lets us write into it.
    blank: bool = False


class Team(NamedTuple):
    """Who works on the tiles of a call."""

    #: Threads asked for; None for as many as the BLAS may use at the moment of the call.
    threads: int | None = None
    #: Threads that the workspace has room for, or one for work that is not worth more.
    limit: int = 1
    #: Whether the work is worth a hold on the BLAS.
    heavy: bool = False
    #: Bytes that a tile takes, at most.
    memory: int = 0


class Primitives:
    """The primitives, for one array-API namespace.

    Images are ``x (n, c, *size)`` and their columns ``cols (n, c, *kernel, *out)``. The operands of a product are
    ``u (blocks, rows, depth)`` and ``v (n, blocks, depth, pixels)``; a block is a group, or one frequency of it.
    """

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp
        self.name = str(xp.__name__).removeprefix("array_api_compat.").removesuffix(".numpy")

    # memory

    def astype(self, x: Array, dtype: DType) -> Array:
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def cast(self, x: Array, dtype: DType) -> Array:
        """The same as `astype`, for as long as a tile is worked on."""
        return self.astype(x, dtype)

    def part(self, x: Array, index: Index) -> Array:
        """What a tile reads."""
        return x[index]

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

    def conj(self, u: Array) -> Array:
        return self.xp.conj(u) if self.xp.isdtype(u.dtype, "complex floating") else u

    def times_root(self, x: Array, square: int) -> Array:
        """`x` times the square root of a number, which is as precise as `x`."""
        return x * math.sqrt(square)

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
        """The adjoint of `im2col`: adds each element of the columns to the input element that it was read from.

        In `out` if possible, which holds zeros unless windows cover all of it, each element once.
        """
        del out
        return _windows.folded(self.xp, cols, g)

    def extend(self, x: Array, g: Geometry) -> Array:
        """`x` with its padding written out, where that is not zeros."""
        return _windows.extend(self.xp, x, g)

    def retract(self, dx: Array, runs: tuple[Run, ...]) -> Array:
        """The adjoint of what `runs` read: the gradient of the padding, brought to where it was taken from."""
        return _windows.retract(self.xp, dx, runs)

    # pooling

    def pool(self, x: Array, g: Geometry, how: Pooled, out: Array | None = None) -> Array:
        """The largest element of every window, NaN where there is one; or the mean. In `out` if possible."""
        del out
        if how == "max":
            return _pooling.largest(self.xp, x, g)
        y = _pooling.total(self.xp, x, g)
        return y / _pooling.divisor(self.xp, g, how, y)

    def pool_grad(
        self, dy: Array, x: Array | None, g: Geometry, whole: Geometry, how: Pooled, out: Array | None = None
    ) -> Array:
        """What of `dy` every element gets: all of a window's, where it is the first of the largest; or a share.

        The elements are those of `g`; `whole` has all that their windows read, which is `x` where the largest is
        searched for. In `out` if possible.
        """
        del out
        if how == "max":
            found = _pooling.first(self.xp, x, whole)
            return self.col2im(_pooling.spread(self.xp, dy, found, whole), whole)[_pooling.own(g, whole)]
        return _pooling.total_back(self.xp, dy / _pooling.divisor(self.xp, whole, how, dy), g)

    # depthwise: x (n, c_in, *size), w (c_out, 1, *kernel), y (n, c_out, *out)

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """The convolution of every channel with its own filters; in `out` if possible."""
        del out
        return _depthwise.forward(self.xp, x, w, g)

    def depthwise_input_grad(self, dy: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """The transpose of `depthwise` in x."""
        del out
        return _depthwise.input_grad(self.xp, self.product, dy, w, g)

    def depthwise_weight_grad(self, dy: Array, x: Array, g: Geometry) -> Array:
        """The adjoint of `depthwise` in w."""
        return _depthwise.weight_grad(self.xp, dy, x, g)

    # tiles of windows, each under a small matrix per axis

    def spectra(self, x: Array, g: Geometry, matrices: Matrices, *, team: Team | None = None) -> Array:
        """Every window of `x` under the matrices ``(frequencies, kernel)`` of its axes, as the right side of a product.

        Of the shape ``(1, frequencies * groups, depth, n * pixels)``: all images share a product. What a team makes
        is for all tiles.
        """
        del team
        return _spectra.transform(self.xp, self.contract, self.im2col(x, g), g, matrices)

    def spectra_adjoint(
        self, v: Array, g: Geometry, matrices: Matrices, out: Array | None = None, *, team: Team | None = None
    ) -> Array:
        """The adjoint of `spectra`, for the real matrices that they are; in `out` if possible."""
        del team
        return self.col2im(_spectra.adjoint(self.xp, self.contract, v, g, matrices), g, out)

    def contract(self, matrix: Rows, v: Array, axis: int, *, behind: bool = False) -> Array:
        """`v` with one of its axes under a small matrix ``(new, old)``; the new axis is the first, or the last."""
        constant = self.xp.asarray(matrix, dtype=v.dtype, device=device(v))
        if behind:
            return self.xp.tensordot(v, constant, axes=((axis,), (1,)))
        return self.xp.tensordot(constant, v, axes=((1,), (axis,)))

    # blocks, each under a Fourier transform per axis

    def fourier(self, x: Array, g: Geometry, grid: Grid, *, team: Team | None = None) -> Array:
        """The spectra of every window of `x`, as the right side of a product, all images in one.

        Of the shape ``(1, frequencies * groups, depth, n * pixels)``. What a team makes is for all tiles.
        """
        del team
        return _fourier.transform(self.xp, self.fft, x, g, grid)

    def fourier_inverse(
        self, v: Array, g: Geometry, grid: Grid, out: Array | None = None, *, team: Team | None = None
    ) -> Array:
        """The adjoint of `fourier`: windows that overlap are added up; in `out` if possible."""
        del out, team
        return _fourier.inverse(self.xp, partial(self.fft, inverse=True), v, g, grid)

    def fft(self, x: Array, at: int, length: int, *, half: bool, inverse: bool = False) -> Array:
        """The orthonormal transform of `x`, with zeros behind it, along one axis; `half` of one of real numbers."""
        transform = getattr(self.xp.fft, f"{'i' * inverse}{'r' * half}fft")
        return transform(x, n=length, axis=at, norm="ortho")

    # products

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        """``u @ v`` for every image and block, ``(n, blocks, rows, pixels)``; in `out` if that is handed over."""
        del out
        return self.xp.matmul(u, v)

    def outer(self, s: Array, v: Array) -> Array:
        """The sum of ``s @ v^H`` over all images and pixels, ``(blocks, rows, depth)``."""
        (*_, rows, pixels), depth = s.shape, v.shape[2]
        if rows * depth <= (rows + depth) * pixels:  # a product per image takes no more memory than copies of both
            return self.xp.sum(self.product(s, self._adjoint(v)), axis=0, dtype=v.dtype)
        s, v = (self._images_last(a) for a in (s, v))
        return self.product(s, self._adjoint(v))

    def _images_last(self, a: Array) -> Array:
        n, blocks, rows, pixels = a.shape
        return self.xp.reshape(self.xp.permute_dims(a, (1, 2, 0, 3)), (blocks, rows, n * pixels))

    def _adjoint(self, u: Array) -> Array:
        """The conjugate transpose over the last two axes."""
        return self.xp.matrix_transpose(self.conj(u))

    # tiles

    def assemble(self, whole: Whole, tiles: Sequence[Tile], piece: Piece, team: Team) -> Array:
        """The array whose part at ``whole.place(tile)`` is ``piece(tile, ...)``."""
        del team
        shape, dtype, order, place, _ = whole
        first = self.astype(piece(tiles[0], None), dtype)
        if len(tiles) == 1:
            return first
        zeros = self.zeros(tuple(shape[axis] for axis in order), dtype, first)
        out = self.xp.permute_dims(zeros, inverse(order))
        out = xpx.at(out)[place(tiles[0])].set(first, xp=self.xp)
        for tile in islice(tiles, 1, None):
            out = xpx.at(out)[place(tile)].set(self.astype(piece(tile, None), dtype), xp=self.xp)
        return out

    def total(self, tiles: Sequence[Tile], piece: Piece, *, team: Team, lanes: int = 1) -> Array:
        """The sum of ``piece(tile, ...)``, in an order that does not depend on `team`.

        Tiles are dealt out to `lanes`, which may be added up side by side and are then added in order.
        """
        del team, lanes
        result = piece(tiles[0], None)
        for tile in islice(tiles, 1, None):
            result = result + piece(tile, None)
        return result
