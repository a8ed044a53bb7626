"""What the package promises as a package: names, imports, documentation."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import xconv
from xconv import __main__ as program
from xconv import backends
from xconv.primitives import Primitives

pytestmark = pytest.mark.numpy_only

PUBLIC = [
    "Tuning", "avg_pool", "avg_pool_grad", "col2im", "col2im_indices", "config", "conv", "conv_backward",
    "conv_forward", "conv_input_grad", "conv_transpose", "conv_weight_grad", "im2col", "im2col_indices", "max_pool",
    "max_pool_grad", "plan",
]  # fmt: skip


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_public_names():
    assert sorted(xconv.__all__) == PUBLIC
    assert all(callable(getattr(xconv, name)) for name in PUBLIC)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", xconv.__version__)


def test_import_loads_no_array_library():
    loaded = run("import sys, xconv; print(*sys.modules)").split()
    assert not {"numpy", "cupy", "torch", "jax", "dask", "array_api_strict", "scipy", "xconv.__main__"} & set(loaded)


def test_cupy_has_a_backend(monkeypatch):
    """It is looked for as array-api-compat finds CuPy's arrays, with whatever goes by that name."""
    cupy, backend = ModuleType("cupy"), ModuleType("xconv.backends.cupy")
    cupy.ndarray, backend.CupyBackend = type("ndarray", (), {}), SimpleNamespace
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    for known in ("_by_type", "_by_namespace"):
        monkeypatch.setattr(backends, known, {})
    found = backends._discover("x", cupy.ndarray())
    assert isinstance(found, SimpleNamespace)
    assert backends._by_namespace == {"cupy": found}


def test_import_is_quick():
    """Under 0.15 s of the processor beyond NumPy's own import, the first call included; the best of five."""
    code = (
        "import time, numpy as np; a = np.ones((1, 1, 3)); begin = time.process_time(); import xconv; "
        "xconv.conv(a, a); print(time.process_time() - begin)"
    )
    assert min(float(run(code)) for _ in range(5)) < 0.15


@pytest.mark.parametrize("name", PUBLIC)
def test_documentation(name):
    doc = inspect.getdoc(getattr(xconv, name))
    sections = ["Parameters", "Raises", "Examples"] + (["Returns"] if name != "config" else [])
    sections = ["Notes", "Examples"] if name == "Tuning" else sections
    for section in sections:
        assert re.search(rf"^{section}\n-+$", doc, re.MULTILINE), section
    for parameter in inspect.signature(getattr(xconv, name)).parameters:
        assert re.search(rf"^([\w, ]+, )?{parameter}(, [\w, ]+)?( :|$)", doc, re.MULTILINE), parameter


def test_arrays_come_first_and_options_are_named():
    for name in PUBLIC:
        function = getattr(xconv, name)
        if name in {"Tuning", "config", "conv_forward", "conv_backward", "im2col_indices", "col2im_indices"}:
            continue
        for parameter in inspect.signature(function).parameters.values():
            first = parameter.name in {"x", "w", "b", "dy", "cols", "x_shape", "w_shape", "kernel_size", "size"}
            assert parameter.kind is (parameter.POSITIONAL_OR_KEYWORD if first else parameter.KEYWORD_ONLY)


def test_program():
    out = subprocess.run([sys.executable, "-m", "xconv"], capture_output=True, text=True, check=True).stdout
    assert f"xconv {xconv.__version__}" in out
    assert re.search(r"numpy +\S+ on cpu: ok, [\d.]+ ms", out)
    assert "BLAS and threads" in out


def test_program_tells_of_wrong_results(monkeypatch):
    monkeypatch.setattr(program, "conv_input_grad", lambda dy, w, shape, padding: dy[:, :1, ...].repeat(2, axis=1))
    assert "WRONG RESULTS" in next(program._report("numpy", "numpy"))


def test_program_tells_of_what_is_missing_or_broken(monkeypatch):
    assert list(program._report("no_such_library", "no_such_library")) == ["no_such_library  not installed"]
    (line,) = program._report("numpy", "numpy.no_such_part")
    assert "does not work: ModuleNotFoundError No module named" in line
    monkeypatch.setattr(program, "_samples", lambda *_: (_ for _ in ()).throw(RuntimeError))
    (line,) = program._report("numpy", "numpy")
    assert line.split() == ["numpy", "does", "not", "work:", "RuntimeError"]


class Fake:
    """The parts of CuPy, PyTorch and JAX that the program asks for, with `count` devices."""

    def __init__(self, count):
        self.count, self.cuda, self.runtime = count, self, self

    def is_available(self):
        return self.count > 0

    def getDeviceCount(self):
        return self.count

    device_count = getDeviceCount

    def Device(self, number):
        import contextlib

        return contextlib.nullcontext(number)

    def devices(self):
        return [f"gpu:{i}" for i in range(self.count)]

    def asarray(self, values, device=None):
        del device
        return values


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("cupy", 0, []),
        ("cupy", 2, ["cuda:0", "cuda:1"]),
        ("torch", 1, ["cpu", "cuda:0"]),
        ("jax", 2, ["gpu:0", "gpu:1"]),
    ],
)
def test_program_visits_every_device(monkeypatch, name, count, expected):
    fake = Fake(count)
    monkeypatch.setattr(program.importlib, "import_module", lambda _: fake)
    assert [device for device, _ in program._samples(name, fake)] == expected


def test_program_tells_of_a_missing_device(monkeypatch):
    fake = Fake(0)
    fake.__version__ = "14.2"
    monkeypatch.setattr(program, "find_spec", lambda _: True)
    monkeypatch.setattr(program.importlib, "import_module", lambda _: fake)
    assert list(program._report("cupy", "cupy")) == ["cupy             14.2, no device"]


def test_the_house():
    """Primitives are few, and of no library; no file is longer than what one reads at a time."""
    root = Path(xconv.__file__).parent
    assert len([name for name in vars(Primitives) if not name.startswith("_")]) <= 30
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert file.name == "_api.py" or text.count("\n") <= 350, file
        assert file.parent.name != "primitives" or not re.search("cuda|cudnn|cupy", text.lower()), file
