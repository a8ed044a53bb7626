"""The benchmark of xconv against PyTorch, JAX, SciPy and the tutorial algorithm: ``python -m bench --help``."""
