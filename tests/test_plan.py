"""Plans: what they say, and that they run."""

import asyncio
import contextlib
import contextvars
import decimal
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

import xconv
from xconv._planner import scheduled
from xconv._ranking import plans
from xconv.algorithms import PORTABLE, RefusedError
from xconv.algorithms._fourier import best_lengths, sides
from xconv.algorithms._gemm import Gemm
from xconv.backends import Backend, backend_of
from xconv.backends.numpy._spectra import layout


@pytest.fixture
def arrays(lib, rng):
    x, w, b = (rng.integers(-5, 6, s).astype(float) for s in ((2, 4, 9, 8), (6, 4, 3, 3), (6,)))
    return lib.array(x), lib.array(w), lib.array(b)


def test_methods_do_what_the_functions_do(lib, arrays):
    x, w, b = arrays
    options = {"stride": 2, "padding": (1, 0)}
    p = xconv.plan(x, w, **options)
    y = p.conv(x, w, b)
    lib.check(y, lib.numpy(xconv.conv(x, w, b, **options)), dtype=lib.real)
    assert (p.x_shape, p.w_shape, p.y_shape) == (x.shape, w.shape, y.shape)
    lib.check(p.conv(x, w), lib.numpy(xconv.conv(x, w, **options)))
    lib.check(p.forward(x, w, b), lib.numpy(y))
    lib.check(p.forward(x, w, None), lib.numpy(p.conv(x, w)))
    lib.check(p.input_grad(y, w), lib.numpy(xconv.conv_input_grad(y, w, x.shape, **options)))
    lib.check(p.weight_grad(y, x), lib.numpy(xconv.conv_weight_grad(y, x, w.shape, **options)))


def test_shapes_are_in_the_layout(lib, arrays):
    _, w, _ = arrays
    p = xconv.plan(lib.array(np.ones((2, 9, 8, 4))), w, layout="channels_last")
    assert (p.x_shape, p.y_shape) == ((2, 9, 8, 4), (2, 7, 6, 6))


def test_filters_are_in_their_order(lib, arrays):
    x, w, b = arrays
    filters, options = lib.xp.permute_dims(w, (2, 3, 1, 0)), {"w_layout": "...io", "padding": 1}
    p = xconv.plan(x, filters, **options)
    assert (p.w_shape, p.y_shape) == ((3, 3, 4, 6), (2, 6, 9, 8))
    y = p.forward(x, filters, b)
    lib.check(y, lib.numpy(xconv.conv(x, w, b, padding=1)))
    lib.check(p.input_grad(y, filters), lib.numpy(xconv.conv_input_grad(y, w, x.shape, padding=1)))
    dw = xconv.conv_weight_grad(y, x, w.shape, padding=1)
    lib.check(p.weight_grad(y, x), lib.numpy(dw).transpose(2, 3, 1, 0))
    with pytest.raises(ValueError, match="`w` must have the plan's shape"):
        p.forward(x, w)
    assert "(2, 4, 9, 8) * (3, 3, 4, 6) -> (2, 6, 9, 8)" in repr(p)


