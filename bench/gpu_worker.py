"""The child process of one library's contenders on a GPU: ``python -m bench.gpu_worker NAME...``."""

import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, repeat
from time import perf_counter
from typing import Any

import numpy as np

from .cases import CONV, GPU_CASES, OPERATIONS, PRECISIONS, Job
from .child import serve
from .contenders import Function, MissingError
from .devices import DEVICES, Device, RefusalError
from .memory import as_tuple
from .problem import reference, relative_error, seed

#: Operands are rotated through so many times the second-level cache, by sets of which there are not more than this.
CACHES, MOST_SETS = 3, 64
#: Seconds of a turn, and the fewest and the most calls in it; several turns make a result.
TURN, LEAST, MOST = 0.02, 4, 50
#: Calls before a turn that do not count. In two of them every pool has what it takes: the last result is still there.
WARM = 2


@dataclass
class Task:
    """What a contender does for the job at hand."""

    function: Function
    operands: Iterator[list[Any]]
    #: Seconds of a call.
    estimate: float = 0.0


class GpuWorker:
    """The contenders of one library, and the job that they have at hand, with one set of operands for all."""

    def __init__(self, kinds: Mapping[str, Callable[[], Device]]) -> None:
        self.kinds = kinds
        self.devices: dict[str, Device] = {}
        self.job: Job | None = None
        self.sets: list[list[Any]] = []
        self.expected: dict[str, Any] = {}
        self.tasks: dict[str, Task] = {}
        self.requests: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "rate": self.rate,
            "prepare": self.prepare,
            "time": self.time,
            "free": self.free,
        }

    def start(self) -> dict[str, Any]:
        """Import the library and find the device; the answer says what they are, and who misses what."""
        missing = {}
        for name, make in self.kinds.items():
            try:
                self.devices[name] = make()
            except ImportError as error:
                missing[name] = f"a library cannot be imported: {error}"
            except MissingError as error:
                missing[name] = str(error)
        if not self.devices:
            return {"missing": missing, "versions": {}}
        self.first = next(iter(self.devices.values()))
        self.facts = self.first.describe()
        versions = {name: device.versions() for name, device in self.devices.items()}
        return {"missing": missing, "versions": versions, "machine": self.facts}

    def rate(self, kind: str) -> float | None:
        """Bytes, or operations, per second of a peak; None where the library has no means to measure it."""
        device = self.first
        with device.setting(kind):
            found = device.rate(kind)
            if found is None:
                return None
            function, operands, work = found
            device.elapsed(function, repeat(operands), 3)
            return max(work * 10 / device.elapsed(function, repeat(operands), 10)[0] for _ in range(3))

    def prepare(self, contender: str, precision: str, case: str, operation: str) -> dict[str, Any]:
        """Take up a job: error, memory, the time of the first call and of one of the next; or why there is none."""
        job, device = Job(precision, case, operation), self.devices[contender]
        self.tasks.pop(contender, None)
        chosen = GPU_CASES[case]
        with device.setting(precision):
            function = device.functions(chosen, precision).get(operation)
            if function is None:
                return {"omitted": "the library has no such function"}
            if self.job != job:
                self._take_up(job)
            operands = self.sets[0]
            facts: dict[str, Any] = {}
            if operation in CONV:
                x, w, _ = operands
                try:
                    facts |= device.plan(chosen, operation, x, w)
                except RefusalError as error:
                    return {"omitted": str(error)}
            begin = perf_counter()
            try:
                function = device.compiled(function, operands)
            except RefusalError as error:
                return {"refused": str(error)}
            device.elapsed(function, repeat(operands), 1)
            facts["first_s"] = perf_counter() - begin
            facts["error"] = self._error(job, device, function)
            device.free()  # to compare takes much
            facts["temporary_bytes"] = device.temporary(function, operands)
            task = Task(function, cycle(self.sets))
            device.elapsed(function, task.operands, min(len(self.sets), LEAST))
            task.estimate = device.elapsed(function, task.operands, LEAST)[0] / LEAST
        self.tasks[contender] = task
        return facts | {"rotated_bytes": len(self.sets) * self._touched(job)}

    def _take_up(self, job: Job) -> None:
        """Let go of the last job, draw operands for this one, and compute what must come out."""
        self.job, self.sets, self.expected, self.tasks = None, [], {}, {}
        self.free()
        self.sets = self._sets(job)
        task = OPERATIONS[job.operation]
        given = zip(task.operands, self.sets[0], strict=True)
        double = {name: self.first.plain(array).astype(np.float64) for name, array in given}
        self.expected = reference(GPU_CASES[job.case], job.operation, double)
        self.job = job

    def _touched(self, job: Job) -> int:
        """Bytes that an operation reads of a set of operands."""
        shapes = (GPU_CASES[job.case].shape(name) for name in OPERATIONS[job.operation].reads)
        return sum(map(math.prod, shapes)) * PRECISIONS[job.precision][1]

    def _sets(self, job: Job) -> list[list[Any]]:
        """Draw as many sets of operands as the caches cannot hold; the first is the same for every contender."""
        case, device = GPU_CASES[job.case], self.first
        count = min(MOST_SETS, 1 + CACHES * self.facts["l2_bytes"] // self._touched(job))
        rng = device.xp.random.default_rng(seed(case))

        def draw(name: str) -> Any:
            array = device.convert(rng.standard_normal(case.shape(name), dtype=np.float32), job.precision)
            return device.placed(case, name, array)

        return [[draw(name) for name in OPERATIONS[job.operation].operands] for _ in range(count)]

    def _error(self, job: Job, device: Device, function: Function) -> float:
        """Largest error against float64; ArithmeticError where the result is wrong."""
        got = zip(OPERATIONS[job.operation].results, as_tuple(function(*self.sets[0])), strict=True)
        error = max(relative_error(device.plain(array), self.expected[name]) for name, array in got)
        if not error <= PRECISIONS[job.precision][2]:  # NaN is wrong, too
            msg = f"the result is wrong by {error:.1e} of its largest element"
            raise ArithmeticError(msg)
        return error

    def time(self, contender: str, precision: str, case: str, operation: str) -> dict[str, Any]:
        """Seconds of a call on the device and on the host: means of a turn, after calls that do not count.

        A process that has replaced another takes the job up first.
        """
        if self.job != (precision, case, operation) or contender not in self.tasks:
            self.prepare(contender, precision, case, operation)
        task, device = self.tasks[contender], self.devices[contender]
        calls = max(LEAST, min(MOST, int(TURN / max(task.estimate, 1e-9))))
        with device.setting(precision):
            device.elapsed(task.function, task.operands, WARM)
            seconds, host = device.elapsed(task.function, task.operands, calls)
        return {"seconds": seconds / calls, "host": host / calls, "calls": calls}

    def free(self) -> None:
        """Give back what is not in use; an error says that the device cannot be used any more from this process."""
        gc.collect()
        self.first.free()


if __name__ == "__main__":
    serve(GpuWorker({name: partial(DEVICES[name], 1) for name in sys.argv[1:]}).requests)
