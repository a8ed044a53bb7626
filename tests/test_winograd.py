"""Winograd's algorithm: its matrices exactly, its values against plain loops, its error against its promise."""

import math
import threading
from functools import cache
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import check_algorithm
from strategies import Case

import xconv
from xconv._ranking import plans
from xconv.algorithms import _winograd
from xconv.algorithms._winograd import MOST_TAPS, bank, outputs, parts
from xconv.backends.numpy import _spectra, _turning
from xconv.primitives import Team

#: Error of a sum of products of numbers of size 1, by dtype.
UNIT = {"float32": 1e-5, "float64": 1e-12}
#: How many times as large a sum on the way can be as the operands and the terms of a result, by the number of axes.
GROWN = {1: 40, 2: 1600, 3: 5000}


WINDOWS = [(taps, stride) for taps in range(2, MOST_TAPS + 1) for stride in range(1, min(taps, 6))]


@pytest.mark.parametrize(("taps", "stride"), WINDOWS)
def test_matrices_are_exact(taps, stride):
    """The sum over the frequencies of A[f, j] G[f, k] B[f, i] is 1 where i = stride * j + k, and 0 elsewhere."""
    for m in (2, 4):
        a, g, b = (np.array(matrix, dtype=object) for matrix in bank(m, taps, stride))
        total = np.einsum("fj,fk,fi->jki", a, g, b)
        for j, k, i in product(range(m), range(taps), range((m - 1) * stride + taps)):
            assert total[j, k, i] == (1 if i == stride * j + k else 0)


def test_multiplications_of_a_tile():
    """Four outputs of three taps by 6, and not 12; with a stride of 2, by 5 and 4; long kernels in parts."""
    assert len(bank(4, 3).analysis) == 6
    assert len(bank(4, 3, 2).analysis) == 5 + 4
    assert len(bank(4, 5, 2).analysis) == 6 + 5
    assert len(bank(4, 7, 2).analysis) == 7 + 6
    assert len(bank(4, 9).analysis) == 7 + 8
    assert len(bank(4, 11, 4).analysis) == 3 * 6 + 5
    assert [list(part) for part in parts(11, 1)] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert [list(part) for part in parts(7, 3)] == [[0, 3, 6], [1, 4], [2, 5]]


def growth(m, taps, stride):
    """The same for one axis, of operands under a matrix, of products and of results; the last tile may be cut off."""
    return max(_growth(m, taps, stride, outs) for outs in range(1, m + 1))


@cache
def _growth(m, taps, stride, outs):
    a, g, b = (np.abs(np.array(matrix, float)) for matrix in bank(m, taps, stride))
    a = a[:, :outs]
    rows = [matrix.sum(axis=1) for matrix in (a, g, b)]
    grown = [np.max(row) for row in rows]
    for i, (result, terms) in enumerate(zip((a, g, b), (taps, outs, taps), strict=True)):
        products = math.prod(rows[:i] + rows[i + 1 :])
        grown += [np.max(products) / terms, np.max(products @ result) / terms]
    return max(grown)


@pytest.mark.parametrize("rank", GROWN)
def test_growth(rank):
    largest = 0
    for windows in combinations_with_replacement([(1, 1), *WINDOWS], rank):
        kernel, strides = zip(*windows, strict=True)
        if steps := outputs(kernel, strides):
            largest = max(largest, math.prod(map(growth, steps, kernel, strides)))
    assert 0.9 * GROWN[rank] <= largest <= GROWN[rank]


def test_tiles_by_window():
    assert outputs((3, 3), (1, 1)) == (4, 4)
    assert outputs((3, 3), (2, 2)) == (4, 4)
    assert outputs((5, 5), (1, 1)) == (4, 4)
    assert outputs((7, 7), (1, 1)) == (4, 4)
    assert outputs((1, 3), (1, 1)) == (1, 4)
    assert outputs((3, 3, 3), (1, 1, 1)) == (4, 4, 4)
    assert outputs((5, 5, 5), (1, 1, 1)) == (2, 2, 2)
    assert outputs((5, 5, 5), (2, 2, 2)) == (2, 2, 2)
    assert outputs((2, 2, 2), (1, 1, 1)) == (2, 2, 2)
    assert outputs((7, 7), (2, 2)) == (2, 2)
    assert outputs((4, 4, 4), (1, 1, 1)) is None
    assert outputs((5, 5, 5, 5), (1, 1, 1, 1)) is None


