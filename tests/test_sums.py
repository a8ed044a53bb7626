"""NumPy's sums over tiles: in lanes that are added up side by side, and then to each other."""

import numpy as np
import pytest

import xconv
from xconv.backends.numpy import _memory, _scratch
from xconv.backends.numpy._scratch import _Lease

pytestmark = pytest.mark.numpy_only


def integers(rng, shape):
    """Small ones, whose sums are exact."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def lanes(plan):
    return min(plan.lanes, len(plan.tiles))


def test_lanes_that_lie_in_memory_in_other_orders(rng):
    """A tile of one image is multiplied the other way around, and those of several image by image."""
    x, dy = integers(rng, (3, 128, 28, 28)), integers(rng, (3, 64, 28, 28))
    with xconv.config(workspace=11 * 2**18):
        p = xconv.plan(x, np.ones((64, 128, 1, 1), np.float32), algorithm="pointwise").weight_grad
        assert lanes(p.tiled) == 2
        assert [tile.geometry.batch for tile in p.tiled.tiles] == [2, 1]
        found = p(dy, x)
    assert np.array_equal(found[..., 0, 0], np.einsum("nohw,nihw->oi", dy, x))


def test_a_lane_with_numbers_that_are_not_finite(rng):
    """Depthwise sums with an infinity are made in another way, and must not spoil the other channels."""
    x, dy = integers(rng, (8, 64, 80, 50)), integers(rng, (8, 64, 78, 50))
    expected = xconv.conv_weight_grad(dy, x, (64, 1, 5, 3), padding=1, groups=64, algorithm="gemm")
    x[0, 0, 5, 5] = np.inf
    with np.errstate(invalid="ignore"):
        found = xconv.conv_weight_grad(dy, x, (64, 1, 5, 3), padding=1, groups=64, algorithm="depthwise")
    assert not np.isfinite(found[0]).all()
    assert np.array_equal(found[1:], expected[1:])


def test_tiles_of_one_pixel(rng):
    x, dy = integers(rng, (1, 40, 35)), integers(rng, (1, 2, 39))
    expected = xconv.conv_weight_grad(dy, x, (2, 40, 1), padding=((3, 1),), algorithm="gemm")
    with xconv.config(workspace=2336):
        found = xconv.conv_weight_grad(dy, x, (2, 40, 1), padding=((3, 1),), algorithm="gemm")
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("joined", [2**19, 100])
@pytest.mark.parametrize("shape", [(150, 400, 3, 3), (1, 70, 3, 3), (7, 1, 3, 3)])
@pytest.mark.parametrize("algorithm", ["gemm", "mec"])
def test_all_parts_of_all_lanes(rng, monkeypatch, joined, shape, algorithm):
    """However long the sums are, and whether they can be cut evenly."""
    monkeypatch.setattr(_memory, "JOINED", joined)
    x, dy = integers(rng, (6, shape[1], 9, 8)), integers(rng, (6, shape[0], 9, 8))
    expected = sum(xconv.conv_weight_grad(dy[i : i + 1], x[i : i + 1], shape, padding=1) for i in range(6))
    with xconv.config(workspace=xconv.plan(x, np.ones(shape, np.float32), padding=1, algorithm="gemm").workspace * 3):
        found = xconv.conv_weight_grad(dy, x, shape, padding=1, algorithm=algorithm)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "algorithm"),
    [
        ((160, 32, 3, 3), "gemm"),
        ((64, 32, 3, 3), "mec"),
        ((64, 32, 3, 3), "winograd"),
        ((64, 32, 3, 3), "fft"),
        ((160, 32, 1, 1), "pointwise"),
        ((32, 1, 3, 3), "depthwise"),
    ],
)
def test_no_result_lies_in_reserved_memory(rng, monkeypatch, shape, algorithm):
    """Callers may keep what they get for as long as they like."""
    monkeypatch.setattr(_scratch, "LEAST", 1)
    x = integers(rng, (8, 32, 48, 48))
    options = {"groups": 32 // shape[1], "algorithm": algorithm}
    results = []
    for _ in range(3):
        y = xconv.conv(x, integers(rng, shape), **options)
        results += [y, xconv.conv_weight_grad(y, x, shape, **options)]
        results.append(xconv.conv_input_grad(y, integers(rng, shape), x.shape, **options))
    kept = [result.copy() for result in results]
    xconv.conv_weight_grad(y, x, shape, **options)
    for result, copy in zip(results, kept, strict=True):
        assert np.array_equal(result, copy)
        while result is not None:
            assert not isinstance(result, _Lease)
            result = getattr(result, "base", None)
