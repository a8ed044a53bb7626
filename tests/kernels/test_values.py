"""The kernels' own texts, on the CPU, against plain loops."""

from dataclasses import replace
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest

from kernels.cases import DTYPES, VERBS, Placed, case, even_geometries, geometries, normal
from kernels.cpu import KernelError, harness
from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv.backends.cupy import _kernels as texts
from xconv.backends.cupy import _lines


def check(cases):
    cases = list(cases)
    harness().prepare([(c.kernel, c.flats) for c in cases if c.kernel.size])
    for c in cases:
        c.check(harness())
    return cases


@pytest.mark.parametrize(("literal", "count"), [(False, 600), (True, 100)])
def test_any_geometry(literal, count):
    cases = check(
        case(verb, g, ("float32", "complex64")[i % 2], literal=literal, seed=i // 2, scattered=i % 3 > 0)
        for i, g in enumerate(geometries(count, seed=literal))
        for verb in VERBS
    )
    packed = {c.kernel.name.split("_")[1] for c in cases if not c.kernel.name.endswith("_1")}
    assert packed >= {"im2col", "col2im", "depthwise"}  # those that read several channels at once were among them


@pytest.mark.parametrize(("literal", "count"), [(False, 40), (True, 60)])
def test_neighbours_in_one_thread(literal, count):
    """On the last axis, whatever lies between the rest of the result, and wherever the input is."""
    dtypes = ("float16", "float32", "int8", "bfloat16", "float32", "int32", "float16", "float64")
    cases = check(
        case(verb, g, dtypes[i % 8], literal=literal, seed=i, even=True, scattered=i % 3 > 0, wide=i % 5 == 0)
        for i, g in enumerate(even_geometries(count, seed=9))
        for verb in VERBS
    )
    verbs = ("im2col", "depthwise", "col2im", "depthwise_input_grad") if literal else ("im2col", "depthwise")
    found = {(verb, pack_of(c)) for c, verb in zip(cases, VERBS * count, strict=True)}
    assert {pair for pair in found if pair[1] > 1} == set(product(verbs, (2, 4)))


def pack_of(c):
    return int(c.kernel.name.rpartition("_")[-1])


@pytest.mark.parametrize("verb", VERBS[:4])
def test_every_form_makes_the_same_bits(verb):
    """With neighbours and without, specialised and general: of sums in one order, and of infinite filters."""
    options = {"scattered": False, "even": True, "values": normal, "wide": True}
    forms = [{"literal": literal, "threads": threads} for literal in (True, False) for threads in (0, 2**40)]
    groups = [
        [case(verb, g, dtype, seed=i, **form, **options) for form in forms]
        for i, g in enumerate(even_geometries(6, seed=5))
        for dtype in ("float32", "float16")
    ]
    harness().prepare([(c.kernel, c.flats) for group in groups for c in group if c.kernel.size])
    for group in groups:
        for c in group:
            for w in c.arrays[1:-1]:
                w.view[..., 0] = np.inf
        first, *others = [np.ascontiguousarray(c.run(harness())[0]) for c in group]
        for other in others:
            assert np.array_equal(np.isnan(first), np.isnan(other))
            assert np.nan_to_num(first).tobytes() == np.nan_to_num(other).tobytes()
    assert {pack_of(c) for group in groups for c in group} == {1, 2, 4}


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype(dtype):
    check(
        case(verb, g, dtype, literal=i % 2 == 0, seed=i, scattered=i > 1)
        for i, g in enumerate(geometries(4, seed=7))
        for verb in VERBS
    )


def test_more_taps_than_are_written_out():
    """Sizes are literals, and the taps are still in a loop."""
    g = Geometry(2, 2, 2, 1, (Axis(17, 8, 2, 1, 3, 3), Axis(14, 7, 1, 2, 6, 6)))
    cases = check(case(verb, g, literal=True, seed=seed) for verb in VERBS for seed in range(2))
    assert all("for (I t0" in c.kernel.operation for c in cases if "weight" not in c.kernel.name)
    assert all(not c.kernel.numbers for c in cases)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_summed_in_float32(dtype):
    """Sums of odd numbers above 256 and 2048, which neither of the types can hold, come out as float32."""

    def odd(rng, shape, dtype):
        return 2.0 * rng.integers(32, 64, shape) + 1

    g = Geometry(2, 4, 4, 1, (Axis(9, 3, 1, 1, 1, 1), Axis(8, 3, 2, 1, 1, 1)))
    verbs = ("col2im", "depthwise", "depthwise_input_grad", "depthwise_weight_grad")
    check(
        case(verb, g, dtype, literal=literal, seed=seed, values=odd, scattered=seed > 1, wide=True)
        for verb, literal, seed in product(verbs, (True, False), range(4))
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "float16"])
@pytest.mark.parametrize("literal", [True, False])
def test_col2im_adds_in_the_order_of_the_taps(dtype, literal):
    """Bit for bit what NumPy makes of the taps one after the other."""
    cases = [
        case("col2im", g, dtype, literal=literal, seed=i, values=normal, wide=dtype == "float16", even=i >= 40)
        for i, g in enumerate((*geometries(40, seed=2), *even_geometries(20, seed=2)))
    ]
    assert any(pack_of(c) > 1 for c in cases) == (literal and dtype in {"float32", "float16"})
    harness().prepare([(c.kernel, c.flats) for c in cases if c.kernel.size])
    for c in cases:
        result, _ = c.run(harness())
        expected = tap_by_tap(c.geometry, c.arrays[0].view.astype(result.dtype))
        assert expected.tobytes() == np.ascontiguousarray(result).tobytes()


