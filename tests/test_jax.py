"""JAX: its convolution as a second oracle, and its transformations of xconv's functions. For --backend=jax and jax64.

Whole checks are compiled where that is possible: it costs less than compiling every operation for every shape.
"""

import importlib
import re
from functools import partial

import numpy as np
import pytest
from libraries import Backend

import xconv

pytestmark = pytest.mark.usefixtures("exact")

#: x, w (filters first) and options; and the padding where lax spells it differently.
GEOMETRIES = {
    "1d": ((2, 4, 11), (6, 2, 3), {"stride": 2, "padding": ((3, 1),), "dilation": 2, "groups": 2}, None),
    "2d": (
        (2, 4, 9, 8),
        (6, 2, 3, 2),
        {"stride": (3, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 3), "groups": 2},
        None,
    ),
    "gaps": ((2, 2, 9, 8), (3, 2, 2, 1), {"stride": 3, "padding": ((0, 0), (-1, 2))}, None),
    "depthwise": ((2, 3, 6, 5), (6, 1, 3, 3), {"groups": 3, "padding": "same", "stride": 2}, "SAME"),
    "same-lower": ((1, 2, 6, 5), (2, 2, 4, 3), {"padding": "same_lower", "stride": (1, 2)}, "SAME_LOWER"),
    "pointwise": ((2, 4, 5, 6), (8, 2, 1, 1), {"groups": 2}, "VALID"),
    "3d": ((1, 2, 5, 4, 6), (4, 2, 2, 3, 2), {"stride": (2, 1, 3), "padding": ((1, 0), (1, 1), (0, 2))}, None),
}
#: Options that lax does not have, for one x and w.
OPTIONS = {
    "edge": {"pad_mode": "edge", "padding": ((2, 1), (0, 3)), "groups": 2},
    "reflect": {"pad_mode": "reflect", "padding": ((6, 0), (0, 1)), "stride": 2, "groups": 2},
    "symmetric": {"pad_mode": "symmetric", "padding": ((11, 0), (0, 2)), "stride": (3, 1), "groups": 2},
    "wrap": {"pad_mode": "wrap", "padding": ((0, 1), (2, 7)), "stride": (2, 3), "groups": 2},
    "value": {"pad_value": -3, "padding": ((2, 0), (-1, 4)), "stride": (2, 1), "groups": 2},
    "channels-last": {"layout": "channels_last", "padding": 1, "stride": (1, 2), "groups": 2},
}
X_SHAPE, W_SHAPE = (2, 4, 5, 6), (6, 2, 3, 2)

options_of_xconv = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(params=[Backend.JAX, Backend.JAX64], ids=lambda backend: backend.value, autouse=True)
def library(request):
    """The library without and with float64; its absence is an error where it was asked for."""
    if request.param not in (request.config.getoption("backend") or ()):
        pytest.skip(f"runs with --backend={request.param.value}")
    library = request.param.library()
    with library.active():
        yield library


@pytest.fixture
def jax(library):
    return importlib.import_module(library.backend.module)


@pytest.fixture
def integers(library, rng):
    """Makes arrays of small integers in the widest real dtype: sums of their products are exact in any order."""
    return lambda *shapes: [library.array(rng.integers(-6, 7, shape).astype(library.real)) for shape in shapes]


