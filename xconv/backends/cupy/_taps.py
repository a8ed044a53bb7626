"""Writes how a kernel walks over the taps: where each reads, whether it may, and what it loads."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import product
from typing import NamedTuple

from ..._typing import Shape
from ._lines import Lines, Memory


class Place(NamedTuple):
    """Where something is read, and the condition to read there, by the names of its steps."""

    names: tuple[str, ...]

    @property
    def inside(self) -> str:
        return " & ".join(f"in{name}" for name in self.names)

    def offset(self, letters: str = "at") -> str:
        return " + ".join(f"{letters}{name}" for name in self.names)


class Tap(NamedTuple):
    """One tap, or all of them in a loop: its number on each axis, and where it reads for whom.

    For neighbours on a spatial axis, it reads one place for each that it `reaches`; for channels, one for all of them.
    """

    numbers: tuple[int | str, ...]
    reaches: range
    places: tuple[Place, ...]

    @property
    def lanes(self) -> Iterator[tuple[range, Place]]:
        """The neighbours that read from one place, and that."""
        if len(self.places) == 1:
            yield self.reaches, self.places[0]
        else:
            yield from ((range(j, j + 1), place) for j, place in zip(self.reaches, self.places, strict=True))


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


class Text(Lines):
    """The text of a kernel that walks over taps."""

    #: How many packs were loaded.
    loads = 0
    #: Steps from where `read_by` begins: the names of its places, and how far they are apart.
    bases: dict[str, int]

    @cached_property
    def found(self) -> dict[tuple[str, Place], str]:
        """What was read already, by its array and its place."""
        return {}

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
        places = map(Place, product(*(step.names for step in steps)))
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
        self.define("from", x.start, {"n": x.steps[0], channel: x.steps[1], **spread("i", steps)})

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

    def read_by(self, out: tuple[int, ...], taps: tuple[int, ...], beside: tuple[int, ...] = ()) -> Walk:
        """A position q = i + lo was read by tap t for the output ``o = (q - t * dilation) / stride``, if that is whole.

        With e = gcd(stride, dilation), that is every (stride / e)-th tap from a first one, if e divides q; and from one
        to the next, the output moves by dilation / e. `out` and `taps` are the steps of the array that is read; those
        of another one, which has no taps, may be given `beside`.
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
                return self._phase(a, int(j), taps[a], out[a], *beside[a : a + 1])
            move = axis.dilation * period // axis.stride
            tap = f"first{a} + {self._times(j, f'period{a}', period)}"
            last, kernel = self.number(f"out{a}", axis.out), self.number(f"kernel{a}", axis.kernel)
            output = f"(N)(o{a} - {self._times(j, f'move{a}', move)}) < (N){last}"
            self.constant("bool", f"in{name}", f"whole{a} && {tap} < {kernel} && {output}")
            self.constant("I", f"at{name}", self._times(j, f"along{a}", period * taps[a] - move * out[a]))
            for step in beside[a : a + 1]:
                self.constant("I", f"by{name}", self._times(j, f"beside{a}", -move * step))
            return Step(f"({tap})", self._beside(a), (name,))

        self.bases = {f"first{a}": tap for a, tap in enumerate(taps) if a != self.along}
        self.bases |= {f"o{a}": step for a, step in enumerate(out)}
        return Walk(tuple(-(-axis.kernel // period) for axis, period in zip(self.g.axes, periods, strict=True)), step)

    def _phase(self, a: int, t: int, tap: int, out: int, *beside: int) -> Step:
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
            for step in beside:
                self.constant("I", f"by{names[-1]}", str(move * step))
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

    def load(self, array: str, tap: Tap, *, beside: bool = False) -> str:
        """The name of a pack that holds what `tap` reads, or what lies beside it: zeros where it must not."""
        kind, blank, base, letters = ("R", "{}", "beside", "by") if beside else ("P", "zero", "from", "at")
        name = f"p{self.loads}"
        self.loads += 1
        self.line(f"{kind} {name} = {blank};")
        if self.along is None:
            (place,) = tap.places
            self.line(f"if ({place.inside}) {name} = *(const {kind}*)&{array}[{base} + {place.offset(letters)}];")
            return name
        for j, place in zip(tap.reaches, tap.places, strict=True):
            if (array, place) in self.found:
                self.line(f"{name}.v[{j}] = {self.found[array, place]};")
            else:
                self.line(f"if ({place.inside}) {name}.v[{j}] = {array}[{base} + {place.offset(letters)}];")
                self.found[array, place] = f"{name}.v[{j}]"
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


def spread(letter: str, steps: tuple[int, ...]) -> dict[str, int]:
    return {f"{letter}{a}": step for a, step in enumerate(steps)}
