"""What a call comes down to on a CUDA device: steps, each of which is handed nothing but where its arrays lie.

A step knows the rest: the shapes, strides and dtypes, the compiled kernel, the arguments of cuBLAS. So it can be taken
at once, or be kept and taken again on other memory (`_program`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import cupy

from ..._typing import Array, DType, Shape
from ...primitives import inverse
from ._lines import WIDEST, Memory

#: Pointers to blocks of memory.
Pointers: TypeAlias = list[Any]
#: Where the elements of index zero of some arrays are: in which block, and how many bytes behind its pointer.
Places: TypeAlias = tuple[tuple[int, int], ...]
#: Is handed the places of its arrays, the result's last.
Step: TypeAlias = Callable[[Pointers, Places], None]
#: Lines of columns, which cuBLAS walks along, begin at multiples of so many elements: of half types, 16 bytes.
LINE = 8


class Doer(ABC):
    """Who takes the steps, on arrays of its own kind."""

    #: Whether kernels get the sizes of their arrays into their text; None where the number of their calls decides.
    literal: bool | None = None

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: DType) -> Array:
        """New memory, in which the last axis runs fastest; it begins at a multiple of `WIDEST` bytes."""

    @abstractmethod
    def device_of(self, a: Array) -> int:
        """The number of the device on which `a` is."""

    @abstractmethod
    def kept(self, array: Array) -> Array:
        """An array of CuPy that is there, and will be."""

    @abstractmethod
    def perform(self, step: Step, *arrays: Array) -> None:
        """Take the step on these arrays."""


class Now(Doer):
    """Takes every step at once, in CuPy's current stream."""

    def empty(self, shape: Sequence[int], dtype: DType) -> Array:
        return cupy.empty(shape, dtype)

    def device_of(self, a: Array) -> int:
        return int(a.device.id)

    def kept(self, array: Array) -> Array:
        return array

    def perform(self, step: Step, *arrays: Array) -> None:
        step([a.data for a in arrays], tuple([(i, 0) for i in range(len(arrays))]))


# How arrays lie in memory


class Flat(NamedTuple):
    """All memory between the first and the last element of an array."""

    shape: tuple[int]
    dtype: DType
    #: Bytes in it before the element of index zero.
    before: int


class Lying(NamedTuple):
    """An array but for its place."""

    shape: Shape
    dtype: DType
    strides: tuple[int, ...]


def _flat_views(views: tuple[Flat, ...], pointers: Pointers, places: Places) -> list[Array]:
    array = cupy.ndarray
    return [
        array(shape, dtype, pointers[block] + (at - before) if at != before else pointers[block])
        for (shape, dtype, before), (block, at) in zip(views, places, strict=True)
    ]


def _views(views: tuple[Lying, ...], pointers: Pointers, places: Places) -> list[Array]:
    array = cupy.ndarray
    return [
        array(shape, dtype, pointers[block] + at if at else pointers[block], strides)
        for (shape, dtype, strides), (block, at) in zip(views, places, strict=True)
    ]


def flat(a: Array) -> tuple[Flat, Memory]:
    """The flat view of `a`, and where in it the elements are."""
    steps = tuple([stride // a.itemsize for stride in a.strides])
    ends = [(length - 1) * step for length, step in zip(a.shape, steps, strict=True)] if a.size else []
    start = -sum(end for end in ends if end < 0)
    length = 1 + sum(map(abs, ends)) if a.size else 0
    aligned = (a.data.ptr - start * a.itemsize) % WIDEST == 0
    memory = Memory(a.dtype.name, a.itemsize, a.shape, steps, start, aligned)
    return Flat((length,), a.dtype, start * a.itemsize), memory


# The steps; the products of `_cublas` and the graphs of `_graphs` are others


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel of ours on flat views, with the numbers behind its inputs, in so many threads."""

    run: Any
    views: tuple[Flat, ...]
    numbers: tuple[int, ...]
    size: int

    def __call__(self, pointers: Pointers, places: Places) -> None:
        *inputs, out = _flat_views(self.views, pointers, places)
        self.run(*inputs, *self.numbers, out, size=self.size)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A kernel of so many blocks of so many threads on flat views."""

    run: Any
    views: tuple[Flat, ...]
    blocks: int
    threads: int

    def __call__(self, pointers: Pointers, places: Places) -> None:
        self.run((self.blocks,), (self.threads,), tuple(_flat_views(self.views, pointers, places)))


@dataclass(frozen=True, slots=True)
class Each:
    """A kernel that goes through its arrays element by element, as they broadcast."""

    run: Any
    views: tuple[Lying, ...]

    def __call__(self, pointers: Pointers, places: Places) -> None:
        self.run(*_views(self.views, pointers, places))


@dataclass(frozen=True, slots=True)
class Total:
    """The sum over one axis."""

    axis: int
    views: tuple[Lying, ...]

    def __call__(self, pointers: Pointers, places: Places) -> None:
        a, out = _views(self.views, pointers, places)
        a.sum(axis=self.axis, dtype=out.dtype, out=out)


# What they are put together to

COPY = cupy.ElementwiseKernel("T y", "U z", "z = U(y)", "xconv_copy")
SUM = cupy.ElementwiseKernel("T y, T b", "U z", "z = U(y + b)", "xconv_add")
CONJUGATE = cupy.ElementwiseKernel("T y", "T z", "z = conj(y)", "xconv_conjugate")
CLEAR = cupy.ElementwiseKernel("", "T z", "z = T(0)", "xconv_clear")


def lying(*arrays: Array) -> tuple[Lying, ...]:
    """How the arrays lie in memory."""
    return tuple([Lying(a.shape, a.dtype, a.strides) for a in arrays])


def each(do: Doer, kernel: Any, *arrays: Array) -> Array:
    """The last of the arrays, into which the kernel has written what it makes of the others.

    Neighbouring threads take neighbours along the last axis, and CuPy never reorders axes: so they come in the order
    in which they lie in the result's memory.
    """
    out = arrays[-1]
    if out.size:
        order = _outermost_first(out)
        views = arrays if order == list(range(out.ndim)) else [a.transpose(*order) for a in arrays]
        do.perform(Each(kernel, lying(*views)), *arrays)
    return out


def total(do: Doer, a: Array, axis: int) -> Array:
    """The sum over one axis, in new memory."""
    out = do.empty(a.shape[:axis] + a.shape[axis:][1:], a.dtype)
    do.perform(Total(axis, lying(a, out)), a, out)
    return out


def ordered(do: Doer, shape: Shape, dtype: DType, order: Sequence[int], *, line: int = 0) -> Array:
    """New memory in which the axes lie in this order.

    Lines along the last so many of them begin at multiples of `LINE` elements.
    """
    lengths = [shape[axis] for axis in order]
    behind = len(lengths) - line
    length = math.prod(lengths[behind:])
    if line and length % LINE:
        made = do.empty([*lengths[:behind], -(-length // LINE) * LINE], dtype)[..., :length].reshape(lengths)
    else:
        made = do.empty(lengths, dtype)
    return made.transpose(inverse(tuple(order)))


def copied(do: Doer, a: Array, dtype: DType | None = None, order: Sequence[int] | None = None) -> Array:
    """A copy in new memory, in the order in which `a` lies in its own, or in another one."""
    order = _outermost_first(a) if order is None else order
    return each(do, COPY, a, ordered(do, a.shape, a.dtype if dtype is None else dtype, order))


def _outermost_first(a: Array) -> list[int]:
    """The axes in the order in which they lie in memory."""
    return sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
