"""JAX."""

from ._backend import JaxBackend

__all__ = ["JaxBackend"]
