"""The bridges against differentiation operation by operation: ``python -m bench.bridges --help``.

A call is a forward pass and the gradients of image and filters. Every contender has a process of its own, and all take
turns; memory is that of a first call, in a process that does no more.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .cases import CASES, PRECISIONS, Case
from .child import Child, ChildError, serve
from .machine import machine
from .measure import PAUSE, statistics_of
from .memory import as_tuple, temporary
from .problem import Problem, make, relative_error
from .progress import Progress
from .report import BUSY
from .text import markdown, number
from .worker import limit_cores, timed

CHOSEN = ("r50_56", "s2", "pw1x1")
RESULTS = Path(__file__).parent / "results"
#: By library, what computes the convolution: the bridge, `xconv.conv` under the library's autograd, and its own.
WAYS = {"bridge": "bridge", "plain": "xconv.conv, differentiated", "own": "its own convolution"}
CONTENDERS = tuple(f"{library}-{way}" for library in ("torch", "jax") for way in WAYS)

Call = Callable[[], Any]


def torch_call(way: str, case: Case, operands: dict[str, np.ndarray], threads: int) -> Call:
    """A forward and a backward pass by PyTorch."""
    import torch

    import xconv
    from xconv.interop.torch import conv

    torch.set_num_threads(threads)
    sizes = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}
    convolution = {"bridge": conv, "plain": xconv.conv, "own": getattr(torch.nn.functional, f"conv{case.rank}d")}[way]
    x, w, dy = (torch.tensor(operands[name], requires_grad=name != "dy") for name in ("x", "w", "dy"))

    def call() -> tuple[Any, ...]:
        y = convolution(x, w, **sizes)
        return (y.detach(), *torch.autograd.grad(y, (x, w), dy))

    return call


def jax_call(way: str, case: Case, operands: dict[str, np.ndarray], threads: int) -> Call:
    """The same by JAX, compiled as a whole."""
    del threads  # JAX has one for every core that it sees
    import jax

    import xconv
    from xconv.interop.jax import conv

    steps = (case.stride,) * case.rank, [(case.padding, case.padding)] * case.rank
    more = {"rhs_dilation": (case.dilation,) * case.rank, "feature_group_count": case.groups}
    sizes = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}
    convolution = {
        "bridge": partial(conv, **sizes),
        "plain": partial(xconv.conv, **sizes),
        "own": lambda x, w: jax.lax.conv_general_dilated(x, w, *steps, **more, precision="highest"),
    }[way]

    def function(x: Any, w: Any, dy: Any) -> tuple[Any, ...]:
        y, pull_back = jax.vjp(convolution, x, w)
        return (y, *pull_back(dy))

    arrays = [jax.numpy.asarray(operands[name]) for name in ("x", "w", "dy")]
    compiled = jax.jit(function).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


CALLS = {"torch": torch_call, "jax": jax_call}


class Worker:
    """One contender in its process."""

    def __init__(self, name: str, threads: int) -> None:
        self.library, self.way = name.split("-")
        self.make = partial(CALLS[self.library], self.way, threads=threads)
        self.requests = {"start": self.start, "prepare": self.prepare, "time": self.time, "memory": self.memory}

    def start(self) -> dict[str, str]:
        """Import the library; the answer says what it is, or that it is missing."""
        tiny = CASES["tiny"]
        try:
            self.make(tiny, make(tiny).operands)()
        except ImportError as error:
            return {"missing": f"{self.library} is left out, since it cannot be imported: {error}"}
        return {self.library: version(self.library)}

    def prepare(self, case: str, problem: str) -> dict[str, float]:
        """Take up a case, and compare with float64: error and seconds of a call."""
        found = Problem.load(Path(problem))
        self.call = self.make(CASES[case], found.operands)
        pairs = zip(as_tuple(self.call()), (found.expected[name] for name in ("y", "dx", "dw")), strict=True)
        error = max(relative_error(np.asarray(got), wanted) for got, wanted in pairs)
        if not error <= PRECISIONS["ieee"][2]:
            msg = f"the result is wrong by {error:.1e} of its largest element"
            raise ArithmeticError(msg)
        return {"error": error, "estimate": timed(self.call, 1)[0] / 1e9}

    def time(self, calls: int) -> list[int]:
        """Nanoseconds of each of some calls, after one that is not counted."""
        self.call()
        return timed(self.call, calls)

    def memory(self, case: str, problem: str) -> int | None:
        """Bytes of temporary memory at the peak of a first call, beside its results; `start` has run a small one."""
        return temporary(self.make(CASES[case], Problem.load(Path(problem)).operands), on_numpy=False)


def started(name: str, threads: int) -> Child:
    """Start the process of a contender."""
    return Child(name, "bridges", "--serve", name, "--threads", str(threads), threads=threads)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let all contenders take turns; the result is ready for JSON."""
    progress = Progress(len(arguments.cases) * (arguments.rounds + 2))
    surroundings = machine()
    results: list[dict[str, Any]] = []
    children: dict[str, Child] = {}
    try:
        for name in CONTENDERS:
            progress.say(f"starting {name}")
            children[name] = started(name, arguments.threads)
            if "missing" in children[name].facts:
                progress.note(children[name].facts["missing"])
                children.pop(name).close()
        with tempfile.TemporaryDirectory() as folder:
            for case in arguments.cases:
                results += run(case, Path(folder) / "problem.npz", children, arguments, progress)
    finally:
        progress.end()
        for child in children.values():
            child.close()
    chosen = f"--cases {','.join(arguments.cases)} --threads {arguments.threads}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m bench.bridges {chosen} --rounds {arguments.rounds} --seconds {arguments.seconds:g}",
        "machine": surroundings,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "versions": {library: text for child in children.values() for library, text in child.facts.items()},
        "results": results,
    }


