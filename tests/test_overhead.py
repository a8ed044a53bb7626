"""The benchmark of small calls: by hand is what xconv computes; CuPy has its rows where there is a device or a driver.

Here CuPy is NumPy: its kernels' text is compiled for the CPU and run thread by thread, and cuBLAS is `numpy.matmul`.
"""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))

import xconv
from bench import child, launches, overhead

#: What CUDA brings along, for a compiler of C++: the threads of a block run one after the other.
HARNESS = """
struct Dim { int x; };
static Dim blockIdx, blockDim, threadIdx;
#define __global__
#define __device__ static
%s
extern "C" void run(int blocks, int threads, void (*kernel)(const void*, const void*, const void*),
                    const void* a, const void* b, const void* c) {
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(a, b, c);
}
"""


class OnHost(np.ndarray):
    """An array of the host that is asked for its memory as one of CuPy is."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self):
        return np.array(self)


class Blas(ModuleType):
    """cuBLAS by NumPy; its matrices lie column by column."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = "N", "T", "float32", "default"

    @staticmethod
    def gemmStridedBatchedEx(
        handle, a_op, b_op, m, n, k, one, a, a_kind, a_step, _a, b, b_kind, b_step, _b, zero, c, c_kind, c_step, *rest
    ):
        assert (handle, a_kind, b_kind, c_kind) == ("handle", "f4", "f4", "f4")
        assert rest == (0, 1, "float32", "default")
        assert (Blas._float(one), Blas._float(zero)) == (1, 0)

        def matrix(address, rows, columns, step):
            memory = (ctypes.c_float * (columns * step)).from_address(address)
            return np.frombuffer(memory, np.float32).reshape(columns, step)[:, :rows].T

        a = matrix(a, m, k, a_step) if a_op == "N" else matrix(a, k, m, a_step).T
        b = matrix(b, k, n, b_step) if b_op == "N" else matrix(b, n, k, b_step).T
        matrix(c, m, n, c_step)[...] = a @ b

    @staticmethod
    def _float(address):
        return ctypes.c_float.from_address(address).value


class Cupy(ModuleType):
    """As much of CuPy as the benchmark touches; without a folder to compile in, its kernels do nothing."""

    __version__ = "14"
    ndarray = type("ndarray", (), {})

    def __init__(self, folder=None):
        super().__init__("cupy")
        self.folder, self.waits = folder, 0
        error = type("CUDARuntimeError", (RuntimeError,), {})
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                CUDARuntimeError=error,
                CUDA_R_32F="f4",
                getDeviceCount=lambda: 1,
                getDeviceProperties=lambda number: {"name": b"NVIDIA False-1"},
            ),
            device=SimpleNamespace(get_cublas_handle=lambda: "handle"),
            Device=lambda: SimpleNamespace(synchronize=self.wait),
        )

    def wait(self):
        self.waits += 1

    def zeros(self, size):
        return np.zeros(size)

    def empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype).view(OnHost)

    def asarray(self, array):
        if self.folder is None and array.ndim == 1:
            return Idle(array)
        return array.view(OnHost)

    def RawModule(self, code):
        if self.folder is None:
            return SimpleNamespace(get_function=lambda name: lambda grid, threads, arguments: None)
        source, library = self.folder / "kernels.cpp", self.folder / "kernels.so"
        source.write_text(HARNESS % code)
        options = ("-O1", "-shared", "-fPIC", "-Wall", "-Werror")
        subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))

        def function(name):
            def launch(grid, threads, arguments):
                pointers = [ctypes.c_void_p(argument.ctypes.data) for argument in arguments]
                pointers += [None] * (3 - len(pointers))
                loaded.run(*grid, *threads, getattr(loaded, name), *pointers)

            return launch

        return SimpleNamespace(get_function=function)


