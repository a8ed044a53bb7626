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

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import NamedTuple

from .._geometry import Geometry
from .._typing import Shape

#: The most taps that are written out.
UNROLLED = 49
#: Bytes of the widest load and store.
WIDEST = 16
#: How many neighbours on a spatial axis may share a thread, and the most bytes of the input that these may be: with
#: more, registers get scarce, and there is little left to share.
NEIGHBOURS, NARROW = (4, 2), 8
#: Threads that fill a GPU: neighbours share one only where so many are left.
THREADS = 2**17
#: The C++ type in which the numbers of a dtype are added up, where it is not their own.
SUMS = {
    "float16": "float",
    "bfloat16": "float",
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16", "uint32"), "unsigned int"),
    **dict.fromkeys(("int64", "uint64"), "unsigned long long"),
}


class Memory(NamedTuple):
    """How an array lies in its flat view, in elements: where its first one is, and its steps."""

    dtype: str
    itemsize: int
    shape: Shape
    steps: tuple[int, ...]
    start: int = 0
    #: Whether the flat view begins at a multiple of `WIDEST` bytes.
    aligned: bool = False


class Kernel(NamedTuple):
    """An ElementwiseKernel, and how it is called: with the numbers behind its input arrays, for `size` threads."""

    name: str
    inputs: str
    outputs: str
    operation: str
    numbers: tuple[int, ...]
    size: int


class Place(NamedTuple):
    """Where something is read, and the condition to read there."""

    offset: str
    inside: str


class Tap(NamedTuple):
    """One tap, or all of them in a loop: its number on each axis, and where it reads for whom.

    For neighbours on a spatial axis, it reads one place for each that it `reaches`; for channels, one for all of them.
    """

    numbers: tuple[int | str, ...]
    reaches: range
    places: tuple[Place, ...]


class Step(NamedTuple):
    """A tap on one axis: its number in the kernel, the neighbours on this axis that it reaches, and a name for each.

    With that name behind them, `in` and `at` say whether and where it reads.
    """

    number: int | str
    reaches: range
    names: tuple[str, ...]


class Walk(NamedTuple):
    """The taps of every axis that matter to a thread: how many, and how to define each, by its axis and number."""

    counts: Shape
    step: Callable[[int, int | str], Step]


def im2col(g: Geometry, x: Memory, cols: Memory, *, literal: bool) -> Kernel:
    """All windows of ``x (n, c, *size)``, to ``cols (n, c, *kernel, *out)``; a thread makes all taps of its windows."""
    rank = len(g.axes)
    n, c, taps, out = *cols.steps[:2], cols.steps[2 : 2 + rank], cols.steps[2 + rank :]
    text = _Text("im2col", g, (x, cols), literal=literal)
    text.threads({"n": (g.batch, n), "c": (g.c_in, c), **_axes("o", g.out, out)})
    text.define("to", cols.start, {"n": n, "c": c, **_steps("o", out)})
    for dozen in _dozens(text.taps(text.reading(x, "c"))):  # the loads of a dozen before their stores
        packs = [text.load("x", tap) for tap in dozen]
        for tap, pack in zip(dozen, packs, strict=True):
            text.each(f"q.v[j] = U({pack}.v[j]);")
            text.line(f"*(Q*)&y[to + {text.steps('to_t', tap.numbers, taps)}] = q;")
    return text.kernel("raw T x", "raw U y")


def col2im(g: Geometry, cols: Memory, x: Memory, *, literal: bool) -> Kernel:
    """The adjoint of `im2col`; a thread adds up what was read from one place, in the order of the taps."""
    rank = len(g.axes)
    n, c, taps, out = *cols.steps[:2], cols.steps[2 : 2 + rank], cols.steps[2 + rank :]
    text = _Text("col2im", g, (cols, x), literal=literal, adjoint=True)
    text.threads({"n": (g.batch, x.steps[0]), "c": (g.c_in, x.steps[1]), **_axes("i", g.size, x.steps[2:])})
    walk = text.read_by(out, taps)
    text.define("from", cols.start, {"n": n, "c": c, **text.bases})
    for tap in text.taps(walk):
        text.each(f"sum[j] += A({text.load('x', tap)}.v[j]);", tap.reaches)
    text.store(x, {"n": x.steps[0], "c": x.steps[1], **_steps("i", x.steps[2:])})
    return text.kernel("raw T x", "raw U y")


