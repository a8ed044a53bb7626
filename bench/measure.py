"""The parent process: asks one child per contender in turn, in rounds, so that all see the same weather."""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from . import problem
from .cases import Case
from .child import Child, ChildError
from .contenders import CONTENDERS
from .machine import machine
from .progress import Progress

#: Seconds before each request in which the last child's threads fall asleep; OpenBLAS's spin for 2**26 clock ticks.
PAUSE = 0.05
#: Most calls in one request.
MOST_CALLS = 1000


@dataclass(frozen=True)
class Settings:
    """What to run, and for how long."""

    cases: tuple[Case, ...]
    peers: tuple[str, ...]
    threads: int
    rounds: int
    #: Length of a contender's turn at one operation, warm-up included; a call that takes longer runs once.
    seconds: float
    #: What is run, up to these settings.
    program: str
    #: Whether to look at the memory, too.
    memory: bool = True

    @property
    def command(self) -> str:
        """The command that runs the same again."""
        return f"{self.program} --threads {self.threads} --rounds {self.rounds} --seconds {self.seconds:g}"


def add_options(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """Let the command line say how long to measure, and where the results go."""
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often each has its turn (default: {rounds})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"length of a turn (default: {seconds:g})")
    folder = Path("bench/results")
    parser.add_argument("--output", type=Path, default=folder, help=f"folder (default: {folder})")


class Suite:
    """The children that take part, and what has been found so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Two steps beside the rounds: getting ready, and the memory.
        self.progress = Progress(len(settings.cases) * (settings.rounds + 2))
        self.children: dict[str, Child] = {}
        self.contenders: dict[str, Any] = {}
        self.left_out: list[str] = []
        self.failures: list[str] = []
        self.omitted: list[dict[str, str]] = []
        self.remarks: dict[str, dict[str, str]] = {}
        self.results: list[dict[str, Any]] = []

    def start(self) -> None:
        """Start a child for every contender; one whose library is missing is left out."""
        for name in self.settings.peers:
            child = self._child(name)
            if "missing" in child.facts:
                self.left_out.append(child.facts["missing"])
                self.progress.note(child.facts["missing"])
                child.close()
            else:
                self.children[name], self.contenders[name] = child, child.facts

    def _child(self, name: str) -> Child:
        threads = self.settings.threads
        return Child(name, "worker", name, str(threads), threads=threads)

    def run(self, case: Case, path: Path) -> None:
        """Time one case: prepare all contenders, take turns, then look at the memory of each."""
        self.progress.say(f"{case.name}: getting ready")
        problem.make(case).save(path)
        growing = case.growth is not None
        names = [name for name in self.children if (CONTENDERS[name].grows if growing else CONTENDERS[name].usual)]
        ready = {name: self._prepare(name, case, path) for name in names}
        samples: dict[tuple[str, str], list[list[int]]] = {
            (operation, name): [] for operation in case.operations for name in names if operation in ready[name]
        }
        self.progress.step()
        for turn in range(self.settings.rounds):
            self.progress.say(f"{case.name}: round {turn + 1} of {self.settings.rounds}")
            for operation, name in samples if turn % 2 == 0 else reversed(samples):
                samples[operation, name].append(self._time(name, case, operation, turn, ready[name][operation]))
            self.progress.step()
        self.progress.say(f"{case.name}: memory")
        timed = [key for key, rounds in samples.items() if any(rounds)]
        memory: dict[tuple[str, str], int | None] = dict.fromkeys(timed)
        if self.settings.memory:
            with ThreadPoolExecutor(self.settings.threads) as pool:  # nothing is timed here
                memory |= zip(timed, pool.map(partial(self._memory, case, path), timed), strict=True)
        for operation, name in timed:
            facts = {"case": case.name, "operation": operation, "contender": name}
            facts |= statistics_of(samples[operation, name]) | {"error": ready[name][operation]["error"]}
            self.results.append(facts | {"temporary_bytes": memory[operation, name]})
        self.progress.step()

    def _prepare(self, name: str, case: Case, path: Path) -> dict[str, Any]:
        """Ask a contender what it offers for the case: error and time of one call, by operation."""
        try:
            if self.children[name].ended:  # an earlier case was too much for it
                self.children[name].close()
                self.children[name] = self._child(name)
            answer = self.children[name].ask("prepare", case=asdict(case), problem=str(path))
        except ChildError as error:
            self._fail(case, error)
            return {}
        for failure in answer["failures"]:
            self._fail(case, failure)
        self.contenders[name].setdefault("threadpools", answer["threadpools"])
        if answer["remark"]:
            self.remarks.setdefault(name, {})[case.name] = answer["remark"]
        for operation, reason in answer["omitted"].items():
            self.omitted.append({"case": case.name, "operation": operation, "contender": name, "reason": reason})
        return answer["operations"]

    def _time(self, name: str, case: Case, operation: str, turn: int, check: dict[str, Any]) -> list[int]:
        """Nanoseconds of some calls in a row, after one that is not counted; none where they failed."""
        if "sample" in check:  # the call is slow, and its check is all the time that it gets
            return [check["sample"]] if turn == 0 else []
        seconds, estimate = self.settings.seconds, check["estimate"]
        calls = max(1, min(int(seconds / estimate) - 1, MOST_CALLS))
        time.sleep(PAUSE)
        try:
            return self.children[name].ask("time", operation=operation, calls=calls, warmup=estimate < 4 * seconds)
        except ChildError as error:
            self._fail(case, error)
            return []

    def _memory(self, case: Case, path: Path, key: tuple[str, str]) -> int | None:
        """Temporary memory of a first call, in a process of its own; None where it cannot be seen."""
        operation, name = key
        child = self._child(name)
        try:
            return child.ask("memory", case=asdict(case), problem=str(path), operation=operation)
        except ChildError as error:
            self._fail(case, error)
            return None
        finally:
            child.close()

    def _fail(self, case: Case, error: ChildError | str) -> None:
        """Say and remember that a contender failed; the others go on."""
        failure = f"{case.name}: {error}"
        if failure not in self.failures:
            self.failures.append(failure)
            self.progress.note(failure)


def measure(settings: Settings) -> dict[str, Any]:
    """Run the suite; the result is ready for JSON."""
    suite, surroundings = Suite(settings), machine()
    try:
        suite.start()
        with tempfile.TemporaryDirectory() as folder:
            for case in settings.cases:
                suite.run(case, Path(folder) / "problem.npz")
    finally:
        suite.progress.end()
        for child in suite.children.values():
            child.close()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": settings.command,
        "machine": surroundings,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "contenders": suite.contenders,
        "left_out": suite.left_out,
        "failures": suite.failures,
        "cases": {case.name: case.label for case in settings.cases if case.growth is None},
        "growth": {case.name: case.growth for case in settings.cases if case.growth is not None},
        "flops": {case.name: case.flops("forward") for case in settings.cases},
        "remarks": suite.remarks,
        "results": suite.results,
        "omitted": suite.omitted,
    }


def statistics_of(rounds: list[list[int]]) -> dict[str, Any]:
    """Median, quartiles and minimum in seconds over all calls, and the median of each round."""
    seconds = [sample / 1e9 for samples in rounds for sample in samples]
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    medians = [statistics.median(samples) / 1e9 for samples in rounds if samples]
    spread = {"median": median, "q1": q1, "q3": q3, "min": min(seconds)}
    return spread | {"calls": len(seconds), "medians_of_rounds": medians}
