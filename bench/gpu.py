"""The run on a GPU: one child per contender, asked in turn, job by job; what is found is written as it comes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cases import GPU_CASES, Job, gpu_jobs
from .child import Child, ChildError
from .contenders import MissingError
from .machine import machine, nvidia_driver
from .progress import Progress

#: Whose child describes the device, and whose absence ends the run.
OURS = "xconv"


@dataclass(frozen=True)
class Settings:
    """What to run, and for how long."""

    cases: tuple[str, ...]
    precisions: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: int
    minutes: float

    @property
    def jobs(self) -> list[Job]:
        return gpu_jobs(self.cases, self.precisions)

    @property
    def command(self) -> str:
        """The command that runs the same again."""
        lists = (
            f"--cases {','.join(self.cases)} --precisions {','.join(self.precisions)} --peers {','.join(self.peers)}"
        )
        return f"python -m bench --gpu {lists} --rounds {self.rounds} --minutes {self.minutes:g}"


def launch(name: str) -> Any:
    """Start the child of a contender."""
    return Child(name, "gpu_worker", name)


class Suite:
    """The children that take part, and what has been found so far, ready for JSON."""

    def __init__(self, settings: Settings, launch: Callable[[str], Any] = launch) -> None:
        self.settings, self.launch = settings, launch
        self.children: dict[str, Any] = {}
        self.progress = Progress(len(settings.jobs))
        self.found: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": settings.command,
            "host": machine(),
            "rounds": settings.rounds,
            "contenders": {},
            "left_out": [],
            "failures": [],
            "not_reached": [],
            "peaks": {},
            "cases": {name: GPU_CASES[name].label for name in settings.cases},
            "results": [],
        }

    def start(self) -> None:
        """Start a child for every contender; MissingError where there is no device for ours."""
        self.progress.say("starting")
        for name in (OURS, *(peer for peer in self.settings.peers if peer != OURS)):
            child = self.launch(name)
            missing = child.facts.get("missing")
            if missing is None:
                self.children[name] = child
                self.found["contenders"][name] = {"versions": child.facts["versions"]}
                if name == OURS:
                    self.found["machine"] = child.facts["machine"] | nvidia_driver()
                continue
            child.close()
            if name == OURS:
                raise MissingError(missing)
            self.found["left_out"].append(f"{name} is left out: {missing}")
            self.progress.note(self.found["left_out"][-1])

    def peaks(self) -> None:
        """Measure the rates of a copy and of a matrix product: the best of any contender."""
        for kind in ("copy", *self.settings.precisions):
            self.progress.say(f"peak rate: {kind}")
            rates = [self._ask(name, f"peak, {kind}", "rate", kind=kind) for name in self.children]
            self.found["peaks"][kind] = max((rate for rate in rates if rate), default=None)
        for name in self.children:
            self._ask(name, "peak", "free")

    def run(self, job: Job) -> None:
        """Prepare a job with every contender, then let them take turns."""
        text = f"{job.case}, {job.operation}, {job.precision}"
        ready: dict[str, dict[str, Any]] = {}
        for name in self.children:
            self.progress.say(f"{text}: {name} gets ready")
            answer = self._ask(name, text, "prepare", **job._asdict())
            if answer is not None and "omitted" not in answer:
                ready[name] = answer
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ready}
        for turn in range(self.settings.rounds):
            self.progress.say(f"{text}: round {turn + 1} of {self.settings.rounds}")
            for name in ready if turn % 2 == 0 else reversed(ready):
                answer = self._ask(name, text, "time")
                turns[name] += [] if answer is None else [answer]
        for name, facts in ready.items():
            if turns[name]:
                key = {**job._asdict(), "contender": name}
                self.found["results"].append(key | statistics_of(turns[name]) | facts)
        self.progress.step()

    def _ask(self, name: str, text: str, request: str, **arguments: Any) -> Any:
        """Ask a child; None where the request fails, which is remembered, and does not end the run."""
        try:
            return self.children[name].ask(request, **arguments)
        except ChildError as error:
            failure = f"{text}, {name}: {error}"
            self.found["failures"].append(failure)
            self.progress.note(failure)
        try:
            self.children[name].ask("free")
        except ChildError:  # a fault on the device spoils the process
            self.children[name].close()
            self.children[name] = self.launch(name)
        return None


def measure(settings: Settings, save: Callable[[dict[str, Any]], None], launch: Callable[[str], Any] = launch) -> None:
    """Run the suite, and hand out all that has been found after each job; the last time at the end."""
    suite, begin = Suite(settings, launch), time.monotonic()
    try:
        suite.start()
        suite.peaks()
        for job in settings.jobs:
            if time.monotonic() - begin > 60 * settings.minutes:
                suite.found["not_reached"].append(job._asdict())
                continue
            suite.run(job)
            save(suite.found)
        suite.found["seconds"] = round(time.monotonic() - begin)
        save(suite.found)
    finally:
        suite.progress.end()
        for child in suite.children.values():
            child.close()


def statistics_of(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles over the turns, in seconds; the least time in which the host issued a call."""
    seconds = [turn["seconds"] for turn in turns]
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    spread = {"median": median, "q1": q1, "q3": q3, "min": min(seconds)}
    return spread | {"host": min(turn["host"] for turn in turns), "calls": sum(turn["calls"] for turn in turns)}


def dry_run(settings: Settings) -> str:
    """List the jobs, and the bytes of each that must move."""
    lines = [
        f"{job.precision:<9} {job.case:<8} {job.operation:<12}"
        f"{GPU_CASES[job.case].flops(job.operation) / 1e9:9.2f} GFLOP, "
        f"{GPU_CASES[job.case].elements(job.operation) * (4 if job.precision in {'ieee', 'tf32'} else 2) / 1e6:8.1f} MB"
        for job in settings.jobs
    ]
    lines.append(f"{len(settings.jobs)} jobs for {', '.join(settings.peers)}, {settings.rounds} rounds")
    return "\n".join(lines)


def slug(device: str) -> str:
    """Name files by a device: "NVIDIA H100 80GB HBM3" is "nvidia-h100-80gb-hbm3"."""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


def file_of(folder: Path, found: dict[str, Any]) -> Path:
    """Path of the results on a device."""
    return folder / f"gpu-{slug(found['machine']['device'])}.json"
