"""The dtypes of NumPy, which other libraries share."""

from contextlib import suppress

import numpy as np

from ..._typing import Array, DType, Kind, Shape
from .._backend import Backend

KINDS: dict[str, Kind] = {"i": "integer", "u": "integer", "f": "real", "c": "complex"}


def check_type(name: str, array: Array) -> None:
    """TypeError for the subclasses of ndarray whose meaning a convolution would lose."""
    if isinstance(array, (np.ma.MaskedArray, np.matrix)):
        kind = type(array).__qualname__
        msg = f"`{name}` must be a plain array, got {kind}: convert it, a masked one with `filled(value)`"
        raise TypeError(msg)


class DtypesOfNumpy(Backend):
    """A library whose dtypes are those of NumPy, and of ml_dtypes."""

    def kind(self, dtype: DType) -> Kind:
        known = KINDS.get(dtype.kind)
        return "real" if known is None and dtype.name == "bfloat16" else known  # of ml_dtypes

    def to_dtype(self, dtype: object) -> DType:
        with suppress(TypeError):
            dtype = np.dtype(dtype).newbyteorder("=")  # type: ignore[call-overload]
        return super().to_dtype(dtype)

    def itemsize(self, dtype: DType) -> int:
        return int(np.dtype(dtype).itemsize)

    def shape(self, name: str, x: Array) -> Shape:
        del name
        return tuple(x.shape)

    def conj(self, u: Array) -> Array:
        return self.xp.conj(u) if u.dtype.kind == "c" else u
