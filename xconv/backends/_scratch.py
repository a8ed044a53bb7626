"""Memory of NumPy arrays that is kept from call to call."""

import math
import threading
from collections.abc import Callable

import numpy as np

from .._typing import Array, DType, Shape
from ._generic import MIB

#: Hands out uninitialised memory.
Take = Callable[[Shape, DType], Array]


class Scratch(threading.local):
    """Memory of one thread, kept from call to call and handed out anew for every tile.

    A fresh array of some megabytes costs a page fault for every 4 KiB of it, which is as much time as filling it.
    """

    #: The most memory that is kept.
    KEEP = 32 * MIB
    #: Bytes of a cache line, and of the widest registers.
    LINE = 64

    def __init__(self) -> None:
        self.block = np.empty(0, np.uint8)
        self.used = 0

    def reset(self, size: int = 0) -> None:
        """Take back all that was handed out, and get ready to hand out `size` bytes, in a few arrays."""
        size += 16 * self.LINE  # every array begins a line
        if size > self.block.size:
            self.block = np.empty(0, np.uint8)  # first, so that the old block never coexists with what comes
            if size <= self.KEEP:
                raw = np.empty(size + self.LINE, np.uint8)
                begin = -raw.ctypes.data % self.LINE
                self.block = raw[begin : begin + size]
        self.used = 0

    def take(self, shape: Shape, dtype: DType) -> Array:
        """Uninitialised memory, valid until the thread's next tile."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        begin, self.used = self.used, self.used + -(-size // self.LINE) * self.LINE
        if self.used <= self.block.size:
            return np.ndarray(shape, dtype, self.block, begin)
        return np.empty(shape, dtype)
