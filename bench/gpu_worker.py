"""The child process of one contender on a GPU: ``python -m bench.gpu_worker NAME``."""

import gc
import math
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from time import perf_counter
from typing import Any

import numpy as np

from .cases import GPU_CASES, OPERATIONS, PRECISIONS, Case
from .child import serve
from .contenders import Function, MissingError
from .devices import DEVICES, Device
from .memory import as_tuple
from .problem import reference, relative_error, seed

#: Operands are rotated through so many times the second-level cache, by sets of which there are not more than this.
CACHES, MOST_SETS = 3, 64
#: Seconds of a turn, and the fewest and the most calls in it; several turns make a result.
TURN, LEAST, MOST = 0.02, 4, 50


class GpuWorker:
    """One contender, and the job that it has at hand."""

    def __init__(self, make: Callable[[], Device]) -> None:
        self.make = make
        self.function: Function | None = None
        self.operands: Iterator[list[Any]] = repeat([])
        self.precision, self.estimate = "ieee", 0.0
        self.requests: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "rate": self.rate,
            "prepare": self.prepare,
            "time": self.time,
            "free": self.free,
        }

    def start(self) -> dict[str, Any]:
        """Import the library and find the device; the answer says what they are, or what is missing."""
        try:
            self.device = self.make()
        except ImportError as error:
            return {"missing": f"a library cannot be imported: {error}"}
        except MissingError as error:
            return {"missing": str(error)}
        self.facts = self.device.describe()
        return {"versions": self.device.versions(), "machine": self.facts}

    def rate(self, kind: str) -> float | None:
        """Bytes, or operations, per second of a peak; None where the contender has no means to measure it."""
        with self.device.setting(kind):
            found = self.device.rate(kind)
            if found is None:
                return None
            function, operands, work = found
            self.device.elapsed(function, repeat(operands), 3)
            return max(work * 10 / self.device.elapsed(function, repeat(operands), 10)[0] for _ in range(3))

    def prepare(self, precision: str, case: str, operation: str) -> dict[str, Any]:
        """Take up a job: operands, error, memory, the time of the first call and of one of the next."""
        self.free()
        chosen = GPU_CASES[case]
        with self.device.setting(precision):
            function = self.device.functions(chosen, precision).get(operation)
            if function is None:
                return {"omitted": "the library has no such function"}
            sets = self._sets(chosen, precision, operation)
            begin = perf_counter()
            function = self.device.compiled(function, sets[0])
            self.device.elapsed(function, repeat(sets[0]), 1)
            first = perf_counter() - begin
            error = self._error(chosen, precision, operation, function, sets[0])
            self.device.free()  # the reference in float64 takes much
            peak = self.device.temporary(function, sets[0])
            self.function, self.operands, self.precision = function, cycle(sets), precision
            self.device.elapsed(function, self.operands, min(len(sets), LEAST))
            self.estimate = self.device.elapsed(function, self.operands, LEAST)[0] / LEAST
        touched = sum(math.prod(chosen.shape(name)) for name in OPERATIONS[operation].reads)
        facts = {"first_s": first, "error": error, "temporary_bytes": peak}
        return facts | {"rotated_bytes": len(sets) * touched * PRECISIONS[precision][1]}

    def _sets(self, case: Case, precision: str, operation: str) -> list[list[Any]]:
        """Draw as many sets of operands as the caches cannot hold; the first is the same for every contender."""
        task = OPERATIONS[operation]
        touched = sum(math.prod(case.shape(name)) for name in task.reads) * PRECISIONS[precision][1]
        count = min(MOST_SETS, 1 + CACHES * self.facts["l2_bytes"] // touched)
        rng = self.device.xp.random.default_rng(seed(case))

        def draw(name: str) -> Any:
            array = self.device.convert(rng.standard_normal(case.shape(name), dtype=np.float32), precision)
            return self.device.placed(case, name, array)

        return [[draw(name) for name in task.operands] for _ in range(count)]

    def _error(self, case: Case, precision: str, operation: str, function: Function, operands: list[Any]) -> float:
        """Largest error against float64; ArithmeticError where the result is wrong."""
        task = OPERATIONS[operation]
        given = zip(task.operands, operands, strict=True)
        double = {name: self.device.plain(array).astype(np.float64) for name, array in given}
        expected = reference(case, operation, double)
        got = zip(task.results, as_tuple(function(*operands)), strict=True)
        error = max(relative_error(self.device.plain(array), expected[name]) for name, array in got)
        if not error <= PRECISIONS[precision][2]:  # NaN is wrong, too
            msg = f"the result is wrong by {error:.1e} of its largest element"
            raise ArithmeticError(msg)
        return error

    def time(self) -> dict[str, Any]:
        """Seconds of a call on the device and on the host: means of a turn, after a call that does not count."""
        assert self.function is not None
        calls = max(LEAST, min(MOST, int(TURN / max(self.estimate, 1e-9))))
        with self.device.setting(self.precision):
            self.device.elapsed(self.function, self.operands, 1)
            device, host = self.device.elapsed(self.function, self.operands, calls)
        return {"seconds": device / calls, "host": host / calls, "calls": calls}

    def free(self) -> None:
        """Let go of the job; an error says that the device cannot be used any more from this process."""
        self.function, self.operands = None, repeat([])
        gc.collect()
        self.device.free()


if __name__ == "__main__":
    serve(GpuWorker(lambda: DEVICES[sys.argv[1]](1)).requests)