class Idle(np.ndarray):
    """An array on a device that computes nothing."""

    def __new__(cls, array):
        return array.view(cls)

    def __mul__(self, other):
        return self

    def get(self):
        return np.array(self)


def put_in_place_of_cupy(monkeypatch, module):
    names = ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].cublas = Blas("cublas")
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    return put_in_place_of_cupy(monkeypatch, Cupy(tmp_path))


def test_by_hand_is_what_xconv_computes(cupy):
    rows = launches.rows(cupy)
    conv = xconv.conv(*rows[launches.IMPLICIT].function.args, padding=1, layout="channels_last")
    assert [name for name, row in rows.items() if row.precision == "tf32"] == [launches.IMPLICIT]
    for name, row in rows.items():
        wanted = conv if name == launches.IMPLICIT else row.function()
        found = row.by_hand()
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=name)


def test_rows_of_a_device_are_checked_and_timed(cupy, monkeypatch):
    monkeypatch.setattr(launches, "LAP", 5)
    there = launches.Row(lambda: 1, lambda: 2)
    worker = launches.Launches({"there": there})
    found = worker.requests["start"]()
    assert found["device"] == "NVIDIA False-1"
    assert found["computes"] is True
    every = launches.rows(cupy)
    assert found["rows"] == ["there", *(name for name in every if name != launches.IMPLICIT)]  # NumPy refuses that
    before = cupy.waits
    for way in launches.WAYS:
        assert len(worker.requests["time"](operation="col2im", way=way, calls=10)) == 10
    assert cupy.waits - before == 2 * 3  # two laps that count, and one that does not


def test_each_way_is_timed_by_its_own_calls_in_its_precision(cupy, monkeypatch):
    calls = []
    monkeypatch.setattr(launches, "LAP", 2)
    row = launches.Row(lambda: calls.append("function"), lambda: calls.append("by hand"), precision="tf32")
    worker = launches.Launches({"row": row})
    worker.start()
    seen = []
    monkeypatch.setattr(launches, "timed", lambda call, count: seen.append(precision()) or [call() or 1] * count)
    for way in launches.WAYS:
        assert worker.time("row", way, 2) == [1, 1]
        assert set(calls) == {way}
        calls.clear()
    assert set(seen) == {"tf32"}


def precision():
    from xconv import _config

    return _config.current().precision


def test_what_differs_from_the_work_by_hand_is_an_error(cupy, monkeypatch):
    wrong = launches.Row(lambda: np.ones(3), lambda: np.full(3, 1.1))
    monkeypatch.setattr(launches, "rows", lambda cupy: {"wrong": wrong})
    with pytest.raises(ArithmeticError, match=r"wrong: what is computed by hand differs by 9\.1e-02"):
        launches.Launches({}).start()


def test_a_driver_without_a_device_has_its_rows(monkeypatch):
    put_in_place_of_cupy(monkeypatch, Cupy())
    found = launches.Launches({}).start()
    assert found["computes"] is False
    assert "forward by gemm" in found["rows"]  # where what comes out is not compared


def test_without_a_device_something_is_missing(monkeypatch):
    module = put_in_place_of_cupy(monkeypatch, Cupy())
    error = module.cuda.runtime.CUDARuntimeError

    def count():
        raise error("no device")

    module.cuda.runtime.getDeviceCount = count
    assert launches.Launches({}).start() == {"missing": "CuPy finds no CUDA device that it can use: no device"}
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert launches.Launches({}).start()["missing"].startswith("CuPy cannot be imported")


class InProcess:
    """A child without a process of its own, whose calls all take some nanoseconds."""

    closed = asked = ()

    options = ()

    def __init__(self, name, module, option, way, *more, threads):
        assert (module, option, way, threads) == ("overhead", "--child", name, 1)
        InProcess.options += more
        self.name, self.worker = name, None if name == overhead.CUPY else overhead.Worker(name)
        self.facts = self.cupy if name == overhead.CUPY else {}

    def ask(self, request, **arguments):
        if request == "results":
            return self.worker.results()
        way = arguments.get("way", self.name)
        InProcess.asked += ((arguments["operation"], way),)
        nanoseconds = {"by hand": 1000, "plan": 3000, "function": 4000}[way]
        return [nanoseconds] * arguments["calls"]

    def close(self):
        InProcess.closed += (self.name,)


