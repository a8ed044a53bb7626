"""CuPy."""

from ._backend import CupyBackend

__all__ = ["CupyBackend"]
