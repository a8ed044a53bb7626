"""Who is timed on a CPU: one small class per library, with its operations as functions of the operands."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np

from . import blog, handwritten
from .cases import OPERATIONS, Case, first
from .problem import Problem

#: Returns an array of the contender's own library, or a tuple of them.
Function = Callable[..., Any]
#: The same with its operands, when the work is done.
Call = Callable[[], Any]


Kind = TypeVar("Kind", bound="Contender")


class MissingError(Exception):
    """A contender cannot take part on this machine."""


class Contender(ABC):
    """A library with its operations. Making one imports the library, and raises ImportError where it is missing."""

    name: ClassVar[str]
    #: Whether its memory comes from NumPy, so that tracemalloc sees it.
    on_numpy: ClassVar[bool] = False
    #: Whether it runs the usual cases, and those that grow.
    usual: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        self.threads = threads  # the environment and the affinity that the worker set are enough for most

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of what does the work."""

    @abstractmethod
    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        """Give a function of the operands for every operation that the library has."""

    def refusal(self, case: Case, operation: str) -> str | None:
        """Why the contender does not take part in an operation; None where it does."""
        del case, operation
        return None

    def array(self, array: Any) -> Any:
        """Convert an array to one of the library's own."""
        return array

    def placed(self, case: Case, name: str, array: Any) -> Any:
        """Lay an operand out in memory as the library likes it best, where the case leaves it free."""
        del case, name
        return array

    def compiled(self, function: Function, operands: list[Any]) -> Function:
        """Do before the first call what depends on the operands' shapes only."""
        del operands
        return function

    def finished(self, result: Any) -> Any:
        """Wait until a result has been computed."""
        return result

    def remark(self, case: Case, problem: Problem) -> str:
        """Say how the contender is going to run the case, where it tells."""
        del case, problem
        return ""

    def prepare(self, case: Case, problem: Problem, *, compiled: bool = False) -> dict[str, Call]:
        """Everything that is not timed: operands in the library's own arrays, and one call per operation."""
        arrays = {name: self.placed(case, name, self.array(array)) for name, array in problem.operands.items()}
        calls = {}
        for operation, function in self.functions(case, case.precisions[0]).items():
            if operation in case.operations:
                operands = [arrays[name] for name in OPERATIONS[operation].operands]
                ready = self.compiled(function, operands) if compiled else function
                calls[operation] = self._call(ready, operands)
        return calls

    def _call(self, function: Function, operands: list[Any]) -> Call:
        return partial(function, *operands)


class Xconv(Contender):
    """The library itself, by its public functions; `algorithm` and `workspace` for its subclasses to choose."""

    name = "xconv"
    on_numpy = True
    grows = True
    algorithm: ClassVar[str] = "auto"
    workspace: ClassVar[int | None] = None

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import xconv

        self.module = xconv

    def versions(self) -> dict[str, str]:
        return {"xconv": self.module.__version__, "numpy": np.__version__}

    def remark(self, case: Case, problem: Problem) -> str:
        return self._plan(case, problem).algorithm

    def _plan(self, case: Case, problem: Problem) -> Any:
        return self.module.plan(problem.operands["x"], problem.operands["w"], **self._options(case))

    def _options(self, case: Case) -> dict[str, Any]:
        layout = "channels_last" if case.channels_last else "channels_first"
        sizes = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
        return {**sizes, "groups": case.groups, "layout": layout, "algorithm": self.algorithm}

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        del precision
        module, options = self.module, self._options(case)
        sizes = {name: options[name] for name in ("stride", "padding", "dilation")}
        x_shape, w_shape, size = case.shape("x"), case.shape("w"), case.x_shape[2:]

        def input_grad(x: Any, w: Any, dy: Any) -> Any:
            del x
            return module.conv_input_grad(dy, w, x_shape, **options)

        def weight_grad(x: Any, w: Any, dy: Any) -> Any:
            del w
            return module.conv_weight_grad(dy, x, w_shape, **options)

        return {
            "im2col": lambda x: module.im2col(x, case.kernel, **sizes),
            "col2im": lambda cols: module.col2im(cols, size, **sizes),
            "forward": lambda x, w, dy: module.conv(x, w, **options),  # noqa: ARG005
            "input_grad": input_grad,
            "weight_grad": weight_grad,
            "backward": lambda x, w, dy: (input_grad(x, w, dy), weight_grad(x, w, dy)),
        }

    def _call(self, function: Function, operands: list[Any]) -> Call:
        if self.workspace is None:
            return super()._call(function, operands)

        def bounded() -> Any:
            with self.module.config(workspace=self.workspace):
                return function(*operands)

        return bounded


class Bounded(Xconv):
    """The same within a fixed workspace, for the memory of problems that grow."""

    name = "xconv-8MiB"
    usual = False
    workspace = 2**23


