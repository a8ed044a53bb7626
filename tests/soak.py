"""Calls of all kinds from 8 threads at once, for minutes: every result is compared, and the memory must not grow.

Run it as a program::

    python tests/soak.py --seconds 600

It uses every array library that is installed. What must come out is known before it begins, from plain loops.
"""

import argparse
import gc
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np
from libraries import Backend, installed
from oracle import Oracle

import xconv

#: Shapes of x and w, and options: from a few numbers to several tiles on several threads.
CASES = [
    ((2, 3, 17), (4, 3, 5), {"stride": 2, "padding": 1}),
    ((1, 4, 12, 10), (6, 2, 3, 3), {"groups": 2, "padding": (1, 0)}),
    ((2, 4, 9, 9), (8, 1, 3, 3), {"groups": 4, "padding": 1}),
    ((1, 2, 8, 9), (3, 2, 4, 3), {"dilation": 2, "padding": 3, "pad_mode": "wrap"}),
    ((1, 1, 24, 24), (1, 1, 11, 11), {"padding": 5, "pad_mode": "reflect"}),
    ((1, 2, 5, 24), (2, 2, 3, 9), {"padding": 8, "pad_mode": "symmetric"}),
    ((3, 2, 5, 6, 4), (2, 2, 3, 3, 3), {"padding": 1}),
    ((2, 5, 11, 8), (7, 5, 1, 1), {}),
]
#: One large enough for threads of its own; plain loops take long, so "gemm" says what must come out.
LARGE = ((4, 24, 48, 48), (32, 24, 3, 3), {"padding": 1})
LIBRARIES = (Backend.NUMPY, Backend.STRICT, Backend.TORCH, Backend.JAX, Backend.DASK)
THREADS = 8


class Case:
    """A convolution with its three results, in whole numbers, and the same in every library."""

    def __init__(self, x_shape, w_shape, options, libraries, *, large=False):
        rng = np.random.default_rng(len(x_shape) + x_shape[-1])
        g = Oracle(x_shape, w_shape, **options)
        x, w, dy = (rng.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, w_shape, g.y_shape))
        if large:
            exact = {**options, "algorithm": "gemm"}
            wide = [a.astype(np.float64) for a in (x, w, dy)]
            self.expected = (
                xconv.conv(wide[0], wide[1], **exact),
                xconv.conv_input_grad(wide[2], wide[1], x_shape, **exact),
                xconv.conv_weight_grad(wide[2], wide[0], w_shape, **exact),
            )
        else:
            self.expected = g.conv(x, w), g.input_grad(dy, w), g.weight_grad(dy, x)
        self.options = options
        self.arrays = [(lib, [lib.array(a) for a in (x, w, dy)]) for lib in libraries]

    def run(self, rng):
        """One function, every second time on NumPy; its largest error, relative to the largest result."""
        lib, (x, w, dy) = self.arrays[0] if rng.random() < 0.5 else rng.choice(self.arrays)
        options = dict(self.options)
        with xconv.config(threads=rng.choice([None, 1, 2, 3]), numerics=rng.choice(["fast", "strict"])):
            which = rng.randrange(3)
            if which == 0:
                result = xconv.conv(x, w, **options)
            elif which == 1:
                result = xconv.conv_input_grad(dy, w, x.shape, **options)
            else:
                result = xconv.conv_weight_grad(dy, x, w.shape, **options)
        expected = self.expected[which]
        return lib.name, float(np.max(np.abs(lib.numpy(result) - expected)) / np.max(np.abs(expected)))


def resident():
    """MiB of memory that the process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def work(cases, seed, until, counts, errors):
    rng = random.Random(seed)
    while time.monotonic() < until and not errors:
        case = rng.choice(cases)
        try:
            name, error = case.run(rng)
        except BaseException as failure:  # noqa: BLE001  (whatever it is ends the run and is told)
            errors.append(repr(failure))
            return
        if not error <= 1e-5:
            errors.append(f"{name}, {case.options}: off by {error}")
        counts[name] = counts.get(name, 0) + 1


def main():
    parser = argparse.ArgumentParser(description="Call xconv from 8 threads for a while.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--table", type=Path, help="write the counts and the memory to this file, as Markdown")
    options = parser.parse_args()
    libraries = [backend.library() for backend in LIBRARIES if installed(backend)]
    cases = [Case(*case, libraries) for case in CASES] + [Case(*LARGE, libraries, large=True)]
    begin = time.monotonic()
    counts, errors, memory = [{} for _ in range(THREADS)], [], []
    args = ((cases, seed, begin + options.seconds, counts[seed], errors) for seed in range(THREADS))
    threads = [threading.Thread(target=work, args=arguments) for arguments in args]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(1, options.seconds / 20))
        memory.append(resident())
    gc.collect()
    total = {lib.name: sum(count.get(lib.name, 0) for count in counts) for lib in libraries}
    # Everything has been met, compiled and kept after a quarter of the time.
    quarter = len(memory) // 4
    early, late = max(memory[quarter : 2 * quarter]), max(memory[-quarter:])
    calls, wrong = sum(total.values()), len(errors) or "none"
    lines = [
        f"{calls:,} calls from {THREADS} threads in {options.seconds:.0f} s, every result compared: {wrong} wrong.",
        "",
        "| library | calls |",
        "| :-- | --: |",
        *(f"| {name} | {count:,} |" for name, count in total.items()),
        "",
        f"Resident memory: at most {early:.0f} MiB in the second quarter of the time, {late:.0f} MiB in the last.",
    ]
    print("\n".join([*lines, *errors]))
    grown = late > 1.05 * early + 16
    if grown:
        print("the memory has grown")
    if options.table and not errors and not grown:
        options.table.write_text("\n".join(lines) + "\n")
    sys.exit(1 if errors or grown else 0)


if __name__ == "__main__":
    main()
