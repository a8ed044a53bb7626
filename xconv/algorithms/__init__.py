"""What is computed, in the array-API standard and the primitives: algorithms for every library."""

from ._algorithm import Algorithm, RefusedError
from ._depthwise import Depthwise
from ._fourier import Fourier
from ._gemm import Gemm
from ._pointwise import Pointwise
from ._winograd import Winograd

__all__ = ["PORTABLE", "Algorithm", "Gemm", "RefusedError"]

#: By name, in the order in which ``"auto"`` considers them.
PORTABLE: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (Pointwise(), Depthwise(), Winograd(), Gemm(), Fourier())
}
