"""The planner: one schedule for each convolution, decided once and remembered.

Each function has a plan of its own, which is made when it is first asked for (`_ranking`).
"""

import math
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice, takewhile
from typing import Any, NamedTuple, NoReturn

from ._arguments import (
    LAYOUTS,
    TRANSPOSED,
    W_LAYOUTS,
    check_order,
    check_ranks,
    filter_axes,
    geometry,
    transposed_geometry,
)
from ._config import Settings, applied
from ._geometry import Geometry
from ._measuring import measured
from ._ranking import Problem, able, plans
from ._typing import Array, DType, Function, Kind, Shape
from .algorithms import RefusedError
from .backends import Backend, backend_of
from .schedules import Schedule, Tiled

#: What is predicted to take so many times as long as the best is not worth a measurement.
PROMISING = 16


class Options(NamedTuple):
    """The keyword arguments of a convolution, hashable."""

    stride: object = 1
    padding: object = 0
    dilation: object = 1
    groups: int = 1
    pad_mode: str = "constant"
    pad_value: complex = 0
    layout: str = "channels_first"
    dtype: DType | None = None
    algorithm: str = "auto"
    w_layout: str = "oi..."
    #: None for a convolution, and a transposed one otherwise.
    output_padding: object = None
    output_size: object = None
    #: Whether integers may come with floating-point numbers, as which they are then multiplied.
    mixed: bool = False
    #: What is done with the windows, by its public name, where they are pooled.
    pooling: str | None = None
    #: The order of the windows' axes in memory; empty where it does not matter.
    order: Shape = ()

    @property
    def order_of_filters(self) -> str:
        """The `w_layout` as the convolution calls it, whose input gradient a transposed convolution is."""
        return self.w_layout if self.output_padding is None else self.w_layout.translate(TRANSPOSED)


@dataclass(frozen=True, eq=False)
class Planned(Schedule):
    """Each function by a plan of its own."""

    problem: Problem
    #: The plans that are predicted to be fastest, of those functions that were asked for.
    best: dict[Function, Tiled] = field(default_factory=dict, init=False)
    #: All plans, the one that is predicted to be fastest first, of those for which that one was not enough.
    ranked: dict[Function, tuple[Tiled, ...]] = field(default_factory=dict, init=False)

    def predicted(self, function: Function) -> Tiled:
        """The plan of a function that is predicted to be fastest."""
        found = self.best.get(function)
        if found is None:
            found = self.best[function] = next(plans(self.problem, function))
        return found

    def chosen(self, function: Function, place: str) -> Tiled:
        """What runs a function on arrays on a device of this name, as far as that is known now."""
        return next(self._ranked(function, self.seconds(function, place)))

    def seconds(self, function: Function, place: str) -> dict[str, float]:
        """How long the plans of a function took, as far as that was measured."""
        tuning = self.problem.tuning
        if tuning is None:
            return {}
        return tuning.seconds(self.problem.call(function, place), [plan.name for plan in self._promising(function)])

    def run(self, function: Function, *arrays: Array | None, **options: bool) -> Array:
        if self.w_axes is None:
            return self._run(function, *arrays, **options)
        if function == "weight_grad":
            return self.in_w_layout(self._run(function, *arrays))
        first, w, *others = arrays
        return self._run(function, first, self.filters(w), *others, **options)

    def _run(self, function: Function, *arrays: Array | None, **options: bool) -> Array:
        if self.problem.tuning is None:
            plan, seconds = self.predicted(function), {}
        else:
            seconds = self._measured(function, *arrays, **options)
            plan = next(self._ranked(function, seconds))
        call = self.problem.backend.call
        try:
            return call(plan, *arrays, **options)
        except MemoryError as error:
            error.add_note("Take smaller sizes, or Dask arrays, which need not be in memory as a whole.")
            raise
        except RefusedError as error:
            refused = error.with_traceback(None)  # which keeps the memory of the call
        for other in islice(self._ranked(function, seconds), 1, None):
            with suppress(RefusedError):
                return call(other, *arrays, **options)
        raise refused

    def _ranked(self, function: Function, seconds: dict[str, float]) -> Iterator[Tiled]:
        """The plans of a function, the fastest first: by the times that were measured, or else by those predicted."""
        if seconds:
            yield from sorted(self._promising(function), key=lambda plan: seconds.get(plan.name, math.inf))
        else:
            yield self.predicted(function)
            yield from self._all(function)[1:]

    def _promising(self, function: Function) -> list[Tiled]:
        """The plans that are worth a measurement."""
        most = PROMISING * self.predicted(function).cost
        return list(takewhile(lambda plan: plan.cost <= most, self._all(function)))

    def _all(self, function: Function) -> tuple[Tiled, ...]:
        found = self.ranked.get(function)
        if found is None:
            others = islice(plans(self.problem, function), 1, None)
            found = self.ranked[function] = (self.predicted(function), *others)
        return found

    def _measured(self, function: Function, *arrays: Array | None, **options: bool) -> dict[str, float]:
        """The times of the plans that are worth it; measured now, if nobody has."""
        promising = self._promising(function)
        backend, tuning = self.problem.backend, self.problem.tuning
        if len(promising) < 2 or tuning is None:
            return {}
        runs = {plan.name: partial(backend.call, plan, *arrays, **options) for plan in promising}
        return measured(tuning, self.problem.call(function, backend.place(arrays[0])), runs, backend.seconds)


