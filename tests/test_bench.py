"""The benchmark: its reference, bookkeeping and reports, and a run on a "GPU" that is NumPy with a false clock."""

import gc
import itertools
import json
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle import Oracle

import xconv

sys.path.append(str(Path(__file__).parents[1]))

from bench import __main__ as command_line
from bench import (
    beside_scipy,
    byhand,
    cases,
    contenders,
    devices,
    geometries,
    gpu,
    gpu_plots,
    gpu_report,
    growth,
    measure,
    memory,
    networks,
    pairs,
    planner,
    planner_report,
    problem,
    report,
)
from bench.child import Child, ChildError
from bench.devices import DeviceXconv, OneAlgorithm, issue
from bench.geometries import Geometry
from bench.gpu_worker import GpuWorker
from bench.planner_worker import Worker as PlannerWorker

SMALL = {
    "strided": cases.Case("strided", (2, 4, 9, 8), (6, 2, 3, 2), stride=2, padding=1, groups=2),
    "dilated": cases.Case("dilated", (2, 2, 13), (3, 2, 3), padding=2, dilation=2, precisions=("double",)),
    "last": cases.Case("last", (2, 3, 4, 5, 6), (4, 3, 2, 3, 2), channels_last=True),
    "plain": cases.Case("plain", (1, 2, 8, 7), (3, 2, 3, 3), padding=1),
    "deep": cases.Case("deep", (2, 4, 6, 6), (4, 1, 3, 3), padding=1, groups=4),
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)


def oracle(case):
    sizes = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    return Oracle(case.x_shape, case.w_shape, **sizes, groups=case.groups)


@pytest.mark.parametrize("case", [pairs.Case(3, (5, 6), (3, 2), "complex64"), pairs.Case(2, (9,), (9,))])
def test_pairs_are_convolved_alike(case):
    double = "complex128" if case.dtype == "complex64" else "float64"
    expected, *others = (make(case, double)() for make in pairs.CONTENDERS.values())
    assert len(others) == 4
    for other in others:
        np.testing.assert_allclose(other, expected, atol=1e-12, strict=True)


@small
def test_reference_is_the_plain_loops(case):
    made = problem.make(case)
    x, w, dy = (made.operands[name].astype(float) for name in ("x", "w", "dy"))
    x, dy = cases.first(case, x), cases.first(case, dy)
    loops = oracle(case)
    assert made.operands["x"].shape == case.shape("x")
    np.testing.assert_allclose(cases.first(case, made.expected["y"]), loops.conv(x, w), atol=1e-12)
    np.testing.assert_allclose(cases.first(case, made.expected["dx"]), loops.input_grad(dy, w), atol=1e-12)
    np.testing.assert_allclose(made.expected["dw"], loops.weight_grad(dy, x), atol=1e-12)


@pytest.mark.parametrize("name", ["strided", "dilated", "plain"])
def test_reference_of_the_columns_and_their_adjoint(name):
    case, rng = SMALL[name], np.random.default_rng(0)
    x, cols = (rng.integers(-4, 5, case.shape(operand)).astype(float) for operand in ("x", "cols"))
    unfolded = problem.reference(case, "im2col", {"x": x})["cols"]
    folded = problem.reference(case, "col2im", {"cols": cols})["folded"]
    np.testing.assert_array_equal(unfolded, oracle(case).im2col(x))
    np.testing.assert_array_equal(folded, oracle(case).col2im(cols))


def test_a_problem_survives_its_file(tmp_path):
    made = problem.make(SMALL["last"])
    made.save(tmp_path / "problem.npz")
    again = problem.Problem.load(tmp_path / "problem.npz")
    for before, after in ((made.operands, again.operands), (made.expected, again.expected)):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


#: The others are too slow to load for this.
LIGHT = [kind for name, kind in contenders.CONTENDERS.items() if name not in {"torch", "jax"}]


@small
@pytest.mark.parametrize("kind", LIGHT, ids=lambda kind: kind.name)
def test_contenders_compute_the_reference(kind, case):
    contender, made = kind(1), problem.make(case)
    allowed = [operation for operation in case.operations if contender.refusal(case, operation) is None]
    calls = contender.prepare(case, made) if allowed else {}
    assert contender.name != "xconv" or set(calls) == set(case.operations)
    for operation, call in calls.items():
        results = zip(cases.OPERATIONS[operation].results, memory.as_tuple(call()), strict=True)
        for name, result in results:
            assert problem.relative_error(result, made.expected[name]) < 1e-4


def test_what_only_some_contenders_run():
    assert not contenders.CONTENDERS["xconv-8MiB"].usual
    assert contenders.CONTENDERS["xconv-8MiB"].grows
    assert not contenders.CONTENDERS["xconv-gemm"].grows
    pointwise = contenders.CONTENDERS["xconv-pointwise"](1)
    assert pointwise.prepare(SMALL["plain"], problem.make(SMALL["plain"])) == {}
    assert "pixels" in contenders.CONTENDERS["scipy"](1).refusal(cases.CASES["r50_56"], "forward")
    assert "stride" in contenders.CONTENDERS["scipy"](1).refusal(SMALL["strided"], "forward")


def test_cases_count_their_work():
    case = SMALL["strided"]
    assert case.out == oracle(case).conv(np.zeros(case.x_shape), np.zeros(case.w_shape)).shape[2:]
    assert case.flops("forward") == 2 * np.prod(case.y_shape) * 2 * 3 * 2
    assert case.flops("backward") == 2 * case.flops("forward")
    assert case.flops("im2col") == 0
    assert case.elements("forward") == np.prod(case.x_shape) + np.prod(case.w_shape) + np.prod(case.y_shape)
    assert case.elements("col2im") == np.prod(case.shape("cols")) + np.prod(case.x_shape)
    assert case.label == "2x4x9x8, 6 of 3x2, stride 2, 2 groups"
    assert SMALL["dilated"].label == "2x2x13, 3 of 3, dilation 2, float64"
    assert {case.rank for case in cases.CASES.values()} == {1, 2, 3}


def test_jobs_of_a_gpu():
    jobs = cases.gpu_jobs(tuple(cases.GPU_CASES), ("ieee", "tf32", "float16", "bfloat16"))
    assert list(dict.fromkeys(job.precision for job in jobs)) == ["ieee", "tf32", "float16", "bfloat16"]
    assert {job.precision for job in jobs if job.operation == "im2col"} == {"ieee", "float16"}
    assert {job.precision for job in jobs if job.case == "dw"} == {"ieee", "tf32"}
    assert len(jobs) == len(set(jobs))


def test_statistics_of_a_cpu_run():
    found = measure.statistics_of([[10**9, 3 * 10**9], [], [2 * 10**9]])
    assert (found["median"], found["min"], found["calls"]) == (2, 1, 3)
    assert (found["q1"], found["q3"]) == (1.5, 2.5)
    assert found["medians_of_rounds"] == [2, 2]
    assert measure.statistics_of([[10**9]])["q3"] == 1


def test_temporary_memory_of_numpy_is_what_it_allocates():
    def call():
        block = np.ones(10**6, np.uint8)
        return block[: 10**5].copy()

    assert 10**6 <= memory.temporary(call, on_numpy=True) < 1.1 * 10**6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell its high-water mark")
def test_temporary_memory_of_others_is_what_becomes_resident():
    size = 2**26

    def call():
        del_me = np.ones(size, np.uint8)
        return del_me[:10].copy()

    assert abs(memory.temporary(call, on_numpy=False) - size) < 2**20


def timed(case, operation, contender, seconds, mib=1):
    spread = {"median": seconds, "q1": seconds, "q3": seconds, "min": seconds, "calls": 9}
    names = {"case": case, "operation": operation, "contender": contender}
    return names | spread | {"error": 1e-7, "temporary_bytes": mib * 2**20}


