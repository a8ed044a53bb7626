"""Who is timed on a GPU: the libraries of `bench.contenders`, with what a clock and a meter for each need there.

Random numbers and the reference in float64 are CuPy's for all of them, and reach the others by DLPack. Every library
has a process and its default stream, and only one process at a time is busy. Every algorithm of xconv is a contender
of its own, in the process of xconv: it says itself which cases it cannot serve.
"""

import gc
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from time import perf_counter
from typing import Any, ClassVar

from .cases import CONV, PRECISIONS, Case
from .contenders import Contender, Function, Jax, MissingError, Torch, Xconv, forced
from .memory import as_tuple

#: Elements along each side of the matrices, and bytes of the buffer, whose product and copy give the peak rates.
MATRIX, BUFFER = 8192, 2**30


class RefusalError(Exception):
    """A contender says that it cannot serve a job, which is no failure."""


class Device(Contender):
    """A library on a GPU."""

    #: Contenders of one library share a process, and the operands in it.
    library: ClassVar[str]
    #: The array library of the random numbers and of the reference.
    xp: Any

    @abstractmethod
    def convert(self, array: Any, precision: str) -> Any:
        """Give a float32 array of `xp` as one of the library and of the precision's dtype."""

    @abstractmethod
    def plain(self, array: Any) -> Any:
        """Give an array of the library as a float32 array of `xp`, which holds every narrower number exactly."""

    @abstractmethod
    def elapsed(self, function: Function, operands: Iterator[list[Any]], calls: int) -> tuple[float, float]:
        """Seconds of some calls on the device, and seconds in which the host issued them."""

    @abstractmethod
    def temporary(self, function: Function, operands: list[Any]) -> int | None:
        """Bytes at the peak of a call, beside its result."""

    @abstractmethod
    def free(self) -> None:
        """Give memory that is kept for later back to the device; raises where the device is out of order."""

    def setting(self, precision: str) -> AbstractContextManager[Any]:
        """Everything that makes the library compute in a precision."""
        del precision
        return nullcontext()

    def plan(self, case: Case, operation: str, x: Any, w: Any) -> dict[str, Any]:
        """Say how the contender is going to run a convolution, where it tells; RefusalError where it cannot."""
        del case, operation, x, w
        return {}

    def rate(self, kind: str) -> tuple[Function, list[Any], float] | None:
        """Give a call, its operands, and its bytes or operations, that measures a peak: "copy", or a precision."""
        del kind

    def describe(self) -> dict[str, Any]:
        """Describe the device."""
        return {}


def issue(function: Function, operands: Iterator[list[Any]], calls: int) -> tuple[Any, float]:
    """Make some calls without waiting for them: the last result, and the seconds that it took."""
    gc.disable()
    try:
        begin = perf_counter()
        for given in islice(operands, calls):
            result = function(*given)
        return result, perf_counter() - begin
    finally:
        gc.enable()


def usable_cupy() -> Any:
    """Import CuPy; MissingError where it has no device to compute on."""
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        msg = f"CuPy finds no CUDA device that it can use: {error}"
        raise MissingError(msg) from error
    return cupy


class CupyBase(Device):
    """What every contender needs of CuPy."""

    def __init__(self, threads: int) -> None:
        self.xp = usable_cupy()
        super().__init__(threads)

    def plain(self, array: Any) -> Any:
        return self.xp.from_dlpack(array)

    def describe(self) -> dict[str, Any]:
        runtime = self.xp.cuda.runtime
        found = runtime.getDeviceProperties(0)
        driver, toolkit = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        return {
            "device": found["name"].decode(),
            "compute_capability": f"{found['major']}.{found['minor']}",
            "l2_bytes": found["l2CacheSize"],
            "memory_bytes": found["totalGlobalMem"],
            "driver": f"CUDA {driver // 1000}.{driver % 1000 // 10}",
            "runtime": f"CUDA {toolkit // 1000}.{toolkit % 1000 // 10}",
        }