@pytest.fixture
def children(monkeypatch):
    monkeypatch.setattr(overhead, "Child", InProcess)
    monkeypatch.setattr(overhead, "PAUSE", 0)
    monkeypatch.setattr(InProcess, "closed", ())
    monkeypatch.setattr(InProcess, "asked", ())
    monkeypatch.setattr(InProcess, "options", ())
    return InProcess


def test_a_run_without_cupy(children, monkeypatch):
    monkeypatch.setattr(children, "cupy", {"missing": "no CuPy"}, raising=False)
    found = overhead.measure(rounds=2)
    assert "cupy" not in found
    assert children.closed == (*overhead.CONTENDERS, overhead.CUPY)
    text = overhead.table(found)
    assert "| forward | 1.00 | 4.00 | 3.00 | 3.00 | 2.00 |" in text
    assert "CuPy" not in text
    assert text.endswith(" |\n")


@pytest.mark.parametrize(("computes", "what"), [(True, "a GPU"), (False, "a CUDA driver without a device")])
def test_a_run_with_cupy(children, monkeypatch, computes, what):
    facts = {"device": "NVIDIA False-1", "computes": computes, "cupy": "14", "rows": ["im2col", "col2im"]}
    monkeypatch.setattr(children, "cupy", facts, raising=False)
    found = overhead.measure(rounds=2)
    assert {name: found["cupy"][name] for name in facts} == facts
    keys = [(r["operation"], r["contender"], r["calls"]) for r in found["cupy"]["results"]]
    calls = 2 * overhead.MOST_CALLS
    assert keys == [(operation, way, calls) for operation in facts["rows"] for way in launches.WAYS]
    one_round = tuple((operation, way) for operation in facts["rows"] for way in launches.WAYS)
    assert children.asked[-8:] == (*one_round, *one_round[::-1])
    text = overhead.table(found)
    assert f"- NVIDIA False-1: {what}" in text
    assert "| im2col | 1.00 | 4.00 | 3.00 |\n| col2im | 1.00 | 4.00 | 3.00 |\n" in text
    assert children.closed[-1] == overhead.CUPY
    assert children.options == ()
    overhead.measure(rounds=1, driver=True)
    assert children.options == ("--driver",)


def test_the_child_says_what_is_missing_or_what_it_found():
    found = child.Child("CuPy", "overhead", "--child", overhead.CUPY, threads=1)
    found.close()
    assert ("missing" in found.facts) != ("device" in found.facts)
    numpy = list(overhead.numpy_beside_cupy())
    assert found.facts.get("rows", numpy)[:1] == numpy


def test_a_child_finds_libraries_where_its_parent_does(monkeypatch):
    kept = {"LD_LIBRARY_PATH": "/somewhere", "PYTHONPATH": "/elsewhere", "CUDA_PATH": "/cuda", "OTHER": "1"}
    gone = {"OPENBLAS_CORETYPE": "a", "CUPY_ACCELERATORS": "cub", "OMP_NUM_THREADS": "64"}
    for name, value in (kept | gone).items():
        monkeypatch.setenv(name, value)
    seen = {}
    monkeypatch.setattr(child.subprocess, "Popen", lambda command, env, **options: seen.update(env))
    monkeypatch.setattr(child.Child, "ask", lambda self, request: {})
    child.Child("CuPy", "overhead", threads=1)
    assert {name: seen.get(name) for name in kept} == kept
    assert {name: seen.get(name) for name in gone} == dict.fromkeys(gone) | {"OMP_NUM_THREADS": "1"}