@lru_cache(maxsize=1024)
def scheduled(
    backend: Backend,
    x_shape: Shape,
    w_shape: Shape,
    dtypes: tuple[tuple[str, DType], ...],
    options: Options,
    settings: Settings,
) -> Schedule:
    """Check everything that does not depend on the arrays' elements, and decide how to run it."""
    g = geometry_of(x_shape, w_shape, options, frozenset(dict(dtypes)))
    dtype = _result_dtype(backend, _mixed(backend, dtypes) if options.mixed else dtypes, options.dtype)
    if options.pooling is not None:
        check_order(options.pooling, backend.kind(dtype), dtypes)
    if options.pad_value:
        value = backend.filling(options.pad_value, dtype)
        g = replace(g, pad_value=value if g.pad_value else 0)
    order = options.order_of_filters
    problem = Problem(backend, g, dtype, settings, options.algorithm, frozenset(dict(dtypes).values()), order)
    return _scheduled(problem, None if order == "oi..." else filter_axes(order, len(g.axes)))


def geometry_of(x_shape: Shape, w_shape: Shape, options: Options, given: Container[str] = ("x", "w")) -> Geometry:
    """Check the shapes and options, and read the geometry from them; errors say which arrays were `given`."""
    if options.layout not in LAYOUTS:
        msg = f'`layout` must be "channels_first" or "channels_last", got {options.layout!r}'
        raise ValueError(msg)
    if options.w_layout not in W_LAYOUTS:
        msg = f"`w_layout` must be one of {W_LAYOUTS}, got {options.w_layout!r}"
        raise ValueError(msg)
    channels_last, w_layout = options.layout == "channels_last", options.order_of_filters
    names = ("x" if "x" in given else "x_shape", "w" if "w" in given else "w_shape")
    check_ranks(x_shape, w_shape, names, channels_last=channels_last, w_layout=w_layout)
    if channels_last:
        x_shape = (x_shape[0], *x_shape[-1:], *x_shape[1:-1])
    mode, value = options.pad_mode, options.pad_value
    sizes = {"stride": options.stride, "padding": options.padding, "dilation": options.dilation}
    shared: dict[str, Any] = sizes | {"groups": options.groups, "w_layout": w_layout}
    if options.output_padding is not None:
        results: dict[str, Any] = {"output_padding": options.output_padding, "output_size": options.output_size}
        g = transposed_geometry(x_shape, w_shape, **shared, **results)
    else:
        g = geometry(x_shape, w_shape, **shared, pad_mode=mode, pad_value=value, names=names)
    return replace(g, channels_last=channels_last, order=options.order)


