"""Graphs of tasks that make the chunks of an array from those of others, and what these tasks do."""

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from itertools import accumulate, chain, pairwise, product, starmap
from typing import Any, NamedTuple, ParamSpec, TypeAlias

import array_api_compat
import dask.array
from dask._task_spec import Task, TaskRef
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ..._axis import Run
from ..._typing import Array, DType, Index, Shape
from ...primitives import joined
from ...primitives._windows import follow, retract

P = ParamSpec("P")


def uncollected(make: Callable[P, Array]) -> Callable[P, Array]:
    """`make` without collections of garbage: a graph has none, and each would look at all its tasks once more."""

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Array:
        restore = gc.enable if gc.isenabled() else gc.disable
        gc.disable()
        try:
            return make(*args, **kwargs)
        finally:
            restore()

    return made


def whole(a: Array) -> Array:
    """`a` as a Dask array of one chunk."""
    if array_api_compat.is_dask_array(a):
        return a.rechunk(-1)
    return dask.array.from_array(a, chunks=-1, asarray=False)


def unsplit(a: Array, axis: int) -> Array:
    """`a` as a Dask array with one chunk along an axis."""
    return a.rechunk({axis: -1}) if array_api_compat.is_dask_array(a) else whole(a)


#: Where something is added to a chunk, what of it, and what made it.
Addition: TypeAlias = tuple[Index, Index, TaskRef]


class Source(NamedTuple):
    """A part of an operand: its place, how the padding repeats it, and the pieces of chunks that it is made of.

    A piece has its place among the others, and an index of its chunk unless it is all of that.
    """

    place: Index
    runs: tuple[Run, ...]
    pieces: tuple[tuple[Index, Index | None], ...]


#: How to make an operand of its sources; without any, it is the result of the one task that it is made of.
Recipe: TypeAlias = tuple[Source, ...]


class Operand(NamedTuple):
    """An operand of a task: the tasks whose results it is made of, and how."""

    tasks: list[TaskRef]
    recipe: Recipe = ()


#: What a run reads along one axis. Of every piece: where it begins and ends in the run and in its chunk, whether it is
#: all of the chunk, and whether no other chunk holds more.
Way: TypeAlias = tuple[tuple[Run, tuple[tuple[int, int, int, int, bool, bool], ...]], ...]


