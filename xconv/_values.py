"""What callers write, as plain values: integers, numbers, tuples of them, and orders of axes."""

import math
import operator
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from numbers import Complex, Integral
from typing import Any

from ._typing import Shape

ONLY_INTEGERS = frozenset({int})


def integer(name: str, value: object) -> int:
    """`value` as an int, by ``operator.index``; TypeError naming the argument."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        msg = f"`{name}` must be made of integers, got {value!r}"
        if name == "stride" and isinstance(value, float) and 0 < value < 1:
            msg += ": a fractional stride, or input dilation, is the stride of `conv_transpose`"
        raise TypeError(msg) from error


def number(name: str, value: object) -> complex:
    """`value` as an int, a float or a complex number, and all that is not a number as one; TypeError for no scalar."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Complex):
        msg = f"`{name}` must be a number, got {value!r}"
        raise TypeError(msg)
    if isinstance(value, Integral):
        return operator.index(value)
    wide = complex(value)
    if wide != wide:  # noqa: PLR0124 - one NaN is not found where another was remembered
        return math.nan
    return wide if wide.imag else wide.real


def frozen(name: str, value: Any) -> Any:
    """An int, a string, or a tuple of such; TypeError naming the argument for anything else."""
    if type(value) is int or isinstance(value, str):
        return value
    if type(value) is tuple and ONLY_INTEGERS.issuperset(map(type, value)):
        return value
    with suppress(TypeError):
        return operator.index(value)  # before iterating: an array without axes is an integer, and looks iterable
    if isinstance(value, (Mapping, AbstractSet)):  # these have no order of axes
        return integer(name, value)
    try:
        entries = tuple(value)
    except TypeError:
        return integer(name, value)
    return tuple(frozen(name, entry) for entry in entries)


def shape(name: str, value: Sequence[int]) -> Shape:
    """The sizes of an array as a tuple of ints; TypeError and ValueError naming the argument."""
    if getattr(value, "ndim", 1) > 1:  # before iterating over an image
        msg = f"`{name}` must be a sequence of integers from 0, got an array: write its `shape`"
        raise TypeError(msg)
    lengths = frozen(name, value)
    if isinstance(lengths, tuple) and ONLY_INTEGERS.issuperset(map(type, lengths)) and min(lengths, default=0) >= 0:
        return lengths
    msg = f"`{name}` must be a sequence of integers from 0, got {value!r}"
    raise ValueError(msg)


def per_axis(name: str, value: object, rank: int, *, least: int) -> Shape:
    """One int per spatial axis, from an int for all of them or a tuple of `rank`; each at least `least`."""
    values = value if isinstance(value, tuple) else (value,) * rank
    if len(values) != rank:
        msg = f"`{name}` must have one value per spatial axis ({rank}), got {value!r}"
        raise ValueError(msg)
    numbers = tuple(integer(name, v) for v in values)
    if any(number < least for number in numbers):
        msg = f"`{name}` must be at least {least} on every axis, got {value!r}"
        raise ValueError(msg)
    return numbers


def permutation(name: str, value: object, count: int) -> Shape:
    """So many axes in another order, from 0 on; empty for None and for the order that they have."""
    if value is None:
        return ()
    given = frozen(name, value)
    numbers = [integer(name, axis) for axis in (given if isinstance(given, tuple) else (given,))]
    order = tuple(axis + count if axis < 0 else axis for axis in numbers)
    if sorted(order) != list(range(count)):
        msg = f"`{name}` must be a permutation of the {count} axes (n, c, *kernel, *out), got {value!r}"
        raise ValueError(msg)
    return () if order == tuple(range(count)) else order
