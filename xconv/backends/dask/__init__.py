"""Dask."""

from ._backend import DaskBackend

__all__ = ["DaskBackend"]
