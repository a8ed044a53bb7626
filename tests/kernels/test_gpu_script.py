"""The run on a device, its checks and its kernels on the stand-in: what is launched is what the script looks for."""

import re
import sys
from contextlib import nullcontext
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
    monkeypatch.setattr(kernels, "SMALL", (1, 8, 5))


@pytest.mark.parametrize("group", ["float32", "bfloat16", "settings", "classic"])
def test_every_check_computes(standin, place, group):
    found = list(checks.Checks(place).rows(group))
    assert {row["state"] for row in found} == {"ok"}, [row for row in found if row["state"] != "ok"]
    assert standin.launches


@pytest.mark.parametrize(
    ("verb", "pattern"),
    [
        ("im2col", "layer.*: (conv|im2col)"),
        ("col2im", "layer: col2im"),
        ("depthwise", "depthwise.*: conv"),
        ("depthwise_input_grad", "depthwise.*: input_grad"),
        ("depthwise_weight_grad", "depthwise.*: weight_grad"),
    ],
)
def test_a_slip_in_a_kernel_is_found(monkeypatch, place, verb, pattern):
    """The first element of its result is too large by one."""
    right, wrongly = StandIn.launch, []

    def wrong(self, kernel, *arguments, **options):
        made = right(self, kernel, *arguments, **options)
        if re.match(rf"xconv_{verb}_(n?\d)", kernel.name):
            wrongly.append(kernel.name)
            host(made).reshape(-1)[0] += 1
        return made

    monkeypatch.setattr(StandIn, "launch", wrong)
    found = {row["check"]: row["state"] for row in checks.Checks(place, 1).rows("float32")}
    affected = [state for check, state in found.items() if re.match(pattern, check)]
    assert wrongly
    assert affected
    assert set(affected) == {"wrong"}


def test_the_profiler_looks_for_every_kernel(standin, place):
    """By names that say what a kernel is specialised to."""
    (pattern,) = re.findall(r"regex:(\S+)\"", SCRIPT.read_text())
    kernels.run(place, small=True, dtypes=("float32",))
    names = {name for name in standin.names if re.search(pattern, name)}
    verbs = {re.sub(r"_n\d.*", "", name) for name in names}
    launched = {re.sub(r"_(n\d|\dd_).*", "", name) for name in standin.names}
    assert verbs == launched - {"xconv_add", "xconv_copy"}
    assert {f"xconv_{verb}" for verb in ("im2col", "col2im", "depthwise", "implicit")} <= verbs
