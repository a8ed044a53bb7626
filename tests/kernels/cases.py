"""Convolutions for the kernels: geometries, arrays in many memory orders, and each kernel beside its oracle."""

import math
import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from unittest.mock import patch

import ml_dtypes  # noqa: F401  (gives NumPy the name "bfloat16")
import numpy as np
from oracle import Oracle

from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv.backends.cupy import _kernels as texts
from xconv.backends.cupy import _lines
from xconv.backends.cupy import _pooling as pooling

DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
DTYPES += ("int8", "int16", "int32", "int64", "uint8")
VERBS = ("im2col", "col2im", "depthwise", "depthwise_input_grad", "depthwise_weight_grad")
#: Kernels that pool, and the dtypes of those that compare.
POOLING = ("max_pool", "max_taps", "max_pool_grad", "avg_pool", "avg_pool_seen", "avg_shares", "avg_pool_grad")
POOLING += ("avg_pool_grad_seen",)
REAL = ("float32", "float64", "float16", "bfloat16", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))
#: The dtype of sums of half types.
WIDE = {"float16": "float32", "bfloat16": "float32"}


class Placed:
    """An array somewhere in a flat memory that ends where it ends, in any order of its axes, with any steps."""

    def __init__(self, shape, dtype, *, order=None, steps=None, shift=0):
        order, steps = order or tuple(range(len(shape))), steps or (1,) * len(shape)
        strides, stride = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis] = stride * steps[axis]
            stride *= max(1, shape[axis]) * abs(steps[axis])
        extents = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
        start = -sum(min(0, extent) for extent in extents)
        size = 1 + sum(map(abs, extents)) if math.prod(shape) else 0
        dtype = np.dtype(dtype)
        #: What the kernel gets: the memory from the array's first element to its last.
        self.flat = np.zeros(size + shift, dtype)[shift:]
        self.view = np.lib.stride_tricks.as_strided(
            self.flat[start:], shape, [step * dtype.itemsize for step in strides]
        )
        aligned = self.flat.ctypes.data % _lines.WIDEST == 0
        self.memory = _lines.Memory(dtype.name, dtype.itemsize, tuple(shape), tuple(strides), start, aligned)

    def fill(self, values):
        self.view[...] = values.astype(self.flat.dtype)
        return self


@dataclass(frozen=True)
class Case:
    """One kernel, its arrays, and what it must write into the last of them."""

    kernel: _lines.Kernel
    arrays: tuple[Placed, ...]
    expected: np.ndarray
    geometry: Geometry

    @property
    def flats(self):
        return tuple(array.flat for array in self.arrays)

    def run(self, harness, kernel=None):
        """The result, and by element of its memory, whether that was written."""
        self.arrays[-1].view[...] = 77
        written = harness.launch(kernel or self.kernel, *self.flats)
        return self.arrays[-1].view, written

    def check(self, harness, kernel=None):
        """Assert that every element is right, that all were written, and nothing beside them."""
        result, written = self.run(harness, kernel)
        kind = np.dtype(WIDE.get(result.dtype.name, result.dtype))  # in which NumPy knows NaN
        expected = self.expected.astype(result.dtype).astype(kind)
        np.testing.assert_array_equal(result.astype(kind), expected, strict=True)
        assert np.count_nonzero(written) == self.expected.size


