"""Which text of a kernel a call gets: one for every geometry of a rank, or one with all numbers written in.

To compile a text takes some tenths of a second. So a geometry that is met for the third time gets its own, as long as
there are not too many.
"""

import threading
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import cupy

from ..._geometry import Geometry
from ._lines import Kernel, Memory

#: Calls with one geometry before its kernel gets a text of its own, and the most such texts in a process.
WORTH_A_TEXT, MOST_TEXTS = 3, 256

#: Writes the text for a geometry and how arrays lie, with `literal`; it is the same object every time.
Writer: TypeAlias = Callable[..., Any]
#: Makes of what was written what is to be run.
Compiler: TypeAlias = Callable[[Any], Any]


class Ready(NamedTuple):
    """A kernel of CuPy, the numbers that it takes behind its inputs, and its threads."""

    run: Any
    numbers: tuple[int, ...]
    size: int


class Texts:
    """Counts calls, and keeps the specialised kernels."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: Counter[Any] = Counter()
        self.special: dict[Any, Any] = {}

    def ready(
        self,
        write: Writer,
        g: Geometry,
        memories: tuple[Memory, ...],
        literal: bool | None,  # noqa: FBT001
        compiler: Compiler,
    ) -> Any:
        """The specialised kernel, or the general one: unless `literal` says which, the number of calls decides."""
        key = (write, g, memories)
        if (found := self.special.get(key)) is not None:
            return found
        with self.lock:
            self.calls[key] += literal is None
            worth = self.calls[key] >= WORTH_A_TEXT if literal is None else literal
            if len(self.calls) > 16 * MOST_TEXTS:
                self.calls.clear()
        if not worth or len(self.special) >= MOST_TEXTS:
            return _general(write, g, memories, compiler)
        return self.special.setdefault(key, compiler(write(g, *memories, literal=True)))


@lru_cache(maxsize=1024)
def _general(write: Writer, g: Geometry, memories: tuple[Memory, ...], compiler: Compiler) -> Any:
    return compiler(write(g, *memories, literal=False))


def _compiled(kernel: Kernel) -> Ready:
    run = _elementwise(kernel.inputs, kernel.outputs, kernel.operation, kernel.name)
    return Ready(run, kernel.numbers, kernel.size)


@lru_cache(maxsize=1024)
def _elementwise(inputs: str, outputs: str, operation: str, name: str) -> Any:
    return cupy.ElementwiseKernel(inputs, outputs, operation, name)


_texts = Texts()


def ready(
    write: Writer,
    g: Geometry,
    memories: tuple[Memory, ...],
    literal: bool | None,  # noqa: FBT001
    compiler: Compiler = _compiled,
) -> Any:
    """What `Texts.ready` says, for the process."""
    return _texts.ready(write, g, memories, literal, compiler)
