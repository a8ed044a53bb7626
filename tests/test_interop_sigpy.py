"""The functions that stand in for sigpy's convolutions, against sigpy's own. Runs where sigpy is installed."""

import importlib
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import sigpy_conv
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that sigpy looks for
    sigpy = pytest.importorskip("sigpy")
    importlib.import_module("sigpy.mri")

NAMES = ("convolve", "convolve_data_adjoint", "convolve_filter_adjoint")

pytestmark = [pytest.mark.numpy_only, pytest.mark.usefixtures("exact")]


@st.composite
def problems(draw):
    """Data, filters and an output of small complex integers, or real ones, and sigpy's options."""
    axes = draw(st.integers(1, 3))
    multi_channel, mode = draw(st.booleans()), draw(st.sampled_from(["full", "valid"]))

    def sizes(low, high, count=axes):
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    kernel = sizes(1, 4)
    size = tuple(draw(st.integers(taps if mode == "valid" else 1, 6)) for taps in kernel)
    strides = draw(st.none() | st.tuples(*[st.integers(1, 3)] * axes))
    batch, (c_in, c_out) = sizes(1, 3, draw(st.integers(0, 2))), sizes(1, 3, 2)
    data = (*batch, *[c_in] * multi_channel, *size)
    filt = (c_out, c_in, *kernel) if multi_channel else kernel
    edges = [taps - 1 if mode == "full" else 1 - taps for taps in kernel]
    out = [-(-(m + edge) // s) for m, edge, s in zip(size, edges, strides or (1,) * axes, strict=True)]
    output = (*batch, *[c_out] * multi_channel, *out)
    dtype = np.dtype(draw(st.sampled_from(["float32", "float64", "complex64", "complex128"])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def integers(shape):
        values = rng.integers(-4, 5, (2, *shape))
        return (values[0] + 1j * values[1] if dtype.kind == "c" else values[0]).astype(dtype)

    return *map(integers, (data, filt, output)), {"mode": mode, "strides": strides, "multi_channel": multi_channel}


def calls(functions, data, filt, output, options):
    """What the three functions of a module make of a problem."""
    arguments = ((data, filt), (output, filt, data.shape), (output, data, filt.shape))
    return [getattr(functions, name)(*a, **options) for name, a in zip(NAMES, arguments, strict=True)]


@settings(max_examples=100)
@given(problems())
def test_sigpys_own(problem):
    data, *_ = problem
    for ours, theirs in zip(calls(sigpy_conv, *problem), calls(sigpy.conv, *problem), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.dtype == data.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-4)  # SciPy may take Fourier transforms


@contextmanager
def installed():
    """The three functions in the place of sigpy's; yields the names of those that are called."""
    seen = set()

    def spied(name):
        def spy(*args, **options):
            seen.add(name)
            return getattr(sigpy_conv, name)(*args, **options)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(sigpy.conv, name, spied(name))
        yield seen


@settings(max_examples=30)
@given(problems())
def test_linear_operators(problem):
    """Sigpy's operators are adjoint to each other, without rounding."""
    data, filt, output, options = problem
    with installed() as seen:
        for operator, x in (
            (sigpy.linop.ConvolveData(data.shape, filt, **options), data),
            (sigpy.linop.ConvolveFilter(filt.shape, data, **options), filt),
        ):
            assert tuple(operator.oshape) == output.shape
            assert np.vdot(output, operator * x) == np.vdot(operator.H * output, x)
            assert np.all(operator.H.H * x == operator * x)
    assert seen == set(NAMES)


@pytest.mark.filterwarnings("default")  # of sigpy itself
def test_sensitivities(rng):
    """An application of sigpy's, the joint estimation of image and coils, finds what it finds without xconv."""
    kspace = rng.normal(size=(3, 16, 18)) + 1j * rng.normal(size=(3, 16, 18))

    def estimate():
        options = {"mps_ker_width": 5, "ksp_calib_width": 12, "max_iter": 3, "max_inner_iter": 3, "show_pbar": False}
        return sigpy.mri.app.JsenseRecon(kspace.astype(np.complex64), **options).run()

    expected = estimate()
    with installed() as seen:
        actual = estimate()
    assert seen == set(NAMES)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, atol=1e-4)
