"""NumPy arrays in kept memory, and tiles on threads that each hold one BLAS thread."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..._geometry import Tile
from ..._typing import Array, DType, Index, Shape
from ...primitives import Piece, Team, Whole, along, inverse
from .._backend import MIB
from . import _threads
from ._dtypes import DtypesOfNumpy
from ._scratch import Reserve, Scratch

#: Bytes of a tile beside which NumPy's buffers do not matter; with less, to make them short takes much of a small call.
WORTH_SHORT_BUFFERS = 2**17
#: Elements of a sum that are worth another thread's while.
JOINED = 2**19


class KeptMemory(DtypesOfNumpy):
    """What a tile takes lies in memory that is kept for the next one."""

    #: No smaller tile is worth its own call, and so many are enough for every processor to get its share.
    least_tile, shares = MIB, 4
    parallel = True

    def __init__(self) -> None:
        super().__init__(np)
        self.scratch, self.reserve = Scratch(), Reserve()

    def reshape(self, x: Array, shape: Shape) -> Array:
        try:
            reshaped = x.reshape(shape, copy=False)
        except ValueError:
            pass
        else:
            if _in_lines(reshaped):
                return reshaped
        made = self.scratch.take(x.shape, x.dtype)
        made[...] = x
        return made.reshape(shape)

    def view(self, out: Array | None, shape: Shape, dtype: DType) -> Array | None:
        if out is None or out.dtype != dtype:
            return None
        try:
            return out.reshape(shape, copy=False)
        except ValueError:
            return None

    def cast(self, x: Array, dtype: DType) -> Array:
        if x.dtype == dtype:
            return x
        made = self.scratch.take(x.shape, dtype)
        made[...] = x
        return made

    def zeros(self, shape: Shape, dtype: DType, like: Array, out: Array | None = None) -> Array:
        del like, out
        made = self.scratch.take(shape, dtype)
        made.fill(0)
        return made

    def add(self, y: Array, b: Array, out: Array | None = None) -> Array:
        del out
        return np.add(y, b, out=y)

    def times_root(self, x: Array, square: int) -> Array:
        return x * np.sqrt(square, dtype=x.real.dtype)

    def add_at(self, x: Array, parts: Iterator[tuple[Index, Array]]) -> Array:
        self.scratch.reset()
        with _short_buffers():
            for index, part in parts:
                x[index] += part
        return x

    def assemble(self, whole: Whole, tiles: Sequence[Tile], piece: Piece, team: Team) -> Array:
        order = whole.order
        made = np.zeros if whole.blank else np.empty
        result = made([whole.shape[axis] for axis in order], whole.dtype).transpose(inverse(order))

        def fill(i: int) -> None:
            self.scratch.reset(team.memory)
            tile = tiles[i]
            target = result[whole.place(tile)]
            made = piece(tile, target)
            if made is not target and not np.may_share_memory(made, target):  # or it has been written there
                target[...] = made

        _run(fill, len(tiles), team)
        return result

    def each(self, task: Callable[[int], None], count: int, size: int, team: Team | None) -> None:
        """Do some tasks that take so many bytes: one after the other within a tile, or for all tiles by a team."""
        if team is None:
            mark = self.scratch.used
            for i in range(count):
                self.scratch.used = mark
                task(i)
            self.scratch.used = mark
            return

        def afresh(i: int) -> None:
            self.scratch.reset(size)
            task(i)

        _run(afresh, count, team)

    def total(self, tiles: Sequence[Tile], piece: Piece, *, team: Team, lanes: int = 1) -> Array:
        lanes = min(lanes, len(tiles))
        sums: list[Array] = [None] * lanes

        def add_up(lane: int) -> None:
            for i in range(lane, len(tiles), lanes):
                self.scratch.reset(team.memory)
                made = piece(tiles[i], None)
                if i > lane:
                    sums[lane] += made
                else:
                    sums[lane] = self._held(made) if lane else made.copy(order="K")
                del made  # or it would still be there beside that of the next tile

        _run(add_up, lanes, team)
        if lanes > 1:
            self._join(sums, team)
        return np.ascontiguousarray(sums[0])

    def _join(self, sums: list[Array], team: Team) -> None:
        """Add the others to the first one, in parts. They may lie in memory in other orders."""
        first, *others = sums
        axis = max(range(first.ndim), key=lambda axis: (first.shape[axis] > 1, first.strides[axis]))
        length = first.shape[axis]
        parts = max(1, min(self.shares, length, first.size // JOINED))

        def join(i: int) -> None:
            part = along(axis, slice(length * i // parts, length * (i + 1) // parts))
            for lane in others:
                first[part] += lane[part]

        _run(join, parts, team if parts > 1 else Team())

    def _held(self, a: Array) -> Array:
        """A copy that lies in memory as `a` does, and takes less time than a fresh one where it is large."""
        if a.nbytes < MIB:
            return a.copy(order="K")
        order = tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))
        held = self.reserve.take(a.transpose(order).shape, a.dtype).transpose(inverse(order))
        held[...] = a
        return held


def _in_lines(a: Array) -> bool:
    """Whether a product reads the matrices of `a` as they lie: with neighbours along an axis, and forwards."""
    rows, columns = a.strides[-2:]
    return bool((columns == a.itemsize and rows > 0) or (rows == a.itemsize and columns > 0))


def _run(task: Callable[[int], None], count: int, team: Team) -> None:
    """Do the tasks of a team, with short buffers where that is worth a thought."""
    if not team.heavy and team.memory < WORTH_SHORT_BUFFERS:
        _threads.run(task, count, team)
        return
    with _short_buffers():
        _threads.run(task, count, team)


@contextmanager
def _short_buffers() -> Iterator[None]:
    """Let NumPy add and cast arrays with gaps by way of 1024 elements at a time.

    By itself it takes 8192, which cost more memory, and more time.
    """
    before = np.setbufsize(1024)
    try:
        yield
    finally:
        np.setbufsize(before)
