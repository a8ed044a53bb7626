"""A CUDA driver without a device under the real CuPy: what the host does in a call, and how long that takes it.

`install` puts it in the place of the runtime that is linked into CuPy, whose wheel still has its names (as of 14.2).
All of CuPy's own code runs then, from the arguments of a launch to its pool of memory, and NVRTC compiles every kernel;
but no kernel computes anything. cuBLAS takes its arguments and does nothing. It is for a process of its own, and CuPy
must not have been imported there.
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

NAME = "no device"
#: The code of x86-64 that jumps to an address: to load it into a register, and the jump.
LOAD, JUMP = b"\x48\xb8", b"\xff\xe0"
PAGE, ALL = 4096, 7


def install():
    """Give CuPy a driver; returns how many kernels were launched and modules loaded, as numbers that change."""
    assert "cupy" not in sys.modules
    driver = ctypes.CDLL(str(_built()), mode=ctypes.RTLD_GLOBAL)  # is then found by its name, libcuda.so.1
    import cupy_backends.cuda.api.runtime as runtime

    _replace(Path(runtime.__file__).resolve(), driver)
    import cupy
    from cupy_backends.cuda import libs

    properties = {"name": NAME.encode(), "major": 9, "minor": 0, "l2CacheSize": 2**20, "totalGlobalMem": 2**36}
    runtime.getDeviceProperties = cupy.cuda.runtime.getDeviceProperties = lambda number: dict(properties)
    vars(libs)["cublas"] = _cublas()
    cupy.cuda.device.get_cublas_handle = lambda: 1
    return {name: ctypes.c_longlong.in_dll(driver, f"host_{name}") for name in ("launches", "modules")}


def _built():
    source = Path(__file__).with_suffix(".c")
    library = Path(tempfile.mkdtemp(), "libcuda.so.1")
    options = ("-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    subprocess.run(["gcc", *options, str(source), "-o", str(library)], check=True)
    return library


def _replace(path, driver):
    """Write a jump to ours over the beginning of every function of the runtime in CuPy's module."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    base = int(next(line for line in maps if line.endswith(str(path))).partition("-")[0], 16)
    libc = ctypes.CDLL(None)
    names = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
    for line in names.splitlines():
        *place, name = line.split()
        ours = getattr(driver, f"host_{name}", None) if len(place) == 2 and place[1] in "tT" else None
        if ours is not None:
            at, to = base + int(place[0], 16), ctypes.cast(ours, ctypes.c_void_p).value
            begin = at // PAGE * PAGE
            assert libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(2 * PAGE), ALL) == 0
            code = LOAD + to.to_bytes(8, "little") + JUMP
            ctypes.memmove(at, code, len(code))


def _cublas():
    """What `HostBlas` has, and nothing is computed."""
    from kernels.blas import HostBlas

    numbers = {name: number for name, number in vars(HostBlas).items() if name.startswith("CUBLAS")}
    nothing = SimpleNamespace(calls=0)

    def gemm(*arguments):
        nothing.calls += 1

    return SimpleNamespace(
        **numbers,
        getMathMode=lambda handle: 0,
        setMathMode=lambda handle, mode: None,
        gemmStridedBatchedEx=gemm,
        nothing=nothing,
    )


# What a test runs: python -m kernels.driver

SHAPES = {
    "layer": ((3, 8, 9, 10), (8, 8, 3, 3), {"padding": 1}),
    "groups": ((3, 8, 11, 9), (4, 4, 3, 2), {"stride": (2, 1), "padding": ((1, 2), 0), "groups": 2}),
    "depthwise": ((2, 8, 9, 8), (16, 1, 3, 3), {"padding": 1, "groups": 8}),
    "pixel": ((2, 8, 35, 35), (16, 8, 1, 1), {}),
    "line": ((2, 4, 40), (6, 4, 5), {"stride": 3}),
    "wrap": ((2, 3, 8, 7), (4, 3, 3, 3), {"padding": 2, "pad_mode": "wrap"}),
}
#: What is called with each dtype; every kernel is compiled, which takes its time.
DTYPES = {
    "float32": ("layer", "depthwise", "pixel", "wrap"),
    "float16": ("groups", "pixel"),
    "bfloat16": ("layer",),
    "complex64": ("line",),
    "int8": ("line",),
}
CALLS = 4  # the third has specialised kernels, and the fourth takes a program as it is


def pooled(check, x, kernel, windows):
    """All that there is for this dtype, and how many calls that was."""
    import xconv

    for _ in range(CALLS):
        y = xconv.max_pool(x, kernel, **windows)
        check(xconv.max_pool_grad(y, x, kernel, **windows), x.shape, x.dtype)
        if x.dtype.kind not in "iu":
            check(xconv.avg_pool(x, kernel, **windows, count_include_pad=False), y.shape, x.dtype)
            check(xconv.avg_pool_grad(y, x.shape, kernel, **windows, count_include_pad=False), x.shape, x.dtype)
    return 4


def main():
    """Every function on arrays of CuPy: shapes, dtypes and devices of what comes out, with no warning on the way."""
    counts = install()
    import cupy
    import ml_dtypes

    import xconv

    def check(made, shape, dtype):
        assert type(made) is cupy.ndarray
        assert (made.shape, made.dtype) == (tuple(shape), dtype), (made.shape, made.dtype, shape, dtype)

    done = 0
    for name, shapes in DTYPES.items():
        dtype = cupy.dtype(getattr(ml_dtypes, name, name))
        for shape, filters, options in map(SHAPES.get, shapes):
            for layout in ("channels_first", "channels_last"):
                given = {**options, "layout": layout}
                x = cupy.zeros(shape if layout == "channels_first" else (shape[0], *shape[2:], shape[1]), dtype)
                w, b = cupy.zeros(filters, dtype), cupy.zeros(filters[:1], dtype)
                plan = xconv.plan(x, w, **given)
                able = {c.name for c in plan.candidates if c.refusal is None}
                dy = cupy.zeros(plan.y_shape, dtype)
                chosen = {planned.algorithm for planned in (plan.forward, plan.input_grad, plan.weight_grad)}
                done_by_auto = chosen if len(chosen) == 1 else set()
                for algorithm in ("auto", *sorted(able - {"fft", "cudnn"} - done_by_auto)):
                    asked = {**given, "algorithm": algorithm}
                    for _ in range(CALLS):
                        check(xconv.conv(x, w, b, **asked), dy.shape, dtype)
                        check(xconv.conv_input_grad(dy, w, x.shape, **asked), x.shape, dtype)
                        check(xconv.conv_weight_grad(dy, x, w.shape, **asked), w.shape, dtype)
                    done += 3
            windows = {key: value for key, value in options.items() if key != "groups"}
            image = cupy.zeros(shape, dtype)
            for _ in range(CALLS):
                cols = xconv.im2col(image, filters[2:], **windows)
                if "pad_mode" not in windows:
                    check(xconv.col2im(cols, shape[2:], **windows), shape, dtype)
            done += 2
            if name != "complex64" and "pad_mode" not in windows:
                done += pooled(check, image, filters[2:], windows)
    sys.stdout.write(f"{done} calls, {counts['launches'].value} launches, {counts['modules'].value} modules\n")


if __name__ == "__main__":
    main()
