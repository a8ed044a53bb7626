"""The bridge to JAX, against JAX's own differentiation. For --backend=jax64."""

import importlib
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from bridges import CASES, ROUNDING, calls, shapes
from libraries import Backend

import xconv

#: Every compilation takes its time: complex numbers are tried where something is conjugated or transposed.
COMPLEX = ("2d-all", "wrap", "transpose-all")
CHOICES = [*((name, False) for name in CASES), *((name, True) for name in COMPLEX)]


@pytest.fixture(autouse=True)
def library(request):
    """The library with float64; its absence is an error where it was asked for."""
    if Backend.JAX64 not in (request.config.getoption("backend") or ()):
        pytest.skip("runs with --backend=jax64")
    library = Backend.JAX64.library()
    with library.active():
        yield library


@pytest.fixture
def jax(library):
    return importlib.import_module("jax")


@pytest.fixture
def bridge(library):
    return importlib.import_module("xconv.interop.jax")


@pytest.fixture
def integers(jax, library, rng, exact):
    """Makes arrays of small integers in float64 or complex128: sums of their products are exact in any order."""

    def make(*shapes, is_complex=False):
        real = [library.array(rng.integers(-3, 4, shape).astype(float)) for shape in shapes]
        return [jax.lax.complex(a, a[..., ::-1]) for a in real] if is_complex else real

    return make


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.array_equal(np.asarray(one), np.asarray(other))


def derivatives(jax, function, operands, dy, seeds):
    """The result, its gradients, and the gradients of those and of `dy`, compiled."""

    def gradients(*operands_and_dy):
        *operands, dy = operands_and_dy
        return jax.vjp(function, *operands)[1](dy)

    @jax.jit
    def compute(operands, dy, seeds):
        first, pull_back = jax.vjp(gradients, *operands, dy)
        (dx, dw, *rest) = first
        second = pull_back((*seeds, *(jax.numpy.ones_like(a) for a in rest)))
        return function(*operands), dx, dw, *rest, *second

    return compute(tuple(operands), dy, tuple(seeds))


@pytest.mark.parametrize(("name", "is_complex"), CHOICES)
def test_first_and_second_derivatives(jax, bridge, integers, name, is_complex):
    """Those of `xconv.conv` operation by operation, which do not conjugate."""
    function, _, _, options = case = CASES[name]
    x_shape, w_shape, b_shape, y_shape = shapes(case)
    x, v, w, u, b, dy = integers(x_shape, x_shape, w_shape, w_shape, b_shape, y_shape, is_complex=is_complex)
    ours, theirs = (
        derivatives(jax, partial(getattr(module, function), **options), (x, w, b), dy, (v, u))
        for module in (bridge, xconv)
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_against_lax(jax, bridge, integers, is_complex):
    stride, padding, dilation, groups = (2, 1), ((1, 2), (0, 1)), (1, 2), 2
    x, v, w, u, b = integers(*[(2, 4, 6, 7)] * 2, *[(4, 2, 3, 2)] * 2, (4,), is_complex=is_complex)

    def theirs(x, w, b):
        y = jax.lax.conv_general_dilated(x, w, stride, padding, rhs_dilation=dilation, feature_group_count=groups)
        return y + b[:, None, None]

    ours = partial(bridge.conv, stride=stride, padding=padding, dilation=dilation, groups=groups)
    (dy,) = integers(jax.eval_shape(theirs, x, w, b).shape, is_complex=is_complex)
    assert_same(*(derivatives(jax, f, (x, w, b), dy, (v, u)) for f in (ours, theirs)))


def test_filters_as_lax_has_them(jax, bridge, integers):
    """With images (n, h, w, c), and filters (h, w, i, o)."""
    x, w = integers((2, 6, 7, 4), (3, 2, 2, 6))
    names = ("NHWC", "HWIO", "NHWC")

    def theirs(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 1), ((1, 2), (0, 1)), dimension_numbers=names, feature_group_count=2
        )

    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "groups": 2}
    options |= {"layout": "channels_last", "w_layout": "...io"}
    (dy,) = integers(jax.eval_shape(theirs, x, w).shape)

    def gradients(function):
        y, pull_back = jax.vjp(function, x, w)
        return y, *pull_back(dy)

    expected = gradients(theirs)
    for function in (bridge.conv, xconv.conv):
        assert_same(gradients(jax.jit(partial(function, **options))), expected)


