"""Every algorithm by its name, in the order in which ``"auto"`` considers them."""

from ._algorithm import Algorithm
from ._chunked import Chunked
from ._cudnn import Cudnn
from ._depthwise import Depthwise
from ._fourier import Fourier
from ._gemm import Gemm
from ._implicit import Implicit
from ._mec import Mec
from ._pointwise import Pointwise
from ._schedule import Schedule
from ._tiled import WAYS, Tiled
from ._winograd import Winograd

__all__ = ["ALGORITHMS", "WAYS", "Algorithm", "Chunked", "Schedule", "Tiled"]

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (Pointwise(), Depthwise(), Winograd(), Gemm(), Mec(), Fourier(), Implicit(), Cudnn())
}
