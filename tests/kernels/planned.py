"""cuDNN itself, asked for plans by the description of a device that is not there: ``python -m kernels.planned``.

In a process of its own, since it must find a driver by name, which `test_cudnn_plans` makes up.
"""

import json
import sys

import cudnn
import numpy as np

from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv.backends.cupy import CupyBackend, _graphs

#: An H100 in cuDNN's words.
DEVICE = {
    "deviceName": "NVIDIA H100 80GB HBM3", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0,
    "multiProcessorCount": 132, "smCountOrigin": 0, "smClockRateKHz": 1980000, "memClockRateKHz": 2619000,
    "memoryBusWidth": 5120, "totalGlobalMem": 85000000000, "l2CacheSize": 52428800, "warpSize": 32,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "maxCtasPerSM": 32, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
    "oversizedSharedMemoryPerBlock": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
}  # fmt: skip
#: Layers of known networks: images, channels in and out, size, kernel, stride, padding, groups.
LAYERS = (
    *((32, 64, 64, 56, 3, 1, 1, 1), (32, 256, 64, 56, 1, 1, 0, 1), (32, 512, 512, 7, 3, 1, 1, 1)),
    *((32, 3, 64, 224, 7, 2, 3, 1), (32, 128, 128, 56, 3, 2, 1, 1), (32, 256, 256, 14, 3, 1, 1, 32)),
    *((8, 1, 32, 256, 9, 1, 4, 1), (32, 128, 128, 28, 3, 1, 1, 128), (1, 64, 64, 512, 3, 1, 1, 1)),
)


def layers():
    for batch, c_in, c_out, size, kernel, stride, pad, groups in LAYERS:
        for last in (False, True):
            yield Geometry(batch, c_in, c_out, groups, (Axis(size, kernel, stride, 1, pad, pad),) * 2, "constant", last)


def anything(count):
    """Small geometries of one to three axes, with any padding, steps and groups."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        axes = []
        for _ in range(int(rng.integers(1, 4))):
            kernel, stride, dilation = (int(n) for n in rng.integers(1, 4, 3))
            size, lo, hi = int(rng.integers(1, 12)), *(int(n) for n in rng.integers(0, 4, 2))
            axes.append(Axis(size, kernel, stride, dilation, lo, max(hi, (kernel - 1) * dilation + 1 - size - lo)))
        groups = int(rng.choice([1, 1, 2, 4]))
        c_in, c_out = (groups * int(n) for n in rng.integers(1, 4, 2))
        yield Geometry(int(rng.integers(1, 4)), c_in, c_out, groups, tuple(axes), "constant", bool(rng.integers(2)))


def answer(device, function, g, dtype, tf32, *, bounded=True):
    """The engine that cuDNN chooses, with the memory that it takes and may take; or why there is none."""
    inner, _ = _graphs._inner(g)
    most = CupyBackend.algorithms["cudnn"]._workspace(g) * (8 if dtype == "float64" else 4)
    task = _graphs.Task(function, inner, dtype, tf32, most if bounded else 2**40)
    graph = _graphs.describe(task, device_property=device, sm_version=90).graph
    try:
        _graphs.build(graph, task)
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
        return str(error)
    return graph.get_plan_name_at_index(graph._plan_index), graph.get_workspace_size(), most


def main():
    device = cudnn.create_device_properties(json.dumps(DEVICE))
    found = []
    arithmetic = (("float32", False), ("float32", True), ("float16", False), ("bfloat16", False), ("float64", False))
    for name, geometries in (("layer", layers()), ("any", anything(40))):
        for g in geometries:
            for function in _graphs.FUNCTIONS:
                for dtype, tf32 in arithmetic:
                    told = answer(device, function, g, dtype, tf32)
                    free = answer(device, function, g, dtype, tf32, bounded=False) if name == "layer" else None
                    found.append((name, f"{function} {dtype} {tf32} {g}", told, free))
    json.dump({"version": cudnn.backend_version(), "found": found}, sys.stdout)


if __name__ == "__main__":
    main()
