"""The run on a device: every check of it on the host, and the plumbing of its stages with commands that pretend."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))

import xconv
from bench import cases, devices
from bench.contenders import MissingError, Xconv
from ci import checks, clock, environment, gpu, pooling, results, smoke, timings
from ci.clock import Times
from xconv.backends.numpy import NumpyBackend

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ci/gpu.sh"
STAGES = [
    *(
        "environment",
        "smoke",
        "gpu",
        "large",
        "timings",
        "pooling",
        "bench",
        "profile",
        "cudnn",
        "suite",
        "memcheck",
        "racecheck",
    )
]


class Host:
    """The host in the place of a device."""

    kind = np.ndarray
    put = get = block = staticmethod(np.array)
    zeros = staticmethod(np.zeros)

    def stream(self):
        return nullcontext()


def rows(group, calls=1):
    return list(checks.Checks(Host(), calls).rows(group))


# The checks


@pytest.mark.parametrize("group", [group for group in checks.GROUPS if group != "bfloat16"])
def test_every_check_computes(group):
    found = rows(group)
    states = {row["state"] for row in found}
    assert "ok" in states
    assert states <= {"ok", "refused"}, [row for row in found if row["state"] not in {"ok", "refused"}]
    assert len({row["check"] for row in found}) == len(found)


def test_every_algorithm_is_checked():
    computed = {row["check"].partition(",")[0] for row in rows("algorithms") if row["state"] == "ok"}
    assert computed == set(NumpyBackend.algorithms)


FUNCTIONS = {
    "conv": ("float32", r".*: conv$"),
    "conv_input_grad": ("float16", r".*: input_grad$"),
    "conv_weight_grad": ("float64", r".*: weight_grad$"),
    "im2col": ("int8", r".*: im2col$"),
    "col2im": ("int32", r".*: col2im$"),
    "max_pool": ("int8", r".*: max_pool$"),
    "max_pool_grad": ("float16", r".*: max_pool_grad$"),
    "avg_pool": ("float32", r".*: avg_pool( |$)"),
    "avg_pool_grad": ("float32", r".*: avg_pool_grad( |$)"),
    "conv_transpose": ("settings", r"transposed$"),
    "conv_forward": ("classic", r"conv_forward$"),
    "im2col_indices": ("classic", r"im2col_indices$"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_slip_is_found(monkeypatch, name):
    """One element of one result is too large by one."""
    (group, pattern), right = FUNCTIONS[name], getattr(xconv, name)
    narrow = {"float64": "float64"}.get(group, "float32 float16 int8 int32").split()
    seen = []

    def wrong(first, *arguments, **options):
        result = right(first, *arguments, **options)
        array = result[0] if isinstance(result, tuple) else result
        if array.dtype.name in narrow and options.get("algorithm", "auto") != "gemm" and on_device(first):
            seen.append(array)
            array[(0,) * array.ndim] += 1
        return result

    def on_device(array):
        return any(array is made or array.base is made for made in put)

    put = []

    class Slipping(Host):
        def put(self, values):
            put.append(np.array(values))
            return put[-1]

    monkeypatch.setattr(xconv, name, wrong)
    found = list(checks.Checks(Slipping(), 1).rows(group))
    affected = [row for row in found if re.match(pattern, row["check"])]
    assert seen
    assert affected
    assert {row["state"] for row in affected} == {"wrong"}


def test_what_is_not_of_the_device_is_wrong():
    check = checks.Checks(Host(), 1)
    ones = np.ones(3, "float32")
    assert check.compare(lambda: ones, lambda: np.ones(3), "float32") is None
    assert "not float32, (3,)" in check.compare(lambda: ones.astype("float64"), lambda: np.ones(3), "float32")
    assert "not float32, (4,)" in check.compare(lambda: ones, lambda: np.ones(4), "float32")
    assert "off by 1.00e-01" in check.compare(lambda: ones * 10, lambda: np.array([10, 10, 9]), "float32", 1e-3)
    assert "1 of 3 differ, most at (1,)" in check.compare(lambda: ones, lambda: np.array([1.0, 2, 1]), "float32")
    assert check.compare(lambda: ones * np.nan, lambda: np.ones(3), "float32") is not None
    assert check.compare(lambda: ones * np.nan, lambda: np.ones(3), "float32", 1e-3) is not None


def test_a_check_that_raises_does_not_end_the_group(monkeypatch):
    def broken(*_, **__):
        msg = "of no use"
        raise RuntimeError(msg)

    monkeypatch.setattr(xconv, "im2col", broken)
    with pytest.raises(RuntimeError):  # the columns are made by it
        rows("int64")
    monkeypatch.undo()
    monkeypatch.setattr(xconv, "conv_input_grad", broken)
    found = {row["check"]: row["state"] for row in rows("int64")}
    assert found["layer: input_grad"] == "error"
    assert found["layer: weight_grad"] == found["layer: col2im"] == "ok"


def test_a_group_has_a_process(monkeypatch, tmp_path):
    """Which says so where it fails: here is no device."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(smoke, "GROUPS", ("int64",))
    assert smoke.run(60, jobs=1) == 1
    found = results.read("smoke.json")
    assert {row["group"] for row in found} == {"int64"}
    assert {row["state"] for row in found} == {"error"}
    assert smoke.child("int64", time.monotonic()) == [{"group": "int64", "check": "all", "state": "not reached"}]