def geometries(count, seed=0):
    """Any geometry with zero padding, of one to three axes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rank = int(rng.integers(1, 4))
        axes = tuple(_axis(rng, rank) for _ in range(rank))
        channels = int(rng.choice([1, 2, 3, 4, 8]))
        yield Geometry(int(rng.integers(1, 4)), channels, channels, 1, axes)


def _axis(rng, rank):
    kernel, dilation = int(rng.integers(1, 4 if rank == 3 else 5)), int(rng.integers(1, 4))
    size, lo = int(rng.integers(0, (12, 7, 4)[rank - 1] + 1)), int(rng.integers(-2, 5))
    least = (kernel - 1) * dilation + 1 - size - lo
    return Axis(
        size, kernel, int(rng.integers(1, 6)), dilation, lo, int(rng.integers(max(-2, least), max(4, least) + 1))
    )


def even_geometries(count, seed=0):
    """Those whose last axis has packs of neighbours, before and behind, and a stride that divides some packs."""
    rng = np.random.default_rng(seed)
    for g in geometries(count, seed):
        size, out, stride = (int(rng.choice(some)) for some in ((4, 6, 8, 12), (2, 4, 6, 8), (1, 2, 2, 3, 4, 4)))
        axis = replace(g.axes[-1], size=size, stride=stride)
        yield replace(g, axes=(*g.axes[:-1], replace(axis, hi=(out - 1) * stride + axis.extent - size - axis.lo)))


def case(verb, g, dtype="float32", *, threads=0, **options):
    """The case of one kernel for the geometry `g`; neighbours share a thread only if so many `threads` are left."""
    with patch.object(_lines, "THREADS", threads):
        return _case(verb, g, dtype, **options)


def _case(verb, g, dtype, *, literal=True, seed=0, values=None, scattered=True, even=False, wide=False, apart=(0, 0)):
    """Images and columns lie in orders that `seed` chooses.

    With `scattered` they have gaps, or run backwards; otherwise they are contiguous, channels last for every other
    seed, so that packs of channels can be read at once. With `even`, the result has packs of neighbours on its last
    axis if that is even. With `wide`, half types come out as float32. Images of the input and of the result lie so many
    elements `apart`.
    """
    rng = np.random.default_rng(seed)
    if verb in POOLING:
        g = replace(g, groups=g.c_in, c_out=g.c_in)
    if verb.startswith("depthwise"):
        g = replace(g, groups=g.c_in, c_out=g.c_in * (1 if not scattered else int(rng.integers(1, 3))))
    rank = len(g.axes)
    values = values or (_special if verb.startswith("max") else _integers)
    made = []

    def place(shape, dtype, plain):
        if even and made:
            order = (*rng.permutation(len(shape) - 1).tolist(), len(shape) - 1)
            steps = (*(int(s) for s in rng.choice([1, 1, 2, -1], len(shape) - 1)), 1)
            return Placed(shape, dtype, order=order, steps=steps, shift=int(rng.choice([0, 0, _lines.WIDEST])))
        made.append(shape)
        if scattered:
            axes = tuple(range(len(shape)))
            order = (axes, plain, (*axes[1:], 0), axes[::-1])[rng.integers(4)]
            steps = tuple(int(s) for s in rng.choice([1, 1, 1, 2, -1, -2], len(shape)))
            return Placed(shape, dtype, order=order, steps=steps, shift=int(rng.integers(0, 2)))
        between = apart[len(made) - 1]
        steps = (max(1, between // max(1, math.prod(shape[1:]))), *(1 for _ in shape[1:]))
        return Placed(shape, dtype, order=plain if seed % 2 else None, steps=steps)

    last = (0, *range(2, 2 + rank), 1)
    result = WIDE.get(dtype, dtype) if wide else dtype
    if verb in POOLING:
        beside = partial(_beside, rng, last if seed % 2 else None, scattered=scattered)
        return _pooled(verb, g, dtype, result, partial(place, plain=last), beside, values, literal=literal, rng=rng)
    columns_last = (0, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank), 1)
    options = {
        "stride": tuple(a.stride for a in g.axes),
        "dilation": tuple(a.dilation for a in g.axes),
        "padding": tuple((a.lo, a.hi) for a in g.axes),
    }
    oracle = Oracle(g.x_shape, g.w_shape, **options, groups=g.groups)

    if verb == "im2col":
        x = place(g.x_shape, dtype, last).fill(values(rng, g.x_shape, dtype))
        cols = place(g.columns_shape, result, columns_last)
        return Case(texts.im2col(g, x.memory, cols.memory, literal=literal), (x, cols), oracle.im2col(x.view), g)
    if verb == "col2im":
        cols = place(g.columns_shape, dtype, columns_last).fill(values(rng, g.columns_shape, dtype))
        x = place(g.x_shape, result, last)
        return Case(texts.col2im(g, cols.memory, x.memory, literal=literal), (cols, x), oracle.col2im(cols.view), g)

    filters_last = (*range(1, 2 + rank), 0) if seed % 2 else None
    w = Placed(g.w_shape, dtype, order=filters_last).fill(values(rng, g.w_shape, dtype))
    if verb == "depthwise":
        x, y = place(g.x_shape, dtype, last).fill(values(rng, g.x_shape, dtype)), place(g.y_shape, result, last)
        kernel = texts.depthwise(g, x.memory, w.memory, y.memory, literal=literal)
        return Case(kernel, (x, w, y), oracle.conv(x.view, w.view), g)
    dy = place(g.y_shape, dtype, last).fill(values(rng, g.y_shape, dtype))
    if verb == "depthwise_input_grad":
        dx = place(g.x_shape, result, last)
        kernel = texts.depthwise_input_grad(g, dy.memory, w.memory, dx.memory, literal=literal)
        return Case(kernel, (dy, w, dx), oracle.input_grad(dy.view, w.view.conj()), g)
    assert verb == "depthwise_weight_grad"
    x = place(g.x_shape, dtype, last).fill(values(rng, g.x_shape, dtype))
    lanes = int(rng.integers(1, 6))
    parts = Placed((g.c_out, *g.kernel, lanes), WIDE.get(dtype, dtype))
    kernel = texts.depthwise_weight_grad(g, dy.memory, x.memory, parts.memory, literal=literal)
    return Lanes(kernel, (dy, x, parts), oracle.weight_grad(dy.view, x.view)[:, 0], g)


def _beside(rng, order, shape, dtype, *, scattered):
    """An array that lies in an order of its own."""
    steps = tuple(int(s) for s in rng.choice([1, 1, 2, -1], len(shape))) if scattered else None
    return Placed(shape, dtype, order=tuple(rng.permutation(len(shape)).tolist()) if scattered else order, steps=steps)


def _pooled(verb, g, dtype, result, place, beside, values, *, literal, rng):
    """The case of a kernel that pools."""

    def drawn(shape):
        return place(shape, dtype).fill(values(rng, shape, dtype))

    def made(write, *arrays, expected, **options):
        return Case(write(g, *(a.memory for a in arrays), literal=literal, **options), arrays, expected, g)

    kind, seen = np.dtype(WIDE.get(dtype, dtype)), verb.endswith("_seen") or verb == "avg_shares"
    if verb in {"max_pool", "max_taps"}:
        x = drawn(g.x_shape)
        best, found = largest(g, x.view)
        if verb == "max_pool":
            return made(pooling.max_pool, x, place(g.y_shape, result), expected=best)
        number = pooling.numbers(g)
        return made(pooling.max_taps, x, place(g.y_shape, number), expected=found.astype(number))
    if verb == "max_pool_grad":
        dy = place(g.y_shape, dtype).fill((_integers if values is _special else values)(rng, g.y_shape, dtype))
        found = beside(g.y_shape, pooling.numbers(g))
        _, taps = largest(g, values(rng, g.x_shape, dtype))
        found.view[...] = taps.astype(found.flat.dtype)
        sums = np.zeros(g.x_shape, kind)
        for number, outputs, elements in taps_of(g):
            sums[elements] += np.where(taps[outputs] == number, dy.view[outputs], 0).astype(kind)
        return made(pooling.max_pool_grad, dy, found, place(g.x_shape, result), expected=sums)
    counts = np.zeros(g.y_shape, np.finfo(kind).dtype)  # real
    for _, outputs, _ in taps_of(g):
        counts[outputs] += 1
    if verb == "avg_shares":
        dy, shares = drawn(g.y_shape), place(g.y_shape, result)
        return made(pooling.avg_shares, dy, shares, expected=_divided(dy.view.astype(kind), counts))
    counts = counts if seen else np.full_like(counts, g.taps)
    forward = not verb.startswith("avg_pool_grad")
    a = drawn(g.x_shape if forward else g.y_shape)
    sums = np.zeros(g.y_shape if forward else g.x_shape, kind)
    for _, outputs, elements in taps_of(g):
        sums[outputs if forward else elements] += a.view[elements if forward else outputs].astype(kind)
    if forward:
        return made(pooling.avg_pool, a, place(g.y_shape, result), expected=_divided(sums, counts), seen=seen)
    expected = sums if seen else _divided(sums, counts.dtype.type(g.taps))
    return made(pooling.avg_pool_grad, a, place(g.x_shape, result), expected=expected, seen=seen)


def taps_of(g):
    """Every tap's number, the outputs for which it reads elements, and these."""
    for number, taps in enumerate(product(*map(range, g.kernel))):
        outputs, elements = zip(*(axis.seen(t) for axis, t in zip(g.axes, taps, strict=True)), strict=True)
        yield number, (..., *outputs), (..., *elements)


