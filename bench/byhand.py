"""xconv against what one writes by hand: ``python -m bench.byhand`` writes a table.

The four lines know their shapes, and check nothing: the library must not be slower for being general.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from . import report
from .cases import CONV, Case
from .measure import Settings, measure

#: A library may take so many times as long as the four lines.
GOAL = 1.05

_FIRST = (
    Case("1x1", (8, 256, 28, 28), (128, 256, 1, 1)),
    Case("1x1-few", (8, 512, 28, 28), (128, 512, 1, 1)),
    Case("1x1-s2", (8, 256, 56, 56), (64, 256, 1, 1), stride=2),
    Case("patches4", (8, 64, 56, 56), (64, 64, 4, 4), stride=4),
    Case("patches16", (8, 3, 224, 224), (192, 3, 16, 16), stride=16),
    Case("3x3", (8, 64, 56, 56), (64, 64, 3, 3), padding=1),
    Case("3x3-few", (4, 320, 12, 12), (256, 320, 3, 3), padding=1),
    Case("3x3-s2", (8, 64, 56, 56), (128, 64, 3, 3), stride=2, padding=1),
    Case("5x5-s2", (4, 48, 64, 64), (64, 48, 5, 5), stride=2, padding=2),
    Case("7x7-s2", (4, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    Case("groups", (4, 96, 40, 40), (96, 24, 3, 3), padding=1, groups=4),
    Case("depthwise", (8, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128),
    Case("1-D", (8, 32, 8000), (64, 32, 9), padding=4),
    Case("1-D-s4", (8, 1, 64000), (64, 1, 16), stride=4),
)
CASES = {
    case.name: replace(case, operations=CONV)
    for first in _FIRST
    for case in (first, replace(first, name=f"{first.name}-last", channels_last=True))
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.byhand", description="Time xconv and four lines of NumPy.")
    parser.add_argument("--cases", help=f"some of {','.join(CASES)}", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=1, help="for both (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each has its turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn (default: 0.1)")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    arguments = parser.parse_args()
    names = arguments.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(CASES)}")
    found = measure(
        Settings(
            cases=tuple(CASES[name] for name in names),
            peers=("xconv", "by-hand"),
            threads=arguments.threads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            program=f"python -m bench.byhand --cases {','.join(names)}",
            memory=False,
        )
    )
    path = arguments.output / f"byhand-{arguments.threads}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(report.table(found))
    results = report.results_of(found)
    rows = []
    for name in names:
        ratios = [report.ratio(results, name, operation, "by-hand") for operation in CONV]
        ms = [1e3 * results[name, operation, "xconv"]["median"] for operation in CONV]
        rows.append((name, found["remarks"].get("xconv", {}).get(name, ""), ms, ratios))
    for name, remark, ms, ratios in rows:
        print(f"{name:16} {remark:10}" + "".join(f" {m:8.2f} {r:5.2f}{'*' if r > GOAL else ' '}" for m, r in zip(ms, ratios)))
    for failure in found["failures"]:
        print(failure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
