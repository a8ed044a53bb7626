"""``python -m xconv``: what is here, and whether it works."""

import importlib
import platform
import time
from collections.abc import Iterator
from importlib.util import find_spec

import array_api_compat
import numpy as np
from threadpoolctl import threadpool_info

from . import __version__, conv, conv_input_grad, conv_weight_grad
from ._typing import Array, Namespace

LIBRARIES = {
    "numpy": "numpy",
    "cupy": "cupy",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "array_api_strict": "array_api_strict",
}


def main() -> None:
    """Print the versions, the array libraries with their devices, and the outcome of a small check on each device."""
    print(f"xconv {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print("\nBLAS and threads")
    for pool in threadpool_info():
        kind = f"{pool['internal_api']} {pool['version'] or ''}".strip()
        print(f"  {kind}, {pool['num_threads']} threads")
    print("\nArray libraries")
    for name, module in LIBRARIES.items():
        for line in _report(name, module):
            print(f"  {line}")


def _report(name: str, module: str) -> Iterator[str]:
    """One line per device of a library."""
    if find_spec(name) is None:
        yield f"{name:<16} not installed"
        return
    try:
        xp = importlib.import_module(module)
        version = importlib.import_module(name).__version__
        placed = list(_samples(name, xp))
    except Exception as error:  # noqa: BLE001  (a broken library is what this program is there to tell of)
        yield f"{name:<16} does not work: {type(error).__name__} {error}".splitlines()[0]
        return
    if not placed:
        yield f"{name:<16} {version}, no device"
    for device, x in placed:
        verdict = "ok" if _works(x) else "WRONG RESULTS"
        begin = time.perf_counter()
        _works(x)  # once more, now that everything is loaded and compiled
        yield f"{name:<16} {version} on {device}: {verdict}, {(time.perf_counter() - begin) * 1e3:.1f} ms"


def _samples(name: str, xp: Namespace) -> Iterator[tuple[str, Array]]:
    """The same small image on every device of a library."""
    image = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    if name == "cupy":
        count = xp.cuda.runtime.getDeviceCount() if xp.is_available() else 0
        for i in range(count):
            with xp.cuda.Device(i):
                yield f"cuda:{i}", xp.asarray(image)
    elif name == "torch":
        for device in ["cpu", *(f"cuda:{i}" for i in range(xp.cuda.device_count()))]:
            yield device, xp.asarray(image, device=device)
    elif name == "jax":
        for device in importlib.import_module("jax").devices():
            yield str(device), xp.asarray(image, device=device)
    else:
        yield "cpu", xp.asarray(image)


def _works(x: Array) -> bool:
    """Whether a convolution is right, and adjoint to its gradients: small integers, so every sum is exact."""
    xp = array_api_compat.array_namespace(x)
    w = xp.reshape(x[:, :, :3, :3] - 4, (1, 2, 3, 3))
    y = conv(x, w, padding=1)
    inside = xp.sum(x[:, :, :3, :3] * w)
    scalars = (
        xp.sum(y * y),
        xp.sum(conv_input_grad(y, w, x.shape, padding=1) * x),
        xp.sum(conv_weight_grad(y, x, w.shape, padding=1) * w),
    )
    return bool(y[0, 0, 1, 1] == inside and scalars[0] == scalars[1] == scalars[2])


if __name__ == "__main__":
    main()