def assert_equal(actual, expected):
    """The same arrays, or tuples of the same arrays."""
    if isinstance(actual, tuple):
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
        return
    assert type(actual) is type(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert np.array_equal(np.asarray(actual), np.asarray(expected))


def result_of(jax, x, w, options):
    return jax.eval_shape(partial(xconv.conv, **options), x, w).shape


def three(x_shape, w_shape, options):
    """The convolution and its two gradients as one function."""

    def function(x, w, dy):
        return (
            xconv.conv(x, w, **options),
            xconv.conv_input_grad(dy, w, x_shape, **options),
            xconv.conv_weight_grad(dy, x, w_shape, **options),
        )

    return function


def derived(jax, convolution):
    """The same three by JAX's derivatives of a convolution."""

    def function(x, w, dy):
        y, pull_back = jax.vjp(convolution, x, w)
        return y, *pull_back(dy)

    return function


# JAX as an oracle


@pytest.mark.parametrize("name", GEOMETRIES)
def test_equal_to_lax_on_integers(jax, integers, name):
    x_shape, w_shape, options, spelled = GEOMETRIES[name]
    x, w = integers(x_shape, w_shape)
    rank = x.ndim - 2
    stride, dilation = (np.broadcast_to(options.get(key, 1), rank).tolist() for key in ("stride", "dilation"))
    letters = "DHW"[-rank:]

    def convolution(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            stride,
            spelled or options["padding"],
            rhs_dilation=dilation,
            dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"),
            feature_group_count=options.get("groups", 1),
        )

    (dy,) = integers(jax.eval_shape(convolution, x, w).shape)
    theirs = jax.jit(derived(jax, convolution))(x, w, dy)
    assert_equal(jax.jit(three(x_shape, w_shape, options))(x, w, dy), theirs)
    assert_equal(jax.jit(derived(jax, partial(xconv.conv, **options)))(x, w, dy), theirs)
    there = three(x_shape, w_shape, options)(*(np.asarray(a) for a in (x, w, dy)))
    assert all(type(a) is np.ndarray for a in there)
    assert_equal(tuple(jax.numpy.asarray(a) for a in there), theirs)


@pytest.mark.parametrize("stride", [1, 3])
def test_transpose(jax, integers, stride):
    x, w, b = integers((2, 4, 3, 4), (4, 3, 3, 2), (3,))

    @jax.jit
    def theirs(x, w, b):
        names = ("NCHW", "OIHW", "NCHW")
        y = jax.lax.conv_transpose(x, w, (stride, 1), "VALID", dimension_numbers=names, transpose_kernel=True)
        return y + b[:, None, None]

    assert_equal(jax.jit(partial(xconv.conv_transpose, stride=(stride, 1)))(x, w, b), theirs(x, w, b))


def test_float32_within_the_bound(jax, library, rng):
    """|err| <= K * eps * conv(|x|, |w|), against NumPy in float64."""
    options = {"padding": 1, "stride": (2, 1)}
    x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in ((2, 16, 9, 8), (8, 16, 3, 2), (2, 8, 5, 9)))
    with xconv.config(numerics="strict"):
        function = three(x.shape, w.shape, options)
        results = jax.jit(function)(*(library.array(a) for a in (x, w, dy)))
        exact = function(*(a.astype(float) for a in (x, w, dy)))
        scale = function(*(np.abs(a).astype(float) for a in (x, w, dy)))
    for ours, true, size, terms in zip(results, exact, scale, (16 * 6, 8 * 6, 2 * 45), strict=True):
        library.check(ours, true, dtype="float32", bound=terms * (2**-23 + 2**-52) * size)


# Derivatives


@options_of_xconv
def test_derivatives_are_the_gradients(jax, integers, options):
    """Those of the convolution, and those of its gradients, which are again two of the three functions."""
    x_shape = (2, 5, 6, 4) if "layout" in options else X_SHAPE
    x, v, w, u = integers(x_shape, x_shape, W_SHAPE, W_SHAPE)
    (dy,) = integers(result_of(jax, x, w, options))
    function = three(x_shape, W_SHAPE, options)
    linear = three(x_shape, W_SHAPE, {**options, "pad_value": 0})

    @jax.jit
    def theirs(x, w, dy, v, u):
        _, of_dx = jax.vjp(lambda dy, w: xconv.conv_input_grad(dy, w, x_shape, **options), dy, w)
        _, of_dw = jax.vjp(lambda dy, x: xconv.conv_weight_grad(dy, x, W_SHAPE, **options), dy, x)
        return derived(jax, partial(xconv.conv, **options))(x, w, dy), of_dx(v), of_dw(u)

    @jax.jit
    def ours(x, w, dy, v, u):
        y_of_v, _, dw_of_v = linear(v, w, dy)
        y_of_u, dx_of_u, _ = function(x, u, dy)
        return function(x, w, dy), (y_of_v, dw_of_v), (y_of_u, dx_of_u)

    assert_equal(theirs(x, w, dy, v, u), ours(x, w, dy, v, u))


