"""PyTorch: its convolutions as a second oracle, its autograd and its transforms through xconv. For --backend=torch."""

import importlib
import itertools
import math

import numpy as np
import pytest
from libraries import Backend

import xconv

pytestmark = pytest.mark.usefixtures("exact")

#: x, w (filters first) and options that PyTorch's convolutions have as well.
GEOMETRIES = {
    "1d": ((2, 4, 11), (6, 4, 3), {}),
    "1d-gaps": ((3, 2, 11), (4, 2, 2), {"stride": 3, "padding": 1}),
    "2d": ((2, 4, 7, 8), (6, 4, 3, 2), {"padding": (1, 2)}),
    "2d-all": ((2, 4, 9, 8), (6, 2, 3, 2), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 3), "groups": 2}),
    "2d-gaps": ((2, 2, 9, 8), (3, 2, 2, 1), {"stride": (3, 2)}),
    "depthwise": ((2, 3, 6, 6), (6, 1, 3, 3), {"padding": 1, "groups": 3}),
    "pointwise": ((2, 4, 5, 6), (8, 2, 1, 1), {"groups": 2}),
    "pointwise-strided": ((2, 4, 5, 6), (8, 4, 1, 1), {"stride": 2}),
    "3d": ((2, 2, 5, 4, 6), (4, 2, 2, 3, 2), {"padding": 1}),
    "3d-all": (
        (1, 4, 6, 5, 6),
        (2, 2, 2, 3, 2),
        {"stride": (2, 3, 1), "padding": (0, 1, 2), "dilation": 2, "groups": 2},
    ),
}
#: More than PyTorch's convolutions have, in sizes for numerical derivatives.
SMALL = {
    "plain": ((1, 2, 4, 3), (2, 2, 2, 2), {}),
    "gaps": ((2, 1, 8), (2, 1, 2), {"stride": 3}),
    "groups": ((1, 4, 5), (4, 2, 3), {"groups": 2, "padding": ((0, 2),), "dilation": 2}),
    "crop": ((1, 1, 6, 4), (1, 1, 2, 3), {"padding": ((-1, 2), (1, 0)), "stride": 2}),
    "edge": ((1, 1, 3, 3), (1, 1, 2, 3), {"padding": ((2, 0), (1, 2)), "pad_mode": "edge"}),
    "reflect": ((1, 1, 4, 3), (1, 1, 3, 2), {"padding": ((3, 1), 1), "pad_mode": "reflect", "stride": 2}),
    "symmetric": ((1, 2, 3), (2, 2, 2), {"padding": ((4, 7),), "pad_mode": "symmetric"}),
    "wrap": ((1, 2, 3), (2, 1, 3), {"padding": ((4, 2),), "pad_mode": "wrap", "groups": 2}),
    "value": ((1, 2, 3, 4), (2, 1, 2, 3), {"padding": ((2, 1), (-1, 2)), "pad_value": 3, "groups": 2}),
    "same": ((1, 2, 5), (2, 2, 4), {"padding": "same", "stride": 2}),
    "channels-last": ((1, 4, 3, 2), (2, 2, 2, 2), {"layout": "channels_last", "padding": 1}),
}

geometries = pytest.mark.parametrize("name", GEOMETRIES)
small = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(autouse=True)
def torch(request):
    """The library; its absence is an error where it was asked for."""
    if Backend.TORCH not in (request.config.getoption("backend") or ()):
        pytest.skip("runs with --backend=torch")
    return importlib.import_module("torch")


@pytest.fixture
def integers(torch, rng):
    """Makes tensors of small integers in float64: sums of their products are exact in any order."""
    return lambda *shapes: [torch.from_numpy(rng.integers(-6, 7, shape).astype(float)) for shape in shapes]


def functional(torch, function, rank):
    """torch.nn.functional.conv2d and its like."""
    return getattr(torch.nn.functional, function.format(rank))


def their_gradients(torch, x, w, dy, options):
    rank = x.ndim - 2
    dx = getattr(torch.nn.grad, f"conv{rank}d_input")(x.shape, w, dy, **options)
    dw = getattr(torch.nn.grad, f"conv{rank}d_weight")(x, w.shape, dy, **options)
    return dx, dw


def assert_equal(torch, actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected)


