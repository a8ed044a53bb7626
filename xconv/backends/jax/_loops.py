"""Tiles in loops: of those that are alike but for their places, a program has one, however many there are."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from ..._geometry import Geometry, Tile
from ..._typing import Array, Index

#: Makes more of an array by a tile.
Step: TypeAlias = Callable[[Tile, Array], Array]


class Moving(NamedTuple):
    """A part of an axis that begins elsewhere in every turn of a loop."""

    start: Array
    size: int


def staged() -> bool:
    """Whether what is called now becomes part of a program: without one, a loop would be compiled in every call."""
    import jax

    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def read(x: Array, index: Index) -> Array:
    """``x[index]``, which may be moving."""
    if not any(map(_moves, index)):
        return x[index]
    from jax import lax

    sizes = [i.size if _moves(i) else size for i, size in zip(index, x.shape, strict=True)]
    return lax.dynamic_slice(x, _starts(index), sizes)


def written(x: Array, index: Index, part: Array) -> Array:
    """`x` with a part of it at an index, which may be moving."""
    from jax import lax

    return lax.dynamic_update_slice(x, part, _starts(index))


def repeated(step: Step, tiles: Iterable[Tile], made: Array) -> Array:
    """What becomes of `made` by a step for every tile, those that are alike one after the other."""
    groups: dict[tuple[Geometry | None, ...], list[Tile]] = {}
    for tile in tiles:
        groups.setdefault((tile.geometry, tile.whole and tile.whole.geometry), []).append(tile)
    for alike in groups.values():
        made = step(alike[0], made) if len(alike) == 1 else _loop(step, alike, made)
    return made


def _loop(step: Step, tiles: list[Tile], made: Array) -> Array:
    from jax import lax, numpy

    def moved(tile: Tile, places: Array) -> Tile:
        x, y = (
            tuple[Any, ...](Moving(places[side, at], size) for at, size in enumerate(shape))
            for side, shape in enumerate((tile.geometry.x_shape, tile.geometry.y_shape))
        )
        return Tile(tile.geometry, x, y, tile.whole and moved(tile.whole, places[2:]))

    def turn(so_far: Array, places: Array) -> tuple[Array, None]:
        return step(moved(tiles[0], places), so_far), None

    def starts(tile: Tile) -> list[list[int]]:
        here = [[i.start or 0 for i in index] for index in (tile.x, tile.y)]
        return here + starts(tile.whole) if tile.whole else here

    # A table, as JAX loses a counter of the loop where gradients of its own are differentiated in a scan.
    made, _ = lax.scan(turn, made, numpy.asarray([starts(tile) for tile in tiles], dtype="uint32"))
    return made


def _moves(i: object) -> TypeGuard[Moving]:
    return isinstance(i, Moving)


def _starts(index: Index) -> list[Array | int]:
    from jax import numpy

    return [i.start if _moves(i) else numpy.uint32(i.start or 0) for i in index]