@pytest.fixture
def cpu_run():
    one, two = "xconv-gemm", "xconv-fft"
    return {
        "date": "today",
        "command": "python -m bench",
        "machine": {"cpu": "a", "cores": 2, "caches": {}, "os": "b", "python": "3", "load": 0.1},
        "threads": 2,
        "rounds": 5,
        "contenders": {
            name: {"versions": {}, "meter": "tracemalloc"} for name in ("xconv", one, two, "xconv-8MiB", "torch")
        },
        "left_out": [],
        "failures": [],
        "cases": {"tiny": "small", "dw": "deep"},
        "flops": {"tiny": 100, "dw": 100},
        "growth": {"side64": ["side", 64], "side128": ["side", 128]},
        "remarks": {"xconv": {"tiny": "gemm"}},
        "omitted": [],
        "results": [
            *(timed("tiny", "forward", name, s) for name, s in (("xconv", 1.05), (one, 1), (two, 2), ("torch", 2))),
            *(timed("tiny", "weight_grad", name, s) for name, s in (("xconv", 3), (one, 3), (two, 2))),
            *(timed("dw", "forward", name, s) for name, s in (("xconv", 3), (one, 1))),  # no choice
            *(timed("side128", "forward", name, s, 7) for name, s in (("xconv", 4), ("xconv-8MiB", 5))),
            timed("side64", "forward", "xconv", 1, 3),
        ],
    }


def test_the_choice_is_compared_with_the_best_forced_algorithm(cpu_run):
    compared = report.choices(cpu_run)
    assert compared == [("tiny", "forward", "xconv-gemm", 1), ("tiny", "weight_grad", "xconv-fft", 1.5)]
    assert "within 10% of the best forced algorithm in 1 of 2" in report.summary(cpu_run)
    assert "| tiny | forward | gemm | gemm | 1.00 |" in report.table(cpu_run)
    assert report.peers_of(cpu_run) == ["torch"]


def test_growth_is_reported_in_order(cpu_run):
    assert growth.series(cpu_run, "side", "xconv", "median") == [(64, 1), (128, 4)]
    assert "| side 64 | 1000; 3.00 | - |" in growth.table(cpu_run)
    assert "| side 128 | 4000; 7.00 | 5000; 7.00 |" in growth.table(cpu_run)
    assert growth.table(cpu_run | {"growth": {}}) == ""


class Numpy(DeviceXconv):
    """A device whose arrays are NumPy's and whose clock says that the n-th call takes n milliseconds."""

    xp = np

    def __init__(self):
        super().__init__(1)
        self.seen, self.settings, self.ticks, self.freed = [], [], itertools.count(1), 0

    def describe(self):
        return {
            "device": "NVIDIA False-1",
            "l2_bytes": 3000,
            "compute_capability": "9.0",
            "driver": "CUDA 13.0",
            "runtime": "CUDA 13.0",
        }

    @contextmanager
    def setting(self, precision):
        self.settings.append(precision)
        yield

    def convert(self, array, precision):
        return array.astype(cases.PRECISIONS[precision][0])

    def plain(self, array):
        return array.astype(np.float32)

    def elapsed(self, function, operands, calls):
        def watched(*given):
            self.seen.append(given[0].ctypes.data)
            return function(*given)

        issue(watched, operands, calls)
        return 1e-3 * next(self.ticks) * calls, 1e-6 * calls

    def temporary(self, function, operands):
        return memory.temporary(lambda: function(*operands), on_numpy=True)

    def free(self):
        self.freed += 1

    def rate(self, kind):
        return (np.copyto, [np.empty(9), np.zeros(9)], 144) if kind in {"copy", "ieee"} else None


class NumpyForced(OneAlgorithm, Numpy):
    """The same by one algorithm."""


FORCED = contenders.forced(NumpyForced, "implicit", "cudnn")  # as on CuPy
ALGORITHMS = tuple(FORCED)


def job(contender, precision, case, operation):
    return {"contender": contender, "precision": precision, "case": case, "operation": operation}


@pytest.fixture
def gpu_cases(monkeypatch):
    """Small cases in place of those for a GPU, without the collections of garbage that would take most of the time."""
    monkeypatch.setattr(gc, "collect", lambda: 0)
    everything = {"precisions": ("ieee", "float16"), "operations": (*cases.UNFOLD, *cases.CONV)}
    some = {name: replace(SMALL[name], **everything) for name in ("plain", "strided")}
    for module in (cases, gpu, gpu_report, sys.modules["bench.gpu_worker"]):
        monkeypatch.setattr(module, "GPU_CASES", some)
    return some


def test_a_worker_rotates_its_operands_and_times_them(gpu_cases):
    worker = GpuWorker({"xconv": Numpy})
    assert worker.start()["machine"]["device"] == "NVIDIA False-1"
    device, given = worker.devices["xconv"], job("xconv", "ieee", "plain", "forward")
    answer = worker.prepare(**given)
    touched = 4 * (2 * 8 * 7 + 3 * 2 * 9)  # x and w
    sets = 1 + 3 * 3000 // touched
    assert answer["rotated_bytes"] == sets * touched > 3 * 3000
    assert 0 < answer["error"] < 1e-5
    assert answer["temporary_bytes"] > 0
    assert answer["algorithm"] in {name.removeprefix("xconv-") for name in ALGORITHMS}
    assert answer["tiles"] == 1
    begin = len(device.seen)
    found = worker.time(**given)
    estimate = worker.tasks["xconv"].estimate
    calls = max(4, min(50, int(0.02 / estimate)))
    assert found["calls"] == calls == len(device.seen) - begin - 2
    assert len(set(device.seen[begin:])) == min(sets, calls + 2)
    assert found["seconds"] > estimate  # the clock slows down
    assert found["host"] == pytest.approx(1e-6)
    assert set(device.settings) == {"ieee"}


def test_a_wrong_result_takes_no_part(gpu_cases):
    class Wrong(Numpy):
        def functions(self, case, precision):
            return {
                "forward": lambda x, w, dy: 1.01 * super(Wrong, self).functions(case, precision)["forward"](x, w, dy)
            }

    worker = GpuWorker({"xconv": Wrong})
    worker.start()
    with pytest.raises(ArithmeticError, match="wrong by"):
        worker.prepare(**job("xconv", "ieee", "plain", "forward"))
    assert worker.prepare(**job("xconv", "float16", "plain", "forward"))["error"] > 5e-3
    assert "omitted" in worker.prepare(**job("xconv", "ieee", "plain", "im2col"))


def test_contenders_of_a_process_share_a_job(gpu_cases, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        GpuWorker, "_take_up", lambda worker, job, real=GpuWorker._take_up: drawn.append(job) or real(worker, job)
    )
    worker = GpuWorker({"xconv": Numpy, "xconv-gemm": FORCED["xconv-gemm"]})
    worker.start()
    first, second = (job(name, "ieee", "plain", "forward") for name in ("xconv", "xconv-gemm"))
    worker.prepare(**first)
    worker.prepare(**second)
    one, other = (worker.devices[name].seen for name in ("xconv", "xconv-gemm"))
    worker.time(**first)
    assert set(one) | set(other) <= {operands[0].ctypes.data for operands in worker.sets}
    assert one[0] == other[0]
    worker.prepare(**job("xconv", "ieee", "plain", "im2col"))
    worker.time(**second)  # back to that job
    assert [taken.operation for taken in drawn] == ["forward", "im2col", "forward"]
    assert set(worker.tasks) == {"xconv-gemm"}