def result_of(torch, x_shape, w_shape, options):
    """The shape of the result."""
    x, w = torch.zeros(x_shape, device="meta"), torch.zeros(w_shape, device="meta")
    return xconv.conv(x, w, **options).shape


# PyTorch as an oracle


@geometries
def test_equal_to_torch_on_integers(torch, integers, name):
    x_shape, w_shape, options = GEOMETRIES[name]
    x, w, b = integers(x_shape, w_shape, w_shape[:1])
    y = functional(torch, "conv{}d", x.ndim - 2)(x, w, b, **options)
    assert_equal(torch, xconv.conv(x, w, b, **options), y)
    (dy,) = integers(y.shape)
    dx, dw = their_gradients(torch, x, w, dy, options)
    assert_equal(torch, xconv.conv_input_grad(dy, w, x.shape, **options), dx)
    assert_equal(torch, xconv.conv_weight_grad(dy, x, w.shape, **options), dw)


@geometries
def test_numpy_gives_the_same_numbers(torch, integers, name):
    x_shape, w_shape, options = GEOMETRIES[name]
    x, w, dy = integers(x_shape, w_shape, result_of(torch, *GEOMETRIES[name]))
    for function, *arguments in (
        (xconv.conv, x, w),
        (xconv.conv_input_grad, dy, w, x_shape),
        (xconv.conv_weight_grad, dy, x, w_shape),
    ):
        there = function(*(a.numpy() if isinstance(a, torch.Tensor) else a for a in arguments), **options)
        assert type(there) is np.ndarray
        assert_equal(torch, function(*arguments, **options), torch.from_numpy(there))


@geometries
def test_float32_within_the_bound(torch, rng, name):
    """|err| <= K * eps * conv(|x|, |w|), for the three functions."""
    x_shape, w_shape, options = GEOMETRIES[name]
    y_shape = result_of(torch, *GEOMETRIES[name])
    x, w, dy = (torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in (x_shape, w_shape, y_shape))
    conv = functional(torch, "conv{}d", x.ndim - 2)
    taps, pixels = math.prod(w_shape[2:]), math.prod(y_shape[2:])
    with xconv.config(numerics="strict"):
        y = xconv.conv(x, w, **options)
        dx = xconv.conv_input_grad(dy, w, x_shape, **options)
        dw = xconv.conv_weight_grad(dy, x, w_shape, **options)
    wide = [a.double() for a in (x, w, dy)]
    sizes = [a.abs() for a in wide]
    exact = (conv(*wide[:2], **options), *their_gradients(torch, *wide, options))
    scale = (conv(*sizes[:2], **options), *their_gradients(torch, *sizes, options))
    terms = (w_shape[1] * taps, w_shape[0] // options.get("groups", 1) * taps, x_shape[0] * pixels)
    for ours, true, size, count in zip((y, dx, dw), exact, scale, terms, strict=True):
        assert ours.dtype == torch.float32
        # PyTorch's own sums in float64 err as well, in one part of 2^29 of this.
        assert torch.all((ours - true).abs() <= count * (2**-23 + 2**-52) * size)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((2, 4, 5), (4, 3, 3), {}),
        ((2, 4, 5), (4, 3, 2), {"stride": 4, "output_padding": 3, "groups": 2}),
        ((2, 4, 5, 4), (4, 3, 3, 2), {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
        ((1, 4, 5, 4), (4, 1, 3, 3), {"stride": 2, "padding": 1, "dilation": (2, 3), "output_padding": 1, "groups": 4}),
        ((1, 2, 3, 4, 2), (2, 3, 2, 3, 2), {"stride": (1, 2, 3), "padding": (0, 1, 0), "output_padding": (0, 1, 0)}),
    ],
)
def test_transpose(torch, integers, x_shape, w_shape, options):
    x, w, b = integers(x_shape, w_shape, (w_shape[1] * options.get("groups", 1),))
    expected = functional(torch, "conv_transpose{}d", x.ndim - 2)(x, w, b, **options)
    assert_equal(torch, xconv.conv_transpose(x, w, b, **options), expected)


@pytest.mark.parametrize(
    ("mode", "theirs"), [("constant", "constant"), ("edge", "replicate"), ("reflect", "reflect"), ("wrap", "circular")]
)
def test_pad_modes(torch, integers, mode, theirs):
    """Against PyTorch's padding and its gradient."""
    options = {"stride": (2, 1), "groups": 2}
    x, w = integers((2, 4, 5, 6), (6, 2, 3, 4))
    x.requires_grad_()
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (3, 2, 4, 1), mode=theirs), w, **options)
    ours = {**options, "padding": ((4, 1), (3, 2)), "pad_mode": mode}
    assert_equal(torch, xconv.conv(x.detach(), w, **ours), expected.detach())
    (dy,) = integers(expected.shape)
    expected.backward(dy)
    assert_equal(torch, xconv.conv_input_grad(dy, w, x.shape, **ours), x.grad)


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 5), 1), ((4, 2), 1), ((4, 2), 3)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_same(torch, integers, kernel, dilation):
    x, w = integers((2, 3, 7, 6), (4, 3, *kernel))
    expected = torch.nn.functional.conv2d(x, w, padding="same", dilation=dilation)
    assert_equal(torch, xconv.conv(x, w, padding="same", dilation=dilation), expected)


