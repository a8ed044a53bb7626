"""A room for each array library, with all that the library brings; `backend_of` finds the one for an array.

Nothing outside this folder asks which library an array is from.
"""

import sys
from collections.abc import Callable
from functools import partial

import array_api_compat

from .._typing import Array
from ._backend import MIB, Backend

__all__ = ["MIB", "Backend", "backend_of", "model"]

_by_type: dict[type, Backend] = {}
_by_namespace: dict[object, Backend] = {}


def backend_of(arrays: dict[str, Array]) -> Backend:
    """The backend of these arrays, given by argument name; TypeError where they have none, or more than one."""
    kind, *others = map(type, arrays.values())
    known = _by_type.get(kind)
    if known is not None and others.count(kind) == len(others):
        return known.of(arrays)
    backends = [_by_type.get(type(array)) or _discover(name, array) for name, array in arrays.items()]
    for backend in backends:
        if all(found is backend or backend.adopts(arrays[name]) for found, name in zip(backends, arrays, strict=True)):
            return backend.of(arrays)
    first = next(iter(arrays))
    other = next(name for found, name in zip(backends, arrays, strict=True) if found is not backends[0])
    here, there = _type(arrays[first]), _type(arrays[other])
    msg = f"`{first}` and `{other}` must be of one array library, got {here} and {there}: convert one of them"
    raise TypeError(msg)


def model(array: Array) -> Array:
    """An array of the same library, in place of what only has the shape and dtype of one: JAX's ShapeDtypeStruct."""
    jax = sys.modules.get("jax")
    return jax.numpy.empty(0) if jax and isinstance(array, jax.ShapeDtypeStruct) else array


def _discover(name: str, array: Array) -> Backend:
    """The backend of a type that is seen for the first time."""
    if not array_api_compat.is_array_api_obj(array):
        what = f"`{name}` must be an array of a library that follows the array-API standard"
        msg = f"{what}, got {_type(array)}: make an array of it first, of the library and dtype of the others"
        raise TypeError(msg)
    namespace: object
    make: Callable[[], Backend]
    if array_api_compat.is_numpy_array(array):
        from .numpy import NumpyBackend, check_type

        check_type(name, array)
        namespace, make = "numpy", NumpyBackend
    elif array_api_compat.is_cupy_array(array):
        from .cupy import CupyBackend

        namespace, make = "cupy", CupyBackend
    elif array_api_compat.is_dask_array(array):
        from .dask import DaskBackend

        namespace, make = "dask", DaskBackend
    elif array_api_compat.is_jax_array(array):
        from .jax import JaxBackend

        namespace = array_api_compat.array_namespace(array)
        make = partial(JaxBackend, namespace)
    else:
        namespace = array_api_compat.array_namespace(array)
        make = partial(Backend, namespace)
    backend = _by_namespace.setdefault(namespace, make())  # one for all threads, even if two come here at once
    _by_type[type(array)] = backend
    return backend


def _type(array: object) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"
