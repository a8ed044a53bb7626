"""The convolutions that are timed. To add one, add a line; any spatial rank will do."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


class Operation(NamedTuple):
    """What a contender is asked to do: the names of what it is given, of what it must read, and of what comes out."""

    title: str
    operands: tuple[str, ...]
    reads: tuple[str, ...]
    results: tuple[str, ...]


_ALL = ("x", "w", "dy")
OPERATIONS: dict[str, Operation] = {
    "im2col": Operation("im2col", ("x",), ("x",), ("cols",)),
    "col2im": Operation("col2im", ("cols",), ("cols",), ("folded",)),
    "forward": Operation("forward", _ALL, ("x", "w"), ("y",)),
    "input_grad": Operation("input gradient", _ALL, ("dy", "w"), ("dx",)),
    "weight_grad": Operation("weight gradient", _ALL, ("dy", "x"), ("dw",)),
    "backward": Operation("both gradients", _ALL, _ALL, ("dx", "dw")),
}
CONV = ("forward", "input_grad", "weight_grad")
UNFOLD = ("im2col", "col2im")

#: By precision: the dtype, bytes of an element, and the largest error, relative to the largest element of the result,
#: with which a contender takes part.
PRECISIONS: dict[str, tuple[str, int, float]] = {
    "ieee": ("float32", 4, 1e-3),
    "tf32": ("float32", 4, 2e-2),
    "float16": ("float16", 2, 2e-2),
    "bfloat16": ("bfloat16", 2, 1e-1),
    "double": ("float64", 8, 1e-9),
}


@dataclass(frozen=True)
class Case:
    """A convolution by its shapes, channels first; stride, padding and dilation are the same on every axis."""

    name: str
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    channels_last: bool = False
    precisions: tuple[str, ...] = ("ieee",)
    operations: tuple[str, ...] = (*CONV, "backward")
    #: What grows from case to case in a plot against it, and its size here.
    growth: tuple[str, int] | None = None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Case":
        """Make a case of its fields, as another process wrote them down."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.x_shape) - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps of the filters on every axis."""
        return self.w_shape[2:]

    @property
    def out(self) -> tuple[int, ...]:
        """Spatial size of the result."""
        room = (
            size + 2 * self.padding - self.dilation * (k - 1) - 1
            for size, k in zip(self.x_shape[2:], self.kernel, strict=True)
        )
        return tuple(r // self.stride + 1 for r in room)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the result, channels first."""
        return (self.x_shape[0], self.w_shape[0], *self.out)

    @property
    def dtype(self) -> str:
        """Type of the elements where the case has one precision only."""
        return PRECISIONS[self.precisions[0]][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an operand or result, in the case's layout."""
        if name in {"w", "dw"}:
            return self.w_shape
        if name == "cols":
            return (*self.x_shape[:2], *self.kernel, *self.out)
        first = self.y_shape if name in {"y", "dy"} else self.x_shape
        return (first[0], *first[2:], first[1]) if self.channels_last else first

    def elements(self, operation: str) -> int:
        """Elements that an operation must read or write, each once."""
        task = OPERATIONS[operation]
        return sum(math.prod(self.shape(name)) for name in (*task.reads, *task.results))

    def flops(self, operation: str) -> int:
        """Operations of the plain sum: two per multiply-add, and none where elements are only moved."""
        times = 0 if operation in UNFOLD else 2 if operation == "backward" else 1
        return times * 2 * math.prod(self.y_shape) * math.prod(self.w_shape[1:])

    @property
    def label(self) -> str:
        """The shapes in one line, for people."""
        text = f"{'x'.join(map(str, self.x_shape))}, {self.w_shape[0]} of {'x'.join(map(str, self.kernel))}"
        for word, number, usual in (("stride", self.stride, 1), ("dilation", self.dilation, 1)):
            text += "" if number == usual else f", {word} {number}"
        text += "" if self.groups == 1 else f", {self.groups} groups"
        text += ", channels last" if self.channels_last else ""
        return text if self.precisions[0] == "ieee" else f"{text}, {self.dtype}"


def first(case: Case, array: np.ndarray) -> np.ndarray:
    """View an array of the case's layout with its channels first."""
    return np.moveaxis(array, -1, 1) if case.channels_last else array


def last(case: Case, array: np.ndarray) -> np.ndarray:
    """View an array with its channels first in the case's layout."""
    return np.moveaxis(array, 1, -1) if case.channels_last else array


_R50_56 = Case("r50_56", (8, 64, 56, 56), (64, 64, 3, 3), padding=1)
_R50_28 = Case("r50_28", (8, 128, 28, 28), (128, 128, 3, 3), padding=1)
_CPU = (
    Case("tiny", (5, 1, 10, 10), (20, 1, 3, 3), padding=1),
    _R50_56,
    _R50_28,
    Case("r50_14", (8, 256, 14, 14), (256, 256, 3, 3), padding=1),
    Case("r50_7", (8, 512, 7, 7), (512, 512, 3, 3), padding=1),
    Case("stem", (8, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    Case("pw1x1", (8, 256, 56, 56), (64, 256, 1, 1)),
    Case("dw", (8, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128),
    Case("s2", (8, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    Case("vgg", (4, 64, 112, 112), (128, 64, 3, 3), padding=1),
    Case("signal", (8, 64, 4096), (64, 64, 9), padding=4),
    Case("volume", (2, 32, 24, 24, 24), (32, 32, 3, 3, 3), padding=1),
    replace(_R50_56, name="single", x_shape=(1, 64, 56, 56)),
    replace(_R50_56, name="last", channels_last=True),
    replace(_R50_28, name="double", precisions=("double",)),
    Case("big31", (1, 1, 512, 512), (1, 1, 31, 31), padding=15),
    Case("big31x8", (2, 8, 256, 256), (8, 8, 31, 31), padding=15, operations=CONV),
)


def _growing(axis: str, size: int, x_shape: tuple[int, ...], filters: int) -> Case:
    w_shape = (filters, x_shape[1], 3, 3)
    return Case(f"{axis}{size}", x_shape, w_shape, padding=1, operations=("forward",), growth=(axis, size))


_GROWTH = (
    *(_growing("side", size, (1, 8, size, size), 8) for size in (64, 128, 256, 512, 1024)),
    *(_growing("batch", size, (size, 16, 64, 64), 16) for size in (1, 4, 16, 64)),
    *(_growing("channels", size, (1, size, 32, 32), size) for size in (16, 32, 64, 128, 256)),
)

_EVERY = ("ieee", "tf32", "float16", "bfloat16")
_SOME = ("ieee", "tf32")
_G56 = Case("c64_56", (64, 64, 56, 56), (64, 64, 3, 3), padding=1, precisions=_EVERY, operations=(*UNFOLD, *CONV))
_GPU = (
    _G56,
    replace(_G56, name="c256_14", x_shape=(64, 256, 14, 14), w_shape=(256, 256, 3, 3)),
    replace(_G56, name="stem", x_shape=(64, 3, 224, 224), w_shape=(64, 3, 7, 7), stride=2, padding=3),
    replace(_G56, name="vgg", x_shape=(32, 128, 112, 112), w_shape=(128, 128, 3, 3)),
    replace(_G56, name="s2", x_shape=(64, 128, 56, 56), w_shape=(256, 128, 3, 3), stride=2),
    replace(_G56, name="pw1x1", x_shape=(64, 256, 56, 56), w_shape=(64, 256, 1, 1), padding=0, operations=CONV),
    replace(_G56, name="last", channels_last=True, operations=CONV),
    Case("dw", (64, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128, precisions=_SOME, operations=CONV),
    Case("signal", (64, 64, 4096), (64, 64, 9), padding=4, precisions=_SOME, operations=CONV),
    Case("volume", (8, 32, 32, 32, 32), (32, 32, 3, 3, 3), padding=1, precisions=_SOME, operations=CONV),
    replace(_G56, name="single", x_shape=(1, 64, 56, 56), precisions=_SOME),
    Case("tiny", (5, 1, 10, 10), (20, 1, 3, 3), padding=1, operations=(*UNFOLD, *CONV)),
)

CASES: dict[str, Case] = {case.name: case for case in (*_CPU, *_GROWTH)}
GPU_CASES: dict[str, Case] = {case.name: case for case in _GPU}
#: Enough of them to see that everything works.
QUICK = ("tiny", "last", "side64", "side128")


class Job(NamedTuple):
    """One thing to time on a GPU."""

    precision: str
    case: str
    operation: str


def gpu_jobs(cases: tuple[str, ...], precisions: tuple[str, ...]) -> list[Job]:
    """List what is timed on a GPU, one precision after the other; moving elements knows no TF32, and one half type."""
    return [
        Job(precision, name, operation)
        for precision in precisions
        for name in cases
        if precision in GPU_CASES[name].precisions
        for operation in GPU_CASES[name].operations
        if operation not in UNFOLD or precision in {"ieee", "float16"}
    ]
