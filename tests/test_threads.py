"""Tiles on threads: the same bits, the BLAS given back, and nothing left behind by errors or forks."""

import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import xconv
from xconv.backends.numpy import NumpyBackend, _scratch, _threads
from xconv.primitives import Team

pytestmark = pytest.mark.numpy_only

HEAVY = Team(threads=None, limit=1024, heavy=True)


@pytest.fixture
def layer(rng):
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((4, 32, 40, 40), (48, 32, 3, 3)))
    return x, w, xconv.conv(x, w, padding=1)


def results(x, w, dy):
    return (
        xconv.conv(x, w, padding=1),
        xconv.conv_input_grad(dy, w, x.shape, padding=1),
        xconv.conv_weight_grad(dy, x, w.shape, padding=1),
    )


def blas_threads():
    return [library.num_threads for library in _threads.blas_libraries()]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_same_bits_for_any_number_of_threads(layer, threads):
    expected = results(*layer)
    with xconv.config(threads=threads):
        for _ in range(3):
            for a, b in zip(results(*layer), expected, strict=True):
                assert np.array_equal(a, b)


def test_same_bits_whatever_the_blas_may_use(layer):
    """A single tile, too: the product runs on one thread either way."""
    x, w = np.ones((1, 64, 12, 12), np.float32) / 3, layer[1].repeat(2, axis=1) / 7
    expected = xconv.conv(x, w)
    with threadpool_limits(1):
        assert np.array_equal(xconv.conv(x, w), expected)


def test_many_callers(layer):
    before = blas_threads()
    expected = results(*layer)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(results, *layer) for _ in range(24)]
        for future in futures:
            for a, b in zip(future.result(), expected, strict=True):
                assert np.array_equal(a, b)
    assert blas_threads() == before


def test_only_one_of_many_callers_gets_more_threads():
    with _threads._hold as first, _threads._hold as second:
        assert first >= 1
        assert second == 1
        assert max(blas_threads()) == 1


def test_any_thread_can_hold_the_blas(layer):
    """Also where another one did so before it, and whichever of them leaves last."""
    before, seen = blas_threads(), []

    def hold_and_leave(entered, leave):
        with _threads._hold:
            seen.append(blas_threads())
            entered.set()
            assert leave.wait(20)

    with _threads._hold:
        seen.append(blas_threads())
    events = [(threading.Event(), threading.Event()) for _ in range(2)]
    others = [threading.Thread(target=hold_and_leave, args=pair) for pair in events]
    for other, (entered, _) in zip(others, events, strict=True):
        other.start()
        assert entered.wait(20)
    for other, (_, leave) in zip(others, events, strict=True):  # the first to come is the first to go
        seen.append(blas_threads())
        leave.set()
        other.join()
    assert seen == [[1] * len(before)] * 5
    assert blas_threads() == before
    with threadpool_limits(1):  # nor does it get in the way of others
        assert blas_threads() == seen[0]
    assert blas_threads() == before


def test_same_bits_in_a_fresh_thread(rng):
    """A tile of one image is multiplied where it lies: by two threads of the BLAS, in another order."""
    x, dy = (rng.standard_normal((9, c, 28, 28), dtype=np.float32) for c in (128, 64))
    expected = xconv.conv_weight_grad(dy, x, (64, 128, 1, 1))
    with ThreadPoolExecutor(1) as fresh:
        assert np.array_equal(fresh.submit(xconv.conv_weight_grad, dy, x, (64, 128, 1, 1)).result(), expected)


def test_hold_respects_the_limits_of_the_moment():
    with threadpool_limits(1), _threads._hold as free:
        assert free == 1


def test_tiles_do_run_side_by_side():
    together = threading.Barrier(2, timeout=20)
    _threads.run(lambda _: together.wait(), 2, HEAVY._replace(threads=2))


def test_light_work_stays_in_its_thread():
    seen = set()
    _threads.run(lambda _: seen.add(threading.get_ident()), 5, HEAVY._replace(heavy=False, threads=4))
    assert seen == {threading.get_ident()}


def test_the_workspace_limits_the_threads():
    seen = set()

    def task(_):
        seen.add(threading.get_ident())
        time.sleep(0.005)

    _threads.run(task, 8, HEAVY._replace(limit=1, threads=4))
    assert len(seen) == 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["caller", "helper"])
def test_an_error_in_a_tile(error, place):
    before, caller = blas_threads(), threading.get_ident()
    done = []

    def task(i):
        if (threading.get_ident() == caller) == (place == "caller"):
            raise error
        time.sleep(0.001)
        done.append(i)

    with pytest.raises(error):
        _threads.run(task, 1000, HEAVY._replace(threads=2))
    assert len(done) < 900
    assert blas_threads() == before
    counted = []
    _threads.run(counted.append, 10, HEAVY._replace(threads=2))
    assert sorted(counted) == list(range(10))


def test_errstate_of_the_caller_holds_in_every_tile():
    x, w = np.full((8, 16, 40, 40), 1e38, np.float32), np.ones((16, 16, 3, 3), np.float32)
    with warnings.catch_warnings(), np.errstate(all="ignore"), xconv.config(threads=4):
        warnings.simplefilter("error")
        assert np.all(np.isinf(xconv.conv(x, w, algorithm="gemm")))