class Graph:
    """Tasks that make the chunks of a new array from those of others."""

    def __init__(self, label: str, *identity: object) -> None:
        """The token of its name tells it from every graph with another identity."""
        self.label, self.token = f"xconv-{label}", tokenize(label, *identity)
        self.tasks: dict[Any, Task] = {}
        self.arrays: dict[str, Array] = {}

    @property
    def name(self) -> str:
        return f"{self.label}-{self.token}"

    def block(self, number: Shape, run: Callable[..., Array], *operands: Operand) -> None:
        """A chunk of the new array: ``run(*operands)``."""
        self._computed((self.name, *number), run, operands)

    def blocks(
        self, chunks: tuple[Shape, ...], runs: Iterator[Callable[..., Array]], *operands: Iterator[Operand]
    ) -> None:
        """All chunks of the new array, in order."""
        for number, run, *given in zip(numbers(chunks), runs, *operands, strict=False):
            self.block(number, run, *given)

    def work(self, kind: str, run: Callable[..., Array], *operands: Operand) -> TaskRef:
        """What is needed on the way: ``run(*operands)``."""
        return self._computed(self._key(kind), run, operands)

    def total(self, dtype: DType, terms: list[TaskRef]) -> TaskRef:
        """Their sum, on the way to a larger one."""
        return self._task(self._key("sum"), _total, dtype, *terms)

    def total_block(self, number: Shape, dtype: DType, terms: list[TaskRef]) -> None:
        """Their sum, as a chunk of the new array."""
        self._task((self.name, *number), _total, dtype, *terms)

    def patched_block(self, number: Shape, dtype: DType, first: TaskRef, added: list[Addition]) -> None:
        """A chunk of the new array: `first`, to which parts of others are added, each at its place."""
        places = tuple((place, index) for place, index, _ in added)
        self._task((self.name, *number), _patched, dtype, places, first, *(task for _, _, task in added))

    def retracted(self, strip: TaskRef, block: Index, runs: tuple[Run, ...], *, channels_last: bool) -> TaskRef:
        """The adjoint of reading a block of a strip by these runs."""
        return self._task(self._key("retract"), _retracted, (..., *block), runs, channels_last, strip)

    def array(self, chunks: tuple[Shape, ...], dtype: DType, like: Array) -> Array:
        """The new array, of the array library of `like`'s chunks."""
        layer = HighLevelGraph.from_collections(self.name, self.tasks, dependencies=list(self.arrays.values()))
        meta = meta_from_array(like, ndim=len(chunks), dtype=dtype)
        return dask.array.Array(layer, self.name, chunks, meta=meta)

    # operands

    def all_of(self, a: Array) -> Operand:
        """An array of one chunk."""
        self.arrays[a.name] = a
        return Operand([TaskRef((a.name, *(a.ndim * (0,))))])

    def operands(self, a: Array, lines: tuple[list[list[Run]], ...]) -> Iterator[Operand]:
        """For every combination of the runs that are to be read along each axis of an array, what they read.

        The chunk that holds most of it is read as it is, as the work will be done where that is. Of all others only
        what is needed travels, made by a task of its own, once for all who ask for the same. It is of the same name in
        every graph, so that a forward pass and a gradient share it.
        """
        self.arrays[a.name] = a
        part, chunk, recipe = f"xconv-part-{a.name}", cache(lambda *number: TaskRef((a.name, *number))), cache(_recipe)
        for found in product(*map(_ways, a.chunks, lines)):
            sources, ways = zip(*found, strict=True)
            made, cuts = recipe(*ways)
            tasks = []
            for number, cut in zip(chain.from_iterable(starmap(product, product(*sources))), cuts, strict=True):
                if cut is None:
                    tasks.append(chunk(*number))
                    continue
                key = (part, *number, *cut[1])
                known = key in self.tasks
                tasks.append(TaskRef(key) if known else self._task(key, _part, cut[0], chunk(*number)))
            yield Operand(tasks, made)

    # tasks

    def _key(self, kind: str) -> tuple[Any, ...]:
        return (f"{self.label}-{kind}-{self.token}", len(self.tasks))

    def _task(self, key: tuple[Any, ...], function: Callable[..., Array], *arguments: object) -> TaskRef:
        self.tasks[key] = Task(key, function, *arguments)
        return TaskRef(key)

    def _computed(self, key: tuple[Any, ...], run: Callable[..., Array], operands: tuple[Operand, ...]) -> TaskRef:
        tasks = [task for operand in operands for task in operand.tasks]
        recipes = tuple(operand.recipe for operand in operands)
        return self._task(key, _computed, run, recipes, *tasks)


def numbers(chunks: tuple[Shape, ...]) -> Iterator[Shape]:
    """The numbers of all chunks, in order."""
    return product(*(range(len(sizes)) for sizes in chunks))


def edges_of(sizes: Shape) -> list[int]:
    return [0, *accumulate(map(int, sizes))]


def overlaps(edges: list[int], wanted: slice) -> list[tuple[int, slice, slice]]:
    """The chunks between these edges that share something with a range: what of each, and its place in the range."""
    found: list[tuple[int, slice, slice]] = []
    i = max(0, min(bisect_right(edges, wanted.start) - 1, len(edges) - 2))
    while i < len(edges) - 1 and (edges[i] < wanted.stop or not found):
        low, begin, end = edges[i], max(edges[i], wanted.start), min(edges[i + 1], wanted.stop)
        if begin < end or wanted.start == wanted.stop:
            found.append((i, slice(begin - low, end - low), slice(begin - wanted.start, end - wanted.start)))
        i += 1
    return found


