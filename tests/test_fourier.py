"""Fourier's algorithm: its values against plain loops, in blocks of any length, and its error against its promise."""

import time
from bisect import bisect_left
from dataclasses import replace
from itertools import accumulate, product, repeat
from math import prod
from operator import mul
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import Backend
from oracle import check_algorithm
from strategies import cases

import xconv
from xconv._arguments import geometry
from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv._planner import scheduled
from xconv._ranking import plans
from xconv.algorithms import _fourier
from xconv.algorithms._fourier import best_lengths, smooth
from xconv.backends.numpy import NumpyBackend
from xconv.backends.numpy import _fourier as of_numpy

#: Error of a sum of products of numbers of size 1, by dtype.
UNIT = {"float32": 1e-6, "float64": 1e-13}


@pytest.fixture(autouse=True)
def transforms(request):
    if "lib" in request.fixturenames and request.getfixturevalue("lib").backend is Backend.STRICTEST:
        pytest.skip("has no Fourier transforms")


def test_smooth():
    assert [smooth(n) for n in (0, 1, 7, 11, 13, 97, 161, 1025)] == [1, 1, 8, 12, 15, 100, 162, 1080]
    powers = product(*(accumulate(repeat(p, 12), mul, initial=1) for p in (2, 3, 5)))
    numbers = sorted(n for n in map(prod, powers) if n <= 4096)
    assert [smooth(n) for n in range(1, 4097)] == [numbers[bisect_left(numbers, n)] for n in range(1, 4097)]


def test_smooth_numbers_of_any_size():
    """They are not looked for one by one."""
    begin = time.perf_counter()
    found = [smooth(10**digits + 1) for digits in range(100)]
    assert time.perf_counter() - begin < 1
    assert found[12] == 2**5 * 3**22
    assert found[15] == 3**8 * 5**16


dtypes = st.sampled_from(["float64", "float64", "complex128"])


def test_any_geometry(lib):
    @lib.examples(5)
    @given(case=cases(), dtype=dtypes)
    def check(case, dtype):
        check_algorithm(lib, "fft", case, dtype, unit=UNIT)

    check()


def test_any_length(lib):
    """Blocks of a single output and of all, and transforms that are longer than they must be."""

    @lib.examples(5)
    @given(case=cases(), dtype=dtypes, surplus=st.lists(st.integers(0, 9), min_size=3, max_size=3))
    def check(case, dtype, surplus):
        def some_lengths(g):
            return tuple(axis.extent + more for axis, more in zip(g.axes, surplus, strict=False))

        scheduled.cache_clear()
        try:
            with mock.patch.object(_fourier, "best_lengths", some_lengths):
                check_algorithm(lib, "fft", case, dtype, unit=UNIT)
        finally:
            scheduled.cache_clear()

    check()


def test_lengths(rng):
    """They are smooth, hold a window, and are worth their choice: a tenth of the image for a small kernel."""
    x, w = rng.standard_normal((1, 1, 4000)), rng.standard_normal((1, 1, 31))
    (length,) = best_lengths(xconv.plan(x, w).schedule.geometry)
    assert smooth(length) == length
    assert 31 <= length <= 400
    whole = rng.standard_normal((1, 1, 3901))
    assert best_lengths(xconv.plan(x, whole).schedule.geometry) == (4000,)


def test_lengths_are_about_the_best(rng):
    """Of all combinations of what is tried on the axes, found on one axis after the other."""

    def some(rank, *choices):
        return tuple(int(n) for n in rng.choice(choices, rank))

    ratios = []
    for _ in range(200):
        rank, groups = int(rng.integers(1, 4)), int(rng.choice((1, 2, 8)))
        c_out, c_group, batch = some(3, 8, 16, 64)
        g = geometry(
            (batch, c_group * groups, *some(rank, 15, 33, 64, 100)),
            (c_out, c_group, *some(rank, 1, 3, 6, 11)),
            stride=some(rank, 1, 1, 2),
            padding=some(rank, 0, 1, 5),
            groups=groups,
        )
        tried = [[cut.length for cut in _fourier._cuts(axis)] for axis in g.axes]
        best = min(_fourier.total(g, lengths, _fourier.TIME) for lengths in product(*tried))
        ratios.append(_fourier.total(g, best_lengths(g), _fourier.TIME) / best)
    assert max(ratios) < 1.25
    assert np.mean(ratios) < 1.01


