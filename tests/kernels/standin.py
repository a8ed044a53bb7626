"""CuPy without a GPU: its own arrays in the memory of the host, and kernels on the CPU.

CuPy's arrays are real; so are slices, transposes, reshapes and the whole way to `ElementwiseKernel.__call__`. The
device is replaced in these places, and nowhere else:

- CuPy's allocator, by one that hands out memory of the host, whose pointer can copy and fill;
- the launch of kernels, by the hook that CuPy has for it: ours go to the harness, CuPy's own to NumPy;
- the ways between the two memories, `asarray` and `get`;
- CuPy's reductions and libraries, `sum`, `max`, `copy`, `concat`, `tensordot` and `matmul` of integers, by NumPy;
- kernels on tensor cores, by the emulation of warps;
- cuBLAS, by a function after its documentation (`blas`), and cuDNN by nothing, until a test asks for it (`dnn`);
- devices: an array is on the one that was current when its memory was handed out, and launches must be made there.
"""

import contextlib
import ctypes
import weakref
from functools import partial
from types import SimpleNamespace

import cupy
import numpy as np
import pytest
from array_api_compat import cupy as namespace
from cupy.cuda import memory
from cupy_backends.cuda import libs as libraries

from kernels.blas import HostBlas
from kernels.cpu import harness
from kernels.warps import warps
from xconv._planner import _of_part, scheduled
from xconv.backends.cupy import _backend, _cublas, _cudnn, _implicit, _implicit_kernel, _tensor_cores, _texts


class HostPointer(memory.MemoryPointer):
    """A pointer to the host's memory; whatever is made from an array that has one, has one too."""

    def __add__(self, offset):
        return HostPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __sub__(self, offset):
        return self + -offset

    def memset_async(self, value, size, stream=None):
        ctypes.memset(self.ptr, value, size)

    def copy_from_device_async(self, source, size, stream=None):
        ctypes.memmove(self.ptr, source.ptr, size)


def allocate(size):
    """Memory that is not zero, and begins at a multiple of 512 as CuPy's does."""
    block = np.full(size + 512, 0x5A, np.uint8)
    begin = block.ctypes.data + -block.ctypes.data % 512
    return HostPointer(memory.UnownedMemory(begin, size, block, 0), 0)


class Meter:
    """The most memory that was in use at one time, beside what was when it began."""

    def __init__(self):
        self.used = self.most = 0

    def allocate(self, size):
        block = np.full(size + 512, 0x5A, np.uint8)
        begin = block.ctypes.data + -block.ctypes.data % 512
        self.add(size)
        weakref.finalize(block, self.add, -size)
        return HostPointer(memory.UnownedMemory(begin, size, block, 0), 0)

    def add(self, size):
        self.used += size
        self.most = max(self.most, self.used)


def peak(monkeypatch, function):
    """Bytes in use at one time, beside the result."""
    meter = Meter()
    monkeypatch.setattr(f"{__name__}.allocate", meter.allocate)
    result = function()
    return meter.most - result.nbytes


class Names(list):
    """Of what is launched; the arrays are not held."""

    def append(self, launch):
        super().append(launch[0])


def host(array):
    """The same memory as an array of NumPy."""
    if not isinstance(array, cupy.ndarray):
        return array
    code = np.dtype(f"u{array.itemsize}") if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array.dtype
    interface = {"data": (array.data.ptr, False), "shape": array.shape, "strides": array.strides}
    holder = SimpleNamespace(__array_interface__={**interface, "typestr": code.str, "version": 3}, owner=array)
    return np.asarray(holder).view(array.dtype) if array.size else np.zeros(array.shape, array.dtype)


def device(values):
    """An array of CuPy with these values, in the memory order that they have."""
    values = np.asarray(values)
    order = sorted(range(values.ndim), key=lambda axis: -values.strides[axis])
    array = cupy.empty([values.shape[axis] for axis in order], values.dtype)
    array = array.transpose([order.index(axis) for axis in range(values.ndim)])
    host(array)[...] = values
    return array


class Device:
    """A device that can be made the current one."""

    compute_capability = "90"

    def __init__(self, number, entered):
        self.id, self.entered = number, entered

    def __repr__(self):
        return f"device {self.id}"

    def __enter__(self):
        self.entered.append(self)
        return self

    def __exit__(self, *error):
        self.entered.pop()