def placed(runs: Iterable[Run]) -> list[slice]:
    """Where runs lie, one behind the other."""
    return [slice(*ends) for ends in pairwise(accumulate((run.repeats * run.period for run in runs), initial=0))]


def _ways(sizes: Shape, line: list[list[Run]]) -> list[tuple[tuple[Shape, ...], Way]]:
    """How to read runs along an axis, of an array with chunks of these sizes; apart from the numbers of the chunks."""
    edges = edges_of(sizes)
    ways = []
    for runs in line:
        found = [overlaps(edges, run.source) for run in runs]
        home = max((s.stop - s.start, i) for pieces in found for i, s, _ in pieces)[1]
        pieces = (
            tuple((at.start, at.stop, s.start, s.stop, s.stop - s.start == sizes[i], i == home) for i, s, at in some)
            for some in found
        )
        way = tuple(zip((Run(0, *run[1:]) for run in runs), pieces, strict=True))
        ways.append((tuple(tuple(i for i, *_ in some) for some in found), way))
    return ways


def _recipe(*ways: Way) -> tuple[Recipe, list[tuple[Index, Shape] | None]]:
    """How to make an operand that is read so along its axes, and what is cut out of chunks for it, piece by piece."""
    sources: list[Source] = []
    cuts: list[tuple[Index, Shape] | None] = []
    places = product(*(placed([run for run, _ in way]) for way in ways))
    for place, source in zip(places, product(*ways), strict=True):
        runs, pieces = zip(*source, strict=True)
        made: list[tuple[Index, Index | None]] = []
        for piece in product(*pieces):
            at = tuple(slice(*ends[:2]) for ends in piece)
            inside = tuple(slice(*ends[2:4]) for ends in piece)
            all_of_it, home = (all(ends[i] for ends in piece) for i in (4, 5))
            cuts.append(None if all_of_it or home else (inside, sum((ends[2:4] for ends in piece), ())))
            made.append((at, inside if home and not all_of_it else None))
        sources.append(Source(place, runs, tuple(made)))
    plain = len(cuts) == 1 and made[0][1] is None and all(run.is_plain for run in runs)
    return () if plain else tuple(sources), cuts


# what tasks do, on the arrays of the chunks' library


def _part(index: Index, chunk: Array) -> Array:
    return chunk[index].copy()  # so that the chunk can go while its part is still needed


def _computed(run: Callable[..., Array], recipes: tuple[Recipe, ...], *results: Array) -> Array:
    left = iter(results)
    return run(*(_assembled(recipe, left) for recipe in recipes))


def _assembled(recipe: Recipe, results: Iterator[Array]) -> Array:
    if not recipe:
        return next(results)
    parts = []
    for place, runs, pieces in recipe:
        here = [(at, next(results)[... if index is None else index]) for at, index in pieces]
        xp = array_api_compat.array_namespace(here[0][1])
        a = joined(xp, here)
        for at, run in enumerate(runs):
            a = follow(xp, a, run, at)
        parts.append((place, a))
    return joined(xp, parts)


def taken_of(run: Callable[..., Array], index: Index, *operands: Array) -> Array:
    """A part of what a task makes."""
    made = run(*operands)
    part = made[index]
    return part if part.shape == made.shape else part.copy()  # so that the rest can go


def _retracted(block: Index, runs: tuple[Run, ...], channels_last: bool, strip: Array) -> Array:  # noqa: FBT001
    xp = array_api_compat.array_namespace(strip)
    strip = xp.moveaxis(strip, -1, 1) if channels_last else strip
    found = retract(xp, strip[block], runs)
    return xp.moveaxis(found, 1, -1) if channels_last else found


def _total(dtype: DType, first: Array, *others: Array) -> Array:
    for other in others:
        first = first + other
    return first.astype(dtype, copy=False)


def _patched(dtype: DType, places: tuple[tuple[Index, Index], ...], first: Array, *others: Array) -> Array:
    made = first.copy()
    for (place, index), other in zip(places, others, strict=True):
        made[place] += other[index]
    return made.astype(dtype, copy=False)