def test_lengths_of_an_empty_result():
    assert best_lengths(xconv.plan(np.ones((0, 0, 2)), np.ones((3, 0, 2))).schedule.geometry) == (2,)
    assert best_lengths(Geometry(1, 1, 1, 1, (Axis(0, 2), Axis(7, 2)))) == (2, 3)


def test_lengths_of_any_size():
    """Their cost may be too large for a float."""
    axis = Axis(10**15, 10**9, 10**185, 10**5, 10**200, 10**200)
    g = Geometry(10**9, 10**9, 10**9, 1, (axis, replace(axis, stride=10**200), axis))
    begin = time.thread_time()
    lengths = best_lengths(g)
    assert time.thread_time() - begin < 0.05
    assert all(length >= axis.extent for length, axis in zip(lengths, g.axes, strict=True))
    assert _fourier.total(g, lengths, _fourier.TIME) > 10**400


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "reason"),
    [
        ((9, 9), (3, 3), "int32", "the numbers are integers"),
        ((9,) + 31 * (1,), (3,) + 31 * (1,), "float32", "more than the 64 axes"),
    ],
)
def test_refusals(lib, shape, kernel, dtype, reason):
    x, w = lib.array(np.ones((1, 1, *shape)), dtype), lib.array(np.ones((1, 1, *kernel)), dtype)
    with pytest.raises(ValueError, match=f"'fft' cannot serve this convolution: .*{reason}"):
        xconv.conv(x, w, algorithm="fft")


def test_a_library_without_the_extension():
    strictest = Backend.STRICTEST.library()
    with strictest.active():
        x, w = strictest.array(np.ones((1, 1, 64, 64))), strictest.array(np.ones((1, 1, 31, 31)))
        with pytest.raises(ValueError, match=r"'fft' cannot serve this convolution: .* has no `fft` extension"):
            xconv.conv(x, w, algorithm="fft")
        assert xconv.plan(x, w).algorithm != "fft"


def test_auto_takes_it_only_where_it_may():
    x, w = np.ones((1, 1, 512, 512), np.float32), np.ones((1, 1, 31, 31), np.float32)
    assert xconv.plan(x, w, padding=15).algorithm == "fft"
    with xconv.config(numerics="strict"):
        assert xconv.plan(x, w, padding=15).algorithm != "fft"
    x, w = np.ones((8, 3, 224, 224), np.float32), np.ones((64, 3, 7, 7), np.float32)
    assert xconv.plan(x, w, stride=2, padding=3).algorithm in {"gemm", "mec"}  # which one is the processor's


def test_plan_counts_what_it_does():
    """Blocks of 10 outputs: 16 numbers of 2 * 2 * 3 of the image, as many of the result, and 9 of the filters."""
    p = xconv.plan(np.ones((2, 3, 26)), np.ones((3, 3, 7)), algorithm="fft")
    assert p.forward.tiled.algorithm.lengths == (16,)
    assert p.flops == 2 * (16 * 33 * 4 * 5 / 4 + 8 * 4 * 9 * 4)


@pytest.mark.numpy_only
def test_tiles_are_cut_between_blocks():
    """So that no block is transformed in two halves."""
    p = xconv.plan(np.ones((2, 8, 256, 256), np.float32), np.ones((8, 8, 31, 31), np.float32), padding=15)
    assert p.algorithm == "fft"
    assert p.tiles > 2

    def blocks(plan, g):
        side = plan.algorithm.sides(g).result.geometry
        return side.batch * side.pixels

    every = [plan for f in ("forward", "input_grad", "weight_grad") for plan in plans(p.schedule.problem, f)]
    every = [plan for plan in every if plan.algorithm.name == "fft" and plan.over == "outputs"]
    assert [plan.name for plan in every] == ["fft", "fft, reflected", "fft"]
    for plan in every:
        assert sum(blocks(plan, tile.geometry) for tile in plan.tiles) == blocks(plan, plan.geometry)


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("few", [1, 3000])
def test_filters_in_parts(rng, monkeypatch, dtype, few):
    """Some filters at a time, the last part being a smaller one, give what all of them at once do."""
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 6, 9, 8), (10, 3, 4, 3)))
    options = {"padding": 1, "groups": 2, "algorithm": "fft"}

    def results():
        y = xconv.conv(x, w, **options)
        return y, xconv.conv_input_grad(y, w, x.shape, **options), xconv.conv_weight_grad(y, x, w.shape, **options)

    whole = results()
    monkeypatch.setattr(of_numpy, "AT_A_TIME", few)
    for found, expected in zip(results(), whole, strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1), (4, 2)])
