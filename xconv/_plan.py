"""What `xconv.plan` hands out."""

from dataclasses import dataclass
from functools import cached_property

from ._arguments import suggest
from ._config import Settings, applied
from ._planner import Planned
from ._ranking import Candidate, candidates
from ._typing import Array, DType, Function, Shape
from .backends import backend_of
from .schedules import Tiled


@dataclass(frozen=True, eq=False)
class Plan:
    """How one convolution and its gradients are run, and the means to run them; made by :func:`plan`.

    Each function is planned by itself: ``plan.forward(x, w, b)``, ``plan.input_grad(dy, w)`` and
    ``plan.weight_grad(dy, x)`` run it, and have the attributes that :class:`FunctionPlan` lists. ``plan.conv`` is
    another name of the first. A plan belongs to its process and cannot be pickled; to plan again elsewhere is cheap.

    Attributes
    ----------
    forward, input_grad, weight_grad : FunctionPlan
        The plans of the three functions; the gradients' are made when they are first asked for.
    x_shape, w_shape, y_shape : tuple of int
        Shapes of the input, the filters and the result, in the plan's `layout` and `w_layout`.
    dtype : dtype
        dtype of the result.
    algorithm, flops, workspace, tiles, candidates
        Those of the forward pass.
    bytes_moved : int
        The forward pass's ``bytes``.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x, w = np.ones((8, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
    >>> p = xconv.plan(x, w, padding=1)
    >>> p.algorithm, p.y_shape
    ('winograd', (8, 64, 56, 56))
    >>> p.forward(x, w).shape
    (8, 64, 56, 56)
    """

    schedule: Planned
    #: The name of the operands' device, where a record of times may tell more about it.
    place: str
    dtypes: tuple[DType, DType]
    settings: Settings

    def __post_init__(self) -> None:
        self.schedule.predicted("forward")  # raises what a call would raise

    @cached_property
    def forward(self) -> "FunctionPlan":
        return FunctionPlan(self, "forward", ("x", "w", "b"))

    @cached_property
    def input_grad(self) -> "FunctionPlan":
        return FunctionPlan(self, "input_grad", ("dy", "w"))

    @cached_property
    def weight_grad(self) -> "FunctionPlan":
        return FunctionPlan(self, "weight_grad", ("dy", "x"))

    @property
    def x_shape(self) -> Shape:
        return self.schedule.x_shape

    @property
    def w_shape(self) -> Shape:
        return self.schedule.w_shape

    @property
    def y_shape(self) -> Shape:
        return self.schedule.y_shape

    @property
    def dtype(self) -> DType:
        return self.schedule.dtype

    @property
    def conv(self) -> "FunctionPlan":
        return self.forward

    @property
    def algorithm(self) -> str:
        return self.forward.algorithm

    @property
    def flops(self) -> int:
        return self.forward.flops

    @property
    def bytes_moved(self) -> int:
        return self.forward.bytes

    @property
    def workspace(self) -> int:
        return self.forward.workspace

    @property
    def tiles(self) -> int:
        return self.forward.tiles

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.forward.candidates

    def __repr__(self) -> str:
        name = self.schedule.backend.name
        head = f"Plan: {self.x_shape} * {self.w_shape} -> {self.y_shape}, {self.dtype} on {name}"
        return "\n".join((head, *(repr(function) for function in (self.forward, self.input_grad, self.weight_grad))))


