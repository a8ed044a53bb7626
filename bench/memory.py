"""The most memory that a call takes, beside its result."""

import gc
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def temporary(call: Callable[[], Any], *, on_numpy: bool) -> int | None:
    """Bytes at the peak of a call, as NumPy allocates them or else as the system counts resident pages.

    The second needs Linux, and is None elsewhere; what a library takes from pages that it has already is not seen.
    """
    gc.collect()
    peak, result = _traced(call) if on_numpy else _resident(call)
    return None if peak is None else max(0, peak - sum(array.nbytes for array in as_tuple(result)))


def as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _traced(call: Callable[[], Any]) -> tuple[int, Any]:
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def _resident(call: Callable[[], Any]) -> tuple[int | None, Any]:
    if not _RESET.exists():
        return None, ()
    _RESET.write_text("5")  # the high-water mark falls to what is resident now
    before = _kilobytes("VmRSS")
    result = call()
    return 1024 * (_kilobytes("VmHWM") - before), result


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