@pytest.mark.parametrize("name", ROUNDING)
def test_numerical_derivatives(jax, bridge, name):
    from jax.test_util import check_grads

    function, _, _, options = case = ROUNDING[name]
    keys = jax.random.split(jax.random.key(1), 3)
    operands = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes(case)[:3], strict=True)]
    check_grads(jax.jit(partial(getattr(bridge, function), **options)), operands, order=2, modes=["rev"])


def test_the_explicit_gradients_are_called(jax, bridge, integers, monkeypatch):
    """Without jit, under it, and for second derivatives."""
    seen = calls(monkeypatch)
    x, w = integers((1, 2, 5), (3, 2, 3))
    names = ["conv", "conv_input_grad", "conv_weight_grad"]
    for transform in (lambda f: f, jax.jit):
        gradients = transform(jax.grad(lambda x, w: bridge.conv(x, w).sum(), argnums=(0, 1)))
        gradients(x, w)
        assert [name for name, *_ in seen] == names
        seen.clear()
    jax.grad(lambda x: jax.grad(lambda w: bridge.conv(x, w).sum())(w).sum())(x)
    assert {name for name, *_ in seen} == set(names)


@pytest.mark.parametrize("function", ["conv", "conv_transpose"])
def test_nothing_but_the_operands_is_kept(jax, bridge, function):
    x, w, b = (jax.numpy.ones(shape) for shape in ((1, 2, 9, 9), (2, 2, 3, 3), (2,)))
    _, pull_back = jax.vjp(partial(getattr(bridge, function), padding=1), x, w, b)
    kept = [a.shape for a in jax.tree_util.tree_leaves(pull_back)]
    assert set(kept) <= {a.shape for a in (x, w, b)}


def test_settings_hold_for_the_gradients(jax, bridge, integers, monkeypatch):
    """Also where those are taken outside of the block."""
    seen = calls(monkeypatch)
    x, w = integers((1, 2, 5), (3, 2, 3))
    with xconv.config(numerics="strict", workspace=50_000):
        y, pull_back = jax.vjp(bridge.conv, x, w)
    pull_back(y)
    assert [(s.numerics, s.workspace) for _, s, _ in seen] == [("strict", 50_000)] * 3


@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "complex64", "float32"),
        ("complex64", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "float32", "float64"),
    ],
)
def test_mixed_dtypes(jax, bridge, dtypes):
    """Every gradient has the dtype of what it is the gradient of, and so have its gradients."""
    operands = [jax.numpy.ones(s, dtype) for s, dtype in zip(((1, 2, 5), (3, 2, 3), (3,)), dtypes, strict=True)]
    dy = jax.numpy.ones_like(xconv.conv(*operands))
    seeds = [a + 1 for a in operands[:2]]
    assert_same(*(derivatives(jax, f, operands, dy, seeds) for f in (bridge.conv, xconv.conv)))


def test_integers_are_no_obstacle(jax, bridge):
    """What is convolved in integers has no gradient, and does not disturb those around it."""
    w = jax.numpy.ones((1, 1, 2), int)
    x = jax.numpy.arange(5.0).reshape(1, 1, 5)
    dx = jax.grad(lambda x: (bridge.conv(x.astype(int), w).sum() * x).sum())(x)
    assert dx.tolist() == [[[16.0] * 5]]