# Autograd


def backward(torch, integers, geometry):
    """Inputs with their gradients after a backward pass, and the gradient that was sent back."""
    x_shape, w_shape, options = geometry
    x, w, b = integers(x_shape, w_shape, w_shape[:1])
    x.requires_grad_()
    w, b = torch.nn.Parameter(w), torch.nn.Parameter(b)
    before = [a.detach().clone() for a in (x, w, b)]
    y = xconv.conv(x, w, b, **options)
    (dy,) = integers(y.shape)
    y.backward(dy)
    for a, copy in zip((x, w, b), before, strict=True):
        assert a._version == 0
        assert torch.equal(a, copy)
    return x, w, b, dy


@pytest.mark.parametrize("name", [*GEOMETRIES, *SMALL])
def test_backward_is_the_two_gradients(torch, integers, name):
    geometry = (GEOMETRIES | SMALL)[name]
    options = geometry[-1]
    x, w, b, dy = backward(torch, integers, geometry)
    assert_equal(torch, x.grad, xconv.conv_input_grad(dy, w.detach(), x.shape, **options))
    assert_equal(torch, w.grad, xconv.conv_weight_grad(dy, x.detach(), w.shape, **options))
    assert_equal(torch, b.grad, dy.movedim(-1 if "layout" in options else 1, 0).flatten(1).sum(1))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
def test_backward_in_tiles(torch, integers, mode):
    options = {"stride": (2, 1), "padding": ((3, 1), (0, 2)), "groups": 2, "pad_mode": mode}
    x, w = integers((2, 4, 9, 8), (6, 2, 3, 2))
    with xconv.config(workspace=20_000):
        assert xconv.plan(x, w, **options).tiles > 2
        x, w, _, dy = backward(torch, integers, (x.shape, w.shape, options))
    assert_equal(torch, x.grad, xconv.conv_input_grad(dy, w.detach(), x.shape, **options))
    assert_equal(torch, w.grad, xconv.conv_weight_grad(dy, x.detach(), w.shape, **options))


@small
def test_backward_of_the_gradients(torch, integers, name):
    """The gradients of a gradient are again two of the three functions."""
    x_shape, w_shape, options = SMALL[name]
    x, w, dy, v, u = integers(x_shape, w_shape, result_of(torch, *SMALL[name]), x_shape, w_shape)
    for a in (x, w, dy):
        a.requires_grad_()
    linear = {**options, "pad_value": 0}
    xconv.conv_input_grad(dy, w, x_shape, **options).backward(v)
    assert_equal(torch, dy.grad, xconv.conv(v, w.detach(), **linear))
    assert_equal(torch, w.grad, xconv.conv_weight_grad(dy.detach(), v, w_shape, **linear))
    dy.grad = None
    xconv.conv_weight_grad(dy, x, w_shape, **options).backward(u)
    assert_equal(torch, dy.grad, xconv.conv(x.detach(), u, **options))
    assert_equal(torch, x.grad, xconv.conv_input_grad(dy.detach(), u, x_shape, **options))


