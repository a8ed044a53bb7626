"""How long the plans of a call take, measured one after the other."""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from ._tuning import Tuning
from ._typing import Array

#: Calls before the first that counts: libraries compile, and fill caches, in the first three.
WARM_UP = 3
#: A measurement is the least of so many laps, of at least so many seconds each.
LAPS, LAP = 5, 2e-3
#: What took so many times as long as the fastest is not measured again.
HOPELESS = 3

#: Calls a function so often, and says how many seconds that took; None where arrays are only traced.
Clock = Callable[[Callable[[], Array], int], float | None]


def measured(tuning: Tuning, call: str, runs: Mapping[str, Callable[[], Array]], clock: Clock) -> dict[str, float]:
    """The times of these runs, as the record has them; if it has none of them, they are measured and noted."""
    known = tuning.seconds(call, runs)
    if known:
        return known
    with _measuring:
        # Another thread may have measured while this one waited.
        known = tuning.seconds(call, runs) or _times(runs, clock)
        if known:
            tuning.add(call, known)
        return known


def _times(runs: Mapping[str, Callable[[], Array]], clock: Clock) -> dict[str, float]:
    best: dict[str, float] = {}
    for name, run in runs.items():
        with suppress(ImportError, MemoryError, ValueError):  # what cannot run here is left out
            for _ in range(WARM_UP):
                seconds = clock(run, 1)
            if seconds is None:
                return {}
            best[name] = seconds
    least = min(best.values(), default=0)
    for _ in range(LAPS):
        for name in [name for name in best if best[name] <= HOPELESS * least]:
            calls = max(1, round(LAP / best[name]))
            best[name] = min(best[name], (clock(runs[name], calls) or best[name]))
    return best


_measuring = threading.Lock()


def _start_afresh() -> None:
    """In a forked child: whoever measured in the parent is not here to finish."""
    global _measuring  # noqa: PLW0603
    _measuring = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
