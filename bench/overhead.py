"""What a call costs beside its arithmetic. ``python -m bench.overhead`` writes a table and its JSON.

The smallest case of the suite, by xconv's functions, by the methods of a plan, and by hand: the NumPy operations that
xconv ends in, on memory and views that were made before. What is left is the time for looking at the arguments, finding
the plan, and walking down to NumPy. Each has a process of its own, and they take turns. Where there is a GPU, or a CUDA
driver without one, as `--driver` brings it, the calls of `bench.launches` on CuPy arrays follow.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import launches
from .child import Child, serve
from .machine import machine
from .measure import MOST_CALLS, PAUSE, statistics_of
from .text import markdown, number
from .worker import limit_cores, timed

CONTENDERS = ("by hand", "function", "plan")
#: The process of the calls on CuPy arrays.
CUPY = "CuPy"
OPERATIONS = ("forward", "input gradient", "weight gradient")
#: The blog post's example: images (n, c, height, width), filters of 3x3, padding 1.
IMAGES, FILTERS = (5, 1, 10, 10), (20, 1, 3, 3)


def operands() -> tuple[Any, Any, Any]:
    """x, w and dy, in float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = (IMAGES, FILTERS, (IMAGES[0], FILTERS[0], *IMAGES[2:]))
    x, w, dy = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, w, dy


def by_function() -> dict[str, Callable[[], Any]]:
    import xconv

    x, w, dy = operands()
    return {
        "forward": lambda: xconv.conv(x, w, padding=1),
        "input gradient": lambda: xconv.conv_input_grad(dy, w, IMAGES, padding=1),
        "weight gradient": lambda: xconv.conv_weight_grad(dy, x, FILTERS, padding=1),
    }


def by_plan() -> dict[str, Callable[[], Any]]:
    import xconv

    x, w, dy = operands()
    plan = xconv.plan(x, w, padding=1)
    return {
        "forward": lambda: plan.conv(x, w),
        "input gradient": lambda: plan.input_grad(dy, w),
        "weight gradient": lambda: plan.weight_grad(dy, x),
    }


def by_hand() -> dict[str, Callable[[], Any]]:
    import numpy as np

    x, w, dy = operands()
    (n, _, *size), f = IMAGES, FILTERS[0]
    padded = np.zeros((n, *(length + 2 for length in size)), np.float32)
    seen = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))  # (n, 3, 3, *size)
    windows = seen.transpose(1, 2, 0, 3, 4)
    cols = np.empty(windows.shape, np.float32)
    products, spread = np.empty((f, n, *size), np.float32), np.empty((f, n, *size), np.float32)
    taps = [(tap, padded[:, tap[0] : tap[0] + size[0], tap[1] : tap[1] + size[1]]) for tap in np.ndindex(3, 3)]
    columns, matrix = cols.reshape(9, -1), w.reshape(f, 9)

    def forward() -> Any:
        padded.fill(0)
        padded[:, 1:-1, 1:-1] = x[:, 0]
        cols[...] = windows
        np.matmul(matrix, columns, out=products.reshape(f, -1))
        y = np.empty_like(dy)
        y[...] = products.swapaxes(0, 1)
        return y

    def input_gradient() -> Any:
        spread[...] = dy.swapaxes(0, 1)
        np.matmul(matrix.T, spread.reshape(f, -1), out=columns)
        padded.fill(0)
        for tap, place in taps:
            np.add(place, cols[tap], out=place)
        return padded[:, None, 1:-1, 1:-1].copy()

    def weight_gradient() -> Any:
        padded.fill(0)
        padded[:, 1:-1, 1:-1] = x[:, 0]
        cols[...] = windows
        spread[...] = dy.swapaxes(0, 1)
        return np.matmul(spread.reshape(f, -1), columns.T).reshape(FILTERS)

    return {"forward": forward, "input gradient": input_gradient, "weight gradient": weight_gradient}


WAYS = {"function": by_function, "plan": by_plan, "by hand": by_hand}


class Worker:
    """One way to make the calls."""

    def __init__(self, name: str) -> None:
        self.calls = WAYS[name]()
        self.requests = {"start": dict, "results": self.results, "time": self.time}

    def results(self) -> list[Any]:
        return [call().tolist() for call in self.calls.values()]

    def time(self, operation: str, calls: int) -> list[int]:
        """Nanoseconds of each of some calls, after as many that are not counted."""
        timed(self.calls[operation], calls)
        return timed(self.calls[operation], calls)


