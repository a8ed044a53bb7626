"""Convolutions for the kernel on tensor cores: its arrays in many memory orders, beside what it must make of them."""

import re
from dataclasses import dataclass, replace

import numpy as np
from oracle import Oracle

from kernels.cases import WIDE, Placed, geometries
from xconv._geometry import Geometry
from xconv.backends.cupy import _implicit_kernel

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Case:
    product: _implicit_kernel.Product
    source: Placed
    filters: np.ndarray
    result: Placed
    expected: np.ndarray

    def check(self, harness, product=None):
        """Assert that every element is right, that all were written, and nothing beside them."""
        self.result.flat[...] = 77
        arrays = self.source.flat, self.filters.ravel(), self.result.flat
        written = harness.launch(product or self.product, *arrays)
        made = self.result.view
        np.testing.assert_array_equal(made, self.expected.astype(made.dtype), strict=True)
        assert np.count_nonzero(written) == self.expected.size

    def mutated(self, pattern, slip):
        """The kernel with a slip in its text."""
        return self.product._replace(kernel=re.sub(pattern, slip, self.product.kernel))


def packed(w, *, adjoint):
    """What `packed_filters` does, on NumPy."""
    w = w.swapaxes(0, 1) if adjoint else w
    width = _implicit_kernel.chunks(w.shape[1], w.itemsize) * 16 // w.itemsize
    u = np.zeros((w.shape[0], *w.shape[2:], width), w.dtype)
    u[..., : w.shape[1]] = np.moveaxis(w, 1, -1)
    return u


def case(g, dtype="float16", *, adjoint=False, seed=0, scattered=False, wide=False, nan=False, apart=0):
    """The case of one geometry, of small integers.

    With `scattered` the images lie in any order with gaps, or run backwards; otherwise channels are last. With `wide`,
    half types come out as float32. With `nan`, one element of the source is not a number. Images of the source lie so
    many elements `apart`. What is to be rounded to TF32 lies a little nearer to zero than the integers.
    """
    rng = np.random.default_rng(seed)
    options = {
        "stride": tuple(a.stride for a in g.axes),
        "dilation": tuple(a.dilation for a in g.axes),
        "padding": tuple((a.lo, a.hi) for a in g.axes),
    }
    oracle = Oracle(g.x_shape, g.w_shape, **options)
    shapes = (g.y_shape, g.x_shape) if adjoint else (g.x_shape, g.y_shape)
    dtypes = dtype, WIDE.get(dtype, dtype) if wide else dtype
    source, result = _placed(rng, shapes[0], dtypes[0], scattered, apart), _placed(rng, shapes[1], dtypes[1], scattered)
    values, w = rng.integers(-2, 3, shapes[0]).astype(float), rng.integers(-2, 3, g.w_shape).astype(float)
    if nan and values.size:
        values.reshape(*shapes[0][:2], -1)[-1, -1, -1] = np.nan
    beside = 1 - 2**-13 * (dtype == "float32")
    source.fill(values * beside)
    product = _implicit_kernel.product(g, source.memory, result.memory, adjoint=adjoint)
    expected = (oracle.input_grad if adjoint else oracle.conv)(values, w)
    return Case(product, source, packed((w * beside).astype(dtype), adjoint=adjoint), result, expected)


def _placed(rng, shape, dtype, scattered, apart=0):
    axes = tuple(range(len(shape)))
    last = (0, *axes[2:], 1)
    if not scattered:
        images = max(1, apart // max(1, int(np.prod(shape[1:]))))
        return Placed(shape, dtype, order=last, steps=(images, *(1 for _ in shape[1:])))
    order = (axes, last, (*axes[1:], 0), axes[::-1])[rng.integers(4)]
    steps = tuple(int(s) for s in rng.choice([1, 1, 1, 2, -1, -2], len(shape)))
    return Placed(shape, dtype, order=order, steps=steps, shift=int(rng.integers(0, 2)))


def random_cases(count, seed=0):
    """Any geometry, dtype and memory order; channels and filters that fill chunks and tiles, or do not."""
    rng = np.random.default_rng(seed)
    for i, g in enumerate(geometries(count, seed)):
        c, f = (int(rng.choice([0, 1, 3, 8, 16, 20, 33, 40] + [72] * (len(g.axes) == 1))) for _ in range(2))
        form = {"dtype": DTYPES[i % 3], "adjoint": i % 4 == 1, "scattered": i % 5 > 2, "wide": i % 7 > 3}
        yield case(replace(g, c_in=c, c_out=f), seed=i, nan=i % 11 == 0, **form)


def geometry(c_in, c_out, *axes, batch=2):
    return Geometry(batch, c_in, c_out, 1, axes)