def test_every_algorithm_is_a_contender_by_itself(gpu_cases):
    assert tuple(devices.DEVICES) == ("xconv", "torch", "jax", *ALGORITHMS)
    assert {devices.DEVICES[name].library for name in ("xconv", *ALGORITHMS)} == {"cupy"}
    worker = GpuWorker({"xconv": Numpy} | FORCED)
    worker.start()
    serve = {}
    for case in gpu_cases:
        answers = {name: worker.prepare(**job(name, "ieee", case, "forward")) for name in ALGORITHMS}
        serve[case] = {name.removeprefix("xconv-") for name, answer in answers.items() if "error" in answer}
        omitted = [answer["omitted"] for answer in answers.values() if "error" not in answer]
        assert all("cannot serve" in reason or "must be one of" in reason for reason in omitted)
        assert all(answers[f"xconv-{name}"]["algorithm"] == name for name in serve[case])
    assert serve == {"plain": {"winograd", "gemm", "fft"}, "strided": {"gemm", "fft"}}
    for operation in cases.UNFOLD:  # no algorithm multiplies there
        assert "omitted" in worker.prepare(**job("xconv-gemm", "ieee", "plain", operation))
        assert not {"algorithm", "tiles"} & set(worker.prepare(**job("xconv", "ieee", "plain", operation)))


@pytest.mark.parametrize(("name", "algorithm"), [("vgg", "gemm")])
def test_what_a_contender_says_of_its_plan(name, algorithm):
    import xconv

    case = cases.CASES[name]
    x, w = (np.zeros(case.shape(operand), np.float32) for operand in ("x", "w"))
    plan = xconv.plan(x, w, stride=case.stride, padding=case.padding, algorithm=algorithm)
    tiles = {operation: getattr(plan, operation).tiles for operation in cases.CONV}
    contender = FORCED[f"xconv-{algorithm}"]()
    said = {operation: contender.plan(case, operation, x, w) for operation in cases.CONV}
    assert said == {operation: {"algorithm": algorithm, "tiles": count} for operation, count in tiles.items()}
    assert len(set(tiles.values())) > 1


def test_a_refusal_is_no_failure(gpu_cases):
    def says(text):
        class Refusing(FORCED["xconv-gemm"]):
            def functions(self, case, precision):
                def refuse(*operands):
                    raise ValueError(text)

                return dict.fromkeys(cases.CONV, refuse)

        worker = GpuWorker({"xconv-gemm": Refusing})
        worker.start()
        return worker.prepare(**job("xconv-gemm", "ieee", "plain", "forward"))

    refusal = "`algorithm` 'cudnn' cannot serve this convolution: cuDNN says no"
    assert says(refusal) == {"refused": refusal}
    with pytest.raises(ValueError, match="shapes"):
        says("shapes (1,) and (2,) not aligned")


def test_a_child_says_who_misses_what():
    def absent():
        raise contenders.MissingError("no device")

    worker = GpuWorker({"torch": absent, "xconv": Numpy})
    answer = worker.start()
    assert (answer["missing"], list(answer["versions"])) == ({"torch": "no device"}, ["xconv"])
    assert GpuWorker({"torch": absent}).start() == {"missing": {"torch": "no device"}, "versions": {}}


def on_cpu(name):
    """The contender of a GPU on the CPU, with NumPy for CuPy: all but the events and the meters."""
    module = pytest.importorskip(name)
    kind = devices.DEVICES[name]

    class Here(kind):
        xp, platform, threads = np, "cpu", 1
        describe, rate, free = Numpy.describe, Numpy.rate, lambda self: None

        def __init__(self):
            setattr(self, name, module)

    if name == "torch":
        Here.elapsed = lambda self, function, operands, calls: (calls, issue(function, operands, calls)[1])
        Here.temporary = lambda self, function, operands: 0
    return Here


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "float16", "bfloat16"])
def test_peers_compute_the_reference_in_every_precision(gpu_cases, name, precision):
    worker = GpuWorker({name: on_cpu(name)})
    worker.start()
    bound = {"ieee": 1e-6, "tf32": 1e-6, "float16": 5e-3, "bfloat16": 5e-2}[precision]  # a CPU knows no TF32
    for operation in (*cases.UNFOLD, *cases.CONV):
        given = job(name, precision, "strided", operation)
        answer = worker.prepare(**given)
        assert (name == "jax" and operation in cases.UNFOLD) == ("omitted" in answer)
        assert answer.get("error", 0) < bound
        assert "omitted" in answer or worker.time(**given)["calls"] >= 4


class InProcess:
    """A child without a process of its own; it fails where it is told to."""

    def __init__(self, names, failing=lambda request, arguments: False, missing=()):
        self.names, self.failing, self.closed = tuple(names), failing, False
        kinds = {name: FORCED.get(name, Numpy) for name in names if name not in missing}
        self.worker = GpuWorker(kinds)
        self.facts = self.ask("start")
        self.facts["missing"] |= {name: f"there is no {name}" for name in names if name in missing}

    def ask(self, request, **arguments):
        if self.failing(request, arguments):
            raise ChildError(f"{request} failed")
        return self.worker.requests[request](**arguments)

    def close(self):
        self.closed = True


SETTINGS = gpu.Settings(("plain", "strided"), ("ieee", "float16"), ("xconv", "torch", "jax"), rounds=3, minutes=8)
SOME = replace(SETTINGS, cases=("plain",), precisions=("ieee",))


def fails_at(contender, operation, request="prepare"):
    def failing(asked, given):
        return (asked, given.get("contender"), given.get("operation")) == (request, contender, operation)

    return failing


def test_a_run_on_a_gpu(gpu_cases, tmp_path, capsys):
    saved, launched = [], []

    def launch(names):
        launched.append(InProcess(names, fails_at("torch", "col2im"), missing=("jax",)))
        return launched[-1]

    gpu.measure(SETTINGS, lambda found: saved.append(json.dumps(found)), launch)
    found = json.loads(saved[-1])
    assert len(saved) == len(SETTINGS.jobs) + 1
    assert sorted(child.names for child in launched) == [("jax",), ("torch",), ("xconv",)]
    assert all(child.closed for child in launched)
    assert found["left_out"] == ["jax is left out: there is no jax"]
    assert len(found["failures"]) == 4  # two cases, two precisions
    assert {r["contender"] for r in found["results"] if r["operation"] == "col2im"} == {"xconv"}
    assert len(found["results"]) == 2 * len(SETTINGS.jobs) - 4
    assert found["peaks"]["copy"] > 0
    assert found["peaks"]["float16"] is None
    text = gpu_report.table(found)
    assert "NVIDIA False-1" in text
    of = "float32, plain (col2im), strided (col2im); float16, plain (col2im), strided (col2im)"
    assert f"- FAILED: torch, prepare failed: {of}\n" in text
    assert gpu_report.summary(found).endswith(f"\nFAILED: torch, prepare failed: {of}")
    assert gpu.file_of(tmp_path, found) == tmp_path / "gpu-nvidia-false-1.json"
    assert "[0/20" in capsys.readouterr().err


