"""Tuning: the fastest is measured once, and followed."""

import json
import os
import threading

import numpy as np
import pytest

import xconv
from xconv._planner import scheduled
from xconv.algorithms import _tuned
from xconv.algorithms._fourier import Fourier
from xconv.algorithms._gemm import Gemm
from xconv.algorithms._mec import Mec
from xconv.backends import Backend


@pytest.fixture(autouse=True)
def contenders(monkeypatch):
    """Two for `large`, "fft" and "gemm"."""
    monkeypatch.setattr(Mec, "lack", lambda *_: "left out")
    scheduled.cache_clear()
    yield
    scheduled.cache_clear()


@pytest.fixture
def arrays(lib, rng):
    """Small integers: every algorithm but Fourier's and Winograd's gives the same bits."""
    return [lib.array(rng.integers(-4, 5, shape) * 1.0) for shape in ((1, 8, 16, 16), (8, 8, 3, 3), (1, 8, 16, 16))]


@pytest.fixture
def large():
    """Where Fourier transforms take a tenth of the time of products."""
    rng = np.random.default_rng(0)
    return rng.random((1, 2, 200, 200)), rng.random((2, 2, 25, 25))


@pytest.fixture
def laps(monkeypatch):
    """Which algorithms were timed, and the times that they are told to have taken."""
    times = {}

    def seconds(backend, run, calls):
        schedule = run.func.__self__
        laps.append(schedule.algorithm.name)
        if times is None:
            return None
        return calls * times.get(schedule.algorithm.name, 1.0)

    laps = []
    monkeypatch.setattr(Backend, "seconds", seconds)
    return laps, times


def test_every_function_in_every_library(lib, arrays):
    x, w, dy = arrays
    calls = {
        "forward": lambda: xconv.conv(x, w, padding=1),
        "input_grad": lambda: xconv.conv_input_grad(dy, w, x.shape, padding=1),
        "weight_grad": lambda: xconv.conv_weight_grad(dy, x, w.shape, padding=1),
        "transpose": lambda: xconv.conv_transpose(dy, w, padding=1),
    }
    tuning = xconv.Tuning()
    for name, call in calls.items():
        expected = lib.numpy(call())
        with xconv.config(tuning=tuning):
            for _ in range(2):
                lib.check(call(), expected, bound=1e-4 * np.abs(expected).max())
        assert name == "transpose" or (name in repr(tuning)) == (lib.name != "dask")
    # The transposed convolution is the input gradient of one geometry; Dask's tasks do not measure.
    assert len(tuning) == (0 if lib.name == "dask" else 3)


