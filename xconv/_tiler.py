"""The tiler: where to cut a convolution, for a bound on memory and for threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ._axis import Axis
from ._geometry import Geometry, Side, Tile
from ._typing import Index, Shape

#: A tile is at least so many times as long as what it shares with the next one: at most a third is read twice.
HALOS = 3


def tiles(
    g: Geometry, over: Side, budget: float, cost: Callable[[Geometry], float], grain: Shape | None = None
) -> "Tiling":
    """Cut a convolution into parts whose `cost` is within `budget`, or into single elements where none is.

    Images are cut first, then the axes in order, unless windows have another one, so that a tile is long in memory;
    but no axis is cut shorter than `HALOS` times what neighbours share until every axis is as short as that. With a
    `grain`, an axis is cut at multiples of it, unless that leaves a part that is too large. All parts of one axis
    but the last are equally long, and their order is fixed.
    """
    lengths = (g.batch, *(g.out if over == "outputs" else g.size))
    whole = Tiling(g, over, lengths, (1, *(grain or (1 for _ in g.axes))), (1,) * len(lengths))
    grains, steps = whole.grains, list(whole.in_grains)
    halos = [0, *(axis.extent - 1 for axis in g.axes)]
    for shortest in ([max(1, HALOS * halo) for halo in halos], [1] * len(halos)):
        floors = [-(-short // each) for short, each in zip(shortest, grains, strict=True)]
        for i in (max(0, axis - 1) for axis in g.images_order if axis != 1):

            def taken(step: int, i: int = i) -> float:
                tried = zip(lengths, [*steps[:i], step, *steps[i + 1 :]], grains, strict=True)
                return cost(g.largest(over, [min(length, n * each) for length, n, each in tried]))

            if steps[i] > floors[i] and (most := taken(steps[i])) > budget:
                steps[i] = _longest(taken, budget, floors[i], (steps[i], most))
    counts = tuple(-(-n // step) if n else 1 for n, step in zip(whole.in_grains, steps, strict=True))
    made = replace(whole, counts=counts)
    return tiles(g, over, budget, cost) if grain and cost(made.largest) > budget else made


def borders(g: Geometry, budget: float, cost: Callable[[Geometry], float]) -> Iterator["Border"]:
    """The parts of a padding that is not zeros and that windows see, made one by one.

    With their gradients added where they were read, the gradient under zero padding becomes the adjoint of the
    padded convolution.
    """
    flat = g.extended()
    inside = tuple(axis.kept[0] for axis in g.axes)
    for ranges in _boxes(g.axes):
        if ranges != inside:
            strip = flat.part("inputs", slice(0, g.batch), ranges)
            yield Border(strip, tiles(strip.geometry, "inputs", budget, cost))


@dataclass(frozen=True, slots=True)
class Tiling(Sequence[Tile]):
    """The tiles of a geometry, made one by one: a large image in a small workspace has too many to keep."""

    geometry: Geometry
    over: Side
    lengths: Shape
    grains: Shape
    counts: Shape

    def __len__(self) -> int:
        return math.prod(self.counts)

    @property
    def in_grains(self) -> Shape:
        """The lengths, counted in grains."""
        return tuple(-(-length // grain) for length, grain in zip(self.lengths, self.grains, strict=True))

    @property
    def steps(self) -> Shape:
        """The lengths of the parts, the last one on every axis excepted."""
        axes = zip(self.lengths, self.in_grains, self.grains, self.counts, strict=True)
        return tuple(min(length, -(-n // count) * grain) for length, n, grain, count in axes)

    def __getitem__(self, number: int) -> Tile:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        ranges: list[slice] = []
        axes = zip(self.lengths, self.steps, self.counts, strict=True)
        for length, step, count in reversed(tuple(axes)):
            number, i = divmod(number, count)
            ranges.insert(0, slice(i * step, min((i + 1) * step, length)))
        return self.geometry.part(self.over, ranges[0], tuple(ranges[1:]))

    @property
    def weight(self) -> float:
        """How many times as much as the largest tile all of them are, by what they cut."""
        axes = zip(self.lengths, self.steps, strict=True)
        return math.prod(length / step if length else 1 for length, step in axes)

    @property
    def largest(self) -> Geometry:
        """A geometry that takes at least as much memory as any of the tiles."""
        return self.geometry.largest(self.over, self.steps)


class Border(NamedTuple):
    """A part of the padding, with the convolution from it, and that convolution in tiles."""

    strip: Tile
    tiles: Tiling

    def parts(self) -> Iterator[Tile]:
        """The tiles, with their places in the padded input and in the output."""
        for tile in self.tiles:
            yield Tile(tile.geometry, _within(self.strip.x, tile.x), _within(self.strip.y, tile.y))


def _longest(taken: Callable[[int], float], budget: float, low: int, above: tuple[int, float]) -> int:
    """The longest step from `low` on, and below that of `above`, that takes what is there; `low` if none does.

    What steps take is nearly a line. So every other trial is where that meets the budget, or next to where it did.
    """
    (high, most), least, halved = above, taken(low), True
    while high - low > 1 and least <= budget:
        halved = not halved
        share = 0.5 if halved else (budget - least) / (most - least)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        found = taken(middle)
        low, least, high, most = (middle, found, high, most) if found <= budget else (low, least, middle, found)
    return low


def _boxes(axes: tuple[Axis, ...]) -> Iterator[tuple[slice, ...]]:
    """Every zone of one axis with every zone of the others; unlike ``itertools.product``, it keeps none of them."""
    if not axes:
        yield ()
        return
    for zone in axes[0].zones():
        for others in _boxes(axes[1:]):
            yield (zone, *others)


def _within(outer: Index, inner: Index) -> Index:
    """The index `inner` of the part that `outer` selects, as an index of the whole."""
    return tuple(
        i if o.start is None else slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True)
    )