FORK = """
import contextlib, os, sys
import numpy as np, xconv
from xconv.backends.numpy import _threads
x, w = np.ones((4, 32, 40, 40), np.float32), np.ones((48, 32, 3, 3), np.float32)
before = xconv.conv(x, w)
with _threads._hold if "held" in sys.argv else contextlib.nullcontext():
    child = os.fork()
    if child == 0:
        with _threads._hold as free:
            right = free == max(_threads._hold.saved) and np.array_equal(xconv.conv(x, w), before)
        os._exit(0 if right else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("state", ["free", "held"])
def test_after_a_fork(state):
    """The child has none of its parent's threads, and must not inherit a hold on the BLAS from one of them."""
    made = subprocess.run([sys.executable, "-c", FORK, state], capture_output=True, text=True, timeout=60, check=True)
    assert made.stdout.strip() == "0"


def test_forgetting_threads_restores_the_blas():
    """What a forked child does, done here, where its lines are counted."""
    before = blas_threads()
    _threads._hold.__enter__()
    assert max(blas_threads()) == 1
    _threads._forget_threads()
    assert blas_threads() == before
    _threads._forget_threads()
    assert _threads._hold.holders == 0


def test_without_a_blas_that_can_be_held(monkeypatch):
    monkeypatch.setattr(_threads, "blas_libraries", list)
    with _threads._hold as free:
        assert free == _threads._cores()


@pytest.mark.parametrize("module", ["os"])
def test_cores_without_affinity(monkeypatch, module):
    monkeypatch.delattr(f"{module}.sched_getaffinity", raising=False)
    assert _threads._cores() == os.cpu_count()


def test_platforms_without_fork():
    code = "import os; del os.register_at_fork; import numpy, xconv; a = numpy.ones((1, 1, 3)); print(xconv.conv(a, a))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[[[3.]]]"


def test_scratch_memory_is_bounded_and_reused():
    scratch = _scratch.Scratch()
    for _ in range(3):
        scratch.reset(8064)
        a, b = scratch.take((1000,), np.float64), scratch.take((3, 5), np.int8)
        a[...], b[...] = 1.5, 7
        assert np.all(a == 1.5)
    assert a.ctypes.data % 64 == b.ctypes.data % 64 == 0
    assert np.shares_memory(a, scratch.block)
    scratch.reset(_scratch.KEEP + 1)
    assert scratch.block.size == 0
    assert not np.shares_memory(scratch.take((_scratch.KEEP + 1,), np.uint8), scratch.block)


def test_reserved_memory_comes_back_when_nobody_uses_it(monkeypatch):
    monkeypatch.setattr(_scratch, "LEAST", 1)
    reserve = _scratch.Reserve()
    first = reserve.take((1000, 3), np.float64)
    view, address = first[5:, ::2].T, first.ctypes.data
    del first
    assert reserve.blocks == []  # the view still reads it
    second = reserve.take((1000, 3), np.float64)
    assert not np.shares_memory(view, second)
    del view
    assert [block.ctypes.data for block in reserve.blocks] == [address]
    assert reserve.take((2,), np.float64).ctypes.data != address  # far too large for so little
    again = reserve.take((2500,), np.float64)
    assert again.ctypes.data == address
    assert again.ctypes.data % 64 == 0
    assert reserve.take((0, 4), np.int8).shape == (0, 4)


def test_the_reserve_keeps_the_latest_blocks_within_a_bound(monkeypatch):
    monkeypatch.setattr(_scratch, "KEEP", 10_000)
    monkeypatch.setattr(_scratch, "LEAST", 1)
    reserve = _scratch.Reserve()
    held = [reserve.take((size,), np.uint8) for size in (5000, 4000, 3000, 20_000)]
    for _ in range(3):
        del held[0]
    assert sorted(block.size for block in reserve.blocks) == [3000, 4000]
    held.clear()
    assert reserve.blocks == []  # nothing is kept of what is larger than the bound


def test_small_memory_is_not_reserved():
    reserve = _scratch.Reserve()
    for size in range(1000):
        reserve.take((size,), np.uint8)
    assert reserve.blocks == []


def test_the_reserve_serves_many_threads(monkeypatch):
    monkeypatch.setattr(_scratch, "LEAST", 1)
    reserve = _scratch.Reserve()

    def work(i):
        for _ in range(200):
            mine = reserve.take((500 + 40 * i,), np.int64)
            mine.fill(i)
            assert np.all(mine == i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 0 < sum(block.size for block in reserve.blocks) <= _scratch.KEEP


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("algorithm", ["gemm", "winograd", "fft"])
def test_a_call_that_is_broken_off(layer, monkeypatch, error, algorithm):
    """In the middle of its tiles, in any thread: settings, threads and memory are as before, and so are results."""
    x, w, dy = layer
    options = {"padding": 1, "algorithm": algorithm}
    product, before = NumpyBackend.product, blas_threads()
    calls = []

    def break_off(*args, **more):
        calls.append(threading.get_ident())
        if len(calls) == 2:
            raise error
        return product(*args, **more)

    for function in (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
    ):
        with xconv.config(threads=2, workspace=16 * 2**20):
            expected = function()
            calls.clear()
            with monkeypatch.context() as patch:
                patch.setattr(NumpyBackend, "product", break_off)
                with pytest.raises(error):
                    function()
            assert np.array_equal(function(), expected)
    assert blas_threads() == before
    assert xconv._config.current() == xconv._config.Settings()


SPAWN = """
import multiprocessing
import numpy as np, xconv

def run(seed):
    rng = np.random.default_rng(seed)
    return xconv.conv(rng.standard_normal((4, 8, 40, 40)), rng.standard_normal((8, 8, 3, 3)), padding=1)

if __name__ == "__main__":
    expected = [run(seed) for seed in range(4)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(run, range(4))
    print(all(np.array_equal(a, b) for a, b in zip(found, expected)))
"""


def test_in_spawned_processes(tmp_path):
    program = tmp_path / "spawn.py"
    program.write_text(SPAWN)
    made = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=True)
    assert made.stdout.strip() == "True"