def test_vmap(jax, bridge, integers):
    """Over every operand, and gradients per image."""
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "groups": 2}
    xs, ws, bs = integers((2, 2, 4, 5, 6), (2, 6, 2, 3, 2), (2, 6))

    def loss(function, w, x):
        return jax.numpy.sum(function(x[None], w, **options) ** 2)

    def everything(function, xs, ws, bs):
        convolution = partial(function, **options)
        return (
            jax.vmap(convolution, in_axes=(0, None, None))(xs, ws[0], bs[0]),
            jax.vmap(convolution, in_axes=(None, 0, None))(xs[0], ws, bs[0]),
            jax.vmap(convolution)(xs, ws, bs),
            jax.vmap(jax.grad(partial(loss, function)), in_axes=(None, 0))(ws[0], xs[0]),
        )

    assert_same(*(jax.jit(partial(everything, f))(xs, ws, bs) for f in (bridge.conv, xconv.conv)))


def test_many_tiles(jax, bridge, integers):
    """Loops where they are compiled, and calls where not."""
    x, w = integers((1, 2, 80), (3, 2, 3))

    gradients = jax.value_and_grad(lambda *a: (bridge.conv(*a) ** 2).sum(), (0, 1))
    y, (value, whole) = bridge.conv(x, w), jax.jit(lambda *a: gradients(*a))(x, w)
    with xconv.config(workspace=3_000):
        assert xconv.plan(x, w).tiles > 8
        found, parts = jax.jit(gradients)(x, w)
        assert_same((bridge.conv(x, w), found, *parts), (y, value, *whole))


def test_constants_of_numpy(jax, bridge, integers):
    x, w, b = integers((1, 2, 6), (3, 2, 3), (3,))
    for module in (bridge, xconv):
        made = jax.jit(lambda x, f=module.conv: f(x, np.asarray(w), np.asarray(b)))(x)
        assert_same([made], [xconv.conv(x, w, b)])


def test_options_are_static(jax, bridge, integers):
    """A compiled function keeps its options, which may be lists; nothing of a trace is kept."""
    x, w = integers((1, 2, 6), (2, 2, 3))
    for stride in ([1], [2]):
        with jax.checking_leaks():
            dx = jax.jit(jax.grad(lambda x, w, stride=stride: bridge.conv(x, w, stride=stride).sum()))(x, w)
        dy = jax.numpy.ones_like(xconv.conv(x, w, stride=stride))
        assert_same([dx], [xconv.conv_input_grad(dy, w, x.shape, stride=stride)])


@pytest.mark.parametrize("name", ["2d-all", "fft"])
def test_second_derivatives_within_a_scan(jax, bridge, name):
    """JAX loses track of an operand where a function with its own derivatives computes constants."""
    function, x_shape, w_shape, options = (CASES | ROUNDING)[name]
    keys = jax.random.split(jax.random.key(1), 2)
    images, w = jax.random.normal(keys[0], (2, *x_shape)), jax.random.normal(keys[1], w_shape)

    def loss(module, images, w):
        def step(scale, x):
            y = getattr(module, function)(x, scale * w, **options)
            return jax.numpy.tanh(y.sum() / 8) + 1, (y**2).sum()

        return sum(part.sum() for part in jax.lax.scan(step, jax.numpy.ones(()), images))

    def second(module):
        first = jax.grad(partial(loss, module), (0, 1))
        return jax.jit(jax.grad(lambda *a: sum((d**2).sum() for d in first(*a)), (0, 1)))(images, w)

    for one, other in zip(second(bridge), second(xconv), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * float(abs(other).max()))


def test_a_record_of_times_is_followed(jax, bridge, integers):
    x, w = integers((1, 8, 20, 20), (8, 8, 3, 3))
    tuning = xconv.Tuning()
    with xconv.config(tuning=tuning, numerics="fast"):
        y, pull_back = jax.vjp(bridge.conv, x, w)
        xconv.conv(x, w)
        assert len(tuning) == 1
        assert_same([jax.jit(bridge.conv)(x, w)], [y])
    assert_same(pull_back(y), (xconv.conv_input_grad(y, w, x.shape), xconv.conv_weight_grad(y, x, w.shape)))