class DeviceXconv(Device, Xconv):
    """The library itself, on arrays of whichever library."""

    def plan(self, case: Case, operation: str, x: Any, w: Any) -> dict[str, Any]:
        """Name the algorithm that runs, and count the tiles."""
        planned = getattr(self.module.plan(x, w, **self._options(case)), operation)
        return {"algorithm": planned.algorithm, "tiles": planned.tiles}


class OneAlgorithm(DeviceXconv):
    """The same with one algorithm, for the convolutions that it can serve."""

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        every = super().functions(case, precision)
        return {operation: every[operation] for operation in CONV}

    def plan(self, case: Case, operation: str, x: Any, w: Any) -> dict[str, Any]:
        try:
            return super().plan(case, operation, x, w)
        except ValueError as error:
            raise RefusalError(str(error)) from error

    def compiled(self, function: Function, operands: list[Any]) -> Function:
        """Call it once: cuDNN, or a kernel on a device that is too old for it, refuses no sooner than that."""
        try:
            function(*operands)
        except ValueError as error:
            if not str(error).startswith("`algorithm`"):
                raise
            raise RefusalError(str(error)) from error
        return function


class CupyXconv(CupyBase, DeviceXconv):
    """The library itself, on CuPy arrays."""

    library = "cupy"

    def versions(self) -> dict[str, str]:
        return {"xconv": self.module.__version__, "cupy": self.xp.__version__, **_cudnn()}

    def setting(self, precision: str) -> AbstractContextManager[Any]:
        return self.module.config(precision="tf32" if precision == "tf32" else "ieee")

    def convert(self, array: Any, precision: str) -> Any:
        dtype = PRECISIONS[precision][0]
        if dtype == "bfloat16":
            import ml_dtypes

            return array.astype(ml_dtypes.bfloat16)
        return array.astype(dtype, copy=False)

    def plain(self, array: Any) -> Any:
        return array.astype(self.xp.float32)

    def elapsed(self, function: Function, operands: Iterator[list[Any]], calls: int) -> tuple[float, float]:
        begin, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        self.xp.cuda.Device().synchronize()
        begin.record()
        _, host = issue(function, operands, calls)
        end.record()
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(begin, end) / 1e3, host

    def temporary(self, function: Function, operands: list[Any]) -> int | None:
        with _meter(self.xp) as meter:
            result = function(*operands)
        return max(0, meter.peak - sum(array.nbytes for array in as_tuple(result)))

    def free(self) -> None:
        self.xp.cuda.Device().synchronize()
        self.xp.get_default_memory_pool().free_all_blocks()

    def rate(self, kind: str) -> tuple[Function, list[Any], float] | None:
        if kind == "copy":
            source = self.xp.zeros(BUFFER, self.xp.uint8)
            return self.xp.copyto, [self.xp.empty_like(source), source], 2 * BUFFER
        if kind in {"ieee", "float16"}:  # the others need PyTorch
            normal = self.xp.random.default_rng(0).standard_normal((2, MATRIX, MATRIX), dtype=self.xp.float32)
            return self.xp.matmul, list(normal.astype(PRECISIONS[kind][0])), 2 * MATRIX**3
        return None


class CupyForced(OneAlgorithm, CupyXconv):
    """The same by one algorithm."""


def _cudnn() -> dict[str, str]:
    """Name the cuDNN that CuPy arrays reach, where NVIDIA's frontend finds one."""
    try:
        import cudnn

        return {"cudnn-frontend": f"{cudnn.__version__} with cuDNN {cudnn.backend_version()}"}
    except (ImportError, OSError, RuntimeError):
        return {}


def _meter(cupy: Any) -> Any:
    """Watch CuPy's pool for the most memory that is in use at once."""

    class Meter(cupy.cuda.MemoryHook):  # type: ignore[misc]  # CuPy has no types
        name = "peak"
        used = peak = 0

        def malloc_postprocess(self, *, mem_size: int, **_: Any) -> None:
            self.used += mem_size
            self.peak = max(self.peak, self.used)

        def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
            self.used -= mem_size

    return Meter()


