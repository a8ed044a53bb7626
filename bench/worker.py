"""The child process of one contender on a CPU: ``python -m bench.worker NAME THREADS``."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from .child import serve

#: Seconds for the check of an operation; one that takes longer takes no part.
LIMIT = 40
#: A call that takes so many seconds is timed once, and its first call counts.
SLOW = 2


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
        meter = "tracemalloc" if self.contender.on_numpy else "resident pages"
        return {"versions": self.contender.versions(), "meter": meter}

    def prepare(self, case: dict[str, Any], problem: str) -> dict[str, Any]:
        """Take up a case: check every operation, and leave out those that cannot or may not take part."""
        from .cases import OPERATIONS, PRECISIONS, Case
        from .problem import Problem

        self.calls, operations, failures = {}, {}, []
        chosen, found = Case.of(case), Problem.load(Path(problem))
        refusals = {operation: self.contender.refusal(chosen, operation) for operation in chosen.operations}
        omitted = {operation: refusal for operation, refusal in refusals.items() if refusal}
        calls = {} if all(refusals.values()) else self.contender.prepare(chosen, found)
        for operation, call in calls.items():
            expected = [found.expected[name] for name in OPERATIONS[operation].results]
            try:
                with _limited(LIMIT):
                    operations[operation] = _checked(call, expected, PRECISIONS[chosen.precisions[0]][2])
                self.calls[operation] = call
            except TimeoutError as error:
                omitted[operation] = str(error)
            except Exception as error:  # noqa: BLE001
                failures.append(f"{self.name}, {operation}: {type(error).__name__}: {error}")
        answer = {"operations": operations, "failures": failures, "omitted": omitted}
        remark = self.contender.remark(chosen, found) if calls else ""
        return answer | {"remark": remark, "threadpools": threadpools()}

    def time(self, operation: str, calls: int, warmup: bool) -> list[int]:  # noqa: FBT001
        """Nanoseconds of each of some calls."""
        if warmup:
            self.calls[operation]()
        return timed(self.calls[operation], calls)

    def memory(self, case: dict[str, Any], problem: str, operation: str) -> int | None:
        """Bytes of temporary memory at the peak of a first call, beside its result. For a process that does no more.

        Memory that a library keeps from call to call has to be counted, so nothing of the case's size may have run
        before; a small case runs first, so that imports are not counted.
        """
        from .cases import CASES, Case
        from .memory import temporary
        from .problem import Problem, make

        tiny = CASES["tiny"]
        first = self.contender.prepare(tiny, make(tiny), compiled=True).get(operation)
        if first:  # one algorithm may not be able to serve it
            first()
        call = self.contender.prepare(Case.of(case), Problem.load(Path(problem)), compiled=True)[operation]
        return temporary(call, on_numpy=self.contender.on_numpy)


def timed(call: Callable[[], Any], calls: int) -> list[int]:
    samples = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(calls):
            begin = perf_counter_ns()
            result = call()
            samples.append(perf_counter_ns() - begin)
            del result  # here, so that it is free before the next call and its release is not timed
    finally:
        gc.enable()
    return samples


def _checked(call: Callable[[], Any], expected: list[Any], tolerance: float) -> dict[str, Any]:
    """Error of a call, and seconds that the next one takes; ArithmeticError where the result is wrong."""
    import numpy as np

    from .memory import as_tuple
    from .problem import relative_error

    begin = perf_counter_ns()
    result = call()
    seconds = (perf_counter_ns() - begin) / 1e9
    pairs = zip(as_tuple(result), expected, strict=True)
    error = max(relative_error(np.asarray(got), wanted) for got, wanted in pairs)
    if not error <= tolerance:  # NaN is wrong, too
        msg = f"the result is wrong by {error:.1e} of its largest element"
        raise ArithmeticError(msg)
    if seconds > SLOW:
        return {"error": error, "estimate": seconds, "sample": round(seconds * 1e9)}
    return {"error": error, "estimate": timed(call, 1)[0] / 1e9}


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


def limit_cores(threads: int) -> None:
    """Leave the process as many cores as threads, for libraries that count cores; before any of them is loaded."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def threadpools() -> list[dict[str, Any]]:
    """List the pools of threads in the process, without the paths of their files."""
    from threadpoolctl import threadpool_info

    return [{key: value for key, value in pool.items() if key != "filepath"} for pool in threadpool_info()]


if __name__ == "__main__":
    limit_cores(int(sys.argv[2]))
    serve(Worker(sys.argv[1], int(sys.argv[2])).requests)