@st.composite
def cases(draw):
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups, c, f = draw(st.integers(1, 2)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    size, kernel, padding, strides = [], [], [], []
    for _ in range(rank):
        k = draw(st.integers(1, {1: MOST_TAPS, 2: 7, 3: 3}[rank]))
        n = draw(st.integers(0, {1: 14, 2: 9, 3: 5}[rank]))
        lo = draw(st.integers(-1, 4))
        size.append(n)
        kernel.append(k)
        strides.append(draw(st.integers(1, max(1, min(k - 1, 5)))))
        padding.append((lo, draw(st.integers(max(-1, k - n - lo), max(4, k - n - lo)))))
    kernel[at := draw(st.integers(0, rank - 1))] = 3
    strides[at] = draw(st.integers(1, 2))
    padding = [
        (max(lo, 0) + 1, max(hi, 0) + 1) if k == 3 else (lo, hi) for k, (lo, hi) in zip(kernel, padding, strict=True)
    ]
    mode = "constant" if 0 in size else draw(st.sampled_from(["constant", "constant", "wrap"]))
    options = {"padding": tuple(padding), "stride": tuple(strides), "groups": groups, "pad_mode": mode}
    layout = draw(st.sampled_from(["channels_first", "channels_last"]))
    shapes = (draw(st.integers(0, 3)), groups * c, *size), (groups * f, c, *kernel)
    return Case(*shapes, options, draw(st.integers(0, 2**16)), layout)


def test_any_geometry(lib):
    @lib.examples(5)
    @given(case=cases(), dtype=st.sampled_from(["float64", "float64", "complex128"]))
    def check(case, dtype):
        check_algorithm(lib, "winograd", case, dtype, unit=UNIT)

    check()


@pytest.mark.parametrize("filters", [0, 2])
def test_cropped(lib, filters):
    """What negative padding leaves out gets no gradient; nothing does where there are no filters."""
    options = {"padding": ((-1, 0), (1, 1)), "groups": 1, "pad_mode": "constant"}
    check_algorithm(lib, "winograd", Case((1, 1, 9, 9), (filters, 1, 3, 3), options), "float64", unit=UNIT)


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "dtype", "reason"),
    [
        ((9, 9), (3, 3), {"stride": (2, 3)}, "float32", "no two windows share an element on an axis with a stride"),
        ((9, 9), (3, 1), {"stride": 2}, "float32", "no two windows share an element on an axis with a stride"),
        ((9, 9), (3, 3), {"dilation": 2}, "float32", "the dilation is above 1"),
        ((9, 9), (1, 1), {}, "float32", "a kernel of one tap has nothing to save"),
        ((9, 19), (3, 17), {}, "float32", "more than 16 taps"),
        ((9,) + 30 * (1,), (3,) + 30 * (1,), {}, "float32", "more than the 64 axes"),
        ((9,) * 4, (5,) * 4, {}, "float32", "its error would be too large"),
        ((9, 9), (3, 3), {}, "int32", "the numbers are integers"),
    ],
)
def test_refusals(lib, shape, kernel, options, dtype, reason):
    x, w = lib.array(np.ones((1, 2, *shape)), dtype), lib.array(np.ones((2, 2, *kernel)), dtype)
    with pytest.raises(ValueError, match=f"'winograd' cannot serve this convolution: .*{reason}"):
        xconv.conv(x, w, **options, algorithm="winograd")


def test_dilation_of_a_single_tap_is_no_matter(rng):
    x, w = rng.standard_normal((1, 2, 9, 9)), rng.standard_normal((2, 2, 3, 1))
    y = xconv.conv(x, w, dilation=(1, 2), algorithm="winograd")
    assert np.allclose(y, xconv.conv(x, w, algorithm="gemm"))


def test_auto_takes_it_only_where_it_may():
    x, w = np.ones((8, 128, 28, 28), np.float32), np.ones((128, 128, 3, 3), np.float32)
    assert xconv.plan(x, w).algorithm == "winograd"
    assert xconv.plan(x, np.ones((128, 128, 5, 5), np.float32), stride=2, padding=2).algorithm == "winograd"
    with xconv.config(numerics="strict"):
        assert xconv.plan(x, w).algorithm == "gemm"
    deep = np.ones((8, 128, 28, 28), np.float32), np.ones((128, 1, 3, 3), np.float32)
    assert xconv.plan(*deep, groups=128).algorithm != "winograd"


@pytest.mark.numpy_only
def test_tiles_are_cut_between_segments():
    """Rows of 24 in thirds or quarters of four segments, and not in halves of three."""
    p = xconv.plan(np.ones((1, 32, 24, 24, 24), np.float32), np.ones((32, 32, 3, 3, 3), np.float32), padding=1)
    assert p.algorithm == "winograd"
    assert p.tiles > 1
    every = [plan for f in ("forward", "input_grad", "weight_grad") for plan in plans(p.schedule.problem, f)]
    every = [plan for plan in every if plan.algorithm.name == "winograd" and plan.over == "outputs"]
    assert [plan.name for plan in every] == ["winograd", "winograd, reflected", "winograd"]
    for plan in every:
        assert all(index.start % 4 == 0 for tile in plan.tiles for index in tile.y[2:])


