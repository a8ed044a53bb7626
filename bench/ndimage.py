"""Filters of images: xconv against scipy.ndimage. ``python -m bench.ndimage`` writes a table and its JSON.

Both filter the same stacks, each in a process of its own, in turns. Every result is compared with that of scipy.ndimage
in float64 before it is timed.
"""

import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from .text import markdown, number
from .turns import Comparison, main, spread, surroundings


class Case(NamedTuple):
    """A filter, the images ``(n, *size)`` or ``(height, width)`` per kernel that it gets, and their dtype."""

    what: str
    kind: str
    shape: tuple[int, ...]
    #: Taps of a side; of a Gaussian, from its sigma.
    taps: int
    dtype: str = "float32"
    #: How many kernels.
    bank: int = 1


CASES = {
    "correlate3": Case("correlate, 3x3", "dense", (16, 512, 512), 3),
    "correlate7": Case("correlate, 7x7", "dense", (16, 512, 512), 7),
    "correlate15": Case("correlate, 15x15", "dense", (16, 512, 512), 15),
    "correlate31": Case("correlate, 31x31", "dense", (4, 512, 512), 31),
    "double": Case("correlate, 7x7", "dense", (16, 512, 512), 7, "float64"),
    "bank": Case("correlate, 8 kernels of 5x5", "dense", (16, 256, 256), 5, bank=8),
    "gaussian": Case("gaussian_filter, sigma 2 (17 taps an axis)", "gaussian", (16, 512, 512), 17),
    "uniform": Case("uniform_filter, 5 an axis", "uniform", (16, 512, 512), 5),
    "volume": Case("gaussian_filter, sigma 2 (17 taps an axis)", "gaussian", (4, 64, 64, 64), 17),
    "one": Case("correlate, 3x3, one small image", "dense", (1, 64, 64), 3),
}


class Filters:
    """The two ways to filter a case, with the border "nearest"."""

    def __init__(self, case: Case) -> None:
        import numpy as np

        self.case, self.np = case, np
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=case.shape).astype(case.dtype)
        self.rank = self.images.ndim - 1
        self.kernels = rng.normal(size=(case.bank, *(case.taps,) * self.rank)).astype(case.dtype)

    @cached_property
    def taps(self) -> Any:
        """Taps of a separable filter."""
        if self.case.kind == "uniform":
            return self.np.full(self.case.taps, 1 / self.case.taps)
        half = self.case.taps // 2
        taps = self.np.exp(-0.5 * (self.np.arange(-half, half + 1) / (half / 4)) ** 2)
        return taps / taps.sum()

    def scipy(self, dtype: str) -> Callable[[], Any]:
        from scipy import ndimage

        images, kernels = self.images.astype(dtype), self.kernels.astype(dtype)
        if self.case.kind == "gaussian":
            sigma = (0, *(self.case.taps // 2 / 4,) * self.rank)
            return lambda: ndimage.gaussian_filter(images, sigma, mode="nearest")[:, None]
        if self.case.kind == "uniform":
            size = (1, *(self.case.taps,) * self.rank)
            return lambda: ndimage.uniform_filter(images, size, mode="nearest")[:, None]
        each = [kernel[None] for kernel in kernels]
        return lambda: self.np.stack([ndimage.correlate(images, k, mode="nearest") for k in each], axis=1)

    def xconv(self) -> Callable[[], Any]:
        import xconv

        options = {"padding": "same", "pad_mode": "edge"}
        x = self.images[:, None]
        if self.case.kind == "dense":
            w = self.kernels[:, None]
            return lambda: xconv.conv(x, w, **options)
        taps = self.taps.astype(self.case.dtype)
        ws = [taps.reshape(1, 1, *(-1 if i == axis else 1 for i in range(self.rank))) for axis in range(self.rank)]

        def separable() -> Any:
            y = x
            for w in ws:
                y = xconv.conv(y, w, **options)
            return y

        return separable


CONTENDERS = {
    "scipy.ndimage": lambda case, dtype: Filters(case).scipy(dtype),
    "xconv": lambda case, _: Filters(case).xconv(),
}


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    results = {(r["case"], r["contender"]): r for r in found["results"]}
    rows = []
    for case in dict.fromkeys(name for name, _ in results):
        ours, theirs = results[case, "xconv"], results[case, "scipy.ndimage"]
        chosen = CASES[case]
        label = f"{'x'.join(map(str, chosen.shape))}, {chosen.dtype}"
        ratio, times = ours["median"] / theirs["median"], [spread(ours), spread(theirs)]
        rows.append([chosen.what, label, *times, number(ratio), f"{ours['error']:.0e}", f"{theirs['error']:.0e}"])
    head = ["filter", "images", "xconv ms", "scipy.ndimage ms", "ratio", "error of xconv", "of scipy.ndimage"]
    return f"""# Image filters: timings

{found["date"]}, by `python -m bench.ndimage` in {found["rounds"]} rounds; xconv with {found["threads"]} threads,
scipy.ndimage has one.

{surroundings(found)}

Times are medians ± half the interquartile range. The ratio is xconv's time over that of scipy.ndimage: below 1, xconv
is faster. Errors are the largest against scipy.ndimage in float64, relative to the largest element. The border is
"nearest".

{markdown(head, rows, left=2)}
"""


if __name__ == "__main__":
    what = "Time xconv and scipy.ndimage."
    sys.exit(main(Comparison("ndimage", what, CASES, CONTENDERS, ("xconv", "numpy", "scipy"), table, threads=2)))
