"""Pooling of CuPy's arrays: what a call comes down to, that it is kept, and the memory that it takes."""

from collections import Counter

import numpy as np
import pytest
from oracle import Pool

import xconv
from kernels.standin import Names, StandIn, device, host, peak
from kernels.test_program import KINDS
from xconv.backends.cupy import _backend, _costs

LAST = {"layout": "channels_last"}
WITHIN = {"count_include_pad": False}
OVERLAP = {"stride": 2, "padding": 1}
SHAPE = (3, 4, 9, 8)


@pytest.fixture(autouse=True)
def standin():
    with StandIn().installed() as standin:
        yield standin


@pytest.fixture
def programs(monkeypatch):
    """What was written, in its order."""
    written, found = _backend._written, []

    def keeps(*arguments, **options):
        found.append(written(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(_backend, "_written", keeps)
    return found


def numbers(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


def calls(x, dy, kernel=3, **options):
    """All four functions; means where the dtype has any."""
    found = {
        "max": lambda: xconv.max_pool(x, kernel, **options),
        "max_grad": lambda: xconv.max_pool_grad(dy, x, kernel, **options),
    }
    if x.dtype.kind in "iu":
        return found
    for name, within in (("avg", {}), ("avg_within", WITHIN)):
        found[name] = lambda w=within: xconv.avg_pool(x, kernel, **options, **w)
        found[f"{name}_grad"] = lambda w=within: xconv.avg_pool_grad(dy, x.shape, kernel, **options, **w)
    return found


def arrays(dtype="float32", options=OVERLAP):
    x = numbers(SHAPE, dtype)
    dy = numbers(Pool(SHAPE, (3, 3), **OVERLAP).y_shape, dtype, 1)
    last = options.get("layout") == "channels_last"
    return [device(np.ascontiguousarray(np.moveaxis(a, 1, -1)) if last else a) for a in (x, dy)]


@pytest.mark.parametrize(("dtype", "layout"), [("float32", {}), ("float16", LAST), ("int8", {})])
def test_a_call_is_one_launch_or_two(standin, programs, dtype, layout):
    """Whatever is counted, rounded or compared; and from the second call on nothing is decided anew."""
    options = {**OVERLAP, **layout}
    steps = {"max": 1, "max_grad": 2, "avg": 1, "avg_grad": 1, "avg_within": 1, "avg_within_grad": 2}
    for name, call in calls(*arrays(dtype, options), **options).items():
        programs.clear()
        standin.launches.clear()
        made = [call() for _ in range(4)]
        assert len({host(a).tobytes() for a in made}) == 1
        general, special = programs
        assert [general.literal, special.literal] == [False, True]
        for program in programs:
            assert Counter(KINDS[type(s)] for s, _ in program.steps if type(s) in KINDS) == {"k": steps[name]}
        assert len(standin.launches) == 4 * steps[name]


def test_what_is_of_two_dtypes_is_converted(programs):
    x, dy = arrays()
    half = device(host(dy).astype("float16"))
    dx = xconv.max_pool_grad(half, x, 3, **OVERLAP)
    assert dx.dtype == "float32"
    assert np.array_equal(host(dx), host(xconv.max_pool_grad(dy, x, 3, **OVERLAP)))
    converting, plain = ([KINDS.get(type(s)) for s, _ in p.steps] for p in programs)
    assert (converting.count("e"), plain.count("e")) == (1, 0)


@pytest.mark.parametrize("workspace", [None, 3000])
def test_a_program_gives_the_same_bits(standin, monkeypatch, workspace):
    """As the same steps, taken as they come; on arrays in any order of memory, in tiles and in one piece."""
    x, dy = (host(a) for a in arrays())
    plain = [device(a) for a in (x, dy)]
    mirrored = [device(np.ascontiguousarray(a.T[::-1]))[::-1].T for a in (x, dy)]
    shifted = []
    for a in (x, dy):
        shifted.append(device(np.zeros(a.size + 1, a.dtype))[1:].reshape(a.shape))
        host(shifted[-1])[...] = a
    with xconv.config(workspace=workspace):
        for given in (plain, mirrored, shifted):
            taken = {name: [call() for _ in range(3)] for name, call in calls(*given, **OVERLAP).items()}
            with monkeypatch.context() as patch:
                patch.setattr(_backend, "PROGRAMMED", set())
                standin._forget()
                expected = {name: call() for name, call in calls(*given, **OVERLAP).items()}
                standin._forget()
            for name, made in taken.items():
                assert {host(a).tobytes() for a in made} == {host(expected[name]).tobytes()}, name


def test_a_kernel_reads_the_callers_memory(standin):
    """Whatever a view looks like, it is neither copied nor moved."""
    whole = device(numbers((4, 9, 8, 3)))
    for x in (whole, whole[::2, 1:8, ::-1], whole.transpose(3, 0, 2, 1)):
        oracle = Pool(x.shape, (2, 2))
        standin.launches.clear()
        assert np.array_equal(host(xconv.max_pool(x, 2)), oracle.max(host(x)))
        dy = device(np.flip(numbers(oracle.y_shape)).copy())[::-1, ::-1, ::-1, ::-1]
        assert np.array_equal(host(xconv.max_pool_grad(dy, x, 2)), oracle.max_grad(host(dy), host(x)))
        assert np.allclose(host(xconv.avg_pool(x, 2)), oracle.avg(host(x).astype("float64")))
        for (_, arguments), a in zip(standin.launches, (x, x, dy, x), strict=True):
            low, high = np.lib.array_utils.byte_bounds(host(a))
            begin = arguments[0].data.ptr
            assert low <= begin < begin + arguments[0].nbytes <= high


@pytest.mark.parametrize(("dtype", "kernel"), [("float32", 3), ("float16", 17), ("int8", 17)])
def test_the_workspace_is_a_bound(standin, monkeypatch, dtype, kernel):
    """Also where the numbers of taps are larger than what is pooled."""
    standin.launches = Names()
    options = {"stride": 2, "padding": kernel // 2}
    x = device(numbers((2, 2, 30, 31), dtype))
    dy = device(numbers(xconv.max_pool(x, kernel, **options).shape, dtype, 1))
    for name, call in calls(x, dy, kernel, **options).items():
        taps = {"max_grad": dy.size * (4 if kernel == 17 else 1), "avg_within_grad": 4 * dy.size}
        assert peak(monkeypatch, call) == taps.get(name, 0)
        with pytest.raises(ValueError, match="`workspace` must be at least") as caught, xconv.config(workspace=1):
            call()
        with xconv.config(workspace=12 * caught.value.least):
            assert peak(monkeypatch, call) <= 12 * caught.value.least


def test_costs():
    """A gradient touches twice as much, and takes memory for a number of every window."""
    g = xconv.plan(np.ones((2, 3, 8, 8), "float32"), np.ones((3, 1, 2, 2), "float32"), groups=3).schedule.geometry
    costs = _costs.KernelCosts(1, 1, 0)
    elements = 2 * 3 * (64 + 49)
    for mean in (False, True):
        assert costs.pool(g, mean=mean, back=True) == 2 * costs.pool(g, mean=mean, back=False) == 2 * elements
        assert [costs.pool_spare(g, mean=mean, back=back) for back in (False, True)] == [0, 2 * 3 * 49]
