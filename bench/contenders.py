"""Who is timed: one small class per library, which turns a problem into calls without arguments."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from . import blog
from .cases import Case
from .problem import Problem

#: A call that returns an array of the contender's own library, or a tuple of them, when the work is done.
Call = Callable[[], Any]


class Contender(ABC):
    """A library with its operations. Making one imports the library, and raises ImportError where it is missing."""

    name: ClassVar[str]
    #: Whether its memory comes from NumPy, so that tracemalloc sees it.
    on_numpy: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        del threads  # the environment and the affinity that the worker set are enough for most

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of what does the work."""

    def refusal(self, case: Case, operation: str) -> str | None:
        """Why the contender does not take part in an operation; None where it does."""
        del case, operation
        return None

    @abstractmethod
    def prepare(self, case: Case, problem: Problem) -> dict[str, Call]:
        """Everything that is not timed: operands in the library's own arrays, and one call per operation."""


class Xconv(Contender):
    """The library itself, on NumPy arrays, by its public functions."""

    name = "xconv"
    on_numpy = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import xconv

        self.module = xconv

    def versions(self) -> dict[str, str]:
        return {"xconv": self.module.__version__, "numpy": np.__version__}

    def prepare(self, case: Case, problem: Problem) -> dict[str, Call]:
        x, w, dy = problem.x, problem.w, problem.dy
        options: dict[str, Any] = {
            "stride": case.stride,
            "padding": case.padding,
            "dilation": case.dilation,
            "groups": case.groups,
        }
        input_grad = partial(self.module.conv_input_grad, dy, w, x.shape, **options)
        weight_grad = partial(self.module.conv_weight_grad, dy, x, w.shape, **options)
        return {
            "forward": partial(self.module.conv, x, w, **options),
            "input_grad": input_grad,
            "weight_grad": weight_grad,
            "backward": lambda: (input_grad(), weight_grad()),
        }


class Torch(Contender):
    """PyTorch on the CPU, which is oneDNN for most cases."""

    name = "torch"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def versions(self) -> dict[str, str]:
        return {"torch": self.torch.__version__}

    def prepare(self, case: Case, problem: Problem) -> dict[str, Call]:
        x, w, dy = map(self.torch.from_numpy, (problem.x, problem.w, problem.dy))
        functional = self.torch.nn.functional
        conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[case.rank]
        stride, padding, dilation = ([size] * case.rank for size in (case.stride, case.padding, case.dilation))

        def gradients(*mask: bool) -> Call:
            gradient = self.torch.ops.aten.convolution_backward.default
            rest = (stride, padding, dilation, False, [0] * case.rank, case.groups, [*mask, False])
            return partial(gradient, dy, x, w, None, *rest)

        only_x, only_w, both = gradients(True, False), gradients(False, True), gradients(True, True)  # noqa: FBT003
        return {
            "forward": partial(conv, x, w, None, stride, padding, dilation, case.groups),
            "input_grad": lambda: only_x()[0],
            "weight_grad": lambda: only_w()[1],
            "backward": lambda: both()[:2],
        }


class Jax(Contender):
    """JAX on the CPU, jitted; compiling is not timed."""

    name = "jax"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["NPROC"] = str(threads)  # the size of its pool of threads
        os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
        import jax

        self.jax = jax

    def versions(self) -> dict[str, str]:
        import jaxlib

        return {"jax": self.jax.__version__, "jaxlib": jaxlib.__version__}

    def prepare(self, case: Case, problem: Problem) -> dict[str, Call]:
        jax = self.jax
        x, w, dy = map(jax.numpy.asarray, (problem.x, problem.w, problem.dy))
        conv = partial(
            jax.lax.conv_general_dilated,
            window_strides=[case.stride] * case.rank,
            padding=[(case.padding, case.padding)] * case.rank,
            rhs_dilation=[case.dilation] * case.rank,
            feature_group_count=case.groups,
        )
        functions = {
            "forward": lambda x, w, dy: conv(x, w),  # noqa: ARG005
            "input_grad": lambda x, w, dy: jax.vjp(lambda x: conv(x, w), x)[1](dy)[0],
            "weight_grad": lambda x, w, dy: jax.vjp(lambda w: conv(x, w), w)[1](dy)[0],
            "backward": lambda x, w, dy: jax.vjp(conv, x, w)[1](dy),
        }

        def finished(function: Callable[..., Any]) -> Call:
            return lambda: jax.block_until_ready(function(x, w, dy))

        return {operation: finished(jax.jit(function)) for operation, function in functions.items()}


class Blog(Contender):
    """The tutorial algorithm of `bench.blog`, with NumPy's BLAS on all threads."""

    name = "blog"
    on_numpy = True
    #: Beyond so many elements, its columns and their indices in the backward pass take more than 4 GiB.
    MOST_COLUMNS = 2**27

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def refusal(self, case: Case, operation: str) -> str | None:
        if case.rank != 2 or case.groups != 1 or case.dilation != 1:
            return "it knows images only, and neither groups nor dilation"
        if operation in {"input_grad", "weight_grad"}:
            return "one function computes both gradients"
        columns = case.x_shape[0] * math.prod(case.w_shape[1:]) * math.prod(case.out)
        if operation == "backward" and columns > self.MOST_COLUMNS:
            return f"{columns:,} elements of columns with their indices take too much memory"
        return None

    def prepare(self, case: Case, problem: Problem) -> dict[str, Call]:
        forward = partial(blog.conv_forward, problem.x, problem.w, case.stride, case.padding)
        calls: dict[str, Call] = {"forward": lambda: forward()[0]}
        if self.refusal(case, "backward") is None:
            calls["backward"] = partial(blog.conv_backward, problem.dy, forward()[1])  # with the columns at hand
        return calls


CONTENDERS: dict[str, type[Contender]] = {kind.name: kind for kind in (Xconv, Torch, Jax, Blog)}
