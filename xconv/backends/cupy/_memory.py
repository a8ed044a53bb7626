"""CuPy arrays on their device: copies and sums as steps, tiles one after the other."""

from collections.abc import Sequence
from importlib import import_module
from itertools import islice

import numpy as np

from ..._geometry import Geometry, Tile
from ..._typing import Array, DType, Shape
from ...primitives import Piece, Team, Whole
from ..numpy import DtypesOfNumpy
from ._steps import CLEAR, CONJUGATE, COPY, SUM, Doer, Now, copied, each, ordered

FLOAT32 = np.dtype("float32")


class OnDevice(DtypesOfNumpy):
    """What is asked of the device is a step, which a doer takes."""

    def __init__(self, do: Doer | None = None, xp: object = None) -> None:
        super().__init__(xp or import_module("array_api_compat.cupy"))
        self.do = do or Now()

    def operand(self, dtype: DType) -> DType:
        return dtype

    def accumulator(self, dtype: DType) -> DType:
        return FLOAT32 if dtype.itemsize == 2 and self.kind(dtype) == "real" else dtype

    def astype(self, x: Array, dtype: DType) -> Array:
        return x if x.dtype == dtype else copied(self.do, x, dtype)

    def zeros(self, shape: Shape, dtype: DType, like: Array, out: Array | None = None) -> Array:
        del like
        return each(self.do, CLEAR, self.do.empty(shape, dtype) if out is None else out)

    def view(self, out: Array | None, shape: Shape, dtype: DType) -> Array | None:
        if out is None or out.dtype != dtype:
            return None
        try:  # NumPy knows whether that takes a copy; it never looks into this memory
            np.lib.stride_tricks.as_strided(np.empty(1, np.uint8), out.shape, out.strides).reshape(shape, copy=False)
        except ValueError:
            return None
        return out.reshape(shape)

    def add(self, y: Array, b: Array, out: Array | None = None) -> Array:
        out = ordered(self.do, y.shape, y.dtype, range(y.ndim)) if out is None else out
        return each(self.do, SUM, y, b, out)

    def conj(self, u: Array) -> Array:
        if self.kind(u.dtype) != "complex":
            return u
        return each(self.do, CONJUGATE, u, self.do.empty(u.shape, u.dtype))

    def image(self, g: Geometry, shape: Shape, like: Array) -> Array:
        """Memory for an image, in the caller's layout and the dtype of sums."""
        return ordered(self.do, shape, self.accumulator(like.dtype), g.in_layout(tuple(range(len(shape)))))

    def assemble(self, whole: Whole, tiles: Sequence[Tile], piece: Piece, team: Team) -> Array:
        del team
        result = ordered(self.do, whole.shape, whole.dtype, whole.order)
        for tile in tiles:
            target = result[whole.place(tile)]
            made = piece(tile, target)
            if made is not target:
                each(self.do, COPY, made, target)
        return result

    def total(self, tiles: Sequence[Tile], piece: Piece, *, team: Team, lanes: int = 1) -> Array:
        del team, lanes
        result = piece(tiles[0], None)
        for tile in islice(tiles, 1, None):
            each(self.do, SUM, result, piece(tile, None), result)
        return result