def computed(
    algorithm: str, settings: Settings, g: Geometry, dtype: DType, function: Function, *arrays: Array, **options: bool
) -> Array:
    """Schedule a convolution and run one of its functions: what a task does with parts of arrays in chunks."""
    backend = backend_of({f"operand {i}": a for i, a in enumerate(arrays)})
    given = frozenset(a.dtype for a in arrays)
    if g.pad_value != g.pad_value:  # a NaN from another process is not the one that is remembered here
        g = replace(g, pad_value=math.nan)
    schedule = _of_part(Problem(backend, g, backend.to_dtype(dtype), settings, algorithm, given))
    with applied(settings):
        return schedule.run(function, *arrays, **options)


def _scheduled(problem: Problem, w_axes: tuple[int, ...] | None = None) -> Schedule:
    backend, g, dtype, settings, algorithm = problem[:5]
    accumulator = backend.accumulator(dtype)
    if backend.chunked is None:
        return Planned(backend, g, dtype, accumulator, w_axes, problem)
    able(problem, "forward")
    settings = settings._replace(tuning=None)  # a task on another machine does not measure
    run = partial(computed, algorithm, settings)
    identity = (algorithm, settings._replace(threads=None))  # threads change no result
    return backend.chunked(backend, g, dtype, accumulator, w_axes, run, identity)


#: The same, remembered for the parts of arrays in chunks.
_of_part = lru_cache(maxsize=1024)(_scheduled)


def _mixed(backend: Backend, dtypes: tuple[tuple[str, DType], ...]) -> tuple[tuple[str, DType], ...]:
    """The dtypes that decide where integers take that of the others: those of the others, if there are any."""
    others = tuple((name, dtype) for name, dtype in dtypes if backend.kind(dtype) != "integer")
    return others or dtypes


def _result_dtype(backend: Backend, dtypes: tuple[tuple[str, DType], ...], wanted: DType | None) -> DType:
    """The dtype of the result; TypeError for what cannot be multiplied, or not without a loss."""
    given = ", ".join(f"`{name}` {dtype}" for name, dtype in dtypes)
    kinds = {name: backend.kind(dtype) for name, dtype in dtypes}
    floating = [dtype for name, dtype in dtypes if kinds[name] in {"real", "complex"}]

    def refuse(rule: str, kind: Kind) -> NoReturn:
        odd = " and ".join(f"`{name}`" for name, found in kinds.items() if found == kind)
        others = floating or [dtype for name, dtype in dtypes if kinds[name] is not None]
        msg = f"{rule}, got {given}: convert {odd} to {others[0] if others else 'float32, for example'}"
        raise TypeError(msg)

    if None in kinds.values():
        refuse("arrays must be of an integer, real or complex floating dtype", None)
    if floating and "integer" in kinds.values():
        refuse("integers and floating-point numbers do not mix", "integer")
    common = backend.common(*(dtype for _, dtype in dtypes))
    if common is None:
        msg = f"the dtypes must have a common one, got {given}: convert one of them"
        raise TypeError(msg)
    if not floating and backend.kind(common) != "integer":
        msg = f"the dtypes must have a common integer dtype, got {given}: convert one of them"
        raise TypeError(msg)
    if wanted is None:
        return common
    wanted = backend.to_dtype(wanted)
    if backend.kind(wanted) != backend.kind(common):
        msg = f"`dtype` must be of the kind of {common}, the common dtype of {given}, got {wanted}: convert the arrays"
        raise TypeError(msg)
    if backend.common(common, wanted) != wanted:
        msg = f"`dtype` must be able to hold {common}, the common dtype of {given}, got {wanted}"
        raise TypeError(msg)
    return wanted