def tap_by_tap(g, cols):
    padded = np.zeros((g.batch, g.c_in, *g.padded), cols.dtype)
    for taps in product(*map(range, g.kernel)):
        ranges = (
            slice(t * a.dilation, t * a.dilation + (a.out - 1) * a.stride + 1, a.stride)
            for t, a in zip(taps, g.axes, strict=True)
        )
        padded[(..., *ranges)] += cols[(slice(None), slice(None), *taps)]
    x = np.zeros(g.x_shape, cols.dtype)
    outer, inner = zip(*(a.kept for a in g.axes), strict=True)
    x[(..., *inner)] = padded[(..., *outer)]
    return x


# Beyond 32 bits: memory that is never touched costs nothing.

PLANE = Geometry(3, 2, 2, 1, (Axis(5, 3, 2, 1, 1, 1), Axis(6, 2, 1, 2, 0, 1)))


def far_apart(verb, side, *, literal):
    """Three images, each of some 100 elements, in 2.4e9 elements of memory."""
    apart = (1_200_000_000, 0) if side == "input" else (0, 1_200_000_000)
    return case(verb, PLANE, "int8", literal=literal, seed=0, scattered=False, apart=apart)


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("side", ["input", "result"])
@pytest.mark.parametrize("verb", VERBS)
def test_offsets_above_32_bits(verb, side, literal):
    c = far_apart(verb, side, literal=literal)
    assert max(flat.size for flat in c.flats) > 2**31
    assert "_i64_" in c.kernel.name
    c.check(harness())
    narrow = c.kernel._replace(
        operation=c.kernel.operation.replace("long long I", "int I").replace("unsigned long long N", "unsigned int N"),
    )
    with pytest.raises((KernelError, AssertionError)):
        c.check(harness(), narrow)


