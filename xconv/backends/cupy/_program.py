"""What a call does on a CUDA device, written down once for all calls like it.

A schedule is run on symbols, which say of an array of CuPy where it lies and no more. What the backend asks of the
device meanwhile becomes a list of steps. It is taken again, on other memory, for as long as the arrays lie in their
memory as they did, and takes the host some microseconds a step: all that is left are the launches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import cupy
import numpy as np

from ..._typing import Array, DType, Shape
from ._lines import WIDEST
from ._steps import Doer, Lying, Places, Pointers, Step, copied, lying


class Program:
    """The steps of a call, and where in its blocks of memory their arrays lie; first come those of its arguments."""

    def __init__(self, steps: Sequence[tuple[Step, Places]], result: "Symbol", *, literal: bool) -> None:
        self.steps, self.literal, self.calls = tuple(steps), literal, 0
        self._result = (*lying(result)[0], *result.place)

    def __call__(self, *arrays: Array | None) -> Array:
        self.calls += 1
        pointers: Pointers = [a if a is None else a.data for a in arrays]
        for step, places in self.steps:
            step(pointers, places)
        shape, dtype, strides, block, at = self._result
        return cupy.ndarray(shape, dtype, pointers[block] + at if at else pointers[block], strides)


@dataclass(frozen=True, slots=True)
class Allocate:
    """One more block, of so many bytes."""

    size: int

    def __call__(self, pointers: Pointers, places: Places) -> None:
        del places
        pointers.append(cupy.cuda.alloc(self.size))


@dataclass(frozen=True, slots=True)
class Keep:
    """One more block: that of an array which is there for all calls."""

    array: Array

    def __call__(self, pointers: Pointers, places: Places) -> None:
        del places
        pointers.append(self.array.data)


@dataclass(frozen=True, slots=True)
class Free:
    """The memory of a block is given back."""

    block: int

    def __call__(self, pointers: Pointers, places: Places) -> None:
        del places
        pointers[self.block] = None


class Block:
    """Memory of a call to come; it is given back when the last symbol that lies in it is gone."""

    def __init__(self, number: int, at: int, gone: Callable[[int], None] | None = None) -> None:
        #: Where it begins, beyond a multiple of `WIDEST` bytes.
        self.number, self.at, self._gone = number, at, gone

    def __del__(self) -> None:
        if self._gone:
            self._gone(self.number)


class Address(NamedTuple):
    """What can be said of a pointer to come: its remainder."""

    ptr: int


class Symbol:
    """An array of CuPy to come. NumPy knows how views of it lie, and never looks into their memory."""

    def __init__(self, block: Block, view: Any, begin: int) -> None:
        self._block, self._view, self._begin = block, view, begin

    @classmethod
    def described(cls, block: Block, shape: Sequence[int], dtype: DType, strides: Sequence[int] | None = None) -> Self:
        if strides is None:
            strides = [dtype.itemsize] * len(shape)
            for axis in reversed(range(len(shape) - 1)):
                strides[axis] = strides[axis + 1] * shape[axis + 1]
        view = np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)
        return cls(block, view, view.ctypes.data)

    def _viewed(self, view: Any) -> "Symbol":
        return Symbol(self._block, view, self._begin)

    @property
    def place(self) -> tuple[int, int]:
        """The number of its block, and where in it the element of index zero lies, in bytes."""
        return self._block.number, self._view.ctypes.data - self._begin if self.size else 0

    @property
    def data(self) -> Address:
        return Address(self._block.at + self.place[1])

    @property
    def shape(self) -> Shape:
        return self._view.shape  # type: ignore[no-any-return]

    @property
    def strides(self) -> tuple[int, ...]:
        return self._view.strides  # type: ignore[no-any-return]

    @property
    def dtype(self) -> DType:
        return self._view.dtype

    @property
    def itemsize(self) -> int:
        return self._view.itemsize  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        return self._view.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        return self._view.size  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, index: Any) -> "Symbol":
        return self._viewed(self._view[index])

    def transpose(self, *axes: Any) -> "Symbol":
        return self._viewed(self._view.transpose(*axes))

    def swapaxes(self, one: int, other: int) -> "Symbol":
        return self._viewed(self._view.swapaxes(one, other))

    def reshape(self, *shape: Any) -> "Symbol":
        """ValueError where that takes a copy."""
        return self._viewed(self._view.reshape(*shape, copy=False))


class Recorder(Doer):
    """Writes down the steps that a backend takes for one call."""

    literal: bool

    def __init__(self, device: int, *, literal: bool) -> None:
        self.literal, self._device = literal, device
        self._steps: list[tuple[Step, Places]] = []
        self._blocks = 0

    def record(self, run: Callable[..., Symbol], *arrays: tuple[Lying, int] | None) -> Program:
        """The program of ``run(*arrays)``: how each lies, and its pointer's remainder by `WIDEST`."""
        symbols = []
        for given in arrays:
            block = Block(self._blocks, given[1] if given else 0)
            self._blocks += 1
            symbols.append(Symbol.described(block, *given[0]) if given else None)
        return Program(self._steps, run(*symbols), literal=self.literal)

    def empty(self, shape: Sequence[int], dtype: DType) -> Symbol:
        block = Block(self._blocks, 0, lambda number: self._steps.append((Free(number), ())))
        self._blocks += 1
        made = Symbol.described(block, shape, np.dtype(dtype))
        self._steps.append((Allocate(made.size * made.itemsize), ()))
        return made

    def device_of(self, a: Symbol) -> int:
        del a
        return self._device

    def kept(self, array: Array) -> Symbol:
        block = Block(self._blocks, array.data.ptr % WIDEST)
        self._blocks += 1
        self._steps.append((Keep(array), ()))
        return Symbol.described(block, array.shape, array.dtype)

    def perform(self, step: Step, *arrays: Symbol) -> None:
        self._steps.append((step, tuple([array.place for array in arrays])))


class Views:
    """What algorithms ask of the namespace of their arrays, for symbols."""

    __name__ = "cupy"

    def __init__(self, do: Recorder) -> None:
        self._do = do

    def reshape(self, a: Symbol, shape: Shape) -> Symbol:
        try:
            return a.reshape(shape)
        except ValueError:
            return copied(self._do, a, order=range(a.ndim)).reshape(shape)  # type: ignore[no-any-return]

    @staticmethod
    def permute_dims(a: Symbol, axes: Sequence[int]) -> Symbol:
        return a.transpose(*axes)

    @staticmethod
    def moveaxis(a: Symbol, source: int, destination: int) -> Symbol:
        order = [axis for axis in range(a.ndim) if axis != source % a.ndim]
        order.insert(destination % a.ndim, source % a.ndim)
        return a.transpose(*order)

    @staticmethod
    def matrix_transpose(a: Symbol) -> Symbol:
        return a.swapaxes(-2, -1)

    @staticmethod
    def flip(a: Symbol, axis: Sequence[int]) -> Symbol:
        return a[tuple(slice(None, None, -1 if i in axis else 1) for i in range(a.ndim))]