class Forced(Xconv):
    """The same with one algorithm, to judge the planner's choice by; gradients one at a time."""

    grows = False

    def prepare(self, case: Case, problem: Problem, *, compiled: bool = False) -> dict[str, Call]:
        try:
            self._plan(case, problem)
        except ValueError:  # the algorithm cannot serve the case
            return {}
        calls = super().prepare(case, problem, compiled=compiled)
        calls.pop("backward", None)
        return calls


def forced(base: type[Kind], *own: str) -> dict[str, type[Kind]]:
    """Make a contender of every algorithm that all libraries have, and of those that one has of its `own`."""
    from xconv.algorithms import PORTABLE

    kinds = (type(base.__name__, (base,), {"name": f"xconv-{name}", "algorithm": name}) for name in (*PORTABLE, *own))
    return {kind.name: kind for kind in kinds}


class Torch(Contender):
    """PyTorch on the CPU, which is oneDNN for most cases."""

    name = "torch"
    grows = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def versions(self) -> dict[str, str]:
        return {"torch": self.torch.__version__}

    def array(self, array: Any) -> Any:
        return self.torch.from_numpy(array)

    def placed(self, case: Case, name: str, array: Any) -> Any:
        if name != "w" or not case.channels_last or case.rank == 1:
            return array
        return array.contiguous(memory_format=(self.torch.channels_last, self.torch.channels_last_3d)[case.rank - 2])

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        del precision
        functional, gradient = self.torch.nn.functional, self.torch.ops.aten.convolution_backward.default
        conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[case.rank]
        sizes = [[size] * case.rank for size in (case.stride, case.padding, case.dilation)]
        rest = (*sizes, False, [0] * case.rank, case.groups)

        def inward(array: Any) -> Any:
            return array.movedim(-1, 1) if case.channels_last else array

        def outward(array: Any) -> Any:
            return array.movedim(1, -1) if case.channels_last else array

        def gradients(x: Any, w: Any, dy: Any, *mask: bool) -> Any:
            return gradient(inward(dy), inward(x), w, None, *rest, [*mask, False])

        def both(x: Any, w: Any, dy: Any) -> Any:
            dx, dw, _ = gradients(x, w, dy, True, True)  # noqa: FBT003
            return outward(dx), dw

        functions: dict[str, Function] = {
            "forward": lambda x, w, dy: outward(conv(inward(x), w, None, *sizes, case.groups)),  # noqa: ARG005
            "input_grad": lambda x, w, dy: outward(gradients(x, w, dy, True, False)[0]),  # noqa: FBT003
            "weight_grad": lambda x, w, dy: gradients(x, w, dy, False, True)[1],  # noqa: FBT003
            "backward": both,
        }
        if case.rank == 2 and not case.channels_last:
            functions |= self._unfolding(case)
        return functions

    def _unfolding(self, case: Case) -> dict[str, Function]:
        functional, kernel, shape = self.torch.nn.functional, case.kernel, case.shape("cols")
        sizes = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
        size, rows = case.x_shape[2:], (case.x_shape[0], math.prod(shape[1:4]), -1)
        return {
            "im2col": lambda x: functional.unfold(x, kernel, **sizes).view(shape),
            "col2im": lambda cols: functional.fold(cols.view(rows), size, kernel, **sizes),
        }


class Jax(Contender):
    """JAX on the CPU, jitted; compiling is not timed."""

    name = "jax"
    platform: ClassVar[str] = "cpu"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ["JAX_PLATFORMS"] = self.platform
        os.environ["JAX_ENABLE_X64"] = "1"  # for the cases in float64; the others stay as they are
        if self.platform == "cpu":
            os.environ["NPROC"] = str(threads)  # the size of its pool of threads
            os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
        import jax

        self.jax = jax

    def versions(self) -> dict[str, str]:
        import jaxlib

        return {"jax": self.jax.__version__, "jaxlib": jaxlib.__version__}

    def array(self, array: Any) -> Any:
        return self.jax.numpy.asarray(array)

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        jax = self.jax
        axes = "DHW"[-case.rank :]
        layout = f"N{axes}C" if case.channels_last else f"NC{axes}"
        conv = partial(
            jax.lax.conv_general_dilated,
            window_strides=[case.stride] * case.rank,
            padding=[(case.padding, case.padding)] * case.rank,
            rhs_dilation=[case.dilation] * case.rank,
            feature_group_count=case.groups,
            dimension_numbers=(layout, f"OI{axes}", layout),
            precision="highest" if precision in {"ieee", "double"} else "default",
        )
        functions = {
            "forward": lambda x, w, dy: conv(x, w),  # noqa: ARG005
            "input_grad": lambda x, w, dy: jax.vjp(lambda x: conv(x, w), x)[1](dy)[0],
            "weight_grad": lambda x, w, dy: jax.vjp(lambda w: conv(x, w), w)[1](dy)[0],
            "backward": lambda x, w, dy: jax.vjp(conv, x, w)[1](dy),
        }
        return {operation: jax.jit(function) for operation, function in functions.items()}

    def compiled(self, function: Function, operands: list[Any]) -> Function:
        return function.lower(*operands).compile()

    def finished(self, result: Any) -> Any:
        return self.jax.block_until_ready(result)

    def _call(self, function: Function, operands: list[Any]) -> Call:
        return lambda: self.jax.block_until_ready(function(*operands))


