"""The text of the CUDA kernels that pool: the largest of every window and its mean, and what comes back from either.

They gather, as those of `_kernels` do: a thread makes an element of the result, or a pack of neighbours. What comes
back from the largest takes two of them. One notes for every window which tap read its largest first; the other adds
up, for every input, what belongs to the windows that noted the tap by which they read it. Subnormal numbers of float32
are zeros to these kernels, as they are to CuPy's own.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from ..._geometry import Geometry
from ..._typing import DType, Pooled
from ._kernels import axes_of, folded
from ._lines import Kernel, Memory
from ._taps import Tap, Text, Walk, spread

#: From so many taps on, their numbers take more than a byte, of which one is for none.
MANY = 255
#: Of two numbers, the first one stays if it is none, or not smaller.
BETTER = "sum[j] == sum[j] && !(v <= sum[j])"


def numbers(g: Geometry) -> DType:
    """The dtype of a tap's number; all of its bits are set where no tap reads anything."""
    return np.dtype("uint8" if g.taps < MANY else "int32")


def max_pool(g: Geometry, x: Memory, y: Memory, *, literal: bool) -> Kernel:
    """The largest element of every window, of equals the first; NaN where there is one, and the least for none."""
    text, walk = _over_windows("max_pool", g, x, y, literal=literal, compares=True)
    for tap in text.taps(walk):
        _compare(text, tap, BETTER, "sum[j] = v;")
    return _stored(text, y, "sum[j]")


def max_taps(g: Geometry, x: Memory, found: Memory, *, literal: bool) -> Kernel:
    """The number of the tap that reads it."""
    text, walk = _over_windows("max_taps", g, x, found, literal=literal, compares=True)
    text.line(f"int tap[{text.pack}];")
    text.each("tap[j] = -1;")
    for tap in text.taps(walk):
        _compare(text, tap, f"(tap[j] < 0 || ({BETTER}))", f"sum[j] = v; tap[j] = {_number(text, tap)};")
    return _stored(text, found, "tap[j]")


def max_pool_grad(g: Geometry, dy: Memory, found: Memory, dx: Memory, *, literal: bool) -> Kernel:
    """What of `dy` belongs to windows that read their largest from a place, in the order of the taps."""
    text = Text("max_pool_grad", g, (dy, found, dx), literal=literal, adjoint=True)
    text.threads({"n": (g.batch, dx.steps[0]), "c": (g.c_in, dx.steps[1]), **axes_of("i", g.size, dx.steps[2:])})
    text.line(f"struct alignas({text.pack * found.itemsize}) R {{ F v[{text.pack}]; }};")
    walk = text.read_by(dy.steps[2:], (0,) * len(g.axes), found.steps[2:])
    for name, array in (("from", dy), ("beside", found)):
        text.define(name, array.start, {"n": array.steps[0], "c": array.steps[1], **spread("o", array.steps[2:])})
    for tap in text.taps(walk):
        pack, number = text.load("x", tap), text.load("found", tap, beside=True)
        text.each(f"if ({number}.v[j] == F({_number(text, tap)})) sum[j] += A({pack}.v[j]);", tap.reaches)
    text.store(dx, {"n": dx.steps[0], "c": dx.steps[1], **spread("i", dx.steps[2:])})
    return text.kernel("raw T x, raw F found", "raw U y")


def avg_pool(g: Geometry, x: Memory, y: Memory, *, literal: bool, seen: bool) -> Kernel:
    """The mean of every window: of all of it, or of what is `seen`."""
    text, walk = _over_windows("avg_pool_seen" if seen else "avg_pool", g, x, y, literal=literal)
    if seen:
        text.line(f"int seen[{text.pack}];")
        text.each("seen[j] = 0;")
    for tap in text.taps(walk):
        pack = text.load("x", tap)
        text.each(f"sum[j] += A({pack}.v[j]);", tap.reaches)
        for reaches, place in tap.lanes if seen else ():
            text.each(f"seen[j] += {place.inside};", reaches)
    count = "seen[j]" if seen else text.number("taps", g.taps)
    return _stored(text, y, f"sum[j] / ({_divisor(x)}){count}")


def avg_shares(g: Geometry, dy: Memory, shares: Memory, *, literal: bool) -> Kernel:
    """What every element that a window sees gets of `dy`."""
    text = Text("avg_shares", g, (dy, shares), literal=literal, packs=False)
    text.threads(_places(g, shares))
    text.line("int seen = 0;")
    for tap in text.taps(text.reading(dy._replace(start=0, steps=(0,) * len(dy.steps)), "c")):
        text.line(f"seen += {tap.places[0].inside};")
    text.define("at", dy.start, {"n": dy.steps[0], "c": dy.steps[1], **spread("o", dy.steps[2:])})
    text.line("sum[0] = A(x[at]);")
    return _stored(text, shares, f"sum[j] / ({_divisor(dy)})seen")


def avg_pool_grad(g: Geometry, dy: Memory, dx: Memory, *, literal: bool, seen: bool) -> Kernel:
    """The sum of the shares; where those of all elements are equal, the share of the sum."""
    cols = dy._replace(shape=g.columns_shape, steps=(*dy.steps[:2], *(0 for _ in g.axes), *dy.steps[2:]))
    verb, divisor = ("avg_pool_grad_seen", None) if seen else ("avg_pool_grad", _divisor(dy))
    return folded(verb, g, cols, dx, literal=literal, divisor=divisor)


#: By what is made of a window: the kernel for that; of means, also the one for what comes back.
POOLS: dict[Pooled, Callable[..., Kernel]] = {
    "max": max_pool,
    "mean": partial(avg_pool, seen=False),
    "mean_seen": partial(avg_pool, seen=True),
}
SHARES: dict[Pooled, Callable[..., Kernel]] = {
    "mean": partial(avg_pool_grad, seen=False),
    "mean_seen": partial(avg_pool_grad, seen=True),
}


def _over_windows(
    verb: str, g: Geometry, x: Memory, y: Memory, *, literal: bool, compares: bool = False
) -> tuple[Text, Walk]:
    """A text whose threads have a window each, or neighbours."""
    text = Text(verb, g, (x, y), literal=literal, compares=compares)
    text.threads(_places(g, y))
    return text, text.reading(x, "c")


def _compare(text: Text, tap: Tap, better: str, taken: str) -> None:
    """What is done with an element that is better than those before it."""
    pack = text.load("x", tap)
    for reaches, place in tap.lanes:
        text.each(f"{{ const A v = A({pack}.v[j]); if ({place.inside} && {better}) {{ {taken} }} }}", reaches)


def _stored(text: Text, y: Memory, value: str) -> Kernel:
    text.store(y, {"n": y.steps[0], "c": y.steps[1], **spread("o", y.steps[2:])}, value)
    return text.kernel("raw T x", "raw U y")


def _places(g: Geometry, y: Memory) -> dict[str, tuple[int, int]]:
    return {"n": (g.batch, y.steps[0]), "c": (g.c_in, y.steps[1]), **axes_of("o", g.out, y.steps[2:])}


def _number(text: Text, tap: Tap) -> str:
    """The number of a tap among all, the last axis running fastest."""
    weights = [math.prod(text.g.kernel[a + 1 :]) for a in range(len(text.g.axes))]
    return f"(int)({text.steps('weight', tap.numbers, tuple(weights))})"


def _divisor(x: Memory) -> str:
    """The C++ type of what a sum is divided by."""
    return "double" if x.dtype in {"float64", "complex128"} else "float"
