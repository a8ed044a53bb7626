"""Every function over arrays that lie in chunks: a graph of tasks, each of which runs a smaller convolution.

The result is cut where the chunks of what it is made from are. Each of its chunks is a part of the geometry, as a tile
is, and says which part of the other array it reads: the chunk it lies in, and a halo from the chunks beside it. This is
found axis by axis, and put together for every chunk. Nothing is computed here; a task does on its worker what a call on
the library of its chunks would do there.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise, product, repeat, starmap
from typing import NamedTuple

from ..._axis import Axis, Run
from ..._geometry import Geometry, Side
from ..._typing import Array, DType, Function, Shape
from ...primitives import own
from ...schedules import Schedule
from ._graph import Addition, Graph, Operand, edges_of, numbers, overlaps, placed, taken_of, uncollected, unsplit, whole

#: Partial sums of the filters' gradient that are added up in one task.
TOGETHER = 8


class Parts(NamedTuple):
    """The parts of every axis, which are axes again, and what each reads of the input and of the result.

    The images are the first axis, under a window of one tap.
    """

    axes: list[list[Axis]]
    x: list[list[list[Run]]]
    y: list[list[list[Run]]]
    #: Where the part lies in what is made, where windows are cut.
    own: list[list[slice]]


@dataclass(frozen=True, eq=False)
class Chunked(Schedule):
    """By tasks: what Dask runs, when it is asked to."""

    #: ``compute(geometry, dtype, function, *arrays)`` calls a function of the schedule of a smaller convolution.
    compute: Callable[..., Array]
    #: What tells it from other convolutions, besides its geometry and dtypes.
    identity: tuple[object, ...]

    @uncollected
    def run(self, function: Function, *arrays: Array | None, **options: bool) -> Array:
        made: Array = getattr(self, function)(*arrays, **options)
        return made

    def forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        g = self.geometry
        x, others = unsplit(x, self._at(1)), self._whole(w, b)
        graph = self._graph(g, "conv", x, *others)
        cuts = self._cuts(x, _outputs, g.out)
        chunks, parts = self._chunks(cuts, g.c_out), self._reading(cuts)
        weights = (repeat(graph.all_of(a)) for a in others)
        runs = self._runs(self._read, parts, self.dtype, "forward")
        graph.blocks(chunks, runs, self._operands(graph, x, parts.x, g.c_in), *weights)
        return graph.array(chunks, self.dtype, x)

    def input_grad(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        g = self.geometry.linear()
        dy, others = unsplit(dy, self._at(1)), self._whole(w, b)
        graph = self._graph(g, "input-grad", dy, *others, conjugate)
        cuts = self._cuts(dy, _inputs, g.size)
        chunks, parts = self._chunks(cuts, g.c_in), self._parts("inputs", cuts)
        weights = [graph.all_of(a) for a in others]
        added: dict[Shape, list[Addition]] = {}
        if g.pad_mode != "constant" and math.prod(dy.numblocks[1:]) == 1 and all(len(cut) == 2 for cut in cuts[1:]):
            # Images in one piece are padded by the task.
            axes, y = ([axis] for axis in g.axes), ([_all(slice(0, axis.out))] for axis in g.axes)
            parts = Parts([parts.axes[0], *axes], parts.x, [parts.y[0], *y], parts.own)
        elif g.pad_mode != "constant":
            g = g.zero_padded()
            added = self._borders(graph, dy, weights[0], cuts, chunks, conjugate=conjugate)
        rounded, exact = (
            self._runs(g, parts, dtype, "input_grad", conjugate=conjugate) for dtype in (self.dtype, self.accumulator)
        )
        given = zip(numbers(chunks), rounded, exact, self._operands(graph, dy, parts.y, g.c_out), strict=True)
        for number, run, first, here in given:
            if number in added:  # what is added to later is not rounded before
                graph.patched_block(number, self.dtype, graph.work("inner", first, here, *weights), added[number])
            else:
                graph.block(number, run, here, *weights)
        return graph.array(chunks, self.dtype, dy)

    def weight_grad(self, dy: Array, x: Array) -> Array:
        g = self.geometry
        dy, x = (unsplit(a, self._at(1)) for a in (dy, x))
        graph = self._graph(g, "weight-grad", dy, x)
        # Cut by whichever lies in smaller chunks: what a task reads of either is no larger than these.
        pairs = zip(self._cuts(dy, _same, g.out), self._cuts(x, _outputs, g.out), strict=True)
        parts = self._reading([max(pair, key=len) for pair in pairs])
        runs = self._runs(self._read, parts, self.accumulator, "weight_grad")
        operands = self._operands(graph, dy, parts.y, g.c_out), self._operands(graph, x, parts.x, g.c_in)
        sums = [graph.work("partial", *given) for given in zip(runs, *operands, strict=True)]
        while len(sums) > TOGETHER:
            groups = (sums[i : i + TOGETHER] for i in range(0, len(sums), TOGETHER))
            sums = [graph.total(self.accumulator, group) for group in groups]
        graph.total_block(len(g.w_shape) * (0,), self.dtype, sums)
        return self.in_w_layout(graph.array(tuple((n,) for n in g.w_shape), self.dtype, dy))

    def im2col(self, x: Array) -> Array:
        g = self.geometry
        x = unsplit(x, 1)
        graph = self._graph(g, "im2col", x)
        cuts = self._cuts(x, _outputs, g.out)
        batch, *outs = (_sizes(cut) for cut in cuts)
        chunks, parts = (batch, (g.c_in,), *((k,) for k in g.kernel), *outs), self._reading(cuts)
        runs = self._runs(self._read, parts, self.dtype, "im2col")
        graph.blocks(chunks, runs, self._operands(graph, x, parts.x, g.c_in))
        return graph.array(chunks, self.dtype, x)

    def col2im(self, cols: Array) -> Array:
        g = self.geometry
        for at in range(1, 2 + len(g.axes)):
            cols = unsplit(cols, at)
        graph = self._graph(g, "col2im", cols)
        cuts = self._cuts(cols, _inputs, g.size)
        chunks, parts = self._chunks(cuts, g.c_in), self._parts("inputs", cuts)
        windows = self._operands(graph, cols, parts.y, g.c_in, *g.kernel)
        graph.blocks(chunks, self._runs(g, parts, self.dtype, "col2im"), windows)
        return graph.array(chunks, self.dtype, cols)

    def max_pool(self, x: Array) -> Array:
        return self._pooled("max_pool", x)

    def avg_pool(self, x: Array, *, count_include_pad: bool) -> Array:
        return self._pooled("avg_pool", x, count_include_pad=count_include_pad)

    def max_pool_grad(self, dy: Array, x: Array) -> Array:
        return self._unpooled("max_pool_grad", dy, x)

    def avg_pool_grad(self, dy: Array, *, count_include_pad: bool) -> Array:
        return self._unpooled("avg_pool_grad", dy, count_include_pad=count_include_pad)

    def _pooled(self, function: Function, x: Array, **options: bool) -> Array:
        g = self.geometry
        x = unsplit(x, self._at(1))
        graph = self._graph(g, function, x, options)
        cuts = self._cuts(x, _outputs, g.out)
        chunks, parts = self._chunks(cuts, g.c_out), self._reading(cuts)
        runs = self._runs(g, parts, self.dtype, function, **options)
        graph.blocks(chunks, runs, self._operands(graph, x, parts.x, g.c_in))
        return graph.array(chunks, self.dtype, x)

    def _unpooled(self, function: Function, *arrays: Array, **options: bool) -> Array:
        """The gradient for all that the windows read which see a chunk; of that, the chunk is taken."""
        g = self.geometry
        dy, *others = (unsplit(a, self._at(1)) for a in arrays)
        graph = self._graph(g, function, dy, *others, options)
        cuts = self._cuts(dy, _inputs, g.size)
        chunks, parts = self._chunks(cuts, g.c_in), self._parts("windows", cuts)
        runs = self._runs(g, parts, self.dtype, function, **options)
        places = map(g.in_layout, ((i, slice(None), *at) for i, *at in product(*parts.own)))
        taken = starmap(partial, zip(repeat(taken_of), runs, places, strict=False))
        operands = (self._operands(graph, a, parts.x, g.c_in) for a in others)
        graph.blocks(chunks, taken, self._operands(graph, dy, parts.y, g.c_out), *operands)
        return graph.array(chunks, self.dtype, dy)

    def _borders(
        self,
        graph: Graph,
        dy: Array,
        w: Operand,
        cuts: list[list[int]],
        chunks: tuple[Shape, ...],
        *,
        conjugate: bool,
    ) -> dict[Shape, list[Addition]]:
        """The gradients of a padding that is not zeros, by the chunks that they are added to."""
        added: dict[Shape, list[Addition]] = defaultdict(list)
        g = self.geometry
        ends = [edges_of(sizes) for sizes in chunks]
        for zones in product(*(axis.zones() for axis in g.axes)):
            if all(zone == axis.kept[0] for zone, axis in zip(zones, g.axes, strict=True)):
                continue
            edges = [_within(zone, axis, cut) for zone, axis, cut in zip(zones, g.axes, cuts[1:], strict=True)]
            parts = self._parts("inputs", [cuts[0], *edges], written_out=True)
            runs = self._runs(g.zero_padded(), parts, self.accumulator, "input_grad", conjugate=conjugate)
            strips = zip(runs, self._operands(graph, dy, parts.y, g.c_out), product(*parts.x), strict=True)
            for run, here, ((images,), *reads) in strips:
                strip = graph.work("border", run, here, w)
                for place, read in zip(product(*map(placed, reads)), product(*reads), strict=True):
                    part = graph.retracted(strip, place, read, channels_last=g.channels_last)
                    box = g.in_layout((images.source, slice(0, g.c_in), *(run.source for run in read)))
                    for pieces in product(*map(overlaps, ends, box)):
                        number, inside, at = zip(*pieces, strict=True)
                        added[number].append((inside, at, part))
        return added

    def _graph(self, g: Geometry, label: str, *operands: object) -> Graph:
        return Graph(label, g, str(self.dtype), self.identity, *operands)

    def _at(self, axis: int) -> int:
        """Where a logical axis of an image is in the caller's layout."""
        rank = len(self.geometry.axes)
        return self.geometry.in_layout(tuple(range(2 + rank))).index(axis)

    def _whole(self, w: Array, b: Array | None) -> list[Array]:
        return [self.filters(whole(w)), *([] if b is None else [whole(b)])]

    def _cuts(self, a: Array, along: Callable[[Axis, int], int], lengths: Shape) -> list[list[int]]:
        """Where to cut the images and every axis of the result, given the chunks of `a`.

        `along` brings an edge between chunks from the axis of `a` to that of the result, which is so long. The ends
        stay ends: what the padding adds belongs to the chunk beside it.
        """
        rank = len(self.geometry.axes)
        at = [self._at(2 + i) if a.ndim == 2 + rank else 2 + rank + i for i in range(rank)]
        batch, *spatial = (_between(a.chunks[i]) for i in (0, *at))
        places = [
            [along(axis, edge) for edge in edges] for axis, edges in zip(self.geometry.axes, spatial, strict=True)
        ]
        return [
            [0, *sorted({edge for edge in edges if 0 < edge < length}), length]
            for edges, length in zip([batch, *places], (self.geometry.batch, *lengths), strict=True)
        ]

    def _chunks(self, cuts: list[list[int]], channels: int) -> tuple[Shape, ...]:
        batch, *spatial = (_sizes(cut) for cut in cuts)
        return self.geometry.in_layout((batch, (channels,), *spatial))

    def _parts(self, over: Side, cuts: list[list[int]], *, written_out: bool = False) -> Parts:
        """What lies between the cuts, axis by axis; with the padding as zeros, or `written_out` and read as input."""
        g = self.geometry
        parts = Parts([], [], [], [])
        for axis, cut in zip((Axis(g.batch, 1), *g.axes), cuts, strict=True):
            line = g.along((axis,)).zero_padded()
            line = line.extended() if written_out else line
            tiles = [line.part(over, slice(0, 1), (slice(*ends),)) for ends in pairwise(cut)]
            if written_out and over == "inputs":
                tiles = [tile for tile in tiles if tile.geometry.pixels]
            read = partial(axis.runs, g.pad_mode) if written_out and axis.is_padded else _all
            if over == "windows":
                parts.own.append([own(tile.geometry, tile.whole.geometry)[2] for tile in tiles])
                tiles = [tile.whole for tile in tiles]
            parts.axes.append([tile.geometry.axes[0] for tile in tiles])
            parts.x.append([list(read(tile.x[2])) for tile in tiles])
            parts.y.append([_all(tile.y[2]) for tile in tiles])
        return parts

    def _reading(self, cuts: list[list[int]]) -> Parts:
        """The parts that make some outputs."""
        return self._parts("outputs", cuts, written_out=self.geometry.pad_mode != "constant")

    @property
    def _read(self) -> Geometry:
        """The convolution of what tasks read: what the padding reads of the array is among that."""
        return replace(self.geometry, pad_mode="constant")

    def _runs(
        self, g: Geometry, parts: Parts, dtype: DType, function: Function, **options: bool
    ) -> Iterator[Callable[..., Array]]:
        """A function of the smaller convolutions, in order; the same one of equal ones."""

        @cache
        def run(images: Axis, *axes: Axis) -> Callable[..., Array]:
            return partial(self.compute, g.along(axes, images.size), dtype, function, **options)

        return starmap(run, product(*parts.axes))

    def _operands(self, graph: Graph, a: Array, reads: list[list[list[Run]]], *inner: int) -> Iterator[Operand]:
        """What the parts read of an array, in order; of its axes with these lengths, everything."""
        images, *spatial = reads
        channels = ([_all(slice(0, n))] for n in inner)
        return graph.operands(a, self.geometry.in_layout((images, *channels, *spatial)))


