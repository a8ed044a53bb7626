"""The text of the CUDA kernels: windows, their adjoint, and depthwise convolution.

Every kernel is the body of a CuPy `ElementwiseKernel`. One thread makes one element of the result, or a pack of
neighbours where the result runs fastest, and gathers what it needs for it. Nobody else writes there, so there are no
atomics, and results are bitwise reproducible. Half types are summed in float32, integers modulo a power of 2.

A pack is written at once. Where the channels run fastest, it has as many of them as fit `WIDEST` bytes, and is read at
once, too. Where the last spatial axis does, it has two or four neighbours: what they read is read element by element,
once where several of them need it, and all the rest they share, from the place of the thread to the other axes.

The same code writes a text in two forms. The *specialised* one has every size and step as a literal, and the loops over
up to `UNROLLED` taps written out: the compiler turns divisions into multiplications and addresses into constants, and
what is left waits for memory only. The *general* one takes the numbers as arguments, and serves every geometry of one
rank and memory order. Indices have 32 bits where that is enough, and 64 otherwise.

Arrays come as flat views of their memory, with their steps beside them: any order of axes and any slice is read and
written in place.
"""

from collections.abc import Iterator

from ..._geometry import Geometry
from ..._typing import Shape
from ._lines import Kernel, Memory
from ._taps import Step, Tap, Text, Walk, spread


def im2col(g: Geometry, x: Memory, cols: Memory, *, literal: bool) -> Kernel:
    """All windows of ``x (n, c, *size)``, to ``cols (n, c, *kernel, *out)``; a thread makes all taps of its windows."""
    rank = len(g.axes)
    n, c, taps, out = *cols.steps[:2], cols.steps[2 : 2 + rank], cols.steps[2 + rank :]
    text = Text("im2col", g, (x, cols), literal=literal)
    text.threads({"n": (g.batch, n), "c": (g.c_in, c), **axes_of("o", g.out, out)})
    text.define("to", cols.start, {"n": n, "c": c, **spread("o", out)})
    for dozen in _dozens(text.taps(text.reading(x, "c"))):  # the loads of a dozen before their stores
        packs = [text.load("x", tap) for tap in dozen]
        for tap, pack in zip(dozen, packs, strict=True):
            text.each(f"q.v[j] = U({pack}.v[j]);")
            text.line(f"*(Q*)&y[to + {text.steps('to_t', tap.numbers, taps)}] = q;")
    return text.kernel("raw T x", "raw U y")


def col2im(g: Geometry, cols: Memory, x: Memory, *, literal: bool) -> Kernel:
    """The adjoint of `im2col`; a thread adds up what was read from one place, in the order of the taps."""
    return folded("col2im", g, cols, x, literal=literal)


def folded(verb: str, g: Geometry, cols: Memory, x: Memory, *, literal: bool, divisor: str | None = None) -> Kernel:
    """The same; or that divided by the number of the taps, as a C++ type that is named."""
    rank = len(g.axes)
    n, c, taps, out = *cols.steps[:2], cols.steps[2 : 2 + rank], cols.steps[2 + rank :]
    text = Text(verb, g, (cols, x), literal=literal, adjoint=True)
    text.threads({"n": (g.batch, x.steps[0]), "c": (g.c_in, x.steps[1]), **axes_of("i", g.size, x.steps[2:])})
    walk = text.read_by(out, taps)
    text.define("from", cols.start, {"n": n, "c": c, **text.bases})
    for tap in text.taps(walk):
        text.each(f"sum[j] += A({text.load('x', tap)}.v[j]);", tap.reaches)
    value = f"sum[j] / ({divisor}){text.number('taps', g.taps)}" if divisor else "sum[j]"
    text.store(x, {"n": x.steps[0], "c": x.steps[1], **spread("i", x.steps[2:])}, value)
    return text.kernel("raw T x", "raw U y")


