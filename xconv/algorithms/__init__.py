"""Every algorithm by its name, in the order in which ``"auto"`` considers them."""

from ._algorithm import Algorithm
from ._depthwise import Depthwise
from ._fourier import Fourier
from ._gemm import Gemm
from ._pointwise import Pointwise
from ._tiled import Schedule
from ._winograd import Winograd

__all__ = ["ALGORITHMS", "Algorithm", "Schedule"]

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (Pointwise(), Depthwise(), Winograd(), Gemm(), Fourier())
}