def test_lines_wherever_they_lie(rng, monkeypatch, dtype, channels):
    """Transforms from and to where the numbers are give what those of copies do, for one image and for several."""
    c_in, c_out = channels
    for batch in (1, 2):
        x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((batch, c_in, 30, 26), (c_out, c_in, 4, 3)))

        def results(x, w, algorithm):
            y = xconv.conv(x, w, padding=1, algorithm=algorithm)
            dx = xconv.conv_input_grad(y, w, x.shape, padding=1, algorithm=algorithm)
            return y, dx, xconv.conv_weight_grad(y, x, w.shape, padding=1, algorithm=algorithm)

        expected = results(x, w, "gemm")
        for least, few in product((1, 10**9), (1, 10**6)):
            monkeypatch.setattr(of_numpy, "LEAST_LOOP", least)
            monkeypatch.setattr(of_numpy, "AT_A_TIME", few)
            for found, right in zip(results(x, w, "fft"), expected, strict=True):
                assert np.allclose(found, right)


@pytest.mark.numpy_only
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_nothing_is_written_to_operands(rng, dtype):
    """Operands whose groups lie behind all else are as those of products number by number, which may be overwritten."""
    x, dy = (rng.standard_normal((1, 9, 8, 6)).astype(dtype) for _ in range(2))
    w = rng.standard_normal((6, 1, 1, 1)).astype(dtype)
    for array in (x, dy, w):
        array.flags.writeable = False
    options = {"groups": 6, "layout": "channels_last", "algorithm": "pointwise"}
    plain = {"groups": 6, "algorithm": "gemm"}
    x_, dy_ = (np.moveaxis(array, -1, 1) for array in (x, dy))
    assert np.allclose(xconv.conv(x, w, **options), np.moveaxis(xconv.conv(x_, w, **plain), 1, -1))
    dx = np.moveaxis(xconv.conv_input_grad(dy_, w, x_.shape, **plain), 1, -1)
    assert np.allclose(xconv.conv_input_grad(dy, w, x.shape, **options), dx)
    dw = xconv.conv_weight_grad(dy_, x_, w.shape, **plain)
    assert np.allclose(xconv.conv_weight_grad(dy, x, w.shape, **options), dw)


@pytest.mark.numpy_only
def test_sums_of_many_terms_are_no_operations_one_by_one(monkeypatch):
    """A term takes an operation where products are made number by number: of all pixels, that took 50 times as long."""
    summed, terms = NumpyBackend._summed, []

    def counted(backend, u, v, out):
        terms.append((u.shape[-1], out.size))
        return summed(backend, u, v, out)

    monkeypatch.setattr(NumpyBackend, "_summed", counted)
    x, w = np.ones((1, 40, 40, 8), np.float32), np.ones((8, 1, 1, 1), np.float32)
    dw = xconv.conv_weight_grad(x, x, w.shape, groups=8, layout="channels_last", algorithm="pointwise")
    assert np.array_equal(dw, 1600 * w)
    for x_shape, w_shape in (((1, 1, 5000), (1, 1, 5)), ((1, 300, 9), (1, 300, 3)), ((1, 1, 60, 60), (2, 1, 9, 9))):
        x, w = np.ones(x_shape), np.ones(w_shape)
        y = xconv.conv(x, w, algorithm="fft")
        assert np.allclose(y, w[0].size)
        assert np.allclose(xconv.conv_weight_grad(y, x, w_shape, algorithm="fft"), y[0, 0].sum())
    assert terms
    assert all(steps <= results for steps, results in terms)