class StandIn:
    """What was launched since the beginning: the names of our kernels, and the arguments of each.

    Those that go through their arrays element by element, to copy or to add, are not among them.
    """

    def __init__(self):
        self.launches = []
        self.size = None
        self.blas = HostBlas()
        self.entered = []
        self.devices = [Device(0, self.entered), Device(1, self.entered)]
        self.entered.append(self.devices[0])
        self.places = {}

    def allocate(self, size):
        """Memory of the current device."""
        pointer = allocate(size)
        self.places[pointer.mem.ptr] = self.entered[-1]
        return pointer

    def device_of(self, array):
        return self.places.get(array.data.mem.ptr, self.devices[0]) if array.size else self.devices[0]

    @contextlib.contextmanager
    def installed(self):
        with pytest.MonkeyPatch.context() as monkeypatch:
            self._install(monkeypatch)
            self._forget()
            cupy.cuda.set_allocator(self.allocate)
            try:
                yield self
            finally:
                cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)
                self._forget()

    def _install(self, monkeypatch):
        def launch(_, kernel, *arguments, **options):
            return self.launch(kernel, *arguments, **options)

        class Kernel(cupy.ElementwiseKernel):
            """Keeps the number of threads, which CuPy does not hand on to the hook."""

            def __call__(kernel, *arguments, size=None):
                self.size = size
                return super().__call__(*arguments, size=-1 if size is None else size)

        monkeypatch.setattr(cupy, "ElementwiseKernel", Kernel)
        monkeypatch.setattr(cupy, "RawKernel", lambda code, name: partial(self.launch_blocks, code, name))
        monkeypatch.setattr(_texts, "_texts", _texts.Texts())
        monkeypatch.setattr(cupy.ndarray, "__cupy_override_elementwise_kernel__", launch, raising=False)
        monkeypatch.setattr(cupy.ndarray, "device", property(self.device_of))
        monkeypatch.setattr(_backend, "_available", lambda: True)
        monkeypatch.setattr(cupy.ndarray, "get", lambda a, *_: host(a).copy())
        monkeypatch.setattr(namespace, "asarray", lambda a, dtype=None, **_: device(np.asarray(a, dtype)))
        monkeypatch.setattr(cupy.ndarray, "copy", lambda a, order="C": device(host(a).copy(order)))
        for name in ("sum", "max"):
            monkeypatch.setattr(cupy.ndarray, name, by_numpy(getattr(np.ndarray, name)))
        for name, function in (("matmul", np.matmul), ("concat", np.concat), ("tensordot", np.tensordot)):
            monkeypatch.setattr(namespace, name, by_numpy(function))
        monkeypatch.setitem(vars(libraries), "cublas", self.blas)
        monkeypatch.setattr(cupy.cuda.device, "get_cublas_handle", lambda: self.blas.HANDLE)
        monkeypatch.setattr(_cudnn, "find_spec", lambda name: None)

    def _forget(self):
        """Empty the caches that hold what is replaced."""
        kernels = (_texts._general, _texts._elementwise, _implicit._raw)
        for cached in (*kernels, _backend._constant, _cublas._cublas, scheduled, _of_part):
            cached.cache_clear()

    def launch(self, kernel, *arguments, out=None, dtype=None):
        arguments += () if out is None else (out,)
        size, self.size = self.size, None
        if not kernel.name.startswith("xconv_"):
            return by_cupy(kernel, arguments, dtype)
        assert len(arguments) == kernel.nargs
        assert {self.device_of(a) for a in arguments if isinstance(a, cupy.ndarray)} == {self.entered[-1]}
        arrays = [host(a) for a in arguments if isinstance(a, cupy.ndarray)]
        if size is None:  # an array after another, element by element
            arrays = [*(np.broadcast_to(a, arrays[-1].shape) for a in arrays[:-1]), arrays[-1]]
            flats = [np.ascontiguousarray(a).ravel() for a in arrays]
            harness().launch(Text(kernel, (), arrays[-1].size), *flats)
            arrays[-1][...] = flats[-1].reshape(arrays[-1].shape)
        else:
            self.launches.append((kernel.name, arguments))
            numbers = tuple(a for a in arguments if not isinstance(a, cupy.ndarray))
            harness().launch(Text(kernel, numbers, size), *arrays)
        return arguments[-1]

    def launch_blocks(self, code, name, grid, threads, arguments):
        """A kernel of blocks of threads: CuPy's `RawKernel`."""
        assert f" THREADS = {threads[0]};" in code
        arrays, numbers = arguments[:3], arguments[3:]
        assert {self.device_of(a) for a in arrays} == {self.entered[-1]}
        assert all(type(n) in (np.int32, np.int64) for n in numbers)
        self.launches.append((name, arguments))
        head, kernel = code.split(_tensor_cores.INSTRUCTIONS)
        warps().launch(_implicit_kernel.Product(name, head, kernel, *grid, *threads, numbers), *map(host, arrays))

    @property
    def names(self):
        """Our kernels in the order of their launches, without what they are specialised to."""
        return [name for name, _ in self.launches]


class Text:
    """An ElementwiseKernel of CuPy in the form that the harness takes."""

    def __init__(self, kernel, numbers, size):
        self.name, self.operation, self.numbers, self.size = kernel.name, kernel.operation, numbers, size
        self.inputs, self.outputs = (
            ", ".join(f"{'raw ' * p.raw}{p.ctype if p.dtype is None else p.dtype.name} {p.name}" for p in parameters)
            for parameters in (kernel.in_params, kernel.out_params)
        )


def by_numpy(function):
    """What CuPy does with a library or a reduction."""

    def run(*arguments, out=None, **options):
        arguments = [type(a)(host(b) for b in a) if isinstance(a, list | tuple) else host(a) for a in arguments]
        if out is None:
            return device(function(*arguments, **options))
        host(out)[...] = function(*arguments, **options)
        return out

    return run


def by_cupy(kernel, arguments, dtype):
    """A kernel of CuPy's own: a ufunc, or one that copies or fills."""
    verb = kernel.name.removeprefix("cupy_")
    inputs = [host(a) for a in arguments]
    if verb in {"copy", "fill"} and len(arguments) == 2:
        np.copyto(inputs[1], inputs[0], casting="unsafe")
        return arguments[1]
    wanted = {} if dtype is None else {"dtype": dtype}
    result = getattr(np, verb)(*inputs[: kernel.nin], **wanted)
    if len(arguments) == kernel.nargs:
        np.copyto(inputs[-1], result, casting="same_kind")
        return arguments[-1]
    return device(result)
