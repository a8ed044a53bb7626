"""Convolution by its definition: plain loops over outputs and taps, in float64 (or complex128) on NumPy."""

from itertools import product

import numpy as np

import xconv


def pairs(padding, rank):
    """`padding` as one (lo, hi) pair per axis."""
    entries = padding if isinstance(padding, tuple) else (padding,) * rank
    return [e if isinstance(e, tuple) else (e, e) for e in entries]


def each(value, rank):
    return value if isinstance(value, tuple) else (value,) * rank


def _sources(size, lo, hi, mode):
    """For every position of a padded axis, the element that it reads, or -1 for the value of a constant padding."""
    grow = (max(lo, 0), max(hi, 0))
    if mode == "constant":
        numbers = np.pad(np.arange(size), grow, constant_values=-1)
    else:
        numbers = np.pad(np.arange(size), grow, mode=mode)
    return numbers[max(-lo, 0) : len(numbers) - max(-hi, 0)]


W_LAYOUTS = ("oi...", "io...", "o...i", "i...o", "...oi", "...io")


def in_w_layout(w, w_layout):
    """Filters (c_out, c_in / groups, *kernel) in another order of their axes."""
    kernel = "abcdef"[: w.ndim - 2]
    return np.ascontiguousarray(np.einsum(f"oi{kernel}->{w_layout.replace('...', kernel)}", w))


class Oracle:
    """One convolution: `conv` and its two adjoints, from the same list of which input meets which tap where."""

    def __init__(
        self, x_shape, w_shape, *, stride=1, padding=0, dilation=1, groups=1, pad_mode="constant", pad_value=0
    ):
        self.x_shape, self.w_shape, self.groups, self.pad_value = x_shape, w_shape, groups, pad_value
        rank = len(x_shape) - 2
        strides, dilations = each(stride, rank), each(dilation, rank)
        sources = [
            _sources(size, lo, hi, pad_mode) for size, (lo, hi) in zip(x_shape[2:], pairs(padding, rank), strict=True)
        ]
        self.kernel = w_shape[2:]
        self.out = tuple(
            (len(s) - d * (k - 1) - 1) // step + 1
            for s, k, step, d in zip(sources, self.kernel, strides, dilations, strict=True)
        )
        self.y_shape = (x_shape[0], w_shape[0], *self.out)
        self.meetings, self.with_value = [], []
        for o in product(*map(range, self.out)):
            for t in product(*map(range, self.kernel)):
                p = [s[a * step + b * d] for s, a, b, step, d in zip(sources, o, t, strides, dilations, strict=True)]
                if min(p) >= 0:
                    self.meetings.append(((..., *o), (..., *t), (..., *p)))
                elif pad_value:
                    self.with_value.append(((..., *o), (..., *t)))

    def conv(self, x, w):
        wide = np.result_type(x, w, np.float64)
        y = np.zeros(self.y_shape, wide)
        for (cin, cout), (o, t, p) in product(self._channels(), self.meetings):
            y[:, cout][o] += x[:, cin][p].astype(wide) @ w[cout][t].astype(wide).T
        for (_, cout), (o, t) in product(self._channels(), self.with_value):
            y[:, cout][o] += self.pad_value * w[cout][t].astype(wide).sum(axis=1)
        return y

    def input_grad(self, dy, w):
        wide = np.result_type(dy, w, np.float64)
        dx = np.zeros(self.x_shape, wide)
        for (cin, cout), (o, t, p) in product(self._channels(), self.meetings):
            dx[:, cin][p] += dy[:, cout][o].astype(wide) @ w[cout][t].astype(wide).conj()
        return dx

    def weight_grad(self, dy, x):
        wide = np.result_type(dy, x, np.float64)
        dw = np.zeros(self.w_shape, wide)
        for (cin, cout), (o, t, p) in product(self._channels(), self.meetings):
            dw[cout][t] += dy[:, cout][o].astype(wide).T @ x[:, cin][p].astype(wide).conj()
        for (_, cout), (o, t) in product(self._channels(), self.with_value):
            dw[cout][t] += np.conj(self.pad_value) * dy[:, cout][o].astype(wide).sum(axis=0)[:, None]
        return dw

    def im2col(self, x):
        cols = np.zeros((*x.shape[:2], *self.kernel, *self.out), x.dtype)
        for o, t, p in self.meetings:
            cols[(..., *t[1:], *o[1:])] = x[p]
        for o, t in self.with_value:
            cols[(..., *t[1:], *o[1:])] = self.pad_value
        return cols

    def col2im(self, cols):
        x = np.zeros(self.x_shape, np.result_type(cols, np.float64))
        for o, t, p in self.meetings:
            x[p] += cols[(..., *t[1:], *o[1:])]
        return x

    def _channels(self):
        c, f = self.x_shape[1] // self.groups, self.w_shape[0] // self.groups
        return [(slice(i * c, (i + 1) * c), slice(i * f, (i + 1) * f)) for i in range(self.groups)]


