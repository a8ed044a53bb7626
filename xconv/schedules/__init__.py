"""How a convolution is run: each function by an algorithm, over tiles."""

from ._schedule import Schedule
from ._tiled import WAYS, Tiled

__all__ = ["WAYS", "Schedule", "Tiled"]
