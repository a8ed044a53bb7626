"""Every function by the algorithm that is fastest at it, as measured, and not as predicted."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from .._tuning import Tuning
from .._typing import Array
from ._schedule import Schedule
from ._tiled import Tiled

#: Calls before the first that counts: libraries compile, and fill caches, in the first three.
WARM_UP = 3
#: A measurement is the least of so many laps, of at least so many seconds each.
LAPS, LAP = 5, 2e-3
#: What took so many times as long as the fastest is not measured again.
HOPELESS = 3


@dataclass(frozen=True, eq=False)
class Tuned(Schedule):
    """By measurement: the first call of a function runs every algorithm, and the record says which from then on."""

    tuning: Tuning
    #: By name, the one that is predicted to be fastest first.
    choices: dict[str, Tiled]
    #: What the times depend on besides, in words.
    settings: str

    def forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        return self._fastest("forward", x, w, b).forward(x, w, b)

    def input_grad(self, dy: Array, w: Array, b: Array | None = None, *, conjugate: bool = True) -> Array:
        return self._fastest("input_grad", dy, w, b).input_grad(dy, w, b, conjugate=conjugate)

    def weight_grad(self, dy: Array, x: Array) -> Array:
        return self._fastest("weight_grad", dy, x).weight_grad(dy, x)

    def im2col(self, x: Array, *, images_last: bool) -> Array:
        return self.predicted.im2col(x, images_last=images_last)

    def col2im(self, cols: Array) -> Array:
        return self.predicted.col2im(cols)

    @property
    def predicted(self) -> Tiled:
        """The schedule that is predicted to be fastest."""
        return next(iter(self.choices.values()))

    def chosen(self, function: str, like: Array) -> Tiled:
        return self._first(self.seconds(function, like))

    def seconds(self, function: str, like: Array) -> dict[str, float]:
        return self.tuning.seconds(self._call(function, like), self.choices)

    def _first(self, seconds: dict[str, float]) -> Tiled:
        return self.choices[min(seconds, key=lambda name: seconds[name])] if seconds else self.predicted

    def _fastest(self, function: str, first: Array, *others: Array | None) -> Tiled:
        """The schedule that runs a function fastest; measured now, if nobody has."""
        call = self._call(function, first)
        seconds = self.tuning.seconds(call, self.choices)
        if not seconds:
            with _measuring:
                # Another thread may have measured while this one waited.
                seconds = self.tuning.seconds(call, self.choices) or self._measured(function, first, *others)
                if seconds:
                    self.tuning.add(call, seconds)
        return self._first(seconds)

    def _call(self, function: str, like: Array) -> str:
        """What is measured, as the record names it."""
        return f"{function} on {self.backend.place(like)}, {self._how}"

    @cached_property
    def _how(self) -> str:
        g = self.geometry
        axes = "; ".join(f"{a.size}+{a.lo}+{a.hi} by {a.kernel}, steps {a.stride} and {a.dilation}" for a in g.axes)
        layout = "channels last" if g.channels_last else "channels first"
        counts = f"{g.batch} of {g.c_in} to {g.c_out} in {g.groups}"
        return f"{self.backend.name} {self.dtype}, {counts}, {axes}, {g.pad_mode}, {layout}, {self.settings}"

    def _measured(self, function: str, *arrays: Array | None) -> dict[str, float]:
        """Seconds that each algorithm takes; none where the arrays are only traced."""
        runs = {name: partial(getattr(choice, function), *arrays) for name, choice in self.choices.items()}
        best: dict[str, float] = {}
        for name, run in runs.items():
            with suppress(ImportError, MemoryError, ValueError):  # what cannot run here is left out
                for _ in range(WARM_UP):
                    seconds = self.backend.seconds(run, 1)
                if seconds is None:
                    return {}
                best[name] = seconds
        least = min(best.values(), default=0)
        for _ in range(LAPS):
            for name in [name for name in best if best[name] <= HOPELESS * least]:
                calls = max(1, round(LAP / best[name]))
                best[name] = min(best[name], (self.backend.seconds(runs[name], calls) or best[name]))
        return best


_measuring = threading.Lock()


def _start_afresh() -> None:
    """In a forked child: whoever measured in the parent is not here to finish."""
    global _measuring  # noqa: PLW0603
    _measuring = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
