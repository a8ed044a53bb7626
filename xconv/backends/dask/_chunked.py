"""Every function over arrays that lie in chunks: a graph of tasks, each of which runs a smaller convolution.

The result is cut where the chunks of what it is made from are. Each of its chunks is a part of the geometry, as a tile
is, and says which part of the other array it reads: the chunk it lies in, and a halo from the chunks beside it. Nothing
is computed here; a task does on its worker what a call on the library of its chunks would do there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product

from dask._task_spec import TaskRef

from ..._axis import Axis, Run
from ..._geometry import Geometry
from ..._typing import Array, Index, Shape
from ...schedules import Schedule
from ._graph import Graph, Operand, edges_of, overlaps, unsplit, whole

#: A box of an array: its place in what is read, how the padding repeats it, and the box itself.
Read = tuple[Index, tuple[Run, ...], Index]

#: Partial sums of the filters' gradient that are added up in one task.
TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Chunked(Schedule):
    """By tasks: what Dask runs, when it is asked to."""

    #: ``run(geometry, dtype, function, *arrays)`` calls a function of the schedule of a smaller convolution.
    run: Callable[..., Array]
    #: What tells it from other convolutions, besides its geometry and dtypes.
    identity: tuple[object, ...]

    def forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        g = self.geometry
        x, others = unsplit(x, self._at(1)), self._whole(w, b)
        graph = self._graph("conv", x, *others)
        cuts = self._cuts(x, _outputs, g.out)
        for number, images, ranges in _blocks(cuts):
            geometry, reads = self._reading(images, ranges)
            run = partial(self.run, geometry, self.dtype, "forward")
            operands = [graph.operand(x, reads, channels_last=g.channels_last), *(graph.all_of(a) for a in others)]
            graph.block(g.in_layout((number[0], 0, *number[1:])), run, *operands)
        return graph.array(self._chunks(cuts, g.c_out), self.dtype, x)

    def input_grad(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        g = self.geometry
        dy, others = unsplit(dy, self._at(1)), self._whole(w, b)
        graph = self._graph("input-grad", dy, *others, conjugate)
        cuts = self._cuts(dy, _inputs, g.size)
        chunks = self._chunks(cuts, g.c_in)
        added = self._borders(graph, dy, others[0], cuts, chunks, conjugate=conjugate)
        for number, images, ranges in _blocks(cuts):
            tile = g.zero_padded().part("inputs", images, ranges)
            place = g.in_layout((number[0], 0, *number[1:]))
            # What is added to later is not rounded before.
            dtype = self.accumulator if place in added else self.dtype
            run = partial(self.run, tile.geometry, dtype, "input_grad", conjugate=conjugate)
            operands = [self._gathered(graph, dy, tile.y), *(graph.all_of(a) for a in others)]
            if place in added:
                graph.patched_block(place, self.dtype, graph.work("inner", run, *operands), added[place])
            else:
                graph.block(place, run, *operands)
        return graph.array(chunks, self.dtype, dy)

    def weight_grad(self, dy: Array, x: Array) -> Array:
        g = self.geometry
        dy, x = (unsplit(a, self._at(1)) for a in (dy, x))
        graph = self._graph("weight-grad", dy, x)
        sums = []
        # Cut by whichever lies in smaller chunks: what a task reads of either is no larger than these.
        pairs = zip(self._cuts(dy, _same, g.out), self._cuts(x, _outputs, g.out), strict=True)
        for _, images, ranges in _blocks([max(pair, key=len) for pair in pairs]):
            geometry, reads = self._reading(images, ranges)
            run = partial(self.run, geometry, self.accumulator, "weight_grad")
            here = self._gathered(graph, dy, (images, slice(0, g.c_out), *ranges))
            sums.append(graph.work("partial", run, here, graph.operand(x, reads, channels_last=g.channels_last)))
        while len(sums) > TOGETHER:
            groups = (sums[i : i + TOGETHER] for i in range(0, len(sums), TOGETHER))
            sums = [graph.total(self.accumulator, group) for group in groups]
        graph.total_block(len(g.w_shape) * (0,), self.dtype, sums)
        return graph.array(tuple((n,) for n in g.w_shape), self.dtype, dy)

    def im2col(self, x: Array, *, images_last: bool) -> Array:
        g = self.geometry
        x = unsplit(x, 1)
        graph = self._graph("im2col", x, images_last)
        cuts = self._cuts(x, _outputs, g.out)
        for number, images, ranges in _blocks(cuts):
            geometry, reads = self._reading(images, ranges)
            run = partial(self.run, geometry, self.dtype, "im2col", images_last=images_last)
            graph.block((number[0], *(0 for _ in range(1 + len(g.axes))), *number[1:]), run, graph.operand(x, reads))
        batch, *outs = (_sizes(cut) for cut in cuts)
        return graph.array((batch, (g.c_in,), *((k,) for k in g.kernel), *outs), self.dtype, x)

    def col2im(self, cols: Array) -> Array:
        g = self.geometry
        for at in range(1, 2 + len(g.axes)):
            cols = unsplit(cols, at)
        graph = self._graph("col2im", cols)
        cuts = self._cuts(cols, _inputs, g.size)
        for number, images, ranges in _blocks(cuts):
            tile = g.part("inputs", images, ranges)
            run = partial(self.run, tile.geometry, self.dtype, "col2im")
            box = (images, slice(0, g.c_in), *(slice(0, k) for k in g.kernel), *tile.y[2:])
            graph.block((number[0], 0, *number[1:]), run, graph.operand(cols, [_all(box)]))
        return graph.array(self._chunks(cuts, g.c_in), self.dtype, cols)

    def _borders(
        self,
        graph: Graph,
        dy: Array,
        w: Array,
        cuts: list[list[int]],
        chunks: tuple[Shape, ...],
        *,
        conjugate: bool,
    ) -> dict[Shape, list[tuple[Index, Index, TaskRef]]]:
        """The gradients of a padding that is not zeros, by the chunks that they are added to."""
        added: dict[Shape, list[tuple[Index, Index, TaskRef]]] = defaultdict(list)
        g = self.geometry
        if g.pad_mode == "constant":
            return added
        flat = g.extended()
        batch, *inner = cuts
        for zones in product(*(axis.zones() for axis in g.axes)):
            if all(zone == axis.kept[0] for zone, axis in zip(zones, g.axes, strict=True)):
                continue
            edges = [_within(zone, axis, cut) for zone, axis, cut in zip(zones, g.axes, inner, strict=True)]
            for _, images, ranges in _blocks([batch, *edges]):
                tile = flat.part("inputs", images, ranges)
                if tile.geometry.pixels == 0:
                    continue
                run = partial(self.run, tile.geometry, self.accumulator, "input_grad", conjugate=conjugate)
                strip = graph.work("border", run, self._gathered(graph, dy, tile.y), graph.all_of(w))
                for block, runs, source in g.reads(ranges):
                    part = graph.retracted(strip, block, runs, channels_last=g.channels_last)
                    box = g.in_layout((images, slice(0, g.c_in), *source))
                    for number, inside, place in overlaps(chunks, box):
                        added[number].append((inside, place, part))
        return added

    def _graph(self, label: str, *operands: object) -> Graph:
        return Graph(label, self.geometry, str(self.dtype), self.identity, *operands)

    def _at(self, axis: int) -> int:
        """Where a logical axis of an image is in the caller's layout."""
        rank = len(self.geometry.axes)
        return self.geometry.in_layout(tuple(range(2 + rank))).index(axis)

    def _whole(self, w: Array, b: Array | None) -> list[Array]:
        return [whole(a) for a in (w, b) if a is not None]

    def _cuts(self, a: Array, along: Callable[[Axis, int], int], lengths: Shape) -> list[list[int]]:
        """Where to cut the images and every axis of the result, given the chunks of `a`.

        `along` brings an edge of a chunk from the axis of `a` to that of the result, which is so long.
        """
        rank = len(self.geometry.axes)
        at = [self._at(2 + i) if a.ndim == 2 + rank else 2 + rank + i for i in range(rank)]
        batch, *spatial = (edges_of(a.chunks[i]) for i in (0, *at))
        places = [[along(axis, e) for e in edges] for axis, edges in zip(self.geometry.axes, spatial, strict=True)]
        return [
            [0, *sorted({edge for edge in edges if 0 < edge < length}), length]
            for edges, length in zip([batch, *places], (self.geometry.batch, *lengths), strict=True)
        ]

    def _chunks(self, cuts: list[list[int]], channels: int) -> tuple[Shape, ...]:
        batch, *spatial = (_sizes(cut) for cut in cuts)
        return self.geometry.in_layout((batch, (channels,), *spatial))

    def _reading(self, images: slice, ranges: tuple[slice, ...]) -> tuple[Geometry, list[Read]]:
        """The smaller convolution that makes some outputs, and what it reads of the input."""
        g = self.geometry
        channels = slice(0, g.c_in)
        if g.pad_mode == "constant":
            tile = g.part("outputs", images, ranges)
            return tile.geometry, [_all(g.in_layout((images, channels, *tile.x[2:])))]
        tile = g.extended().part("outputs", images, ranges)
        count = slice(0, images.stop - images.start)
        return tile.geometry, [
            ((count, channels, *block[1:]), runs, g.in_layout((images, channels, *source)))
            for block, runs, source in g.reads(tile.x[2:])
        ]

    def _gathered(self, graph: Graph, dy: Array, index: Index) -> Operand:
        """A part of the result's gradient."""
        box = (index[0], slice(0, self.geometry.c_out), *index[2:])
        return graph.operand(dy, [_all(self.geometry.in_layout(box))])


def _all(box: Index) -> Read:
    """A box that is all there is to read."""
    return (), (), box


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


def _sizes(edges: Sequence[int]) -> Shape:
    return tuple(stop - start for start, stop in pairwise(edges))


def _blocks(cuts: list[list[int]]) -> Iterator[tuple[Shape, slice, tuple[slice, ...]]]:
    """The parts between the cuts: the number of each, its images, and its range on every axis."""
    for found in product(*(list(enumerate(slice(a, b) for a, b in pairwise(cut))) for cut in cuts)):
        number, (images, *ranges) = zip(*found, strict=True)
        yield number, images, tuple(ranges)
