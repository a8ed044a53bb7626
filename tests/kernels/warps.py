"""Kernels on tensor cores on the CPU: their text behind an emulation of a block of threads and its warps.

What is not shown: that a device does what NVIDIA's manual says, and adds up as the model in warps.cpp does; speed.
"""

import contextlib
import ctypes
import functools
import hashlib
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kernels.cpu import KernelError, compile_

#: Kernels in one file of C++.
BATCH = 25
#: How many bits of each term a tensor core adds up.
WIDTH = 26
#: Types of products, and what their results are rounded to where those are of 16 bits.
HALVES = {"F16": "float16", "BF16": "bfloat16", "TF32": "float16"}
#: What depends on the kernel's types; the rest is in warps.hpp and warps.cpp.
EMULATION = """
void multiply(float* c, const unsigned* a, const unsigned* b) { ::multiply_as(::OfNUMBER(), c, a, b); }
void convert(float& to, float from) { to = from; }
void convert(unsigned short& to, float from) { to = ::HALF(from).bits; }
"""


def function(product, symbol):
    """The kernel as a C++ function over its blocks."""
    number = next(macro for macro in HALVES if f"#define {macro}\n" in product.head)
    body = product.kernel.replace('extern "C"', "")
    emulation = EMULATION.replace("NUMBER", number).replace("HALF", HALVES[number])
    macros = re.findall(r"^ *# *define +(\w+)", product.head + product.kernel, re.MULTILINE)
    undone = "\n".join(f"#undef {name}" for name in macros)
    handed = "".join(f", {n}" for n in product.numbers)
    return f"""
namespace {symbol}_ {{
{product.head}
{emulation}
{body}
const E* x; const E* u; U* y;
void one() {{ NAME(x, u, y{handed}); }}
void run(void** data, const long long* sizes, unsigned char* written, int first, int last, char* text) {{
  x = (const E*)data[0], u = (const E*)data[1], y = (U*)data[2];
  const int itemsizes[3] = {{sizeof(E), sizeof(E), sizeof(U)}};
  run_blocks(one, THREADS, first, last, data, sizes, itemsizes, written, text);
}}
}}
extern "C" void {symbol}(void** data, const long long* sizes, unsigned char* written, int first, int last,
                         char* text) {{
  {symbol}_::run(data, sizes, written, first, last, text);
}}
{undone}
"""


class Warps:
    """Compiles kernels, keeps them by their text, and runs them."""

    def __init__(self, flags=()):
        self.flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
        self.flags += ["-Wno-unused", *flags]
        self.functions = {}
        self.folder = tempfile.TemporaryDirectory()
        for name in ("cpu.hpp", "warps.hpp", "warps.cpp"):
            Path(self.folder.name, name).write_text(Path(__file__).with_name(name).read_text())
        compile_(*self.flags, "-x", "c++-header", Path(self.folder.name, "warps.hpp"))
        emulation = Path(self.folder.name, "warps.so")
        compile_(*self.flags, "-O1", emulation.with_suffix(".cpp"), "-o", emulation)
        self.emulation = ctypes.CDLL(str(emulation), ctypes.RTLD_GLOBAL)  # where the kernels find it
        self.emulation.set_width(WIDTH)

    @contextlib.contextmanager
    def width(self, bits):
        """Tensor cores add up so many bits of each term; with 0, one term after the other in float32."""
        self.emulation.set_width(bits)
        try:
            yield
        finally:
            self.emulation.set_width(WIDTH)

    def prepare(self, products):
        """Compile kernels ahead of their launches."""
        missing = [p for p in dict.fromkeys(products) if p not in self.functions]
        size = min(BATCH, -(-len(missing) // 2)) or 1
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._compile, [missing[i : i + size] for i in range(0, len(missing), size)]))

    def _compile(self, products):
        symbols = ["k" + hashlib.sha256(f"{p.head}{p.kernel}{p.numbers}".encode()).hexdigest()[:16] for p in products]
        path = Path(self.folder.name, symbols[0])
        texts = (function(p, symbol) for p, symbol in zip(products, symbols, strict=True))
        path.with_suffix(".cpp").write_text('#include "warps.hpp"\n' + "".join(texts))
        compile_(*self.flags, path.with_suffix(".cpp"), "-o", path.with_suffix(".so"))
        library = ctypes.CDLL(str(path.with_suffix(".so")))
        for product, symbol in zip(products, symbols, strict=True):
            self.functions[product] = getattr(library, symbol)

    def launch(self, product, *arrays, blocks=None):
        """Run a kernel on its flat arrays, all blocks or a range of them; KernelError where it goes astray."""
        self.prepare([product])
        written = np.zeros(arrays[-1].size, np.uint8)
        blocks = range(product.blocks) if blocks is None else blocks
        text = ctypes.create_string_buffer(256)
        self.functions[product](
            (ctypes.c_void_p * 3)(*(a.ctypes.data for a in arrays)),
            (ctypes.c_longlong * 3)(*(a.size for a in arrays)),
            ctypes.c_void_p(written.ctypes.data),
            blocks.start,
            blocks.stop,
            text,
        )
        if text.value:
            msg = f"{product.name}, {text.value.decode()}"
            raise KernelError(msg)
        return written


@functools.cache
def warps():
    """The harness of this process, which knows all that was compiled."""
    return Warps()