def test_gradient_of_a_loss(jax, integers):
    """With jit and without, on the same arrays."""
    options = OPTIONS["wrap"]
    x, w = integers(X_SHAPE, W_SHAPE)
    (dy,) = integers(result_of(jax, x, w, options))
    gradients = jax.grad(lambda x, w: jax.numpy.sum(dy * xconv.conv(x, w, **options)), argnums=(0, 1))
    explicit = three(X_SHAPE, W_SHAPE, options)(x, w, dy)[1:]
    assert_equal(gradients(x, w), explicit)
    assert_equal(jax.jit(gradients)(x, w), explicit)


def test_forward_and_transposed_derivatives(jax, integers):
    options = OPTIONS["reflect"]
    x, w, dx, dw = integers(X_SHAPE, W_SHAPE, X_SHAPE, W_SHAPE)
    convolution = jax.jit(partial(xconv.conv, **options))
    y, dy = jax.jit(lambda *a: jax.jvp(convolution, a[:2], a[2:]))(x, w, dx, dw)
    assert_equal(y, convolution(x, w))
    assert_equal(dy, convolution(dx, w) + convolution(x, dw))
    (adjoint,) = jax.linear_transpose(lambda x: convolution(x, w), x)(dy)
    assert_equal(adjoint, xconv.conv_input_grad(dy, w, X_SHAPE, **options))


def test_complex_derivatives(jax, integers):
    """JAX's derivatives do not conjugate; the adjoint does."""
    options = {"padding": 1, "stride": 2}
    x, w, dy = (jax.lax.complex(*integers(shape, shape)) for shape in ((2, 2, 6), (3, 2, 3), (2, 3, 3)))
    theirs = jax.jit(derived(jax, partial(xconv.conv, **options)))(x, w, dy)
    _, dx, dw = jax.jit(three(x.shape, w.shape, options))(x.conj(), w.conj(), dy)
    assert_equal(theirs[1:], (dx, dw))


# Transformations


@pytest.mark.parametrize(("mode", "workspace"), [("edge", None), ("constant", 20_000)])
def test_vmap(jax, integers, mode, workspace):
    """Over all operands and over each, in one tile and in several."""
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "groups": 2, "pad_mode": mode}
    xs, ws, dys = integers((2, 2, 4, 7, 6), (2, 6, 2, 3, 2), (2, 2, 6, 4, 6))
    function = three(xs.shape[1:], ws.shape[1:], options)
    with xconv.config(workspace=workspace):
        one = jax.jit(function)
        assert (xconv.plan(xs[0], ws[0], **options).tiles > 1) == (workspace is not None)

        @jax.jit
        def at_once(xs, ws, dys):
            return (
                jax.vmap(function)(xs, ws, dys),
                jax.vmap(function, in_axes=(0, None, None))(xs, ws[0], dys[0]),
                jax.vmap(function, in_axes=(None, 0, None))(xs[0], ws, dys[0]),
                jax.vmap(function, in_axes=(None, None, 0))(xs[0], ws[0], dys),
            )

        each = (
            [one(xs[i], ws[i], dys[i]) for i in range(2)],
            [one(xs[i], ws[0], dys[0]) for i in range(2)],
            [one(xs[0], ws[i], dys[0]) for i in range(2)],
            [one(xs[0], ws[0], dys[i]) for i in range(2)],
        )
        stacked = tuple(tuple(jax.numpy.stack(parts) for parts in zip(*results, strict=True)) for results in each)
        assert_equal(at_once(xs, ws, dys), stacked)


