"""What a call on CuPy arrays costs the host, beside the allocations, kernels and products that it ends in.

The arrays are small, so that a device is done before the host: what is timed is the issue of calls, and the device is
waited for between laps of them, outside the clock. A CUDA driver without a device will do, which takes every call and
computes nothing: all but the driver's own share of the time is the same. By hand are kernels that were compiled before,
and cuBLAS with arguments that were made before; where a device computes, they must give what xconv gives.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .contenders import MissingError
from .devices import usable_cupy
from .text import markdown, number
from .worker import timed

WAYS = ("by hand", "function")
#: Calls between which the device is not waited for: fewer launches than it has room to keep.
LAP = 200
#: One image of 4 channels, 20 filters of 3x3, padding 1: channels, filters, the images' side. The kernels are for this.
C, F, SIDE = 4, 20, 10
#: Pixels of a plane, and elements of a column.
P, K = SIDE**2, 9 * C
IMAGE, IMAGE_LAST, FILTERS = (1, C, SIDE, SIDE), (1, SIDE, SIDE, C), (F, C, 3, 3)
RESULT, RESULT_LAST, COLUMNS = (1, F, SIDE, SIDE), (1, SIDE, SIDE, F), (1, C, 3, 3, SIDE, SIDE)
IMPLICIT = "implicit, TF32, channels last"
#: Largest difference between the two ways, relative to the largest element: that of TF32.
TOLERANCE = 1e-2
THREADS = 128

TEXT = """
#define C 4
#define S 10
#define O 20
__device__ float seen(const float* x, int step, int h, int w, int tap) {
    h += tap / 3 - 1; w += tap % 3 - 1;
    return h < 0 || h >= S || w < 0 || w >= S ? 0 : x[(h * S + w) * step];
}
extern "C" __global__ void im2col(const float* x, float* cols) {  // c h w; c tap h w
    int i = blockIdx.x * blockDim.x + threadIdx.x, w = i % S, h = i / S % S, tap = i / (S * S) % 9, c = i / (9 * S * S);
    if (c < C) cols[i] = seen(x + c * S * S, 1, h, w, tap);
}
extern "C" __global__ void im2col_last(const float* x, float* cols) {  // h w c; h w tap c
    int i = blockIdx.x * blockDim.x + threadIdx.x, c = i % C, tap = i / C % 9, w = i / (9 * C) % S, h = i / (9 * C * S);
    if (h < S) cols[i] = seen(x + c, C, h, w, tap);
}
extern "C" __global__ void col2im(const float* cols, float* x) {  // c tap h w; c h w
    int i = blockIdx.x * blockDim.x + threadIdx.x, w = i % S, h = i / S % S, c = i / (S * S);
    if (c >= C) return;
    float sum = 0;
    for (int tap = 0; tap < 9; ++tap) sum += seen(cols + (c * 9 + tap) * S * S, 1, h, w, 8 - tap);
    x[i] = sum;
}
extern "C" __global__ void depthwise(const float* x, const float* f, float* y) {  // c h w; c tap; c h w
    int i = blockIdx.x * blockDim.x + threadIdx.x, w = i % S, h = i / S % S, c = i / (S * S);
    if (c >= C) return;
    float sum = 0;
    for (int tap = 0; tap < 9; ++tap) sum += f[c * 9 + tap] * seen(x + c * S * S, 1, h, w, tap);
    y[i] = sum;
}
extern "C" __global__ void channels_behind(const float* f, float* u) {  // o c tap; o tap c
    int i = blockIdx.x * blockDim.x + threadIdx.x, c = i % C, tap = i / C % 9, o = i / (9 * C);
    if (o < O) u[i] = f[(o * C + c) * 9 + tap];
}
extern "C" __global__ void direct(const float* x, const float* u, float* y) {  // h w c; o tap c; h w o
    int i = blockIdx.x * blockDim.x + threadIdx.x, o = i % O, w = i / O % S, h = i / (O * S);
    if (h >= S) return;
    float sum = 0;
    for (int tap = 0; tap < 9; ++tap)
        for (int c = 0; c < C; ++c) sum += u[(o * 9 + tap) * C + c] * seen(x + c, C, h, w, tap);
    y[i] = sum;
}
"""


class Row(NamedTuple):
    """A call by xconv, and by hand."""

    function: Callable[[], Any]
    by_hand: Callable[[], Any]
    precision: str = "ieee"


class Product:
    """``out = a @ b`` by cuBLAS, of matrices that lie row by row, or whose transposed ones do."""

    def __init__(
        self, rows: int, depth: int, columns: int, *, a_transposed: bool = False, b_transposed: bool = False
    ) -> None:
        import cupy
        from cupy_backends.cuda.libs import cublas

        self.cublas, self.handle = cublas, cupy.cuda.device.get_cublas_handle
        operation = {False: cublas.CUBLAS_OP_N, True: cublas.CUBLAS_OP_T}
        self.one, self.zero = np.ones((), np.float32), np.zeros((), np.float32)
        kind = cupy.cuda.runtime.CUDA_R_32F
        # cuBLAS knows matrices column by column, where each of ours is its own transpose: out.T = b.T @ a.T
        self.head = (operation[b_transposed], operation[a_transposed], columns, rows, depth, self.one.ctypes.data)
        self.b = (kind, depth if b_transposed else columns, 0)
        self.a = (kind, rows if a_transposed else depth, 0)
        self.out = (kind, columns, 0, 1, cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT)
        self.start = self.zero.ctypes.data

    def __call__(self, a: Any, b: Any, out: Any) -> None:
        self.cublas.gemmStridedBatchedEx(
            self.handle(), *self.head, b.data.ptr, *self.b, a.data.ptr, *self.a, self.start, out.data.ptr, *self.out
        )


class ByHand:
    """The operands, and what each call on them ends in."""

    def __init__(self, cupy: Any) -> None:
        self.cupy, module, rng = cupy, cupy.RawModule(code=TEXT), np.random.default_rng(0)

        def drawn(*shape: int) -> Any:
            return cupy.asarray(rng.standard_normal(shape, dtype=np.float32))

        def kernel(name: str, size: int) -> Callable[..., None]:
            return partial(module.get_function(name), (-(-size // THREADS),), (THREADS,))

        self.x, self.w, self.dy, self.cols = drawn(*IMAGE), drawn(*FILTERS), drawn(*RESULT), drawn(*COLUMNS)
        self.x_last, self.w_single, self.w_each = drawn(*IMAGE_LAST), drawn(F, C, 1, 1), drawn(C, 1, 3, 3)
        self.unfold, self.unfold_last = kernel("im2col", K * P), kernel("im2col_last", K * P)
        self.fold, self.pack = kernel("col2im", C * P), kernel("channels_behind", F * K)
        self.slide, self.direct = kernel("depthwise", C * P), kernel("direct", F * P)
        self.filtered, self.mixed = Product(F, K, P), Product(F, C, P)
        self.filtered_last = Product(P, K, F, b_transposed=True)
        self.spread, self.gathered = Product(K, F, P, a_transposed=True), Product(F, P, K, b_transposed=True)

    def empty(self, *shape: int) -> Any:
        return self.cupy.empty(shape, np.float32)

    def im2col(self) -> Any:
        cols = self.empty(*COLUMNS)
        self.unfold((self.x, cols))
        return cols

    def col2im(self, cols: Any = None) -> Any:
        x = self.empty(*IMAGE)
        self.fold((self.cols if cols is None else cols, x))
        return x

    def forward(self) -> Any:
        cols, y = self.im2col(), self.empty(*RESULT)
        self.filtered(self.w, cols, y)
        return y

    def forward_last(self) -> Any:
        u, cols, y = self.empty(F, 3, 3, C), self.empty(P, K), self.empty(*RESULT_LAST)
        self.pack((self.w, u))
        self.unfold_last((self.x_last, cols))
        self.filtered_last(cols, u, y)
        return y

    def input_gradient(self) -> Any:
        cols = self.empty(*COLUMNS)
        self.spread(self.w, self.dy, cols)
        return self.col2im(cols)

    def weight_gradient(self) -> Any:
        cols, dw = self.im2col(), self.empty(*FILTERS)
        self.gathered(self.dy, cols, dw)
        return dw

    def pointwise(self) -> Any:
        y = self.empty(*RESULT)
        self.mixed(self.w_single, self.x, y)
        return y

    def depthwise(self) -> Any:
        y = self.empty(*IMAGE)
        self.slide((self.x, self.w_each, y))
        return y

    def implicit(self) -> Any:
        u, y = self.empty(F, 3, 3, C), self.empty(*RESULT_LAST)
        self.pack((self.w, u))
        self.direct((self.x_last, u, y))
        return y


def rows(cupy: Any) -> dict[str, Row]:
    """Every call that is timed on CuPy arrays."""
    import xconv

    hand = ByHand(cupy)
    x, w, dy, last = hand.x, hand.w, hand.dy, {"layout": "channels_last"}
    conv = partial(xconv.conv, padding=1)
    input_grad, weight_grad = partial(xconv.conv_input_grad, padding=1), partial(xconv.conv_weight_grad, padding=1)
    return {
        "forward by gemm": Row(partial(conv, x, w, algorithm="gemm"), hand.forward),
        "the same, channels last": Row(partial(conv, hand.x_last, w, algorithm="gemm", **last), hand.forward_last),
        "input gradient by gemm": Row(partial(input_grad, dy, w, IMAGE, algorithm="gemm"), hand.input_gradient),
        "weight gradient by gemm": Row(partial(weight_grad, dy, x, FILTERS, algorithm="gemm"), hand.weight_gradient),
        "pointwise": Row(partial(xconv.conv, x, hand.w_single, algorithm="pointwise"), hand.pointwise),
        "depthwise": Row(partial(conv, x, hand.w_each, groups=C, algorithm="depthwise"), hand.depthwise),
        IMPLICIT: Row(partial(conv, hand.x_last, w, algorithm="implicit", **last), hand.implicit, precision="tf32"),
        "im2col": Row(partial(xconv.im2col, x, 3, padding=1), hand.im2col),
        "col2im": Row(partial(xconv.col2im, hand.cols, SIDE, padding=1), hand.col2im),
    }


class Launches:
    """All calls, in a process of their own, with calls on NumPy arrays beside them for scale."""

    def __init__(self, numpy: dict[str, Row]) -> None:
        self.rows = numpy
        self.requests: dict[str, Callable[..., Any]] = {"start": self.start, "time": self.time}

    def start(self) -> dict[str, Any]:
        """Find a device, or a driver, and the calls that it serves; the answer says what it is, or what is missing."""
        try:
            cupy = usable_cupy()
        except ImportError as error:
            return {"missing": f"CuPy cannot be imported: {error}"}
        except MissingError as error:
            return {"missing": str(error)}
        self.wait = cupy.cuda.Device().synchronize
        computes = does_compute(cupy)
        for name, row in rows(cupy).items():
            with suppress(ValueError):  # the device is too old for it
                self._check(name, row, computes=computes)
                self.rows[name] = row
        device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        return {"device": device, "computes": computes, "cupy": cupy.__version__, "rows": list(self.rows)}

    def _check(self, name: str, row: Row, *, computes: bool) -> None:
        """Call both ways once, and compare what they give where there is something to compare."""
        import xconv

        with xconv.config(precision=row.precision):
            found, wanted = row.function(), row.by_hand()
        if computes:
            error = float(abs(found - wanted).max() / abs(wanted).max())
            if not error <= TOLERANCE:
                msg = f"{name}: what is computed by hand differs by {error:.1e} of its largest element"
                raise ArithmeticError(msg)

    def time(self, operation: str, way: str, calls: int) -> list[int]:
        """Nanoseconds of each of some calls, after a lap that is not counted."""
        import xconv

        row = self.rows[operation]
        call = row.function if way == "function" else row.by_hand
        samples = []
        with xconv.config(precision=row.precision):
            for lap in range(1 + calls // LAP):
                found = timed(call, LAP)
                self.wait()
                samples += found if lap else []
        return samples


def does_compute(cupy: Any) -> bool:
    """Whether kernels do anything: those of a driver without a device do not."""
    numbers = np.arange(1, 1000)
    return bool(((cupy.asarray(numbers) * 3).get() == numbers * 3).all())


def table(found: dict[str, Any]) -> str:
    """The calls on CuPy arrays as Markdown."""
    medians = {(r["operation"], r["contender"]): 1e6 * r["median"] for r in found["results"]}
    lines = []
    for operation in found["rows"]:
        hand, function = (medians[operation, way] for way in WAYS)
        lines.append([operation, *map(number, (hand, function, function - hand))])
    driver = "a CUDA driver without a device: its kernels compute nothing, and what a real driver takes is missing"
    what = "a GPU" if found["computes"] else driver
    return f"""## On CuPy arrays

The time in which the host issues a call; 1x4x10x10 images and 20 filters of 3x3 where nothing else is said. By hand are
the allocations, kernels and cuBLAS products that a call ends in. The first row is on NumPy arrays, in the same process.

- {found["device"]}: {what}; CuPy {found["cupy"]}

{markdown(["operation", "by hand µs", "function µs", "overhead µs"], lines, left=1)}
"""
