"""Is what `algorithm="auto"` chooses the fastest? ``python -m bench.planner`` writes a table, a plot and their JSON.

Random geometries, each of the three functions by every algorithm that can be forced, and by the planner's choice. All
take turns in one process, in laps; a time is the lower quartile of the laps, each by the median of its calls. An
algorithm whose first call takes too long is given up, and its process ended. With `--scipy` also beside scipy.signal.
"""

import argparse
import json
import statistics
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .beside_scipy import GEOMETRIES
from .cases import CONV
from .child import Child, ChildError
from .contenders import MissingError
from .geometries import Geometry, draw
from .machine import machine
from .planner_report import plot, ratio_of, summary, table
from .progress import Progress

#: A first call may take so many times as long as the best call so far, and so many seconds in any case.
HOPELESS, PATIENCE = 12, 0.25
#: The most seconds for the first call of the planner's own choice, and for compiling.
LIMIT = 60
#: Who takes at most so many times as long as the best has a few laps, and who is near has more.
FAR, FEW_LAPS, NEAR, CLOSE, LAPS = 5, 3, 2.5, 1.2, 7
#: Seconds of a turn in a lap, and its most calls.
TURN, MOST_CALLS = 0.01, 100
#: A ratio further from 1 than that may be noise, and is measured again.
DOUBT = 0.1


def lower_quartile(laps: list[float]) -> float:
    """What a call takes when nothing comes between, and no luck helps."""
    return statistics.quantiles(laps, n=4, method="inclusive")[0]


def algorithms(costs: dict[str, int]) -> list[str]:
    """Name what can be forced, the cheapest first; one way or another to run it, such as "gemm, reflected", cannot."""
    return list(dict.fromkeys(name.partition(",")[0] for name in costs))


class Suite:
    """The process that computes, and the means to replace it."""

    def __init__(self, backend: str, threads: int) -> None:
        self.backend, self.threads = backend, threads
        self.failures: list[str] = []
        self.child = self._child()

    def _child(self) -> Child:
        child = Child(self.backend, "planner_worker", self.backend, str(self.threads))
        if "missing" in child.facts:
            child.close()
            raise MissingError(child.facts["missing"])
        return child

    def close(self) -> None:
        self.child.close()

    def run(self, g: Geometry, function: str, *, beside_scipy: bool = False) -> dict[str, Any]:
        """Time a function of a geometry by the planner's choice and by every algorithm, or beside SciPy."""
        begun = g._asdict() | {"function": function}
        try:
            return begun | (self._beside_scipy if beside_scipy else self._timed)(g, function)
        except ChildError as error:
            self.failures.append(f"{g.label}, {function}: {error}")
            return begun | {"failed": str(error)}

    def _timed(self, g: Geometry, function: str) -> dict[str, Any]:
        plan = self._take_up(g, function)
        first, refused, given_up = {"auto": plan.pop("seconds")}, {}, {}
        for name in algorithms(plan["costs"]):
            try:
                answer = self._ask(LIMIT, "make", algorithm=name)
                limit = LIMIT if name == plan["chosen"] else max(PATIENCE, HOPELESS * min(first.values()))
                answer = answer or self._ask(limit, "first", algorithm=name)
            except ChildError as error:
                if self.child.ended:
                    given_up[name] = self.child.limit
                    self._take_up(g, function)
                else:
                    self.failures.append(f"{g.label}, {function}, {name}: {error}")
                continue
            if "refused" in answer:
                refused[name] = answer["refused"]
            else:
                first[name] = answer["seconds"]
        if len(first) == 1:
            msg = "no algorithm was timed beside the choice"
            raise ChildError(msg)
        seconds, laps = self._laps(first)
        return plan | {"seconds": seconds, "laps": laps, "refused": refused, "given_up": given_up}

    def _beside_scipy(self, g: Geometry, function: str) -> dict[str, Any]:
        plan = self._take_up(g, function, "beside_scipy")
        seconds, laps = self._laps(plan.pop("seconds"))
        return plan | {"seconds": seconds, "laps": laps}

    def _take_up(self, g: Geometry, function: str, request: str = "take_up") -> dict[str, Any]:
        if self.child.ended:
            self.child.close()
            self.child = self._child()
        return dict(self._ask(LIMIT, request, geometry=g._asdict(), function=function))

    def _laps(self, seconds: dict[str, float]) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Seconds of a call, in all and in each lap; those near the best have more laps, and doubtful ones again."""
        laps: dict[str, list[float]] = {}
        for within, count in ((FAR, FEW_LAPS), (NEAR, LAPS), (CLOSE, LAPS), (CLOSE, LAPS)):
            if within == CLOSE and abs(ratio_of(seconds) - 1) < DOUBT:
                break
            bound = within * min(seconds.values())
            some = {name: once for name, once in seconds.items() if once <= bound or name == "auto"}
            for name, found in self._turns(some, count).items():
                laps.setdefault(name, []).extend(found)
            seconds = seconds | {name: lower_quartile(found) for name, found in laps.items()}
        return seconds, laps

    def _turns(self, seconds: dict[str, float], laps: int) -> Any:
        calls = {name: max(1, min(int(TURN / once), MOST_CALLS)) for name, once in seconds.items()}
        return self._ask(None, "laps", calls=calls, laps=laps)

    def _ask(self, limit: float | None, request: str, **arguments: Any) -> Any:
        self.child.limit = limit
        return self.child.ask(request, **arguments)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all, and write what has been found after every geometry, where that is asked for."""
    chosen = f"--backend {arguments.backend} --geometries {arguments.geometries} --seed {arguments.seed}"
    surroundings, suite = machine(), Suite(arguments.backend, arguments.threads)
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m bench.planner {chosen} --threads {arguments.threads}{' --scipy' * arguments.scipy}",
        "machine": surroundings,
        "backend": arguments.backend,
        "threads": arguments.threads,
        "versions": suite.child.facts["versions"],
        "failures": suite.failures,
        "results": [],
        "scipy": [],
    }
    parts = {"results": draw(arguments.geometries, arguments.seed), "scipy": GEOMETRIES if arguments.scipy else ()}
    progress = Progress(sum(map(len, parts.values())))
    try:
        for part, geometries in parts.items():
            for g in geometries:
                progress.say(g.label)
                found[part] += [suite.run(g, function, beside_scipy=part == "scipy") for function in CONV]
                if arguments.raw:
                    write(found, arguments.raw, laps=True)
                progress.step()
    finally:
        progress.end()
        suite.close()
    return found


