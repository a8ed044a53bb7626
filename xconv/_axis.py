"""One axis of a convolution: which inputs an output reads, and which outputs read an input.

For output ``o`` and kernel tap ``t``, an axis reads the input position

    p = o * stride + t * dilation - lo .

Everything here follows from that line. A part of the outputs, or a part of the inputs, again satisfies it with another
``lo`` and another ``size``; so a piece of an axis is an axis. Negative padding crops.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

#: Padding that no window sees is left out where it is longer than this; where it is shorter, it takes less time than
#: another part would.
LONG_GAP = 1024


class Run(NamedTuple):
    """Neighbours that the padding of an axis reads, `repeats` times in a row.

    They are `length` elements from `start` in steps of 1 or -1, and `back` of those that were read upwards once more
    downwards: all of them, or all but the one at either end.
    """

    start: int
    length: int
    step: int
    repeats: int = 1
    back: int = 0

    @property
    def period(self) -> int:
        """How many elements are read before they repeat."""
        return self.length + self.back

    @property
    def inner(self) -> slice:
        """The elements that are read upwards and downwards, counted from the first one."""
        end = (self.length - self.back) // 2
        return slice(end, self.length - end)

    @property
    def is_plain(self) -> bool:
        """Whether what is read is the source as it lies."""
        return self.step == self.repeats == 1 and not self.back

    @property
    def source(self) -> slice:
        """The elements that are read, in ascending order."""
        if self.step < 0:
            return slice(self.start - self.length + 1, self.start + 1)
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class Axis:
    """One spatial axis: `size` elements, padded by `lo` before and `hi` behind, under a window of `kernel` taps."""

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    hi: int = 0

    @cached_property
    def extent(self) -> int:
        """Length of the dilated kernel."""
        return (self.kernel - 1) * self.dilation + 1

    @cached_property
    def padded(self) -> int:
        return self.size + self.lo + self.hi

    @cached_property
    def out(self) -> int:
        return max(0, (self.padded - self.extent) // self.stride + 1)

    @property
    def span(self) -> int:
        """Length of what one tap reads, from the first output to the last."""
        return (self.out - 1) * self.stride + 1

    @property
    def gap(self) -> int:
        """How many elements lie between what one tap reads and what the next one does; 0 where these overlap."""
        return max(0, self.dilation - self.span) if self.dilation > 1 and self.kernel > 1 and self.out else 0

    @cached_property
    def kept(self) -> tuple[slice, slice]:
        """Where the padded axis and the axis are the same: as a part of the one, and as a part of the other."""
        begin = min(max(self.lo, 0), self.padded)
        end = max(begin, min(self.lo + self.size, self.padded))
        return slice(begin, end), slice(begin - self.lo, end - self.lo)

    @property
    def is_apart(self) -> bool:
        """Whether no two windows share an element, however many there are."""
        return self.kernel == 1 or (self.dilation == 1 and self.kernel <= self.stride)

    @property
    def is_covered(self) -> bool:
        """Whether every element is in a window, and in no other one."""
        end = self.span + self.extent - 1 - self.lo
        return self.dilation == 1 and self.kernel == self.stride and self.lo >= 0 and end >= self.size

    @cached_property
    def is_padded(self) -> bool:
        return self.lo != 0 or self.hi != 0

    def seen(self, tap: int) -> tuple[slice, slice]:
        """The outputs for which a tap reads elements of the axis, and not its padding; and these elements."""
        start = tap * self.dilation - self.lo
        first = min(self.out, max(0, -(start // self.stride)))
        last = min(self.out, (self.size - 1 - start) // self.stride + 1)
        if first >= last:
            return slice(first, first), slice(0, 0)
        return slice(first, last), slice(start + first * self.stride, start + (last - 1) * self.stride + 1, self.stride)

    def window(self, output: int) -> slice:
        """The elements that an output reads."""
        start = output * self.stride - self.lo
        first = max(0, -(start // self.dilation))
        last = min(self.kernel - 1, (self.size - 1 - start) // self.dilation)
        if first > last:
            return slice(0, 0)
        return slice(start + first * self.dilation, start + last * self.dilation + 1, self.dilation)

    def taps_of(self, output: int, elements: slice) -> slice:
        """The taps with which an output reads these elements."""
        first = (elements.start + self.lo - output * self.stride) // self.dilation
        return slice(first, first + len(range(elements.start, elements.stop, self.dilation)))

    def count(self, output: int) -> int:
        """How many elements an output reads."""
        window = self.window(output)
        return len(range(window.start, window.stop, window.step or 1))

    @cached_property
    def counts(self) -> tuple[tuple[int, int], ...]:
        """How many outputs in a row read so many elements, and how many these are; run by run."""
        begin = min(self.out, max(0, -(-self.lo // self.stride)))
        end = max(begin, min(self.out, (self.size + self.lo - self.extent) // self.stride + 1))
        inside = [(end - begin, self.kernel)] if begin < end else []
        before, behind = ([(1, self.count(o)) for o in part] for part in (range(begin), range(end, self.out)))
        runs = groupby([*before, *inside, *behind], key=itemgetter(1))
        return tuple((sum(length for length, _ in run), n) for n, run in runs)

    @cached_property
    def is_blind(self) -> bool:
        """Whether there is an output that reads nothing."""
        gaps = self.kernel > 1 and self.dilation > self.size  # or only the first and the last may
        outputs = range(self.out) if gaps else (0, self.out - 1)[: self.out]
        return any(self.count(output) == 0 for output in outputs)

    def gathered(self) -> "Axis":
        """The axis of what the taps read, each for all outputs, one behind the other: for taps that share nothing."""
        return Axis(self.kernel * self.out, self.kernel, dilation=self.out)

    def segments(self) -> Iterator[tuple[slice, slice]]:
        """Where `gathered` and the axis are the same, tap by tap: as a part of the one, and as a part of the other."""
        for tap in range(self.kernel):
            outputs, elements = self.seen(tap)
            if outputs.start < outputs.stop:
                yield slice(tap * self.out + outputs.start, tap * self.out + outputs.stop), elements

    def settled(self) -> "Axis":
        """The same axis with no step that is larger than needed: one output takes any stride, one tap any dilation."""
        stride = min(self.stride, max(1, self.padded - self.extent + 1))
        return replace(self, stride=stride, dilation=1 if self.kernel == 1 else self.dilation)

    def resized(self, size: int, lo: int = 0, hi: int = 0) -> "Axis":
        """An axis of other elements under the same window."""
        return Axis(size, self.kernel, self.stride, self.dilation, lo, hi)

    def narrowed(self, out: int) -> "Axis":
        """An axis of the same kernel that makes `out` outputs from exactly the inputs they read."""
        return self.resized(max(0, (out - 1) * self.stride + self.extent))

    def for_outputs(self, first: int, last: int, *, whole: bool) -> tuple["Axis", slice]:
        """The axis that makes the outputs [first, last), and the inputs it reads.

        With `whole`, an axis whose window leaves the array keeps all inputs (its padding may come from anywhere).
        """
        begin = first * self.stride - self.lo
        end = (last - 1) * self.stride - self.lo + self.extent
        if whole and (begin < 0 or end > self.size):
            start, stop = 0, self.size
        else:
            start = min(max(begin, 0), self.size)
            stop = max(start, min(end, self.size))
        return self.resized(stop - start, start - begin, end - stop), slice(start, stop)

    def for_inputs(self, first: int, last: int) -> tuple["Axis", slice]:
        """The axis that joins the inputs [first, last) to all outputs that read them, and those outputs."""
        begin = min(self.out, max(0, -((self.extent - 1 - self.lo - first) // self.stride)))
        end = max(begin, min(self.out, (last - 1 + self.lo) // self.stride + 1))
        size = last - first
        if begin == end:
            return self.resized(size, 0, -size), slice(begin, begin)
        lo = self.lo + first - begin * self.stride
        hi = (end - begin - 1) * self.stride + self.extent - lo - size
        return self.resized(size, lo, hi), slice(begin, end)

    def around(self, inputs: slice, outputs: slice) -> tuple["Axis", slice]:
        """The axis that makes the outputs which read some inputs from these and all others that they read."""
        if outputs.start == outputs.stop:
            size = inputs.stop - inputs.start
            return self.resized(size, 0, -size), inputs
        axis, reads = self.for_outputs(outputs.start, outputs.stop, whole=False)
        start, stop = min(inputs.start, reads.start), max(inputs.stop, reads.stop)
        return self.resized(stop - start, axis.lo + start - reads.start, axis.hi + reads.stop - stop), slice(
            start, stop
        )

    def islands(self) -> Iterator[slice]:
        """The parts of the padded axis that windows see, where long gaps that none of them sees lie between."""
        if not self.out:
            return
        starts: Iterable[int] = (0,)
        length = self.span + self.extent - 1
        if self.dilation <= LONG_GAP:
            if self.stride - self.extent > LONG_GAP:
                starts, length = range(0, self.span, self.stride), self.extent
        elif self.stride <= LONG_GAP:
            if self.gap > LONG_GAP:
                starts, length = range(0, self.extent, self.dilation), self.span
        else:
            taps = range(0, self.extent, self.dilation)
            starts, length = merge(*(range(tap, tap + self.span, self.stride) for tap in taps)), 1
        begin = end = 0
        for start in starts:
            if start - end > LONG_GAP:
                yield slice(begin, end)
                begin = start
            end = start + length
        yield slice(begin, end)

    def zones(self) -> Iterator[slice]:
        """The parts of the padded axis: what windows see before the elements of the axis, these, and behind them."""
        kept = self.kept[0]
        for seen in self.islands():
            if seen.start < kept.start:
                yield slice(seen.start, min(seen.stop, kept.start))
        if kept.start < kept.stop:
            yield kept
        for seen in self.islands():
            if seen.stop > kept.stop:
                yield slice(max(seen.start, kept.stop), seen.stop)

    def runs(self, mode: str, part: slice) -> Iterator[Run]:
        """What a part of the padded axis reads, for a `mode` other than "constant", as a handful of runs in order."""
        position, stop = part.start - self.lo, part.stop - self.lo
        back = {"edge": 1 - self.size, "wrap": 0, "reflect": max(0, self.size - 2), "symmetric": self.size}[mode]
        period = self.size + back
        while position < stop:
            room = min(stop, 0 if position < 0 else stop) - position
            phase = position % period
            if 0 <= position < self.size:
                run = Run(position, min(self.size - position, room), 1)
            elif period == 1:
                run = Run(0 if position < 0 else self.size - 1, 1, 1, room)
            elif phase == 0 and room >= period:
                run = Run(0, self.size, 1, room // period, back)
            elif phase < self.size:
                run = Run(phase, min(self.size - phase, room), 1)
            else:
                run = Run(period - phase - (mode == "symmetric"), min(period - phase, room), -1)
            yield run
            position += run.repeats * run.period
