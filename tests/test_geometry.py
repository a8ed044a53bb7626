"""Geometry by itself: what the padding reads, and that tiles are the same convolution in parts."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases

from xconv import _axis
from xconv._arguments import geometry
from xconv._axis import Axis, Run
from xconv._geometry import Geometry
from xconv._tiler import borders, tiles

pytestmark = pytest.mark.numpy_only


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_runs_are_numpys_padding(mode, size):
    for lo in range(-2, 13):
        for hi in range(-2, 13):
            if size + lo + hi < 1:
                continue
            axis = Axis(size, 1, lo=lo, hi=hi)
            read = [i for run in axis.runs(mode, slice(0, axis.padded)) for i in elements(run)]
            extended = np.pad(np.arange(size), (max(lo, 0), max(hi, 0)), mode=mode)
            assert read == list(extended[max(-lo, 0) : len(extended) - max(-hi, 0)])
            for begin, end in ((1, axis.padded), (0, axis.padded // 2)):
                assert [i for run in axis.runs(mode, slice(begin, end)) for i in elements(run)] == read[begin:end]


def elements(run):
    """What a run reads, element by element."""
    once = [run.start + i * run.step for i in range(run.length)]
    return (once + once[run.inner][: run.back][::-1]) * run.repeats


def test_runs_are_few():
    def runs(mode, size=10, lo=3, hi=2):
        axis = Axis(size, 3, lo=lo, hi=hi)
        return list(axis.runs(mode, slice(0, axis.padded)))

    assert runs("reflect") == [Run(3, 3, -1), Run(0, 10, 1), Run(8, 2, -1)]
    assert runs("symmetric") == [Run(2, 3, -1), Run(0, 10, 1), Run(9, 2, -1)]
    assert runs("wrap") == [Run(7, 3, 1), Run(0, 10, 1), Run(0, 2, 1)]
    assert runs("edge") == [Run(0, 1, 1, 3), Run(0, 10, 1), Run(9, 1, 1, 2)]
    assert runs("wrap", 4, 10**12 + 1, 0) == [Run(3, 1, 1), Run(0, 4, 1, 10**12 // 4), Run(0, 4, 1)]
    assert runs("reflect", 4, 6 * 10**12, 0) == [Run(0, 4, 1, 10**12, 2), Run(0, 4, 1)]
    assert runs("symmetric", 4, 8 * 10**12, 0) == [Run(0, 4, 1, 10**12, 4), Run(0, 4, 1)]
    assert len(runs("reflect", 3, 10**12, 10**12)) <= 8


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("lo", [-3, 0, 4, 30])
def test_gathered_taps_are_the_taps(stride, lo):
    for size, dilation, hi in product((0, 1, 9, 40), (7, 12, 13), (-2, 0, 5, 50)):
        axis = Axis(size, 3, stride, dilation, lo, hi)
        if not axis.gap:
            continue
        gathered = axis.gathered()
        assert (gathered.out, gathered.gap, gathered.is_padded) == (axis.out, 0, False)
        elements = [None] * gathered.size
        for place, part in axis.segments():
            elements[place] = range(size)[part]
        for o, t in product(range(axis.out), range(3)):
            p = o * stride + t * dilation - lo
            assert elements[o + t * gathered.dilation] == (p if 0 <= p < size else None)


@pytest.mark.parametrize("stride", [1, 4, 9, 14])
@pytest.mark.parametrize("dilation", [1, 3, 5, 11])
@pytest.mark.parametrize("gap", [0, 2, 5])
def test_borders_are_the_padding_that_windows_see(monkeypatch, stride, dilation, gap):
    monkeypatch.setattr(_axis, "LONG_GAP", gap)
    for lo, hi, kernel in product((-9, -2, 0, 7, 40), (-1, 0, 3, 50), (1, 2, 3)):
        axis = Axis(6, kernel, stride, dilation, lo, hi)
        if axis.padded < 1:
            continue
        seen = sorted({o * stride + t * dilation for o in range(axis.out) for t in range(kernel)})
        assert covered(axis.islands()) == filled(seen, gap)
        kept = axis.kept[0]
        zones = list(axis.zones())
        assert zones.count(kept) == (kept.start < kept.stop)
        zones = [zone for zone in zones if zone != kept]
        outside = set(range(axis.padded)) - set(range(kept.start, kept.stop))
        assert covered(zones) == [p for p in filled(seen, gap) if p in outside]


def covered(parts):
    return [p for part in parts for p in range(part.start, part.stop)]


def filled(places, gap):
    """The places, and those in gaps between them that are no longer than `gap`."""
    between = [range(a + 1, b) for a, b in pairwise(places) if b - a - 1 <= gap]
    return sorted([*places, *(p for part in between for p in part)])


def test_borders_are_found_one_by_one():
    g = geometry((1, 1, 9, 9), (1, 1, 3, 3), stride=10**6, padding=10**12, pad_mode="edge")
    first = next(borders(g, 100, lambda part: part.pixels))
    assert first.strip.x[2:] == (slice(0, 3), slice(0, 3))
    assert first.strip.geometry.out == (1, 1)


def test_far_taps_are_those_worth_a_copy_each():
    def far(x_shape, w_shape, out, **options):
        return geometry(x_shape, w_shape, **options).largest("outputs", (1, *out)).far

    assert far((1, 1, 10**6), (1, 1, 3), (1000,), dilation=300_000) == (True,)
    assert far((1, 1, 10**6), (1, 1, 3), (400_000,), dilation=300_000) == (False,)
    assert far((1, 256, 99, 99), (1, 256, 3, 3), (2, 60), dilation=36, padding=36) == (True, False)
    assert far((1, 1, 99, 99), (1, 1, 3, 3), (2, 2), dilation=3) == (False, False)
    assert far((1, 1, 10**5), (1, 1, 1000), (1,), dilation=50) == (False,)


def meetings(g, tile=None):
    """Which input of which image meets which tap in which output, counted by plain loops, in the whole's numbers."""
    part = g if tile is None else tile.geometry
    starts = [(0, 0)] * (1 + len(g.axes))
    if tile is not None:
        starts = [(tile.x[0].start, tile.y[0].start)]
        starts += [(a.start, b.start) for a, b in zip(tile.x[2:], tile.y[2:], strict=True)]
    found = Counter()
    for n in range(part.batch):
        for o in np.ndindex(*part.out):
            for t in np.ndindex(*part.kernel):
                p = [i * a.stride + j * a.dilation - a.lo for i, j, a in zip(o, t, part.axes, strict=True)]
                if all(0 <= i < a.size for i, a in zip(p, part.axes, strict=True)):
                    x = tuple(i + first for i, (first, _) in zip((n, *p), starts, strict=True))
                    y = tuple(i + first for i, (_, first) in zip((n, *o), starts, strict=True))
                    found[x, t, y] += 1
    return found