@pytest.mark.parametrize("literal", [True, False])
def test_more_than_2_31_column_elements(literal):
    """Contiguous columns of 2.4e9 elements; the threads of the last image alone are run."""
    g = Geometry(2700, 1, 1, 1, (Axis(300, 3, 1, 1, 1, 1), Axis(330, 3, 1, 1, 1, 1)))
    one = Geometry(1, 1, 1, 1, g.axes)
    x, cols, dx = Placed(g.x_shape, "int8"), Placed(g.columns_shape, "int8"), Placed(g.x_shape, "int8")
    assert cols.flat.size > 2**31
    x.view[-1] = np.random.default_rng(0).integers(-9, 10, g.x_shape[1:])
    fold = case("im2col", one, "int8", seed=0, scattered=False)
    fold.arrays[0].view[...] = x.view[-1:]
    expected, _ = fold.run(harness())
    unfold = texts.im2col(g, x.memory, cols.memory, literal=literal)
    assert unfold.name.endswith("_i64_1")
    harness().launch(unfold, x.flat, cols.flat, threads=range(unfold.size - unfold.size // g.batch, unfold.size))
    assert np.array_equal(cols.view[-1:], expected)
    back = texts.col2im(g, cols.memory, dx.memory, literal=literal)
    harness().launch(back, cols.flat, dx.flat, threads=range(back.size - back.size // g.batch, back.size))
    counts = tap_by_tap(one, np.ones(one.columns_shape, np.int8))
    assert np.array_equal(dx.view[-1:], x.view[-1:] * counts)


def test_where_neighbours_share_a_thread():
    """Where each of their stores is aligned, enough threads are left, and the phases of a stride are known."""
    g = Geometry(2, 3, 3, 1, (Axis(5, 3, 1, 1, 1, 1), Axis(16, 3, 2, 1, 1, 1)))

    def pack(verb="im2col", dtype="float16", *, g=g, literal=True, threads=0, **lie):
        size = np.dtype(dtype).itemsize
        x, cols = (_lines.Memory(dtype, size, s, _contiguous(s), 0, True) for s in (g.x_shape, g.columns_shape))
        source, result = (x, cols) if verb == "im2col" else (cols, x)
        with patch.object(_lines, "THREADS", threads):
            name = getattr(texts, verb)(g, source, result._replace(**lie), literal=literal).name
        return int(name.rpartition("_")[-1])

    def strided(stride, dilation=1):
        return replace(g, axes=(g.axes[0], Axis(16, 3, stride, dilation, 1, 16 * stride - 18 + 2 * dilation)))

    assert [pack(dtype=d) for d in ("int8", "float16", "float32", "float64", "complex64")] == [4, 4, 2, 1, 1]
    assert [pack(literal=False), pack("col2im"), pack("col2im", literal=False)] == [4, 4, 1]
    windows = 2 * 3 * 5 * 8
    assert [pack(threads=windows // n + m) for n, m in ((4, 0), (4, 1), (2, 0), (2, 1))] == [4, 2, 2, 1]
    assert [pack("col2im", g=strided(s, d)) for s, d in ((1, 1), (2, 2), (3, 1), (4, 3), (5, 1))] == [4, 4, 1, 4, 1]
    assert [pack("col2im", "float32", g=strided(s)) for s in (1, 2, 4)] == [2, 2, 1]
    assert [pack(start=start) for start in (4, 2, 1)] == [4, 2, 1]
    assert pack(aligned=False) == 1
    steps = _contiguous(g.columns_shape)
    assert [pack(steps=(*steps[:-1], step)) for step in (2, -1)] == [1, 1]
    assert [pack(steps=(steps[0] + more, *steps[1:])) for more in (4, 2, 1)] == [4, 2, 1]
    one = replace(g, batch=1)
    assert pack(g=one, steps=(1, *_contiguous(one.columns_shape)[1:])) == 4  # a step that nobody takes
    assert pack(g=one, steps=(2**31, *_contiguous(one.columns_shape)[1:])) == 1  # 64 bits


def test_indices_are_as_wide_as_they_must_be():
    """Offsets beyond the array count where padding leads there, and nowhere else."""

    def bits(g, *steps):
        x = _lines.Memory("int8", 1, g.x_shape, steps or _contiguous(g.x_shape), 0)
        cols = _lines.Memory("int8", 1, g.columns_shape, _contiguous(g.columns_shape), 0)
        (name,) = {texts.im2col(g, x, cols, literal=literal).name.split("_")[-2] for literal in (False,)}
        return name

    small = 2**20
    inside = Geometry(1, 1, 1, 1, (Axis(small, 1), Axis(1, 1)))
    assert bits(inside, 1, 1, 2**31 // small - 1, 1) == "i32"
    assert bits(inside, 1, 1, 2**31 // small + 1, 1) == "i64"
    padded = Geometry(1, 1, 1, 1, (Axis(small, 1, 1, 1, small // 2, 0), Axis(1, 1)))
    assert bits(padded, 1, 1, 2**31 // small * 3 // 4, 1) == "i64"
    # A long kernel on an array of many channels, of which a margin there would make too many.
    many = Geometry(1, 64, 64, 1, (Axis(1024, 3, 1, 1, 1, 1), Axis(1024, 3, 1, 1, 1, 1)))
    assert bits(many) == "i32"
    # What `read_by` squares: the period of a stride.
    stride = Geometry(1, 1, 1, 1, (Axis(50_000, 2, 50_000, 1, 25_000, 25_000),))
    assert bits(stride) == "i64"


def _contiguous(shape):
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
