"""Tuning: the fastest is measured once, and followed."""

import json
import os
import threading

import numpy as np
import pytest

import xconv
from xconv import _measuring, _planner
from xconv._planner import scheduled
from xconv.algorithms._fourier import Fourier
from xconv.algorithms._gemm import Gemm
from xconv.backends import Backend
from xconv.backends.numpy._mec import Mec


@pytest.fixture(autouse=True)
def contenders(monkeypatch):
    """Two for `large`, "fft" and "gemm", and each of them in two ways for its input gradient."""
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
    """Which plans were timed, and the times that they are told to have taken."""
    times = {}

    def seconds(backend, run, calls):
        laps.append(run.args[0].name)
        return calls * times.get(run.args[0].name, 1.0)

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
    plan = xconv.plan(x, w)
    costs, macs = {candidate.name: candidate.cost for candidate in plan.candidates}, plan.schedule.geometry.macs
    assert costs["fft"] < costs["gemm"]
    monkeypatch.setattr(Gemm, "cost", lambda self, function, g, _: costs["fft"] / 2 * g.macs / macs)
    monkeypatch.setattr(Gemm, "once", lambda *args: 0)
    scheduled.cache_clear()
    assert xconv.plan(x, w).algorithm == "gemm"
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        before = xconv.plan(x, w)
        assert before.algorithm == "gemm"
        assert "measured" not in repr(before)
        y = xconv.conv(x, w)
        assert np.array_equal(before.conv(x, w), y)  # a plan follows what was measured later, too, and says so
        for plan in (before, xconv.plan(x, w)):
            assert plan.algorithm == "fft"
            assert "* fft" in repr(plan.forward)
            assert repr(plan.forward).count(", measured ") == 2
            assert "measured" not in repr(plan.weight_grad)
    scheduled.cache_clear()
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
        assert (p.algorithm, p.weight_grad.algorithm) == ("gemm", "fft")
        assert np.array_equal(p.weight_grad(dy, x), grad)


@pytest.mark.numpy_only
@pytest.mark.parametrize("fastest", ["gemm", "gemm, reflected", "fft", "fft, reflected"])
def test_the_reflected_convolution_is_measured_like_any_other(large, laps, monkeypatch, tmp_path, fastest):
    """And is written down by the name that a plan gives it."""
    monkeypatch.setattr(_planner, "PROMISING", 10**6)
    x, w = large
    timed, times = laps
    times[fastest] = 0.5
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        p = xconv.plan(x, w)
        dy = np.ones(p.y_shape)
        assert np.array_equal(p.input_grad(dy, w), xconv.conv_input_grad(dy, w, x.shape))
    assert set(timed) == {"gemm", "gemm, reflected", "fft", "fft, reflected"}
    assert f": {fastest} 500 ms, " in repr(tuning)
    tuning.save(tmp_path / "tuning.json")
    with xconv.config(tuning=xconv.Tuning.load(tmp_path / "tuning.json")):
        found = xconv.plan(x, w).input_grad
        assert (found.tiled.name, found.algorithm) == (fastest, fastest.removesuffix(", reflected"))
        assert f"* {fastest} " in repr(found)
        timed.clear()
        found(dy, w)
        assert not timed


@pytest.mark.numpy_only
def test_plans_are_made_once(large, monkeypatch):
    """Those that are measured are those that run, with whatever a backend remembers of them."""
    from xconv import _ranking

    cuts = []
    monkeypatch.setattr(_ranking, "cut", lambda *args, real=_ranking.cut: cuts.append(args) or real(*args))
    with xconv.config(tuning=xconv.Tuning()):
        xconv.conv(*large)
        first, schedule = len(cuts), xconv.plan(*large).schedule
        assert first >= 2
        for _ in range(3):
            xconv.conv(*large)
        assert schedule.chosen("forward", "cpu") is schedule.chosen("forward", "cpu")
    assert len(cuts) == first


@pytest.mark.numpy_only
def test_hopeless_ones_are_timed_no_further(large, laps):
    timed, times = laps
    times.update(fft=1.0, gemm=2.9)
    with xconv.config(tuning=xconv.Tuning()):
        xconv.conv(*large)
        assert timed.count("gemm") == timed.count("fft") == _measuring.WARM_UP + _measuring.LAPS
        timed.clear()
        times.update(gemm=3.1)
        xconv.conv(*large, stride=2)
        assert (timed.count("gemm"), timed.count("fft")) == (_measuring.WARM_UP, _measuring.WARM_UP + _measuring.LAPS)


@pytest.mark.numpy_only
def test_a_lap_is_long_enough_to_be_timed():
    seen = []

    class Slow(Backend):
        def seconds(self, run, calls):
            seen.append(calls)
            return 1e-5 * calls

    tuning = xconv.Tuning()
    times = _measuring.measured(tuning, "a call", {"gemm": lambda: np.ones(3)}, Slow(np).seconds)
    assert times == tuning.seconds("a call", ["gemm"]) == {"gemm": 1e-5}  # of one call
    assert seen == [1] * _measuring.WARM_UP + [200] * _measuring.LAPS


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
        with xconv.config(workspace=1_000_000):
            xconv.conv(x, w)
        assert not timed  # transforms do not fit
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
    assert timed.count("gemm") == timed.count("fft") == _measuring.WARM_UP + _measuring.LAPS


@pytest.mark.numpy_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_of_a_process_that_measures(large):
    with _measuring._measuring, xconv.config(tuning=xconv.Tuning()):
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
def test_windows_are_not_measured(large, laps):
    """There is no choice of algorithms for them."""
    x, _ = large
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning):
        cols = xconv.im2col(x, (25, 25))
        back = xconv.col2im(cols, (200, 200))
    assert len(tuning) == len(laps[0]) == 0
    assert np.array_equal(cols, xconv.im2col(x, (25, 25)))
    assert np.array_equal(back, xconv.col2im(cols, (200, 200)))


@pytest.mark.numpy_only
def test_a_fork_starts_with_nobody_measuring(monkeypatch):
    monkeypatch.setattr(_measuring, "_measuring", threading.Lock())
    with _measuring._measuring:
        _measuring._start_afresh()
        assert not _measuring._measuring.locked()
        monkeypatch.undo()


@pytest.mark.numpy_only
def test_what_is_measured_apart():
    """What takes another time has another name in a record, and the same names are for what takes the same."""
    x, w = np.ones((1, 2, 9, 9), np.float32), np.ones((2, 2, 3, 3), np.float32)

    def call(function, w_shape=None, **options):
        plan = xconv.plan(x, w if w_shape is None else np.ones(w_shape, np.float32), padding=1, **options)
        return plan.schedule.problem.call(function, "here")

    filled = [call("forward", pad_value=value) for value in (0, 1, 2, np.nan, np.inf)]
    assert filled[1] == filled[2]
    assert filled[3] == filled[4]
    assert len(set(filled)) == 3
    assert call("input_grad", pad_value=2) == call("input_grad")
    assert call("forward", (3, 3, 2, 2), w_layout="...io") != call("forward")