def test_gradients_per_image(jax, integers):
    x, w, dy = integers((3, 4, 7), (6, 2, 3), (3, 6, 5))

    def loss(w, x, dy):
        return jax.numpy.sum(dy * xconv.conv(x[None], w, groups=2)[0])

    dws = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(w, x, dy)
    explicit = [xconv.conv_weight_grad(dy[i : i + 1], x[i : i + 1], w.shape, groups=2) for i in range(3)]
    assert_equal(dws, jax.numpy.stack(explicit))


def test_scan_over_layers(jax, integers):
    x, ws = integers((2, 3, 8), (4, 3, 3, 3))

    def layer(x, w):
        return xconv.conv(x, w, padding="same", pad_mode="wrap"), None

    y, _ = jax.jit(lambda x, ws: jax.lax.scan(layer, x, ws))(x, ws)
    for w in ws:
        x, _ = layer(x, w)
    assert_equal(y, x)


def test_static_options(jax, integers):
    """The options of a compiled function are those of the call, also as other ones follow on the same shapes."""
    x, w = integers(X_SHAPE, W_SHAPE)
    compiled = jax.jit(xconv.conv, static_argnames=("stride", "padding", "groups", "pad_mode"))
    for stride, padding, mode in ((1, 1, "wrap"), ((2, 1), ((1, 2), (0, 1)), "edge"), (1, "same", "wrap")):
        options = {"stride": stride, "padding": padding, "pad_mode": mode, "groups": 2}
        expected = xconv.conv(*(np.asarray(a) for a in (x, w)), **options)
        assert_equal(compiled(x, w, **options), jax.numpy.asarray(expected))


def test_shapes_without_computing(jax, library, integers):
    options = OPTIONS["wrap"]
    x, w, dy = integers(X_SHAPE, W_SHAPE, (2, 6, 2, 5))
    shapes = jax.eval_shape(three(X_SHAPE, W_SHAPE, options), x, w, dy)
    assert [s.shape for s in shapes] == [dy.shape, X_SHAPE, W_SHAPE]
    assert {s.dtype for s in shapes} == {np.dtype(library.real)}


# Caches


def test_compiled_once_per_shape(jax, integers):
    """Compiled, then run as it stands, then compiled for other shapes: nothing of one is left over for the next."""
    traced = []

    @jax.jit
    def compiled(x, w):
        traced.append(x.shape)
        return xconv.conv(x, w, padding=1, stride=2, pad_mode="edge")

    large, small, w = integers((2, 2, 9), (1, 2, 4), (3, 2, 3))
    expected = {
        x.shape: jax.numpy.asarray(xconv.conv(np.asarray(x), np.asarray(w), padding=1, stride=2, pad_mode="edge"))
        for x in (large, small)
    }
    for x in (large, large, small, large, small):
        assert_equal(compiled(x, w), expected[x.shape])
        assert_equal(xconv.conv(x, w, padding=1, stride=2, pad_mode="edge"), expected[x.shape])
    assert traced == [large.shape, small.shape]


def test_no_tracer_is_kept(jax, integers):
    """JAX looks for tracers that outlive their trace; so nothing that xconv caches may hold one."""
    options = {"padding": 2, "stride": 3, "pad_mode": "wrap"}
    x, w, b = integers((1, 2, 10), (3, 2, 2), (3,))

    def loss(x, w, b):
        return jax.numpy.sum(xconv.conv(x, w, b, **options) ** 2)

    with jax.checking_leaks():
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, w, b)
    y = xconv.conv(x, w, b, **options)
    dx = xconv.conv_input_grad(2 * y, w, x.shape, **options)
    dw = xconv.conv_weight_grad(2 * y, x, w.shape, **options)
    assert_equal(compiled, (dx, dw, jax.numpy.sum(2 * y, axis=(0, 2))))


