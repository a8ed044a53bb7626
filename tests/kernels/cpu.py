"""Kernels on the CPU: the text of each, in a C++ loop over its threads, on NumPy's memory.

Every index is checked, as are the alignment of packs, and that no two threads write to one place. What is not shown:
races within a thread block, fused multiply-adds, subnormal numbers (which CuPy's kernels flush to zero), speed.
"""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

#: C++ types by dtype; all others are spelled as NumPy spells them.
TYPES = {
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32)},
    "int64": "long long",
    "uint64": "unsigned long long",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float",
    "float64": "double",
    "complex64": "complex<float>",
    "complex128": "complex<double>",
}
#: Kernels in one file of C++: few files, since each reads the headers, but enough for two processors.
BATCH = 100
SANITIZERS = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all"]


class KernelError(Exception):
    """A kernel did what it must not."""


def parameters(kernel):
    """The kernel's inputs and outputs as ``(is_raw, type, name, is_output)``."""
    found = []
    for text, is_output in ((kernel.inputs, False), (kernel.outputs, True)):
        for one in text.split(","):
            *words, kind, name = one.split()
            assert words in ([], ["raw"]), one
            found.append((words == ["raw"], kind, name, is_output))
    return found


def dtypes_of(kernel, arrays):
    """The C++ type behind each letter of the parameter list; an error where two arrays disagree on one."""
    raw = [p for p in parameters(kernel) if p[0]]
    letters = {}
    for (_, letter, name, _), array in zip(raw, arrays, strict=True):
        dtype = np.dtype(array.dtype if hasattr(array, "dtype") else array).name
        if letters.setdefault(letter, dtype) != dtype:
            msg = f"{name} is of {dtype}, and {letter} stands for {letters[letter]}"
            raise KernelError(msg)
    return tuple(sorted(letters.items()))


def function(kernel, letters, symbol):
    """The kernel as a C++ function over a range of its threads."""
    types = "".join(f"typedef {TYPES[dtype]} {letter};\n" for letter, dtype in letters)
    arrays, numbers, arguments = 0, 0, []
    for is_raw, kind, name, is_output in parameters(kernel):
        if is_raw:
            const = "" if is_output else "const "
            fields = ", ".join(f"{column}[{arrays}]" for column in ("data", "sizes", "written"))
            fields = fields.replace("data", f"({const}{kind}*)data", 1)
            arguments.append(f'const Array<{const}{kind}> {name} = {{{fields}, "{name}", &report}};')
            arrays += 1
        else:
            arguments.append(f"const {TYPES[kind]} {name} = ({TYPES[kind]})numbers[{numbers}];")
            numbers += 1
    return f"""
namespace {symbol}_ {{
{types}
void run(void** data, const long long* sizes, unsigned char** written, const long long* numbers,
         long long begin, long long end, Report report) {{
{chr(10).join(arguments)}
for (ptrdiff_t i = begin; i < end; ++i) {{
report.thread = i;
{kernel.operation}
;}}
}}
}}
extern "C" void {symbol}(void** data, const long long* sizes, unsigned char** written, const long long* numbers,
                         long long begin, long long end, char* text) {{
  {symbol}_::run(data, sizes, written, numbers, begin, end, Report{{text, 0}});
}}
"""


class Harness:
    """Compiles kernels, many at a time, keeps them by their text, and runs them."""

    def __init__(self, flags=()):
        self.flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
        self.flags += ["-Wno-unused", "-Wno-maybe-uninitialized", *flags]
        self.functions = {}
        self.folder = tempfile.TemporaryDirectory()

    def prepare(self, kernels):
        """Compile ``(kernel, arrays or their dtypes)`` ahead of their launches."""
        missing = {}
        for kernel, arrays in kernels:
            key = self._key(kernel, dtypes_of(kernel, arrays))
            if key not in self.functions:
                missing[key] = (kernel, dtypes_of(kernel, arrays))
        entries = list(missing.items())
        size = min(BATCH, -(-len(entries) // 2)) or 1
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._compile, [entries[i : i + size] for i in range(0, len(entries), size)]))

    def _key(self, kernel, letters):
        text = repr((kernel.inputs, kernel.outputs, kernel.operation, letters))
        return "k" + hashlib.sha256(text.encode()).hexdigest()[:16]

    def _compile(self, entries):
        header = Path(__file__).with_name("cpu.hpp")
        functions = [function(kernel, letters, key) for key, (kernel, letters) in entries]
        path = Path(self.folder.name, entries[0][0])
        path.with_suffix(".cpp").write_text(f'#include "{header}"\n' + "".join(functions))
        command = ["g++", *self.flags, str(path.with_suffix(".cpp")), "-o", str(path.with_suffix(".so"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(done.stderr[:4000])
        library = ctypes.CDLL(str(path.with_suffix(".so")))
        for key, _ in entries:
            self.functions[key] = getattr(library, key)

    def launch(self, kernel, *arrays, threads=None):
        """Run a kernel on its flat arrays, all threads or a range of them; KernelError where it goes astray."""
        raw = [p for p in parameters(kernel) if p[0]]
        written = [np.zeros(a.size if p[3] else 0, np.uint8) for a, p in zip(arrays, raw, strict=True)]
        threads = range(kernel.size) if threads is None else threads
        if not threads:
            return written[-1]
        self.prepare([(kernel, arrays)])
        run = self.functions[self._key(kernel, dtypes_of(kernel, arrays))]
        numbers = (ctypes.c_longlong * max(1, len(kernel.numbers)))(*kernel.numbers)
        text = ctypes.create_string_buffer(256)
        run(
            (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)),
            (ctypes.c_longlong * len(arrays))(*(a.size for a in arrays)),
            (ctypes.c_void_p * len(arrays))(*(w.ctypes.data for w in written)),
            numbers,
            ctypes.c_longlong(threads.start),
            ctypes.c_longlong(threads.stop),
            text,
        )
        if text.value:
            msg = f"{kernel.name}, {text.value.decode()}"
            raise KernelError(msg)
        return written[-1]


@functools.cache
def harness():
    """The harness of this process: under sanitizers where they are asked for."""
    return Harness(SANITIZERS if os.environ.get("XCONV_SANITIZE") else ())