def test_algorithms_are_timed_after_the_libraries_beside_our_own_choice(gpu_cases):
    found, launched = {}, []
    settings = replace(SOME, peers=("xconv", *ALGORITHMS, "torch"))
    operations = (*cases.UNFOLD, *cases.CONV)
    steps = [(step.job.operation, step.contenders) for step in settings.steps]
    assert steps == [
        *((operation, ("xconv", "torch")) for operation in operations),
        *((operation, ("xconv", *ALGORITHMS)) for operation in cases.CONV),
    ]
    asked = []

    def launch(names):
        watch = lambda request, given: request == "time" and asked.append((given["operation"], given["contender"]))  # noqa: E731
        launched.append(InProcess(names, watch))
        return launched[-1]

    gpu.measure(settings, found.update, launch)
    assert found["failures"] == found["refused"] == found["not_reached"] == []
    assert sorted(child.names for child in launched) == [("torch",), ("xconv", *ALGORITHMS)]
    results = {(r["operation"], r["contender"]): r for r in found["results"]}
    assert len(results) == len(found["results"])
    able = ("xconv-winograd", "xconv-gemm", "xconv-fft")
    assert set(results) == {
        *((operation, name) for operation in operations for name in ("xconv", "torch")),
        *((operation, name) for operation in cases.CONV for name in able),
    }
    turns = [name for operation, name in asked[-3 * 5 :] if operation == "weight_grad"]
    one_round = ["xconv", *able]
    assert turns == [*one_round, *one_round[::-1], *one_round]
    assert all("beside" in r for key, r in results.items() if key[1] in able)
    best = min((results["forward", name] for name in able), key=lambda r: r["median"])
    text = gpu_report.table(found)
    chosen = results["forward", "xconv"]["algorithm"]
    ratio = gpu_report.number(best["beside"] / best["median"])
    row = next(line for line in text.splitlines() if line.startswith(f"| plain | forward | {chosen} |"))
    assert row.split(" | ")[3] == best["contender"].removeprefix("xconv-")
    assert row.split(" | ")[5] == ratio
    assert f"| plain | forward | xconv ({chosen}) |" in text
    assert "| plain | forward | xconv-fft |" in text
    assert "cudnn" not in text.replace(found["command"], "")  # what cannot serve has no row and no column


def test_our_own_choice_does_not_run_again_where_no_algorithm_can_serve(gpu_cases):
    asked = []

    def launch(names):
        return InProcess(names, lambda request, given: request == "time" and asked.append(given["operation"]))

    found = {}
    gpu.measure(replace(SOME, peers=("xconv-depthwise", "xconv-cudnn")), found.update, launch)
    assert len(asked) == 3 * len(SOME.jobs)
    assert len(found["results"]) == len(SOME.jobs)
    assert found["failures"] == []


def test_what_is_refused_at_work_is_listed_and_no_failure(gpu_cases):
    def launch(names):
        child = InProcess(names)
        if "xconv-gemm" in names:
            child.worker.devices["xconv-gemm"].compiled = refuse
        return child

    def refuse(function, operands):
        raise devices.RefusalError("cuDNN says no")

    found = {}
    gpu.measure(replace(SOME, peers=("xconv-gemm", "xconv-fft")), found.update, launch)
    assert found["failures"] == []
    assert {r["contender"] for r in found["results"]} == {"xconv", "xconv-fft"}
    line = "xconv-gemm, cuDNN says no: float32, plain (forward, input gradient, weight gradient)"
    assert f"Refused:\n\n- {line}\n" in gpu_report.table(found)


def spoiling(contender, operation, launched):
    """Launch children whose process is spoiled by an operation of a contender."""

    def launch(names):
        spoiled, fails = [], fails_at(contender, operation, "time")

        def failing(request, given):
            if fails(request, given):
                spoiled.append(True)
            return bool(spoiled)

        launched.append(InProcess(names, failing))
        return launched[-1]

    return launch


def test_a_process_that_a_fault_has_spoiled_is_replaced(gpu_cases):
    launched, found = [], {}
    settings = replace(SETTINGS, precisions=("ieee",), peers=("xconv", "xconv-fft", "xconv-gemm"))
    gpu.measure(settings, found.update, spoiling("xconv-fft", "input_grad", launched))
    assert len(launched) == 3
    assert all(child.closed for child in launched)
    assert [(failure["case"], failure["request"]) for failure in found["failures"]] == [
        ("plain", "time"),
        ("strided", "time"),
    ]
    ran = {(r["case"], r["operation"], r["contender"]) for r in found["results"]}
    for case in gpu_cases:  # the others go on with the same job, in the new process
        assert (case, "input_grad", "xconv-gemm") in ran
        assert (case, "input_grad", "xconv-fft") not in ran
        assert (case, "weight_grad", "xconv-fft") in ran
    rounds = {
        r["contender"]: r["calls"] for r in found["results"] if (r["case"], r["operation"]) == ("plain", "input_grad")
    }
    assert rounds["xconv-gemm"] >= 3 * 4


def test_a_contender_that_spoils_its_process_again_is_left_alone(gpu_cases):
    launched, found = [], {}
    settings = replace(SETTINGS, peers=("xconv", "xconv-fft"))
    gpu.measure(settings, found.update, spoiling("xconv-fft", "forward", launched))
    assert len(found["failures"]) == gpu.FAULTS  # of four jobs
    assert len(launched) == 1 + gpu.FAULTS


def test_a_process_that_cannot_be_replaced_is_done_without(gpu_cases):
    launched, found = [], {}
    launch = spoiling("torch", "col2im", launched)

    def once(names):
        if any(child.names == tuple(names) for child in launched):
            raise ChildError("torch: its process ended with status 1")
        return launch(names)

    gpu.measure(replace(SOME, peers=("xconv", "torch")), found.update, once)
    assert found["left_out"] == ["torch is left out: torch: its process ended with status 1"]
    assert {r["operation"] for r in found["results"] if r["contender"] == "torch"} == {"im2col"}
    assert {r["operation"] for r in found["results"] if r["contender"] == "xconv"} == {*cases.UNFOLD, *cases.CONV}


def test_a_peer_that_cannot_start_is_left_out(gpu_cases):
    def launch(names):
        if "torch" in names:
            raise ChildError("torch: its process ended with status -6")
        return InProcess(names)

    found = {}
    gpu.measure(replace(SOME, peers=("torch",)), found.update, launch)
    assert found["left_out"] == ["torch is left out: torch: its process ended with status -6"]
    assert {r["contender"] for r in found["results"]} == {"xconv"}


def test_a_peak_is_the_best_of_any_library(gpu_cases):
    suite = gpu.Suite(replace(SETTINGS, peers=(*SETTINGS.peers, "xconv-gemm")), InProcess)
    suite.start()
    assert list(suite.children) == ["cupy", "torch", "jax"]
    for rate, child in zip((3.0, 5.0, None), suite.children.values(), strict=True):
        child.worker.requests["rate"] = lambda kind, rate=rate: None if kind == "float16" else rate
    suite.peaks()
    assert suite.found["peaks"] == {"copy": 5.0, "ieee": 5.0, "float16": None}


def test_a_peak_that_cannot_be_measured_is_named(gpu_cases):
    def launch(names):
        return InProcess(names, lambda request, given: request == "rate" and given["kind"] == "ieee")

    found = {}
    gpu.measure(replace(SOME, peers=()), found.update, launch)
    assert found["peaks"]["copy"] > 0
    assert found["peaks"]["ieee"] is None
    assert "- FAILED: xconv, rate failed: outside of jobs, rate ieee\n" in gpu_report.table(found)


def test_a_child_that_does_not_answer_in_time_is_ended():
    child = Child("xconv", "worker", "xconv", "1", threads=1, limit=0.2)
    child.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ChildError, match="ended with status -9"):
        child.ask("start")
    child.close()


def test_no_job_begins_after_the_time_is_over(gpu_cases):
    found = {}
    gpu.measure(replace(SETTINGS, minutes=0, peers=("xconv", "xconv-gemm")), found.update, InProcess)
    assert found["results"] == []
    assert len(found["not_reached"]) == len(SETTINGS.jobs) + 2 * 2 * len(cases.CONV)
    text = gpu_report.table(found)
    every = "im2col, col2im, forward, input gradient, weight gradient"
    assert (
        f"Not reached in time:\n\n- xconv: float32, plain ({every}), strided ({every}); float16, plain ({every})"
        in text
    )
    assert "\n- xconv, xconv-gemm: float32, plain (forward, input gradient, weight gradient), strided" in text