def test_figures():
    x, w = np.ones((8, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
    p = xconv.plan(x, w, padding=1, algorithm="gemm")
    assert p.flops == 2 * 8 * 64 * 56 * 56 * 64 * 9
    columns = 8 * 56 * 56 * 64 * 9
    assert p.bytes_moved == 4 * (2 * x.size + w.size + 2 * columns)  # columns are written and read
    assert p.dtype == np.float32
    assert p.tiles > 1
    assert 0 < p.workspace < 12 * 2**20
    for name in ("algorithm", "flops", "workspace", "tiles", "candidates"):
        assert getattr(p, name) == getattr(p.forward, name)
    assert p.bytes_moved == p.forward.bytes


def test_figures_of_each_function():
    """Whichever algorithm it is computed by, in as many tiles as it takes."""
    p = xconv.plan(np.ones((1, 2, 64)), np.ones((6, 2, 9)), stride=4, algorithm="gemm")
    functions = (p.forward, p.input_grad, p.weight_grad)
    assert [f.flops for f in functions] == [2 * 14 * 9 * 2 * 6] * 3
    p = xconv.plan(np.ones((1, 2, 64)), np.ones((6, 2, 9)), padding=2, algorithm="gemm")
    assert p.forward.flops == p.weight_grad.flops == 2 * 60 * 9 * 2 * 6
    reflected = {"gemm": 60, "gemm, reflected": 64}  # its outputs are the inputs
    assert p.input_grad.flops == 2 * reflected[p.input_grad.tiled.name] * 9 * 2 * 6
    names = [{c.name for c in f.candidates if c.refusal is None} for f in (p.forward, p.input_grad, p.weight_grad)]
    assert names[0] == names[2] == {"gemm", "winograd", "fft"}
    assert names[1] == {name + way for name in names[0] for way in ("", ", reflected")}
    assert p.input_grad.algorithm == "gemm"


def test_a_function_is_planned_when_it_is_first_asked_for(monkeypatch, rng):
    from xconv import _ranking

    x, w = rng.standard_normal((1, 2, 21)), rng.standard_normal((3, 2, 4))
    asked = []

    def noted(problem, function, real=_ranking.able):
        asked.append(function)
        return real(problem, function)

    monkeypatch.setattr(_ranking, "able", noted)
    scheduled.cache_clear()
    y = xconv.conv(x, w)
    assert asked == ["forward"]
    p = xconv.plan(x, w)
    assert asked == ["forward"]
    assert p.weight_grad.tiles >= 1
    p.weight_grad(y, x)
    assert asked == ["forward", "weight_grad"]
    p.input_grad(y, w)
    p.forward(x, w)
    repr(p)
    assert asked == ["forward", "weight_grad", "input_grad"]
    scheduled.cache_clear()
    xconv.conv_weight_grad(y, x, w.shape)
    xconv.conv_input_grad(y, w, x.shape)
    assert asked[3:] == ["weight_grad", "input_grad"]
    scheduled.cache_clear()


def test_figures_of_depthwise():
    """Its multiply-adds are counted as they are, however slow the library is at them."""
    p = xconv.plan(np.ones((1, 4, 10)), np.ones((8, 1, 3)), groups=4, algorithm="depthwise")
    assert p.flops == 2 * 8 * 8 * 3


def test_text():
    p = xconv.plan(np.ones((1, 4, 64, 64)), np.ones((8, 4, 1, 1)))
    text = repr(p)
    assert "(1, 4, 64, 64) * (8, 4, 1, 1) -> (1, 8, 64, 64), float64 on numpy" in text
    for function in ("forward", "input_grad", "weight_grad"):
        assert text.count(f"\n  {function}: ") == 1
        assert f"  {function}: {getattr(p, function).tiled.name}\n" in text
    assert text.count("\n    * ") == 3
    assert "\n    * pointwise " in repr(p.forward)
    assert "\n      gemm " in repr(p.forward)
    assert "gemm, reflected " in repr(p.input_grad)
    assert "reflected" not in repr(p.weight_grad)
    assert "262 kFLOP" in text
    other = repr(xconv.plan(np.ones((1, 4, 64, 64)), np.ones((8, 4, 3, 3))))
    assert other.count("the kernel (3, 3) has more than one tap") == 3  # and no reflected one says it again
    assert "TFLOP" in repr(xconv.plan(np.broadcast_to(1.0, (10**6, 64, 64, 64)), np.ones((64, 64, 3, 3))))
    assert "in parallel" in repr(xconv.plan(np.ones((8, 64, 56, 56)), np.ones((64, 64, 3, 3))))


def test_refuses_other_arrays(lib, arrays):
    x, w, b = arrays
    p = xconv.plan(x, w)
    y = p.conv(x, w)
    for function, arrays in ((p.conv, (x,)), (p.input_grad, (y, w, w)), (p.forward, (x, w, b, b))):
        with pytest.raises(TypeError, match=rf"`plan\.\w+` takes \w+, \w+.*, got {len(arrays)} arguments"):
            function(*arrays)
    for call, message in (
        (lambda: p.conv(x[:1, ...], w), "`x` must have the plan's shape"),
        (lambda: p.conv(x, w, b[:1]), "`b` must have the plan's shape"),
        (lambda: p.input_grad(x, w), "`dy` must have the plan's shape"),
        (lambda: p.weight_grad(y, y), r"`x` must have the plan's shape .*\)$"),
        (lambda: p.weight_grad(x, y), "`dy` must have the plan's shape .*: `dy` and `x` may be exchanged"),
        (lambda: p.input_grad(w, y), "`dy` must have the plan's shape .*: `dy` and `w` may be exchanged"),
        (lambda: p.forward(w, x, b), "`x` must have the plan's shape .*: `x` and `w` may be exchanged"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="`w` must have the plan's dtype"):
        p.conv(x, lib.array(lib.numpy(w), "int32"))


def test_equal_pad_values_have_one_plan():
    """The same number in other types, and NaN, which is not equal to itself."""
    x, w = np.ones((1, 1, 9)), np.ones((1, 1, 4))
    for values in (
        (0, 0.0, -0.0, 0j, np.int8(0)),
        (2, 2.0, complex(2, -0.0), np.float32(2), np.uint8(2)),
        (math.nan, -math.nan, float("nan"), np.float64("nan"), complex(1, math.nan)),
    ):
        before = scheduled.cache_info().misses
        results = {xconv.conv(x, w, padding=1, pad_value=value).tobytes() for value in values}
        assert len(results) == 1
        assert scheduled.cache_info().misses <= before + 1


def test_what_a_padding_holds_matters_where_there_is_one():
    """And is otherwise not in a plan, nor in the name of a measured time."""
    x, w = np.ones((1, 1, 9)), np.ones((1, 1, 4))
    plans = [xconv.plan(x, w, padding=-1, pad_value=value) for value in (0, 3)]
    assert plans[0].schedule.geometry == plans[1].schedule.geometry
    plans = [xconv.plan(x, w, padding=1, stride=2, pad_value=value) for value in (0, 3, -7, 0.5)]
    assert len({p.schedule.problem.call("forward", "here") for p in plans}) == 2
    assert len({p.schedule.predicted("forward").geometry for p in plans}) == 4
    assert len({p.schedule.predicted("input_grad").geometry for p in plans}) == 1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_pad_value_that_is_not_finite_stays_in_its_windows(rng, value):
    x, w = rng.integers(1, 5, (1, 2, 64, 64)).astype("float32"), np.ones((2, 2, 31, 31), "float32")
    p = xconv.plan(x, w, padding=15, pad_value=value)
    assert xconv.plan(x, w, padding=15, pad_value=1).algorithm == "fft"
    assert p.algorithm != "fft"
    assert "its error bound is not componentwise, and `pad_value` is not finite" in str(p)
    y = p.conv(x, w)
    assert np.isfinite(y[..., 15:-15, 15:-15]).all()
    y[..., 15:-15, 15:-15] = value
    assert np.array_equal(y, np.full_like(y, value), equal_nan=True)


def test_refuses_another_library():
    strict = pytest.importorskip("array_api_strict")
    p = xconv.plan(np.ones((1, 1, 3)), np.ones((1, 1, 2)))
    with pytest.raises(TypeError, match="`x` and `w` must be of numpy, the array library of the plan"):
        p.conv(strict.ones((1, 1, 3)), strict.ones((1, 1, 2)))


def test_a_repeated_call_plans_nothing(rng):
    x, w = rng.standard_normal((1, 2, 17)), rng.standard_normal((3, 2, 4))
    xconv.conv(x, w, stride=[3])
    before = scheduled.cache_info().misses
    for stride in (3, [3], (3,), np.int64(3)):
        xconv.conv(x, w, stride=stride)
    assert scheduled.cache_info().misses <= before + 1  # 3 and (3,) are two spellings


class Rounded(Gemm):
    """An algorithm that is cheap, and has no componentwise bound."""

    name = "rounded"
    componentwise = False

    def cost(self, function, g, costs):
        return 0

    once = cost


def test_a_new_algorithm_is_one_entry(monkeypatch, lib, arrays):
    """`auto` takes the cheapest, `numerics="strict"` the cheapest with the bound; both can be named."""
    x, w, _ = arrays
    with xconv.config(numerics="strict"):
        cheapest = xconv.plan(x, w).algorithm
    algorithms = backend_of({"x": x}).algorithms
    monkeypatch.setitem(algorithms, "rounded", Rounded())
    scheduled.cache_clear()
    assert xconv.plan(x, w).algorithm == "rounded"
    with xconv.config(numerics="strict"):
        p = xconv.plan(x, w)
        assert p.algorithm == cheapest
        assert algorithms[cheapest].componentwise
        assert '`numerics` is "strict"' in repr(p)
        assert xconv.plan(x, w, algorithm="rounded").algorithm == "rounded"
    lib.check(xconv.conv(x, w), lib.numpy(xconv.conv(x, w, algorithm="gemm")))
    monkeypatch.undo()
    scheduled.cache_clear()


class Foreign(Rounded):
    """An algorithm of another library, which has no gradients, and takes no memory to speak of."""

    name = "foreign"

    def scratch(self, function, g, backend):
        return 1

    def forward(self, backend, g, *arrays):
        self.forwards = getattr(self, "forwards", 0) + 1
        return super().forward(backend, g, *arrays)

    def input_grad(self, backend, g, *arrays):
        reason = "there are no gradients"
        raise RefusedError(self.name, reason)

    weight_grad = input_grad


@pytest.fixture
def foreign(monkeypatch, arrays):
    scheduled.cache_clear()
    foreign = Foreign()
    monkeypatch.setitem(backend_of({"x": arrays[0]}).algorithms, "foreign", foreign)
    yield foreign
    scheduled.cache_clear()


def serving(function):
    """The names of a function's candidates, the best first."""
    return [c.name for c in function.candidates if c.refusal is None and c.note is None]


def test_what_another_library_refuses_is_done_by_the_next_best(foreign, lib, arrays):
    """In that function and no other; an input gradient of stride 1 is a convolution, too, which it does not refuse."""
    x, w, _ = arrays
    for stride in (1, 2):
        options = {"stride": stride, "padding": 1}
        plan = xconv.plan(x, w, **options)
        gradients = (plan.input_grad, plan.weight_grad)
        assert [function.algorithm for function in (plan.forward, *gradients)] == ["foreign"] * 3
        assert ("foreign, reflected" in serving(plan.input_grad)) == (stride == 1)
        others = [next(n for n in serving(f) if "foreign" not in n).removesuffix(", reflected") for f in gradients]
        input_grad, weight_grad = (xconv.plan(x, w, **options, algorithm=name) for name in others)
        before = getattr(foreign, "forwards", 0)
        y = plan.conv(x, w)
        assert foreign.forwards > before
        lib.check(y, lib.numpy(xconv.conv(x, w, **options, algorithm="gemm")))
        for _ in range(2):
            before = foreign.forwards
            lib.check(plan.input_grad(y, w), lib.numpy(input_grad.input_grad(y, w)))
            assert (foreign.forwards > before) == (stride == 1)
            before = foreign.forwards
            lib.check(plan.weight_grad(y, x), lib.numpy(weight_grad.weight_grad(y, x)))
            assert foreign.forwards == before


def test_every_refusal_has_a_next_best(foreign, monkeypatch, lib, arrays):
    """As many as there are."""
    x, w, _ = arrays
    other = Foreign()
    monkeypatch.setattr(other, "name", "other", raising=False)
    monkeypatch.setitem(backend_of({"x": x}).algorithms, "other", other)
    plan, gemm = (xconv.plan(x, w, stride=2, algorithm=name) for name in ("auto", "gemm"))
    assert set(serving(plan.weight_grad)[:2]) == {"foreign", "other"}
    y = gemm.conv(x, w)
    lib.check(plan.weight_grad(y, x), lib.numpy(gemm.weight_grad(y, x)))


def test_another_library_asked_for_by_name_says_what_it_refuses(foreign, arrays):
    x, w, _ = arrays
    options = {"stride": 2, "algorithm": "foreign"}
    y = xconv.conv(x, w, **options)
    for function in (lambda: xconv.conv_input_grad(y, w, x.shape, **options),
                     lambda: xconv.conv_weight_grad(y, x, w.shape, **options)):  # fmt: skip
        with pytest.raises(ValueError, match=r"cannot serve this convolution: there are no gradients$"):
            function()


def test_a_workspace_with_room_for_another_library_alone(foreign, arrays):
    x, w, _ = arrays
    y = xconv.conv(x, w, algorithm="gemm")
    with pytest.raises(ValueError, match="at least") as caught, xconv.config(workspace=1):
        xconv.plan(x, w, algorithm="gemm")
    least = int(str(caught.value).split("at least ")[1].split()[0])
    with xconv.config(workspace=least - 1):
        plan = xconv.plan(x, w)
        assert plan.algorithm == "foreign"
        assert serving(plan.forward) == serving(plan.weight_grad) == ["foreign"]
        with pytest.raises(ValueError, match=r"cannot serve this convolution: there are no gradients$"):
            plan.weight_grad(y, x)
    (found,) = (candidate for candidate in plan.candidates if candidate.name == "gemm")
    assert found.refusal == f"`workspace` must be at least {least} bytes for this call, got {least - 1}"


def test_a_plan_is_shown_where_a_gradient_has_no_room(lib):
    x, w = lib.array(np.ones((2, 4, 12, 13))), lib.array(np.ones((6, 4, 3, 3)))
    with pytest.raises(ValueError, match="at least") as caught, xconv.config(workspace=1):
        xconv.plan(x, w, padding=1)
    with xconv.config(workspace=int(str(caught.value).split("at least ")[1].split()[0])):
        plan = xconv.plan(x, w, padding=1)
        with pytest.raises(ValueError, match="at least") as caught:
            plan.input_grad.workspace  # noqa: B018
    assert f"input_grad: {caught.value}" in repr(plan)


def test_a_library_has_its_own_algorithms(lib, arrays):
    """Every other library knows nothing of them."""
    x, w, _ = arrays
    known = set(backend_of({"x": x}).algorithms)
    assert {c.name for c in xconv.plan(x, w).candidates} == known >= set(PORTABLE)
    for name in {"mec", "implicit", "cudnn"} - known:
        with pytest.raises(ValueError, match=rf"^`algorithm` must be one of .* on \w+, got '{name}'$") as caught:
            xconv.conv(x, w, algorithm=name)
        assert all(repr(other) in str(caught.value) for other in known)


@pytest.mark.numpy_only
def test_small_calls_stay_in_their_thread(rng, lib):
    """A millisecond of work is done before another thread has woken up; but the BLAS must not start any, either."""
    w = rng.standard_normal((16, 16, 3, 3), dtype=np.float32)
    small, large = (xconv.plan(np.ones((n, 16, 64, 64), np.float32), w) for n in (1, 16))
    for function in ("forward", "input_grad", "weight_grad"):
        one, other = getattr(small, function), getattr(large, function)
        assert one.tiled.team.limit == 1 < other.tiled.team.limit
        assert one.tiled.team.heavy
        assert "in parallel" in repr(other)
        assert "in parallel" not in repr(one)
        assert one.tiles == 1 < other.tiles


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("dtype", "threads"), [("float32", False), ("int32", True), ("int8", True), ("complex128", True)]
)
def test_what_takes_long_does_not_stay_there(dtype, threads, lib):
    x, w = (np.ones(shape, dtype) for shape in ((4, 16, 40, 40), (32, 16, 3, 3)))
    assert (xconv.plan(x, w).forward.tiled.team.limit > 1) == threads


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", ["gemm", "mec", "winograd", "fft"])
@pytest.mark.parametrize("options", [{}, {"padding": 2}, {"stride": 3}, {"stride": (1, 3), "padding": 1}], ids=str)
def test_every_tile_fits_into_its_memory(name, options, lib):
    x, w = np.ones((3, 8, 90, 70), np.float32), np.ones((8, 8, 5, 5), np.float32)
    for workspace in (None, 3 * 2**19):
        with xconv.config(workspace=workspace):
            p = xconv.plan(x, w, **options, algorithm=name)
            problem = p.schedule.problem
            every = [s for f in ("forward", "input_grad", "weight_grad") for s in plans(problem, f)]
        costs = problem.costs
        assert len(every) == (3 if "stride" in options else 4)
        for s in every:
            needed = max(4 * s.scratch(s.algorithm, tile.geometry, costs) for tile in s.tiles)
            assert needed <= s.team.memory, s.name
            assert s.team.memory <= 2 * needed, s.name


@pytest.mark.numpy_only
def test_tiles_are_as_large_as_their_function_lets_them_be(rng, lib):
    """MEC's forward pass unfolds a third of the columns that its weight gradient does."""
    x, w = rng.random((2, 4, 200, 96), dtype=np.float32), rng.random((4, 4, 3, 3), dtype=np.float32)
    with xconv.config(workspace=2**19):
        mec, gemm = (xconv.plan(x, w, algorithm=name) for name in ("mec", "gemm"))
        assert mec.tiles < gemm.tiles
        assert mec.weight_grad.tiles == gemm.weight_grad.tiles == gemm.tiles
        dy = mec.conv(x, w)
        np.testing.assert_allclose(dy, gemm.conv(x, w), rtol=1e-5)
        np.testing.assert_allclose(mec.weight_grad(dy, x), gemm.weight_grad(dy, x), rtol=1e-5)


def test_settings_at_the_time_of_the_plan(rng):
    x, w = rng.standard_normal((4, 8, 64, 64)), rng.standard_normal((8, 8, 3, 3))
    with xconv.config(workspace=2**18):
        p = xconv.plan(x, w)
    assert p.workspace <= 2**18
    assert p.tiles > xconv.plan(x, w).tiles


def test_config_nests_and_ends():
    from xconv import _config

    outer = xconv.config(workspace=100, threads=2)
    with outer:
        with xconv.config(workspace=200, numerics="strict"), outer:
            assert _config.current() == (100, "ieee", "strict", 2, None)
        assert _config.current() == (100, "ieee", "fast", 2, None)
    assert _config.current() == (None, "ieee", "fast", None, None)
    with pytest.raises(ValueError, match="groups"), xconv.config(precision="tf32"):
        xconv.conv(np.ones((1, 1, 1)), np.ones((1, 1, 1)), groups=0)
    assert _config.current().precision == "ieee"


def test_config_none_is_the_default():
    from xconv import _config

    with xconv.config(workspace=100, precision="tf32", numerics="strict", threads=2):
        with xconv.config(workspace=None, precision=None, numerics=None, threads=None):
            assert _config.current() == _config.Settings()
        with xconv.config(threads=...):
            assert _config.current().threads == 2


def test_one_config_for_many_threads():
    """Threads enter and leave it in any order; each has its own settings."""
    from xconv import _config

    shared, entered, left = xconv.config(workspace=100), threading.Event(), threading.Event()

    def other():
        with shared:
            entered.set()
            assert left.wait(10)
            return _config.current().workspace

    with ThreadPoolExecutor(1) as pool:
        with shared:
            result = pool.submit(other)
            assert entered.wait(10)
        assert _config.current().workspace is None
        left.set()
        assert result.result() == 100


def test_config_left_where_it_was_not_entered():
    """There is nothing to put back where a generator is closed by another thread."""
    from xconv import _config

    def waiting():
        with xconv.config(threads=2):
            yield

    generator = waiting()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, generator).result()
    with xconv.config(threads=3):
        generator.close()
        assert _config.current().threads == 3
    assert _config.current().threads is None


@pytest.mark.numpy_only
def test_config_puts_back_what_it_found(rng):
    """In any order, as decimal's contexts do; an object that is entered several times is left as often."""
    from xconv import _config

    def enter_and_leave():
        blocks = [xconv.config(workspace=number) for number in range(4, 0, -1)]
        entered = {block: [] for block in blocks}
        decimal.getcontext().prec = 5
        with xconv.config(workspace=5):
            for i in rng.integers(4, size=20):
                block, contexts = blocks[i], entered[blocks[i]]
                if contexts and rng.integers(2):
                    block.__exit__(None, None, None)
                    contexts.pop().__exit__(None, None, None)
                else:
                    block.__enter__()
                    contexts.append(decimal.localcontext(prec=4 - int(i)))
                    contexts[-1].__enter__()
                assert _config.current().workspace == decimal.getcontext().prec
        assert _config.current().workspace is None

    for _ in range(100):
        contextvars.copy_context().run(enter_and_leave)
    assert _config.current() == _config.Settings()


def test_config_of_a_generator_that_waits():
    from xconv import _config

    def waiting():
        with xconv.config(workspace=200):
            yield

    def leave_the_outer_one_first():
        with xconv.config(workspace=100):
            suspended = waiting()
            next(suspended)
        assert _config.current().workspace is None
        suspended.close()
        assert _config.current().workspace == 100  # which it found

    contextvars.copy_context().run(leave_the_outer_one_first)


def test_one_config_for_many_tasks():
    from xconv import _config

    shared = xconv.config(workspace=100)

    async def task(before, within):
        await asyncio.sleep(before)
        with shared, xconv.config(threads=2), shared:
            await asyncio.sleep(within)
            assert _config.current()[:4] == (100, "ieee", "fast", 2)
        assert _config.current() == _config.Settings()

    async def tasks():
        await asyncio.gather(task(0, 2e-3), task(1e-3, 3e-3), task(0, 0))

    asyncio.run(tasks())


def test_workspace_of_a_plan_is_enough(rng):
    """And it counts the copies of the filters."""
    x, w = rng.standard_normal((1, 64, 8, 8)), rng.standard_normal((64, 64, 3, 3))
    p = xconv.plan(x, w)
    assert p.workspace >= 2 * w.nbytes
    with xconv.config(workspace=p.workspace):
        xconv.conv(x, w)


@pytest.mark.numpy_only
@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.usefixtures("exact")
def test_a_long_padding_is_planned_and_run_quickly(rng, mode):
    """Its repetitions are never walked through one by one."""
    x, w = rng.integers(-5, 6, (1, 1, 2, 3)).astype(float), rng.integers(-5, 6, (2, 1, 3, 3)).astype(float)
    padded = np.pad(x, ((0, 0), (0, 0), (300, 301), (300, 299)), mode=mode)
    options = {"padding": ((300, 301), (300, 299)), "pad_mode": mode}
    begin = time.perf_counter()
    y = xconv.conv(x, w, **options)
    dx = xconv.conv_input_grad(y, w, x.shape, **options)
    assert time.perf_counter() - begin < 1
    assert np.array_equal(y, xconv.conv(padded, w))
    assert np.vdot(dx, x) == np.vdot(y, y)


def test_a_large_kernel_gets_large_tiles(rng):
    """In tiles of the usual size, the input gradient would compute its columns 255 times."""
    p = xconv.plan(np.ones((1, 1, 512, 512), np.float32), np.ones((1, 1, 31, 31), np.float32), padding=15)
    every = {plan.name: plan for plan in plans(p.schedule.problem, "input_grad")}
    assert {"gemm", "fft"} < set(every)
    for name, plan in every.items():
        assert sum(tile.geometry.pixels for tile in plan.tiles) < 3 * 512 * 512, name


def test_runs_with_the_settings_it_was_made_with(monkeypatch):
    from xconv import _config

    x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
    with xconv.config(precision="tf32"):
        p = xconv.plan(x, w)
    seen = []
    monkeypatch.setattr(Backend, "call", lambda *_, **options: seen.append(_config.current().precision))
    dy = np.ones(p.y_shape)
    p.conv(x, w), p.input_grad(dy, w), p.weight_grad(dy, x)
    assert seen == ["tf32"] * 3
    assert _config.current().precision == "ieee"


@pytest.mark.parametrize(
    ("algorithm", "x", "w", "reflected"),
    [
        ("gemm", (8, 64, 56, 56), (64, 64, 3, 3), True),
        ("gemm", (8, 512, 7, 7), (512, 512, 3, 3), False),  # more filters than images
        ("winograd", (8, 64, 56, 56), (64, 64, 3, 3), True),  # windows that overlap are dear to add up
        ("winograd", (8, 256, 14, 14), (256, 256, 3, 3), False),
        ("winograd", (1, 64, 224, 224), (64, 64, 3, 3), True),  # parts of an image share outputs
        ("fft", (2, 4, 64, 64), (4, 4, 9, 9), False),
    ],
)
def test_filters_are_reflected_where_that_is_less(algorithm, x, w, reflected):
    plan = xconv.plan(np.zeros(x, np.float32), np.zeros(w, np.float32), padding=w[-1] // 2, algorithm=algorithm)
    assert plan.input_grad.tiled.name == (f"{algorithm}, reflected" if reflected else algorithm)


def test_few_pixels_of_many_images_make_one_product(rng):
    """Forward and back, and the images do not get mixed up."""
    for kernel, groups in ((1, 1), (3, 1), (3, 2)):
        x, dy = (rng.integers(-4, 5, (5, channels, 3, 2)).astype(float) for channels in (64, 96))
        w = rng.integers(-4, 5, (96, 64 // groups, kernel, kernel)).astype(float)
        options = {"padding": kernel // 2, "groups": groups, "algorithm": "gemm"}
        y, dx = xconv.conv(x, w, **options), xconv.conv_input_grad(dy, w, x.shape, **options)
        for i in range(5):
            one = slice(i, i + 1)
            np.testing.assert_array_equal(y[one], xconv.conv(x[one], w, **options))
            np.testing.assert_array_equal(dx[one], xconv.conv_input_grad(dy[one], w, (1, 64, 3, 2), **options))


def like(*shape, dtype="float32"):
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


#: Of a processor that is not shared; more where coverage is measured.
MOST_SECONDS = 0.05 if sys.gettrace() is None else 0.15

#: Geometries that were searched one by one: for a good Fourier length, through all taps, and through all images.
LONG = {
    "axis": ((1, 1, 10**9), (1, 1, 10**6), {}),
    "stride": ((1, 1, 3 * 10**12), (1, 1, 2), {"stride": 10**12}),
    "padding": ((1, 1, 5), (1, 1, 3), {"padding": 10**15}),
    "dilation": ((2, 1, 10**15), (1, 1, 2), {"dilation": 10**14}),
    "taps": ((1, 4, 10**7), (4, 1, 10**6), {"groups": 4}),
    "taps of a plane": ((1, 4, 4000, 4000), (4, 1, 1000, 1000), {"groups": 4, "padding": 500}),
    "images": ((10**9, 1, 9, 9), (1, 1, 3, 3), {"algorithm": "winograd"}),
    "channels": ((1, 10**8, 8), (10**8, 1, 3), {"groups": 10**8}),
}


def seconds_of_plans(x, w, settings, options):
    """What the plan of the slowest function takes its thread: the least of some tries."""
    least = None
    for _ in range(4):
        for cached in (scheduled, best_lengths, sides, layout):
            cached.cache_clear()
        times = [time.thread_time()]
        with (
            xconv.config(**settings),
            contextlib.suppress(ValueError, MemoryError),
        ):  # what cannot be is refused as quickly
            plan = xconv.plan(x, w, **options)
            for function in (plan.input_grad, plan.weight_grad):
                times.append(time.thread_time())
                with contextlib.suppress(ValueError, MemoryError):
                    assert function.tiles > 0
        times.append(time.thread_time())
        most = max(end - begin for begin, end in pairwise(times))
        least = most if least is None else min(least, most)
        if least < MOST_SECONDS:
            break
    return least


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("settings", [{}, {"numerics": "strict"}, {"workspace": 2**30}], ids=str)
def test_long_axes_are_planned_quickly(name, settings):
    x, w, options = LONG[name]
    assert seconds_of_plans(like(*x), like(*w), settings, options) < MOST_SECONDS


def extreme(rng):
    """A convolution of any size that can be addressed: arrays, settings and options."""

    def up_to(most):
        return int(most ** rng.random())

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    rank, room, lengths = int(rng.integers(1, 5)), 2 ** int(rng.integers(5, 58)), []
    for _ in range(rank + 3):
        lengths.append(one_of(1, up_to(min(room, 10**15)), min(room, 3)))
        room //= lengths[-1]
    batch, groups, c_group, *size = (lengths[i] for i in rng.permutation(rank + 3))
    axes, simple = [], rng.random() < 0.3
    for length in size:
        kernel = one_of(1, 3, int(rng.integers(1, 8)), up_to(10**3), up_to(10**9), max(1, length // 3))
        stride, dilation = one_of(1, 1, 2, up_to(10**15)), one_of(1, 1, up_to(10**12))
        if simple:
            kernel, stride, dilation = one_of(1, 3, 5), 1, 1
        extent = (kernel - 1) * dilation + 1
        lo = one_of(0, 0, extent // 2, up_to(10**12))
        axes.append((kernel, stride, dilation, (lo, max(one_of(0, lo), extent - length - lo))))
    kernel, stride, dilation, padding = zip(*axes, strict=True)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    options |= {
        "pad_mode": one_of("constant", "constant", "edge", "reflect", "symmetric", "wrap"),
        "layout": one_of("channels_first", "channels_last"),
        "algorithm": one_of("auto", "auto", "auto", "gemm", "fft", *PORTABLE),
    }
    settings = {"numerics": one_of("fast", "strict"), "workspace": one_of(None, None, 1000 + up_to(10**15))}
    c_in, c_out = groups * c_group, groups * one_of(1, up_to(10**3))
    x = (batch, *size, c_in) if options["layout"] == "channels_last" else (batch, c_in, *size)
    return x, (c_out, c_group, *kernel), one_of("float32", "complex64", "int32", "float16"), settings, options


@pytest.mark.numpy_only
@pytest.mark.parametrize("seed", range(12))
def test_no_plan_takes_long(seed, lib):
    rng, planned = np.random.default_rng(seed), 0
    while planned < 25:
        x, w, dtype, settings, options = extreme(rng)
        try:
            arrays = like(*x, dtype=dtype), like(*w, dtype=dtype)
        except ValueError:  # not even NumPy has such arrays
            continue
        planned += 1
        taken = seconds_of_plans(*arrays, settings, options)
        assert taken < MOST_SECONDS, f"{taken:.3f} s for {x} by {w} of {dtype} with {options} and {settings}"
