"""The bridge to PyTorch, against PyTorch's own differentiation. For --backend=torch."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from bridges import CASES, ROUNDING, calls, shapes
from libraries import Backend
from oracle import W_LAYOUTS

import xconv

pytestmark = pytest.mark.usefixtures("exact")

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def torch(request):
    """The library; its absence is an error where it was asked for."""
    if Backend.TORCH not in (request.config.getoption("backend") or ()):
        pytest.skip("runs with --backend=torch")
    return importlib.import_module("torch")


@pytest.fixture
def bridge(torch):
    return importlib.import_module("xconv.interop.torch")


@pytest.fixture
def integers(torch, rng):
    """Makes tensors of small integers in float64 or complex128: sums of their products are exact in any order."""

    def make(*shapes, is_complex=False):
        real = [torch.from_numpy(rng.integers(-6, 7, shape).astype(float)) for shape in shapes]
        return [torch.complex(a, a.flip(-1)) for a in real] if is_complex else real

    return make


def leaves(*tensors):
    return [a.detach().requires_grad_() for a in tensors]


def assert_same(torch, actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)


def derivatives(torch, function, operands, dy, seeds):
    """The result, its gradients, and the gradients of those and of `dy`, by autograd."""
    *operands, dy = leaves(*operands, dy)
    y = function(*operands)
    first = torch.autograd.grad(y, operands, dy, create_graph=True)
    seeds = (*seeds, torch.ones_like(first[2]))
    second = torch.autograd.grad(first, (*operands[:2], dy), seeds)
    return [a.detach() for a in (y, *first, *second)]


@every_case
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_first_and_second_derivatives(torch, bridge, integers, case, is_complex):
    """Those of `xconv.conv` operation by operation, which are its explicit gradients."""
    function, _, _, options = case
    x_shape, w_shape, b_shape, y_shape = shapes(case)
    x, v, w, u, b, dy = integers(x_shape, x_shape, w_shape, w_shape, b_shape, y_shape, is_complex=is_complex)
    ours, theirs = (
        derivatives(torch, lambda *a, f=f: f(*a, **options), (x, w, b), dy, (v, u))
        for f in (getattr(bridge, function), getattr(xconv, function))
    )
    assert_same(torch, ours, theirs)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_against_their_convolutions(torch, bridge, integers, is_complex):
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    for ours, theirs in (
        (bridge.conv, torch.nn.functional.conv2d),
        (bridge.conv_transpose, torch.nn.functional.conv_transpose2d),
    ):
        x, v, w, u, b = integers(*[(2, 4, 6, 7)] * 2, *[(4, 2, 3, 2)] * 2, (4,), is_complex=is_complex)
        (dy,) = integers(theirs(x, w, b, **options).shape, is_complex=is_complex)
        pair = (derivatives(torch, lambda *a, f=f: f(*a, **options), (x, w, b), dy, (v, u)) for f in (ours, theirs))
        assert_same(torch, *pair)


@pytest.mark.parametrize("extra", [1, (2, 3)])
@pytest.mark.parametrize("by_size", [False, True])
def test_transposes_that_are_longer(torch, bridge, integers, extra, by_size):
    """By as much as the stride and more, which PyTorch allows below the dilation, too."""
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (3, 4), "groups": 2}
    x, v, w, u, b = integers(*[(2, 4, 6, 7)] * 2, *[(4, 2, 3, 2)] * 2, (4,))

    def theirs(x, w, b):
        return torch.nn.functional.conv_transpose2d(x, w, b, output_padding=extra, **options)

    (dy,) = integers(theirs(x, w, b).shape)
    longer = {"output_size": tuple(dy.shape[2:])} if by_size else {"output_padding": extra}
    ours = partial(bridge.conv_transpose, **options, **longer)
    assert_same(torch, *(derivatives(torch, f, (x, w, b), dy, (v, u)) for f in (ours, theirs)))


@pytest.mark.parametrize("w_layout", W_LAYOUTS)
def test_filters_in_every_order(torch, bridge, integers, w_layout):
    """Theirs, permuted; gradients have the order of what they belong to. Transposed, "i" comes first in theirs."""
    options = {"stride": (2, 1), "padding": (1, 2), "groups": 2}
    for function, theirs in (
        ("conv", torch.nn.functional.conv2d),
        ("conv_transpose", torch.nn.functional.conv_transpose2d),
    ):
        x, w = leaves(*integers((2, 4, 6, 7), (4, 2, 3, 2)))
        y = theirs(x, w, **options)
        (dy,) = integers(y.shape)
        first, second = "oi" if function == "conv" else "io"
        order = [{first: 0, second: 1, ".": 2, ",": 3}[letter] for letter in w_layout.replace("...", ".,")]
        (filters,) = leaves(w.permute(order).contiguous())
        for module in (bridge, xconv):
            ours = getattr(module, function)(x, filters, w_layout=w_layout, **options)
            dx, dw = torch.autograd.grad(ours, (x, filters), dy)
            expected = torch.autograd.grad(y, (x, w), dy, retain_graph=True)
            assert_same(torch, (ours, dx, dw), (y, expected[0], expected[1].permute(order)))


def test_filters_in_another_order_under_torch_func(torch, bridge, integers):
    x, w, dy = integers((3, 2, 6), (4, 2, 3), (3, 4, 4))

    def loss(function, w, x, dy, **options):
        return (function(x[None], w, **options) * dy).sum()

    ours, theirs = (
        torch.vmap(torch.func.grad(partial(loss, bridge.conv, **options)), (None, 0, 0))(filters, x, dy)
        for filters, options in ((w.permute(2, 1, 0), {"w_layout": "...io"}), (w, {}))
    )
    assert_same(torch, [ours], [theirs.permute(0, 3, 2, 1)])


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", ["2d-all", "value", "wrap", "last", "transpose-all", *ROUNDING])
def test_numerical_derivatives(torch, bridge, name, dtype):
    case = (CASES | ROUNDING)[name]
    function, _, _, options = case
    generator = torch.Generator().manual_seed(1)
    dtype = getattr(torch, dtype)
    operands = leaves(*[torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes(case)[:3]])
    assert torch.autograd.gradcheck(lambda *a: getattr(bridge, function)(*a, **options), operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: getattr(bridge, function)(*a, **options), operands, fast_mode=True)


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xwb"])
def test_only_what_is_needed(torch, bridge, integers, monkeypatch, wanted):
    x, w, b = integers((1, 2, 5), (3, 2, 3), (3,))
    seen = calls(monkeypatch)
    operands = {"x": x, "w": w, "b": b}
    needed = leaves(*(operands[name] for name in wanted))
    operands |= dict(zip(wanted, needed, strict=True))
    bridge.conv(*operands.values()).sum().backward()
    names = {"x": "conv_input_grad", "w": "conv_weight_grad"}
    assert [name for name, *_ in seen] == ["conv", *(names[name] for name in wanted if name in names)]
    assert all(a.grad.shape == a.shape for a in needed)


def test_second_derivatives_of_what_is_needed(torch, bridge, integers, monkeypatch):
    """The gradient in x, differentiated in w alone, takes no convolution."""
    x, w = leaves(*integers((1, 2, 5), (3, 2, 3)))
    (dx,) = torch.autograd.grad(bridge.conv(x, w).sum(), x, create_graph=True)
    seen = calls(monkeypatch)
    torch.autograd.grad(dx.square().sum(), w)
    assert [name for name, *_ in seen] == ["conv_weight_grad"]


def test_without_gradients(torch, bridge, integers):
    x, w = leaves(*integers((1, 2, 5), (3, 2, 3)))
    for surroundings in (torch.no_grad(), torch.inference_mode()):
        with surroundings:
            assert not bridge.conv(x, w).requires_grad
    assert not bridge.conv(x.detach(), w.detach()).requires_grad


def test_integers_are_convolved(torch, bridge):
    x, w = torch.arange(5).reshape(1, 1, 5), torch.ones((1, 1, 2), dtype=torch.int64)
    assert bridge.conv(x, w).tolist() == [[[1, 3, 5, 7]]]


@pytest.mark.parametrize("function", ["conv", "conv_transpose"])
def test_nothing_but_the_operands_is_kept(torch, bridge, function):
    x, w, b = leaves(*(torch.ones(shape) for shape in ((1, 2, 50, 50), (2, 2, 3, 3), (2,))))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda a: kept.append(a.data_ptr()), lambda a: a):
        getattr(bridge, function)(x, w, b, padding=1)
    assert set(kept) == {a.data_ptr() for a in (x, w)}


def test_settings_hold_for_the_gradients(torch, bridge, integers, monkeypatch):
    """Also where they are computed outside of the block, and on another thread."""
    seen = calls(monkeypatch)
    x, w = leaves(*integers((1, 2, 5), (3, 2, 3)))
    with xconv.config(numerics="strict", workspace=50_000):
        y = bridge.conv(x, w)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(y.sum().backward).result()
    assert [(s.numerics, s.workspace) for _, s, _ in seen] == [("strict", 50_000)] * 3
    assert x.grad is not None


def test_mixed_dtypes(torch, bridge):
    """Every gradient has the dtype of what it is the gradient of, and so have its gradients."""
    shapes = ((1, 2, 5), (3, 2, 3), (3,))
    for dtypes in (
        ("float32", "complex64", "float32"),
        ("complex64", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "float32", "float64"),
    ):
        operands = [torch.ones(s, dtype=getattr(torch, dtype)) for s, dtype in zip(shapes, dtypes, strict=True)]
        dy = torch.ones_like(xconv.conv(*operands))
        ours, theirs = (
            derivatives(torch, f, operands, dy, [a + 1 for a in operands[:2]]) for f in (bridge.conv, xconv.conv)
        )
        assert_same(torch, ours, theirs)


def test_wider_dtype(torch, bridge):
    """The gradients are computed in it as well, and then rounded."""
    x, w = leaves(torch.ones((1, 1, 3)), torch.ones((1, 1, 3)))
    y = bridge.conv(x, w, dtype=torch.float64, padding=2)
    dy = torch.tensor([[[0.0, 2**24, 1, -(2**24), 0]]], dtype=torch.float64)
    y.backward(dy)
    assert (y.dtype, x.grad.dtype, w.grad.dtype) == (torch.float64, torch.float32, torch.float32)
    assert w.grad.flatten()[1] == 1  # 2**24 + 1 - 2**24, which is 0 in float32


def test_the_algorithm_is_that_of_the_gradients_too(torch, bridge, integers, monkeypatch):
    seen = calls(monkeypatch)
    x, w = leaves(*integers((1, 2, 5), (3, 2, 3)))
    bridge.conv(x, w, algorithm="gemm", dtype=torch.float64).sum().backward()
    assert [options for *_, options in seen] == [{"algorithm": "gemm", "dtype": torch.float64}] * 3


@every_case
def test_results_may_be_changed_in_place(torch, bridge, integers, case):
    function, _, _, options = case
    x_shape, w_shape, _, y_shape = shapes(case)
    x, w, dy = integers(x_shape, w_shape, y_shape)
    ours, theirs = leaves(x, w), leaves(x, w)
    getattr(bridge, function)(*ours, **options).relu_().backward(dy)
    getattr(xconv, function)(*theirs, **options).relu().backward(dy)
    assert_same(torch, [a.grad for a in ours], [a.grad for a in theirs])


def test_the_bias_may_change_before_the_backward_pass(torch, bridge, integers):
    x, w, b = leaves(*integers((1, 2, 5), (3, 2, 3), (3,)))
    y = bridge.conv(x, w, b).sum()
    with torch.no_grad():
        b.add_(1)
    y.backward()
    assert b.grad.tolist() == [3, 3, 3]


def test_errors_are_those_of_xconv(torch, bridge):
    x, w = torch.ones((1, 2, 5)), torch.ones((3, 2, 3))
    with pytest.raises(ValueError, match="`b` must have one element per output channel"):
        bridge.conv(x, w, torch.ones(2))
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        bridge.conv(x, w, stride=0)
    with pytest.raises(TypeError, match="`groups` must be made of integers"):
        bridge.conv(x, w, groups=1.0)
    with pytest.raises(TypeError, match="output_padding"):
        bridge.conv(x, w, output_padding=1)
    with pytest.raises(TypeError, match="pad_mode"):
        bridge.conv_transpose(x, w, pad_mode="edge")
    with pytest.raises(TypeError, match="`x` and `w` must be of one array library"):
        bridge.conv(x, w.numpy())


# torch.func


@pytest.mark.parametrize("name", ["2d-all", "wrap", "transpose-all"])
def test_functional_gradients(torch, bridge, integers, name):
    """Of first and second order."""
    function, _, _, options = case = CASES[name]
    x_shape, w_shape, _, y_shape = shapes(case)
    x, w, v, dy = integers(x_shape, w_shape, x_shape, y_shape)
    results = []
    for module in (bridge, xconv):

        def loss(x, w, module=module):
            return torch.sum(dy * getattr(module, function)(x, w, **options))

        def slope(x, w, loss=loss):
            return torch.sum(v * torch.func.grad(loss)(x, w))

        results.append([*torch.func.grad(loss, argnums=(0, 1))(x, w), *torch.func.grad(slope, argnums=(0, 1))(x, w)])
    assert_same(torch, *results)


def test_vmap(torch, bridge, integers):
    """Over every operand, and gradients per image."""
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "groups": 2}
    xs, ws, bs = integers((3, 2, 4, 5, 6), (3, 6, 2, 3, 2), (3, 6))
    for dims in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)):
        operands = [a if dim == 0 else a[0] for a, dim in zip((xs, ws, bs), dims, strict=True)]
        ours, theirs = (
            torch.func.vmap(lambda *a, f=f: f(*a, **options), in_dims=dims)(*operands)
            for f in (bridge.conv, xconv.conv)
        )
        assert_same(torch, [ours], [theirs])

    def loss(w, x):
        return bridge.conv(x[None], w, **options).square().sum()

    images, w = xs[0], ws[0]
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, images)
    assert_same(torch, each, [torch.func.grad(loss)(w, image) for image in images])


def test_jacobian(torch, bridge, integers):
    x, w = integers((1, 2, 5), (3, 2, 3))
    ours, theirs = (torch.func.jacrev(f, argnums=1)(x, w) for f in (bridge.conv, xconv.conv))
    assert_same(torch, [ours], [theirs])


@pytest.mark.filterwarnings("ignore")
def test_traced_and_exported(torch, bridge, integers):
    x, w = leaves(*integers((1, 2, 5), (3, 2, 3)))
    for function in (bridge.conv, lambda x, w: bridge.conv_transpose(x, w.transpose(0, 1), stride=2)):

        class Layer(torch.nn.Module):
            def forward(self, x, w, function=function):
                return function(x, w)

        traced = torch.jit.trace(function, (x, w))
        exported = torch.export.export(Layer(), (x, w)).module()
        for program in (traced, exported):
            assert_same(torch, [program(x, w)], [function(x, w)])
