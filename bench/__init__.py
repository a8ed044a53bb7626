"""The benchmark of xconv on a CPU, against PyTorch, JAX and the tutorial algorithm: ``python -m bench --help``."""