@pytest.mark.numpy_only
@pytest.mark.parametrize("c_out", [16, 64, 256, 1024])
def test_filters_are_transformed_in_large_parts(c_out):
    """All of them in as much temporary memory as the spectra take, but no more than a cache holds; many by threads."""
    g = xconv.plan(np.ones((1, 64, 8, 8)), np.ones((c_out, 64, 3, 3)), algorithm="winograd").schedule.geometry
    layout = _spectra.layout(*_winograd.sides(g).filters, np.dtype(np.float64), lasting=True)
    assert layout.shares == (4 if c_out == 1024 else 1)
    assert layout.shares <= len(layout.parts) <= 2 * layout.shares
    assert layout.shares * layout.spare <= min(2**21, math.prod(layout.spectra))
    assert _winograd.Winograd().filters(g) >= math.prod(layout.spectra) + layout.shares * layout.spare
    assert layout.shared(None) is None
    assert layout.shared(Team(limit=9)).limit == layout.shares


@pytest.mark.numpy_only
@pytest.mark.parametrize("kernel", [(3, 3), (16,), (5, 5, 5), (16, 16, 5), (15, 15, 15), (3, 1, 3, 3)])
@pytest.mark.parametrize("channels", [(1, 1), (1, 200), (200, 1), (3, 5)])
def test_memory_of_few_filters(kernel, channels):
    """That of a single one is known, too, which may take more between two axes than its spectra."""
    x, w = np.ones((1, channels[1], *(k + 1 for k in kernel)), np.float32), np.ones((*channels, *kernel), np.float32)
    g = xconv.plan(x, w, algorithm="winograd").schedule.geometry
    for side in (_winograd.sides(g).filters, _winograd.sides(g).exchanged):
        layout = _spectra.layout(*side, np.dtype(np.float32), lasting=True)
        taken = []

        def take(shape, dtype, taken=taken):
            taken.append(math.prod(shape))
            return np.zeros(shape, dtype)

        n, c = side.geometry.batch, side.geometry.c_in
        for part in layout.parts:
            images = np.moveaxis(np.ones((1, n, c, *kernel), np.float32), 2, -1)[:, part]
            v = np.zeros(layout.spectra, np.float32)
            for run, order in ((_spectra.spread, 1), (_spectra.gather, -1)):
                taken.clear()
                pair = (images.copy(), layout.images_of(v, part))[::order]
                run(take, pair[0], side.geometry, layout, pair[1])
                assert sum(taken) <= layout.spare
        assert math.prod(layout.spectra) + layout.shares * layout.spare <= _winograd.Winograd().filters(g)


@pytest.mark.numpy_only
def test_filters_are_transformed_side_by_side(rng, monkeypatch):
    """By the threads that work on the tiles, into the same bits."""
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 64, 16, 16), (1024, 64, 3, 3)))
    expected, spread = xconv.conv(x, w, algorithm="winograd"), _spectra.spread
    for threads in (1, 2, 3):
        seen, together = set(), threading.Barrier(threads, timeout=20)

        def noted(take, images, g, layout, v, seen=seen, together=together):
            if layout.shares > 1 and threading.get_ident() not in seen:
                seen.add(threading.get_ident())
                together.wait()
            spread(take, images, g, layout, v)

        monkeypatch.setattr(_spectra, "spread", noted)
        with xconv.config(threads=threads):
            assert np.array_equal(xconv.conv(x, w, algorithm="winograd"), expected)
        assert len(seen) == threads


@pytest.mark.numpy_only
@pytest.mark.parametrize("size", [(32, 32), (40, 60), (2600,), (12, 13, 14), (5, 5), (2, 2100)])
@pytest.mark.parametrize("channels", [1, 5, 33, 128, 130])
def test_images_are_turned_in_parts(rng, size, channels):
    """Their channels are brought behind the pixels, by way of no more memory than is said."""
    taken = []

    def take(shape, dtype):
        taken.append(math.prod(shape))
        return np.empty(shape, dtype)

    first = rng.standard_normal((1, 2, channels, *size)).astype(np.float32)
    last = np.moveaxis(first, 2, -1)
    for images in (last, last.copy()):
        out = np.zeros(last.shape, np.float32)
        _turning.turn(take, out, images)
        assert np.array_equal(out, last)
    assert len(taken) == (math.prod(size) >= 1024 and channels >= 128)
    assert sum(taken) == _turning.spare(math.prod(size), channels)
