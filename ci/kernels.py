"""One call of every kernel, in the form that is specialised to its geometry, for a profiler or a checker to watch."""

from functools import partial
from typing import Any

import numpy as np

import xconv

from .place import Place

#: Calls after which a kernel is compiled for its geometry.
CALLS = 4
#: Images, channels and side: enough to fill a device; and few, of which arrays begin and end exactly.
LARGE, SMALL = (64, 64, 56), (2, 16, 17)


def run(place: Place, *, small: bool = False, dtypes: tuple[str, ...] = ("float32", "float16")) -> None:
    """Everything on large arrays; or on small ones, with more geometries, and in memory that is no pool's."""
    if small:
        place.without_pool()
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], dtype: str) -> Any:
        return place.put(rng.standard_normal(shape, dtype=np.float32).astype(dtype))

    for dtype in dtypes:
        of_dtype = partial(draw, dtype=dtype)
        windows(place, of_dtype, *(SMALL if small else LARGE))
        pooling(of_dtype, *(SMALL if small else LARGE))
        if small:
            ragged(place, of_dtype)
    place.synchronize()


def windows(place: Place, draw: Any, n: int, c: int, side: int) -> None:
    """What moves elements, what sums without columns, and what multiplies on tensor cores."""
    x, w, taps = draw((n, c, side, side)), draw((c, c, 3, 3)), draw((c, 1, 3, 3))
    for _ in range(CALLS):
        cols = xconv.im2col(x, 3, padding=1)
    for _ in range(CALLS):
        xconv.col2im(cols, side, padding=1)
    del cols
    three(x, taps, CALLS, padding=1, groups=c, algorithm="depthwise")
    implicit(place, x, w, padding=1)


def pooling(draw: Any, n: int, c: int, side: int) -> None:
    """The largest of windows and their means, and what comes back from either."""
    x = draw((n, c, side, side))
    for _ in range(CALLS):
        y = xconv.max_pool(x, 3, stride=2, padding=1)
        xconv.max_pool_grad(y, x, 3, stride=2, padding=1)
        for count in (True, False):
            options = {"stride": 2, "padding": 1, "count_include_pad": count}
            xconv.avg_pool(x, 3, **options)
            xconv.avg_pool_grad(y, x.shape, 3, **options)


def ragged(place: Place, draw: Any) -> None:
    """Sizes that fill no block of threads and no tile, and a stride."""
    implicit(place, draw((2, 5, 13, 11)), draw((37, 5, 3, 2)))
    n, c, side = SMALL
    x, w = draw((n, c, side, side)), draw((c, c, 3, 3))
    for layout, images in (("channels_first", x), ("channels_last", place.block(x.transpose(0, 2, 3, 1)))):
        three(images, w, CALLS, stride=2, padding=1, layout=layout)


def implicit(place: Place, x: Any, w: Any, **options: Any) -> None:
    """By three products for one of float32, and by one, in both layouts."""
    last = place.block(x.transpose(0, 2, 3, 1))
    for precision in ("ieee", "tf32"):
        with xconv.config(precision=precision):
            three(x, w, CALLS, **options, algorithm="implicit")
            three(last, w, CALLS, **options, layout="channels_last", algorithm="implicit")


def three(x: Any, w: Any, calls: int, **options: Any) -> None:
    """The forward pass and both gradients, so many times."""
    for _ in range(calls):
        y = xconv.conv(x, w, **options)
        xconv.conv_input_grad(y, w, x.shape, **options)
        xconv.conv_weight_grad(y, x, w.shape, **options)