@settings(max_examples=150)
@given(
    case=cases(max_rank=2),
    budget=st.integers(1, 60),
    over=st.sampled_from(["outputs", "inputs"]),
    grains=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_tiles_are_the_whole_in_parts(case, budget, over, grains):
    g = geometry(case.x_shape, case.w_shape, **{**case.options, "pad_mode": "constant"})

    def cost(part):
        return part.batch * np.prod(part.padded) * np.prod(part.kernel)

    grain = None if grains is None else grains[: len(g.axes)]
    tiling = tiles(g, over, budget, cost, grain)
    assert cost(tiling.largest) <= max(budget, cost(tiles(g, over, 0, cost).largest))
    written = np.zeros((g.batch, *(g.out if over == "outputs" else g.size)), int)
    total = Counter()
    for tile in tiling:
        side = tile.y if over == "outputs" else tile.x
        written[(side[0], *side[2:])] += 1
        found = meetings(g, tile)
        if over == "inputs":  # an output is in several tiles, each with the inputs of its own
            inside = {
                key: n
                for key, n in found.items()
                if all(s.start <= i < s.stop for s, i in zip((tile.x[0], *tile.x[2:]), key[0], strict=True))
            }
            assert inside == found
        total += found
        assert cost(tile.geometry) <= cost(tiling.largest)
    assert np.all(written == 1)
    assert total == meetings(g)


def test_a_grain_is_cut_only_where_it_does_not_fit():
    g = geometry((1, 1, 30, 30), (1, 1, 3, 3), padding=1)

    def starts(budget):
        tiling = tiles(g, "outputs", budget, lambda part: part.pixels, (4, 4))
        assert tiling.largest.pixels <= budget
        return [sorted({tile.y[axis].start for tile in tiling}) for axis in (2, 3)]

    assert starts(900) == [[0], [0]]
    assert starts(500) == [[0, 16], [0]]  # and not at 15
    assert starts(13 * 30) == [[0, 12, 24], [0]]  # all but the last are alike
    assert starts(16)[1] == list(range(0, 30, 4))
    assert starts(15)[1] != list(range(0, 30, 4))  # less than a grain


def test_tiles_are_made_one_by_one():
    g = geometry((1, 1, 10**9, 10**9), (1, 1, 3, 3), padding=1)
    tiling = tiles(g, "outputs", 1000, lambda part: np.prod(part.padded))
    assert len(tiling) > 10**14
    assert tiling[len(tiling) - 1].y[2].stop == 10**9
    with pytest.raises(IndexError):
        tiling[len(tiling)]


def test_long_rows_and_no_slivers():
    """A tile of the input gradient computes again what it shares with its neighbours: it must not be a thin strip."""
    g = geometry((1, 8, 4096, 4096), (2, 8, 5, 5), padding=2)
    for over, most in (("inputs", 1.5), ("outputs", 1.1)):
        tiling = tiles(g, over, 5000, lambda part: part.pixels)
        assert g.pixels <= sum(tile.geometry.pixels for tile in tiling) <= tiling.weight * tiling.largest.pixels
        assert tiling.weight * tiling.largest.pixels < most * g.pixels


def test_columns_are_cut_where_they_lie_apart():
    """Images last: parts of them would be written in short pieces, and rows of outputs are not."""
    plain = Geometry(16, 2, 2, 1, (Axis(40, 3), Axis(40, 3)))
    by_column = replace(plain, order=(1, 2, 3, 4, 5, 0))
    counts = [tiles(g, "outputs", 2**14, lambda g: math.prod(g.x_shape)).counts for g in (plain, by_column)]
    assert counts[0][0] > 1 == counts[0][1] == counts[0][2]
    assert counts[1][0] == 1 == counts[1][2] < counts[1][1]