def test_precision_changes_between_calls(jax, rng):
    """A plan that was made for float32 does not serve float64, nor the other way round."""
    x, w = rng.integers(-5, 6, (1, 2, 7)).astype(float), rng.integers(-5, 6, (3, 2, 3)).astype(float)
    for wide in (False, True, False):
        dtype = "float64" if wide else "float32"
        with jax.enable_x64(wide):
            y = xconv.conv(jax.numpy.asarray(x, dtype), jax.numpy.asarray(w, dtype))
            assert_equal(y, jax.numpy.asarray(xconv.conv(x, w), dtype))


# dtypes


def test_bfloat16_is_rounded_once(jax, rng):
    """Sums are taken in float32: the error is that of one rounding to bfloat16, and the float32 bound."""
    options = {"padding": 1, "stride": (2, 1)}
    shapes = ((2, 300, 9, 8), (8, 300, 3, 2), (2, 8, 5, 9))
    halves = [jax.numpy.asarray(rng.standard_normal(s).astype(np.float32)).astype("bfloat16") for s in shapes]
    function = three(*shapes[:2], options)
    wide = [np.asarray(a).astype(float) for a in halves]
    with xconv.config(numerics="strict"):
        results = jax.jit(function)(*halves)
        exact, scale = function(*wide), function(*(np.abs(a) for a in wide))
    for ours, true, size, terms in zip(results, exact, scale, (300 * 6, 8 * 6, 2 * 45), strict=True):
        assert ours.dtype == "bfloat16"
        single = terms * 2**-23 * size
        error = np.abs(np.asarray(ours).astype(float) - true)
        assert np.all(error <= single + 2.0**-8 * (np.abs(true) + single))


def test_half_sums_do_not_stop(jax):
    """512 ones: a sum in bfloat16 itself would not grow beyond 256."""
    x, w = jax.numpy.ones((1, 512, 2), "bfloat16"), jax.numpy.ones((1, 512, 1), "bfloat16")
    for convolution in (xconv.conv, jax.jit(xconv.conv)):
        assert_equal(convolution(x, w), jax.numpy.full((1, 1, 2), 512, "bfloat16"))


def test_half_derivatives(jax):
    """Every gradient has the dtype of what it is the gradient of."""
    x, w = jax.numpy.ones((1, 2, 5), "bfloat16"), jax.numpy.ones((3, 2, 2), "float32")
    dx, dw = jax.jit(jax.grad(lambda x, w: jax.numpy.sum(xconv.conv(x, w)), argnums=(0, 1)))(x, w)
    assert_equal(dx, jax.numpy.asarray([[[3.0, 6, 6, 6, 3]] * 2], "bfloat16"))
    assert_equal(dw, jax.numpy.full((3, 2, 2), 4.0, "float32"))


def test_no_mixing(jax):
    """Without `jit` a constant would travel to the device in every call, silently."""
    x, w = jax.numpy.ones((1, 1, 5)), np.ones((1, 1, 2), np.float32)
    for convolution in (xconv.conv, jax.grad(lambda x, w: xconv.conv(x, w).sum())):
        with pytest.raises(TypeError, match=r"`x` and `w` must be of one array library.*jax.*numpy"):
            convolution(x, w)
    with pytest.raises(TypeError, match=r"`x` and `w` must be of one array library.*numpy.*jax"):
        xconv.conv(w, x)
    other = pytest.importorskip("torch").ones(1, 1, 2)
    with pytest.raises(TypeError, match=r"`x` and `w` must be of one array library.*jax.*torch"):
        jax.jit(lambda x: xconv.conv(x, other))(x)


