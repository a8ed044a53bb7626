"""Geometry: every size of a convolution.

A piece of an axis is an axis (`_axis`). So a piece of a convolution is a convolution, and a tile is just a smaller
`Geometry` with the places where its input and output lie. The tiler (`_tiler`) says where to cut.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from ._axis import Axis, Run
from ._typing import Index, Shape

#: What is cut: the outputs, the inputs, or these together with all that the windows hold which see them.
Side: TypeAlias = Literal["outputs", "inputs", "windows"]
T = TypeVar("T")

#: All images and channels.
ALL = (slice(None), slice(None))

#: Taps with so many elements between them are far apart: to copy these takes longer than a call that leaves them out.
FAR = 1024


class Tile(NamedTuple):
    """A smaller convolution, and where its input and output lie in the larger one's."""

    geometry: "Geometry"
    x: Index
    y: Index
    #: The convolution that makes these outputs from all that they read, where windows are cut.
    whole: Any = None


@dataclass(frozen=True)
class Geometry:
    """Every size of one convolution, channels first; frozen, hashable, in plain integers."""

    batch: int
    c_in: int
    c_out: int
    groups: int
    axes: tuple[Axis, ...]
    pad_mode: str = "constant"
    #: How the caller's arrays lie in memory; here, channels always come first.
    channels_last: bool = False
    #: The axes of `columns_shape` in the order in which a caller has or wants them in memory; empty for no other one.
    order: Shape = ()
    #: What a constant padding holds: 0 for every other one, and where there is none.
    pad_value: complex = 0

    @cached_property
    def size(self) -> Shape:
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def kernel(self) -> Shape:
        return tuple(axis.kernel for axis in self.axes)

    @cached_property
    def padded(self) -> Shape:
        return tuple(axis.padded for axis in self.axes)

    @cached_property
    def out(self) -> Shape:
        return tuple(axis.out for axis in self.axes)

    @cached_property
    def x_shape(self) -> Shape:
        return (self.batch, self.c_in, *self.size)

    @cached_property
    def w_shape(self) -> Shape:
        return (self.c_out, self.c_in // self.groups, *self.kernel)

    @cached_property
    def y_shape(self) -> Shape:
        return (self.batch, self.c_out, *self.out)

    @cached_property
    def columns_shape(self) -> Shape:
        """The shape of all windows."""
        return (self.batch, self.c_in, *self.kernel, *self.out)

    @cached_property
    def images_order(self) -> Shape:
        """The axes ``(n, channels, *spatial)`` in the order in which the windows have theirs, ``(n, c, *out)``."""
        rank = len(self.axes)
        wanted = [axis - rank if axis > 1 else axis for axis in self.order if not 2 <= axis < 2 + rank]
        return tuple(wanted) or tuple(range(2 + rank))

    @cached_property
    def in_rows(self) -> "Geometry":
        """The same, with every window in a row of memory: its channels behind its taps."""
        kernel, out = (tuple(range(at, at + len(self.axes))) for at in (2, 2 + len(self.axes)))
        return replace(self, order=(0, *out, *kernel, 1))

    @cached_property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @cached_property
    def pixels(self) -> int:
        """Outputs per image and channel."""
        return math.prod(self.out)

    @cached_property
    def is_padded(self) -> bool:
        return any(axis.is_padded for axis in self.axes)

    @cached_property
    def is_filled(self) -> bool:
        """Whether the padding is anything but zeros, so that it is written out before windows are read."""
        return self.pad_mode != "constant" or self.pad_value != 0

    @cached_property
    def is_cropped(self) -> bool:
        """Whether no window sees some elements, because the padding is negative."""
        return any(axis.lo < 0 or axis.hi < 0 for axis in self.axes)

    @cached_property
    def is_apart(self) -> bool:
        """Whether no two windows share an element, however many there are."""
        return all(axis.is_apart for axis in self.axes)

    @cached_property
    def is_covered(self) -> bool:
        """Whether every element is in a window, and in no other one."""
        return all(axis.is_covered for axis in self.axes)

    @cached_property
    def kept(self) -> tuple[Index, Index]:
        """Where padded images and images are the same: as an index of the one and of the other."""
        return (*ALL, *(a.kept[0] for a in self.axes)), (*ALL, *(a.kept[1] for a in self.axes))

    @cached_property
    def is_blind(self) -> bool:
        """Whether there is a window that sees nothing but padding."""
        return any(axis.is_blind for axis in self.axes)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the plain sum, which are the same for the forward pass and for each gradient."""
        return self.batch * self.c_out * self.pixels * (self.c_in // self.groups) * self.taps

    def in_layout(self, of_axes: tuple[T, ...]) -> tuple[T, ...]:
        """What belongs to the axes ``(n, channels, *spatial)``, in the order of the caller's arrays."""
        return (of_axes[0], *of_axes[2:], of_axes[1]) if self.channels_last else of_axes

    def along(self, axes: tuple[Axis, ...], batch: int | None = None) -> "Geometry":
        """The same convolution along other axes, of so many images; the tiler makes many, and this quickly."""
        batch = self.batch if batch is None else batch
        how = self.pad_mode, self.channels_last, self.order, self.pad_value
        return Geometry(batch, self.c_in, self.c_out, self.groups, axes, *how)

    def extended(self) -> "Geometry":
        """The same convolution on an input whose padding has been written out."""
        return self.along(tuple(axis.resized(axis.padded) for axis in self.axes)).zero_padded()

    @cached_property
    def far(self) -> tuple[bool, ...]:
        """On which axes the taps lie so far apart that their places are gathered, and not what is between them."""
        room = self.c_in * math.prod(axis.extent for axis in self.axes)
        return tuple(room * axis.gap >= FAR * self.taps * axis.dilation for axis in self.axes)

    def gathered(self) -> "Geometry":
        """The same convolution on what its taps read, along the axes where they lie far apart."""
        if not any(self.far):
            return self
        axes = tuple(axis.gathered() if far else axis for axis, far in zip(self.axes, self.far, strict=True))
        return self.along(axes)

    def segments(self) -> Iterator[tuple[Index, Index]]:
        """Where gathered and padded images and images are the same: as an index of the one and of the other."""
        axes = zip(self.axes, self.far, strict=True)
        for pairs in product(*(axis.segments() if far else (axis.kept,) for axis, far in axes)):
            yield (*ALL, *(outer for outer, _ in pairs)), (*ALL, *(inner for _, inner in pairs))

    @cached_property
    def is_empty(self) -> bool:
        """Whether there is nothing to multiply, or nothing that it would be for."""
        return 0 in (*self.x_shape, *self.w_shape, *self.y_shape)

    def reflected(self) -> "Geometry | None":
        """The convolution with reflected filters that is the adjoint of this one; None where there is none.

        With stride 1 and zero padding, what reads an input are again the outputs under a window.
        """
        if self.pad_mode != "constant" or any(axis.stride > 1 for axis in self.axes):
            return None
        axes = tuple(replace(a, size=a.out, lo=a.extent - 1 - a.lo, hi=a.extent - 1 - a.hi) for a in self.axes)
        return replace(self, c_in=self.c_out, c_out=self.c_in, axes=axes, pad_value=0)

    def zero_padded(self) -> "Geometry":
        """The same convolution with zeros for its padding."""
        return replace(self, pad_mode="constant", pad_value=0) if self.is_filled else self

    def linear(self) -> "Geometry":
        """The part of it that is linear in the input: what a constant padding holds does not depend on that."""
        return replace(self, pad_value=0) if self.pad_value else self

    # Parts. `over` says which side is cut into parts that do not overlap.

    def part(self, over: Side, images: slice, ranges: tuple[slice, ...]) -> Tile:
        """The smaller convolution behind one range of images and one range per axis of the outputs or the inputs."""
        if over == "outputs":
            whole = self.pad_mode != "constant"
            cuts = [a.for_outputs(r.start, r.stop, whole=whole) for a, r in zip(self.axes, ranges, strict=True)]
        else:
            cuts = [a.for_inputs(r.start, r.stop) for a, r in zip(self.axes, ranges, strict=True)]
        smaller = self.along(tuple(axis for axis, _ in cuts), images.stop - images.start)
        here = (images, slice(None), *ranges)
        there = (images, slice(None), *(reads for _, reads in cuts))
        if over == "outputs":
            return Tile(smaller, there, here)
        if over == "inputs":
            return Tile(smaller, here, there)
        cuts = [a.around(x, y) for a, x, y in zip(self.axes, ranges, there[2:], strict=True)]
        around = self.along(tuple(axis for axis, _ in cuts), smaller.batch)
        return Tile(smaller, here, there, Tile(around, (images, slice(None), *(reads for _, reads in cuts)), there))

    def largest(self, over: Side, steps: Sequence[int]) -> "Geometry":
        """A bound on the parts that have so many images, and so many outputs or inputs on every axis."""
        batch, *lengths = steps
        if over == "outputs":
            axes = tuple(axis.narrowed(n) for axis, n in zip(self.axes, lengths, strict=True))
            return self.along(axes, batch)
        axes = ()
        for axis, n in zip(self.axes, lengths, strict=True):
            reads = min(axis.out, (n + axis.extent - 2) // axis.stride + 1)
            narrow = axis.narrowed(reads).size
            size = max(n, narrow) if over == "windows" else n
            axes += (axis.resized(size, 0, narrow - size),)
        return self.along(axes, batch)

    def reads(self, ranges: tuple[slice, ...]) -> Iterator[tuple[tuple[Any, ...], tuple[Run, ...], Index]]:
        """What a part of the padded input reads, block by block.

        The index of the block within the part, its runs, and the places on every axis that they read.
        """
        choices: list[list[tuple[slice, Run]]] = []
        for axis, part in zip(self.axes, ranges, strict=True):
            position, choice = 0, []
            for run in axis.runs(self.pad_mode, part):
                begin, position = position, position + run.repeats * run.period
                choice.append((slice(begin, position), run))
            choices.append(choice)
        for blocks in product(*choices):
            runs = tuple(run for _, run in blocks)
            yield (..., *(block for block, _ in blocks)), runs, tuple(run.source for run in runs)
