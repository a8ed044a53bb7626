"""Memory of NumPy arrays that is kept from call to call."""

import math
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ..._typing import Array, DType, Shape
from .._backend import MIB

#: Hands out uninitialised memory.
Take = Callable[[Shape, DType], Array]

#: Bytes of a cache line, and of the widest registers.
LINE = 64
#: The most memory that is kept, in bytes.
KEEP = 32 * MIB
#: The C library keeps smaller blocks by itself.
LEAST = 2**16


def _line_by_line(size: int) -> Array:
    """So many bytes, from the beginning of a line."""
    raw = np.empty(size + LINE, np.uint8)
    begin = -raw.ctypes.data % LINE
    return raw[begin : begin + size]


class Scratch(threading.local):
    """Memory of one thread, kept from call to call and handed out anew for every tile.

    A fresh array of some megabytes costs a page fault for every 4 KiB of it, which is as much time as filling it.
    """

    def __init__(self) -> None:
        self.block = np.empty(0, np.uint8)
        self.used = 0

    def reset(self, size: int = 0) -> None:
        """Take back all that was handed out, and get ready to hand out `size` bytes, in a few arrays."""
        size += 16 * LINE  # every array begins a line
        if size > self.block.size:
            self.block = np.empty(0, np.uint8)  # first, so that the old block never coexists with what comes
            if size <= KEEP:
                self.block = _line_by_line(size)
        self.used = 0

    def take(self, shape: Shape, dtype: DType) -> Array:
        """Uninitialised memory, valid until the thread's next tile."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        begin, self.used = self.used, self.used + -(-size // LINE) * LINE
        if self.used <= self.block.size:
            return np.ndarray(shape, dtype, self.block, begin)
        return np.empty(shape, dtype)


class Reserve:
    """Memory for what outlives a tile and not the call, for all threads: it comes back by itself when nobody uses it.

    No result may lie in it, which callers may keep for as long as they like.

    The C library hands large blocks back to the system as soon as they are free, and then each of their pages costs a
    fault again.
    """

    def __init__(self) -> None:
        self.blocks: list[Array] = []

    def take(self, shape: Shape, dtype: DType) -> Array:
        """Uninitialised memory."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, np.asarray(_Lease(self, self._block(size)))[:size])

    def _block(self, size: int) -> Array:
        """A block that was kept, if one is large enough and not more than twice as large; else a new one."""
        with suppress(IndexError):  # another thread may have taken the last one
            for _ in range(len(self.blocks)):
                block = self.blocks.pop(0)
                if size <= block.size <= 2 * size:
                    return block
                self.blocks.append(block)
        return _line_by_line(size)

    def give(self, block: Array) -> None:
        """Keep a block, and let go of others for it."""
        self.blocks.append(block)
        with suppress(IndexError):
            while sum(kept.size for kept in tuple(self.blocks)) > KEEP:
                self.blocks.pop(0)


class _Lease:
    """What an array in a block of the reserve refers to, and all views of it; the last of them gives it back."""

    def __init__(self, reserve: Reserve, block: Array) -> None:
        self.reserve, self.block = reserve, block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self.reserve.give(self.block)
