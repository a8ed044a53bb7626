import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from libraries import Backend, installed

quick = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=1200, derandomize=True, database=None, **quick)
settings.register_profile("fuzz", max_examples=50_000, **quick)
settings.load_profile("ci")

DEFAULT = (Backend.NUMPY, Backend.STRICT, Backend.STRICTEST)


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        type=Backend,
        help=f"run with this array library, may be repeated: {', '.join(b.value for b in Backend)}",
    )
    parser.addoption(
        "--no-pool", action="store_true", help="CuPy's memory from the driver, so that a checker sees its ends"
    )
    parser.addoption("--fuzz-table", type=Path, help="write how many geometries of each kind were compared to a file")


def pytest_configure(config):
    if config.getoption("no_pool"):
        importlib.import_module("cupy").cuda.set_allocator(None)


def pytest_generate_tests(metafunc):
    if "lib" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("backend")
    backends = tuple(chosen or (b for b in DEFAULT if installed(b)))
    if metafunc.definition.get_closest_marker("numpy_only"):
        backends = tuple(b for b in backends if b is Backend.NUMPY)
    metafunc.parametrize("lib", backends, ids=lambda b: b.value, indirect=True)


@pytest.fixture
def lib(request):
    """The array library under test. One that was asked for and is missing is an error."""
    library = request.param.library()
    with library.active():
        yield library


@pytest.fixture
def xp(lib):
    return lib.xp


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


@pytest.fixture
def exact():
    """`auto` takes only the algorithms whose sums of small integers are exact: a zero of the others is 1e-15."""
    import xconv  # not before its coverage is measured

    with xconv.config(numerics="strict"):
        yield


@pytest.fixture(scope="session")
def compared(request):
    """How many geometries were compared with plain loops, by what was done, the rank, the padding and the library."""
    counts = Counter()
    yield counts
    file = request.config.getoption("--fuzz-table")
    if file and not request.session.testsfailed:
        file.write_text(fuzz_table(counts))


def fuzz_table(counts):
    """As Markdown; written where no test has failed."""
    lines = [f"{sum(counts.values()):,} random geometries, each compared with plain loops: none differed.", ""]
    lines += ["| compared | axes | padding | library | geometries |", "| :-- | --: | :-- | :-- | --: |"]
    lines += [f"| {' | '.join(map(str, kind))} | {count:,} |" for kind, count in sorted(counts.items())]
    return "\n".join(lines) + "\n"


def pytest_collection_modifyitems(config, items):
    """Leave out what only concerns NumPy where other libraries were asked for."""
    chosen = config.getoption("backend")
    if not chosen or Backend.NUMPY in chosen:
        return
    left_out = [item for item in items if item.get_closest_marker("numpy_only")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
