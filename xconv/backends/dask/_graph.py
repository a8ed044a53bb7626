"""Graphs of tasks that make the chunks of an array from those of others, and what these tasks do."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, islice, product
from typing import Any, NamedTuple

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


def whole(a: Array) -> Array:
    """`a` as a Dask array of one chunk."""
    if array_api_compat.is_dask_array(a):
        return a.rechunk(-1)
    return dask.array.from_array(a, chunks=-1, asarray=False)


def unsplit(a: Array, axis: int) -> Array:
    """`a` as a Dask array with one chunk along an axis."""
    return a.rechunk({axis: -1}) if array_api_compat.is_dask_array(a) else whole(a)


class Source(NamedTuple):
    """A part of an operand: its place, how the padding repeats it, and the pieces of chunks that it is made of.

    The place is in the order (n, channels, *spatial), as the runs are; a piece has its place among the others, and an
    index of its chunk unless it is all of that.
    """

    place: Index
    runs: tuple[Run, ...]
    pieces: tuple[tuple[Index, Index | None], ...]


class Recipe(NamedTuple):
    """How to make an operand of its sources; without any, it is the result of the one task that it is made of."""

    sources: tuple[Source, ...] = ()
    channels_last: bool = False


class Operand(NamedTuple):
    """An operand of a task: the tasks whose results it is made of, and how."""

    tasks: tuple[TaskRef, ...]
    recipe: Recipe = Recipe()


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

    def work(self, kind: str, run: Callable[..., Array], *operands: Operand) -> TaskRef:
        """What is needed on the way: ``run(*operands)``."""
        return self._computed(self._key(kind), run, operands)

    def total(self, dtype: DType, terms: list[TaskRef]) -> TaskRef:
        """Their sum, on the way to a larger one."""
        return self._task(self._key("sum"), _total, dtype, *terms)

    def total_block(self, number: Shape, dtype: DType, terms: list[TaskRef]) -> None:
        """Their sum, as a chunk of the new array."""
        self._task((self.name, *number), _total, dtype, *terms)

    def patched_block(
        self, number: Shape, dtype: DType, first: TaskRef, added: list[tuple[Index, Index, TaskRef]]
    ) -> None:
        """A chunk of the new array: `first`, to which parts of others are added, each at its place."""
        places = tuple((place, index) for place, index, _ in added)
        self._task((self.name, *number), _patched, dtype, places, first, *(task for _, _, task in added))

    def retracted(self, strip: TaskRef, block: Index, runs: tuple[Run, ...], *, channels_last: bool) -> TaskRef:
        """The adjoint of reading a block of a strip by these runs."""
        return self._task(self._key("retract"), _retracted, block, runs, channels_last, strip)

    def array(self, chunks: tuple[Shape, ...], dtype: DType, like: Array) -> Array:
        """The new array, of the array library of `like`'s chunks."""
        layer = HighLevelGraph.from_collections(self.name, self.tasks, dependencies=list(self.arrays.values()))
        meta = meta_from_array(like, ndim=len(chunks), dtype=dtype)
        return dask.array.Array(layer, self.name, chunks, meta=meta)

    # operands

    def all_of(self, a: Array) -> Operand:
        """An array of one chunk."""
        return Operand((self._chunk(a, a.ndim * (0,)),))

    def operand(
        self, a: Array, reads: Iterable[tuple[Index, tuple[Run, ...], Index]], *, channels_last: bool = False
    ) -> Operand:
        """Boxes of an array, each with its place and how the padding repeats it.

        The chunk that holds most of them is read as it is, as the work will be done where that is. Of all others only
        what is needed travels, made by a task of its own, once for all who ask for the same.
        """
        found = [(place, runs, list(overlaps(a.chunks, box))) for place, runs, box in reads]
        held = (
            (math.prod(s.stop - s.start for s in inside), number) for *_, some in found for number, inside, _ in some
        )
        home = max(held)[1]
        tasks: list[TaskRef] = []
        sources = []
        for place, runs, some in found:
            pieces = []
            for number, inside, at in some:
                sizes = (chunks[n] for chunks, n in zip(a.chunks, number, strict=True))
                whole = all(s.stop - s.start == size for s, size in zip(inside, sizes, strict=True))
                here = whole or number == home
                tasks.append(self._chunk(a, number) if here else self._part(a, number, inside))
                pieces.append((at, inside if here and not whole else None))
            sources.append(Source(place, runs, tuple(pieces)))
        if len(tasks) == 1 and not sources[0].runs and sources[0].pieces[0][1] is None:
            return Operand(tuple(tasks))
        return Operand(tuple(tasks), Recipe(tuple(sources), channels_last))

    def _chunk(self, a: Array, number: Shape) -> TaskRef:
        self.arrays[a.name] = a
        return TaskRef((a.name, *number))

    def _part(self, a: Array, number: Shape, inside: Index) -> TaskRef:
        """A part of a chunk; of the same name in every graph, so that a forward pass and a gradient share it."""
        key = (f"xconv-part-{a.name}", *number, *(end for s in inside for end in (s.start, s.stop)))
        return TaskRef(key) if key in self.tasks else self._task(key, _part, inside, self._chunk(a, number))

    # tasks

    def _key(self, kind: str) -> tuple[Any, ...]:
        return (f"{self.label}-{kind}-{self.token}", len(self.tasks))

    def _task(self, key: tuple[Any, ...], function: Callable[..., Array], *arguments: object) -> TaskRef:
        self.tasks[key] = Task(key, function, *arguments)
        return TaskRef(key)

    def _computed(self, key: tuple[Any, ...], run: Callable[..., Array], operands: tuple[Operand, ...]) -> TaskRef:
        tasks = [task for operand in operands for task in operand.tasks]
        recipes = tuple((len(operand.tasks), operand.recipe) for operand in operands)
        return self._task(key, _computed, run, recipes, *tasks)


