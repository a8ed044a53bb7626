"""Convolutions as users may ask for them, drawn at random: a seed always gives the same ones."""

import math
import random
from typing import Any, NamedTuple

#: Bounds on what is drawn. Seconds are guesses, by the lesser of plain sums and Fourier transforms, and by memory.
MOST_BYTES, LEAST_SECONDS, MOST_SECONDS = 2**26, 2e-6, 0.1
#: Multiply-adds of float32, and bytes, that a guess counts on in a second.
RATE, BANDWIDTH = 3e10, 4e9
#: By dtype: bytes of an element, and multiply-adds of float32 that one of it takes as much time as.
DTYPES = {"float32": (4, 1), "float64": (8, 2), "complex64": (8, 4)}


class Geometry(NamedTuple):
    """A convolution by its shapes, channels first, with a stride, a padding and a dilation for every axis."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    dtype: str

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Geometry":
        """Find the geometry in an object of JSON."""
        values = (given[name] for name in cls._fields)
        return cls._make(tuple(value) if isinstance(value, list) else value for value in values)

    @property
    def padded(self) -> tuple[int, ...]:
        """Spatial size of the padded input."""
        return tuple(size + 2 * p for size, p in zip(self.x_shape[2:], self.padding, strict=True))

    @property
    def span(self) -> tuple[int, ...]:
        """Elements from the first to the last tap."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.w_shape[2:], strict=True))

    @property
    def y_shape(self) -> tuple[int, ...]:
        room = zip(self.padded, self.span, self.stride, strict=True)
        return (self.x_shape[0], self.w_shape[0], *((size - span) // step + 1 for size, span, step in room))

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of xconv's functions."""
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the plain sum."""
        return math.prod(self.y_shape) * math.prod(self.w_shape[1:])

    @property
    def bytes(self) -> int:
        """Bytes of input, filters and result."""
        return DTYPES[self.dtype][0] * sum(map(math.prod, (self.x_shape, self.w_shape, self.y_shape)))

    @property
    def seconds(self) -> float:
        """A guess of the time that a sensible algorithm takes."""
        n, c_in, c_out, pixels = self.x_shape[0], self.x_shape[1], self.w_shape[0], math.prod(self.padded)
        pairs = c_out * self.w_shape[1]
        transforms = (n * (c_in + c_out) + pairs) * pixels * 12 * math.log2(1 + pixels)  # far below the rate
        sums = min(self.multiply_adds, transforms + 2 * n * pairs * pixels)
        return sums * DTYPES[self.dtype][1] / RATE + self.bytes / BANDWIDTH

    @property
    def label(self) -> str:
        """The geometry in one line, for people."""
        text = f"{'x'.join(map(str, self.x_shape))}, {self.w_shape[0]} of {'x'.join(map(str, self.w_shape[2:]))}"
        for word, numbers, usual in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if any(number != usual for number in numbers):
                text += f", {word} {'x'.join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))}"
        text += "" if self.groups == 1 else f", {self.groups} groups"
        return text if self.dtype == "float32" else f"{text}, {self.dtype}"


def draw(count: int, seed: int) -> list[Geometry]:
    """Draw some geometries that are within the bounds."""
    rng, found = random.Random(seed), list[Geometry]()
    while len(found) < count:
        g = _any(rng)
        if g is not None and g.bytes <= MOST_BYTES and LEAST_SECONDS <= g.seconds <= MOST_SECONDS:
            found.append(g)
    return found


def _any(rng: random.Random) -> Geometry | None:
    """Draw a geometry, or None where what was drawn does not go together."""
    rank, n = rng.choices((1, 2, 3), (3, 5, 2))[0], _log(rng, 1, 8)
    groups, c_in, c_out = _channels(rng)
    side = (_log(rng, 2**8, 2**22) / (n * c_in)) ** (1 / rank)  # few channels of large images, many of small ones
    if side < 4:
        return None
    size = [max(1, round(side * 2 ** rng.choice((0, 0, rng.uniform(-1, 1))))) for _ in range(rank)]
    kernel = _kernel(rng, size)
    room = min(((length - 1) // (k - 1) for length, k in zip(size, kernel, strict=True) if k > 1), default=1)
    dilation = _log(rng, 2, room) if room >= 2 and rng.random() < 0.2 else 1
    half_spans = rng.choices((0, 1, 2), (3, 5, 2))[0]  # no padding, "same" or full
    return Geometry(
        (n, c_in, *size),
        (c_out, c_in // groups, *kernel),
        (rng.choices((1, 2, 3), (6, 3, 1))[0],) * rank,
        tuple(dilation * (k - 1) * half_spans // 2 for k in kernel),
        (dilation,) * rank,
        groups,
        rng.choices(tuple(DTYPES), (6, 2, 2))[0],
    )


def _channels(rng: random.Random) -> tuple[int, int, int]:
    """Groups, and channels of input and result: one group, one for every channel, or some."""
    c_in, c_out = (rng.choice((_log(rng, 1, 512), 2 ** rng.randint(0, 9), 1, 3)) for _ in range(2))
    kind = rng.choices(("one", "each", "some"), (6, 2, 2))[0]
    if kind == "one":
        return 1, c_in, c_out
    groups = c_in if kind == "each" else rng.choice([g for g in range(1, c_in + 1) if c_in % g == 0])
    return groups, c_in, c_in * rng.choice((1, 1, 2)) if kind == "each" else groups * -(-c_out // groups)


def _kernel(rng: random.Random, size: list[int]) -> list[int]:
    """A small kernel, one of up to 31 taps an axis, or one as large as the image; most have equal sides."""

    def side(length: int) -> int:
        return {"small": rng.choice((1, 3, 3, 5, 7)), "any": _log(rng, 2, 31), "whole": length}[kind]

    kind = rng.choices(("small", "any", "whole"), (5, 3, 2))[0]
    one = side(max(size))
    equal = kind != "whole" and rng.random() < 0.8
    return [min(length, one if equal else side(length)) for length in size]


def _log(rng: random.Random, least: int, most: int) -> int:
    """An integer whose logarithm is evenly spread."""
    return min(most, int(math.exp(rng.uniform(math.log(least), math.log(most + 1)))))