def _all(ends: slice) -> list[Run]:
    """A range that is read as it is."""
    return [Run(ends.start, ends.stop - ends.start, 1)]


def _same(_: Axis, edge: int) -> int:
    return edge


def _outputs(axis: Axis, edge: int) -> int:
    """The first output whose window has its middle behind an edge of the input."""
    return -(-(edge + axis.lo - (axis.extent - 1) // 2) // axis.stride)


def _inputs(axis: Axis, edge: int) -> int:
    """The middle of the window of the first output behind an edge; its beginning, where windows do not overlap."""
    return edge * axis.stride - axis.lo + ((axis.extent - 1) // 2 if axis.extent > axis.stride else 0)


def _within(zone: slice, axis: Axis, edges: list[int]) -> list[int]:
    """Where to cut a zone of the padded axis: where the axis is cut, and nowhere in what is before or behind it."""
    inner = {edge + axis.lo for edge in edges if zone == axis.kept[0] and zone.start < edge + axis.lo < zone.stop}
    return [zone.start, *sorted(inner), zone.stop]


def _between(sizes: Shape) -> list[int]:
    """The edges between chunks that have elements."""
    edges = edges_of(sizes)
    return [edge for edge in edges if 0 < edge < edges[-1]]


def _sizes(edges: Sequence[int]) -> Shape:
    return tuple(stop - start for start, stop in pairwise(edges))