class Scipy(Contender):
    """SciPy's `fftconvolve` with an axis for each kind of channel, and a sum over the one that is contracted."""

    name = "scipy"
    #: More pixels of single products than this take too much memory.
    MOST = 2**24

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import scipy.fft
        import scipy.signal

        self.scipy = scipy

    def versions(self) -> dict[str, str]:
        return {"scipy": self.scipy.__version__, "numpy": np.__version__}

    def refusal(self, case: Case, operation: str) -> str | None:
        del operation
        if case.stride != 1 or case.dilation != 1:
            return "it knows neither stride nor dilation"
        products = case.x_shape[0] * math.prod(case.w_shape[:2]) * math.prod(case.x_shape[2:])
        return f"{products:,} pixels of products take too much memory" if products > self.MOST else None

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        del precision
        n, g, (o, c), p = case.x_shape[0], case.groups, case.w_shape[:2], case.padding
        o //= g
        axes = tuple(range(-case.rank, 0))
        edge, inner = [(0, 0)] * 2 + [(p, p)] * case.rank, (..., *(slice(p, p + s) for s in case.x_shape[2:]))

        def product(left: Any, right: Any, mode: str, axis: int) -> Any:
            with self.scipy.fft.set_workers(self.threads):
                return self.scipy.signal.fftconvolve(left, right, mode=mode, axes=axes).sum(axis=axis)

        def images(x: Any) -> Any:
            padded = np.pad(first(case, x), edge)
            return padded.reshape(n, g, 1, c, *padded.shape[2:])

        def grads(dy: Any) -> Any:
            return first(case, dy).reshape(n, g, o, 1, *case.out)

        def filters(w: Any) -> Any:
            return w.reshape(1, g, o, c, *case.kernel)

        def outward(array: Any) -> Any:
            array = array.reshape(n, -1, *array.shape[3:])
            return np.moveaxis(array, 1, -1) if case.channels_last else array

        def forward(x: Any, w: Any, dy: Any) -> Any:
            del dy
            return outward(product(images(x), np.flip(filters(w), axes), "valid", 3))

        def input_grad(x: Any, w: Any, dy: Any) -> Any:
            del x
            return outward(product(grads(dy), filters(w), "full", 2)[inner])

        def weight_grad(x: Any, w: Any, dy: Any) -> Any:
            del w
            return product(images(x), np.flip(grads(dy), axes), "valid", 0).reshape(case.w_shape)

        def backward(x: Any, w: Any, dy: Any) -> Any:
            return input_grad(x, w, dy), weight_grad(x, w, dy)

        return {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad, "backward": backward}


class Blog(Contender):
    """The tutorial algorithm of `bench.blog`, with NumPy's BLAS on all threads."""

    name = "blog"
    on_numpy = True
    grows = True
    #: Beyond so many elements, its columns and their indices in the backward pass take more than 4 GiB.
    MOST_COLUMNS = 2**27

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def refusal(self, case: Case, operation: str) -> str | None:
        if case.rank != 2 or case.groups != 1 or case.dilation != 1 or case.channels_last:
            return "it knows images with the channels first only, and neither groups nor dilation"
        if operation in {"input_grad", "weight_grad"}:
            return "one function computes both gradients"
        columns = case.x_shape[0] * math.prod(case.w_shape[1:]) * math.prod(case.out)
        if columns > (self.MOST_COLUMNS if operation == "backward" else 2 * self.MOST_COLUMNS):
            return f"{columns:,} elements of columns with their indices take too much memory"
        return None

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        del precision
        return {"forward": lambda x, w, dy: blog.conv_forward(x, w, case.stride, case.padding)[0]}  # noqa: ARG005

    def prepare(self, case: Case, problem: Problem, *, compiled: bool = False) -> dict[str, Call]:
        calls = {} if self.refusal(case, "forward") else super().prepare(case, problem, compiled=compiled)
        if "backward" in case.operations and self.refusal(case, "backward") is None:
            x, w, dy = (problem.operands[name] for name in ("x", "w", "dy"))
            _, cache = blog.conv_forward(x, w, case.stride, case.padding)
            calls["backward"] = partial(blog.conv_backward, dy, cache)  # with the columns at hand
        return calls


class ByHand(Contender):
    """What one writes for oneself, as `bench.handwritten` has it, with NumPy's BLAS on all threads."""

    name = "by-hand"
    on_numpy = True

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def refusal(self, case: Case, operation: str) -> str | None:
        del operation
        return "it knows no dilation" if case.dilation > 1 else None

    def functions(self, case: Case, precision: str) -> dict[str, Function]:
        del precision
        return {name: partial(function, case) for name, function in handwritten.FUNCTIONS.items()}


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind for kind in (Xconv, *forced(Forced, "mec").values(), Bounded, Torch, Jax, Scipy, Blog, ByHand)
}