def test_no_contender_gets_ready_and_no_round_begins_after_the_time_is_over(gpu_cases):
    suite = gpu.Suite(replace(SOME, peers=("xconv", "xconv-gemm", "xconv-fft")), InProcess)
    suite.start()
    step = suite.settings.steps[-1]
    requests, answers = [], suite.children["cupy"].worker.requests

    def watched(name):
        def ask(**given):
            requests.append((name, given["contender"]))
            if requests[-1] == ("prepare", "xconv-gemm"):
                suite.end = 0
            return real(**given)

        real, answers[name] = answers[name], ask

    watched("prepare")
    watched("time")
    suite.run(step)
    ready = ["xconv", "xconv-gemm"]
    assert requests == [(request, name) for request in ("prepare", "time") for name in ready]
    assert [missed["contenders"] for missed in suite.found["not_reached"]] == [["xconv-fft"]]
    assert [r["contender"] for r in suite.found["results"]] == ["xconv-gemm"]


def test_a_run_without_a_device_ends_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(gpu.measure, "__defaults__", (lambda names: InProcess(names, missing=("xconv",)),))
    monkeypatch.setattr(sys, "argv", ["bench", "--gpu"])
    assert command_line.main() == 2
    assert capsys.readouterr().err.endswith("The benchmark on a GPU cannot run here: there is no xconv.\n")


def test_shares_of_the_peaks(gpu_cases):
    case = gpu_cases["plain"]
    result = {"case": "plain", "operation": "forward", "precision": "float16", "median": 0.5}
    found = {"peaks": {"copy": 4 * case.elements("forward") * 2, "float16": None}}
    assert gpu_report.shares(found, result) == (4 * case.elements("forward"), 0.5, 2 * case.flops("forward"), None)


def test_means_leave_the_small_case_out():
    def result(case, contender, median):
        return {"precision": "ieee", "case": case, "operation": "forward", "contender": contender, "median": median}

    ours = [result("a", "xconv", 1), result("b", "xconv", 8), result("tiny", "xconv", 100), result("c", "xconv", 1)]
    others = [result(case, "torch", 2) for case in ("a", "b", "tiny")]
    forced = [result(case, name, s) | {"beside": 3} for case in "ab" for name, s in (("xconv-x", 2), ("xconv-y", 1))]
    found = {"contenders": dict.fromkeys(("torch", "xconv-x", "xconv-y", "xconv", "idle"))}
    found["results"] = [*ours, *others, *forced, result("c", "xconv-x", 1) | {"beside": None}]
    found = {title: gpu_report.means(found, ratio) for title, ratio in gpu_report.ratios_of(found).items()}
    assert found == {
        "xconv ÷ torch": {("ieee", "forward"): (pytest.approx(2**0.5), 2)},
        "xconv ÷ its best": {("ieee", "forward"): (pytest.approx(3), 2)},
        "its best ÷ torch": {("ieee", "forward"): (pytest.approx(0.5), 2)},
    }


@pytest.fixture
def gpu_run():
    """Two cases, in one of which there is a choice."""

    def result(case, contender, median, **more):
        names = {"precision": "ieee", "case": case, "operation": "forward", "contender": contender}
        return names | {"median": median, "algorithm": "gemm"} | more

    return {
        "cases": {"a": "first", "b": "second", "untouched": "third"},
        "machine": {"device": "NVIDIA False-1"},
        "contenders": dict.fromkeys(("xconv", "xconv-gemm", "xconv-fft", "xconv-mec", "torch")),
        "results": [
            *(result("a", name, seconds) for name, seconds in (("xconv", 3), ("torch", 2))),
            *(result("a", name, seconds, beside=3) for name, seconds in (("xconv-gemm", 3), ("xconv-fft", 1))),
            result("b", "xconv", 5),
            result("b", "xconv-gemm", 4, beside=6),
        ],
    }


