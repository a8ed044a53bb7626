"""Copies of images that bring their channels behind the pixels.

Each channel lies in pages of memory of its own. Of a few channels, some are copied at a time; of many, so many pixels
as lie in the cache, in order first, to where they are at odd distances from each other.
"""

import math
from collections.abc import Iterator

from ..._typing import Array
from ._scratch import Take

#: Elements of a channel that fill a page.
PAGE = 2**10
#: Channels that are copied at a time, and those that are many.
FEW, MANY = 32, 128
#: Elements that are copied at a time of many channels, at most.
MOST = 2**17
#: Bytes that make a distance odd, and those of the smallest numbers.
ODD, SMALLEST = 32, 4


def turn(take: Take, out: Array, images: Array) -> None:
    """Copy ``images (groups, n, *size, channels)`` into `out`, where the channels are behind."""
    channels, item = images.shape[-1], images.itemsize
    if images.strides[-1] == item or math.prod(images.shape[2:-1]) < PAGE:
        out[...] = images
    elif channels < MANY:
        for first in range(0, channels, FEW):
            some = (..., slice(first, first + FEW))
            out[some] = images[some]
    else:
        most = _at_a_time(channels)
        near = take((channels, most + ODD // item), images.dtype)[:, :most].T
        for part, some in _parts(out, images, most):
            pixels = near[: some.size // channels].reshape(some.shape, copy=False)
            pixels[...] = some
            part[...] = pixels


def spare(pixels: int, channels: int) -> int:
    """Elements of temporary memory that `turn` takes for images of so many pixels, at most."""
    return channels * (_at_a_time(channels) + ODD // SMALLEST) if channels >= MANY and pixels >= PAGE else 0


def _at_a_time(channels: int) -> int:
    return max(1, MOST // channels)


def _parts(out: Array, images: Array, pixels: int) -> Iterator[tuple[Array, Array]]:
    """Parts of both with no more than so many pixels, the first ones of an axis with all that is behind it."""
    each = images[0].size // images.shape[-1]
    if each > pixels:
        for part, image in zip(out, images, strict=True):
            yield from _parts(part, image, pixels)
        return
    for first in range(0, len(images), step := pixels // each):
        yield out[first : first + step], images[first : first + step]
