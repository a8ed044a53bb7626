"""JAX: arrays that cannot be written to, and products whose precision has to be asked for."""

import math
from collections.abc import Callable, Sequence

from .. import _config
from .._geometry import Geometry, Tile
from .._typing import Array, DType, Index, Shape
from . import _depthwise, _windows
from ._costs import Costs
from ._generic import Backend, Piece
from ._jax_costs import jax_costs
from ._pieces import joined, pad
from ._threads import Team

#: What JAX calls our precisions. Its own default on a GPU is TF32.
PRECISIONS = {"ieee": "highest", "tf32": "tensorfloat32"}


class JaxBackend(Backend):
    """JAX arrays and tracers."""

    def place(self, x: Array) -> str:
        """The kind of device: a tracer does not tell which, and is most likely to end on the default one."""
        import jax

        return str(getattr(self.device(x), "platform", jax.default_backend()))

    def costs(self, dtype: DType, precision: str) -> Costs:
        del precision
        return jax_costs(self.itemsize(self.accumulator(dtype)), self.kind(dtype))

    # windows: an element of the padded image for each of the columns, where the generic way cuts out tap by tap

    def im2col(self, x: Array, g: Geometry, out: Array | None = None) -> Array:
        """In one gather from places that are computed: XLA compiles every slice, and copies slices more slowly."""
        if 0 in g.columns_shape:
            return super().im2col(x, g, out)
        import jax

        x, g = _windows.gathered(self.xp, x, g), g.gathered()
        # The places would be constants, which `zeros` says more about, if they were not made anew where they are read.
        read = jax.checkpoint(_read, prevent_cse=False, static_argnums=1)
        made: Array = read(self._padded(x, g), g.extended())
        return made

    def _padded(self, x: Array, g: Geometry) -> Array:
        """`x` with its padding, in memory: XLA would ask for every tap whether it reads the padding."""
        from jax import lax

        if not g.is_padded:
            return x
        for at, axis in enumerate(g.axes, start=2):
            x = pad(self.xp, x, at, axis.lo, axis.hi)
        return lax.optimization_barrier(x)

    def spare(self, g: Geometry) -> int:
        return super().spare(g) + _of_places(g)

    def columns_spare(self, g: Geometry) -> int:
        cut_out = math.prod(g.x_shape)  # to cut a tile out is to copy it
        return super().columns_spare(g) + _of_places(g) + cut_out

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        del out
        return _depthwise.forward(self.xp, self._padded(x, g), w, g.extended())

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        del out
        return self.xp.matmul(u, v, precision=PRECISIONS[_config.current().precision])

    # jax.numpy.fft makes constants on the way, which `zeros` in _pieces.py says more about.

    def fft(self, x: Array, at: int, length: int, *, half: bool) -> Array:
        from jax import lax

        x = self.xp.moveaxis(pad(self.xp, x, at, 0, length - x.shape[at]), at, -1)
        spectrum = lax.fft(x, "RFFT" if half else "FFT", (length,)) * (1 / math.sqrt(length))
        return self.xp.moveaxis(spectrum, -1, at)

    def ifft(self, x: Array, at: int, length: int, *, half: bool) -> Array:
        from jax import lax

        made = lax.fft(self.xp.moveaxis(x, at, -1), "IRFFT" if half else "IFFT", (length,)) * math.sqrt(length)
        return self.xp.moveaxis(made, -1, at)

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
        """As there is nothing to write into, the parts are joined: each is copied once an axis, never the whole."""
        del shape, team, order
        return joined(self.xp, [(place(tile), self.astype(piece(tile, None), dtype)) for tile in tiles])


def _read(x: Array, g: Geometry) -> Array:
    """Every window of `x`, which has its padding."""
    places = (_places(g, i) for i in range(len(g.axes)))
    return x.at[(slice(None), slice(None), *places)].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _places(g: Geometry, i: int) -> Array:
    """Where on axis `i` each tap of each output is, ``(*kernel, *out)``."""
    from jax import lax

    shape, rank, axis = (*g.kernel, *g.out), len(g.axes), g.axes[i]
    taps, outputs = (lax.broadcasted_iota("int32", shape, at) for at in (i, rank + i))
    return taps * axis.dilation + outputs * axis.stride


def _of_places(g: Geometry) -> int:
    """Elements for the places of columns, in as far as they are written out."""
    return 2 * len(g.axes) * g.taps * g.pixels