def test_constants_of_numpy_are_compiled_in(jax, library, rng):
    """Each operand of each function in turn, of float64 where JAX may have float32 alone."""
    x, w, b = (rng.integers(-6, 7, shape).astype(float) for shape in ((2, 3, 9), (3, 3, 2), (3,)))
    y = xconv.conv(x, w)
    for function, *operands in (
        (xconv.conv, x, w, b),
        (xconv.conv_transpose, x, w, b),
        (lambda dy, w: xconv.conv_input_grad(dy, w, x.shape), y, w),
        (lambda dy, x: xconv.conv_weight_grad(dy, x, w.shape), y, x),
    ):
        expected = library.array(function(*operands))
        traced = [library.array(a) for a in operands]

        @jax.jit
        def each(traced, function=function, operands=operands):
            return tuple(
                function(*(t if i == at else a for i, (t, a) in enumerate(zip(traced, operands, strict=True))))
                for at in range(len(operands))
            )

        for made in each(traced):
            assert_equal(made, expected)
    # Beside what is traced, and what is there already.
    assert_equal(
        jax.jit(lambda b: xconv.conv(library.array(x), w, b))(library.array(b)), library.array(xconv.conv(x, w, b))
    )


def test_a_plan_of_shapes(jax, integers):
    x, w = integers(X_SHAPE, W_SHAPE)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, w)]
    options = OPTIONS["wrap"]
    plan, expected = xconv.plan(*shapes, **options), xconv.plan(x, w, **options)
    assert repr(plan) == repr(expected)
    assert_equal(plan.forward(x, w), xconv.conv(x, w, **options))
    assert repr(xconv.plan(x, shapes[1], **options)) == repr(expected)
    with xconv.config(tuning=xconv.Tuning()):
        assert xconv.plan(*shapes, **options).algorithm == expected.algorithm
    with pytest.raises(TypeError, match="`x` must be an array"):
        xconv.conv(*shapes)


def test_symbolic_sizes(jax, integers):
    """Exported with a batch of any size; nothing of a symbol is kept."""
    x, w = integers((3, 2, 9), (3, 2, 2))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n,2,9"), x.dtype)
    kept = xconv._planner.scheduled.cache_info().currsize
    for function in (xconv.conv, lambda x, w: xconv.conv_weight_grad(x, x, w.shape), lambda x, _: xconv.im2col(x, 2)):
        with pytest.raises(TypeError, match=r"must have sizes in numbers, got shape \(n, 2, 9\): .*vmap"):
            jax.export.export(jax.jit(lambda x, f=function: f(x, w)))(shape)
    with pytest.raises(TypeError, match=r"`x` must have sizes in numbers"):
        xconv.plan(shape, w)
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n,2,9,9"), x.dtype)
    with pytest.raises(TypeError, match=r"`X` must have sizes in numbers"):
        jax.export.export(jax.jit(lambda X: xconv.im2col_indices(X, 3, 3)))(images)
    assert xconv._planner.scheduled.cache_info().currsize == kept
    mapped = jax.export.export(jax.jit(lambda x: jax.vmap(lambda x: xconv.conv(x[None], w)[0])(x)))(shape)
    assert_equal(mapped.call(x), xconv.conv(x, w))


@pytest.mark.parametrize(("precision", "name"), [("ieee", "HIGHEST"), ("tf32", "HIGH")])
def test_precision_is_asked_for(jax, precision, name):
    x, w = jax.numpy.ones((1, 2, 8, 8)), jax.numpy.ones((4, 2, 3, 3))
    dy = jax.numpy.ones((1, 4, 6, 6))
    for function, arrays in (
        (lambda x, w: xconv.conv(x, w), (x, w)),  # a new function each time: JAX keeps what it traced
        (lambda dy, w: xconv.conv_input_grad(dy, w, x.shape), (dy, w)),
        (lambda dy, x: xconv.conv_weight_grad(dy, x, w.shape), (dy, x)),
    ):
        with xconv.config(precision=precision):
            traced = str(jax.make_jaxpr(function)(*arrays))
        assert set(re.findall(r"Precision\.(\w+)", traced)) == {name}