def overlaps(chunks: tuple[Shape, ...], box: Index) -> Iterator[tuple[Shape, Index, Index]]:
    choices: list[list[tuple[int, slice, slice]]] = []
    for sizes, wanted in zip(chunks, box, strict=True):
        edges = edges_of(sizes)
        choice: list[tuple[int, slice, slice]] = []
        i = max(0, min(bisect_right(edges, wanted.start) - 1, len(sizes) - 1))
        while i < len(sizes) and (edges[i] < wanted.stop or not choice):
            low, begin, end = edges[i], max(edges[i], wanted.start), min(edges[i + 1], wanted.stop)
            if begin < end or wanted.start == wanted.stop:
                choice.append((i, slice(begin - low, end - low), slice(begin - wanted.start, end - wanted.start)))
            i += 1
        choices.append(choice)
    for found in product(*choices):
        number, inside, place = zip(*found, strict=True)
        yield number, inside, place


@lru_cache
def edges_of(sizes: Shape) -> tuple[int, ...]:
    return (0, *accumulate(int(n) for n in sizes))


# what tasks do, on the arrays of the chunks' library


def _part(index: Index, chunk: Array) -> Array:
    return chunk[index].copy()  # so that the chunk can go while its part is still needed


def _computed(run: Callable[..., Array], recipes: tuple[tuple[int, Recipe], ...], *results: Array) -> Array:
    left = iter(results)
    return run(*(_assembled(recipe, islice(left, count)) for count, recipe in recipes))


def _assembled(recipe: Recipe, results: Iterator[Array]) -> Array:
    if not recipe.sources:
        return next(results)
    parts = []
    for place, runs, pieces in recipe.sources:
        here = [(at, next(results)[... if index is None else index]) for at, index in pieces]
        xp = array_api_compat.array_namespace(here[0][1])
        a = joined(xp, here)
        if runs:
            a = xp.moveaxis(a, -1, 1) if recipe.channels_last else a
            for at, run in enumerate(runs, start=2):
                a = follow(xp, a, run, at)
        parts.append((place, a))
    if len(parts) == 1 and not runs:
        return a
    a = joined(xp, parts)
    return xp.moveaxis(a, 1, -1) if recipe.channels_last else a


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