def test_parameters_may_be_of_numpy(jax, bridge):
    x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
    value, dw = jax.value_and_grad(lambda w: bridge.conv(x, w).sum())(w)
    assert (value, dw.tolist()) == (6, [[[3, 3]]])
    assert isinstance(bridge.conv(x, w), jax.Array)
    value, dw = jax.value_and_grad(lambda w: bridge.conv(jax.numpy.asarray(x), w).sum())(w)
    assert (value, dw.tolist()) == (6, [[[3, 3]]])


def test_errors_are_those_of_xconv(jax, bridge):
    x, w = jax.numpy.ones((1, 2, 5)), jax.numpy.ones((3, 2, 3))
    with pytest.raises(ValueError, match="`b` must have one element per output channel"):
        bridge.conv(x, w, jax.numpy.ones(2))
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        bridge.conv(x, w, stride=0)
    with pytest.raises(TypeError, match="output_padding"):
        bridge.conv(x, w, output_padding=1)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from xconv.interop.jax import conv

mesh = Mesh(jax.devices(), ("images",))
split, whole = NamedSharding(mesh, PartitionSpec("images")), NamedSharding(mesh, PartitionSpec())
rng = np.random.default_rng(0)
x, w, b, dy = (jnp.asarray(rng.integers(-3, 4, s), "float32") for s in ((8, 2, 6, 5), (3, 2, 3, 3), (3,), (8, 3, 6, 5)))

@jax.jit
def gradients(x, w, b, dy):
    y, pull_back = jax.vjp(lambda *a: conv(*a, padding=1), x, w, b)
    return y, *pull_back(dy)

def of_a_loss(x, w, b):
    gradients = jax.grad(lambda *a: (conv(x, *a, padding=1) ** 2).sum(), (0, 1))(w, b)
    return [jax.lax.psum(a, "images") for a in gradients]

in_specs = (PartitionSpec("images"), PartitionSpec(), PartitionSpec())
whole_batch = jax.grad(lambda *a: (conv(x, *a, padding=1) ** 2).sum(), (0, 1))(w, b)
mapped = jax.shard_map(of_a_loss, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec())(x, w, b)
for one, other in zip(mapped, whole_batch, strict=True):
    assert np.array_equal(one, len(jax.devices()) * other)  # psum adds up what JAX has added up already

alone = gradients(x, w, b, dy)
placed = [jax.device_put(a, s) for a, s in zip((x, w, b, dy), (split, whole, whole, split))]
results = gradients(*placed)
for one, other in zip(results, alone, strict=True):
    assert np.array_equal(one, other)
compiled = gradients.lower(*placed).compile().as_text()
between = [word for word in ("all-gather(", "all-to-all(", "collective-permute(") if word in compiled]
print(len(jax.devices()), *(tuple(a.sharding.spec) for a in results), *between, "all-reduce(" in compiled)
"""


def test_batch_over_four_devices():
    """Each device convolves its images; only the gradients of filters and bias are summed across devices."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = partial(subprocess.run, capture_output=True, text=True, check=True, env=environment)
    out = run([sys.executable, "-c", SHARDED]).stdout
    assert out == "4 ('images',) ('images',) () () True\n"


@pytest.mark.parametrize("spelled", [str, np.dtype, None], ids=["name", "numpy", "jax"])
@pytest.mark.parametrize(("narrow", "wide"), [("int8", "int64"), ("float32", "float64"), ("complex64", "complex128")])
def test_dtypes_that_jax_has_switched_off(jax, spelled, narrow, wide):
    """They are told from those that it has, with the way to switch them on."""
    dtype = getattr(jax.numpy, wide) if spelled is None else spelled(wide)
    x = jax.numpy.ones((1, 1, 3), narrow)
    assert xconv.conv(x, x, dtype=dtype).dtype == wide
    with jax.enable_x64(False):
        for function in (xconv.conv, xconv.plan, xconv.conv_transpose):
            with pytest.raises(TypeError, match=rf"{wide} is switched off .*update\(\"jax_enable_x64\", True\)"):
                function(x, x, dtype=dtype)