def depthwise(g: Geometry, x: Memory, w: Memory, y: Memory, *, literal: bool) -> Kernel:
    """Every channel of ``x`` under its own filters ``w (c_out, 1, *kernel)``, to ``y (n, c_out, *out)``."""
    text = _Text("depthwise", g, (x, y), literal=literal, filters=w)
    text.threads({"n": (g.batch, y.steps[0]), "c": (g.c_out, y.steps[1]), **_axes("o", g.out, y.steps[2:])})
    text.line(f"const I b = c / {text.number('multiplier', g.c_out // g.c_in)};")
    for tap in text.taps(text.reading(x, "b")):
        text.each(f"sum[j] += A({text.load('x', tap)}.v[j]) * A({text.filter(tap)}.v[j]);", tap.reaches)
    text.store(y, {"n": y.steps[0], "c": y.steps[1], **_steps("o", y.steps[2:])})
    return text.kernel("raw T x, raw T w", "raw U y")


def depthwise_input_grad(g: Geometry, dy: Memory, w: Memory, dx: Memory, *, literal: bool) -> Kernel:
    """The adjoint in x: a sum over all filters of a channel, and over the taps."""
    text = _Text("depthwise_input_grad", g, (dy, dx), literal=literal, filters=w, adjoint=True)
    text.threads({"n": (g.batch, dx.steps[0]), "b": (g.c_in, dx.steps[1]), **_axes("i", g.size, dx.steps[2:])})
    multiplier = text.number("multiplier", g.c_out // g.c_in)
    walk = text.read_by(dy.steps[2:], (0,) * len(g.axes))
    with text.block(f"for (I c = b * {multiplier}; c < b * {multiplier} + {multiplier}; ++c)"):
        text.define("from", dy.start, {"n": dy.steps[0], "c": dy.steps[1], **text.bases})
        for tap in text.taps(walk):
            text.each(f"sum[j] += A({text.load('x', tap)}.v[j]) * A({text.filter(tap)}.v[j]);", tap.reaches)
    text.store(dx, {"n": dx.steps[0], "b": dx.steps[1], **_steps("i", dx.steps[2:])})
    return text.kernel("raw T x, raw T w", "raw U y")


def depthwise_weight_grad(g: Geometry, dy: Memory, x: Memory, parts: Memory, *, literal: bool) -> Kernel:
    """The adjoint in w, as partial sums ``parts (c_out, *kernel, lanes)`` over every `lanes`-th pixel of all images."""
    channel, taps, lane = parts.steps[0], parts.steps[1:-1], parts.steps[-1]
    text = _Text("depthwise_weight_grad", g, (dy, x, parts), literal=literal, packs=False)
    places = {"c": (g.c_out, channel), "lane": (parts.shape[-1], lane)}
    text.threads(places if text.unrolled else {**places, **_axes("t", g.kernel, taps)}, sums=text.unrolled or 1)
    text.line(f"const I b = c / {text.number('multiplier', g.c_out // g.c_in)};")
    pixels, lanes = text.number("pixels", g.batch * g.pixels), text.number("lanes", parts.shape[-1])
    with text.block(f"for (N m = (N)lane; m < (N){pixels}; m += (N){lanes})"):
        text.coordinates("m", {"n": g.batch, **_steps("o", g.out)})
        text.define("at", dy.start, {"n": dy.steps[0], "c": dy.steps[1], **_steps("o", dy.steps[2:])})
        text.line("const A s = A(dy[at]);")
        for i, tap in enumerate(text.taps(text.reading(x, "b"), looped=False)):
            value = f"A({text.load('x', tap)}.v[0])"
            text.line(f"sum[{i}] += s * {text.conjugated(value)};")
    text.define("to", parts.start, {"c": channel, "lane": lane})
    for i, tap in enumerate(text.taps(Walk(g.kernel, lambda _, t: Step(t, range(1), ("",))), looped=False)):
        text.line(f"y[to + {text.steps('to_t', tap.numbers, taps)}] = U(sum[{i}]);")
    return text.kernel("raw T dy, raw T x", "raw U y")


class _Text:
    """Writes one kernel, line by line."""

    def __init__(
        self,
        verb: str,
        g: Geometry,
        arrays: tuple[Memory, ...],
        *,
        literal: bool,
        filters: Memory | None = None,
        packs: bool = True,
        adjoint: bool = False,
    ) -> None:
        self.verb, self.g, self.arrays, self.literal, self.filters = verb, g, arrays, literal, filters
        #: The number of taps where they are written out, else 0.
        self.unrolled = g.taps if literal and g.taps <= UNROLLED else 0
        self.packs, self.adjoint = packs, adjoint
        margin = max(abs(a.lo) + abs(a.hi) + a.extent + a.stride for a in g.axes)
        period = max(a.stride // math.gcd(a.stride, a.dilation) for a in g.axes)  # which `read_by` squares
        self.wide = period**2 >= 2**31 or any(_reach(array, margin) >= 2**31 for array in arrays)
        self.lines: list[str] = []
        self.numbers: dict[str, int] = {}
        #: Steps from where a walk begins: the names of its places, and how far they are apart.
        self.bases: dict[str, int] = {}
        self.depth = self.loads = 0
        self.defined: set[str] = set()
        #: What was read already, by its place.
        self.found: dict[Place, str] = {}

    # What a text is made of

    def number(self, name: str, value: int) -> str:
        """The literal, or the argument of this name."""
        if self.literal:
            return str(value) if value >= 0 else f"({value})"
        self.numbers[name] = value
        return name

    def line(self, line: str) -> None:
        self.lines.append("  " * self.depth + line)

    def constant(self, kind: str, name: str, value: str) -> None:
        """A definition, if this is the first of the name."""
        if name not in self.defined:
            self.defined.add(name)
            self.line(f"const {kind} {name} = {value};")

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head + " {")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    def each(self, line: str, numbers: range | None = None) -> None:
        """`line` for every element j of a pack, or those of these numbers."""
        numbers = numbers or range(self.pack)
        self.line("#pragma unroll")
        self.line(f"for (int j = {numbers.start}; j < {numbers.stop}; j += {numbers.step}) {line}")

    def define(self, name: str, start: int, steps: Mapping[str, int]) -> None:
        """An offset: the sum of places times steps."""
        terms = [self.number(f"{name}_start", start)]
        terms += [f"{place} * {self.number(f'{name}_{place}', step)}" for place, step in steps.items()]
        self.line(f"const I {name} = {' + '.join(terms)};")

    def steps(self, name: str, numbers: tuple[int | str, ...], steps: tuple[int, ...]) -> str:
        """The offset of a tap: a sum that is known when its numbers are."""
        terms = zip(numbers, steps, strict=True)
        if all(isinstance(t, int) for t in numbers):
            return self.number(name, sum(int(t) * step for t, step in terms))
        return " + ".join(f"{t} * {self.number(f'{name}{a}', step)}" for a, (t, step) in enumerate(terms))

    # What stands at the beginning and at the end

    def threads(self, places: Mapping[str, tuple[int, int]], sums: int | None = None) -> None:
        """The types, and the place of thread `i`, such that neighbours write next to each other.

        `places` names the axes, with their lengths and their steps in the result; a thread keeps so many `sums`.
        """
        order = sorted(places, key=lambda name: (places[name][0] > 1, -abs(places[name][1])))
        lengths = {name: places[name][0] for name in order}
        self.pack, self.along = self._neighbours(math.prod(lengths.values()))
        lengths[order[-1]] //= self.pack
        self.size = math.prod(lengths.values())
        self.wide = self.wide or self.size >= 2**31
        source, result, sums = self.arrays[0], self.arrays[-1], sums or self.pack
        self.line(f"typedef {'long long' if self.wide else 'int'} I;")
        self.line(f"typedef unsigned {'long long' if self.wide else 'int'} N;")
        self.line(f"typedef {SUMS.get(source.dtype, 'T')} A;")
        self.line(f"struct alignas({self.pack * source.itemsize}) P {{ T v[{self.pack}]; }} zero;")
        self.line(f"struct alignas({self.pack * result.itemsize}) Q {{ U v[{self.pack}]; }} q;")
        self.line(f"A sum[{sums}];")
        self.each("zero.v[j] = T(0);")
        self.each("sum[j] = A(0);", range(sums))
        self.coordinates("i", lengths)
        if self.pack > 1:
            self.line(f"{order[-1]} *= {self.pack};")

    def _neighbours(self, elements: int) -> tuple[int, int | None]:
        """How many elements of the result a thread makes, and on which spatial axis: None stands for the channels'."""
        source, result, last = self.arrays[0], self.arrays[-1], self.g.axes[-1]
        pack = WIDEST // max(array.itemsize for array in self.arrays)
        together = self.filters is None or _side_by_side(self.filters, self.g)
        if self.packs and pack > 1 and together and all(_packed(array, 1, pack) for array in self.arrays):
            return pack, None
        # With indices of 64 bits, the compiler writes such a pack element by element.
        for pack in NEIGHBOURS if self.packs and not self.wide else ():
            fits = pack * source.itemsize <= NARROW and pack * THREADS <= elements
            known = not self.adjoint or (self.unrolled and pack % last.stride == 0)
            if fits and known and _packed(result, len(result.steps) - 1, pack):
                return pack, len(self.g.axes) - 1
        return 1, None

    def coordinates(self, number: str, lengths: Mapping[str, int]) -> None:
        """The places of element `number` in a box, the last axis running fastest."""
        first, *others = lengths
        self.line(f"N r_{number} = (N){number};")
        for name in reversed(others):
            length = self.number(f"{name}_length", lengths[name])
            self.line(f"I {name} = (I)(r_{number} % (N){length}); r_{number} /= (N){length};")
        self.line(f"I {first} = (I)r_{number};")

    def store(self, result: Memory, steps: Mapping[str, int]) -> None:
        """The sums, to their place."""
        self.define("to", result.start, steps)
        self.each("q.v[j] = U(sum[j]);")
        self.line("*(Q*)&y[to] = q;")

    def kernel(self, inputs: str, outputs: str) -> Kernel:
        kind = "int64" if self.wide else "int32"
        arguments = "".join(f", {kind} {name}" for name in self.numbers)
        numbers = tuple(self.numbers.values())
        return Kernel(self.name, inputs + arguments, outputs, "\n".join(self.lines), numbers, self.size)

    @property
    def name(self) -> str:
        """Says what the kernel is specialised to."""
        g, form = self.g, f"{'i64' if self.wide else 'i32'}_{self.pack}"
        if not self.literal:
            return f"xconv_{self.verb}_{len(g.axes)}d_{form}"
        axes = {"": g.size, "k": g.kernel} | {
            letter: tuple(getattr(axis, field) for axis in g.axes)
            for letter, field in (("s", "stride"), ("d", "dilation"), ("l", "lo"), ("h", "hi"))
        }
        tags = "_".join(letter + "x".join(map(str, values)) for letter, values in axes.items())
        return f"xconv_{self.verb}_n{g.batch}_c{g.c_in}_o{g.c_out}_{tags}_{form}".replace("-", "m")

    # Taps

    def taps(self, walk: Walk, *, looped: bool = True) -> Iterator[Tap]:
        """Every tap, one after the other; or one that stands for all of them, while the loops over them are open.

        Without `looped`, the threads' places say which tap that is.
        """
        if self.unrolled:
            steps = [[walk.step(a, t) for t in range(count)] for a, count in enumerate(walk.counts)]
            yield from map(self._tap, product(*steps))
            return
        with ExitStack() as loops:
            chosen: tuple[Step, ...] = ()
            for a, count in enumerate(walk.counts):
                if looped:
                    end = self.number(f"t{a}_length", count)
                    loops.enter_context(self.block(f"for (I t{a} = 0; t{a} < {end}; ++t{a})"))
                chosen += (walk.step(a, f"t{a}"),)
            yield self._tap(chosen)

    def _tap(self, steps: tuple[Step, ...]) -> Tap:
        places = (
            Place(" + ".join(f"at{name}" for name in names), " & ".join(f"in{name}" for name in names))
            for names in product(*(step.names for step in steps))
        )
        reaches = range(self.pack) if self.along is None else steps[self.along].reaches
        return Tap(tuple(step.number for step in steps), reaches, tuple(places))

    def _beside(self, a: int) -> range:
        """The neighbours of a thread on this axis."""
        return range(self.pack if a == self.along else 1)

    def reading(self, x: Memory, channel: str) -> Walk:
        """A tap reads the position ``o * stride + t * dilation - lo``, if that is within the array."""
        steps = x.steps[2:]
        for a, axis in enumerate(self.g.axes):
            stride, lo = self.number(f"stride{a}", axis.stride), self.number(f"lo{a}", axis.lo)
            self.line(f"const I i{a} = o{a} * {stride} - {lo};")
        self.define("from", x.start, {"n": x.steps[0], channel: x.steps[1], **_steps("i", steps)})

        def place(a: int, t: int | str, j: int) -> str:
            axis, taps = self.g.axes[a], range(t, t + 1) if isinstance(t, int) else range(self.g.kernel[a])
            moved = self._sum(a, t, j, dilation=axis.dilation, stride=axis.stride)
            name = f"{a}_{moved}" if isinstance(t, int) else f"{a}_{j}" if j else str(a)
            least = taps[0] * axis.dilation + j * axis.stride - axis.lo
            most = least + (len(taps) - 1) * axis.dilation + (axis.out - len(self._beside(a))) * axis.stride
            self.constant("bool", f"in{name}", self._within(f"i{a} + {moved}", least, most, f"size{a}", axis.size))
            along = self._sum(a, t, j, tap=axis.dilation * steps[a], next=axis.stride * steps[a])
            self.constant("I", f"at{name}", along)
            return name

        def step(a: int, t: int | str) -> Step:
            return Step(t, self._beside(a), tuple(place(a, t, j) for j in self._beside(a)))

        return Walk(self.g.kernel, step)

    def read_by(self, out: tuple[int, ...], taps: tuple[int, ...]) -> Walk:
        """A position q = i + lo was read by tap t for the output ``o = (q - t * dilation) / stride``, if that is whole.

        With e = gcd(stride, dilation), that is every (stride / e)-th tap from a first one, if e divides q; and from one
        to the next, the output moves by dilation / e. `out` and `taps` are the steps of the array that is read.
        """
        periods = [axis.stride // math.gcd(axis.stride, axis.dilation) for axis in self.g.axes]
        if self.along is not None:
            periods[self.along] = 1  # every tap reaches some of the neighbours
        for a, (axis, period) in enumerate(zip(self.g.axes, periods, strict=True)):
            if a == self.along:
                self.line(f"const I o{a} = i{a} / {self.number(f'stride{a}', axis.stride)};")
                continue
            common = axis.stride // period
            inverse = pow(axis.dilation // common, -1, period) if period > 1 else 0
            e, p, back = (
                self.number(f"{name}{a}", value)
                for name, value in (("common", common), ("period", period), ("inverse", inverse))
            )
            self.line(f"const I q{a} = i{a} + {self.number(f'lo{a}', axis.lo)};")
            self.line(f"const bool whole{a} = q{a} >= 0 && q{a} % {e} == 0;")
            self.line(f"const I first{a} = (I)((N)q{a} / (N){e} % (N){p} * (N){back} % (N){p});")
            taken = f"first{a} * {self.number(f'dilation{a}', axis.dilation)}"
            self.line(f"const I o{a} = (q{a} - {taken}) / {self.number(f'stride{a}', axis.stride)};")

        def step(a: int, j: int | str) -> Step:
            axis, period, name = self.g.axes[a], periods[a], f"{a}_{j}"
            if a == self.along:
                return self._phase(a, int(j), taps[a], out[a])
            move = axis.dilation * period // axis.stride
            tap = f"first{a} + {self._times(j, f'period{a}', period)}"
            last, kernel = self.number(f"out{a}", axis.out), self.number(f"kernel{a}", axis.kernel)
            output = f"(N)(o{a} - {self._times(j, f'move{a}', move)}) < (N){last}"
            self.constant("bool", f"in{name}", f"whole{a} && {tap} < {kernel} && {output}")
            self.constant("I", f"at{name}", self._times(j, f"along{a}", period * taps[a] - move * out[a]))
            return Step(f"({tap})", self._beside(a), (name,))

        self.bases = {f"first{a}": tap for a, tap in enumerate(taps) if a != self.along}
        self.bases |= {f"o{a}": step for a, step in enumerate(out)}
        return Walk(tuple(-(-axis.kernel // period) for axis, period in zip(self.g.axes, periods, strict=True)), step)

    def _phase(self, a: int, t: int, tap: int, out: int) -> Step:
        """Tap t, for neighbours from a multiple of the stride on: it reaches every `stride`-th, from a known one.

        The output that each was read for is a known number of places from ``o = i / stride``.
        """
        axis = self.g.axes[a]
        reaches, names = range((t * axis.dilation - axis.lo) % axis.stride, self.pack, axis.stride), []
        for j in reaches:
            move = (j + axis.lo - t * axis.dilation) // axis.stride
            most, along = move + (axis.size - self.pack) // axis.stride, t * tap + move * out
            names.append(f"{a}_{along}_{move}".replace("-", "m"))
            self.constant("bool", f"in{names[-1]}", self._within(f"o{a} + {move}", move, most, f"out{a}", axis.out))
            self.constant("I", f"at{names[-1]}", str(along))
        return Step(t, reaches, tuple(names))

    def _within(self, index: str, least: int, most: int, name: str, length: int) -> str:
        """The condition for an index, which is known to be from `least` to `most`, to be within an axis."""
        if self.literal and least >= 0 and most < length:
            return "true"
        return f"(N)({index}) < (N){self.number(name, length)}"

    def _sum(self, a: int, t: int | str, j: int, **factors: int) -> str:
        """Tap t times the first factor and neighbour j times the second, by their names on axis `a`."""
        (first, one), (second, other) = factors.items()
        if isinstance(t, int):
            return str(t * one + j * other)
        moved = f" + {j} * {self.number(f'{second}{a}', other)}" if j else ""
        return self._times(t, f"{first}{a}", one) + moved

    def _times(self, t: int | str, name: str, value: int) -> str:
        return self.number(name, t * value) if isinstance(t, int) else f"{t} * {self.number(name, value)}"

    def load(self, array: str, tap: Tap) -> str:
        """The name of a pack that holds what `tap` reads: zeros where it must not."""
        name = f"p{self.loads}"
        self.loads += 1
        self.line(f"P {name} = zero;")
        if self.along is None:
            (place,) = tap.places
            self.line(f"if ({place.inside}) {name} = *(const P*)&{array}[from + {place.offset}];")
            return name
        for j, place in zip(tap.reaches, tap.places, strict=True):
            if place in self.found:
                self.line(f"{name}.v[{j}] = {self.found[place]};")
            else:
                self.line(f"if ({place.inside}) {name}.v[{j}] = {array}[from + {place.offset}];")
                self.found[place] = f"{name}.v[{j}]"
        return name

    def filter(self, tap: Tap) -> str:
        """The name of a pack that holds the filters' element for `tap`, of channel `c` or the channels from there."""
        assert self.filters
        name = f"f{self.loads}"
        channel, _, *taps = self.filters.steps
        place = f"c * {self.number('w_channel', channel)} + {self.steps('w_t', tap.numbers, tuple(taps))}"
        # What nobody read adds nothing to the adjoint, not even zero times a filter: that might be infinite.
        conditions = [place.inside if self.adjoint else "true" for place in tap.places]
        self.line(f"P {name} = zero;")
        if self.along is None:
            self.line(f"if ({conditions[0]}) {name} = *(const P*)&w[{place}];")
            return name
        self.line(f"T {name}_ = T(0); if ({' || '.join(dict.fromkeys(conditions))}) {name}_ = w[{place}];")
        for j, condition in zip(tap.reaches, conditions, strict=True):
            self.line(f"if ({condition}) {name}.v[{j}] = {name}_;")
        return name

    def conjugated(self, expression: str) -> str:
        return f"conj({expression})" if self.arrays[0].dtype.startswith("complex") else expression


def _dozens(taps: Iterator[Tap]) -> Iterator[list[Tap]]:
    dozen: list[Tap] = []
    for tap in taps:
        dozen.append(tap)
        if isinstance(tap.numbers[0], str) or len(dozen) == 12:
            yield dozen
            dozen = []
    if dozen:
        yield dozen


def _axes(letter: str, lengths: Shape, steps: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    return {f"{letter}{a}": pair for a, pair in enumerate(zip(lengths, steps, strict=True))}


def _steps(letter: str, steps: tuple[int, ...]) -> dict[str, int]:
    return {f"{letter}{a}": step for a, step in enumerate(steps)}


def _packed(array: Memory, axis: int, pack: int) -> bool:
    """Whether an axis consists of packs of neighbours that one load or store reaches."""
    others = [step for a, step in enumerate(array.steps) if a != axis and array.shape[a] > 1]
    whole = all(number % pack == 0 for number in (array.start, array.shape[axis], *others))
    return array.aligned and array.steps[axis] == 1 and whole and pack * array.itemsize <= WIDEST


def _side_by_side(w: Memory, g: Geometry) -> bool:
    """Whether the filters of neighbouring channels lie next to each other, one for each."""
    return g.c_in == g.c_out and w.steps[0] == 1 and w.aligned


def _reach(array: Memory, margin: int) -> int:
    """A bound on every offset that a kernel computes: spatial places may lie outside by the padding and a kernel."""
    outside = (0, 0, *(margin for _ in array.shape[2:]))
    places = zip(array.steps, array.shape, outside, strict=True)
    return array.start + sum(abs(step) * (n + more) for step, n, more in places)