# Figures


class HostDevice(devices.Device, Xconv):
    """The library on NumPy as a contender on a device, with a false clock."""

    xp = np

    def describe(self):
        return {"l2_bytes": 1000}

    def convert(self, array, precision):
        return array.astype(cases.PRECISIONS[precision][0])

    def plain(self, array):
        return array.astype(np.float32)

    def elapsed(self, function, operands, calls):
        return 1e-3 * calls, 0.0

    def temporary(self, function, operands):
        return 0

    def free(self):
        pass

    def rate(self, kind):
        return (np.add, [1, 1], 2e9) if kind == "copy" else None


class Wrong(HostDevice):
    name = "xconv-wrong"

    def functions(self, case, precision):
        right = super().functions(case, precision)["input_grad"]
        return {"forward": lambda *_: 1 / 0, "input_grad": lambda *given: 2 * right(*given)}


class Missing(HostDevice):
    name = "missing"

    def __init__(self, threads):
        raise MissingError


def false_clock(runs):
    for run in runs:
        run()
    return Times(1e-6, 2e-6, apart=True)


def test_timings_of_the_benchmarks_contenders(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    kinds = {"xconv": HostDevice, "xconv-wrong": Wrong, "missing": Missing}
    monkeypatch.setattr(timings, "DEVICES", kinds)
    monkeypatch.setattr(timings, "Clock", lambda: SimpleNamespace(time=false_clock))
    assert timings.contenders() == list(kinds)
    timings.run(60, ("tiny",), ("ieee", "float16"))
    found = results.read("timings.json")
    ours = [row for row in found if row["who"] == "xconv"]
    assert len({(row["case"], row["precision"], row["operation"]) for row in ours}) == len(ours)
    operations = {row["operation"] for row in ours if row["case"] == "tiny"}
    assert operations == {"im2col", "col2im", "forward", "input_grad", "weight_grad"}
    assert {row["case"] for row in ours} == {"tiny", "tiny, last"}
    assert all(row["error"] < 1e-2 for row in ours)
    failures = {row["operation"]: row["failed"] for row in found if row["who"] == "xconv-wrong"}
    assert failures["forward"].startswith("ZeroDivisionError")
    assert failures["input_grad"] == "wrong by 1.0e+00 of the largest element"
    assert capsys.readouterr().out.endswith("done\n")
    timings.run(-1, ("tiny",), ("ieee",))
    assert "no time left" in capsys.readouterr().out


def test_timings_of_pooling(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(pooling, "CASES", {"pool 3x3": ((2, 3, 9, 8), 3, 2, 1), "pool 2x2": ((1, 2, 6, 7), 2, 2, 0)})
    results.save("timings.json", [{"who": "before"}])
    pooling.run(60, Host(), SimpleNamespace(time=false_clock))
    before, *found = results.read("timings.json")
    assert before == {"who": "before"}
    ours = [row for row in found if row["who"] == "xconv"]
    assert len({(row["case"], row["precision"], row["operation"]) for row in ours}) == len(ours) == 2 * 2 * 2 * 4
    assert not any("failed" in row for row in found)
    assert capsys.readouterr().out.endswith("done\n")
    pooling.run(-1, Host(), SimpleNamespace(time=false_clock))
    assert "no time left" in capsys.readouterr().out


def test_what_pytorch_pools_otherwise_is_told(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(pooling, "CASES", {"pool 3x3": ((2, 3, 9, 8), 3, 2, 1)})
    right = xconv.avg_pool
    monkeypatch.setattr(xconv, "avg_pool", lambda *given, **options: right(*given, **options) + 1)
    rows = list(pooling.timed(Host(), SimpleNamespace(time=false_clock)))
    assert {row["operation"] for row in rows if "failed" in row} == {"avg_pool"}


def test_contenders_are_those_of_the_benchmark(capsys):
    assert set(timings.contenders()) == set(devices.DEVICES) - {"jax"}
    gpu.main(["peers"])
    peers = capsys.readouterr().out.strip().split(",")
    assert peers[:2] == ["xconv", "torch"]
    assert set(peers) == set(devices.DEVICES)


class FalseCuda:
    """Events and a kernel that takes the time that it is told to."""

    def __init__(self):
        self.busy = 0.0
        self.Device = lambda: SimpleNamespace(synchronize=self.wait)

    def wait(self):
        time.sleep(max(0, self.busy - time.perf_counter()))

    def spin(self, grid, block, cycles):
        self.busy = time.perf_counter() + cycles[0] / clock.HERTZ

    def Event(self):
        cuda = self

        class Event:
            def record(self):
                self.at = max(cuda.busy, time.perf_counter())

            @property
            def done(self):
                return time.perf_counter() >= self.at

            def synchronize(self):
                cuda.wait()

        return Event()

    def get_elapsed_time(self, first, last):
        return 1e3 * (last.at - first.at)


def test_the_clock_keeps_the_device_busy(monkeypatch):
    cuda = FalseCuda()
    cupy = SimpleNamespace(cuda=cuda, RawKernel=lambda text, name: cuda.spin)
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    def call():  # a call that the host issues at once and that takes the device a millisecond
        cuda.busy = max(cuda.busy, time.perf_counter()) + 1e-3

    found = clock.Clock().time([call, call])
    assert found.apart
    assert found.device == pytest.approx(1e-3, rel=0.1)
    assert found.host < 1e-3


def test_rates_and_the_time_of_the_host(monkeypatch, capsys):
    monkeypatch.setattr(environment, "DEVICES", {"xconv": HostDevice, "torch": Missing})
    assert dict(item for rate in environment.rates() for item in rate.items())["copy"] == pytest.approx(2e12)
    small = environment.calls(np, xconv)
    assert {name: environment.host_time(call, lambda: None) > 0 for name, call in small} == dict.fromkeys(
        ("cupy.empty", "a kernel of CuPy", "im2col", "conv"), True
    )
    environment.describe()
    assert np.__version__ in capsys.readouterr().out


REPORT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="1">
<testcase name="one"/><testcase name="two"><failure message="off by 3&#10;more"/></testcase>
<testcase name="three"><skipped message="refused: conv"/></testcase></testsuite></testsuites>"""


def test_summary(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu.main(["summary"])  # of nothing
    assert "smoke: {}" in capsys.readouterr().out
    results.save(
        "environment.json", {"device": "Some", "rates": {"copy": 3e12, "tf32": None}, "host_s": {"conv": 5e-5}}
    )
    bad = {"group": "int8", "check": "layer", "state": "wrong", "detail": "1 differ"}
    results.save("smoke.json", [bad, {"group": "int8", "check": "pixel", "state": "ok"}])
    (tmp_path / "gpu.xml").write_text(REPORT)
    (tmp_path / "cut.xml").write_text(REPORT[:50])
    row = {"precision": "ieee", "case": "c64_56", "host_s": 5e-5, "error": 0}
    forward, moved = row | {"operation": "forward"}, row | {"operation": "im2col"}
    figures = {"xconv": 4e-4, "xconv-winograd": 2e-4, "torch": 1e-4}
    timed = [forward | {"who": who, "device_s": seconds} for who, seconds in figures.items()]
    timed += [moved | {"who": "xconv", "device_s": 2e-4}, forward | {"who": "jax", "failed": "no"}]
    results.save("timings.json", timed)
    gpu.main(["summary", "--xml", str(tmp_path / "none.xml")])
    text = capsys.readouterr().out
    assert "Some; 10^12 bytes, or operations, per second: {'copy': '3'}" in text
    assert "{'ok': 1, 'wrong': 1}" in text
    assert "wrong int8 | layer | 1 differ" in text
    assert "two | off by 3\n" in text
    assert "three | refused: conv" in text
    assert "xconv 400/50; xconv-winograd 200/50; torch 100/50; 2.00" in text
    share = cases.GPU_CASES["c64_56"].elements("im2col") * 4 / 2e-4 / 3e12
    assert f"{share:.0%} of the copy rate" in text
    assert "jax | no" in text


# The stages

linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("bash"), reason="the script is for Linux")

#: Says what it is asked, and does what $BEHAVIOUR says of the stage.
STUB = f"""#!/usr/bin/env bash
case "$*" in
  "-m zipfile"*) exec {shlex.quote(sys.executable)} "$@" ;;
  *"import pytest; print"*) [ -n "$PYTEST" ] && echo "$PYTEST"; exit ;;
  *"import xdist") exit 1 ;;
  *"import cudnn") exit "${{CUDNN:-0}}" ;;
