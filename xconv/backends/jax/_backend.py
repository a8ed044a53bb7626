"""JAX: arrays that cannot be written to, and products whose precision has to be asked for."""

import math
from collections.abc import Sequence
from itertools import islice

import array_api_compat

from ... import _config
from ..._geometry import Geometry, Tile
from ..._typing import Array, DType, Index
from ...primitives import Costs, Piece, Team, Whole, device, joined, pad
from ...schedules import Tiled
from .._backend import Backend
from ._costs import jax_costs
from ._loops import read, repeated, staged, written

#: What JAX calls our precisions. Its own default on a GPU is TF32.
PRECISIONS = {"ieee": "highest", "tf32": "tensorfloat32"}

#: Under `jit`, more tiles than this are run in loops.
MOST_UNROLLED = 8


class JaxBackend(Backend):
    """JAX arrays and tracers."""

    def to_dtype(self, dtype: object) -> DType:
        import jax

        found = self.xp.dtype(super().to_dtype(dtype))
        if jax.dtypes.canonicalize_dtype(found) != found:
            msg = f'`dtype` {found} is switched off in JAX: call `jax.config.update("jax_enable_x64", True)` first'
            raise TypeError(msg)
        return found

    def filling(self, value: complex, dtype: DType) -> complex:
        """Integers as those of NumPy: JAX takes Python's for narrower ones."""
        made = super().filling(value, dtype)
        return self.xp.dtype(dtype).type(made) if isinstance(made, int) else made

    def place(self, x: Array) -> str:
        """The kind of device: a tracer does not tell which, and is most likely to end on the default one."""
        import jax

        return str(getattr(device(x), "platform", jax.default_backend()))

    def adopts(self, array: Array) -> bool:
        """A constant of a program is compiled into it, and does not travel when that runs."""
        return array_api_compat.is_numpy_array(array) and staged()

    def of(self, arrays: dict[str, Array]) -> Backend:
        return super().of({name: a for name, a in arrays.items() if not array_api_compat.is_numpy_array(a)})

    def common(self, *dtypes: DType) -> DType | None:
        """Constants may be wider than any array of JAX, as it is set up."""
        from jax.dtypes import canonicalize_dtype

        return super().common(*map(canonicalize_dtype, dtypes))

    def call(self, tiled: Tiled, *arrays: Array, **options: bool) -> Array:
        # Constants of a program are NumPy's arrays.
        arrays = tuple(self.xp.asarray(a) if array_api_compat.is_numpy_array(a) else a for a in arrays)
        return super().call(tiled, *arrays, **options)

    def costs(self, dtype: DType, precision: str) -> Costs:
        del precision
        return jax_costs(self.itemsize(self.accumulator(dtype)), self.kind(dtype))

    def depthwise(self, x: Array, w: Array, g: Geometry, out: Array | None = None) -> Array:
        """With the padding in memory: XLA would ask for every tap whether it reads any."""
        if g.is_padded:
            from jax import lax

            for at, axis in enumerate(g.axes, start=2):
                x = pad(self.xp, x, at, axis.lo, axis.hi)
            x, g = lax.optimization_barrier(x), g.extended()
        return super().depthwise(x, w, g, out)

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        del out
        return self.xp.matmul(u, v, precision=PRECISIONS[_config.current().precision])

    # jax.numpy.fft makes constants on the way, which `zeros` in _pieces.py says more about.

    def fft(self, x: Array, at: int, length: int, *, half: bool, inverse: bool = False) -> Array:
        from jax import lax

        x = self.xp.moveaxis(x if inverse else pad(self.xp, x, at, 0, length - x.shape[at]), at, -1)
        made = lax.fft(x, f"{'I' * inverse}{'R' * half}FFT", (length,))
        return self.xp.moveaxis(made * (math.sqrt(length) if inverse else 1 / math.sqrt(length)), -1, at)

    # tiles

    def part(self, x: Array, index: Index) -> Array:
        return read(x, index)

    def assemble(self, whole: Whole, tiles: Sequence[Tile], piece: Piece, team: Team) -> Array:
        """As there is nothing to write into, few parts are joined: each is copied once an axis, never the whole.

        Many parts of a program are written into the whole in loops, which XLA does in place.
        """
        del team

        def made(tile: Tile) -> Array:
            return self.astype(piece(tile, None), whole.dtype)

        if len(tiles) <= MOST_UNROLLED or not staged():
            return joined(self.xp, [(whole.place(tile), made(tile)) for tile in tiles])
        first = made(tiles[0])
        begun = written(self.zeros(whole.shape, whole.dtype, first), whole.place(tiles[0]), first)
        return repeated(lambda tile, out: written(out, whole.place(tile), made(tile)), islice(tiles, 1, None), begun)

    def total(self, tiles: Sequence[Tile], piece: Piece, *, team: Team, lanes: int = 1) -> Array:
        if len(tiles) <= MOST_UNROLLED or not staged():
            return super().total(tiles, piece, team=team, lanes=lanes)
        return repeated(lambda tile, sum_: sum_ + piece(tile, None), islice(tiles, 1, None), piece(tiles[0], None))