def measure(rounds: int, *, driver: bool = False) -> dict[str, Any]:
    import numpy as np

    surroundings = machine()
    children = {name: Child(name, "overhead", "--child", name, threads=1) for name in CONTENDERS}
    samples: dict[tuple[str, str], list[list[int]]] = {(o, name): [] for o in OPERATIONS for name in CONTENDERS}
    try:
        results = {name: child.ask("results") for name, child in children.items()}
        for name, found in results.items():
            for one, other in zip(found, results["by hand"], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)
        for turn in range(rounds):
            for operation, name in samples if turn % 2 == 0 else reversed(samples):
                time.sleep(PAUSE)
                samples[operation, name].append(children[name].ask("time", operation=operation, calls=MOST_CALLS))
    finally:
        for child in children.values():
            child.close()
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": surroundings,
        "rounds": rounds,
        "results": [{"operation": o, "contender": n} | statistics_of(found) for (o, n), found in samples.items()],
    }
    return found | on_cupy(rounds, driver=driver)


def on_cupy(rounds: int, *, driver: bool) -> dict[str, Any]:
    """The calls on CuPy arrays under "cupy"; nothing where there is neither a device nor a driver."""
    child = Child(CUPY, "overhead", "--child", CUPY, *["--driver"] * driver, threads=1)
    try:
        if "missing" in child.facts:
            return {}
        samples: dict[tuple[str, str], list[list[int]]] = {
            (operation, way): [] for operation in child.facts["rows"] for way in launches.WAYS
        }
        for turn in range(rounds):
            for operation, way in samples if turn % 2 == 0 else reversed(samples):
                found = child.ask("time", operation=operation, way=way, calls=MOST_CALLS)
                samples[operation, way].append(found)
    finally:
        child.close()
    results = [{"operation": o, "contender": way} | statistics_of(found) for (o, way), found in samples.items()]
    return {"cupy": child.facts | {"results": results}}


def install_driver() -> None:
    """Put the tests' driver in the place of CuPy's own: it takes every call, and no kernel computes anything."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from kernels.driver import install

    install()


def numpy_beside_cupy() -> dict[str, launches.Row]:
    """The forward pass on NumPy arrays, to be timed where CuPy is."""
    return {"forward of NumPy arrays": launches.Row(by_function()["forward"], by_hand()["forward"])}


def table(found: dict[str, Any]) -> str:
    """The run as Markdown."""
    medians = {(r["operation"], r["contender"]): 1e6 * r["median"] for r in found["results"]}
    rows = []
    for operation in OPERATIONS:
        hand, function, plan = (medians[operation, name] for name in CONTENDERS)
        rows.append([operation, *map(number, (hand, function, plan, function - hand, plan - hand))])
    head = ["operation", "by hand µs", "function µs", "plan µs", "overhead of the function µs", "of the plan µs"]
    facts = found["machine"]
    cupy = f"\n{launches.table(found['cupy'])}" if "cupy" in found else ""
    command = "python -m bench.overhead" + " --driver" * (cupy != "" and not found["cupy"]["computes"])
    return f"""# Overhead of a small call

{found["date"]}, by `{command}`: {"x".join(map(str, IMAGES))} images, {"x".join(map(str, FILTERS))}
filters, padding 1, float32, one thread; medians over {found["rounds"]} rounds of {MOST_CALLS} calls.

- {facts["cpu"]}, {facts["cores"]} cores; {facts["os"]}; Python {facts["python"]}
- load of the machine at the start: {facts["load"]}

By hand are the NumPy operations that a call ends in, on memory and views made before. The rest is overhead: to look at
the arguments, to find the plan, and to walk down to NumPy.

{markdown(head, rows, left=1)}
{cupy}"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description="Time a small call's overhead.")
    parser.add_argument("--rounds", type=int, default=10, help="how often each has its turn (default: 10)")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    parser.add_argument("--driver", action="store_true", help="give CuPy a CUDA driver without a device (needs gcc)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        limit_cores(1)
        if arguments.driver:
            install_driver()
        worker = launches.Launches(numpy_beside_cupy()) if arguments.child == CUPY else Worker(arguments.child)
        serve(worker.requests)
        return 0
    found = measure(arguments.rounds, driver=arguments.driver)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "overhead.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.output / "overhead.md").write_text(table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
