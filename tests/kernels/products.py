"""Convolutions for the kernels on tensor cores: arrays in many memory orders, beside what must be made of them."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from oracle import Oracle

from kernels.cases import WIDE, Placed, geometries
from xconv._geometry import Geometry
from xconv.backends.cupy import _implicit_kernel

DTYPES = ("float16", "bfloat16", "float32")
FUNCTIONS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Case:
    """The kernels of one function, which write to one result: the image that is gathered, and what multiplies it."""

    products: tuple[_implicit_kernel.Product, ...]
    source: Placed
    other: Placed
    result: Placed
    expected: np.ndarray
    #: The largest error of an element, where sums are not exact.
    error: float = 0

    @property
    def product(self):
        """The first kernel."""
        return self.products[0]

    @property
    def flats(self):
        return self.source.flat, self.other.flat, self.result.flat

    def check(self, harness, products=None):
        """Assert that every element is right, that all were written once, and nothing beside them."""
        self.result.flat[...] = 77
        written = np.zeros(self.result.flat.size, int)
        for product in products or self.products:
            written += harness.launch(product, *self.flats)
        made = self.result.view
        assert written.max(initial=0) <= 1
        assert written.sum() == made.size
        made = made.sum(0) if made.ndim > self.expected.ndim else made  # the lanes of a weight gradient
        np.testing.assert_allclose(made, self.expected.astype(made.dtype), rtol=0, atol=self.error, strict=True)

    def mutated(self, pattern, slip):
        """The kernels with a slip in their text."""
        return tuple(p._replace(kernel=re.sub(pattern, slip, p.kernel)) for p in self.products)


def packed(w, g, *, adjoint):
    """The filters as the kernels take them, on NumPy."""
    w = w.reshape(g.groups, g.c_out // g.groups, *w.shape[1:])
    w = w.swapaxes(1, 2) if adjoint else w
    flat = Placed((_implicit_kernel.filters_size(g, w.itemsize, adjoint=adjoint),), w.dtype)
    for phase in _implicit_kernel.phases(g, w.itemsize, adjoint=adjoint):
        taps = w[(..., *(side.taps for side in phase.sides))]
        rows = np.moveaxis(taps, 2, -1).reshape(g.groups * w.shape[1], -1 if taps.size else 0)
        to = flat.flat[phase.start : phase.start + len(rows) * phase.depth].reshape(len(rows), phase.depth)
        to[:, : rows.shape[1]] = rows
    return flat


def case(
    g,
    dtype="float16",
    function="forward",
    *,
    tf32=False,
    seed=0,
    order="last",
    wide=False,
    nan=False,
    apart=0,
    high=3,
    literal=True,
):
    """The case of one geometry, of small integers.

    The images lie in one of three ways: channels "last", channels "first", or "scattered" in any order with gaps, or
    backwards. With `wide`, half types come out as float32. With `nan`, one element of the source is not a number.
    Images of the source lie so many elements `apart`; where there is one, its pixels along the first axis do. What is
    to be rounded to TF32 lies a little nearer to zero than the integers, which are below `high`: where that is more
    than a TF32 can hold, sums are not exact. Sizes are in the text where that is `literal`.
    """
    rng = np.random.default_rng(seed)
    options = {
        "stride": tuple(a.stride for a in g.axes),
        "dilation": tuple(a.dilation for a in g.axes),
        "padding": tuple((a.lo, a.hi) for a in g.axes),
        "groups": g.groups,
    }
    oracle = Oracle(g.x_shape, g.w_shape, **options)
    shapes = {"x": g.x_shape, "y": g.y_shape, "w": g.w_shape}
    values = {name: rng.integers(1 - high, high, shape).astype(float) for name, shape in shapes.items()}
    read = "y" if function == "input_grad" else "x"
    if nan and values[read].size:
        values[read].reshape(*shapes[read][:2], -1)[-1, -1, -1] = np.nan
    beside = 1 - 2**-13 * tf32
    source = _placed(rng, shapes[read], dtype, order, apart).fill(values[read] * beside)
    if function == "weight_grad":
        other, dtype = _placed(rng, g.y_shape, dtype, order).fill(values["y"] * beside), "float32"
        result = Placed((_implicit_kernel.lanes(g), *g.w_shape), dtype)
        products = _implicit_kernel.weight_gradient(g, source.memory, other.memory, tf32=tf32, literal=literal)
        return Case(tuple(products), source, other, result, oracle.weight_grad(values["y"], values["x"]))
    adjoint = function == "input_grad"
    other = packed((values["w"] * beside).astype(source.flat.dtype), g, adjoint=adjoint)
    written = WIDE.get(dtype, dtype) if wide else dtype
    result = _placed(rng, g.x_shape if adjoint else g.y_shape, written, order)
    products = _implicit_kernel.convolutions(
        g, source.memory, result.memory, adjoint=adjoint, tf32=tf32, literal=literal
    )
    expected = (oracle.input_grad if adjoint else oracle.conv)(values[read], values["w"])
    error = 0 if high == 3 else 4e-7 * np.nanmax(abs(expected))
    return Case(tuple(products), source, other, result, expected, error)


def _placed(rng, shape, dtype, order, apart=0):
    axes = tuple(range(len(shape)))
    last = (0, *axes[2:], 1)
    if order != "scattered":
        steps = [1 for _ in shape]
        steps[0 if shape[0] > 1 else 2] = max(1, apart // max(1, int(np.prod(shape[1:]))))
        return Placed(shape, dtype, order=last if order == "last" else axes, steps=steps)
    order = (axes, last, (*axes[1:], 0), axes[::-1])[rng.integers(4)]
    steps = tuple(int(s) for s in rng.choice([1, 1, 1, 2, -1, -2], len(shape)))
    return Placed(shape, dtype, order=order, steps=steps, shift=int(rng.integers(0, 2)))


def random_cases(count, seed=0):
    """Any geometry, dtype, function and memory order; channels and filters that fill chunks and tiles, or do not."""
    rng = np.random.default_rng(seed)
    for i, g in enumerate(geometries(count, seed)):
        groups = int(rng.choice([1, 1, 2]))
        c, f = (
            groups * int(rng.choice([0, 1, 3, 8, 16, 20, 33, 40] + [72] * (len(g.axes) == 1))) // groups for _ in "cf"
        )
        g = replace(g, c_in=groups * (c // groups), c_out=groups * (f // groups), groups=groups)
        dtype, function = DTYPES[i % 3], FUNCTIONS[i // 3 % 3]
        if function == "weight_grad":
            if not math.prod(g.y_shape) * math.prod(g.w_shape):
                continue  # nothing to launch
            dtype = "float32"
        form = {
            "literal": i % 4 > 0,
            "tf32": dtype == "float32" and i % 2 == 0,
            "order": ("last", "first", "scattered")[i // 9 % 3],
        }
        yield case(g, dtype, function, seed=i, wide=i % 7 > 3, nan=i % 11 == 0, **form)


def geometry(c_in, c_out, *axes, batch=2, groups=1):
    return Geometry(batch, c_in, c_out, groups, axes)


def number(product, name):
    """One of the numbers in a kernel's text."""
    return int(re.search(rf" {name} = (-?\d+);", product.head).group(1))