def write(found: dict[str, Any], path: Path, *, laps: bool = False) -> None:
    """Write JSON with a line for every result, with all laps or without."""
    texts = []
    for name, value in found.items():
        text = json.dumps(value, indent=1)
        if name in {"results", "scipy"}:
            kept = ({key: value for key, value in one.items() if laps or key != "laps"} for one in value)
            text = "[\n" + ",\n".join(map(json.dumps, kept)) + "\n]"
        texts.append(f"{json.dumps(name)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(texts) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.planner", description="Judge the planner's choices.")
    parser.add_argument("--backend", choices=("numpy", "torch", "jax"), default="numpy", help="array library")
    parser.add_argument("--geometries", type=int, help="how many (default: 200; with PyTorch and JAX 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="of every algorithm (default: 2)")
    parser.add_argument("--scipy", action="store_true", help="also beside loops of scipy.signal, with NumPy")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    parser.add_argument("--raw", type=Path, metavar="JSON", help="file for the times of all laps, written as they come")
    parser.add_argument("--report", type=Path, metavar="JSON", help="measure nothing; table and plot of such a file")
    arguments = parser.parse_args()
    if arguments.scipy and arguments.backend != "numpy":
        parser.error("--scipy goes with NumPy")
    if arguments.geometries is None:
        arguments.geometries = 200 if arguments.backend == "numpy" else 30
    if arguments.report:
        found = json.loads(arguments.report.read_text())
    else:
        try:
            found = measure(arguments)
        except MissingError as error:
            sys.exit(str(error))
    path = arguments.output / ("planner" if found["backend"] == "numpy" else f"planner-{found['backend']}")
    write(found, path.with_suffix(".json"))
    path.with_suffix(".md").write_text(table(found))
    with suppress(ModuleNotFoundError):
        plot(found, path.with_suffix(".png"))
    print(summary(found))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