def largest(g, x):
    """The largest element of every window and the number of the first tap that reads it, or -1."""
    least = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    best, found = np.full(g.y_shape, least).astype(x.dtype), np.full(g.y_shape, -1)
    for number, outputs, elements in taps_of(g):
        there, here = best[outputs], x[elements]
        with np.errstate(invalid="ignore"):
            better = (found[outputs] < 0) | (here > there) | ((here != here) & (there == there))
        best[outputs], found[outputs] = np.where(better, here, there), np.where(better, number, found[outputs])
    return best, found


def _divided(sums, counts):
    """Both parts of a complex number by themselves, and by nothing where nothing is seen."""
    made = np.empty_like(sums)
    with np.errstate(all="ignore"):
        if sums.dtype.kind != "c":
            return sums / counts
        made.real, made.imag = sums.real / counts, sums.imag / counts
    return made


class Lanes(Case):
    """A result in partial sums, along its last axis."""

    def check(self, harness, kernel=None):
        parts, written = self.run(harness, kernel)
        np.testing.assert_array_equal(parts.sum(-1, dtype=parts.dtype), self.expected.astype(parts.dtype), strict=True)
        assert np.count_nonzero(written) == parts.size


def _integers(rng, shape, dtype):
    """Small integers, whose sums of products are exact in every dtype."""
    least = 0 if np.dtype(dtype).kind == "u" else -2
    real = rng.integers(least, 3, shape).astype(np.float64)
    return real + 1j * rng.integers(-2, 3, shape) if np.dtype(dtype).kind == "c" else real


def _special(rng, shape, dtype):
    """Few numbers, of which many are equal; zeros of either sign, NaN, infinities, and the least of the integers."""
    if np.dtype(dtype).kind in "iu":
        return rng.choice(np.array([np.iinfo(dtype).min, 0, 1, np.iinfo(dtype).max], dtype), shape)
    return rng.choice(
        np.array([-1, -0.0, 0, 1, -np.inf, np.inf, np.nan]), shape, p=[0.1, 0.1, 0.1, 0.2, 0.4, 0.05, 0.05]
    )


def normal(rng, shape, dtype):
    """Numbers whose sum depends on the order."""
    return rng.standard_normal(shape)


def mutated(kernel, pattern, slip):
    """The kernel with a slip in its text."""
    return kernel._replace(operation=re.sub(pattern, slip, kernel.operation))