class Pool(Oracle):
    """The largest element of every window, or its mean, and what comes back from either."""

    def __init__(self, x_shape, kernel, *, stride=None, **options):
        super().__init__(x_shape, (x_shape[1], 1, *kernel), stride=kernel if stride is None else stride, **options)
        self.windows = {o: [] for o in product(*map(range, self.out))}
        for (_, *o), _, p in self.meetings:
            self.windows[tuple(o)].append(p)

    def max(self, x):
        least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        y = np.full(self.y_shape, least, x.dtype)
        for o, window in self.windows.items():
            for p in window:  # of equals, the first stays; a NaN is above all
                y[(..., *o)] = np.where((x[p] > y[(..., *o)]) | np.isnan(x[p]), x[p], y[(..., *o)])
        return y

    def max_grad(self, dy, x):
        dx = np.zeros(self.x_shape, dy.dtype)
        for o, window in self.windows.items():
            first = np.argmax([x[p] for p in window], axis=0) if window else None  # NumPy's rule is the same
            for i, p in enumerate(window):
                dx[p] += np.where(first == i, dy[(..., *o)], 0)
        return dx

    def sizes(self, *, count_include_pad):
        taps = np.prod(self.kernel)
        return np.reshape([taps if count_include_pad else len(w) for w in self.windows.values()], self.out)

    def avg(self, x, *, count_include_pad=True):
        y = np.zeros(self.y_shape, x.dtype)
        for o, window in self.windows.items():
            y[(..., *o)] = sum(x[p] for p in window)
        return y / self.sizes(count_include_pad=count_include_pad)

    def avg_grad(self, dy, *, count_include_pad=True):
        dx, shares = np.zeros(self.x_shape, dy.dtype), dy / self.sizes(count_include_pad=count_include_pad)
        for o, window in self.windows.items():
            for p in window:
                dx[p] += shares[(..., *o)]
        return dx


def check_algorithm(lib, algorithm, case, dtype, *, unit):
    """All three functions by one algorithm against the plain loops, to within `unit` of the terms of their sums.

    The numbers are the whole ones from -7 to 7, complex ones if `dtype` is and the library has such.
    """
    oracle = Oracle(case.x_shape, case.w_shape, **case.options)
    x, w, dy = case.integers(case.x_shape, case.w_shape, oracle.y_shape)
    if dtype == "complex128" and lib.has(dtype):
        x, w, dy = (a + 1j * np.roll(a, 1) for a in (x, w, dy))
    options = {**case.options, "layout": case.layout, "algorithm": algorithm}
    x_, w_, dy_ = lib.array(case.in_layout(x)), lib.array(w), lib.array(case.in_layout(dy))
    shape = case.shape_in_layout(case.x_shape)
    window, outputs = 100 * max(1, w[0].size if w.size else 0), 100 * max(1, dy.size)  # no element is above 10
    for result, expected, scale in (
        (xconv.conv(x_, w_, **options), case.in_layout(oracle.conv(x, w)), window),
        (xconv.conv_input_grad(dy_, w_, shape, **options), case.in_layout(oracle.input_grad(dy, w)), outputs),
        (xconv.conv_weight_grad(dy_, x_, case.w_shape, **options), oracle.weight_grad(dy, x), outputs),
    ):
        lib.check(result, expected, bound=unit[lib.real] * scale)