def depthwise(g: Geometry, x: Memory, w: Memory, y: Memory, *, literal: bool) -> Kernel:
    """Every channel of ``x`` under its own filters ``w (c_out, 1, *kernel)``, to ``y (n, c_out, *out)``."""
    text = Text("depthwise", g, (x, y), literal=literal, filters=w)
    text.threads({"n": (g.batch, y.steps[0]), "c": (g.c_out, y.steps[1]), **axes_of("o", g.out, y.steps[2:])})
    text.line(f"const I b = c / {text.number('multiplier', g.c_out // g.c_in)};")
    for tap in text.taps(text.reading(x, "b")):
        text.each(f"sum[j] += A({text.load('x', tap)}.v[j]) * A({text.filter(tap)}.v[j]);", tap.reaches)
    text.store(y, {"n": y.steps[0], "c": y.steps[1], **spread("o", y.steps[2:])})
    return text.kernel("raw T x, raw T w", "raw U y")


def depthwise_input_grad(g: Geometry, dy: Memory, w: Memory, dx: Memory, *, literal: bool) -> Kernel:
    """The adjoint in x: a sum over all filters of a channel, and over the taps."""
    text = Text("depthwise_input_grad", g, (dy, dx), literal=literal, filters=w, adjoint=True)
    text.threads({"n": (g.batch, dx.steps[0]), "b": (g.c_in, dx.steps[1]), **axes_of("i", g.size, dx.steps[2:])})
    multiplier = text.number("multiplier", g.c_out // g.c_in)
    walk = text.read_by(dy.steps[2:], (0,) * len(g.axes))
    with text.block(f"for (I c = b * {multiplier}; c < b * {multiplier} + {multiplier}; ++c)"):
        text.define("from", dy.start, {"n": dy.steps[0], "c": dy.steps[1], **text.bases})
        for tap in text.taps(walk):
            text.each(f"sum[j] += A({text.load('x', tap)}.v[j]) * A({text.filter(tap)}.v[j]);", tap.reaches)
    text.store(dx, {"n": dx.steps[0], "b": dx.steps[1], **spread("i", dx.steps[2:])})
    return text.kernel("raw T x, raw T w", "raw U y")


def depthwise_weight_grad(g: Geometry, dy: Memory, x: Memory, parts: Memory, *, literal: bool) -> Kernel:
    """The adjoint in w, as partial sums ``parts (c_out, *kernel, lanes)`` over every `lanes`-th pixel of all images."""
    channel, taps, lane = parts.steps[0], parts.steps[1:-1], parts.steps[-1]
    text = Text("depthwise_weight_grad", g, (dy, x, parts), literal=literal, packs=False)
    places = {"c": (g.c_out, channel), "lane": (parts.shape[-1], lane)}
    text.threads(places if text.unrolled else {**places, **axes_of("t", g.kernel, taps)}, sums=text.unrolled or 1)
    text.line(f"const I b = c / {text.number('multiplier', g.c_out // g.c_in)};")
    pixels, lanes = text.number("pixels", g.batch * g.pixels), text.number("lanes", parts.shape[-1])
    with text.block(f"for (N m = (N)lane; m < (N){pixels}; m += (N){lanes})"):
        text.coordinates("m", {"n": g.batch, **spread("o", g.out)})
        text.define("at", dy.start, {"n": dy.steps[0], "c": dy.steps[1], **spread("o", dy.steps[2:])})
        text.line("const A s = A(dy[at]);")
        for i, tap in enumerate(text.taps(text.reading(x, "b"), looped=False)):
            value = f"A({text.load('x', tap)}.v[0])"
            text.line(f"sum[{i}] += s * {text.conjugated(value)};")
    text.define("to", parts.start, {"c": channel, "lane": lane})
    for i, tap in enumerate(text.taps(Walk(g.kernel, lambda _, t: Step(t, range(1), ("",))), looped=False)):
        text.line(f"y[to + {text.steps('to_t', tap.numbers, taps)}] = U(sum[{i}]);")
    return text.kernel("raw T dy, raw T x", "raw U y")


def _dozens(taps: Iterator[Tap]) -> Iterator[list[Tap]]:
    dozen: list[Tap] = []
    for tap in taps:
        dozen.append(tap)
        if isinstance(tap.numbers[0], str) or len(dozen) == 12:
            yield dozen
            dozen = []
    if dozen:
        yield dozen


def axes_of(letter: str, lengths: Shape, steps: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    return {f"{letter}{a}": pair for a, pair in enumerate(zip(lengths, steps, strict=True))}
