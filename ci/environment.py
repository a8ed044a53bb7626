"""What is there; the rates of a copy and of matrix products; what a launch takes on the host."""

import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import repeat
from typing import Any

from bench.cases import PRECISIONS
from bench.contenders import MissingError
from bench.devices import DEVICES

from .results import save

FIELDS = "name,driver_version,memory.total,memory.free,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
COMMANDS = (
    f"nvidia-smi --query-gpu={FIELDS} --format=csv",
    "nvcc --version",
    "ncu --version",
    "compute-sanitizer --version",
)
PACKAGES = (
    *("numpy", "cupy-cuda12x", "cupy-cuda13x", "ml-dtypes", "torch", "jax", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("nvidia-cudnn-frontend", "nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "array-api-compat"),
    *("array-api-extra", "array-api-strict", "threadpoolctl", "pytest", "pytest-xdist", "hypothesis", "scipy"),
)
#: Whose copies and products tell the peak rates.
RATED = ("xconv", "torch")
#: Calls on the host between which the device is waited for, and how often that is done.
CALLS, LAPS = 40, 6


def run() -> None:
    """Print and save what is found."""
    describe()
    begin = time.perf_counter()
    import cupy

    import xconv

    print(f"xconv {xconv.__version__}, imported in {time.perf_counter() - begin:.1f} s", flush=True)
    cupy.show_config(_full=False)
    begin = time.perf_counter()
    cupy.zeros(1).fill(1)
    cupy.cuda.Device().synchronize()
    print(f"context and first kernel in {time.perf_counter() - begin:.1f} s", flush=True)
    found: dict[str, Any] = {"device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), "rates": {}}
    for rate in rates():
        found["rates"] |= rate
        save("environment.json", found)
    found["host_s"] = {name: host_time(call, cupy.cuda.Device().synchronize) for name, call in calls(cupy, xconv)}
    save("environment.json", found)
    print(json.dumps(found, indent=1))


def describe() -> None:
    """Print what commands say, and the versions of packages."""
    for command in COMMANDS:
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(command.split(), capture_output=True, text=True, timeout=15, check=False)
            print("$", command, "\n" + (done.stdout or done.stderr).strip()[-600:], flush=True)
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    print("python", sys.version.split()[0], json.dumps(versions), flush=True)


def rates() -> Any:
    """Bytes, or operations, per second by kind, one after the other: the best of the libraries that are there."""
    devices = []
    for name in RATED:
        with suppress(ImportError, MissingError):
            devices.append(DEVICES[name](1))
    for kind in ("copy", *PRECISIONS):
        best = 0.0
        for device in devices:
            with device.setting(kind):
                try:
                    if found := device.rate(kind):
                        function, operands, work = found
                        device.elapsed(function, repeat(operands), 3)
                        best = max(
                            best, *(10 * work / device.elapsed(function, repeat(operands), 10)[0] for _ in "123")
                        )
                except Exception as error:  # noqa: BLE001  # a rate less
                    print(f"{kind}: {type(error).__name__}: {error}", flush=True)
                device.free()
        yield {kind: best or None}


def calls(cupy: Any, xconv: Any) -> list[tuple[str, Callable[[], Any]]]:
    """List small calls, of which the host is what takes the time."""
    x, w = cupy.ones((5, 4, 10, 10), "float32"), cupy.ones((20, 4, 3, 3), "float32")
    return [
        ("cupy.empty", lambda: cupy.empty(100, "float32")),
        ("a kernel of CuPy", lambda: x + x),
        ("im2col", lambda: xconv.im2col(x, 3)),
        ("conv", lambda: xconv.conv(x, w)),
    ]


def host_time(run: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Seconds in which the host issues a call, the best of some laps."""
    best = math.inf
    for lap in range(LAPS):
        synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            run()
        if lap:  # in the first, kernels are compiled
            best = min(best, (time.perf_counter() - begin) / CALLS)
    return best
