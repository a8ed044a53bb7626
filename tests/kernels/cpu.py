"""Kernels on the CPU: the text of each, in a C++ loop over its threads, on NumPy's memory.

Every index is checked, as are the alignment of packs, and that no two threads write to one place. What is not shown:
races within a thread block, fused multiply-adds, subnormal numbers (which CuPy's kernels flush to zero), speed.
"""

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
    """The kernel's inputs and outputs: which are arrays, which of those raw, and which are written to."""
    found = []
    for text, is_output in ((kernel.inputs, False), (kernel.outputs, True)):
        for one in filter(None, text.split(",")):
            *words, kind, name = one.split()
            assert words in ([], ["raw"]), one
            found.append(Parameter(kind, name, len(kind) == 1, words == ["raw"], is_output))
    return found


class Parameter(NamedTuple):
    kind: str
    name: str
    is_array: bool
    is_raw: bool
    is_output: bool


def dtypes_of(kernel, arrays):
    """The C++ type behind each letter of the parameter list; an error where two arrays disagree on one."""
    letters = {}
    taken = [p for p in parameters(kernel) if p.is_array]
    for (letter, name, *_), array in zip(taken, arrays, strict=True):
        dtype = np.dtype(array.dtype if hasattr(array, "dtype") else array).name
        if letters.setdefault(letter, dtype) != dtype:
            msg = f"{name} is of {dtype}, and {letter} stands for {letters[letter]}"
            raise KernelError(msg)
    return tuple(sorted(letters.items()))


def function(kernel, letters, symbol):
    """The kernel as a C++ function over a range of its threads."""
    types = "".join(f"typedef {TYPES[dtype]} {letter};\n" for letter, dtype in letters)
    arrays, numbers, arguments, before, after = 0, 0, [], [], []
    for kind, name, is_array, is_raw, is_output in parameters(kernel):
        if not is_array:
            arguments.append(f"const {TYPES[kind]} {name} = ({TYPES[kind]})numbers[{numbers}];")
            numbers += 1
            continue
        const, array = "" if is_output else "const ", name if is_raw else f"_raw_{name}"
        memory = f"({const}{kind}*)data[{arrays}], sizes[{arrays}], written[{arrays}]"
        arguments.append(f'const Array<{const}{kind}> {array} = {{{memory}, "{name}", &report}};')
        arrays += 1
        if not is_raw:
            before.append(f"{kind} {name};" if is_output else f"const {kind} {name} = {array}[i].value();")
            after += [f"{array}[i] = {name};"] * is_output
    return f"""
namespace {symbol}_ {{
{types}
void run(void** data, const long long* sizes, unsigned char** written, const long long* numbers,
         long long begin, long long end, Report report) {{
{chr(10).join(arguments)}
for (ptrdiff_t i = begin; i < end; ++i) {{
report.thread = i;
{chr(10).join(before)}
{kernel.operation};
{chr(10).join(after)}
}}
}}
}}
extern "C" void {symbol}(void** data, const long long* sizes, unsigned char** written, const long long* numbers,
                         long long begin, long long end, char* text) {{
  {symbol}_::run(data, sizes, written, numbers, begin, end, Report{{text, 0}});
}}
"""


def compile_(*arguments):
    done = subprocess.run(["g++", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(done.stderr[:4000])


class Harness:
    """Compiles kernels, many at a time, keeps them by their text, and runs them."""

    def __init__(self, flags=()):
        self.flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
        self.flags += ["-Wno-unused", "-Wno-maybe-uninitialized", *flags]
        self.functions = {}
        self.folder = tempfile.TemporaryDirectory()
        header = Path(self.folder.name, "cpu.hpp")
        header.write_text(Path(__file__).with_name("cpu.hpp").read_text())
        compile_(*self.flags, "-x", "c++-header", header)  # ahead of the kernels

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
        functions = [function(kernel, letters, key) for key, (kernel, letters) in entries]
        path = Path(self.folder.name, entries[0][0])
        path.with_suffix(".cpp").write_text('#include "cpu.hpp"\n' + "".join(functions))
        compile_(*self.flags, path.with_suffix(".cpp"), "-o", path.with_suffix(".so"))
        library = ctypes.CDLL(str(path.with_suffix(".so")))
        for key, _ in entries:
            self.functions[key] = getattr(library, key)

    def launch(self, kernel, *arrays, threads=None):
        """Run a kernel on its flat arrays, all threads or a range of them; KernelError where it goes astray."""
        taken = [p for p in parameters(kernel) if p.is_array]
        written = [np.zeros(a.size if p.is_output else 0, np.uint8) for a, p in zip(arrays, taken, strict=True)]
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
    """The harness of this process, which knows all that was compiled."""
    return Harness()
