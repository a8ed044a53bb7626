"""The run on a GPU: a child per library, whose contenders take turns, job by job; what is found is written as it comes.

What matters most comes first: all jobs for xconv and the other libraries, then those of convolutions again for each
algorithm of xconv. When the time is over, no contender gets ready any more, and no round begins.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from .cases import CONV, GPU_CASES, Job, gpu_jobs
from .child import Child, ChildError
from .contenders import MissingError
from .devices import DEVICES
from .machine import machine, nvidia_driver
from .progress import Progress

#: Whose child describes the device, and whose absence ends the run.
OURS = "xconv"
#: Seconds for an answer; a process that takes longer is replaced.
LIMIT = 60
#: A contender that has spoiled its process so often by an operation takes no further part in that.
FAULTS = 2


def is_algorithm(name: str) -> bool:
    """Whether a contender is xconv by one algorithm."""
    return name.startswith(f"{OURS}-")


def text_of(job: Job) -> str:
    """Name a job in the progress and in failures."""
    return f"{job.case}, {job.operation}, {job.precision}"


class Step(NamedTuple):
    """A job, and who takes part in it."""

    job: Job
    contenders: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """What to run, and for how long."""

    cases: tuple[str, ...]
    precisions: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: int
    minutes: float

    @property
    def contenders(self) -> tuple[str, ...]:
        """Everyone, xconv first."""
        return tuple(dict.fromkeys((OURS, *self.peers)))

    @property
    def jobs(self) -> list[Job]:
        return gpu_jobs(self.cases, self.precisions)

    @property
    def steps(self) -> list[Step]:
        """Every job for the libraries first, then for every algorithm of xconv beside the choice of xconv itself."""
        libraries = tuple(name for name in self.contenders if not is_algorithm(name))
        algorithms = tuple(name for name in self.contenders if is_algorithm(name))
        steps = [Step(job, libraries) for job in self.jobs]
        if algorithms:
            steps += [Step(job, (OURS, *algorithms)) for job in self.jobs if job.operation in CONV]
        return steps

    @property
    def command(self) -> str:
        """The command that runs the same again."""
        lists = (
            f"--cases {','.join(self.cases)} --precisions {','.join(self.precisions)} --peers {','.join(self.peers)}"
        )
        return f"python -m bench --gpu {lists} --rounds {self.rounds} --minutes {self.minutes:g}"


def launch(names: Sequence[str]) -> Any:
    """Start the child of some contenders, which are of one library."""
    return Child(names[0], "gpu_worker", *names, limit=LIMIT)


class Suite:
    """The children that take part, and what has been found so far, ready for JSON."""

    def __init__(self, settings: Settings, launch: Callable[[Sequence[str]], Any] = launch) -> None:
        self.settings, self.launch = settings, launch
        self.end = time.monotonic() + 60 * settings.minutes
        #: By library: the names of its contenders, and their process.
        self.names: dict[str, list[str]] = {}
        self.children: dict[str, Any] = {}
        self.faults: Counter[tuple[str, str]] = Counter()
        self.progress = Progress(len(settings.steps))
        self.found: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": settings.command,
            "host": machine(),
            "rounds": settings.rounds,
            "contenders": {},
            "left_out": [],
            "failures": [],
            "refused": [],
            "not_reached": [],
            "peaks": {},
            "cases": {name: GPU_CASES[name].label for name in settings.cases},
            "results": [],
        }

    def start(self) -> None:
        """Start all children at once; MissingError where there is no device for ours."""
        self.progress.say("starting")
        for name in self.settings.contenders:
            self.names.setdefault(DEVICES[name].library, []).append(name)
        with ThreadPoolExecutor(len(self.names)) as pool:
            starts = {library: pool.submit(self.launch, names) for library, names in self.names.items()}
        missing: dict[str, str] = {}
        for library, start in starts.items():
            try:
                child = self.children[library] = start.result()
            except ChildError as error:
                missing |= dict.fromkeys(self.names[library], str(error))
                continue
            missing |= child.facts["missing"]
            if not child.facts["versions"]:
                self.children.pop(library).close()
            for name, versions in child.facts["versions"].items():
                self.found["contenders"][name] = {"versions": versions}
            if OURS in child.facts["versions"]:
                self.found["machine"] = child.facts["machine"] | nvidia_driver()
        if OURS in missing:
            raise MissingError(missing[OURS])
        for name, reason in missing.items():
            self._leave_out(name, reason)

    def _leave_out(self, name: str, reason: str) -> None:
        """Go on without a contender."""
        self.names[DEVICES[name].library].remove(name)
        self.found["left_out"].append(f"{name} is left out: {reason}")
        self.progress.note(self.found["left_out"][-1])

    def peaks(self) -> None:
        """Measure the rates of a copy and of a matrix product: the best of any library."""
        for kind in ("copy", *self.settings.precisions):
            self.progress.say(f"peak rate: {kind}")
            firsts = [names[0] for names in self.names.values() if names]
            rates = [self._ask(name, "rate", kind=kind) for name in firsts]
            self.found["peaks"][kind] = max((rate for rate in rates if rate), default=None)
            for name in firsts:
                self._ask(name, "free")

    def run(self, step: Step) -> None:
        """Prepare a job with its contenders, then let them take turns."""
        ready = self._ready(step)
        among = any(map(is_algorithm, step.contenders))
        if any(map(is_algorithm, ready)) or not among:
            spreads = {name: statistics_of(turns) for name, turns in self._turns(step.job, list(ready)).items()}
            beside = {"beside": spreads[OURS]["median"] if OURS in spreads else None} if among else {}
            for name, spread in spreads.items():
                if is_algorithm(name) == among:  # among its algorithms, xconv is there for comparison
                    result = {**step.job._asdict(), "contender": name} | spread | ready[name] | beside
                    self.found["results"].append(result)
        self.progress.step()

    def _ready(self, step: Step) -> dict[str, dict[str, Any]]:
        """What the contenders that can serve a job say of it, as far as the time suffices."""
        ready: dict[str, dict[str, Any]] = {}
        names = [name for name in step.contenders if self._takes_part(name, step.job.operation)]
        for i, name in enumerate(names):
            if time.monotonic() > self.end:
                self.found["not_reached"].append({**step.job._asdict(), "contenders": names[i:]})
                break
            self.progress.say(f"{text_of(step.job)}: {name} gets ready")
            answer = self._ask(name, "prepare", step.job)
            if answer is not None and "refused" in answer:
                refusal = {**step.job._asdict(), "contender": name, "reason": answer["refused"]}
                self.found["refused"].append(refusal)
            elif answer is not None and "omitted" not in answer:
                ready[name] = answer
        return ready

    def _turns(self, job: Job, names: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Time a job in rounds, in an order that is reversed from round to round; who fails is out."""
        turns: dict[str, list[dict[str, Any]]] = {}
        for turn in range(self.settings.rounds):
            if turn > 0 and time.monotonic() > self.end:
                break
            self.progress.say(f"{text_of(job)}: round {turn + 1} of {self.settings.rounds}")
            for name in names[:] if turn % 2 == 0 else names[::-1]:
                answer = self._ask(name, "time", job)
                if answer is None:
                    names.remove(name)
                else:
                    turns.setdefault(name, []).append(answer)
        return turns

    def _takes_part(self, name: str, operation: str) -> bool:
        library = DEVICES[name].library
        present = library in self.children and name in self.names[library]
        return present and self.faults[name, operation] < FAULTS

    def _ask(self, name: str, request: str, job: Job | None = None, **arguments: Any) -> Any:
        """Ask a contender's child; None where the request fails, which is remembered, and does not end the run."""
        library, of = DEVICES[name].library, {} if job is None else job._asdict()
        if library not in self.children:
            return None
        if job is not None:
            arguments |= {"contender": name, **of}
        try:
            return self.children[library].ask(request, **arguments)
        except ChildError as error:
            asked = " ".join((request, *(arguments.values() if job is None else ())))
            reason = str(error).partition("\n")[0]
            self.found["failures"].append({"contender": name, "request": asked, **of, "reason": reason})
            self.progress.note(f"{text_of(job) if job else asked}, {name}: {reason}")
        try:
            self.children[library].ask("free")
        except ChildError:  # a fault on the device spoils the process
            self.children.pop(library).close()
            if job is not None:
                self.faults[name, job.operation] += 1
            self._replace(library)
        return None

    def _replace(self, library: str) -> None:
        try:
            self.children[library] = self.launch(self.names[library])
        except ChildError as error:
            for name in list(self.names[library]):
                self._leave_out(name, str(error))


def measure(
    settings: Settings,
    save: Callable[[dict[str, Any]], None],
    launch: Callable[[Sequence[str]], Any] = launch,
) -> None:
    """Run the suite, and hand out all that has been found after each job; the last time at the end."""
    suite, begin = Suite(settings, launch), time.monotonic()
    try:
        suite.start()
        suite.peaks()
        for step in settings.steps:
            suite.run(step)
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
    steps = Counter(step.contenders for step in settings.steps)
    lines += [f"{count} jobs for {', '.join(names)}, {settings.rounds} rounds" for names, count in steps.items()]
    return "\n".join(lines)


def slug(device: str) -> str:
    """Name files by a device: "NVIDIA H100 80GB HBM3" is "nvidia-h100-80gb-hbm3"."""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


def file_of(folder: Path, found: dict[str, Any]) -> Path:
    """Path of the results on a device."""
    return folder / f"gpu-{slug(found['machine']['device'])}.json"
