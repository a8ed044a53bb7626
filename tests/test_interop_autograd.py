"""The bridge to HIPS autograd, against what autograd makes of a plain expression. Runs where autograd is installed."""

import itertools

import numpy as np
import pytest
from bridges import CASES, ROUNDING, calls, shapes

import xconv

autograd = pytest.importorskip("autograd")
anp = pytest.importorskip("autograd.numpy")
bridge = pytest.importorskip("xconv.interop.autograd")

pytestmark = [pytest.mark.numpy_only, pytest.mark.usefixtures("exact")]


def plain(x, w, b, stride=1, padding=0, dilation=1, groups=1):
    """A convolution in two dimensions as a sum over its taps."""
    (up, down), (left, right) = padding
    x = anp.pad(x, ((0, 0), (0, 0), (up, down), (left, right)), mode="constant")
    out = [(x.shape[2 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    x, w = (anp.reshape(a, (*a.shape[:at], groups, -1, *a.shape[at + 1 :])) for a, at in ((x, 1), (w, 0)))
    y = 0
    for tap in itertools.product(*map(range, w.shape[3:])):
        rows, columns = (
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, out, stride, strict=True)
        )
        y = y + anp.einsum("ngchw,goc->ngohw", x[..., rows, columns], w[(..., *tap)])
    return anp.reshape(y, (y.shape[0], -1, *out)) + b[:, None, None]


@pytest.fixture
def integers(rng):
    """Makes arrays of small integers in float64 or complex128: sums of their products are exact in any order."""

    def make(*shapes, is_complex=False):
        real = [rng.integers(-6, 7, shape).astype(float) for shape in shapes]
        return [a + 1j * a[..., ::-1] for a in real] if is_complex else real

    return make


def derivatives(function, operands, dy, seeds):
    """The result, its gradients, and the gradients of those and of `dy`."""

    def gradients(*operands_and_dy):
        *operands, dy = operands_and_dy
        return [autograd.make_vjp(function, i)(*operands)[0](dy) for i in range(3)]

    def pull_back(i, at):
        return autograd.make_vjp(lambda *a: gradients(*a)[i], at)(*operands, dy)[0](seeds[i])

    second = [pull_back(i, at) for i in range(2) for at in {0, 1, 3} - {i}]
    return [function(*operands), *gradients(*operands, dy), *second]


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert type(one) is type(other) is np.ndarray
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_against_a_plain_expression(integers, is_complex):
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2}
    x, v, w, u, b = integers(*[(2, 4, 6, 7)] * 2, *[(4, 2, 3, 2)] * 2, (4,), is_complex=is_complex)
    (dy,) = integers(xconv.conv(x, w, **options).shape, is_complex=is_complex)
    assert_same(*(derivatives(lambda *a, f=f: f(*a, **options), (x, w, b), dy, (v, u)) for f in (bridge.conv, plain)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_products_are_derivatives_of_one_another(integers, case, is_complex):
    """With ``T = sum(dy * conv(x, w))``, and v and u for x and w: every derivative is T with some of them exchanged.

    What the value of a padding adds to T does not depend on x.
    """
    name, _, _, options = case
    x_shape, w_shape, b_shape, y_shape = shapes(case)
    x, v, w, u, b, dy = integers(x_shape, x_shape, w_shape, w_shape, b_shape, y_shape, is_complex=is_complex)

    def function(*operands):
        return getattr(bridge, name)(*operands, **options)

    def linear(x, w):
        return function(x, w, 0 * b) - function(0 * x, w, 0 * b)

    def paired(p, q):
        return np.sum(p * q)

    y, dx, dw, db, *second = derivatives(function, (x, w, b), dy, (v, u))
    assert_same([y], [getattr(xconv, name)(x, w, b, **options)])
    assert [a.shape for a in (dx, dw, db)] == [x.shape, w.shape, b.shape]
    without = function(x, w, 0 * b)
    assert paired(dw, w) == paired(dy, without)
    assert paired(dx, x) == paired(dy, linear(x, w))
    assert paired(db, b) == paired(dy, y - without)
    dx_w, dx_dy, dw_x, dw_dy = second
    assert_same([dx_dy, dw_dy], [linear(v, w), function(x, u, 0 * b)])
    assert paired(dx_w, u) == paired(dy, linear(v, u)) == paired(dw_x, v)


@pytest.mark.parametrize("name", ["2d-all", "value", "wrap", "last", "transpose-all", *ROUNDING])
def test_numerical_derivatives(rng, name):
    from autograd.test_util import check_grads

    function, _, _, options = case = (CASES | ROUNDING)[name]
    np.random.seed(1)  # noqa: NPY002, autograd draws directions
    operands = [rng.standard_normal(shape) for shape in shapes(case)[:3]]
    check_grads(lambda *a: getattr(bridge, function)(*a, **options), modes=["rev"], order=2)(*operands)


def test_hessian(integers):
    x, w = integers((1, 1, 4), (2, 1, 2))
    hessian = autograd.hessian(lambda w: anp.sum(bridge.conv(x, w) ** 2) / 2)(w)
    cols = xconv.im2col(x, 2)[0, 0]
    assert np.array_equal(hessian[:, 0, :, :, 0], np.einsum("ij,kt,lt->ikjl", np.eye(2), cols, cols))


def test_only_what_is_needed(integers, monkeypatch):
    x, w, b = integers((1, 2, 5), (3, 2, 3), (3,))
    seen = calls(monkeypatch)
    for at, names in enumerate((["conv", "conv_input_grad"], ["conv", "conv_weight_grad"], ["conv"])):
        autograd.grad(lambda *a: anp.sum(bridge.conv(*a)), at)(x, w, b)
        assert [name for name, *_ in seen] == names
        seen.clear()


def test_settings_hold_for_the_gradients(integers, monkeypatch):
    """Also where those are taken outside of the block."""
    seen = calls(monkeypatch)
    x, w = integers((1, 2, 5), (3, 2, 3))
    with xconv.config(numerics="strict", workspace=50_000):
        pull_back, y = autograd.make_vjp(lambda w: bridge.conv(x, w))(w)
    pull_back(y)
    assert [(s.numerics, s.workspace) for _, s, _ in seen] == [("strict", 50_000)] * 2


@pytest.mark.parametrize(
    "dtypes", [("f4", "c8", "f4"), ("c8", "f4", "f4"), ("f2", "f4", "f2"), ("f4", "f4", "f8")], ids="-".join
)
def test_mixed_dtypes(dtypes):
    """Every gradient has the dtype of what it is the gradient of, and so have its gradients."""
    operands = [np.ones(s, dtype) for s, dtype in zip(((1, 2, 5), (3, 2, 3), (3,)), dtypes, strict=True)]
    x, w, b = operands
    dy = np.ones_like(xconv.conv(x, w, b))
    y, dx, dw, db, dx_w, dx_dy, dw_x, dw_dy = derivatives(bridge.conv, operands, dy, (x, w))
    expected = (dy, x, w, b, w, dy, x, dy)
    assert [a.dtype for a in (y, dx, dw, db, dx_w, dx_dy, dw_x, dw_dy)] == [a.dtype for a in expected]
    assert np.array_equal(dx[0, 0], [3, 6, 9, 6, 3])
    assert np.all(dw == 3)
    assert np.all(db == 3)


def test_errors_are_those_of_xconv(integers):
    x, w = integers((1, 2, 5), (3, 2, 3))
    with pytest.raises(ValueError, match="`b` must have one element per output channel"):
        bridge.conv(x, w, np.ones(2))
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        autograd.grad(lambda x: anp.sum(bridge.conv(x, w, stride=0)))(x)
    with pytest.raises(TypeError, match="output_padding"):
        bridge.conv(x, w, output_padding=1)
