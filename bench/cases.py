"""The convolutions that are timed. To add one, add a line to `CASES`; any spatial rank will do."""

import math
from dataclasses import dataclass

#: What is timed, and which results each operation returns.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "forward": ("y",),
    "input_grad": ("dx",),
    "weight_grad": ("dw",),
    "backward": ("dx", "dw"),
}


@dataclass(frozen=True)
class Case:
    """A convolution by its shapes; stride, padding and dilation are the same on every axis."""

    name: str
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    dtype: str = "float32"

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
        """Shape of the result."""
        return (self.x_shape[0], self.w_shape[0], *self.out)

    @property
    def flops(self) -> int:
        """Operations of the forward pass, and of each gradient: two per multiply-add of the plain sum."""
        return 2 * math.prod(self.y_shape) * math.prod(self.w_shape[1:])

    @property
    def label(self) -> str:
        """The shapes in one line, for people."""
        text = f"{'x'.join(map(str, self.x_shape))}, {self.w_shape[0]} of {'x'.join(map(str, self.kernel))}"
        for word, number, usual in (("stride", self.stride, 1), ("dilation", self.dilation, 1)):
            text += "" if number == usual else f", {word} {number}"
        return text if self.groups == 1 else f"{text}, {self.groups} groups"


_ALL = (
    Case("tiny", (5, 1, 10, 10), (20, 1, 3, 3), padding=1),
    Case("r50_56", (8, 64, 56, 56), (64, 64, 3, 3), padding=1),
    Case("r50_28", (8, 128, 28, 28), (128, 128, 3, 3), padding=1),
    Case("r50_14", (8, 256, 14, 14), (256, 256, 3, 3), padding=1),
    Case("r50_7", (8, 512, 7, 7), (512, 512, 3, 3), padding=1),
    Case("stem", (8, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    Case("pw1x1", (8, 256, 56, 56), (64, 256, 1, 1)),
    Case("dw", (8, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128),
    Case("s2", (8, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    Case("vgg", (4, 64, 112, 112), (128, 64, 3, 3), padding=1),
    Case("big31", (1, 1, 512, 512), (1, 1, 31, 31), padding=15),
)
CASES: dict[str, Case] = {case.name: case for case in _ALL}
