"""Where arrays are and kernels run: CuPy's current device. The tests put the host in its place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Place:
    """What the parts ask of a device, beside the functions of the library."""

    def __init__(self) -> None:
        import cupy
        from array_api_compat import cupy as namespace

        self.cupy: Any = cupy
        self.namespace: Any = namespace
        self.kind = cupy.ndarray

    def put(self, values: Any) -> Any:
        """Copy an array of NumPy to the device."""
        return self.namespace.asarray(values)

    def get(self, array: Any) -> Any:
        """Copy an array of the device to NumPy."""
        return array.get()

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Make zeros on the device."""
        return self.cupy.zeros(shape, dtype)

    def block(self, array: Any) -> Any:
        """Copy an array into one block of memory, in the order of its axes."""
        return self.cupy.ascontiguousarray(array)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Enter a stream that waits for no other, and wait for it at the end."""
        self.synchronize()
        with self.cupy.cuda.Stream(non_blocking=True) as stream:
            yield
            stream.synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        self.cupy.cuda.Device().synchronize()

    def without_pool(self) -> None:
        """Take memory from the driver, so that a checker sees the ends of arrays, and not those of a pool's blocks."""
        self.cupy.cuda.set_allocator(None)
