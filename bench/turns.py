"""Contenders that do the same take turns, each in a process of its own: for `bench.ndimage` and `bench.pairs`."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .child import Child, serve
from .machine import machine
from .measure import MOST_CALLS, PAUSE, add_options, statistics_of
from .progress import Progress
from .text import number
from .worker import limit_cores, threadpools, timed

TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "complex64": 1e-5, "complex128": 1e-12}
Call = Callable[[], Any]


class Comparison(NamedTuple):
    """What is compared: the module that is run, and whose name the files get."""

    name: str
    description: str
    #: By name; every case has a `dtype`.
    cases: dict[str, Any]
    #: By name, what makes the call for a case and a dtype. The first one, in double precision, is the reference.
    contenders: dict[str, Callable[[Any, str], Call]]
    libraries: tuple[str, ...]
    table: Callable[[dict[str, Any]], str]
    #: For xconv.
    threads: int


class Worker:
    """One contender, and the case that it has at hand."""

    def __init__(self, comparison: Comparison, name: str) -> None:
        self.comparison, self.name = comparison, name
        self.requests = {"start": self.start, "prepare": self.prepare, "time": self.time}

    def start(self) -> dict[str, Any]:
        return {"versions": {library: import_module(library).__version__ for library in self.comparison.libraries}}

    def prepare(self, case: str, reference: str) -> dict[str, Any]:
        """Make the call; its error and its time."""
        import numpy as np

        chosen, path = self.comparison.cases[case], Path(reference)
        if not path.exists():  # the first contender is asked first
            double = "complex128" if chosen.dtype.startswith("complex") else "float64"
            np.save(path, self.comparison.contenders[self.name](chosen, double)())
        self.call = self.comparison.contenders[self.name](chosen, chosen.dtype)
        expected = np.load(path)
        error = float(np.max(np.abs(self.call() - expected)) / np.max(np.abs(expected)))
        if not error <= TOLERANCE[chosen.dtype]:
            msg = f"the result is wrong by {error:.1e} of its largest element"
            raise ArithmeticError(msg)
        return {"error": error, "estimate": timed(self.call, 1)[0] / 1e9, "threadpools": threadpools()}

    def time(self, calls: int) -> list[int]:
        """Nanoseconds of each of some calls, after one that is not counted."""
        self.call()
        return timed(self.call, calls)


def measure(comparison: Comparison, names: list[str], threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    progress, surroundings, results = Progress(len(names) * (rounds + 1)), machine(), []
    children = {
        name: Child(name, comparison.name, "--child", name, "--threads", str(threads), threads=threads)
        for name in comparison.contenders
    }
    pools: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for case in names:
                progress.say(f"{case}: getting ready")
                reference = str(Path(folder) / f"{case}.npy")
                ready = {name: child.ask("prepare", case=case, reference=reference) for name, child in children.items()}
                pools |= {name: answer["threadpools"] for name, answer in ready.items()}
                progress.step()
                samples: dict[str, list[list[int]]] = {name: [] for name in children}
                for turn in range(rounds):
                    progress.say(f"{case}: round {turn + 1} of {rounds}")
                    for name in samples if turn % 2 == 0 else reversed(samples):
                        calls = max(1, min(int(seconds / ready[name]["estimate"]), MOST_CALLS))
                        time.sleep(PAUSE)
                        samples[name].append(children[name].ask("time", calls=calls))
                    progress.step()
                for name in children:
                    facts = {"case": case, "contender": name, "error": ready[name]["error"]}
                    results.append(facts | statistics_of(samples[name]))
    finally:
        progress.end()
        for child in children.values():
            child.close()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": surroundings,
        "threads": threads,
        "rounds": rounds,
        "versions": {library: v for child in children.values() for library, v in child.facts["versions"].items()},
        "threadpools": pools,
        "results": results,
    }


def surroundings(found: dict[str, Any]) -> str:
    """Machine and versions of a run, as a list in Markdown."""
    facts = found["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in facts["caches"].items())
    versions = ", ".join(f"{library} {version}" for library, version in found["versions"].items())
    return f"""- {facts["cpu"]}, {facts["cores"]} cores ({caches}); {facts["os"]}
- Python {facts["python"]}, {versions}
- load of the machine at the start: {facts["load"]}"""


def spread(result: dict[str, Any]) -> str:
    """Milliseconds: the median and half the interquartile range."""
    return f"{number(1e3 * result['median'])} ± {number(1e3 * (result['q3'] - result['q1']) / 2)}"


def main(comparison: Comparison) -> int:
    """Serve as a child, or measure and write the table and its JSON."""
    name, cases = comparison.name, comparison.cases
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=comparison.description)
    parser.add_argument("--cases", help=f"some of {','.join(cases)}", default=",".join(cases))
    threads = comparison.threads
    parser.add_argument("--threads", type=int, default=threads, help=f"for xconv (default: {threads})")
    add_options(parser, rounds=5, seconds=0.3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        limit_cores(arguments.threads)
        serve(Worker(comparison, arguments.child).requests)
        return 0
    names = arguments.cases.split(",")
    if unknown := [case for case in names if case not in cases]:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(cases)}")
    found = measure(comparison, names, arguments.threads, arguments.rounds, arguments.seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.output / f"{name}.md").write_text(comparison.table(found))
    print(comparison.table(found))
    return 0
