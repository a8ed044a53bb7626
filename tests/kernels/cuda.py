"""What NVIDIA's compiler makes of a kernel, for a GPU that need not be there.

Private names of CuPy (14) are used here and nowhere else: they render the whole CUDA text of an ElementwiseKernel, and
give the options with which CuPy would compile it.
"""

import io
import re
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import cupy
import numpy as np
from cupy._core import _carray, _kernel, core
from cupy.cuda import compiler

#: Turing, Ampere, Hopper, Blackwell.
ARCHITECTURES = (75, 80, 90, 100)

#: One thread at a time puts something in the place of CuPy's compiler.
_replacing = threading.Lock()

NDARRAY, INDEXER, SCALAR = 1, 2, 3  # kinds of arguments


def elementwise(kernel):
    return cupy.ElementwiseKernel(kernel.inputs, kernel.outputs, kernel.operation, kernel.name)


def source(kernel, *dtypes):
    """The CUDA text of an ElementwiseKernel, for the dtypes of its arrays in order."""
    made = elementwise(kernel)
    arrays = [np.dtype(dtype) if parameter.raw else None for parameter, dtype in _paired(made, dtypes)]
    in_types, out_types, types = made._decide_params_type(tuple(arrays[: made.nin]), tuple(arrays[made.nin :]))
    arguments = [
        _kernel._ArgInfo(NDARRAY, cupy.ndarray, np.dtype(dtype), 1, True, False)
        if parameter.raw
        else _kernel._ArgInfo(SCALAR, object, np.dtype(dtype), 0, True, True)
        for parameter, dtype in zip(made.params, in_types + out_types, strict=False)
    ]
    arguments.append(_kernel._ArgInfo(INDEXER, _carray.Indexer, None, 1, True, False))
    text = (made.operation, made.name, made.preamble)
    return _kernel._get_elementwise_kernel_code(tuple(arguments), types, made.params, *text)


def _paired(made, dtypes):
    remaining = iter(dtypes)
    return [(p, next(remaining) if p.raw else p.dtype) for p in made.in_params + made.out_params]


@dataclass(frozen=True)
class Binary:
    """A compiled kernel, and the compiler's report of what it uses."""

    cubin: bytes
    report: str

    def _reported(self, what):
        return int(re.search(rf"(\d+) {what}", self.report).group(1))

    @property
    def registers(self):
        return self._reported("registers")

    @property
    def spilled(self):
        """Bytes of registers that are kept in memory."""
        return self._reported("bytes spill stores") + self._reported("bytes spill loads")

    @property
    def stack(self):
        return self._reported("bytes stack frame")

    @cached_property
    def instructions(self):
        """The machine's instructions, without their operands and predicates."""
        lines = disassembled(self.cubin).splitlines()
        found = (re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line) for line in lines)
        return [match.group(1) for match in found if match]

    def loop(self, name):
        """The instructions of the shortest loop that has one of this name."""
        lines, labels, found = [], {}, []
        for line in disassembled(self.cubin).splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label.group(1)] = len(lines)
            elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
                lines.append(instruction.group(1))
                back = re.search(r"BRA.*`\((\.L_x_\d+)\)", lines[-1])
                begin = labels.get(back.group(1), len(lines)) if back else len(lines)
                found += [lines[begin:]] * any(name in line for line in lines[begin:])
        return min(found, key=len)

    def count(self, pattern):
        """How many instructions match `pattern` from their beginning."""
        return sum(bool(re.match(pattern, name)) for name in self.instructions)


def compiled(kernel, *dtypes, architecture=90):
    """The kernel as CuPy would compile it for that architecture; CompileException where that fails."""
    text, options = _as_cupy_does(source(kernel, *dtypes))
    options += (f"-arch=sm_{architecture}", "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")
    log = io.StringIO()
    cubin, _ = compiler._NVRTCProgram(text, kernel.name, method="cubin").compile(options, log)
    return Binary(cubin, log.getvalue())


@cache  # CuPy compiles a text once, too
def _as_cupy_does(text):
    """The text with CuPy's headers, and CuPy's own options."""
    seen = []

    def stop(text, options, **_):
        seen.extend((text, tuple(options)))

    with _replacing:
        compile_, compiler._compile_module_with_cache = compiler._compile_module_with_cache, stop
        try:
            core.compile_with_cache(text)
        finally:
            compiler._compile_module_with_cache = compile_
    return tuple(seen)


def disassembled(cubin):
    program = shutil.which("nvdisasm") or next(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/nvdisasm"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin + b"\0")  # CuPy hands the binary out without its last byte
        file.flush()
        return subprocess.run([program, "-c", file.name], check=True, capture_output=True, text=True).stdout
