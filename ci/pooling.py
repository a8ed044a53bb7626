"""Pooling beside PyTorch's, in both layouts: forward, and back.

PyTorch's gradient of the largest is handed the places that its forward pass found; ours searches for them again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

import xconv
from bench.cases import PRECISIONS

from .checks import LAST
from .clock import Clock
from .place import Place
from .results import read, save
from .timings import line

#: The shape of x, the kernel size, the stride and the padding.
CASES = {"pool 3x3": ((64, 64, 112, 112), 3, 2, 1), "pool 2x2": ((64, 256, 56, 56), 2, 2, 0)}
Functions = dict[str, Callable[[], Any]]


def run(seconds: float, place: Place, clock: Any = None) -> None:
    """Time all of it within some seconds, and write it beside the timings of convolutions."""
    end, rows = time.monotonic() + seconds, read("timings.json") or []
    for row in timed(place, clock or Clock()):
        rows.append(row)
        save("timings.json", rows)
        print(line(row), flush=True)
        if time.monotonic() > end:
            print("stopped: no time left")
            return
    print("done")


def timed(place: Place, clock: Any) -> Iterator[dict[str, Any]]:
    """Time every function by every library that is there; PyTorch's error is its difference from ours."""
    rng = np.random.default_rng(0)
    for name, ((n, c, *size), kernel, stride, padding) in CASES.items():
        for last, suffix in LAST.items():
            out = [(length + 2 * padding - kernel) // stride + 1 for length in size]
            shapes = ((n, *s, c) if last else (n, c, *s) for s in (size, out))
            drawn = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
            for precision in ("ieee", "float16"):
                dtype, _, most = PRECISIONS[precision]
                x, dy = (place.put(array.astype(dtype)) for array in drawn)
                of = {"xconv": ours(x, dy, kernel, stride, padding, last=last)}
                with suppress(ImportError):
                    of["torch"] = torchs(x, dy, kernel, stride, padding, last=last)
                for operation in of["xconv"]:
                    for who, functions in of.items():
                        row = {"precision": precision, "case": name + suffix, "operation": operation, "who": who}
                        row["error"] = (
                            0.0 if who == "xconv" else apart(functions[operation], of["xconv"][operation], last)
                        )
                        if not row["error"] <= most:
                            row["failed"] = f"apart from xconv by {row['error']:.1e}"
                        times = clock.time([functions[operation]])
                        yield row | {"device_s": times.device, "host_s": times.host, "apart": times.apart}


def ours(x: Any, dy: Any, kernel: int, stride: int, padding: int, *, last: bool) -> Functions:
    """By the library itself."""
    layout = "channels_last" if last else "channels_first"
    options: dict[str, Any] = {"stride": stride, "padding": padding, "layout": layout}
    return {
        "max_pool": lambda: xconv.max_pool(x, kernel, **options),
        "max_pool_grad": lambda: xconv.max_pool_grad(dy, x, kernel, **options),
        "avg_pool": lambda: xconv.avg_pool(x, kernel, **options),
        "avg_pool_grad": lambda: xconv.avg_pool_grad(dy, x.shape, kernel, **options),
    }


def torchs(x: Any, dy: Any, kernel: int, stride: int, padding: int, *, last: bool) -> Functions:
    """By PyTorch, on the same memory."""
    import torch

    x, dy = (torch.from_dlpack(array) for array in (x, dy))
    x, dy = (array.movedim(-1, 1) if last else array for array in (x, dy))
    sizes = [[number] * 2 for number in (kernel, stride, padding)]
    functional, aten = torch.nn.functional, torch.ops.aten
    _, found = functional.max_pool2d(x, *sizes, return_indices=True)
    return {
        "max_pool": lambda: functional.max_pool2d(x, *sizes),
        "max_pool_grad": lambda: aten.max_pool2d_with_indices_backward(
            dy, x, *sizes, [1, 1], ceil_mode=False, indices=found
        ),
        "avg_pool": lambda: functional.avg_pool2d(x, *sizes),
        "avg_pool_grad": lambda: aten.avg_pool2d_backward(
            dy, x, *sizes, ceil_mode=False, count_include_pad=True, divisor_override=None
        ),
    }


def apart(theirs: Callable[[], Any], ours: Callable[[], Any], last: bool) -> float:  # noqa: FBT001
    """Find the largest difference between the results of PyTorch and of the library."""
    import torch

    made = torch.from_dlpack(ours())
    made = made.movedim(-1, 1) if last else made
    return float((theirs().float() - made.float()).abs().max())
