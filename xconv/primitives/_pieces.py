"""Parts of arrays, put together and padded with zeros, in the pure array-API standard."""

from functools import cache
from itertools import groupby
from typing import Any

import array_api_compat

from .._typing import Array, Device, DType, Index, Namespace, Shape


def along(at: int, index: slice | int) -> tuple[Any, ...]:
    """`index` for the axis `at`, everything of the axes before and behind."""
    return (*(slice(None),) * at, index, ...)


@cache
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `order`."""
    return tuple(order.index(axis) for axis in range(len(order)))


def device(x: Array) -> Device:
    """Where `x` is; None where the library does not tell."""
    try:
        return array_api_compat.device(x)
    except AttributeError:  # MLX's arrays lie in memory that all its devices share
        return None


def zeros(xp: Namespace, shape: Shape, dtype: DType, like: Array) -> Array:
    """Zeros on the device of `like`, to write into; batched or sharded where a transformation made `like` so."""
    if 0 in like.shape:
        return xp.zeros(shape, dtype=dtype, device=array_api_compat.device(like))
    one = xp.reshape(like[(slice(0, 1),) * like.ndim], (1,) * len(shape))
    # Computed from `like`: JAX hands constants within a `custom_vjp` to the wrong function, under `scan`.
    one = xp.astype(xp.logical_and(one == one, one != one), dtype)  # noqa: PLR0124
    return xp.broadcast_to(one, shape) + one


def pad(xp: Namespace, x: Array, at: int, lo: int, hi: int, value: complex = 0) -> Array:
    """`x` with a number before and behind along one axis, or cut off there where `lo` or `hi` is negative."""
    if lo == 0 == hi:
        return x
    size = x.shape[at]
    padded = size + lo + hi
    before = min(max(lo, 0), padded)
    start = min(max(-lo, 0), size)
    stop = max(start, size + min(hi, 0))
    kept = x[along(at, slice(start, stop))]
    first, last = (
        zeros(xp, (*x.shape[:at], length, *x.shape[at + 1 :]), x.dtype, x)
        for length in (before, padded - before - (stop - start))
    )
    if value:
        first, last = first + value, last + value
    return xp.concat([first, kept, last], axis=at)


def joined(xp: Namespace, parts: list[tuple[Index, Array]], axis: int = 0) -> Array:
    """The array that `parts` make up, given in the order of their places, which differ from `axis` on."""
    if len(parts) == 1:
        return parts[0][1]
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part[0][axis].start)]
    along_next = [joined(xp, group, axis + 1) for group in groups]
    return along_next[0] if len(along_next) == 1 else xp.concat(along_next, axis=axis)