class TorchCuda(CupyBase, Torch):
    """PyTorch, which is cuDNN for most cases; the fastest of cuDNN's algorithms, by trial."""

    library = "torch"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        if not self.torch.cuda.is_available():
            msg = "PyTorch finds no CUDA device that it can use"
            raise MissingError(msg)
        self.torch.backends.cudnn.benchmark = True

    def versions(self) -> dict[str, str]:
        cudnn = self.torch.backends.cudnn.version()
        return {"torch": self.torch.__version__, "cudnn": str(cudnn)}

    @contextmanager
    def setting(self, precision: str) -> Iterator[None]:
        """What PyTorch is told for a block; afterwards it has what it had before."""
        backends, tf32 = self.torch.backends, precision == "tf32"
        if hasattr(backends.cudnn, "conv"):
            places, name, value = (backends.cudnn.conv, backends.cuda.matmul), "fp32_precision", ("ieee", "tf32")[tf32]
        else:
            places, name, value = (backends.cudnn, backends.cuda.matmul), "allow_tf32", tf32
        found = [getattr(place, name) for place in places]
        try:
            for place in places:
                setattr(place, name, value)
            yield
        finally:
            for place, before in zip(places, found, strict=True):
                setattr(place, name, before)

    def convert(self, array: Any, precision: str) -> Any:
        return self.torch.from_dlpack(array).to(getattr(self.torch, PRECISIONS[precision][0]))

    def plain(self, array: Any) -> Any:
        return super().plain(array.float().contiguous())

    def elapsed(self, function: Function, operands: Iterator[list[Any]], calls: int) -> tuple[float, float]:
        cuda = self.torch.cuda
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        begin.record()
        _, host = issue(function, operands, calls)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, host

    def temporary(self, function: Function, operands: list[Any]) -> int | None:
        cuda = self.torch.cuda
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        result = function(*operands)
        return max(0, cuda.max_memory_allocated() - before - sum(array.nbytes for array in as_tuple(result)))

    def free(self) -> None:
        self.torch.cuda.synchronize()
        self.torch.cuda.empty_cache()
        self.xp.get_default_memory_pool().free_all_blocks()

    def rate(self, kind: str) -> tuple[Function, list[Any], float] | None:
        if kind == "copy":
            source = self.torch.zeros(BUFFER, dtype=self.torch.uint8, device="cuda")
            return self.torch.Tensor.copy_, [self.torch.empty_like(source), source], 2 * BUFFER
        dtype = getattr(self.torch, PRECISIONS[kind][0])
        normal = self.torch.randn(2, MATRIX, MATRIX, device="cuda").to(dtype)
        return self.torch.matmul, list(normal), 2 * MATRIX**3


class JaxCuda(CupyBase, Jax):
    """JAX, compiled ahead; timed by the wall clock around many calls, since it has no events."""

    library = "jax"
    platform = "cuda"

    def __init__(self, threads: int) -> None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leave memory to the others
        super().__init__(threads)
        try:
            self.jax.devices()
        except (AssertionError, RuntimeError) as error:
            msg = f"JAX finds no CUDA device that it can use: {error}"
            raise MissingError(msg) from error

    def convert(self, array: Any, precision: str) -> Any:
        return self.jax.numpy.from_dlpack(array).astype(PRECISIONS[precision][0])

    def plain(self, array: Any) -> Any:
        return super().plain(self.finished(array.astype("float32")))

    def elapsed(self, function: Function, operands: Iterator[list[Any]], calls: int) -> tuple[float, float]:
        begin = perf_counter()
        result, host = issue(function, operands, calls)
        self.finished(result)
        return perf_counter() - begin, host

    def temporary(self, function: Function, operands: list[Any]) -> int | None:
        del operands
        found = function.memory_analysis()  # type: ignore[attr-defined]  # JAX's compiled functions have it
        return None if found is None else found.temp_size_in_bytes

    def free(self) -> None:
        self.finished(self.jax.numpy.zeros(1) + 1)
        self.xp.get_default_memory_pool().free_all_blocks()


#: The most important ones first.
DEVICES: dict[str, type[Device]] = {
    kind.name: kind for kind in (CupyXconv, TorchCuda, JaxCuda, *forced(CupyForced, "implicit", "cudnn").values())
}
