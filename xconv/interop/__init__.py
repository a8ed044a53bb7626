"""Bridges that give the explicit gradients to a library's own differentiation: `torch`, `jax` and `autograd`.

Each is imported by name, and needs its library; ``import xconv`` loads none of them.
"""
