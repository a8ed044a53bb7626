"""The child process of `bench.planner`: one geometry and function at a time, by every algorithm."""

import gc
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from .child import serve
from .contenders import CONTENDERS
from .geometries import Geometry
from .problem import relative_error
from .worker import limit_cores, timed

#: Who makes the arrays and waits for results, by array library.
LIBRARIES = {"numpy": "xconv", "torch": "torch", "jax": "jax"}
#: The largest difference between two algorithms' results, relative to the largest element.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9, "complex64": 1e-3}
#: A first call of so few seconds is mostly planning and new memory, and more of them follow; one of so many counts.
SHORT, LONG = 0.05, 0.5
#: Bytes that the process may take.
MOST_MEMORY = 8 * 2**30


class Worker:
    """One array library, and the geometry and function that it has at hand."""

    def __init__(self, backend: str, threads: int) -> None:
        self.backend, self.threads = backend, threads
        self.geometry: Geometry | None = None
        self.operands: list[Any] = []
        self.function = ""
        self.calls: dict[str, Callable[[], Any]] = {}
        #: The result by the planner's choice.
        self.expected: Any = None
        requests = (self.start, self.take_up, self.make, self.first, self.laps, self.beside_scipy)
        self.requests: dict[str, Callable[..., Any]] = {request.__name__: request for request in requests}

    def start(self) -> dict[str, Any]:
        """Import the libraries; the answer says what they are, or that one is missing."""
        try:
            self.library = CONTENDERS[LIBRARIES[self.backend]](self.threads)
        except ImportError as error:
            return {"missing": f"{self.backend} cannot be imported: {error}"}
        versions = CONTENDERS["xconv"](self.threads).versions() | self.library.versions()
        gc.collect()
        gc.freeze()  # what is imported stays, and `timed` need not look through it every time
        return {"versions": versions}

    def take_up(self, geometry: dict[str, Any], function: str) -> dict[str, Any]:
        """Begin with a geometry and one of its functions: what is planned, and the time of a call that follows it."""
        g = Geometry.of(geometry)
        if g != self.geometry:
            self.operands = [self.library.array(array) for array in operands(g)]
        self.geometry, self.function, self.calls, self.expected = g, function, {}, None
        auto = self.make("auto") or self.first("auto")
        if "refused" in auto:
            raise RuntimeError(auto["refused"])
        return planned(g, function, *self.operands[:2]) | auto

    def make(self, algorithm: str) -> dict[str, Any]:
        """What comes before the first call, which is compiling with JAX; the answer says why it cannot serve."""
        assert self.geometry is not None
        function = FUNCTIONS[self.function](self.geometry, algorithm)
        if self.backend == "jax":
            import jax

            function = jax.jit(function)
        try:
            function = self.library.compiled(function, self.operands)
        except ValueError as error:
            return {"refused": str(error)}
        self.calls[algorithm] = lambda: self.library.finished(function(*self.operands))
        return {}

    def first(self, algorithm: str) -> dict[str, Any]:
        """Seconds of a call, whose result is compared; or why the algorithm cannot serve."""
        call, results = self.calls[algorithm], []
        try:
            seconds = timed(lambda: results.append(call()), 1)[0] / 1e9
        except (ValueError, MemoryError) as error:
            return {"refused": str(error)}
        result = np.asarray(results.pop())
        if self.expected is None:
            self.expected = result
        elif not (difference := relative_error(result, self.expected)) <= TOLERANCE[result.dtype.name]:
            msg = f"the result of {algorithm} is wrong by {difference:.1e} of its largest element"
            raise ArithmeticError(msg)
        if seconds < LONG:
            seconds = min(timed(call, 3 if seconds < SHORT else 1)) / 1e9
        return {"seconds": seconds}

    def beside_scipy(self, geometry: dict[str, Any], function: str) -> dict[str, Any]:
        """Take up a function of a geometry, and SciPy's loop over the pairs of channels as if it was an algorithm."""
        from .beside_scipy import call

        plan = self.take_up(geometry, function)
        self.calls["scipy"] = call(function, *self.operands)
        seconds = {"auto": plan.pop("seconds"), "scipy": self.first("scipy")["seconds"]}
        return plan | {"seconds": seconds}

    def laps(self, calls: dict[str, int], laps: int) -> dict[str, list[float]]:
        """The median seconds of each algorithm's calls in every lap: they take turns, to and fro."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for name in calls.keys() - self.calls.keys():  # known to a process that was ended
            self.make(name)
            self.calls[name]()
        for lap in range(laps):
            for name in calls if lap % 2 == 0 else reversed(calls):
                found[name].append(statistics.median(timed(self.calls[name], calls[name])) / 1e9)
        return found


def operands(g: Geometry) -> list[np.ndarray]:
    """Random x, w and dy."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, *shape), np.float32) for shape in (g.x_shape, g.w_shape, g.y_shape)]
    return [((a[0] + 1j * a[1]) if g.dtype.startswith("complex") else a[0]).astype(g.dtype) for a in arrays]


def forward(g: Geometry, algorithm: str) -> Callable[..., Any]:
    import xconv

    return lambda x, w, dy: xconv.conv(x, w, **g.options, algorithm=algorithm)  # noqa: ARG005


def input_grad(g: Geometry, algorithm: str) -> Callable[..., Any]:
    import xconv

    return lambda x, w, dy: xconv.conv_input_grad(dy, w, g.x_shape, **g.options, algorithm=algorithm)  # noqa: ARG005


def weight_grad(g: Geometry, algorithm: str) -> Callable[..., Any]:
    import xconv

    return lambda x, w, dy: xconv.conv_weight_grad(dy, x, g.w_shape, **g.options, algorithm=algorithm)  # noqa: ARG005


FUNCTIONS = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}


def planned(g: Geometry, function: str, x: Any, w: Any) -> dict[str, Any]:
    """What the plan says of a function: the algorithm that it chooses, and the cost of each that can serve."""
    import xconv

    plan = getattr(xconv.plan(x, w, **g.options), function)
    costs = {name: cost for name, cost, refusal, _ in plan.candidates if refusal is None}
    return {"chosen": plan.algorithm, "costs": costs}


def limit_memory() -> None:
    """Let what takes too much memory fail, before it takes that of others."""
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))


if __name__ == "__main__":
    limit_memory()
    limit_cores(int(sys.argv[2]))
    serve(Worker(sys.argv[1], int(sys.argv[2])).requests)
