"""NumPy."""

from ._backend import NumpyBackend
from ._dtypes import DtypesOfNumpy, check_type

__all__ = ["DtypesOfNumpy", "NumpyBackend", "check_type"]