def test_complex_backward(torch, integers):
    options = {"padding": 1, "stride": 2, "pad_mode": "wrap"}
    x, w, dy = (torch.complex(*integers(shape, shape)) for shape in ((2, 2, 6), (3, 2, 3), (2, 3, 3)))
    x.requires_grad_()
    w.requires_grad_()
    xconv.conv(x, w, **options).backward(dy)
    assert_equal(torch, x.grad, xconv.conv_input_grad(dy, w.detach(), x.shape, **options))
    assert_equal(torch, w.grad, xconv.conv_weight_grad(dy, x.detach(), w.shape, **options))


@small
def test_numerical_derivatives(torch, rng, name):
    """First and second ones, in both modes, and batched."""
    x_shape, w_shape, options = SMALL[name]
    x, w, b = (torch.from_numpy(rng.standard_normal(s)).requires_grad_() for s in (x_shape, w_shape, w_shape[:1]))

    def conv(x, w, b):
        return xconv.conv(x, w, b, **options)

    assert torch.autograd.gradcheck(conv, (x, w, b), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(conv, (x, w, b))


@pytest.mark.parametrize("name", ["gaps", "groups", "channels-last"])
def test_numerical_derivatives_of_the_others(torch, rng, name):
    x_shape, w_shape, options = SMALL[name]
    shapes = (x_shape, w_shape, result_of(torch, *SMALL[name]))
    x, w, dy = (torch.from_numpy(rng.standard_normal(s)).requires_grad_() for s in shapes)
    assert torch.autograd.gradcheck(lambda dy, w: xconv.conv_input_grad(dy, w, x_shape, **options), (dy, w))
    assert torch.autograd.gradcheck(lambda dy, x: xconv.conv_weight_grad(dy, x, w_shape, **options), (dy, x))
    assert torch.autograd.gradcheck(lambda dy, w: xconv.conv_transpose(dy, w, **options), (dy, w))


def test_numerical_derivatives_of_columns(torch, rng):
    x = torch.from_numpy(rng.standard_normal((1, 2, 4, 5))).requires_grad_()
    options = {"stride": (2, 1), "padding": ((1, 0), (0, 2))}
    assert torch.autograd.gradcheck(lambda x: xconv.im2col(x, (2, 3), pad_mode="reflect", **options), x)
    cols = xconv.im2col(x.detach(), (2, 3), **options).requires_grad_()
    assert torch.autograd.gradcheck(lambda cols: xconv.col2im(cols, (4, 5), **options), cols)


@pytest.mark.parametrize("name", ["plain", "gaps", "reflect", "symmetric", "wrap"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_derivatives(torch, integers, name):
    x_shape, w_shape, options = SMALL[name]
    x, w, dx, dw = integers(x_shape, w_shape, x_shape, w_shape)
    y, dy = torch.func.jvp(lambda x, w: xconv.conv(x, w, **options), (x, w), (dx, dw))
    assert_equal(torch, y, xconv.conv(x, w, **options))
    assert_equal(torch, dy, xconv.conv(dx, w, **options) + xconv.conv(x, dw, **options))


# torch.func


def test_functional_gradient(torch, integers):
    x, w, dy = integers((2, 4, 7, 6), (6, 2, 3, 2), (2, 6, 4, 5))
    options = {"stride": (2, 1), "padding": (1, 0), "groups": 2}
    dx, dw = torch.func.grad(lambda x, w: torch.sum(dy * xconv.conv(x, w, **options)), argnums=(0, 1))(x, w)
    assert_equal(torch, dx, xconv.conv_input_grad(dy, w, x.shape, **options))
    assert_equal(torch, dw, xconv.conv_weight_grad(dy, x, w.shape, **options))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("workspace", [None, pytest.param(20_000, id="tiles")])
def test_vmap(torch, integers, mode, workspace):
    """Over either operand of each function, and both; in one tile and in several."""
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "groups": 2, "pad_mode": mode}
    xs, ws, dys = integers((3, 2, 4, 7, 6), (3, 6, 2, 3, 2), (3, 2, 6, 4, 6))
    functions = {
        "conv": (lambda x, w: xconv.conv(x, w, **options), xs, ws),
        "input": (lambda dy, w: xconv.conv_input_grad(dy, w, xs.shape[1:], **options), dys, ws),
        "weight": (lambda dy, x: xconv.conv_weight_grad(dy, x, ws.shape[1:], **options), dys, xs),
    }
    with xconv.config(workspace=workspace):
        assert (xconv.plan(xs[0], ws[0], **options).tiles > 1) == (workspace is not None)
        for function, a, b in functions.values():
            both = torch.func.vmap(function)(a, b)
            assert_equal(torch, both, torch.stack([function(*pair) for pair in zip(a, b, strict=True)]))
            left = torch.func.vmap(function, in_dims=(0, None))(a, b[0])
            assert_equal(torch, left, torch.stack([function(one, b[0]) for one in a]))
            right = torch.func.vmap(function, in_dims=(None, 0))(a[0], b)
            assert_equal(torch, right, torch.stack([function(a[0], one) for one in b]))


def test_vmap_where_no_window_sees_the_image(torch):
    """Only the padding is seen: the image's gradient starts from zeros that do not depend on `dy`."""
    dys, w = torch.tensor([1.0, 2, 3]).reshape(3, 1, 1, 1), torch.ones((1, 1, 1))
    options = {"stride": 10, "padding": ((3, 0),), "pad_mode": "edge"}
    dxs = torch.func.vmap(lambda dy: xconv.conv_input_grad(dy, w, (1, 1, 2), **options))(dys)
    assert_equal(torch, dxs, torch.tensor([[1.0, 0], [2, 0], [3, 0]]).reshape(3, 1, 1, 2))


def test_gradients_per_image(torch, integers):
    x, w, dy = integers((3, 4, 7), (6, 2, 3), (3, 6, 5))

    def loss(w, x, dy):
        return torch.sum(dy * xconv.conv(x[None], w, groups=2)[0])

    dws = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(w, x, dy)
    for i, dw in enumerate(dws):
        assert_equal(torch, dw, xconv.conv_weight_grad(dy[i : i + 1], x[i : i + 1], w.shape, groups=2))


# dtypes, devices and memory


@pytest.mark.parametrize(("name", "digits", "least"), [("float16", 11, 2.0**-24), ("bfloat16", 8, 0.0)])
def test_half_types_are_rounded_once(torch, rng, name, digits, least):
    """Sums are taken in float32: the error is that of one rounding to half, and the float32 bound."""
    dtype = getattr(torch, name)
    geometry = ((2, 300, 9, 8), (8, 300, 3, 2), {"padding": 1, "stride": (2, 1)})
    x_shape, w_shape, options = geometry
    shapes = (x_shape, w_shape, result_of(torch, *geometry))
    x, w, dy = (torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in shapes)
    wide = [a.double() for a in (x, w, dy)]
    sizes = [a.abs() for a in wide]
    conv = torch.nn.functional.conv2d
    with xconv.config(numerics="strict"):
        results = (
            xconv.conv(x, w, **options),
            xconv.conv_input_grad(dy, w, x_shape, **options),
            xconv.conv_weight_grad(dy, x, w_shape, **options),
        )
    exact = (conv(*wide[:2], **options), *their_gradients(torch, *wide, options))
    scale = (conv(*sizes[:2], **options), *their_gradients(torch, *sizes, options))
    for ours, true, size, terms in zip(results, exact, scale, (300 * 6, 8 * 6, 2 * 45), strict=True):
        assert ours.dtype == dtype
        single = terms * 2**-23 * size
        assert torch.all((ours.double() - true).abs() <= single + 2.0**-digits * (true.abs() + single) + least / 2)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_sums_do_not_stop(torch, name):
    """2048 ones and one more, or 256 in bfloat16: a sum in the half type itself would not grow any more."""
    dtype = getattr(torch, name)
    count = {"float16": 4096, "bfloat16": 512}[name]
    x, w = torch.ones((1, count, 2), dtype=dtype), torch.ones((1, count, 1), dtype=dtype)
    assert_equal(torch, xconv.conv(x, w), torch.full((1, 1, 2), count, dtype=dtype))


def test_half_backward(torch):
    """Every gradient has the dtype of what it is the gradient of."""
    x = torch.ones((1, 2, 5), dtype=torch.bfloat16, requires_grad=True)
    w = torch.ones((3, 2, 2), dtype=torch.float32, requires_grad=True)
    y = xconv.conv(x, w)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, w.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert_equal(torch, x.grad, torch.tensor([[[3.0, 6, 6, 6, 3]] * 2], dtype=torch.bfloat16))
    assert_equal(torch, w.grad, torch.full((3, 2, 2), 4.0))


@small
def test_meta_tensors_give_shapes(integers, name):
    x_shape, w_shape, options = SMALL[name]
    x, w = integers(x_shape, w_shape)
    y = xconv.conv(x, w, **options)
    x_, w_, dy_ = (a.to("meta") for a in (x, w, y))
    for shapes_only, real in (
        (xconv.conv(x_, w_, **options), y),
        (xconv.conv_input_grad(dy_, w_, x_shape, **options), x),
        (xconv.conv_weight_grad(dy_, x_, w_shape, **options), w),
    ):
        assert shapes_only.is_meta
        assert (shapes_only.shape, shapes_only.dtype) == (real.shape, real.dtype)


def test_no_mixing(torch):
    x, w = torch.ones((1, 1, 5)), torch.ones((1, 1, 2))
    for a, b in ((x, w.numpy()), (x.numpy(), w)):
        with pytest.raises(TypeError, match=r"`x` and `w` must be of one array library.*(torch.*numpy|numpy.*torch)"):
            xconv.conv(a, b)
    with pytest.raises(TypeError, match=r"`x` and `b` must be of one array library.*torch.*numpy"):
        xconv.conv(x, w, np.ones(1))
    with pytest.raises(TypeError, match=r"`x` and `w` must be on one device, got cpu and meta"):
        xconv.conv(x, w.to("meta"))


def test_any_memory(torch, integers):
    """Views of every kind, which are read as they are and not written to."""
    (base,) = integers((4, 5, 6, 7))
    w = integers((3, 2, 4, 2))[0].mT  # (3, 2, 2, 4)
    views = {
        "strided": base[::2, ::3, ::2, ::3],
        "transposed": base.permute(3, 2, 1, 0)[:2, :2],
        "expanded": base[:1, :1].expand(3, 2, 6, 7),
        "channels_last": base[:, :2].contiguous(memory_format=torch.channels_last),
        "conjugate": torch.complex(base, base)[:, :2].conj(),
    }
    for x in views.values():
        taps = w.to(x.dtype)
        expected = torch.nn.functional.conv2d(x.resolve_conj().contiguous(), taps.contiguous(), padding=1)
        assert_equal(torch, xconv.conv(x, taps, padding=1), expected)
        last = xconv.conv(x.movedim(1, -1), taps, padding=1, layout="channels_last")
        assert_equal(torch, last, expected.movedim(1, -1))
    assert base._version == 0


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64", "complex32"])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_refuses_what_torch_cannot_multiply(torch, name):
    x = torch.ones(1, 1, 4).to(getattr(torch, name))
    with pytest.raises(TypeError, match=f"`x` torch.{name}"):
        xconv.conv(x, x)


def test_refuses_sparse_tensors(torch):
    x = torch.ones(1, 1, 4)
    with pytest.raises(TypeError, match=r"`w` must be a dense array, got one of layout torch\.sparse_coo"):
        xconv.conv(x, x.to_sparse())


@pytest.mark.parametrize("layout", ["strided", "jagged"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_refuses_nested_tensors(torch, layout):
    x = torch.nested.nested_tensor([torch.ones(1, 4), torch.ones(1, 5)], layout=getattr(torch, layout))
    for a, b in ((x, torch.ones(1, 1, 2)), (x, x)):
        with pytest.raises(TypeError, match="`x` must be a dense array, got a nested one"):
            xconv.conv(a, b)


# Traces


@pytest.fixture
def layer(torch, integers):
    """A module that convolves, and its input."""
    x, w = integers((2, 3, 6, 5), (4, 3, 3, 3))

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(w)

        def forward(self, x):
            return xconv.conv(x, self.w, padding=1)

    return Layer(), x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced(torch, integers):
    """The sizes are tensors there, and those of the trace are constants of it, of which PyTorch warns."""
    x, w, b, dy = integers((2, 3, 6, 5), (4, 3, 3, 3), (4,), (2, 4, 6, 5))
    functions = {
        "conv": (lambda x, w, b: xconv.conv(x, w, b, padding=1), x, w, b),
        "input": (lambda dy, w: xconv.conv_input_grad(dy, w, x.shape, padding=1), dy, w),
        "weight": (lambda dy, x: xconv.conv_weight_grad(dy, x, w.shape, padding=1), dy, x),
        "transpose": (lambda dy, w: xconv.conv_transpose(dy, w, stride=2), dy, w),
        "columns": (lambda x: xconv.col2im(xconv.im2col(x, 3), x.shape[2:]), x),
        "layer": (lambda x, w: xconv.conv_forward(x, w, w[:, 0, 0, 0])[0], x, w),
    }
    for function, *operands in functions.values():
        with pytest.warns(torch.jit.TracerWarning):
            traced = torch.jit.trace(function, tuple(operands))
        others = [a.flip(-1) for a in operands]
        assert_equal(torch, traced(*others), function(*others))


def test_exported(torch, layer):
    module, x = layer
    exported = torch.export.export(module, (x,)).module()
    assert_equal(torch, exported(x.flip(0)), module(x.flip(0)))
    with pytest.raises(torch._dynamo.exc.UserError, match=r"batch.*specialized it to be a constant \(2\)"):
        torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert_equal(torch, module(x[:1]), module(x)[:1])


@pytest.mark.filterwarnings("ignore")
def test_onnx_exported(torch, layer, tmp_path):
    reference = pytest.importorskip("onnx.reference")
    module, x = layer
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(module, (x,), path, dynamo=False)
    model = reference.ReferenceEvaluator(path)
    (y,) = model.run(None, {model.input_names[0]: x.numpy()})
    assert_equal(torch, torch.from_numpy(y), module(x).detach())


POOLINGS = {
    "1d": ((2, 3, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "2d": ((2, 3, 9, 8), {"kernel_size": (3, 2), "padding": (1, 0)}),
    "2d-dilated": ((1, 2, 9, 8), {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2}),
    "3d": ((1, 2, 5, 6, 4), {"kernel_size": 2, "stride": (1, 2, 1)}),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_max_pool_is_theirs(torch, rng, name):
    """Values and gradients, theirs and those of autograd through ours, among equals, infinities and NaN."""
    shape, options = POOLINGS[name]
    x = torch.from_numpy(rng.integers(-2, 3, shape).astype(float))
    x[torch.from_numpy(rng.random(shape)) < 0.3] = -math.inf
    x.view(-1)[::50] = math.nan  # no two in a window, of which PyTorch takes the last
    x.requires_grad_()
    theirs = functional(torch, "max_pool{}d", len(shape) - 2)(x, **options)
    ours = xconv.max_pool(x, **options)
    (dy,) = (torch.from_numpy(rng.integers(-6, 7, tuple(theirs.shape)).astype(float)),)
    np.testing.assert_array_equal(ours.detach().numpy(), theirs.detach().numpy())
    (dx,) = torch.autograd.grad(theirs, x, dy)
    assert_equal(torch, torch.autograd.grad(ours, x, dy)[0], dx)
    assert_equal(torch, xconv.max_pool_grad(dy, x.detach(), **options), dx)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("name", ["1d", "2d", "3d"])
def test_avg_pool_is_theirs(torch, rng, name, count_include_pad):
    shape, options = POOLINGS[name]
    options = {**options, "count_include_pad": count_include_pad}
    x = torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
    theirs = functional(torch, "avg_pool{}d", len(shape) - 2)(x, **options)
    ours = xconv.avg_pool(x, **options)
    torch.testing.assert_close(ours, theirs)
    dy = torch.from_numpy(rng.standard_normal(tuple(theirs.shape)))
    (dx,) = torch.autograd.grad(theirs, x, dy)
    torch.testing.assert_close(torch.autograd.grad(ours, x, dy)[0], dx)
    torch.testing.assert_close(xconv.avg_pool_grad(dy, shape, **options), dx)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 5, 6)])
def test_columns_lie_in_every_order(torch, shape):
    """Also in those in which PyTorch would keep the channels last, as it stacks what has them there."""
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    cols = xconv.im2col(x, (1, 3))
    for axes in itertools.permutations(range(6)):
        found = xconv.im2col(x, (1, 3), axes=axes)
        assert found.is_contiguous()
        assert torch.equal(found, cols.permute(axes))
