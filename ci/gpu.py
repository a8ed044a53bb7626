"""The parts of a run on a CUDA device: ``python -m ci.gpu PART``, from the root of the repository.

environment  what is there; the rates of a copy and of matrix products; what a launch takes on the host
smoke        every public function in every dtype and both layouts beside NumPy, in processes of their own
timings      the benchmark's contenders side by side, with the time on the device and on the host apart
pooling      pooling beside PyTorch's, added to the timings
kernels      a call of every kernel, for a profiler or a checker to watch
peers        the contenders of the benchmark, xconv and PyTorch first
summary      the main figures of all parts, as text

Results go to the folder $OUT. `gpu.sh` calls all parts, and the tests.
"""

import argparse
from pathlib import Path

from bench.cases import GPU_CASES
from bench.devices import DEVICES

from . import environment, kernels, pooling, smoke, summary, timings
from .checks import GROUPS
from .place import Place

PARTS = ("environment", "smoke", "smoke-group", "timings", "pooling", "kernels", "peers", "summary")
#: Contenders that come first, if time is short.
FIRST = ("xconv", "torch")


def main(arguments: list[str] | None = None) -> int:
    """Run a part; 1 where it has found something."""
    given = _parser().parse_args(arguments)
    if given.part == "environment":
        environment.run()
    elif given.part == "smoke":
        return smoke.run(given.seconds, given.jobs)
    elif given.part == "smoke-group":
        smoke.run_group(given.group)
    elif given.part == "timings":
        timings.run(given.seconds, tuple(given.cases.split(",")), tuple(given.precisions.split(",")))
    elif given.part == "pooling":
        pooling.run(given.seconds, Place())
    elif given.part == "kernels":
        kernels.run(Place(), small=given.small)
    elif given.part == "peers":
        print(",".join(dict.fromkeys((*FIRST, *DEVICES))))
    else:
        summary.run(given.xml)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ci.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=90, help="begin nothing new after them")
    parser.add_argument("--jobs", type=int, default=4, help="processes of the smoke test at a time")
    parser.add_argument("--group", choices=GROUPS, default=GROUPS[0], help="of the smoke test, for one process")
    parser.add_argument("--cases", default=",".join(GPU_CASES), help="of the benchmark, the most important first")
    parser.add_argument("--precisions", default="float16,ieee,tf32")
    parser.add_argument("--small", action="store_true", help="kernels on small arrays that begin and end exactly")
    parser.add_argument("--xml", type=Path, action="append", default=[], help="reports of pytest that lie elsewhere")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
