"""Dask: arrays in chunks, each of which is another library's."""

import math
from functools import cache
from importlib import import_module

import array_api_compat

from ..._typing import Array
from .. import backend_of
from .._backend import Backend
from ..numpy import DtypesOfNumpy, check_type
from ._chunked import Chunked


class DaskBackend(DtypesOfNumpy):
    """Dask arrays whose chunks are NumPy's or CuPy's. Nothing is computed before Dask is asked for it."""

    chunked = Chunked

    def __init__(self, inner: Backend | None = None) -> None:
        super().__init__(import_module("array_api_compat.dask.array"))
        if inner is not None:  # the library of the chunks
            self.algorithms = inner.algorithms

    def adopts(self, array: Array) -> bool:
        return array_api_compat.is_numpy_array(array) or array_api_compat.is_cupy_array(array)

    def of(self, arrays: dict[str, Array]) -> Backend:
        """The one for these chunks: of one library, or TypeError; of known sizes, or ValueError."""
        for name, a in arrays.items():
            meta = getattr(a, "_meta", a)
            check_type(name, meta)
            if not array_api_compat.is_array_api_obj(meta):
                msg = f"the chunks of `{name}` must be arrays of NumPy or CuPy, got {type(meta).__qualname__}"
                raise TypeError(msg)
            if any(math.isnan(n) for n in a.shape):
                msg = f"`{name}` must have chunks of known sizes, got shape {a.shape}: call its compute_chunk_sizes()"
                raise ValueError(msg)
        libraries = {name: array_api_compat.array_namespace(getattr(a, "_meta", a)) for name, a in arrays.items()}
        first = next(iter(libraries))
        for name, library in libraries.items():
            if library is not libraries[first]:
                here, there = (xp.__name__.removeprefix("array_api_compat.") for xp in (libraries[first], library))
                msg = f"the chunks of `{first}` and `{name}` must be of one array library, got {here} and {there}"
                raise TypeError(msg)
        return _over(backend_of({first: getattr(arrays[first], "_meta", arrays[first])}))


@cache
def _over(inner: Backend) -> DaskBackend:
    """The backend for chunks of a library."""
    return DaskBackend(inner)
