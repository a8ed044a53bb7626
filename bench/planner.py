"""Is what `algorithm="auto"` chooses the fastest? ``python -m bench.planner`` writes a table, a plot and their JSON.

Random geometries, each of the three functions by every algorithm that can be forced, and by the planner's choice. All
take turns in one process, in laps; a time is that of the best lap, by the median of its calls. An algorithm whose first
call takes too long is given up, and its process ended with it.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .child import Child, ChildError
from .geometries import Geometry, draw
from .machine import machine
from .progress import Progress

FUNCTIONS = ("forward", "input_grad", "weight_grad")
#: A first call may take so many times as long as the best call so far, and so many seconds in any case.
HOPELESS, PATIENCE = 12, 0.25
#: The most seconds for the planner's own choice and for compiling, and for all else.
LIMIT = 60
#: Who takes at most so many times as long as the best has a few laps, and who is near has more.
FAR, FEW_LAPS, NEAR, LAPS = 5, 3, 2.5, 7
#: Seconds of a turn in a lap, and its most calls.
TURN, MOST_CALLS = 0.01, 100
#: A ratio further from 1 than that may be noise, and is measured in as many laps again, up to so many times.
DOUBT, AGAIN = 0.1, 2


def ratio(seconds: dict[str, float]) -> float:
    """The time by the planner's choice over that of the best algorithm that was forced."""
    return seconds["auto"] / min(once for name, once in seconds.items() if name != "auto")


class Suite:
    """The process that computes, and the means to replace it."""

    def __init__(self, backend: str, threads: int) -> None:
        self.backend, self.threads = backend, threads
        self.failures: list[str] = []
        self.child = self._child()

    def _child(self) -> Child:
        return Child(self.backend, "planner_worker", self.backend, str(self.threads))

    def run(self, g: Geometry, function: str) -> dict[str, Any]:
        """Time a function of a geometry by the planner's choice and by every algorithm."""
        begun = g._asdict() | {"function": function}
        try:
            return begun | self._timed(g, function)
        except ChildError as error:
            self.failures.append(f"{g.label}, {function}: {error}")
            return begun | {"failed": str(error)}

    def _timed(self, g: Geometry, function: str) -> dict[str, Any]:
        plan = self._take_up(g, function)
        first, refused, given_up = {"auto": plan.pop("seconds")}, {}, {}
        for name in plan["costs"]:
            try:
                answer = self._ask(LIMIT, "make", algorithm=name)
                limit = max(PATIENCE, HOPELESS * min(first.values()))
                answer = answer or self._ask(limit, "first", algorithm=name)
            except ChildError:
                if not self.child.ended:
                    raise
                given_up[name] = self.child.limit
                self._take_up(g, function)
                continue
            if "refused" in answer:
                refused[name] = answer["refused"]
            else:
                first[name] = answer["seconds"]
        seconds, laps = self._laps(first)
        return plan | {"seconds": seconds, "laps": laps, "refused": refused, "given_up": given_up}

    def _take_up(self, g: Geometry, function: str) -> Any:
        if self.child.ended:
            self.child.close()
            self.child = self._child()
        return self._ask(LIMIT, "take_up", geometry=g._asdict(), function=function)

    def _laps(self, seconds: dict[str, float]) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Seconds of a call, at best and in each lap; those near the best have more laps, and doubtful ones again."""
        laps: dict[str, list[float]] = {}
        for within, count in ((FAR, FEW_LAPS), *((NEAR, LAPS),) * (1 + AGAIN)):
            best = min(seconds.values())
            near = {name: once for name, once in seconds.items() if once <= within * best}
            for name, found in self._turns(near, count).items():
                laps.setdefault(name, []).extend(found)
            seconds = seconds | {name: min(found) for name, found in laps.items()}
            if within == NEAR and not DOUBT < abs(ratio(seconds) - 1) < NEAR - 1:
                break
        return seconds, laps

    def _turns(self, seconds: dict[str, float], laps: int) -> Any:
        calls = {name: max(1, min(int(TURN / once), MOST_CALLS)) for name, once in seconds.items()}
        return self._ask(LIMIT, "laps", calls=calls, laps=laps)

    def _ask(self, limit: float, request: str, **arguments: Any) -> Any:
        self.child.limit = limit
        return self.child.ask(request, **arguments)


def measure(arguments: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time all; what has been found is saved after every geometry."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m bench.planner --backend {arguments.backend} --geometries {arguments.geometries} "
        f"--seed {arguments.seed} --threads {arguments.threads}",
        "machine": machine(),
        "backend": arguments.backend,
        "threads": arguments.threads,
    }
    suite, progress = Suite(arguments.backend, arguments.threads), Progress(arguments.geometries)
    found |= {"versions": suite.child.facts.get("versions"), "results": [], "failures": suite.failures}
    try:
        for g in draw(arguments.geometries, arguments.seed):
            progress.say(g.label)
            found["results"] += [suite.run(g, function) for function in FUNCTIONS]
            save(found)
            progress.step()
    finally:
        progress.end()
        suite.child.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.planner", description="Judge the planner's choices.")
    parser.add_argument("--backend", choices=("numpy", "torch", "jax"), default="numpy", help="array library")
    parser.add_argument("--geometries", type=int, help="how many (default: 200, with PyTorch and JAX 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="of every algorithm (default: 2)")
    parser.add_argument("--raw", type=Path, metavar="JSON", required=True, help="file for every time, as they come")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    arguments = parser.parse_args()
    arguments.geometries = arguments.geometries or (200 if arguments.backend == "numpy" else 30)
    measure(arguments, lambda found: save(found, arguments.raw))
    return 0


def save(found: dict[str, Any], path: Path) -> None:
    """Write JSON with a line for every result."""
    lines = ",\n".join(json.dumps(result) for result in found["results"])
    head = json.dumps({name: value for name, value in found.items() if name != "results"}, indent=1)
    path.write_text(f'{head[:-2]},\n "results": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    sys.exit(main())
