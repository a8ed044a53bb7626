"""What `xconv.plan` hands out."""

from dataclasses import dataclass

from ._config import Settings, applied
from ._planner import Candidate, candidates
from ._typing import Array, DType, Shape
from .algorithms import Schedule, Tiled
from .backends import backend_of


@dataclass(frozen=True, eq=False)
class Plan:
    """How one convolution is run, and the means to run it; made by :func:`plan`.

    A plan belongs to its process and cannot be pickled; to plan again elsewhere is cheap.

    Attributes
    ----------
    algorithm : str
        The name of the forward pass's algorithm. The gradients' is the same, unless a :class:`Tuning` found others to
        be faster at these.
    x_shape, w_shape, y_shape : tuple of int
        Shapes of the input, the filters and the result, in the plan's layout.
    dtype : dtype
        dtype of the result.
    flops : int
        Floating-point operations of the forward pass, and of each gradient: two per multiply-add.
    bytes_moved : int
        Bytes that the algorithm reads and writes in a forward pass, its temporary arrays included.
    workspace : int
        Most bytes of temporary memory that a call takes on one thread, the filters' copies included.
    tiles : int
        Parts in which the forward pass is computed.
    candidates : tuple
        Every algorithm as ``(name, cost, refusal, note)``: its predicted cost in multiply-adds (MAC), why it cannot
        serve this convolution, and why it is not chosen by itself; the cheapest first.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x, w = np.ones((8, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
    >>> p = xconv.plan(x, w, padding=1)
    >>> p.algorithm, p.y_shape, p.flops
    ('winograd', (8, 64, 56, 56), 585203712)
    >>> p.conv(x, w).shape
    (8, 64, 56, 56)
    """

    #: How the forward pass is run.
    schedule: Tiled
    #: What runs all three functions, each by its own algorithm where that was measured.
    run: Schedule
    #: Seconds that the algorithms took for the forward pass, where that was measured.
    seconds: dict[str, float]
    dtypes: tuple[DType, DType]
    settings: Settings

    @property
    def x_shape(self) -> Shape:
        return self.schedule.x_shape

    @property
    def w_shape(self) -> Shape:
        return self.schedule.geometry.w_shape

    @property
    def y_shape(self) -> Shape:
        return self.schedule.y_shape

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return candidates(self.schedule.geometry, self.schedule.backend, self.dtype, self.settings)

    @property
    def algorithm(self) -> str:
        return self.schedule.algorithm.name

    @property
    def dtype(self) -> DType:
        return self.schedule.dtype

    @property
    def flops(self) -> int:
        return 2 * self.schedule.algorithm.multiplications(self.schedule.geometry)

    @property
    def bytes_moved(self) -> int:
        itemsize = self.schedule.backend.itemsize(self.schedule.accumulator)
        return itemsize * self.schedule.algorithm.traffic(self.schedule.geometry)

    @property
    def workspace(self) -> int:
        return self.schedule.workspace

    @property
    def tiles(self) -> int:
        return len(self.schedule.tiles)

    def conv(self, x: Array, w: Array, b: Array | None = None, /) -> Array:
        """What ``xconv.conv(x, w, b)`` returns with the plan's options, for arrays of the plan's shapes and dtypes."""
        x_dtype, w_dtype = self.dtypes
        given = {"x": (x, self.x_shape, x_dtype), "w": (w, self.w_shape, w_dtype)}
        if b is not None:
            given["b"] = (b, self.w_shape[:1], self.dtype)
        self._check(given)
        with applied(self.settings):
            return self.run.forward(x, w, b)

    def input_grad(self, dy: Array, w: Array, /) -> Array:
        """What ``xconv.conv_input_grad(dy, w, plan.x_shape)`` returns; `dy` has the plan's result shape and dtype."""
        self._check({"dy": (dy, self.y_shape, self.dtype), "w": (w, self.w_shape, self.dtypes[1])})
        with applied(self.settings):
            return self.run.input_grad(dy, w)

    def weight_grad(self, dy: Array, x: Array, /) -> Array:
        """What ``xconv.conv_weight_grad(dy, x, plan.w_shape)`` returns; `dy` has the plan's result shape and dtype."""
        self._check({"dy": (dy, self.y_shape, self.dtype), "x": (x, self.x_shape, self.dtypes[0])})
        with applied(self.settings):
            return self.run.weight_grad(dy, x)

    def _check(self, given: dict[str, tuple[Array, Shape, DType]]) -> None:
        if backend_of({name: array for name, (array, _, _) in given.items()}) is not self.schedule.backend:
            names = " and ".join(f"`{name}`" for name in given)
            msg = f"{names} must be of {self.schedule.backend.name}, the array library of the plan"
            raise TypeError(msg)
        for name, (array, shape, dtype) in given.items():
            if tuple(array.shape) != shape:
                msg = f"`{name}` must have the plan's shape {shape}, got {tuple(array.shape)}"
                raise ValueError(msg)
            if array.dtype != dtype:
                msg = f"`{name}` must have the plan's dtype {dtype}, got {array.dtype}"
                raise TypeError(msg)

    def __repr__(self) -> str:
        team = self.schedule.team
        lines = [
            f"Plan: {self.x_shape} * {self.w_shape} -> {self.y_shape}, {self.dtype} on {self.schedule.backend.name}",
            f"  algorithm  {self.algorithm}",
            f"  work       {_metric(self.flops, 'FLOP')}, {_metric(self.bytes_moved, 'B')} moved",
            f"  tiles      {self.tiles}, within {_metric(self.workspace, 'B')} of workspace"
            + (", in parallel" if team.heavy and team.limit > 1 and self.schedule.backend.parallel else ""),
        ]
        for name, cost, refusal, note in self.candidates:
            measured = f", measured {1e3 * self.seconds[name]:.3g} ms" if name in self.seconds else ""
            verdict = refusal or f"predicted cost {_metric(cost, 'MAC')}{measured}" + (f"; {note}" if note else "")
            lines.append(f"  {'*' if name == self.algorithm else ' '} {name:<10} {verdict}")
        return "\n".join(lines)


def _metric(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} T{unit}"