def test_tiles_are_joined_and_never_copied_into_the_whole(jax, integers, monkeypatch):
    """Where each is traced by itself, or run without `jit`."""
    x, w = integers((3, 2, 40, 30), (4, 2, 3, 3))
    whole = xconv.conv(x, w)
    monkeypatch.setattr("xconv.backends.jax._backend.MOST_UNROLLED", 1000)
    with xconv.config(workspace=60_000):
        assert xconv.plan(x, w).tiles > 10
        traced = str(jax.make_jaxpr(xconv.conv)(x, w))
        assert (xconv.conv(x, w) == whole).all()
    assert "scatter" not in traced
    assert "dynamic_update_slice" not in traced


def test_many_tiles_are_loops_where_they_are_compiled(jax, integers, monkeypatch):
    """Without `jit`, a loop would be compiled anew in every call."""
    x, w = integers((1, 2, 200), (4, 2, 1))

    def loss(x):
        return xconv.conv(x, w).sum()

    expected = jax.jit(jax.value_and_grad(loss))(x)
    monkeypatch.setattr(jax.lax, "scan", None)
    with xconv.config(workspace=250 * x.itemsize):
        assert xconv.plan(x, w).tiles > 8
        assert_equal(jax.value_and_grad(loss)(x), expected)
        with pytest.raises(TypeError, match="NoneType"):
            jax.make_jaxpr(loss)(x)


