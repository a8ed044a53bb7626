"""The array library of an example: chosen by name, and left again only to draw a figure."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np

Array = Any
Namespace = Any

NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
}


def arguments(description: str, output: str) -> argparse.ArgumentParser:
    """A parser with the options that every example has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backend", choices=NAMESPACES, default="numpy", help="array library to compute with")
    default = Path(__file__).parent / "out" / output
    parser.add_argument("--output", type=Path, default=default, help="PNG file to write")
    return parser


def namespace(backend: str) -> Namespace:
    """The functions of an array library; leaves the program with one sentence where it cannot be used."""
    try:
        xp = importlib.import_module(NAMESPACES[backend])
    except ImportError as error:
        msg = f"--backend {backend} needs {backend}, which cannot be imported here: `python -m xconv` says why."
        raise SystemExit(msg) from error
    if backend == "cupy" and not importlib.import_module("cupy").is_available():
        msg = "--backend cupy needs an NVIDIA GPU with its driver, and CuPy finds none here."
        raise SystemExit(msg)
    return xp


def compiled(function: Callable[..., Any], xp: Namespace) -> Callable[..., Any]:
    """`function` compiled as a whole by JAX, which is slow without; with every other library, as it is."""
    return importlib.import_module("jax").jit(function) if array_api_compat.is_jax_namespace(xp) else function


def to_numpy(x: Array) -> np.ndarray:
    """The elements of an array of any library, in the memory that matplotlib can see."""
    return np.asarray(x.get() if array_api_compat.is_cupy_array(x) else x)
