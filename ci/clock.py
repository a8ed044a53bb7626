"""Time of a call on the device and on the host, apart: the device is kept busy until all calls are issued."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

SPIN = """extern "C" __global__ void spin(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {}
}"""
#: Cycles of a device in a second: more than any has.
HERTZ = 2e9
#: Calls that do not count: all is compiled, chosen and specialised after them.
WARM = 4
#: Seconds of a turn, the fewest and the most calls in it; turns, and those that suffice.
TURN, LEAST, MOST = 0.02, 3, 20
TURNS, ENOUGH = 5, 3


class Times(NamedTuple):
    """Seconds of a call."""

    device: float
    host: float
    #: Whether the device had all calls before it began, so that its time is free of the host's.
    apart: bool


class Clock:
    """Looks at the device's own clock, around calls that wait behind a kernel which does nothing for a while."""

    def __init__(self) -> None:
        import cupy

        self.cuda, self.spin = cupy.cuda, cupy.RawKernel(SPIN, "spin")

    def time(self, runs: list[Callable[[], Any]]) -> Times:
        """Time calls that do the same on different operands, which together do not fit the caches."""
        for i in range(WARM + len(runs)):
            runs[i % len(runs)]()
        host, whole = self._one(runs[0])
        calls = max(LEAST, min(MOST, int(TURN / whole)))
        wait, found = 2 * host * calls + 2e-3, list[Times]()
        for _ in range(TURNS):
            found.append(self._turn(runs, calls, wait))
            if not found[-1].apart:
                wait *= 2
            if sum(turn.apart for turn in found) == ENOUGH:
                break
        good = [turn for turn in found if turn.apart] or found
        device = statistics.median(turn.device for turn in good)
        return Times(device, min(turn.host for turn in found), good[0].apart)

    def _one(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds until a call is issued, and until it is done."""
        self.cuda.Device().synchronize()
        begin = time.perf_counter()
        run()
        host = time.perf_counter() - begin
        self.cuda.Device().synchronize()
        return host, time.perf_counter() - begin

    def _turn(self, runs: list[Callable[[], Any]], calls: int, wait: float) -> Times:
        first, last = self.cuda.Event(), self.cuda.Event()
        self.spin((1,), (1,), (int(wait * HERTZ),))
        first.record()
        with _undisturbed():
            begin = time.perf_counter()
            for i in range(calls):
                runs[i % len(runs)]()
            host = (time.perf_counter() - begin) / calls
        last.record()
        apart = not first.done
        last.synchronize()
        return Times(self.cuda.get_elapsed_time(first, last) / 1e3 / calls, host, apart)


@contextmanager
def _undisturbed() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
