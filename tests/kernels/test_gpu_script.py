"""The run on a device, its checks and its kernels on the stand-in: what is launched is what the script looks for."""

import re
import sys
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import pytest

from kernels.standin import StandIn, host

sys.path.append(str(Path(__file__).parents[2]))

from ci import checks, kernels
from ci.place import Place

SCRIPT = Path(kernels.__file__).with_name("gpu.sh")


class Standing(Place):
    """The stand-in in the place of a device: it has one stream, and no pool."""

    def stream(self):
        return nullcontext()

    def synchronize(self):
        pass

    without_pool = synchronize


@pytest.fixture
def standin():
    with StandIn().installed() as standin:
        yield standin


@pytest.fixture
def place(standin):
    return Standing()


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The kernels are compiled one by one, so some geometries and small arrays must do."""
    monkeypatch.setattr(checks, "DTYPES", {"float32": ("layer", "depthwise"), "bfloat16": ("steps",)})
    monkeypatch.setattr(checks, "POOLS", {"3x3": checks.POOLS["3x3"]})
    monkeypatch.setattr(kernels, "SMALL", (1, 8, 5))


@pytest.mark.parametrize("group", ["float32", "bfloat16", "settings", "classic"])
def test_every_check_computes(standin, place, group):
    found = list(checks.Checks(place).rows(group))
    assert {row["state"] for row in found} == {"ok"}, [row for row in found if row["state"] != "ok"]
    assert standin.launches


@pytest.mark.parametrize(
    ("verb", "pattern"),
    [
        ("im2col", "(gemm, .*: conv|layer: im2col)"),
        ("col2im", "layer: col2im"),
        ("max_pool", "pool.*: max_pool$"),
        ("max_taps", "pool.*: max_pool_grad"),
        ("max_pool_grad", "pool.*: max_pool_grad"),
        ("avg_pool", "pool.*: avg_pool$"),
        ("avg_pool_seen", "pool.*: avg_pool of"),
        ("avg_shares", "pool.*: avg_pool_grad of"),
        ("avg_pool_grad", "pool.*: avg_pool_grad$"),
        ("avg_pool_grad_seen", "pool.*: avg_pool_grad of"),
        ("depthwise", "depthwise.*: conv"),
        ("depthwise_input_grad", "depthwise.*: input_grad"),
        ("depthwise_weight_grad", "depthwise.*: weight_grad"),
        ("implicit", "implicit, float(32|16).*: (conv|input_grad)"),
        ("implicit_weight_grad(_together)?", "implicit, float32.*: weight_grad"),
    ],
)
def test_a_slip_in_a_kernel_is_found(monkeypatch, place, verb, pattern):
    """By every check that launches it: the first element of its result is too large by one."""
    wrongly = []

    def slips(name, result):
        if re.match(rf"xconv_{verb}_(n?\d)", name):
            wrongly.append(name)
            host(result).reshape(-1)[0] += 1

    def elementwise(self, kernel, *arguments, launch=StandIn.launch, **options):
        made = launch(self, kernel, *arguments, **options)
        slips(kernel.name, made)
        return made

    def of_blocks(self, code, name, grid, threads, arguments, launch=StandIn.launch_blocks):
        launch(self, code, name, grid, threads, arguments)
        slips(name, arguments[2])  # behind it are numbers

    monkeypatch.setattr(StandIn, "launch", elementwise)
    monkeypatch.setattr(StandIn, "launch_blocks", of_blocks)
    made = checks.Checks(place, 1)
    affected = {
        name: check for name, check in chain(made.of_dtype("float32"), made.algorithms()) if re.match(pattern, name)
    }
    assert affected
    for name, check in affected.items():
        wrongly.clear()
        assert check() is not None, name
        assert wrongly, name


def test_the_profiler_looks_for_every_kernel(standin, place):
    """By names that say what a kernel is specialised to."""
    (pattern,) = re.findall(r"regex:(\S+)\"", SCRIPT.read_text())
    kernels.run(place, small=True, dtypes=("float32",))
    names = {name for name in standin.names if re.search(pattern, name)}
    verbs = {re.sub(r"_n\d.*", "", name) for name in names}
    launched = {re.sub(r"_(n\d|\dd_|\d+_\d+_).*", "", name) for name in standin.names}
    assert verbs == launched - {"xconv_add", "xconv_copy"}
    assert {f"xconv_{verb}" for verb in ("im2col", "col2im", "depthwise", "implicit")} <= verbs
