"""Depthwise convolution on NumPy arrays, by whole planes.

A padded plane is split into one sub-plane for every phase of the strides. There, a tap is a shift: what it sees for all
outputs is one run of memory, if the outputs are laid out in rows of the sub-plane's width. So each tap is one
multiplication and one addition of long vectors, and what stands between the rows is dropped in the end. The channels
are taken in blocks that stay in the caches meanwhile.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from .._geometry import Geometry
from .._typing import Array, DType, Shape

#: Elements of the sub-planes that are worked on at once.
BLOCK = 2**15

Take = Callable[[Shape, DType], Array]


class Planes:
    """The sub-planes of a geometry, and memory for a block of channels."""

    def __init__(self, g: Geometry) -> None:
        self.g = g
        self.filters = g.c_out // g.c_in
        self.strides = tuple(axis.stride for axis in g.axes)
        self.lengths = tuple(-(-axis.padded // axis.stride) for axis in g.axes)
        self.steps = tuple(math.prod(self.lengths[i + 1 :]) for i in range(len(self.lengths)))
        #: Elements between the first and the last output of a plane, in rows of the sub-plane's width.
        self.run = 1 + sum((n - 1) * step for n, step in zip(g.out, self.steps, strict=True)) if g.pixels else 0
        self.block = max(1, min(g.c_in, BLOCK // max(1, math.prod(self.lengths) * math.prod(self.strides))))

    @cached_property
    def taps(self) -> list[tuple[tuple[int, ...], Any, slice]]:
        """Every tap, the phase that it sees, and the run in it."""
        found = []
        for tap in product(*map(range, self.g.kernel)):
            places = [divmod(t * a.dilation, a.stride) for t, a in zip(tap, self.g.axes, strict=True)]
            start = sum(q * step for (q, _), step in zip(places, self.steps, strict=True))
            found.append((tap, tuple(r for _, r in places), slice(start, start + self.run)))
        return found

    @property
    def spare(self) -> int:
        """Elements of memory that any of the three functions takes."""
        plane = math.prod(self.lengths) * math.prod(self.strides)
        return self.block * (2 * plane + (2 * self.filters + 2) * math.prod(self.lengths))

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """One image and some channels at a time: the index of the image, of the inputs and of the outputs."""
        for n in range(self.g.batch):
            for begin in range(0, self.g.c_in, self.block):
                end = min(begin + self.block, self.g.c_in)
                yield slice(n, n + 1), slice(begin, end), slice(begin * self.filters, end * self.filters)

    # Memory: `padded` (c, *(lengths * strides)), `phases` (c, *strides, plane), `outputs` (c, filters, run)

    def memory(self, take: Take, dtype: DType) -> tuple[Array, Array, Array, Array]:
        c, whole = self.block, math.prod(self.lengths)
        padded = take((c, *(n * s for n, s in zip(self.lengths, self.strides, strict=True))), dtype)
        if math.prod(self.strides) == 1:
            phases = padded.reshape(c, *self.strides, whole)
        else:
            phases = take((c, *self.strides, whole), dtype)
        outputs, products = take((c, self.filters, whole), dtype), take((c, self.filters, whole), dtype)
        return padded, phases, outputs, products

    def split(self, padded: Array) -> Array:
        """`padded` with the axes in the order of `phases`, ``(c, *strides, *lengths)``."""
        rank = len(self.strides)
        pairs = [number for pair in zip(self.lengths, self.strides, strict=True) for number in pair]
        return padded.reshape(len(padded), *pairs).transpose(
            0, *(2 + 2 * i for i in range(rank)), *(1 + 2 * i for i in range(rank))
        )

    def load(self, x: Array, padded: Array, phases: Array) -> None:
        """The planes of one image, padded and split."""
        outer, inner = self.g.kept
        padded.fill(0)
        padded[outer[1:]] = x[inner[1:]]
        if len(self.g.axes) and math.prod(self.strides) > 1:
            phases.reshape(len(phases), *self.strides, *self.lengths)[...] = self.split(padded)

    def store(self, phases: Array, padded: Array, dx: Array) -> None:
        """The adjoint of `load`."""
        if math.prod(self.strides) > 1:
            self.split(padded)[...] = phases.reshape(len(phases), *self.strides, *self.lengths)
        outer, inner = self.g.kept
        dx.fill(0)
        dx[inner[1:]] = padded[outer[1:]]

    def placed(self, outputs: Array) -> Array:
        """The outputs among what stands between their rows, ``(c, filters, *out)``."""
        item = outputs.itemsize
        strides = (*outputs.strides[:2], *(step * item for step in self.steps))
        return np.ndarray((*outputs.shape[:2], *self.g.out), outputs.dtype, outputs, 0, strides)

    # The three functions

    def forward(self, take: Take, x: Array, w: Array, y: Array) -> None:
        memory = self.memory(take, x.dtype)
        for image, inputs, results in self.blocks():
            padded, phases, outputs, products = (a[: inputs.stop - inputs.start] for a in memory)
            numbers = w[results].reshape(len(padded), self.filters, *self.g.kernel, 1)
            self.load(x[image.start, inputs], padded, phases)
            sums, terms = outputs[..., : self.run], products[..., : self.run]
            for i, (tap, phase, run) in enumerate(self.taps):
                seen = phases[(slice(None), *phase)][:, None, run]
                if i == 0:
                    np.multiply(seen, numbers[(..., *tap, slice(None))], out=sums)
                else:
                    np.multiply(seen, numbers[(..., *tap, slice(None))], out=terms)
                    np.add(sums, terms, out=sums)
            y[image.start, results] = self.placed(outputs).reshape(y[image.start, results].shape)

    def input_grad(self, take: Take, dy: Array, w: Array, dx: Array) -> None:
        memory = self.memory(take, dy.dtype)
        for image, inputs, results in self.blocks():
            padded, phases, outputs, products = (a[: inputs.stop - inputs.start] for a in memory)
            numbers = w[results].reshape(len(padded), self.filters, *self.g.kernel, 1)
            given, terms = outputs[..., : self.run], products[..., : self.run]
            outputs.fill(0)
            self.placed(outputs)[...] = dy[image.start, results].reshape(len(padded), self.filters, *self.g.out)
            phases.fill(0)
            for tap, phase, run in self.taps:
                np.multiply(given, numbers[(..., *tap, slice(None))], out=terms)
                seen = phases[(slice(None), *phase)][:, run]
                for j in range(self.filters):
                    np.add(seen, terms[:, j], out=seen)
            self.store(phases, padded, dx[image.start, inputs])

    def weight_grad(self, take: Take, dy: Array, x: Array, dw: Array) -> None:
        memory = self.memory(take, x.dtype)
        dw.fill(0)
        for image, inputs, results in self.blocks():
            padded, phases, outputs, _ = (a[: inputs.stop - inputs.start] for a in memory)
            self.load(x[image.start, inputs], padded, phases)
            outputs.fill(0)
            self.placed(outputs)[...] = dy[image.start, results].reshape(len(padded), self.filters, *self.g.out)
            given = outputs[..., : self.run]
            sums = dw[results].reshape(len(padded), self.filters, *self.g.kernel)
            for tap, phase, run in self.taps:
                seen = phases[(slice(None), *phase)][:, None, run]
                sums[(..., *tap)] += np.vecdot(seen, given)  # of the conjugate of the first
