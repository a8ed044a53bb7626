"""The child process of one contender: ``python -m bench.worker NAME THREADS``.

It answers each line of JSON on its standard input with one on its standard output. A request is a name from
`Worker.requests` with arguments; the answer holds ``value`` or, where the request raised, ``error``.
"""

import gc
import json
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

#: A contender whose results are further off than this, relative to the largest element, takes no part.
TOLERANCE = 1e-3
#: Seconds for the check of an operation; one that takes longer takes no part.
LIMIT = 60


def main(name: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes the pipe
    _limit_cores(threads)
    worker = Worker(name, threads)
    for line in sys.stdin:
        request, arguments = json.loads(line)
        try:
            answer = {"value": worker.requests[request](**arguments)}
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


class Worker:
    """One contender, and the case that it has at hand."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.calls: dict[str, Callable[[], Any]] = {}
        self.requests: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "prepare": self.prepare,
            "time": self.time,
            "memory": self.memory,
        }

    def start(self) -> dict[str, Any]:
        """Import the library; the answer says what it is, or why it is missing."""
        from .contenders import CONTENDERS

        try:
            self.contender = CONTENDERS[self.name](self.threads)
        except ImportError as error:
            return {"missing": f"{self.name} is left out, since it cannot be imported: {error}"}
        return {"versions": self.contender.versions(), "memory": self.contender.on_numpy}

    def prepare(self, case: str, problem: str) -> dict[str, Any]:
        """Take up a case: check every operation, and leave out those that cannot or may not take part."""
        from .cases import CASES, OPERATIONS
        from .problem import Problem

        self.calls, operations, failures = {}, {}, []
        refusals = {operation: self.contender.refusal(CASES[case], operation) for operation in OPERATIONS}
        found = Problem.load(Path(problem))
        calls = {} if all(refusals.values()) else self.contender.prepare(CASES[case], found)
        for operation, call in calls.items():
            try:
                with _limited(LIMIT):
                    operations[operation] = _checked(call, [found.expected[name] for name in OPERATIONS[operation]])
                self.calls[operation] = call
            except Exception as error:  # noqa: BLE001
                failures.append(f"{self.name}, {operation}: {type(error).__name__}: {error}")
        omitted = {operation: refusal for operation, refusal in refusals.items() if refusal}
        return {"operations": operations, "failures": failures, "omitted": omitted, "threadpools": _threadpools()}

    def time(self, operation: str, calls: int, warmup: bool) -> list[int]:  # noqa: FBT001
        """Nanoseconds of each of some calls."""
        if warmup:
            self.calls[operation]()
        return _timed(self.calls[operation], calls)

    def memory(self, case: str, problem: str, operation: str) -> int:
        """Bytes of temporary memory at the peak of a first call, beside its result. For a process that does no more.

        Memory that a library keeps from call to call has to be counted, so nothing of the case's size may have run
        before; a small case runs first, so that imports are not counted.
        """
        from .cases import CASES
        from .problem import Problem, make

        self.contender.prepare(CASES["tiny"], make(CASES["tiny"]))[operation]()
        call = self.contender.prepare(CASES[case], Problem.load(Path(problem)))[operation]
        gc.collect()
        tracemalloc.start()
        result = call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return max(0, peak - sum(array.nbytes for array in _as_tuple(result)))


def _timed(call: Callable[[], Any], calls: int) -> list[int]:
    samples = []
    gc.collect()
    gc.disable()
    for _ in range(calls):
        begin = perf_counter_ns()
        result = call()
        samples.append(perf_counter_ns() - begin)
        del result  # here, so that it is free before the next call and its release is not timed
    gc.enable()
    return samples


def _checked(call: Callable[[], Any], expected: list[Any]) -> dict[str, float]:
    """Error of a call, and seconds that the next one takes; ArithmeticError where the result is wrong."""
    import numpy as np

    from .problem import relative_error

    pairs = zip(_as_tuple(call()), expected, strict=True)
    error = max(relative_error(np.asarray(got), wanted) for got, wanted in pairs)
    if not error <= TOLERANCE:  # NaN is wrong, too
        msg = f"the result is wrong by {error:.1e} of its largest element"
        raise ArithmeticError(msg)
    return {"error": error, "estimate": _timed(call, 1)[0] / 1e9}


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer, as soon as it is back in Python."""

    def stop(*_: object) -> None:
        msg = f"it takes more than {seconds} seconds"
        raise TimeoutError(msg)

    if not hasattr(signal, "alarm"):
        yield
        return
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _limit_cores(threads: int) -> None:
    """Leave the process as many cores as threads, for libraries that count cores; before any of them is loaded."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _threadpools() -> list[dict[str, Any]]:
    """List the pools of threads in the process, without the paths of their files."""
    from threadpoolctl import threadpool_info

    return [{key: value for key, value in pool.items() if key != "filepath"} for pool in threadpool_info()]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
