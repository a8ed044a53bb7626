"""NVIDIA's cuDNN, where it is installed: its own implicit matrix products, which never build a column.

None of its transforms is used (Winograd's, Fourier's), nor what adds in an order that changes from run to run. So the
error is that of the plain sum of K products, ``|err| <= K * eps * conv(|x|, |w|)``, element by element, and every call
gives the same bits. (S. Chetlur et al., *cuDNN: Efficient Primitives for Deep Learning*, 2014, sec. 3.)

cuDNN may turn down a convolution for a reason that nobody but cuDNN knows, and does so when it is about to run.
"""

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from ..._geometry import Geometry
from ..._typing import Array, DType, Function, Kind
from ...algorithms import Algorithm, RefusedError
from ...primitives import Costs, Primitives, Team
from ._steps import ordered

#: cuDNN counts elements in 32 bits.
MOST_ELEMENTS = 2**31 - 1
#: Elements of a tile from which on it is cut, 256 MiB of the widest numbers: cuDNN knows best how to go through memory.
WHOLE_TILE = 2**25
#: Elements of temporary memory that cuDNN may take beside copies of the arrays: at least, and at most.
LEAST_EXTRA, MOST_EXTRA = 2**10, 2**23


@dataclass(frozen=True)
class Cudnn(Algorithm):
    name = "cudnn"
    takes_half = True
    strays = frozenset({"input_grad"})
    #: Windows in all tiles together, where that is known.
    windows: int | None = None

    def refusal(self, g: Geometry, kind: Kind) -> str | None:
        if kind != "real":
            return f"it takes real floating-point numbers, and these are {kind}"
        if g.is_padded and any(a.kept[1].stop <= a.kept[1].start for a in g.axes):
            return "there is nothing in `x` but its padding"
        if len(g.axes) > 3:
            return f"it takes three spatial axes at most, and there are {len(g.axes)}"
        if max(math.prod(shape) for shape in (g.x_shape, g.w_shape, g.y_shape)) > MOST_ELEMENTS:
            return "it counts elements in 32 bits, and there are more"
        return None

    def lack(self, backend: Primitives, dtype: DType, precision: str) -> str | None:
        del backend, dtype, precision
        return None if find_spec("cudnn") else "it needs the extra `xconv[cudnn]`"

    def fitted(self, g: Geometry, kind: Kind) -> "Cudnn":
        del kind
        return replace(self, windows=g.batch * g.pixels)

    def scratch(self, function: Function, g: Geometry, costs: Costs) -> int:
        del function, costs
        # Copies of what does not lie as cuDNN takes it; and an input gradient that is cropped comes in two pieces.
        return _arrays(g) + math.prod(g.x_shape) + self._workspace(g)

    def least_tile(self, g: Geometry, costs: Costs) -> int:
        return min(WHOLE_TILE, self.scratch("forward", g, costs))

    def traffic(self, g: Geometry) -> int:
        return _arrays(g)

    def multiplications(self, g: Geometry) -> int:
        return g.macs

    def cost(self, function: Function, g: Geometry, costs: Any) -> float:
        return float(costs.cudnn(function, g))

    def transform(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        del backend, g, team
        return w

    def adjoint_operand(self, backend: Primitives, g: Geometry, w: Array, team: Team) -> Array:
        return self.transform(backend, g, w, team)

    def forward(self, backend: Any, g: Geometry, x: Array, u: Array, out: Array | None) -> Array:
        return self._convolved("conv", g, x, u, out, backend)

    def input_grad(self, backend: Any, g: Geometry, dy: Array, u: Array, out: Array | None) -> Array:
        return self._convolved("input_grad", g, dy, u, out, backend)

    def weight_grad(self, backend: Any, g: Geometry, dy: Array, x: Array) -> Array:
        out = None
        if g.batch * g.pixels == self.windows:  # it is no part of a sum, and is rounded once
            out = ordered(backend.do, g.w_shape, dy.dtype, g.in_layout(tuple(range(2 + len(g.axes)))))
        return self._convolved("weight_grad", g, dy, x, out, backend)

    def _convolved(self, function: str, g: Geometry, a: Array, b: Array, out: Array | None, backend: Any) -> Array:
        try:
            from ._graphs import Task, convolve
        except (ImportError, OSError) as error:
            reason = f"its frontend cannot be imported: {error}"
        else:
            accumulator, tf32 = backend.accumulator(a.dtype), backend.tf32
            workspace = self._workspace(g) * backend.itemsize(accumulator)
            return convolve(Task(function, g, accumulator.name, tf32, workspace), a, b, out, backend.do)
        raise RefusedError(self.name, reason)  # not from the other error, which keeps the memory of the call

    def _workspace(self, g: Geometry) -> int:
        """Elements that cuDNN itself may take: all arrays in another memory order, and partial sums of the filters."""
        return _arrays(g) + max(LEAST_EXTRA, min(2 * _arrays(g), MOST_EXTRA))


def _arrays(g: Geometry) -> int:
    return math.prod(g.x_shape) + math.prod(g.w_shape) + math.prod(g.y_shape)
