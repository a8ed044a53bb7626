"""Pairs of a signal and a kernel: one call of xconv against scipy.signal. ``python -m bench.pairs`` writes a table.

All make the full convolutions of the same pairs on one thread, each in a process of its own, in turns. Every result is
compared with that of `fftconvolve` in double precision before it is timed.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from .text import markdown, number
from .turns import Call, Comparison, main, spread, surroundings


class Case(NamedTuple):
    """How many pairs, and the sizes of both on every axis."""

    pairs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    dtype: str = "float32"


CASES = {
    "images3": Case(64, (256, 256), (3, 3)),
    "images7": Case(64, (256, 256), (7, 7)),
    "images15": Case(64, (256, 256), (15, 15)),
    "images31": Case(64, (256, 256), (31, 31)),
    "complex": Case(16, (256, 256), (15, 15), "complex64"),
    "patches": Case(1000, (32, 32), (5, 5)),
    "alike": Case(1000, (32, 32), (32, 32)),
    "signals": Case(1000, (1000,), (31,)),
    "long": Case(100, (10_000,), (501,)),
    "volumes": Case(8, (64, 64, 64), (5, 5, 5)),
}


def operands(case: Case, dtype: str) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    values = [rng.normal(size=(2, case.pairs, *size)) for size in (case.size, case.kernel)]
    x, w = (real + 1j * imaginary if dtype.startswith("complex") else real for real, imaginary in values)
    return x.astype(dtype), w.astype(dtype)


def xconv_once(case: Case, dtype: str) -> Call:
    """The call with groups, the flip of the kernels included."""
    import numpy as np

    import xconv

    (x, w), axes = operands(case, dtype), range(2, 2 + len(case.size))
    options = {"padding": [k - 1 for k in case.kernel], "groups": case.pairs}
    return lambda: xconv.conv(x[None], np.flip(w[:, None], axes), **options)[0]


def looped(name: str) -> Callable[[Case, str], Call]:
    """A function of scipy.signal, pair by pair."""

    def made(case: Case, dtype: str) -> Call:
        import numpy as np
        from scipy import signal

        x, w = operands(case, dtype)
        return lambda: np.stack([getattr(signal, name)(*pair) for pair in zip(x, w, strict=True)])

    return made


def scipy_once(case: Case, dtype: str) -> Call:
    """SciPy's own way to do with one call."""
    from scipy import signal

    (x, w), axes = operands(case, dtype), range(1, 1 + len(case.size))
    return lambda: signal.fftconvolve(x, w, axes=axes)


CONTENDERS = {
    "fftconvolve": looped("fftconvolve"),
    "oaconvolve": looped("oaconvolve"),
    "convolve": looped("convolve"),
    "fftconvolve, axes=": scipy_once,
    "xconv": xconv_once,
}


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    results = {(r["case"], r["contender"]): r for r in found["results"]}
    others, rows = [name for name in CONTENDERS if name != "xconv"], []
    for name in dict.fromkeys(case for case, _ in results):
        case, ours = CASES[name], results[name, "xconv"]
        sizes = (" x ".join(map(str, size)) for size in (case.size, case.kernel))
        ratios = [number(ours["median"] / results[name, other]["median"]) for other in others]
        rows.append([str(case.pairs), *sizes, case.dtype, spread(ours), *ratios])
    head = ["pairs", "of", "with", "dtype", "xconv ms", *(f"÷ {name}" for name in others)]
    return f"""# Pairs of a signal and a kernel: timings

{found["date"]}, by `python -m bench.pairs` in {found["rounds"]} rounds on {found["threads"]} thread.

{surroundings(found)}

Full convolutions. Times are medians ± half the interquartile range. The ratios are xconv's time over that of
scipy.signal's functions: below 1, xconv is faster. These are called in a loop over the pairs, but for the last one.

{markdown(head, rows, left=4)}
"""


if __name__ == "__main__":
    what = "Time one call of xconv against scipy.signal on pairs of a signal and a kernel."
    sys.exit(main(Comparison("pairs", what, CASES, CONTENDERS, ("xconv", "numpy", "scipy"), table, threads=1)))
