"""SciPy's correlations and convolutions, one pair of channels at a time, as a second oracle."""

import math

import numpy as np
import pytest

import xconv

ndimage, signal = (pytest.importorskip(f"scipy.{name}") for name in ("ndimage", "signal"))

SIZES = {1: (13,), 2: (9, 8), 3: (6, 5, 7)}
KERNELS = {1: (4,), 2: (3, 4), 3: (3, 2, 4)}
PADS = {1: ((3, 1),), 2: ((0, 2), (1, 0)), 3: ((1, 0), (2, 1), (0, 3))}
#: Our names of the modes, and SciPy's.
FILTER_MODES = [
    ("constant", "constant"),
    ("constant", "grid-constant"),
    ("edge", "nearest"),
    ("reflect", "mirror"),
    ("symmetric", "reflect"),
    ("symmetric", "grid-mirror"),
    ("wrap", "wrap"),
    ("wrap", "grid-wrap"),
]

ranks = pytest.mark.parametrize("rank", [1, 2, 3])
ranks_and_kinds = pytest.mark.parametrize(("rank", "kind"), [(1, "real"), (2, "complex"), (3, "real")])


@pytest.fixture(autouse=True)
def componentwise():
    with xconv.config(numerics="strict"):
        yield


def normal(lib, rng, kind, *shapes):
    """Numbers that the library can hold, in SciPy's precision."""
    if kind == "complex" and not lib.has("complex128"):
        pytest.skip(f"{lib} has no complex128")
    parts = [rng.standard_normal((2, *shape)).astype(lib.real).astype(float) for shape in shapes]
    return [re + 1j * im if kind == "complex" else re for re, im in parts]


def check(lib, actual, reference, a, b, terms):
    """`actual` is ``reference(a, b)`` to within ``terms * eps * reference(|a|, |b|)``, and SciPy's own error."""
    expected = reference(a, b)
    if np.iscomplexobj(expected):
        terms *= 4  # two products in each part of a term, and two parts
    bound = terms * (np.finfo(lib.real).eps + np.finfo(float).eps) * np.real(reference(np.abs(a), np.abs(b)))
    lib.check(actual, expected, dtype="complex128" if np.iscomplexobj(expected) else lib.real, bound=bound)


def pairs(images, filters, combine, groups=1):
    """``combine(image, filter)`` for every output, summed over the channels of its group."""
    f, c = filters.shape[0] // groups, filters.shape[1]
    return np.array(
        [
            [sum(combine(image[o // f * c + i], filters[o, i]) for i in range(c)) for o in range(len(filters))]
            for image in images
        ]
    )


def valid(image, taps):
    """scipy.signal.correlate conjugates its second argument; a convolution does not."""
    return signal.correlate(image, np.conj(taps), mode="valid", method="direct")


def full(image, taps):
    return signal.convolve(image, taps, mode="full", method="direct")


def stuffed(w, dilation):
    zeros = np.zeros((*w.shape[:2], *((k - 1) * dilation + 1 for k in w.shape[2:])), w.dtype)
    zeros[(..., *(slice(None, None, dilation),) * (w.ndim - 2))] = w
    return zeros


@ranks_and_kinds
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
def test_conv(lib, rng, rank, kind, mode):
    x, w = normal(lib, rng, kind, (2, 4, *SIZES[rank]), (6, 2, *KERNELS[rank]))

    def reference(x, w):
        return pairs(np.pad(x, ((0, 0), (0, 0), *PADS[rank]), mode=mode), w, valid, groups=2)

    y = xconv.conv(lib.array(x), lib.array(w), padding=PADS[rank], pad_mode=mode, groups=2)
    check(lib, y, reference, x, w, 2 * math.prod(KERNELS[rank]))


@ranks
@pytest.mark.parametrize(("stride", "dilation"), [(5, 1), (3, 2)])
def test_conv_with_steps(lib, rng, rank, stride, dilation):
    """Every stride-th output, with filters that have zeros between their taps."""
    x, w = normal(lib, rng, "real", (2, 2, *SIZES[rank]), (3, 2, *KERNELS[rank]))

    def reference(x, w):
        every = pairs(np.pad(x, ((0, 0), (0, 0), *((3, 3),) * rank)), stuffed(w, dilation), valid)
        return every[(..., *(slice(None, None, stride),) * rank)]

    y = xconv.conv(lib.array(x), lib.array(w), padding=3, stride=stride, dilation=dilation)
    check(lib, y, reference, x, w, 2 * math.prod(KERNELS[rank]))


@ranks_and_kinds
@pytest.mark.parametrize("padded", [False, True])
def test_input_grad(lib, rng, rank, kind, padded):
    """The full convolution of the gradient and the filters; what fell on the padding is cut off."""
    pads = PADS[rank] if padded else ((0, 0),) * rank
    out = tuple(n + lo + hi - k + 1 for n, (lo, hi), k in zip(SIZES[rank], pads, KERNELS[rank], strict=True))
    dy, w = normal(lib, rng, kind, (2, 4, *out), (4, 3, *KERNELS[rank]))
    kept = tuple(slice(lo, lo + n) for n, (lo, _) in zip(SIZES[rank], pads, strict=True))

    def reference(dy, w):
        return pairs(dy, np.conj(w.swapaxes(0, 1)), full)[(..., *kept)]

    dx = xconv.conv_input_grad(lib.array(dy), lib.array(w), (2, 3, *SIZES[rank]), padding=pads)
    check(lib, dx, reference, dy, w, 4 * math.prod(KERNELS[rank]))


@ranks_and_kinds
def test_weight_grad(lib, rng, rank, kind):
    """The correlation of the input with the gradient, summed over the images."""
    out = tuple(n - k + 1 for n, k in zip(SIZES[rank], KERNELS[rank], strict=True))
    dy, x = normal(lib, rng, kind, (2, 4, *out), (2, 3, *SIZES[rank]))

    def reference(dy, x):
        return pairs(x.swapaxes(0, 1).conj(), dy.swapaxes(0, 1), valid).swapaxes(0, 1)

    dw = xconv.conv_weight_grad(lib.array(dy), lib.array(x), (4, 3, *KERNELS[rank]))
    check(lib, dw, reference, dy, x, 2 * math.prod(out))


@ranks
def test_transpose(lib, rng, rank):
    """The full convolution of the input with zeros between its elements and those of the filters."""
    x, w = normal(lib, rng, "real", (2, 4, *SIZES[rank]), (4, 3, *KERNELS[rank]))

    def reference(x, w):
        return pairs(stuffed(x, 3), stuffed(w, 2).swapaxes(0, 1), full)

    y = xconv.conv_transpose(lib.array(x), lib.array(w), stride=3, dilation=2)
    check(lib, y, reference, x, w, 4 * math.prod(KERNELS[rank]))


@ranks
@pytest.mark.parametrize(("mode", "theirs"), FILTER_MODES)
@pytest.mark.parametrize(("size", "kernel"), [(7, 3), (2, 6)])
def test_image_filters(lib, rng, rank, mode, theirs, size, kernel):
    """scipy.ndimage centres even kernels where "same_lower" does; its borders may be longer than the image."""
    x, w = normal(lib, rng, "real", (1, 1, *(size, 5, 4)[:rank]), (1, 1, *(kernel, 3, 2)[:rank]))

    def reference(x, w):
        return ndimage.correlate(x[0, 0], w[0, 0], mode=theirs)[None, None]

    y = xconv.conv(lib.array(x), lib.array(w), padding="same_lower", pad_mode=mode)
    check(lib, y, reference, x, w, w.size)