def run(
    case: str, path: Path, children: dict[str, Child], arguments: argparse.Namespace, progress: Progress
) -> list[dict[str, Any]]:
    """Time one case in rounds, and look at the memory of each contender."""
    progress.say(f"{case}: getting ready")
    make(CASES[case]).save(path)
    ready = {name: child.ask("prepare", case=case, problem=str(path)) for name, child in children.items()}
    samples: dict[str, list[list[int]]] = {name: [] for name in ready}
    progress.step()
    for turn in range(arguments.rounds):
        progress.say(f"{case}: round {turn + 1} of {arguments.rounds}")
        for name in samples if turn % 2 == 0 else reversed(samples):
            time.sleep(PAUSE)
            calls = max(1, int(arguments.seconds / ready[name]["estimate"]) - 1)
            samples[name].append(children[name].ask("time", calls=calls))
        progress.step()
    progress.say(f"{case}: memory")
    results = []
    for name, rounds in samples.items():
        child = started(name, arguments.threads)
        memory = child.ask("memory", case=case, problem=str(path))
        child.close()
        facts = {"case": case, "contender": name, "error": ready[name]["error"], "temporary_bytes": memory}
        results.append(facts | statistics_of(rounds))
    progress.step()
    return results


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    load, rows = found["machine"]["load"] or 0, []
    medians = {(r["case"], r["contender"]): r["median"] for r in found["results"]}
    for result in found["results"]:
        case, name = result["case"], result["contender"]
        library, way = name.split("-")
        memory = result["temporary_bytes"]
        rows.append(
            [
                f"{case}: {CASES[case].label}",
                f"{library}, {WAYS[way]}",
                f"{number(result['median'] * 1e3)} ± {number((result['q3'] - result['q1']) / 2 * 1e3)}",
                number(result["median"] / medians[case, f"{library}-bridge"]),
                number(None if memory is None else memory / 2**20),
                f"{result['error']:.0e}",
            ]
        )
    versions = ", ".join(f"{library} {text}" for library, text in found["versions"].items())
    settings = (
        f"{found['date']}, {found['threads']} threads for every contender, {found['rounds']} rounds. "
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores; {versions}; load of the machine at the start: "
        f"{load}{' (busy)' if load > BUSY else ''}. `{found['command']}`"
    )
    note = (
        "Times are medians ± half the interquartile range. The temporary memory is the peak of a first call beside its "
        "results, in resident pages: what a library holds already is not seen."
    )
    figures = markdown(["case", "contender", "ms", "÷ bridge", "temporary MiB", "error"], rows, left=2)
    lines = ["# A forward and a backward pass, through the bridges and without", settings, note, figures]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CHOSEN), help="of bench/cases.py")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--rounds", type=int, default=7, help="in which all take turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a contender's turn")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for bridges.json and bridges.md")
    parser.add_argument("--serve", metavar="CONTENDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        limit_cores(arguments.threads)
        serve(Worker(arguments.serve, arguments.threads).requests)
        return
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    try:
        found = measure(arguments)
    except ChildError as error:
        sys.exit(f"The measurement was given up: {error}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bridges.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.output / "bridges.md").write_text(table(found))
    print(table(found), end="")


if __name__ == "__main__":
    main()
