"""The benchmark's contenders side by side in one process, with the time on the device and on the host apart.

The benchmark itself says how fast a call is; this says which of the two it waits for.
"""

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.cases import CONV, GPU_CASES, OPERATIONS, PRECISIONS, UNFOLD, Case, Job, gpu_jobs
from bench.contenders import Function, MissingError, Torch, Xconv
from bench.devices import DEVICES, Device
from bench.problem import reference, relative_error, seed

from .clock import Clock
from .results import save

#: Operands are rotated through so many times the second-level cache, by sets of which there are not more than this.
CACHES, MOST_SETS = 3, 8


def contenders() -> list[str]:
    """Name the libraries that CuPy's events can time, and every algorithm: all of the benchmark's but JAX."""
    return [name for name, kind in DEVICES.items() if issubclass(kind, Xconv | Torch)]


def jobs(cases: tuple[str, ...], precisions: tuple[str, ...]) -> Iterator[tuple[Case, Job]]:
    """List what is timed, case by case; convolutions with their channels last, too."""
    for name in cases:
        for job in gpu_jobs((name,), precisions):
            if job.operation in (*UNFOLD, *CONV):
                yield GPU_CASES[name], job
            if job.operation in CONV and not GPU_CASES[name].channels_last:
                yield replace(GPU_CASES[name], name=f"{name}, last", channels_last=True), job


class Timings:
    """The contenders that are there, and the rows that have been found."""

    def __init__(self, seconds: float, names: list[str], clock: Any = None) -> None:
        self.end, self.rows = time.monotonic() + seconds, list[dict[str, Any]]()
        self.devices: dict[str, Device] = {}
        for name in names:
            with suppress(ImportError, MissingError):
                self.devices[name] = DEVICES[name](1)
        self.clock = clock or Clock()
        self.first = next(iter(self.devices.values()))
        self.cache = self.first.describe()["l2_bytes"]

    def run(self, cases: tuple[str, ...], precisions: tuple[str, ...]) -> bool:
        """Take one job after the other; whether the time was enough."""
        for case, job in jobs(cases, precisions):
            if time.monotonic() > self.end:
                return False
            try:
                self.job(case, job)
            except Exception as error:  # noqa: BLE001  # such as too little memory: the next may do
                print(case.name, job.precision, job.operation, f"{type(error).__name__}: {error}", flush=True)
            for device in self.devices.values():
                device.free()
        return True

    def job(self, case: Case, job: Job) -> None:
        """Let every contender have its turn with the same numbers."""
        task = OPERATIONS[job.operation]
        drawn = self.drawn(case, task.operands, PRECISIONS[job.precision][1])
        double = {name: self.first.plain(self.first.convert(a, job.precision)) for name, a in drawn[0].items()}
        expected = reference(case, job.operation, {name: a.astype(np.float64) for name, a in double.items()})
        key = {"case": case.name, "precision": job.precision, "operation": job.operation}
        for name, device in self.devices.items():
            if time.monotonic() > self.end:
                return
            with device.setting(job.precision):
                function = device.functions(case, job.precision).get(job.operation)
                if function is None:
                    continue
                row = {**key, "who": name, **self.turn(device, case, job, function, drawn, expected[task.results[0]])}
            self.rows.append(row)
            save("timings.json", self.rows)
            if "refused" not in row:
                print(line(row), flush=True)

    def turn(
        self, device: Device, case: Case, job: Job, function: Function, drawn: list[dict[str, Any]], expected: Any
    ) -> dict[str, Any]:
        """Error and times of a contender; or why it has none."""
        row: dict[str, Any] = {}
        try:
            sets = [
                [device.placed(case, name, device.convert(a, job.precision)) for name, a in s.items()] for s in drawn
            ]
            row["error"] = relative_error(device.plain(function(*sets[0])), expected)
            if not row["error"] <= PRECISIONS[job.precision][2]:  # NaN is wrong, too
                row["failed"] = f"wrong by {row['error']:.1e} of the largest element"
            times = self.clock.time([partial(function, *operands) for operands in sets])
            row |= {"device_s": times.device, "host_s": times.host, "apart": times.apart}
        except Exception as error:  # noqa: BLE001  # the next contender may do
            refused = isinstance(error, ValueError) and "cannot serve" in str(error)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            row["refused" if refused else "failed"] = reason[:300]
        return row

    def drawn(self, case: Case, names: tuple[str, ...], itemsize: int) -> list[dict[str, Any]]:
        """Sets of random numbers in float32."""
        rng = self.first.xp.random.default_rng(seed(case))
        touched = sum(math.prod(case.shape(name)) for name in names) * itemsize
        count = max(1, min(MOST_SETS, 1 + CACHES * self.cache // max(1, touched)))
        return [{name: rng.standard_normal(case.shape(name), dtype=np.float32) for name in names} for _ in range(count)]


def line(row: dict[str, Any]) -> str:
    """Write a row for people."""
    figures = [f"{1e6 * row[key]:.1f} us {key.removesuffix('_s')}" for key in ("device_s", "host_s") if key in row]
    rest = row.get("failed") or f"error {row['error']:.0e}"
    return "  ".join((row["precision"], row["case"], row["operation"], row["who"], *figures, rest))


def run(seconds: float, cases: tuple[str, ...], precisions: tuple[str, ...]) -> None:
    """Time what is asked for, within some seconds."""
    done = Timings(seconds, contenders()).run(cases, precisions)
    print("done" if done else "stopped: no time left")
