"""The command line: measure, then report; or report again from a file."""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from . import report
from .cases import CASES
from .contenders import CONTENDERS
from .measure import Settings, measure


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.report:
        folder, stem = arguments.report.parent, arguments.report.stem
        found = json.loads(arguments.report.read_text())
    else:
        folder, stem = arguments.output, "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(_settings(arguments))
        (folder / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(report.table(found))
    report.plot(found, folder / f"{stem}.png")
    print(report.summary(found))
    return 1 if found["failures"] else 0


def _settings(arguments: argparse.Namespace) -> Settings:
    rounds, seconds = (2, 0.02) if arguments.quick else (7, 0.2)
    return Settings(
        cases=arguments.cases,
        peers=arguments.peers,
        threads=arguments.threads,
        rounds=arguments.rounds or rounds,
        seconds=arguments.seconds or seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time xconv and its peers on this CPU.")
    parser.add_argument("--cases", type=_names(CASES), default=tuple(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--peers", type=_names(CONTENDERS), default=tuple(CONTENDERS), help="contenders to time")
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it all work?")
    parser.add_argument("--threads", type=_positive, default=2, help="for every contender (default: 2)")
    parser.add_argument("--rounds", type=_positive, help="how often each contender has its turn (default: 7)")
    parser.add_argument("--seconds", type=float, help="length of a turn (default: 0.2)")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    parser.add_argument("--report", type=Path, metavar="JSON", help="measure nothing; redo the table and plot of a run")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, got {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Make the type of an argument that is some of these names, separated by commas."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(text.split(",")))
        if unknown := set(found) - set(known):
            msg = f"{', '.join(sorted(unknown))}: not among {', '.join(known)}"
            raise argparse.ArgumentTypeError(msg)
        return found

    return names


if __name__ == "__main__":
    raise SystemExit(main())