esac
printf '%s\\n' "$(basename "$0") $*" >>calls
case "$*" in
  *"ci.gpu peers") echo xconv,torch,more ;;
  *"ci.gpu environment") echo "$PYTHONPATH" | cut -d : -f 1 | xargs ls >unpacked; echo {{}} >"$OUT/environment.json" ;;
  *"ci.gpu smoke"*) exit 1 ;;
  *"ci.gpu timings"*) sleep 60 ;;
esac
"""


class Run:
    """The script in a folder of its own, with a Python that only pretends."""

    def __init__(self, folder, text=None):
        self.folder = folder
        self.script = folder / "gpu.sh"
        self.script.write_text(text or SCRIPT.read_text())
        (folder / "bin").mkdir()
        for name in ("python", "ncu"):
            self.pretend(name)

    def pretend(self, name):
        stub = self.folder / "bin" / name
        stub.write_text(STUB)
        stub.chmod(0o755)

    def __call__(self, *arguments, **variables):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        given = {"PATH": path, "PYTHON": "python", "OUT": "out", "PYTEST": "9.0.1", "HOME": str(self.folder)}
        done = subprocess.run(
            ["bash", str(self.script), *arguments],
            cwd=self.folder,
            env=given | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.status, self.said = done.returncode, done.stdout + done.stderr
        calls = self.folder / "calls"
        self.calls = calls.read_text().splitlines() if calls.exists() else []
        return self

    def call(self, part):
        return next(call for call in self.calls if part in call)


@linux
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--second=3", "unknown option --second=3"),
        ("smok", "unknown stage smok, not among: environment smoke"),
        ("--seconds=x", "whole numbers"),
        ("--pool=", "whole numbers"),
    ],
)
def test_arguments_are_looked_at(tmp_path, argument, message):
    run = Run(tmp_path)(argument)
    assert run.status == 2
    assert message in run.said
    assert not run.calls


@linux
def test_stages_survive_each_other(tmp_path):
    """One works, one fails, one is stopped, and two are not reached."""
    short = SCRIPT.read_text().replace("least=8", "least=2")
    run = Run(tmp_path, short)("--seconds=3", "environment", "smoke", "timings", "suite", "memcheck")
    assert run.status == 1
    assert re.search(r"environment: status 0 after \d of 3 s\n", run.said)
    assert re.search(r"smoke: status 1 after \d of 3 s\n", run.said)
    assert re.search(r"timings: status 124 after \d of \d s, stopped\n", run.said)
    assert "suite: not reached" in run.said
    assert "memcheck: not reached" in run.said
    assert "in out: out/environment.json out/stages.log" in run.said
    assert "==== summary" in run.said
    assert run.call("ci.gpu summary")


@linux
def test_wheels_are_taken_without_pip(tmp_path):
    (tmp_path / ".whl").mkdir()
    with zipfile.ZipFile(tmp_path / ".whl/some-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/__init__.py", "")
    (tmp_path / ".whl/torn.whl").write_text("no archive")
    run = Run(tmp_path)("environment", "memcheck")
    assert run.status == 0
    assert "wheels: .whl/torn.whl cannot be unpacked" in run.said
    assert (tmp_path / "unpacked").read_text().split() == ["some"]
    assert (tmp_path / "out/environment.json").exists()
    assert "memcheck: there is no compute-sanitizer" in run.said or shutil.which("compute-sanitizer")


@linux
@pytest.mark.parametrize(
    ("version", "message"),
    [("8.4.2", "pytest: 8.4.2 does not read [tool.pytest]"), ("", "pytest: is not there")],
)
def test_an_old_pytest_is_said_to_be_one(tmp_path, version, message):
    run = Run(tmp_path)("gpu", "profile", PYTEST=version)
    assert message in run.said
    assert "gpu: there is no pytest 9" in run.said
    assert run.status == 1
    assert [call.split()[0] for call in run.calls] == ["ncu", "python"]  # the other stages go on


@pytest.fixture(scope="module")
def every_stage(tmp_path_factory):
    """What the script asks for where all is there."""
    run = Run(tmp_path_factory.mktemp("run"), SCRIPT.read_text().replace("*timings*) sleep 60", ""))
    run.pretend("compute-sanitizer")
    for name in ("python", "ncu", "compute-sanitizer"):
        stub = run.folder / "bin" / name
        stub.write_text(stub.read_text().replace("sleep 60", "true"))
    return run()


@linux
def test_every_stage_is_reached_once(every_stage):
    said = re.findall(r"\] (\w+): status (\d+)", every_stage.said)
    assert [name for name, _ in said] == STAGES
    assert {name for name, status in said if status != "0"} == {"smoke"}


@linux
def test_the_benchmark_knows_what_it_is_asked(every_stage):
    call = shlex.split(every_stage.call("-m bench"))
    options = dict(pairwise(call))
    assert options["--peers"] == "xconv,torch,more"
    assert set(options["--cases"].split(",")) <= set(cases.GPU_CASES)
    assert set(options["--precisions"].split(",")) <= set(cases.PRECISIONS)
    done = subprocess.run(
        [sys.executable, *call[1:], "--dry-run", "--peers", "xconv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "jobs for" in done.stdout


@linux
def test_the_parts_know_what_they_are_asked(every_stage):
    for call in every_stage.calls:
        if "-m ci.gpu" in call:
            gpu._parser().parse_args(shlex.split(call.partition("-m ci.gpu ")[2]))


@linux
def test_pytest_finds_what_it_is_asked_for(every_stage):
    """Every file is there, and every expression selects tests of them."""
    running = []
    for call in every_stage.calls:
        if "-m pytest" in call:
            run = call.partition("-m pytest ")[2]
            words = [word for word in words_of(run) if not word.startswith(("--junitxml", "--durations", "--maxfail"))]
            files = [word for word in words if word.startswith("tests/")]
            assert files
            assert all((ROOT / file).exists() for file in files)
            command = [sys.executable, "-m", "pytest", "--collect-only", *words]
            running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    assert len(running) == 4
    for process in running:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out[-2000:]
        assert re.search(r"\d+(/\d+)? tests collected", out), out[-500:]


def words_of(call):
    """The words of a logged call, whose expressions are of several."""
    return shlex.split(re.sub(r"-([mk]) (not \w+|\w+)", r"-\1 '\2'", call))


def test_no_path_of_a_machine():
    for path in (ROOT / "ci").iterdir():
        if path.is_file():
            assert not re.search(r"/(tmp|home|work|root|usr/local)/", path.read_text()), path