def drawn(monkeypatch, plot, found, path):
    """What is drawn in the panels of a plot: by label, the ratios of its rows."""
    pytest.importorskip("matplotlib")
    panels = []

    def panel(axes, of, series):
        panels.append({one.label: [one.ratio(results) for results in of] for one in series})
        return real(axes, of, series)

    real = gpu_plots._panel
    monkeypatch.setattr(gpu_plots, "_panel", panel)
    plot(found, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    return panels


def test_the_plot_of_our_times_over_those_of_peers(monkeypatch, gpu_run, tmp_path):
    panels = drawn(monkeypatch, gpu_plots.plot, gpu_run, tmp_path / "gpu.png")
    assert panels == [{"÷ torch": [1.5, None], "÷ its best algorithm": [3, 1.5]}]


def test_the_plot_of_every_algorithm(monkeypatch, gpu_run, tmp_path):
    panels = drawn(monkeypatch, gpu_plots.plot_algorithms, gpu_run, tmp_path / "gpu.png")
    assert panels == [{"gemm": [1.5, None], "fft": [0.5, None], "chosen by itself": [1.5, None]}]


def test_the_plot_of_every_algorithm_without_another_library(monkeypatch, gpu_run, tmp_path):
    gpu_run["results"] = [r for r in gpu_run["results"] if r["contender"] != "torch"]
    panels = drawn(monkeypatch, gpu_plots.plot_algorithms, gpu_run, tmp_path / "gpu.png")
    assert panels == [{"gemm": [1, 4 / 6], "fft": [1 / 3, None], "chosen by itself": [1, 1]}]


def test_nothing_is_drawn_where_nothing_is_compared(gpu_run, tmp_path):
    gpu_run["results"] = [r for r in gpu_run["results"] if r["contender"] == "xconv"]
    for plot in (gpu_plots.plot, gpu_plots.plot_algorithms):
        plot(gpu_run, tmp_path / "gpu.png")
    assert not list(tmp_path.iterdir())


def test_a_run_on_a_gpu_leaves_tables_and_plots(gpu_cases, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(gpu.measure, "__defaults__", (InProcess,))
    monkeypatch.setattr(command_line, "GPU_CASES", gpu_cases)
    arguments = ["--cases", "plain", "--precisions", "ieee", "--peers", "xconv*", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", "--gpu", *arguments, "--output", str(tmp_path)])
    assert command_line.main() == 0
    names = {"gpu-nvidia-false-1.json", "gpu-nvidia-false-1.md", "gpu-nvidia-false-1.png"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"gpu-nvidia-false-1-algorithms.png"}


def test_names_and_patterns_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--dry-run", "--cases", "side*,tiny,side64"])
    assert command_line.main() == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["side64", "side128", "side256", "side512", "side1024", "tiny"]
    monkeypatch.setattr(sys, "argv", ["bench", "--gpu", "--dry-run", "--cases", "tiny", "--precisions", "ieee"])
    assert command_line.main() == 0
    printed = capsys.readouterr().out
    assert "5 jobs for xconv, torch, jax, 5 rounds" in printed
    assert f"3 jobs for xconv, {', '.join(ALGORITHMS)}, 5 rounds" in printed
    monkeypatch.setattr(sys, "argv", ["bench", "--cases", "nothing"])
    with pytest.raises(SystemExit):
        command_line.main()
    assert "nothing: not among tiny" in capsys.readouterr().err


def test_jax_is_asked_for_the_precision():
    pytest.importorskip("jax")
    kind = contenders.CONTENDERS["jax"](1)
    case, operands = SMALL["plain"], problem.make(SMALL["plain"]).operands.values()
    for precision, asked in (("ieee", "HIGHEST"), ("tf32", "DEFAULT"), ("float16", "DEFAULT")):
        text = kind.functions(case, precision)["forward"].lower(*operands).as_text()
        assert f"precision {asked}" in text


def test_a_run_on_the_cpu():
    chosen = tuple(cases.CASES[name] for name in ("tiny", "side64"))
    settings = measure.Settings(chosen, ("xconv", "xconv-8MiB"), threads=1, rounds=2, seconds=1e-3, program="python")
    found = measure.measure(settings)
    assert found["failures"] == []
    ran = {(r["case"], r["contender"]): r for r in found["results"]}
    assert set(ran) == {("tiny", "xconv"), ("side64", "xconv"), ("side64", "xconv-8MiB")}
    assert all(0 < r["error"] < 1e-5 and 0 < r["temporary_bytes"] < 2**23 for r in found["results"])
    assert f"xconv-{found['remarks']['xconv']['tiny']}" in contenders.CONTENDERS
    assert "| side 64 | " in report.table(found)


def test_a_slow_call_is_timed_by_its_check_alone():
    suite = measure.Suite(measure.Settings((cases.CASES["tiny"],), (), 1, 2, 0.1, "python"))
    check = {"sample": 3 * 10**9, "estimate": 3.0, "error": 0}
    assert [suite._time("torch", cases.CASES["tiny"], "forward", turn, check) for turn in range(2)] == [[3 * 10**9], []]


def test_the_child_of_a_gpu_says_what_is_missing_or_describes_it():
    child = gpu.launch(["xconv", "xconv-gemm"])
    child.close()
    assert child.limit == gpu.LIMIT
    there, missing = set(child.facts["versions"]), set(child.facts["missing"])
    assert {frozenset(there), frozenset(missing)} == {frozenset(), frozenset({"xconv", "xconv-gemm"})}
    assert ("machine" in child.facts) == bool(there)


def test_drawn_geometries_are_the_same_and_within_bounds():
    drawn = geometries.draw(300, 5)
    assert drawn == geometries.draw(300, 5)
    assert drawn[:9] != geometries.draw(9, 6)
    for g in drawn:
        assert g.bytes <= geometries.MOST_BYTES
        assert geometries.LEAST_SECONDS <= g.seconds <= geometries.MOST_SECONDS
        assert min(g.y_shape) >= 1
        assert g.x_shape[1] == g.groups * g.w_shape[1]
        assert g.w_shape[0] % g.groups == 0
        assert Geometry.of(json.loads(json.dumps(g._asdict()))) == g
    assert {len(g.stride) for g in drawn} == {1, 2, 3}
    assert {g.stride[0] for g in drawn} == {1, 2, 3}
    assert {g.dtype for g in drawn} == set(geometries.DTYPES)
    assert any(g.groups == g.x_shape[1] > 1 for g in drawn)
    assert any(1 < g.groups < g.x_shape[1] for g in drawn)
    assert any(g.dilation[0] > 1 and g.span[0] > 0.8 * g.x_shape[2] for g in drawn)
    assert any(g.w_shape[2:] == g.x_shape[2:] for g in drawn)
    assert any(g.padding == tuple(span - 1 for span in g.span) != (0,) * len(g.span) for g in drawn)


def test_a_geometry_counts_its_work():
    g = Geometry((2, 4, 9, 8), (6, 2, 3, 2), (2, 2), (1, 1), (2, 1), 2, "complex64")
    y = xconv.conv(np.zeros(g.x_shape), np.zeros(g.w_shape), **g.options)
    assert g.y_shape == y.shape
    assert g.multiply_adds == y.size * 2 * 3 * 2
    assert g.bytes == 8 * (2 * 4 * 9 * 8 + 6 * 2 * 3 * 2 + y.size)
    assert g.label == "2x4x9x8, 6 of 3x2, stride 2, padding 1, dilation 2x1, 2 groups, complex64"


PLAIN = Geometry((1, 2, 8, 7), (3, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1, "float32")


@pytest.mark.parametrize("function", cases.CONV)
def test_a_planner_worker_takes_every_algorithm(function):
    worker = PlannerWorker("numpy", 1)
    assert set(worker.start()["versions"]) == {"xconv", "numpy"}
    plan = worker.take_up(PLAIN._asdict(), function)
    assert plan["seconds"] > 0
    forced = planner.algorithms(plan["costs"])
    assert plan["chosen"] == forced[0]
    assert "pointwise" not in forced
    for name in forced:
        assert worker.make(name) == {}
        assert worker.first(name)["seconds"] > 0
    worker.make("pointwise")
    assert "pointwise" in worker.first("pointwise")["refused"]
    worker.calls["huge"] = lambda: np.empty(2**60, np.uint8)
    assert "allocate" in worker.first("huge")["refused"]
    del worker.calls["fft"]
    laps = worker.laps({"auto": 3, "fft": 2}, 4)
    assert {name: len(found) for name, found in laps.items()} == {"auto": 4, "fft": 4}


def test_two_ways_to_run_an_algorithm_are_forced_as_one():
    assert planner.algorithms({"gemm, reflected": 1, "mec": 2, "gemm": 3, "mec, reflected": 4}) == ["gemm", "mec"]


def test_a_choice_that_cannot_run_is_an_error(monkeypatch):
    worker = PlannerWorker("numpy", 1)
    worker.start()
    monkeypatch.setattr(worker, "first", lambda name: {"refused": "no memory"})
    with pytest.raises(RuntimeError, match="no memory"):
        worker.take_up(PLAIN._asdict(), "forward")


def test_a_wrong_algorithm_is_not_timed():
    worker = PlannerWorker("numpy", 1)
    worker.start()
    worker.take_up(PLAIN._asdict(), "forward")
    worker.make("gemm")
    call = worker.calls["gemm"]
    worker.calls["gemm"] = lambda: 1.01 * call()
    with pytest.raises(ArithmeticError, match="gemm is wrong by"):
        worker.first("gemm")


@pytest.mark.parametrize("function", cases.CONV)
def test_loops_of_scipy_are_the_convolution(function):
    worker = PlannerWorker("numpy", 1)
    worker.start()
    small = Geometry((2, 3, 7, 6), (4, 3, 3, 2), (1, 1), (2, 1), (1, 1), 1, "complex64")
    assert set(worker.beside_scipy(small._asdict(), function)["seconds"]) == {"auto", "scipy"}  # compared there


def test_convolutions_beside_scipy_are_full():
    assert [(g.x_shape, g.w_shape, g.y_shape) for g in beside_scipy.GEOMETRIES[:2]] == [
        ((1, 1, 192, 192), (8, 1, 24, 24), (1, 8, 215, 215)),
        ((1, 1, 64, 64, 64), (1, 1, 5, 5, 5), (1, 1, 68, 68, 68)),
    ]


class Slow:
    """A process in which one algorithm takes too long, and others as long as they are told to."""

    def __init__(self, seconds, slow=()):
        self.seconds, self.slow, self.ended, self.limit, self.begun = seconds, slow, False, None, 0

    def ask(self, request, **given):
        if given.get("algorithm") in self.slow and request == "first":
            self.ended, self.limit_then = True, self.limit
            raise ChildError("its process ended with status -9")
        if request == "laps":
            return {name: [self.seconds[name]] * given["laps"] for name in given["calls"]}
        if request == "take_up":
            self.begun += 1
            return {"chosen": "gemm", "costs": dict.fromkeys(("gemm", *self.slow, "fft"), 1), "seconds": 0.1}
        return {"seconds": self.seconds[given["algorithm"]]} if request == "first" else {}

    def close(self):
        self.ended = False


@pytest.fixture
def suite_of(monkeypatch):
    def suite(child):
        monkeypatch.setattr(planner.Suite, "_child", lambda suite: child)
        return planner.Suite("numpy", 1)

    return suite


def test_an_algorithm_that_takes_too_long_is_given_up(suite_of):
    child = Slow({"auto": 0.1, "gemm": 0.1, "fft": 0.9}, slow=("depthwise",))
    found = suite_of(child).run(PLAIN, "forward")
    assert found["given_up"] == {"depthwise": planner.HOPELESS * 0.1} == {"depthwise": child.limit_then}
    assert found["seconds"] == {"auto": 0.1, "gemm": 0.1, "fft": 0.9}
    assert child.begun == 2
    assert set(found["laps"]) == {"auto", "gemm"}
    assert len(found["laps"]["auto"]) == planner.FEW_LAPS + planner.LAPS


def test_where_nothing_is_timed_beside_the_choice_that_is_said(suite_of):
    suite = suite_of(Slow({"auto": 0.1}, slow=("gemm", "fft")))
    assert "failed" in suite.run(PLAIN, "forward")
    assert suite.failures == [f"{PLAIN.label}, forward: no algorithm was timed beside the choice"]


def test_a_failure_of_one_algorithm_leaves_the_others(suite_of):
    class Wrong(Slow):
        def ask(self, request, **given):
            if request == "first" and given["algorithm"] == "gemm":
                raise ChildError("wrong")
            return super().ask(request, **given)

    suite = suite_of(Wrong({"auto": 0.1, "fft": 0.1}))
    assert set(suite.run(PLAIN, "forward")["seconds"]) == {"auto", "fft"}
    assert suite.failures == [f"{PLAIN.label}, forward, gemm: wrong"]


def test_a_doubtful_ratio_is_measured_again(suite_of):
    found = suite_of(Slow({"auto": 0.105, "gemm": 0.15, "fft": 0.1})).run(PLAIN, "forward")
    assert {name: len(laps) for name, laps in found["laps"].items()} == dict.fromkeys(("auto", "gemm", "fft"), 10)
    found = suite_of(Slow({"auto": 0.4, "gemm": 0.15, "fft": 0.1})).run(PLAIN, "forward")
    assert {name: len(laps) for name, laps in found["laps"].items()} == {"auto": 24, "gemm": 10, "fft": 24}


def test_a_lap_that_is_disturbed_or_lucky_does_not_count():
    assert planner.lower_quartile([1, 2, 2, 2, 3, 9, 9, 9, 9]) == 2


@pytest.fixture
def planner_run():
    def result(function, chosen, auto, **seconds):
        times = {"chosen": chosen, "costs": {}, "seconds": {"auto": auto} | seconds, "refused": {}, "given_up": {}}
        return PLAIN._asdict() | {"function": function} | times

    bad = result("forward", "gemm", 3, gemm=3, fft=1) | {"given_up": {"depthwise": 12}}
    return {
        "date": "today",
        "command": "python -m bench.planner",
        "machine": {"cpu": "a", "cores": 2, "caches": {}, "os": "b", "python": "3", "load": 0.1},
        "backend": "numpy",
        "threads": 2,
        "versions": {"numpy": "2"},
        "failures": ["a sentence"],
        "results": [
            *(result("forward", "gemm", ratio, gemm=1.0, fft=2.0) for ratio in (1.02, 1.25)),
            bad,
            result("input_grad", "fft", 1.5, gemm=1.0, fft=1.4),
            PLAIN._asdict() | {"function": "weight_grad", "failed": "a sentence"},
        ],
        "scipy": [result("forward", "fft", 1e-3, scipy=2e-3), result("weight_grad", "fft", 3e-3, scipy=2e-3)],
    }


def test_shares_of_the_choices(planner_run):
    text = planner_report.table(planner_run)
    assert "| forward | 3 | 66.7 % | 66.7 % | 3.00 |" in text
    assert "| input gradient | 1 | 0.0 % | 100.0 % | 1.50 |" in text
    assert "| weight gradient |" not in text.split("The 4 worst")[0]
    assert "| all | 4 | 50.0 % | 75.0 % | 3.00 |" in text
    assert planner_report.summary(planner_run).splitlines() == [
        "4 choices on numpy: 50 % within 1.25 times the best, 75 % within 2; the worst takes 3.00 times as long.",
        "FAILED: a sentence",
    ]


def test_what_was_given_up_is_named(planner_run):
    text = planner_report.table(planner_run)
    assert "| gemm | 4 | 3 | 3 | 0 |" in text
    assert "| fft | 4 | 1 | 1 | 0 |" in text
    assert "| depthwise | 1 | 0 | 0 | 1 |" in text
    assert "- FAILED: a sentence" in text
    first = next(line for line in text.splitlines() if line.startswith(f"| {PLAIN.label}"))
    assert first == f"| {PLAIN.label} | forward | gemm | fft | 3000 | 1000 | 3.00 |"


def test_who_is_behind_scipy(planner_run):
    text = planner_report.table(planner_run)
    assert "In 1 of 2, xconv takes longer." in text
    assert f"| {PLAIN.label} | weight gradient | fft | 3.00 | 2.00 | 1.50 |" in text
    assert "scipy" not in planner_report.table(planner_run | {"scipy": []})


#: Multiply-adds of one input, and how many of them are not in convolutions. Those of networks that classify are known
#: figures; the others are of the sizes here.
MULTIPLY_ADDS = {
    "resnet50": (4_089_184_256, 2048 * 1000),
    "mobilenetv2": (300_774_272, 1280 * 1000),
    "efficientnet-b0": (385_814_752, 1280 * 1000 + 627_200),  # squeeze and excitation
    "convnext-t": (4_455_531_264, 768 * 1000),
    "vgg16": (15_470_264_320, (25088 + 4096) * 4096 + 4096 * 1000),
    "unet": (48_096_083_968, 0),
    "unet3d": (103_234_535_424, 0),
    "wavenet": (26_214_400_000, 0),
}
#: Parameters as published; how many a filter has beside its weights, by bias and norm; and those that are elsewhere.
#: The paper on WaveNet tells none: these are the weights here.
PARAMETERS = {
    "resnet50": (25_557_032, 2, 2049 * 1000),
    "mobilenetv2": (3_504_872, 2, 1281 * 1000),
    "efficientnet-b0": (5_288_548, 2, 1281 * 1000 + 636_540),
    "convnext-t": (28_589_128, 1, 769 * 1000 + 3 * 6624 + 2 * (96 + 96 + 192 + 384 + 768)),  # scales and norms
    "vgg16": (138_357_544, 1, 25089 * 4096 + 4097 * 4096 + 4097 * 1000),
    "unet": (31_030_658, 1, (64 + 128 + 256 + 512) - (128 + 256 + 512 + 1024)),  # transposed: a bias for each channel
    "unet3d": (19_069_955, 1, -(128 + 256 + 512)),  # transposed ones without bias
    "wavenet": (1_638_400, 0, 0),
}


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_networks_have_the_published_work_and_parameters(network):
    layers = networks.NETWORKS[network]
    each = [(layer.times, layer.case(network)) for layer in layers]
    assert len({layer[1:] for layer in layers}) == len(layers)
    multiply_adds, elsewhere = MULTIPLY_ADDS[network]
    assert sum(n * case.flops("forward") // 2 for n, case in each) + elsewhere == multiply_adds
    parameters, per_filter, rest = PARAMETERS[network]
    weights = sum(n * (np.prod(case.w_shape) + per_filter * case.w_shape[0]) for n, case in each)
    assert weights + rest == parameters
    assert all(layer.groups in {1, layer.channels} for layer in layers)
    assert network == "wavenet" or all(layers[0].size % layer.size == 0 and layer.dilation == 1 for layer in layers)


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_every_layer_of_a_network_sees_what_another_one_makes(network):
    """Or its halves, by pooling; and in a U-Net's decoder two together, of which one is from a transposed layer."""
    layers = [(layer, layer.case(network).out[0]) for layer in networks.NETWORKS[network]]
    forward = [(layer, out) for layer, out in layers if not ("unet" in network and layer.stride == 2)]
    transposed = [pair for pair in layers if pair not in forward]
    made = {(layer.filters, out) for layer, out in forward}
    made |= {(channels, size // 2) for channels, size in made if network in {"resnet50", "vgg16", "unet", "unet3d"}}
    raised = {(layer.channels, layer.size) for layer, _ in transposed}
    made |= {(one + other, size) for one, size in raised for other, same in made if same == size}
    made |= {(64, 16000 + 2**i) for i in range(10) if network == "wavenet"}
    seen = {(layer.channels, layer.size) for layer, _ in forward} | {(layer.filters, out) for layer, out in transposed}
    assert seen - made <= {(layers[0][0].channels, layers[0][0].size)}


def test_a_stack_of_wavenet_sees_1024_samples_and_makes_a_second():
    drawn = [layer.case("wavenet") for layer in networks.NETWORKS["wavenet"]]
    assert {case.out for case in drawn} == {(16000,)}
    assert all(case.kernel == (2,) or case.dilation == 1 for case in drawn)
    assert 1 + sum(case.dilation for case in drawn if case.w_shape == (128, 64, 2)) == 1024


def test_layers_are_drawn_the_same_by_a_seed_and_within_bounds():
    drawn = [networks.draw(40, seed, networks.NETWORKS) for seed in range(30)]
    assert drawn[7] == networks.draw(40, 7, networks.NETWORKS)
    assert drawn[7] != drawn[8]
    for some in drawn:
        assert len({case.name for case in some}) == 40
        assert len({case.name.split()[0] for case in some}) > 4
    every = [case for some in drawn for case in some]
    assert {case.rank for case in every} == {1, 2, 3}
    assert {case.x_shape[0] for case in every} == {1, 8}
    assert 0.2 < sum(case.channels_last for case in every) / len(every) < 0.3
    for case in every:
        assert case.x_shape[0] == 1 or case.flops("forward") <= 24e9
        assert case.elements("forward") <= 2**25
    assert {case.name.split()[0] for case in networks.draw(999, 0, ["vgg16", "unet"])} == {"vgg16", "unet"}


def test_a_run_of_networks_leaves_its_files(monkeypatch, tmp_path, capsys):
    tiny = {"resnet50": (networks.Layer(1, 6, 2, 3, 3),), "convnext-t": (networks.Layer(1, 6, 2, 2, 3, groups=2),)}
    monkeypatch.setattr(networks, "NETWORKS", tiny)
    monkeypatch.setattr(networks, "PEER", "by-hand")
    arguments = ["--seed", "5", "--threads", "1", "--rounds", "1", "--seconds", "0.001", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench.networks", *arguments])
    assert networks.main() == 0
    found = json.loads((tmp_path / "networks.json").read_text())
    assert list(found["cases"]) == [case.name for case in networks.draw(2, 5, tiny)]
    assert found["depthwise"] == [case.name for case in networks.draw(2, 5, tiny) if case.groups == 2]
    assert {(r["case"], r["operation"]) for r in found["results"]} == set(itertools.product(found["cases"], cases.CONV))
    text, out = (tmp_path / "networks.md").read_text(), capsys.readouterr().out
    command = "python -m bench.networks --seed 5 --count 2 --threads 1 --rounds 1 --seconds 0.001"
    assert out == f"{command}\n{networks.summary(found)}\n"
    assert command in text
    assert all(f"\n| {name} | " in text for name in (*found["cases"], "without depthwise", "resnet50", "convnext-t"))
    monkeypatch.setattr(sys, "argv", ["bench.networks", "--networks", "vgg16,unet"])
    with pytest.raises(SystemExit):
        networks.main()
    assert "vgg16, unet: not among resnet50, convnext-t" in capsys.readouterr().err


def test_what_is_slower_than_by_hand_is_named(monkeypatch, tmp_path, capsys):
    small = cases.Case("small", (1, 2, 6, 6), (3, 2, 1, 1), stride=2, operations=cases.CONV)
    monkeypatch.setattr(byhand, "CASES", {"small": small})
    monkeypatch.setattr(byhand, "GOAL", 0)  # which nobody reaches
    monkeypatch.setattr("sys.argv", ["byhand", "--rounds", "1", "--seconds", "1e-4", "--output", str(tmp_path)])
    assert byhand.main() == 0
    said, text = capsys.readouterr().out, (tmp_path / "byhand.md").read_text()
    assert said.startswith("threads: 1\n- geometric mean of 3 ratios to by-hand: ")
    assert said.count("- above 0: 3\n") == 2
    assert text.count(": small, weight gradient\n") == 2
    assert "- small: 1x2x6x6, 3 of 1x1, stride 2\n" in text
    assert [run["threads"] for run in json.loads((tmp_path / "byhand.json").read_text())["runs"]] == [1, 2]


def test_layers_that_take_too_long_are_named(cpu_run):
    found = cpu_run | {"cases": {"vgg16 a": "", "unet b": "", "wavenet c": ""}, "depthwise": ["unet b"], "growth": {}}
    seconds = {"vgg16 a": (1, 2, 1), "unet b": (8, 8, 1), "wavenet c": (0.5, 1.6, None)}
    found["results"] = [
        timed(case, operation, contender, s)
        for case, times in seconds.items()
        for operation, ours in zip(cases.CONV, times, strict=True)
        for contender, s in (("xconv", ours), ("torch", 1))
        if s
    ]
    assert networks.summary(found).splitlines() == [
        f"- geometric mean of 8 ratios to torch: {(2 * 64 * 0.8) ** (1 / 8):.2f}; the goal is 0.8",
        "- the largest is 8.00: unet b, input gradient",
        "- above 1.5 and not depthwise: 2",
        "  - 2.00: vgg16 a, input gradient",
        "  - 1.60: wavenet c, input gradient",
    ]
    text = networks.table(found)
    assert f"\n| without depthwise | 2 | {1.6 ** (1 / 5):.2f} | {0.5**0.5:.3f} | {3.2**0.5:.2f} | 1.00 |\n" in text
    assert "| wavenet c | - | 500 ± - | 0.500 | 1600 ± - | 1.60 | - | - |" in text
    assert "\n| resnet50 | " not in text
    assert networks.summary(found | {"results": []}) == "Nothing was timed beside torch."


def test_a_run_of_the_planner_leaves_its_files(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    tiny = [PLAIN, PLAIN._replace(x_shape=(2, 2, 5, 6), dtype="complex64")]
    monkeypatch.setattr(planner, "draw", lambda count, seed: tiny[:count])
    monkeypatch.setattr(planner, "GEOMETRIES", (PLAIN._replace(padding=(2, 2)),))
    arguments = ["--geometries", "2", "--threads", "1", "--scipy", "--raw", str(tmp_path / "raw.json")]
    monkeypatch.setattr(sys, "argv", ["bench.planner", *arguments, "--output", str(tmp_path / "new")])
    assert planner.main() == 0
    assert capsys.readouterr().out.startswith("6 choices on numpy: ")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"planner.json", "planner.md", "planner.png"}
    raw, kept = (json.loads(path.read_text()) for path in (tmp_path / "raw.json", tmp_path / "new" / "planner.json"))
    assert [(Geometry.of(r), r["function"]) for r in raw["results"]] == [(g, f) for g in tiny for f in cases.CONV]
    assert all(set(r["laps"]) <= set(r["seconds"]) == {"auto", *planner.algorithms(r["costs"])} for r in raw["results"])
    assert "laps" not in kept["results"][0]
    assert kept["results"][0] | {"laps": raw["results"][0]["laps"]} == raw["results"][0]
    assert len(kept["scipy"]) == 3
    text = (tmp_path / "new" / "planner.md").read_text()
    monkeypatch.setattr(
        sys, "argv", ["bench.planner", "--report", str(tmp_path / "raw.json"), "--output", str(tmp_path)]
    )
    assert planner.main() == 0
    assert (tmp_path / "planner.md").read_text() == text