@pytest.mark.numpy_only
def test_measurement_decides_against_a_wrong_prediction(large, monkeypatch):
    x, w = large
    costs = {candidate.name: candidate.cost for candidate in xconv.plan(x, w).candidates}
    assert costs["fft"] < costs["gemm"]
    monkeypatch.setattr(Gemm, "work", lambda *args: costs["fft"] // 2)
    monkeypatch.setattr(Gemm, "traffic", lambda *args: 0)
    scheduled.cache_clear()
    assert xconv.plan(x, w).algorithm == "gemm"
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        before = xconv.plan(x, w)
        y = xconv.conv(x, w)
        after = xconv.plan(x, w)
        assert np.array_equal(before.conv(x, w), y)  # a plan follows what was measured later, too
    scheduled.cache_clear()
    assert (before.algorithm, after.algorithm) == ("gemm", "fft")
    assert "measured" in repr(after)
    assert "measured" not in repr(before)
    assert np.array_equal(y, xconv.conv(x, w, algorithm="fft"))


@pytest.mark.numpy_only
def test_each_function_has_its_own_fastest(large, laps):
    x, w = large
    dy = np.ones((1, 2, 176, 176))
    _, times = laps
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        times.update(fft=2.0, gemm=1.0)
        assert np.array_equal(xconv.conv(x, w), xconv.conv(x, w, algorithm="gemm"))
        times.update(fft=1.0, gemm=2.0)
        grad = xconv.conv_weight_grad(dy, x, w.shape)
        assert np.array_equal(grad, xconv.conv_weight_grad(dy, x, w.shape, algorithm="fft"))
        p = xconv.plan(x, w)
        assert p.algorithm == "gemm"
        assert np.array_equal(p.weight_grad(dy, x), grad)


@pytest.mark.numpy_only
def test_hopeless_ones_are_timed_no_further(large, laps):
    timed, times = laps
    times.update(fft=1.0, gemm=2.9)
    with xconv.config(tuning=xconv.Tuning()):
        xconv.conv(*large)
        assert timed.count("gemm") == timed.count("fft") == _tuned.WARM_UP + _tuned.LAPS
        timed.clear()
        times.update(gemm=3.1)
        xconv.conv(*large, stride=2)
        assert (timed.count("gemm"), timed.count("fft")) == (_tuned.WARM_UP, _tuned.WARM_UP + _tuned.LAPS)


@pytest.mark.numpy_only
def test_a_lap_is_long_enough_to_be_timed():
    seen = []

    class Slow(Backend):
        def seconds(self, run, calls):
            seen.append(calls)
            return 1e-5 * calls

    schedule = xconv.plan(np.ones((1, 1, 3)), np.ones((1, 1, 3))).schedule
    tuned = _tuned.Tuned(Slow(np), schedule.geometry, "", "", xconv.Tuning(), {"gemm": schedule}, "")
    times = tuned._measured("forward", np.ones((1, 1, 3)), np.ones((1, 1, 3)))
    assert times == {"gemm": 1e-5}  # of one call
    assert seen == [1] * _tuned.WARM_UP + [200] * _tuned.LAPS


@pytest.mark.numpy_only
def test_what_is_known_is_not_measured_again(large, laps):
    timed, _ = laps
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        xconv.conv(*large)
        first = len(timed)
        xconv.conv(*large)
        assert len(timed) == first > 0
        xconv.conv(*large, algorithm="gemm")  # asked for by name
        xconv.conv(large[0][:0], large[1])  # nothing to do
        xconv.im2col(large[0], 3)
        with xconv.config(tuning=None):
            xconv.conv(*large, stride=3)
        assert len(timed) == first
        with xconv.config(workspace=2**26):  # another setting
            xconv.conv(*large)
        assert len(timed) == 2 * first
        xconv.conv(*(a.astype(np.float32) for a in large))
        assert len(timed) == 3 * first
    assert len(tuning) == 3


@pytest.mark.numpy_only
def test_only_what_may_serve_is_measured(large, laps):
    timed, _ = laps
    x, w = large
    with xconv.config(tuning=xconv.Tuning()):
        with xconv.config(numerics="strict"):
            xconv.conv(x, w)
        assert not timed  # one candidate is no choice
        with xconv.config(workspace=3_500_000):
            xconv.conv(x, w)
        assert not timed  # columns do not fit
        xconv.conv(np.ones((1, 1, 200, 200)), np.ones((1, 1, 180, 180)))
        assert set(timed) == {"fft", "gemm"}  # depthwise is hopeless by its prediction already


@pytest.mark.numpy_only
def test_what_was_never_measured_on_a_library_may_be(large, laps, monkeypatch):
    monkeypatch.setattr(Backend, "unproven", frozenset({"fft"}))
    _, times = laps
    times.update(fft=0.5)
    scheduled.cache_clear()
    assert xconv.plan(*large).algorithm == "gemm"
    with xconv.config(tuning=xconv.Tuning()):
        xconv.conv(*large)
        assert xconv.plan(*large).algorithm == "fft"
    scheduled.cache_clear()


@pytest.mark.numpy_only
def test_where_nothing_can_be_timed_the_prediction_holds(large, monkeypatch):
    monkeypatch.setattr(Backend, "seconds", lambda *args: None)
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        y = xconv.conv(*large)
    assert len(tuning) == 0
    assert np.array_equal(y, xconv.conv(*large))


@pytest.mark.numpy_only
def test_files(large, tmp_path):
    tuning, file = xconv.Tuning(), tmp_path / "tuning.json"
    with xconv.config(tuning=tuning):
        xconv.conv(*large)
    file.write_text("what was there before")
    tuning.save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["tuning.json"]
    loaded = xconv.Tuning.load(str(file))
    assert repr(loaded) == repr(tuning)
    content = json.loads(file.read_text())
    (call,) = content["seconds"]
    content["seconds"][call] = {"gemm": 1e-9, "an algorithm of a later version": 1e-12}
    file.write_text(json.dumps(content))
    with xconv.config(tuning=xconv.Tuning.load(file)):
        assert xconv.plan(*large).algorithm == "gemm"
        assert np.array_equal(xconv.conv(*large), xconv.conv(*large, algorithm="gemm"))
    del content["seconds"][call]["gemm"]
    file.write_text(json.dumps(content))
    tuning = xconv.Tuning.load(file)
    with xconv.config(tuning=tuning):
        xconv.conv(*large)  # measured, as nothing is known of what there is
    assert "fft" in repr(tuning)


@pytest.mark.numpy_only
@pytest.mark.skipif(os.name == "nt", reason="has no such things")
def test_only_files_are_replaced(tmp_path):
    tuning, file, link, pipe = xconv.Tuning(), *(tmp_path / name for name in ("file", "link", "pipe"))
    os.mkfifo(pipe)
    for place in (tmp_path, pipe):
        with pytest.raises(ValueError, match="`path` must be a file or new"):
            tuning.save(place)
    assert pipe.is_fifo()
    link.symlink_to(file)
    tuning.save(link)
    assert link.is_symlink()
    assert len(xconv.Tuning.load(file)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "content",
    [
        "no JSON", "[]", "{}", '{"format": "xconv tuning 1"}', '{"format": "other", "seconds": {}}',
        '{"format": "xconv tuning 1", "seconds": []}', '{"format": "xconv tuning 1", "seconds": {"call": {}}}',
        '{"format": "xconv tuning 1", "seconds": {"call": {"gemm": "fast"}}}',
        '{"format": "xconv tuning 1", "seconds": {"call": {"gemm": -1.0}}}',
        '{"format": "xconv tuning 1", "seconds": {"call": {"gemm": NaN}}}',
        '{"format": "xconv tuning 1", "seconds": {"call": 3}}',
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "tuning.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"`path` must be a file that `Tuning\.save` wrote"):
        xconv.Tuning.load(file)


@pytest.mark.numpy_only
def test_errors():
    for wrong in (True, "tuning.json", xconv.Tuning):
        with pytest.raises(TypeError, match=r"`tuning` must be an `xconv\.Tuning`"):
            xconv.config(tuning=wrong)
    with pytest.raises(FileNotFoundError):
        xconv.Tuning.load("no such file")


@pytest.mark.numpy_only
def test_threads_measure_once(large, laps):
    timed, _ = laps
    tuning, barrier = xconv.Tuning(), threading.Barrier(4)

    def call():
        barrier.wait()
        with xconv.config(tuning=tuning):
            xconv.conv(*large)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timed.count("gemm") == timed.count("fft") == _tuned.WARM_UP + _tuned.LAPS


@pytest.mark.numpy_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_of_a_process_that_measures(large):
    with _tuned._measuring, xconv.config(tuning=xconv.Tuning()):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                xconv.conv(*large)
                status = 0
            finally:
                os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.numpy_only
@pytest.mark.parametrize("fault", [MemoryError, ImportError, ValueError])
def test_what_cannot_run_here_is_left_out(large, monkeypatch, fault):
    def broken(*args):
        raise fault

    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning), monkeypatch.context() as patched:
        patched.setattr(Fourier, "forward", broken)
        y = xconv.conv(*large)
        assert np.array_equal(y, xconv.conv(*large, algorithm="gemm"))
        assert "fft" not in repr(tuning)
        patched.setattr(Gemm, "forward", broken)
        with pytest.raises(fault):
            xconv.conv(*large, stride=2)
    assert len(tuning) == 1


@pytest.mark.numpy_only
def test_a_failed_call_leaves_no_trace(large, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        with monkeypatch.context() as patched:
            patched.setattr(Backend, "seconds", broken)
            with pytest.raises(KeyboardInterrupt):
                xconv.conv(*large)
        assert len(tuning) == 0
        xconv.conv(*large)
    assert len(tuning) == 1


@pytest.mark.numpy_only
def test_windows_are_those_of_the_prediction(large):
    """They are never planned so: there is no choice of algorithms for them."""
    x, w = large
    with xconv.config(tuning=xconv.Tuning()):
        tuned = xconv.plan(x, w).run
    cols = tuned.im2col(x, images_last=False)
    assert np.array_equal(cols, xconv.im2col(x, (25, 25)))
    assert np.array_equal(tuned.col2im(cols), xconv.col2im(cols, (200, 200)))


@pytest.mark.numpy_only
def test_a_fork_starts_with_nobody_measuring(monkeypatch):
    monkeypatch.setattr(_tuned, "_measuring", threading.Lock())
    with _tuned._measuring:
        _tuned._start_afresh()
        assert not _tuned._measuring.locked()
        monkeypatch.undo()
