"""Proof of the CUDA kernels without a GPU: their texts compiled for several architectures, and run on the CPU."""