@dataclass(frozen=True, eq=False, repr=False)
class FunctionPlan:
    """How one function of a plan is run; called with its arrays, it runs it.

    What it returns is what ``xconv.conv(x, w, b)``, ``xconv.conv_input_grad(dy, w, plan.x_shape)`` or
    ``xconv.conv_weight_grad(dy, x, plan.w_shape)`` returns with the plan's options, for arrays of the plan's shapes
    and dtypes; `dy` has those of the result. ValueError and TypeError for others.

    Attributes
    ----------
    algorithm : str
        The name of the algorithm.
    flops : int
        Floating-point operations, two per multiply-add.
    bytes : int
        Bytes that the algorithm reads and writes, its temporary arrays included.
    workspace : int
        Most bytes of temporary memory that a call takes on one thread, the filters' copies included.
    tiles : int
        Parts in which the function is computed.
    candidates : tuple
        Every algorithm as ``(name, cost, refusal, note)``: its predicted cost in multiply-adds (MAC) of float32, why it
        cannot serve this convolution, and why it is not chosen by itself; the cheapest first. An input gradient of
        stride 1 is also a convolution with reflected filters: such candidates have names like ``"gemm, reflected"``.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> p = xconv.plan(np.ones((1, 1, 1000)), np.ones((1, 1, 500)), padding=499)
    >>> p.weight_grad.algorithm
    'fft'
    """

    plan: Plan
    function: Function
    #: The names of its arrays; a third one may be left out.
    arguments: tuple[str, ...]

    @property
    def tiled(self) -> Tiled:
        """What runs it, as far as that is known now: times may be measured later."""
        return self.plan.schedule.chosen(self.function, self.plan.place)

    @property
    def algorithm(self) -> str:
        return self.tiled.algorithm.name

    @property
    def flops(self) -> int:
        return 2 * self.tiled.algorithm.multiplications(self.tiled.geometry)

    @property
    def bytes(self) -> int:
        tiled, backend = self.tiled, self.plan.schedule.problem.backend
        return backend.itemsize(tiled.accumulator) * tiled.algorithm.traffic(tiled.geometry)

    @property
    def workspace(self) -> int:
        return self.tiled.workspace

    @property
    def tiles(self) -> int:
        return len(self.tiled.tiles)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return candidates(self.plan.schedule.problem, self.function)

    def __call__(self, *arrays: Array | None) -> Array:
        if not len(self.arguments[:2]) <= len(arrays) <= len(self.arguments):
            msg = f"`plan.{self.function}` takes {', '.join(self.arguments)}, got {len(arrays)} arguments"
            raise TypeError(msg)
        given = {n: a for n, a in zip(self.arguments, arrays, strict=False) if a is not None or n != "b"}
        try:
            self._check(given)
        except ValueError as error:
            one, other = self.arguments[:2]
            exchanged = given | {one: given[other], other: given[one]}
            suggest(error, [(f"`{one}` and `{other}` may be exchanged", lambda: self._check(exchanged))])
            raise
        with applied(self.plan.settings):
            return self.plan.schedule.run(self.function, *arrays)

    def _check(self, given: dict[str, Array]) -> None:
        """TypeError and ValueError for what is not as it was planned."""
        plan = self.plan
        expected = {
            "x": (plan.x_shape, plan.dtypes[0]),
            "w": (plan.w_shape, plan.dtypes[1]),
            "b": ((plan.schedule.geometry.c_out,), plan.dtype),
            "dy": (plan.y_shape, plan.dtype),
        }
        if backend_of(given) is not plan.schedule.backend:
            names = " and ".join(f"`{name}`" for name in given)
            msg = f"{names} must be of {plan.schedule.backend.name}, the array library of the plan"
            raise TypeError(msg)
        for name, array in given.items():
            shape, dtype = expected[name]
            if tuple(array.shape) != shape:
                msg = f"`{name}` must have the plan's shape {shape}, got {tuple(array.shape)}"
                raise ValueError(msg)
            if array.dtype != dtype:
                msg = f"`{name}` must have the plan's dtype {dtype}, got {array.dtype}"
                raise TypeError(msg)

    def __repr__(self) -> str:
        try:
            tiled = self.tiled
        except (ValueError, MemoryError) as error:  # which a call would raise
            return f"  {self.function}: {error}"
        team = tiled.team
        seconds = self.plan.schedule.seconds(self.function, self.plan.place)
        parallel = team.heavy and team.limit > 1 and self.plan.schedule.problem.backend.parallel
        lines = [
            f"  {self.function}: {tiled.name}",
            f"    work     {_metric(self.flops, 'FLOP')}, {_metric(self.bytes, 'B')} moved",
            f"    tiles    {self.tiles}, within {_metric(self.workspace, 'B')} of workspace"
            + (", in parallel" if parallel else ""),
        ]
        for name, cost, refusal, note in self.candidates:
            measured = f", measured {1e3 * seconds[name]:.3g} ms" if name in seconds else ""
            verdict = refusal or f"predicted cost {_metric(cost, 'MAC')}{measured}" + (f"; {note}" if note else "")
            lines.append(f"    {'*' if name == tiled.name else ' '} {name:<20} {verdict}")
        return "\n".join(lines)


def _metric(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} T{unit}"
