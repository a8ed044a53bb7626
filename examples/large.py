"""Convolve an image of 4 GiB with workers of 1 GiB each, and survive the loss of one.

Run it with Dask's scheduler for several processes (``pip install "xconv[dask]" distributed``)::

    python examples/large.py

The image never exists in one place: its chunks are made, convolved and added up by the workers, and what travels
between them are the halos. It repeats itself every 64 pixels, and holds small whole numbers: so a small image says what
must come out, to the last bit. On the way, one worker is killed. It takes some minutes, and ends with an error if any
number is wrong.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import xconv

PERIOD = 64
FILTERS = np.array(
    [[[[1, 2, 1], [0, 0, 0], [-1, -2, -1]]], [[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]],
    dtype=np.float32,
)
OPTIONS = {"padding": 1, "pad_mode": "wrap"}


def pattern(size: int) -> np.ndarray:
    """A square image of whole numbers that repeats itself."""
    places = np.arange(size, dtype=np.int64) % PERIOD
    return ((places[:, None] * 5 + places * 3 + places[:, None] * places) % 7 - 3).astype(np.float32)[None, None]


def lazy(size: int, chunk: int) -> da.Array:
    """The same, in chunks that are made where they are needed."""
    shape = (1, 1, size, size)
    return da.map_blocks(
        lambda block_info: pattern(block_info[None]["chunk-shape"][-1]),
        chunks=((1,), (1,), *(2 * (size // chunk * (chunk,),))),
        dtype=np.float32,
        meta=np.empty((0,) * len(shape), np.float32),
    )


def results(x: da.Array) -> tuple[da.Array, ...]:
    """Sums that every element of the result and of both gradients has a part in, in float64."""
    y = xconv.conv(x, FILTERS, **OPTIONS)
    dx = xconv.conv_input_grad(y, FILTERS, x.shape, **OPTIONS)
    dw = xconv.conv_weight_grad(y, x, FILTERS.shape, dtype=np.float64, **OPTIONS)
    return digest(y), digest(dx), dw


def digest(a: da.Array) -> da.Array:
    """For every place within a period, the sum over all periods: what a small image says exactly."""

    def fold(block: np.ndarray) -> np.ndarray:
        n, c, height, width = block.shape
        tiles = block.reshape(n, c, height // PERIOD, PERIOD, width // PERIOD, PERIOD)
        return tiles.sum(axis=(2, 4), dtype=np.float64)

    periods = a.map_blocks(fold, dtype=np.float64, chunks=(a.chunks[0], a.chunks[1], *_folded(a)))
    grid = periods.reshape(a.shape[0], a.shape[1], len(a.chunks[2]), PERIOD, len(a.chunks[3]), PERIOD)
    return grid.sum(axis=(2, 4))


def _folded(a: da.Array) -> tuple[tuple[int, ...], ...]:
    return tuple((PERIOD,) * len(sizes) for sizes in a.chunks[2:])


def expected(size: int) -> tuple[np.ndarray, ...]:
    """The same from one period, as many times as there are."""
    x = pattern(PERIOD).astype(np.float64)
    filters = FILTERS.astype(np.float64)
    y = xconv.conv(x, filters, **OPTIONS)
    dx = xconv.conv_input_grad(y, filters, x.shape, **OPTIONS)
    dw = xconv.conv_weight_grad(y, x, filters.shape, **OPTIONS)
    return tuple((size // PERIOD) ** 2 * a for a in (y, dx, dw))


def kill_one(client: Client, after: float, told: list[str]) -> None:
    """Kill a worker's process, as if its machine had failed."""
    time.sleep(after)
    address, pid = next(iter(client.run(os.getpid).items()))
    os.kill(pid, signal.SIGKILL)
    told.append(address)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convolve an image that no worker has room for.")
    parser.add_argument("--size", type=int, default=32768, help="side of the image in pixels, a multiple of the chunks")
    parser.add_argument("--chunk", type=int, default=2048, help="side of a chunk, a multiple of 64")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--memory", default="1GiB", help="of each")
    parser.add_argument("--kill-after", type=float, default=10.0, help="seconds; 0 for never")
    options = parser.parse_args()

    x = lazy(options.size, options.chunk)
    print(f"image: {x.nbytes / 2**30:.2f} GiB in {x.npartitions} chunks of {x.nbytes / x.npartitions / 2**20:.0f} MiB")
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            memory_limit=options.memory,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        killed: list[str] = []
        if options.kill_after:
            threading.Thread(target=kill_one, args=(client, options.kill_after, killed), daemon=True).start()
        begin = time.perf_counter()
        found = client.compute(results(x), sync=True)
        seconds = time.perf_counter() - begin
    right = all(np.array_equal(a, b) for a, b in zip(found, expected(options.size), strict=True))
    print(f"forward and both gradients: {seconds:.0f} s on {options.workers} workers of {options.memory}")
    print(f"workers killed on the way: {len(killed)}")
    print("every sum is right" if right else "WRONG RESULTS")
    sys.exit(0 if right and (killed or not options.kill_after) else 1)


if __name__ == "__main__":
    main()
