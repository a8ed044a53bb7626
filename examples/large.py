"""Convolve an image of 4 GiB with workers of 1 GiB each, and survive the loss of one.

Run it with Dask's scheduler for several processes (``pip install "xconv[dask]" distributed``)::

    python examples/large.py

The image never exists in one place: its chunks are made, convolved and compared by the workers, and the halos travel
between them. Its pixels are small whole numbers that follow from their coordinates. So every chunk of the result
and of its gradients can be computed again from coordinates alone, tap by tap, and must be equal. As soon as some
results are there, one worker is killed. It takes some minutes, and ends with an error if any number is wrong.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import xconv

FILTERS = np.array(
    [[[[1, 2, 1], [0, 0, 0], [-1, -2, -1]]], [[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]],
    dtype=np.float32,
)
OPTIONS = {"padding": 1, "pad_mode": "wrap"}
#: Steps down and to the right within a window, and what the filters hold there.
TAPS = [(down, right, FILTERS[:, 0, down, right]) for down in range(3) for right in range(3)]


def pixels(top: int, left: int, height: int, width: int, size: int) -> np.ndarray:
    """A part of the image, which begins again where it ends. No two chunks are alike."""
    rows, columns = np.arange(top, top + height) % size, np.arange(left, left + width) % size
    return ((rows[:, None] % 61 * (columns % 67) + rows[:, None] // 61 + columns // 67) % 7 - 3).astype(np.float32)


def image(size: int, chunk: int) -> da.Array:
    """All of it, in chunks that are made where they are needed."""

    def made(block_info: dict) -> np.ndarray:
        _, _, (top, bottom), (left, right) = block_info[None]["array-location"]
        return pixels(top, left, bottom - top, right - left, size)[None, None]

    chunks = ((1,), (1,), *(2 * (size // chunk * (chunk,),)))
    return da.map_blocks(made, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0, 0), np.float32))


def plain_result(x: np.ndarray) -> np.ndarray:
    """The convolution, tap by tap, of a part of the image with one more pixel on every side."""
    height, width = x.shape[0] - 2, x.shape[1] - 2
    return sum(w[:, None, None] * x[down : down + height, right : right + width] for down, right, w in TAPS)


def plain_gradient(x: np.ndarray) -> np.ndarray:
    """The gradient in the image where the result itself comes back, of a part with two more pixels on every side."""
    y = plain_result(x)
    height, width = y.shape[1] - 2, y.shape[2] - 2
    places = [(w, (slice(2 - down, 2 - down + height), slice(2 - right, 2 - right + width))) for down, right, w in TAPS]
    return sum(w[0] * y[0][place] + w[1] * y[1][place] for w, place in places)


def plain_sums(x: np.ndarray) -> np.ndarray:
    """The part of a chunk, with one more pixel on every side, in the filters' gradient."""
    height, width = x.shape[0] - 2, x.shape[1] - 2
    y, x = plain_result(x).reshape(2, -1), x.astype(np.float64)
    return np.stack([y @ x[down : down + height, right : right + width].ravel() for down, right, _ in TAPS], axis=-1)


def by_chunk(a: da.Array, margin: int, size: int, function: Callable[..., np.ndarray], numbers: int) -> da.Array:
    """The sum of ``function(chunk, pixels around it)`` over all chunks, so many numbers each."""

    def run(chunk: np.ndarray, block_info: dict) -> np.ndarray:
        _, _, (top, bottom), (left, right) = block_info[0]["array-location"]
        x = pixels(top - margin, left - margin, bottom - top + 2 * margin, right - left + 2 * margin, size)
        return np.asarray(function(chunk, x), np.float64).reshape(1, numbers, 1, 1)

    chunks = ((1,), (numbers,), *((1,) * len(sizes) for sizes in a.chunks[2:]))
    return a.map_blocks(run, dtype=np.float64, chunks=chunks).sum(axis=(0, 2, 3))


def differences(size: int, chunk: int) -> tuple[da.Array, ...]:
    """Numbers that are wrong in the result and in the gradient of the image; the filters' gradient, twice."""
    x = image(size, chunk)
    y = xconv.conv(x, FILTERS, **OPTIONS)
    dx = xconv.conv_input_grad(y, FILTERS, x.shape, **OPTIONS)
    dw = xconv.conv_weight_grad(y, x, FILTERS.shape, dtype=np.float64, **OPTIONS)
    return (
        by_chunk(y, 1, size, lambda found, around: np.count_nonzero(found[0] != plain_result(around)), 1),
        by_chunk(dx, 2, size, lambda found, around: np.count_nonzero(found[0, 0] != plain_gradient(around)), 1),
        dw.reshape(-1),
        by_chunk(x, 1, size, lambda _, around: plain_sums(around), 18),
    )


def kill_one(client: Client, results: int, told: list[str]) -> None:
    """Kill the process of a worker that holds so many results, as if its machine had failed."""
    while True:
        time.sleep(0.05)
        for address, keys in client.has_what().items():
            if sum("xconv-conv" in str(key) for key in keys) >= results:
                os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)
                told.append(address)
                return


def main() -> None:
    parser = argparse.ArgumentParser(description="Convolve an image that no worker has room for.")
    parser.add_argument("--size", type=int, default=32768, help="side of the image in pixels, a multiple of the chunks")
    parser.add_argument("--chunk", type=int, default=2048, help="side of a chunk")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--memory", default="1GiB", help="of each")
    parser.add_argument("--kill-at", type=int, default=4, help="results that a worker holds when it dies; 0 for never")
    options = parser.parse_args()

    chunks = (options.size // options.chunk) ** 2
    print(f"image: {4 * options.size**2 / 2**30:.2f} GiB in {chunks} chunks of {4 * options.chunk**2 / 2**20:.2f} MiB")
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
        if options.kill_at:
            threading.Thread(target=kill_one, args=(client, options.kill_at, killed), daemon=True).start()
        begin = time.perf_counter()
        result, gradient, found, expected = client.compute(differences(options.size, options.chunk), sync=True)
        seconds = time.perf_counter() - begin
        died_on_the_way = list(killed)
    right = not result.any() and not gradient.any() and np.array_equal(found, expected)
    print(f"forward and both gradients, twice: {seconds:.0f} s on {options.workers} workers of {options.memory}")
    print(f"workers killed on the way: {len(died_on_the_way)}")
    print("every number is right" if right else "WRONG RESULTS")
    sys.exit(0 if right and (died_on_the_way or not options.kill_at) else 1)


if __name__ == "__main__":
    main()
