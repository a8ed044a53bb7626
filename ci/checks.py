"""The checks of the smoke test: small integers, whose sums are exact, beside NumPy's plain sums in a wide dtype.

An algorithm that transforms is only close: its zeros are not zeros. Which algorithms, functions and settings there are
is read from the library.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import xconv
from xconv.backends import backend_of

from .place import Place

#: What is wrong, or None.
Check = Callable[[], str | None]
Named = Iterator[tuple[str, Check]]
#: Shapes of x and w, and options.
GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "layer": ((2, 8, 9, 10), (8, 8, 3, 3), {"padding": 1}),
    "steps": (
        *((2, 6, 11, 9), (4, 3, 3, 2)),
        {"stride": (2, 1), "padding": ((1, 2), 0), "dilation": (1, 2), "groups": 2},
    ),
    "depthwise": ((2, 8, 9, 8), (16, 1, 3, 3), {"padding": 1, "groups": 8}),
    "multiplier": ((2, 4, 4, 4), (12, 1, 1, 1), {"padding": 2, "groups": 4}),
    "pixel": ((2, 8, 5, 6), (16, 8, 1, 1), {}),
    "line": ((2, 4, 40), (6, 4, 5), {"stride": 3}),
    "volume": ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"padding": 1}),
    "large": ((3, 4, 40, 41), (6, 4, 3, 3), {"padding": (0, 1)}),
    "reflect": ((2, 3, 8, 7), (4, 3, 3, 3), {"padding": 2, "pad_mode": "reflect"}),
    "value": ((2, 3, 8, 7), (4, 3, 3, 3), {"padding": ((2, 1), 1), "pad_value": 2}),
    "filters": ((2, 8, 9, 10), (3, 3, 8, 8), {"padding": 1, "w_layout": "...io"}),
}
#: The geometries of each dtype; what is most likely to be used comes first.
DTYPES = {
    **dict.fromkeys(("float32", "float16", "float64", "bfloat16"), tuple(GEOMETRIES)),
    "complex64": ("layer", "steps", "depthwise", "pixel"),
    "complex128": ("layer",),
    "int8": ("layer", "depthwise", "multiplier"),
    "int32": ("layer", "steps"),
    "int64": ("layer",),
    "uint8": ("layer",),
}
#: How windows are pooled: with overlap and padding, on a grid, and far apart.
POOLS: dict[str, tuple[int, dict[str, Any]]] = {
    "3x3": (3, {"stride": 2, "padding": 1}),
    "2x2": (2, {}),
    "apart": (2, {"stride": 3, "dilation": 2}),
}
#: A number that every count of a window's elements here divides.
DIVISIBLE = 36
#: By dtype: the largest error relative to the largest element, of algorithms that transform.
TOLERANCE = {
    "float32": 3e-5,
    "float64": 1e-11,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "complex64": 3e-5,
    "complex128": 1e-11,
    "tf32": 2e-3,
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"workspace": 2**16},
    {"workspace": 2**20},
    {"numerics": "strict"},
    {"precision": "tf32"},
)
#: The geometries of algorithms that are asked for by name, where it is not a layer alone.
FORCED = {
    "depthwise": ("depthwise",),
    "pointwise": ("pixel",),
    "implicit": ("layer", "steps"),
    "cudnn": ("layer", "steps"),
}
LAST = {False: "", True: ", last"}
#: Calls of which each is looked at: the fourth is done by a specialised kernel.
CALLS = 4


@dataclass
class Problem:
    """The arrays of a convolution by name, on the device and, in a wide dtype, on the host; and its options."""

    there: dict[str, Any]
    here: dict[str, Any]
    options: dict[str, Any]

    def calls(self, **more: Any) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
        """Name the functions, each with its call on the device and the plain sum on the host."""
        ours = _functions(self.there, {**self.options, **more})
        plain = _functions(self.here, {**self.options, "algorithm": "gemm"})
        for name, run in ours.items():
            yield name, run, plain[name]

    def tolerance(self, dtype: str, algorithm: str = "auto", precision: str = "ieee") -> float:
        """0 where what is going to run sums as it is written."""
        plan = xconv.plan(self.there["x"], self.there["w"], **{**self.options, "algorithm": algorithm})
        used = (plan.forward, plan.input_grad, plan.weight_grad)
        algorithms = backend_of({"x": self.there["x"]}).algorithms
        exact = all(algorithms[function.algorithm].componentwise for function in used)
        return 0 if exact else TOLERANCE["tf32" if precision == "tf32" else dtype]


def _functions(arrays: dict[str, Any], options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    x, w, dy, b = arrays["x"], arrays["w"], arrays["dy"], arrays["b"]
    return {
        "conv": lambda: xconv.conv(x, w, **options),
        "conv with bias": lambda: xconv.conv(x, w, b, **options),
        "input_grad": lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        "weight_grad": lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    }


def pools(x: Any, dy: Any, kernel: int, options: dict[str, Any], dtype: str) -> dict[str, Callable[[], Any]]:
    """Name the functions that pool, each with its call; integers have no means."""
    found = {
        "max_pool": partial(xconv.max_pool, x, kernel, **options),
        "max_pool_grad": partial(xconv.max_pool_grad, dy, x, kernel, **options),
    }
    for name, count in (("", True), (" of what is seen", False)) if "int" not in dtype else ():
        more = {**options, "count_include_pad": count}
        found[f"avg_pool{name}"] = partial(xconv.avg_pool, x, kernel, **more)
        found[f"avg_pool_grad{name}"] = partial(xconv.avg_pool_grad, dy, x.shape, kernel, **more)
    return found


class Checks:
    """Makes the checks of a group, and runs them."""

    def __init__(self, place: Place, calls: int = CALLS) -> None:
        self.place, self.calls, self.rng = place, calls, np.random.default_rng(1)

    def rows(self, group: str) -> Iterator[dict[str, Any]]:
        """Say what became of each check of a group."""
        for name, check in EXTRAS[group](self) if group in EXTRAS else self.of_dtype(group):
            begin = time.perf_counter()
            row: dict[str, Any] = {"group": group, "check": name, "state": "ok"}
            try:
                detail = check()
                if detail is not None:
                    row |= {"state": "wrong", "detail": detail}
            except Exception as error:  # noqa: BLE001  # the next check may do
                refused = isinstance(error, ValueError) and "cannot serve" in str(error)
                row |= {"state": "refused" if refused else "error", "detail": f"{type(error).__name__}: {error}"[:1200]}
            yield row | {"seconds": round(time.perf_counter() - begin, 2)}

    # Arrays

    def numbers(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Small integers in a dtype that holds all sums of their products."""
        least = 0 if dtype.startswith("u") else -2
        values = self.rng.integers(least, 3, shape)
        if dtype.startswith("complex"):
            return values + 1j * self.rng.integers(least, 3, shape)
        return values.astype(dtype if "int" in dtype else "float64")

    def problem(self, name: str, dtype: str, *, last: bool = False) -> Problem:
        """Draw the arrays of a geometry."""
        x_shape, w_shape, options = GEOMETRIES[name]
        if last:
            x_shape, options = (x_shape[0], *x_shape[2:], x_shape[1]), {**options, "layout": "channels_last"}
        here = {"x": self.numbers(x_shape, dtype), "w": self.numbers(w_shape, dtype)}
        y_shape = xconv.plan(here["x"], here["w"], **options).y_shape
        here["dy"], here["b"] = (
            self.numbers(y_shape, dtype),
            self.numbers(y_shape[-1:] if last else y_shape[1:2], dtype),
        )
        return Problem({name: self.there(array, dtype) for name, array in here.items()}, here, options)

    def there(self, array: Any, dtype: str) -> Any:
        """The same on the device, in this dtype."""
        return self.place.put(array.astype(np.dtype(dtype)))

    def compare(
        self,
        run: Callable[[], Any],
        reference: Callable[[], Any],
        dtype: str,
        tolerance: float | Callable[[], float] = 0,
        settings: AbstractContextManager[Any] | None = None,
    ) -> str | None:
        """Look whether some calls give an array of the device with the reference's elements."""
        expected = reference()
        with settings or nullcontext():
            most = tolerance() if callable(tolerance) else tolerance
            made = [run() for _ in range(self.calls)]
        for number, array in enumerate(made):
            if (
                not isinstance(array, self.place.kind)
                or array.dtype != np.dtype(dtype)
                or array.shape != expected.shape
            ):
                return f"call {number}: {type(array)}, {array.dtype}, {array.shape}, not {dtype}, {expected.shape}"
            found = self.place.get(array)
            off = np.abs(found.astype(expected.dtype) - expected.astype(found.dtype).astype(expected.dtype))
            if most:
                relative = off.max() / max(1e-30, np.abs(expected).max())
                if not relative <= most:
                    return f"call {number}: off by {relative:.2e} of the largest element"
            elif np.count_nonzero(off):
                at = tuple(map(int, np.unravel_index(int(off.argmax()), off.shape)))
                return f"call {number}: {np.count_nonzero(off)} of {off.size} differ, most at {at}"
        return None

    # Groups

    def of_dtype(self, dtype: str) -> Named:
        """All functions of a dtype in all its geometries and both layouts."""
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401  # gives NumPy the dtype
        for name in DTYPES[dtype]:
            for last, suffix in LAST.items():
                problem = self.problem(name, dtype, last=last)
                for function, run, plain in problem.calls():
                    tolerance = partial(problem.tolerance, dtype)
                    yield f"{name}{suffix}: {function}", partial(self.compare, run, plain, dtype, tolerance)
            yield from self.columns(name, dtype)
        if not dtype.startswith("complex"):
            yield from self.pooling(dtype)

    def columns(self, name: str, dtype: str) -> Named:
        """Elements that are only moved, and added up again."""
        x_shape, w_shape, options = GEOMETRIES[name]
        if "w_layout" in options:  # windows have no filters; but an order of their own
            w_shape, options = (*w_shape[2:], *w_shape[:2]), {"padding": 1, "axes": (0, 4, 5, 1, 2, 3)}
        options = {key: value for key, value in options.items() if key != "groups"}
        x, kernel = self.numbers(x_shape, dtype), w_shape[2:]
        there = self.there(x, dtype)

        def unfolded(x: Any) -> Any:
            return xconv.im2col(x, kernel, **options)

        yield f"{name}: im2col", partial(self.compare, partial(unfolded, there), partial(unfolded, x), dtype)
        if options.keys() & {"pad_mode", "pad_value"}:
            return
        cols = self.numbers(unfolded(x).shape, dtype)

        def folded(cols: Any) -> Any:
            return xconv.col2im(cols, x_shape[2:], **options)

        moved = partial(folded, self.there(cols, dtype))
        yield f"{name}: col2im", partial(self.compare, moved, partial(folded, cols), dtype)

    def pooling(self, dtype: str) -> Named:
        """The largest of windows and their means, of which all are whole, and what comes back from either."""
        for name, (kernel, sizes) in POOLS.items():
            for last, suffix in LAST.items():
                shape, options = (
                    ((2, 9, 10, 8), {**sizes, "layout": "channels_last"}) if last else ((2, 8, 9, 10), sizes)
                )
                unit = 1 if "int" in dtype else DIVISIBLE
                x = self.numbers(shape, dtype) * unit
                dy = x[tuple(slice(n) for n in xconv.max_pool(x, kernel, **options).shape)]
                dy = np.where(dy == 0, unit, dy)  # or it would not matter who gets it
                there = [self.there(array, dtype) for array in (x, dy)]
                ours, plain = (pools(*arrays, kernel, options, dtype) for arrays in (there, (x, dy)))
                for function, run in ours.items():
                    yield f"pool {name}{suffix}: {function}", partial(self.compare, run, plain[function], dtype)

    def algorithms(self) -> Named:
        """Every algorithm by its name."""
        for algorithm in backend_of({"x": self.there(np.zeros(1), "float32")}).algorithms:
            for name in FORCED.get(algorithm, ("layer",)):
                for dtype in ("float32", "float16", "float64"):
                    for last, suffix in LAST.items():
                        yield from self.algorithm(algorithm, name, dtype, suffix, last=last)

    def algorithm(self, algorithm: str, name: str, dtype: str, suffix: str, *, last: bool) -> Named:
        """One of them, in a geometry and a dtype."""
        problem = self.problem(name, dtype, last=last)
        for precision in ("ieee", "tf32") if dtype == "float32" else ("ieee",):
            tolerance = partial(problem.tolerance, dtype, algorithm, precision)
            for function, run, plain in problem.calls(algorithm=algorithm):
                settings = xconv.config(precision=precision)
                check = partial(self.compare, run, plain, dtype, tolerance, settings)
                where = f"{algorithm} of {name}" if name == "steps" else algorithm
                yield f"{where}, {dtype}, {precision}{suffix}: {function}", check

    def settings(self) -> Named:
        """Every setting, memory and streams of any kind, plans, tuning, and the transposed convolution."""
        problem, dtype = self.problem("layer", "float32"), "float32"
        x, w, hx, hw = *(problem.there[name] for name in "xw"), *(problem.here[name] for name in "xw")
        tolerance = partial(problem.tolerance, dtype)
        for settings in SETTINGS:
            for function, run, plain in problem.calls():
                check = partial(self.compare, run, plain, dtype, tolerance, xconv.config(**settings))
                yield f"{settings}: {function}", check

        view = self.place.zeros((4, 18, 17, 20), dtype)[::2, 1::2, ::-2, 4:14].transpose(0, 2, 1, 3)[:, :8, :9]
        view[...] = x[:, :, : view.shape[2], : view.shape[3]]
        plain_view = self.place.get(view).astype("float64")
        plain = partial(xconv.conv, plain_view, hw, algorithm="gemm")
        strided = partial(xconv.conv, view, w)
        yield "strided", partial(self.compare, strided, plain, dtype, settings=xconv.config(numerics="strict"))

        options, gemm = problem.options, {**problem.options, "algorithm": "gemm"}
        plain, ours = partial(xconv.conv, hx, hw, **gemm), partial(xconv.conv, x, w, **options)
        yield "in a stream", partial(self.compare, ours, plain, dtype, tolerance, self.place.stream())
        planned = partial(xconv.plan(x, w, **options).conv, x, w)
        yield "planned", partial(self.compare, planned, plain, dtype, tolerance)
        tuning = xconv.config(tuning=xconv.Tuning())
        yield "tuned", partial(self.compare, ours, plain, dtype, TOLERANCE[dtype], tuning)
        options = {"stride": 2, "padding": 1, "output_padding": 1}
        ours = partial(xconv.conv_transpose, problem.there["dy"], w, **options)
        plain = partial(xconv.conv_transpose, problem.here["dy"], hw, **options, algorithm="gemm")
        yield "transposed", partial(self.compare, ours, plain, dtype, settings=xconv.config(numerics="strict"))
        yield "half sums that a library may split", self.narrow_sums

    def narrow_sums(self) -> str | None:
        """A sum of many half numbers is rounded once: no partial result may be a half one."""
        x, w = (self.rng.standard_normal(shape).astype("float16") for shape in ((1, 7, 7, 512), (64, 512, 3, 3)))
        options: dict[str, Any] = {"padding": 1, "layout": "channels_last", "algorithm": "gemm"}
        y = self.place.get(xconv.conv(self.place.put(x), self.place.put(w), **options)).astype("float64")
        x, w = x.astype("float64"), w.astype("float64")
        exact, size = xconv.conv(x, w, **options), xconv.conv(abs(x), abs(w), **options)
        bound = 2.0**-11 * np.abs(exact) + 512 * 9 * 2.0**-24 * size + 2.0**-25
        most = float(np.max(np.abs(y - exact) / bound))
        return None if most <= 1 else f"{most:.1f} times the bound of one rounding"

    def classic(self) -> Named:
        """The four functions of the tutorial."""
        problem, dtype = self.problem("layer", "float32"), "float32"
        x, w, b = (problem.there[name] for name in "xwb")
        hx, hw, hb = (problem.here[name] for name in "xwb")
        out, cache = xconv.conv_forward(x, w, b.reshape(-1, 1))
        with xconv.config(numerics="strict"):
            plain_out, plain_cache = xconv.conv_forward(hx, hw, hb.reshape(-1, 1))
            dy = self.numbers(plain_out.shape, dtype)
            plain = xconv.conv_backward(dy, plain_cache)
        made = xconv.conv_backward(self.there(dy, dtype), cache)
        tolerance = TOLERANCE[dtype]
        yield "conv_forward", partial(self.compare, lambda: out, lambda: plain_out, dtype, tolerance)
        for name, ours, theirs in zip(("dX", "dW", "db"), made, plain, strict=True):
            check = partial(self.compare, partial(_same, ours), partial(_same, theirs), dtype, tolerance)
            yield f"conv_backward: {name}", check
        cols = xconv.im2col_indices(hx, 3, 3)
        moved = partial(xconv.im2col_indices, x, 3, 3)
        yield "im2col_indices", partial(self.compare, moved, lambda: cols, dtype)
        back = partial(xconv.col2im_indices, self.there(cols, dtype), x.shape)
        yield "col2im_indices", partial(self.compare, back, partial(xconv.col2im_indices, cols, hx.shape), dtype)


def _same(array: Any) -> Any:
    return array


EXTRAS = {"algorithms": Checks.algorithms, "settings": Checks.settings, "classic": Checks.classic}
GROUPS = (*DTYPES, *EXTRAS)