LOOPS = {
    "1d": ((2, 4, 50), (4, 2, 3), {"stride": 2, "padding": 2, "groups": 2}, 375),
    "2d": ((1, 2, 10, 20), (2, 2, 3, 3), {"padding": 1}, 1_250),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_over_tiles(jax, integers, name):
    """As many equations for many tiles as for some, and the numbers of one."""
    if not jax.config.jax_enable_x64:
        pytest.skip("once is enough where every shape is compiled")
    x_shape, w_shape, options, room = LOOPS[name]
    sizes = {}
    for times in (1, 5):
        longer = tuple(times * n if n >= 10 else n for n in x_shape)
        x, w = integers(longer, w_shape)
        (dy,) = integers(result_of(jax, x, w, options))
        function = three(longer, w_shape, options)
        workspace = room * x.itemsize
        with xconv.config(workspace=workspace):
            plan = xconv.plan(x, w, **options)
            assert plan.forward.tiles > 8 < plan.input_grad.tiles
            traced = jax.make_jaxpr(function)(x, w, dy)
        sizes[plan.tiles] = str(traced).count(" = ")
    few, many = sizes
    assert many > 3 * few
    assert sizes[many] < 1.2 * sizes[few]
    whole = tuple(map(jax.numpy.asarray, function(*map(np.asarray, (x, w, dy)))))
    with xconv.config(workspace=workspace):
        for tiled in (function, derived(jax, partial(xconv.conv, **options))):
            assert_equal(jax.jit(tiled)(x, w, dy), whole)


def test_loops_over_columns(jax, integers):
    """Compiled for several images at once."""
    (xs,) = integers((2, 1, 2, 100))

    def there_and_back(x):
        return xconv.col2im(xconv.im2col(x, 3), 100)

    whole = np.concatenate([there_and_back(x) for x in np.asarray(xs)])
    with xconv.config(workspace=250 * xs.itemsize):
        traced = jax.jit(jax.vmap(there_and_back)).trace(xs)
        assert len(re.findall(r"= scan\[", str(traced.jaxpr))) == 2
        compiled = traced.lower().compile()
        assert_equal(compiled(xs), jax.numpy.asarray(whole)[:, None])
        assert "gather(" not in compiled.as_text()  # all images are cut at the same places


def test_several_filters_of_a_large_plane(jax, rng):
    """XLA makes other numbers of a multiplication and a sum over a few filters, if there are many pixels."""
    x_shape, w = (1, 1, 1090, 1730), rng.standard_normal((3, 1, 5, 3)).astype("float32")
    options = {"stride": 3, "padding": (2, 1)}
    dy = rng.standard_normal(xconv.conv(np.zeros(x_shape, "float32"), w, **options).shape).astype("float32")
    compiled = jax.jit(lambda dy, w: xconv.conv_input_grad(dy, w, x_shape, algorithm="depthwise", **options))
    expected = xconv.conv_input_grad(dy, w, x_shape, algorithm="gemm", **options)
    assert np.allclose(compiled(jax.numpy.asarray(dy), jax.numpy.asarray(w)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "chosen"),
    [
        ((2, 64, 32, 32), (64, 64, 3, 3), {"gemm", "winograd", "fft"}),
        ((2, 32, 64, 64), (32, 32, 11, 11), {"fft"}),
        ((1, 8, 20_000), (8, 8, 200), {"fft"}),
        ((2, 64, 32, 32), (64, 1, 3, 3), {"depthwise", "gemm", "fft"}),
        ((1, 4, 30, 30, 30), (4, 1, 30, 30, 30), {"gemm", "fft"}),  # a line for every tap would take minutes to compile
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_what_is_chosen(jax, x_shape, w_shape, chosen, dtype):
    x, w = jax.numpy.zeros(x_shape, dtype), jax.numpy.zeros(w_shape, dtype)
    with xconv.config(numerics="fast"):
        plan = xconv.plan(x, w, groups=x_shape[1] // w_shape[1])
        assert {plan.forward.algorithm, plan.input_grad.algorithm, plan.weight_grad.algorithm} <= chosen


def test_tuning_follows_the_record_where_it_cannot_measure(jax, integers, monkeypatch):
    x, w = integers((1, 8, 20, 20), (8, 8, 3, 3))
    tuning = xconv.Tuning()

    def traced():
        return str(jax.make_jaxpr(lambda x: xconv.conv(x, w))(x))

    with xconv.config(tuning=tuning, numerics="fast"):
        traced()
        assert len(tuning) == 0
        xconv.conv(x, w)
        assert len(tuning) == 1
        (times,) = tuning._seconds.values()
        texts = set()
        for name in times:
            times[name] = min(times.values()) / 2
            texts.add(traced())
    assert len(texts) == len(times) > 1


@pytest.mark.parametrize(("shape", "padding", "workspace"), [((2, 2, 9, 7), 3, None), ((1, 2, 361), 1, 400)])
def test_pooling_is_compiled_and_differentiated(jax, integers, shape, padding, workspace):
    """In tiles that are loops of the program, too; derivatives among equals, infinities and NaN."""
    options = {"stride": 2, "padding": padding}
    counted = {**options, "count_include_pad": padding == 3}
    (x,) = (np.asarray(a) for a in integers(shape))
    x = np.where(x < -4, -np.inf, x)
    x[..., 6::7] = np.nan
    finite = np.where(np.isfinite(x), x, 1)
    y = xconv.max_pool(x, 3, **options)
    (dy,) = (np.asarray(a) for a in integers(y.shape))

    def functions(dy, x, finite):
        y, back = jax.vjp(lambda x: xconv.max_pool(x, 3, **options), x)
        mean, back_of_mean = jax.vjp(lambda x: xconv.avg_pool(x, 3, **counted), finite)
        explicit = xconv.max_pool_grad(dy, x, 3, **options), xconv.avg_pool_grad(dy, x.shape, 3, **counted)
        return y, mean, *explicit, *back(dy), *back_of_mean(dy)

    with xconv.config(workspace=workspace and workspace * x.dtype.itemsize):
        program = jax.make_jaxpr(functions)(dy, x, finite)
        assert str(program).count("scan[") >= (4 if workspace else 0)
        made = map(np.asarray, jax.jit(functions)(*map(jax.numpy.asarray, (dy, x, finite))))
    expected = (
        (y, 0),
        (xconv.avg_pool(finite, 3, **counted), 1e-5),
        (xconv.max_pool_grad(dy, x, 3, **options), 0),
        (xconv.avg_pool_grad(dy, x.shape, 3, **counted), 1e-5),
    )
    for actual, (values, tolerance) in zip(made, (*expected, *expected[2:]), strict=True):
        np.testing.assert_allclose(actual, values, rtol=tolerance, atol=tolerance)
