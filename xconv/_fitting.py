"""How to run what a caller gave; and where it does not fit, what else may have been meant."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any, TypeAlias

from . import _config
from ._arguments import LAYOUTS, MOST_BYTES, W_LAYOUTS, WIDEST, check_memory, filter_axes, suggest
from ._planner import Options, scheduled
from ._typing import Array, DType, Shape
from .backends import Backend
from .schedules import Schedule

#: Makes a schedule of options and of the shapes of `x`, `w`, `b` and `dy`, or raises what is wrong.
Fitting: TypeAlias = Callable[..., Schedule]


def planned(
    backend: Backend,
    given: dict[str, Array],
    x_shape: Shape,
    w_shape: Shape,
    options: Options,
    *,
    b: Array | None = None,
    dy: Array | None = None,
) -> Schedule:
    """How to run this convolution under the settings of the moment; all that does not depend on numbers is checked.

    So are the shapes of `b` and `dy`.
    """
    dtypes = tuple([(name, array.dtype) for name, array in given.items()])
    b_shape, dy_shape = b if b is None else tuple(b.shape), dy if dy is None else tuple(dy.shape)
    try:
        return _fitting(backend, dtypes, options, x_shape, w_shape, b_shape, dy_shape)
    except ValueError as error:
        shapes = {"x": x_shape, "w": w_shape, "b": b_shape, "dy": dy_shape}
        suggest(error, _alternatives(partial(_fitting, backend, dtypes), options, shapes, tuple(given)[:2]))
        raise


def check_fits(backend: Backend, schedule: Schedule, result: Shape) -> None:
    """MemoryError where no memory holds the result; arrays in chunks need not fit into one."""
    if math.prod(result) > MOST_BYTES // WIDEST and backend.chunked is None:
        check_memory(result, backend.itemsize(schedule.dtype), schedule.dtype)


def _fitting(
    backend: Backend,
    dtypes: tuple[tuple[str, DType], ...],
    options: Options,
    x: Shape,
    w: Shape,
    b: Shape | None,
    dy: Shape | None,
) -> Schedule:
    """The schedule; ValueError unless these shapes are those of one convolution."""
    schedule = scheduled(backend, x, w, dtypes, options, _config.current())
    if b is not None:
        filters = (schedule.geometry.c_out if options.output_padding is None else schedule.geometry.c_in,)
        if b != filters:
            msg = f"`b` must have one element per output channel, shape {filters}, got shape {b}"
            raise ValueError(msg)
    if dy is not None and dy != schedule.y_shape:
        msg = f"`dy` must have the shape of the result, {schedule.y_shape}, got shape {dy}"
        raise ValueError(msg)
    return schedule


def _alternatives(
    fitting: Fitting, options: Options, shapes: dict[str, Any], pair: tuple[str, ...]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a caller may have meant whose arrays do not fit, the likeliest first, and how to see whether they would.

    The `pair` are the arrays that were given.
    """
    x, w, _, dy = shapes.values()
    if len(pair) < 2 or not shapes.keys() >= set(pair) or not 3 <= len(x) == len(w):
        return
    one, other = pair
    exchanged = shapes | {one: shapes[other], other: shapes[one]}
    exchange = f"`{one}` and `{other}` may be exchanged", partial(fitting, options, **exchanged)
    if dy is not None:
        yield exchange
    if options.pooling is not None:
        return
    at = -1 if options.layout == "channels_last" else 1
    for groups in {x[at] // n for n in w if n}:
        yield f"`groups` may be {groups}", partial(fitting, options._replace(groups=groups), **shapes)
    if orders := _orders(fitting, options, shapes):
        yield orders, lambda: None
    if dy is None:
        yield exchange
    elif len(dy) == len(x) and pair == ("dy", "x"):
        given, turned = (_channels_fit(options, w, x=a[at], dy=b[at]) for a, b in ((x, dy), (dy, x)))
        if turned and not given:
            yield exchange[0], lambda: None


def _orders(fitting: Fitting, options: Options, shapes: dict[str, Any]) -> str:
    """Other orders of the axes that fit; of many, those that make the kernel longest and shortest axes most alike."""
    found: dict[tuple[int, int], list[str]] = {}
    for layout, w_layout in product(LAYOUTS, W_LAYOUTS):
        changes: dict[str, Any] = {}
        if layout != options.layout:
            changes["layout"] = layout
        if w_layout != options.w_layout:
            changes["w_layout"] = w_layout
        with suppress(ValueError, TypeError, MemoryError):
            kernel = fitting(options._replace(**changes), **shapes).geometry.kernel
            hint = " and ".join(f'`{name}` may be "{value}"' for name, value in changes.items())
            found.setdefault((max(kernel) - min(kernel), len(changes)), []).append(hint)
    likely = [hint for rank in sorted(found) if rank[0] == min(found)[0] for hint in found[rank]]
    return ", or ".join(likely)


def _channels_fit(options: Options, w: Shape, *, x: int, dy: int) -> bool:
    """Whether filters take so many channels and make so many."""
    filters, channels, *_ = (w[at] for at in filter_axes(options.order_of_filters, len(w) - 2))
    return (x, dy) == (channels * options.groups, filters)
