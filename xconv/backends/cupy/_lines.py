"""Writes the text of a kernel, line by line: its types, its threads and their places, and the end."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ..._geometry import Geometry
from ..._typing import Shape

#: The most taps that are written out.
UNROLLED = 49
#: Bytes of the widest load and store.
WIDEST = 16
#: How many neighbours on a spatial axis may share a thread, and the most bytes of the input that these may be: with
#: more, registers get scarce, and there is little left to share.
NEIGHBOURS, NARROW = (4, 2), 8
#: Threads that fill a GPU: neighbours share one only where so many are left.
THREADS = 2**17
#: The C++ type in which the numbers of a dtype are compared, and the one in which they are added up, where these are
#: not their own.
HALVES = {"float16": "float", "bfloat16": "float"}
SUMS = {
    **HALVES,
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


class Lines:
    """A text, and what is known while it grows."""

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
        compares: bool = False,
    ) -> None:
        self.verb, self.g, self.arrays, self.literal, self.filters = verb, g, arrays, literal, filters
        #: The number of taps where they are written out, else 0.
        self.unrolled = g.taps if literal and g.taps <= UNROLLED else 0
        self.packs, self.adjoint, self.compares = packs, adjoint, compares
        margin = max(abs(a.lo) + abs(a.hi) + a.extent + a.stride for a in g.axes)
        period = max(a.stride // math.gcd(a.stride, a.dilation) for a in g.axes)  # which `read_by` squares
        self.wide = period**2 >= 2**31 or any(_reach(array, margin) >= 2**31 for array in arrays)
        self.lines: list[str] = []
        self.numbers: dict[str, int] = {}
        self.depth = 0
        self.defined: set[str] = set()

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
        self.line(f"typedef {(HALVES if self.compares else SUMS).get(source.dtype, 'T')} A;")
        self.line(f"struct alignas({self.pack * source.itemsize}) P {{ T v[{self.pack}]; }} zero;")
        self.line(f"struct alignas({self.pack * result.itemsize}) Q {{ U v[{self.pack}]; }} q;")
        self.line(f"A sum[{sums}];")
        self.each("zero.v[j] = T(0);")
        self.each(f"sum[j] = A({_lowest(source) if self.compares else 0});", range(sums))
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

    def store(self, result: Memory, steps: Mapping[str, int], value: str = "sum[j]") -> None:
        """The sums, or what they become, to their place."""
        self.define("to", result.start, steps)
        self.each(f"q.v[j] = U({value});")
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


def _lowest(array: Memory) -> str:
    """What no number is below."""
    if array.dtype.startswith("int"):
        return f"-{2 ** (8 * array.itemsize - 1) - 1}LL - 1"
    return "0" if array.dtype.startswith("uint") else "-1 / A(0)"


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
