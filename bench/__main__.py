"""The command line: measure, then report; or report again from a file."""

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from . import gpu, gpu_plots, gpu_report, growth, report
from .cases import CASES, GPU_CASES, PRECISIONS, QUICK
from .contenders import CONTENDERS, MissingError
from .devices import DEVICES
from .measure import Settings, measure

GPU_PRECISIONS = tuple(name for name in PRECISIONS if name != "double")


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.report:
        found = json.loads(arguments.report.read_text())
        return _write(found, arguments.report)
    if arguments.gpu:
        return _on_gpu(parser, arguments)
    settings = _settings(parser, arguments)
    if arguments.dry_run:
        for case in settings.cases:
            print(f"{case.name:<12} {case.label}: {', '.join(case.operations)}")
        return 0
    found = measure(settings)
    path = arguments.output / "cpu.json"
    _save(found, path)
    return _write(found, path)


def _on_gpu(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    cases = _some(parser, arguments.cases, GPU_CASES, ("tiny", "last") if arguments.quick else GPU_CASES)
    settings = gpu.Settings(
        cases=cases,
        precisions=_some(parser, arguments.precisions, GPU_PRECISIONS, GPU_PRECISIONS),
        peers=_some(parser, arguments.peers, DEVICES, DEVICES),
        rounds=arguments.rounds or (2 if arguments.quick else 5),
        minutes=arguments.minutes,
    )
    if arguments.dry_run:
        print(gpu.dry_run(settings))
        return 0
    latest: dict[str, Any] = {}

    def save(found: dict[str, Any]) -> None:
        latest.update(found)
        _save(found, gpu.file_of(arguments.output, found))

    try:
        gpu.measure(settings, save)
    except MissingError as error:
        print(f"The benchmark on a GPU cannot run here: {error}.", file=sys.stderr)
        return 2
    return _write(latest, gpu.file_of(arguments.output, latest))


def _save(found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def _write(found: dict[str, Any], path: Path) -> int:
    """Write the table and, where matplotlib is there, the plots beside the JSON; print the main figures."""
    kind = gpu_report if "peaks" in found else report
    path.with_suffix(".md").write_text(kind.table(found))
    with suppress(ModuleNotFoundError):
        if kind is gpu_report:
            gpu_plots.plot(found, path.with_suffix(".png"))
            gpu_plots.plot_algorithms(found, path.with_name(f"{path.stem}-algorithms.png"))
        elif found["cases"]:
            report.plot(found, path.with_suffix(".png"))
        if found.get("growth"):
            growth.plot(found, path.with_name(f"{path.stem}-growth.png"))
    print(kind.summary(found))
    return 1 if found["failures"] else 0


def _settings(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Settings:
    rounds, seconds = (2, 0.02) if arguments.quick else (5, 0.15)
    cases = _some(parser, arguments.cases, CASES, QUICK if arguments.quick else CASES)
    peers = _some(parser, arguments.peers, CONTENDERS, [name for name in CONTENDERS if name != "by-hand"])
    return Settings(
        cases=tuple(CASES[name] for name in cases),
        peers=peers,
        threads=arguments.threads,
        rounds=arguments.rounds or rounds,
        seconds=arguments.seconds or seconds,
        program=f"python -m bench --cases {','.join(cases)} --peers {','.join(peers)}",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time xconv and its peers.")
    parser.add_argument("--gpu", action="store_true", help="on the GPU, with CuPy arrays")
    parser.add_argument("--cases", help="names or patterns, such as r50_*,side*; --dry-run lists them")
    parser.add_argument("--peers", help=f"contenders: {','.join(CONTENDERS)}; on a GPU {','.join(DEVICES)}")
    parser.add_argument("--precisions", help=f"on a GPU, some of {','.join(GPU_PRECISIONS)}")
    parser.add_argument("--quick", action="store_true", help="a few cases in two short rounds: does it all work?")
    parser.add_argument("--dry-run", action="store_true", help="say what would be timed")
    parser.add_argument("--threads", type=_positive, default=2, help="for every contender on the CPU (default: 2)")
    parser.add_argument("--rounds", type=_positive, help="how often each contender has its turn (default: 5)")
    parser.add_argument("--seconds", type=float, help="length of a turn on the CPU (default: 0.15)")
    parser.add_argument("--minutes", type=float, default=8, help="on a GPU, begin no job after them (default: 8)")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder (default: bench/results)")
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="measure nothing; redo the table and plots of a run"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, got {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _some(
    parser: argparse.ArgumentParser, given: str | None, known: Iterable[str], usual: Iterable[str]
) -> tuple[str, ...]:
    """Find the names that are meant by names and patterns, separated by commas; all of the usual ones for None."""
    if given is None:
        return tuple(usual)
    patterns = {pattern: matching(known, pattern) for pattern in given.split(",")}
    if unknown := [pattern for pattern, names in patterns.items() if not names]:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(known)}")
    return tuple(dict.fromkeys(name for names in patterns.values() for name in names))


if __name__ == "__main__":
    raise SystemExit(main())
