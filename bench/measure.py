"""The parent process: asks one child per contender in turn, in rounds, so that all see the same weather."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import problem
from .cases import CASES, OPERATIONS
from .machine import machine

#: Seconds before each request in which the last child's threads fall asleep; OpenBLAS's spin for 2**26 clock ticks.
PAUSE = 0.05
#: Settings of the surroundings that must not reach the children.
FOREIGN = ("OPENBLAS_", "GOTO_", "OMP_", "GOMP_", "KMP_", "MKL_", "BLIS_", "XLA_", "JAX_", "NPROC")
#: Most calls in one request.
MOST_CALLS = 1000


@dataclass(frozen=True)
class Settings:
    """What to run, and for how long."""

    cases: tuple[str, ...]
    peers: tuple[str, ...]
    threads: int
    rounds: int
    #: Length of a contender's turn at one operation, warm-up included; a call that takes longer runs once.
    seconds: float

    @property
    def command(self) -> str:
        """The command that runs the same again."""
        lists = f"--cases {','.join(self.cases)} --peers {','.join(self.peers)}"
        return f"python -m bench {lists} --threads {self.threads} --rounds {self.rounds} --seconds {self.seconds:g}"


class ChildError(Exception):
    """A child answered that a request failed, or ended."""


class Child:
    """The process of one contender."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        for library in ("OPENBLAS", "OMP", "MKL"):
            environment[f"{library}_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        self.facts = self.ask("start")

    def ask(self, request: str, **arguments: Any) -> Any:
        """Wait for the answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps([request, arguments]), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            msg = f"{self.name}: its process ended with status {self.process.wait()}"
            raise ChildError(msg) from error
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """End the process, by the end of its input."""
        with suppress(BrokenPipeError), self.process:
            pass


class Suite:
    """The children that take part, and what has been found so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.children: dict[str, Child] = {}
        self.contenders: dict[str, Any] = {}
        self.left_out: list[str] = []
        self.failures: list[str] = []
        self.omitted: list[dict[str, str]] = []
        self.results: list[dict[str, Any]] = []

    def start(self) -> None:
        """Start a child for every contender; one whose library is missing is left out."""
        for name in self.settings.peers:
            child = Child(name, self.settings.threads)
            if "missing" in child.facts:
                self.left_out.append(child.facts["missing"])
                print(child.facts["missing"])
                child.close()
            else:
                self.children[name], self.contenders[name] = child, child.facts

    def run(self, case: str, path: Path, bar: tqdm) -> None:
        """Time one case: prepare all contenders, take turns, then look at the memory of each."""
        bar.set_description(f"{case}: getting ready")
        problem.make(CASES[case]).save(path)
        ready = {name: self._prepare(name, case, path) for name in self.children}
        samples: dict[tuple[str, str], list[list[int]]] = {
            (operation, name): [] for operation in OPERATIONS for name in ready if operation in ready[name]
        }
        bar.update()
        for turn in range(self.settings.rounds):
            bar.set_description(f"{case}: round {turn + 1} of {self.settings.rounds}")
            for operation, name in samples if turn % 2 == 0 else reversed(samples):
                samples[operation, name].append(self._time(name, case, operation, ready[name][operation]["estimate"]))
            bar.update()
        bar.set_description(f"{case}: memory")
        for (operation, name), rounds in samples.items():
            if any(rounds):
                facts = {"case": case, "operation": operation, "contender": name, **statistics_of(rounds)}
                facts["error"] = ready[name][operation]["error"]
                self.results.append(facts | {"temporary_bytes": self._memory(name, case, path, operation)})

    def _prepare(self, name: str, case: str, path: Path) -> dict[str, Any]:
        """Ask a contender what it offers for the case: error and time of one call, by operation."""
        try:
            if self.children[name].process.poll() is not None:  # an earlier case was too much for it
                self.children[name].close()
                self.children[name] = Child(name, self.settings.threads)
            answer = self.children[name].ask("prepare", case=case, problem=str(path))
        except ChildError as error:
            self._fail(case, error)
            return {}
        for failure in answer["failures"]:
            self._fail(case, failure)
        self.contenders[name].setdefault("threadpools", answer["threadpools"])
        for operation, reason in answer["omitted"].items():
            self.omitted.append({"case": case, "operation": operation, "contender": name, "reason": reason})
        return answer["operations"]

    def _time(self, name: str, case: str, operation: str, estimate: float) -> list[int]:
        """Nanoseconds of some calls in a row, after one that is not counted; none where they failed."""
        seconds = self.settings.seconds
        calls = max(1, min(int(seconds / estimate) - 1, MOST_CALLS))
        time.sleep(PAUSE)
        try:
            return self.children[name].ask("time", operation=operation, calls=calls, warmup=estimate < 4 * seconds)
        except ChildError as error:
            self._fail(case, error)
            return []

    def _memory(self, name: str, case: str, path: Path, operation: str) -> int | None:
        """Temporary memory of a first call, in a process of its own; None where it cannot be seen."""
        if not self.contenders[name]["memory"]:
            return None
        child = Child(name, self.settings.threads)
        try:
            return child.ask("memory", case=case, problem=str(path), operation=operation)
        except ChildError as error:
            self._fail(case, error)
            return None
        finally:
            child.close()

    def _fail(self, case: str, error: ChildError | str) -> None:
        """Say and remember that a contender failed; the others go on."""
        failure = f"{case}: {error}"
        if failure not in self.failures:
            self.failures.append(failure)
            tqdm.write(failure)


def measure(settings: Settings) -> dict[str, Any]:
    """Run the suite; the result is ready for JSON."""
    suite, surroundings = Suite(settings), machine()
    try:
        suite.start()
        rounds = len(settings.cases) * (settings.rounds + 1)
        with tempfile.TemporaryDirectory() as folder, tqdm(total=rounds, unit="round") as bar:
            for case in settings.cases:
                suite.run(case, Path(folder) / "problem.npz", bar)
    finally:
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
        "cases": {name: CASES[name].label for name in settings.cases},
        "flops": {name: CASES[name].flops for name in settings.cases},
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
