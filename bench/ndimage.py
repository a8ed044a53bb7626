"""Filters of images: xconv against scipy.ndimage. ``python -m bench.ndimage`` writes a table and its JSON.

Both filter the same stacks, each in a process of its own, in turns. Every result is compared with that of scipy.ndimage
in float64 before it is timed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .child import Child, serve
from .machine import machine
from .measure import MOST_CALLS, PAUSE, statistics_of
from .progress import Progress
from .text import markdown, number
from .worker import limit_cores, threadpools, timed

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CONTENDERS = ("scipy.ndimage", "xconv")


class Case(NamedTuple):
    """A filter, the images ``(n, *size)`` or ``(height, width)`` per kernel that it gets, and their dtype."""

    what: str
    kind: str
    shape: tuple[int, ...]
    #: Taps of a side; of a Gaussian, from its sigma.
    taps: int
    dtype: str = "float32"
    #: How many kernels.
    bank: int = 1


CASES = {
    "correlate3": Case("correlate, 3x3", "dense", (16, 512, 512), 3),
    "correlate7": Case("correlate, 7x7", "dense", (16, 512, 512), 7),
    "correlate15": Case("correlate, 15x15", "dense", (16, 512, 512), 15),
    "correlate31": Case("correlate, 31x31", "dense", (4, 512, 512), 31),
    "double": Case("correlate, 7x7", "dense", (16, 512, 512), 7, "float64"),
    "bank": Case("correlate, 8 kernels of 5x5", "dense", (16, 256, 256), 5, bank=8),
    "gaussian": Case("gaussian_filter, sigma 2 (17 taps an axis)", "gaussian", (16, 512, 512), 17),
    "uniform": Case("uniform_filter, 5 an axis", "uniform", (16, 512, 512), 5),
    "volume": Case("gaussian_filter, sigma 2 (17 taps an axis)", "gaussian", (4, 64, 64, 64), 17),
    "one": Case("correlate, 3x3, one small image", "dense", (1, 64, 64), 3),
}


class Filters:
    """The two ways to filter a case, with the border "nearest"."""

    def __init__(self, case: Case) -> None:
        import numpy as np

        self.case, self.np = case, np
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=case.shape).astype(case.dtype)
        self.rank = self.images.ndim - 1
        self.kernels = rng.normal(size=(case.bank, *(case.taps,) * self.rank)).astype(case.dtype)

    @cached_property
    def taps(self) -> Any:
        """Taps of a separable filter."""
        if self.case.kind == "uniform":
            return self.np.full(self.case.taps, 1 / self.case.taps)
        half = self.case.taps // 2
        taps = self.np.exp(-0.5 * (self.np.arange(-half, half + 1) / (half / 4)) ** 2)
        return taps / taps.sum()

    def scipy(self, dtype: str) -> Callable[[], Any]:
        from scipy import ndimage

        images, kernels = self.images.astype(dtype), self.kernels.astype(dtype)
        if self.case.kind == "gaussian":
            sigma = (0, *(self.case.taps // 2 / 4,) * self.rank)
            return lambda: ndimage.gaussian_filter(images, sigma, mode="nearest")[:, None]
        if self.case.kind == "uniform":
            size = (1, *(self.case.taps,) * self.rank)
            return lambda: ndimage.uniform_filter(images, size, mode="nearest")[:, None]
        each = [kernel[None] for kernel in kernels]
        return lambda: self.np.stack([ndimage.correlate(images, k, mode="nearest") for k in each], axis=1)

    def xconv(self) -> Callable[[], Any]:
        import xconv

        options = {"padding": "same", "pad_mode": "edge"}
        x = self.images[:, None]
        if self.case.kind == "dense":
            w = self.kernels[:, None]
            return lambda: xconv.conv(x, w, **options)
        taps = self.taps.astype(self.case.dtype)
        ws = [taps.reshape(1, 1, *(-1 if i == axis else 1 for i in range(self.rank))) for axis in range(self.rank)]

        def separable() -> Any:
            y = x
            for w in ws:
                y = xconv.conv(y, w, **options)
            return y

        return separable


class Worker:
    """One contender, and the case that it has at hand."""

    def __init__(self, name: str) -> None:
        self.name, self.call = name, None
        self.requests = {"start": self.start, "prepare": self.prepare, "time": self.time}

    def start(self) -> dict[str, Any]:
        import numpy as np

        if self.name == "xconv":
            import xconv

            return {"versions": {"xconv": xconv.__version__, "numpy": np.__version__}}
        import scipy

        return {"versions": {"scipy": scipy.__version__, "numpy": np.__version__}}

    def prepare(self, case: str, reference: str) -> dict[str, Any]:
        """Make the call; its error and its time, with scipy.ndimage in float64 as the reference."""
        import numpy as np

        chosen = CASES[case]
        filters = Filters(chosen)
        path = Path(reference)
        if not path.exists():  # scipy.ndimage is asked first
            np.save(path, filters.scipy("float64")())
        self.call = filters.xconv() if self.name == "xconv" else filters.scipy(chosen.dtype)
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


def measure(names: list[str], threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    progress, surroundings, results = Progress(len(names) * (rounds + 1)), machine(), []
    children = {
        name: Child(name, "ndimage", "--child", name, "--threads", str(threads), threads=threads) for name in CONTENDERS
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
                    for name in CONTENDERS if turn % 2 == 0 else reversed(CONTENDERS):
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


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    results = {(r["case"], r["contender"]): r for r in found["results"]}
    rows = []
    for case in dict.fromkeys(name for name, _ in results):
        ours, theirs = results[case, "xconv"], results[case, "scipy.ndimage"]
        chosen = CASES[case]
        label = f"{'x'.join(map(str, chosen.shape))}, {chosen.dtype}"
        ratio, times = ours["median"] / theirs["median"], [_spread(ours), _spread(theirs)]
        rows.append([chosen.what, label, *times, number(ratio), f"{ours['error']:.0e}", f"{theirs['error']:.0e}"])
    head = ["filter", "images", "xconv ms", "scipy.ndimage ms", "ratio", "error of xconv", "of scipy.ndimage"]
    facts = found["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in facts["caches"].items())
    versions = ", ".join(f"{library} {version}" for library, version in found["versions"].items())
    return f"""# Image filters: timings

{found["date"]}, by `python -m bench.ndimage` in {found["rounds"]} rounds; xconv with {found["threads"]} threads,
scipy.ndimage has one.

- {facts["cpu"]}, {facts["cores"]} cores ({caches}); {facts["os"]}
- Python {facts["python"]}, {versions}
- load of the machine at the start: {facts["load"]}

Times are medians ± half the interquartile range. The ratio is xconv's time over that of scipy.ndimage: below 1, xconv
is faster. Errors are the largest against scipy.ndimage in float64, relative to the largest element. The border is
"nearest".

{markdown(head, rows, left=2)}
"""


def _spread(result: dict[str, Any]) -> str:
    return f"{number(1e3 * result['median'])} ± {number(1e3 * (result['q3'] - result['q1']) / 2)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ndimage", description="Time xconv and scipy.ndimage.")
    parser.add_argument("--cases", help=f"some of {','.join(CASES)}", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=2, help="for xconv (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each has its turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn (default: 0.3)")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        limit_cores(arguments.threads)
        serve(Worker(arguments.child).requests)
        return 0
    names = arguments.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(CASES)}")
    found = measure(names, arguments.threads, arguments.rounds, arguments.seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "ndimage.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.output / "ndimage.md").write_text(table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
