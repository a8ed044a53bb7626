"""JAX: arrays that cannot be written to, and products whose precision has to be asked for."""

from collections.abc import Callable, Sequence
from itertools import groupby

from .. import _config
from .._geometry import Tile
from .._typing import Array, DType, Index, Shape
from ._generic import Backend, Piece
from ._threads import Team

#: What JAX calls our precisions. Its own default on a GPU is TF32.
PRECISIONS = {"ieee": "highest", "tf32": "tensorfloat32"}


class JaxBackend(Backend):
    """JAX arrays and tracers."""

    def product(self, u: Array, v: Array, out: Array | None = None) -> Array:
        del out
        return self.xp.matmul(u, v, precision=PRECISIONS[_config.current().precision])

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
        del team, order
        parts = [(place(tile), self.astype(piece(tile, None), dtype)) for tile in tiles]
        return self._joined(parts, 0, len(shape))

    def _joined(self, parts: list[tuple[Index, Array]], axis: int, rank: int) -> Array:
        """The array that `parts`, in the order of their places, make up; they differ from `axis` on."""
        if axis == rank:
            return parts[0][1]
        groups = [list(group) for _, group in groupby(parts, key=lambda part: part[0][axis].start)]
        joined = [self._joined(group, axis + 1, rank) for group in groups]
        return joined[0] if len(joined) == 1 else self.xp.concat(joined, axis=axis)
