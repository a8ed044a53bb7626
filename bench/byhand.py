"""xconv beside what one writes by hand: ``python -m bench.byhand`` writes a table, with one thread and with two.

The four lines of `bench.handwritten` know their shapes, and check nothing: a library must not be slower for being
general.
"""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from . import report
from .cases import CONV, OPERATIONS, Case
from .measure import Settings, add_options, measure
from .text import number

PEER = "by-hand"
#: xconv may take so many times as long.
GOAL = 1.05
_FIRST = (
    Case("1x1", (8, 256, 28, 28), (128, 256, 1, 1)),
    Case("1x1 deep", (8, 512, 28, 28), (128, 512, 1, 1)),
    Case("1x1 stride 2", (8, 256, 56, 56), (64, 256, 1, 1), stride=2),
    Case("patches of 4x4", (8, 64, 56, 56), (64, 64, 4, 4), stride=4),
    Case("patches of 16x16", (8, 3, 224, 224), (192, 3, 16, 16), stride=16),
    Case("3x3", (8, 64, 56, 56), (64, 64, 3, 3), padding=1),
    Case("3x3 few pixels", (4, 320, 12, 12), (256, 320, 3, 3), padding=1),
    Case("3x3 stride 2", (8, 64, 56, 56), (128, 64, 3, 3), stride=2, padding=1),
    Case("5x5 stride 2", (4, 48, 64, 64), (64, 48, 5, 5), stride=2, padding=2),
    Case("7x7 stride 2", (4, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    Case("3x3 in 4 groups", (4, 96, 40, 40), (96, 24, 3, 3), padding=1, groups=4),
    Case("3x3 depthwise", (8, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128),
    Case("1-D", (8, 32, 8000), (64, 32, 9), padding=4),
    Case("1-D stride 4", (8, 1, 64000), (64, 1, 16), stride=4),
)
CASES = {
    case.name: replace(case, operations=CONV)
    for first in _FIRST
    for case in (first, replace(first, name=f"{first.name}, last", channels_last=True))
}


def table(found: dict[str, Any]) -> str:
    """Write the runs as Markdown."""
    note = (
        f"“÷ {PEER}” is the time of xconv divided by that of the four lines in `bench/handwritten.py`: below 1, xconv "
        "is faster. “last” is with the channels last. The algorithm is that of the forward pass."
    )
    cases = "\n".join(f"- {name}: {label}" for name, label in found["runs"][0]["cases"].items())
    parts = []
    for run in found["runs"]:
        title = "Beside four lines: timings with one thread" if run["threads"] == 1 else "With more threads"
        parts += [report.heading(run, title), summary(run), report.beside(run, PEER)]
    return "\n\n".join([*parts, note, cases]) + "\n"


def summary(found: dict[str, Any]) -> str:
    """Say how far from the goal a run is, and name what is."""
    results = report.results_of(found)
    every = ((report.ratio(results, case, o, PEER), case, o) for case in found["cases"] for o in CONV)
    ratios = sorted((row for row in every if row[0] is not None), reverse=True)
    mean, count = report.geometric_mean(results, found["cases"], CONV, PEER)
    far = [row for row in ratios if row[0] > GOAL]
    lines = [f"  - {number(r)}: {case}, {OPERATIONS[o].title}" for r, case, o in far]
    head = f"- geometric mean of {count} ratios to {PEER}: {number(mean)}\n- above {GOAL}: {len(far) or 'none'}"
    return "\n".join([head, *lines])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.byhand", description="Time xconv beside four lines.")
    parser.add_argument("--cases", help=f"some of {'; '.join(CASES)}", default=";".join(CASES))
    parser.add_argument("--threads", help="for both, one run for each number (default: 1,2)", default="1,2")
    add_options(parser, rounds=5, seconds=0.1)
    arguments = parser.parse_args()
    names = arguments.cases.split(";")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"{'; '.join(unknown)}: not among {'; '.join(CASES)}")
    some = "" if names == list(CASES) else f" --cases '{arguments.cases}'"
    runs = [
        measure(
            Settings(
                cases=tuple(CASES[name] for name in names),
                peers=(report.OURS, PEER),
                threads=threads,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                program=f"python -m bench.byhand{some}",
                memory=False,
            )
        )
        for threads in map(int, arguments.threads.split(","))
    ]
    found = {"runs": runs}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "byhand.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.output / "byhand.md").write_text(table(found))
    for run in runs:
        print(f"threads: {run['threads']}\n{summary(run)}")
    return 1 if any(run["failures"] for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
