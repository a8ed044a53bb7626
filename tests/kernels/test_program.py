"""What a call comes down to on a device: how many steps it takes, that they are kept, and that they give the same."""

from collections import Counter

import numpy as np
import pytest
from oracle import Oracle

import xconv
from bench.cases import GPU_CASES, PRECISIONS
from kernels.standin import Names, StandIn, device, host, peak
from xconv import _config
from xconv._arguments import geometry
from xconv._planner import Options, computed, scheduled
from xconv.backends.cupy import _backend, _implicit
from xconv.backends.cupy._cublas import Product
from xconv.backends.cupy._program import Block, Program, Recorder, Symbol
from xconv.backends.cupy._steps import SUM, Blocks, Each, Launch, Total, each, flat, ordered

OPERANDS = {"forward": ("x", "w"), "input_grad": ("dy", "w"), "weight_grad": ("dy", "x")}


@pytest.fixture(autouse=True)
def standin():
    with StandIn().installed() as standin:
        yield standin


def numbers(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, shape)
    return (values + 1j * rng.integers(-2, 3, shape) if dtype.startswith("complex") else values).astype(dtype)


# How many steps

KINDS = {Launch: "k", Blocks: "k", Product: "p", Each: "e", Total: "t"}


def written(shapes, function, dtype="float32", *, workspace=None, precision="ieee", **options):
    """The steps of a function, by kind: of arrays that nobody ever makes."""
    dtype = np.dtype(dtype)
    settings = _config.current()._replace(workspace=workspace, precision=precision)
    dtypes = (("x", dtype), ("w", dtype))
    schedule = scheduled(_backend.CupyBackend(), shapes["x"], shapes["w"], dtypes, Options(**options), settings)
    arrays = [Symbol.described(Block(0, 0), shapes[name], dtype) for name in OPERANDS[function]]
    if schedule.w_axes and "w" in OPERANDS[function]:
        arrays[1] = arrays[1].transpose(schedule.w_axes)
    program = _backend._written(schedule.predicted(function), arrays, {}, 0, literal=True)
    found = Counter(KINDS[type(step)] for step, _ in program.steps if type(step) in KINDS)
    return " ".join(f"{count}{kind}" for kind, count in sorted(found.items()))


#: Of the benchmark on a GPU, in float32 and in float16: steps of the forward pass and of both gradients. Kernels of our
#: own (k), products by cuBLAS (p), passes over elements to copy or convert them (e), and sums over one axis (t).
STEPS = {
    "c64_56": (("1e 1k", "1e 1k", "1k 1t"), ("1e 1k", "1e 1k", "1e 1k 1p 1t")),
    "c256_14": (("1e 1k", "1e 1k", "1e 1k 1p"), ("1e 1k 1p", "2e 1k 1p", "2e 1k 1p")),
    "stem": (("2e 1k", "1k 1p", "1k 1p 1t"), ("1k 1p", "1k 1p", "1e 1k 1p 1t")),
    "vgg": (("1e 1k", "1e 1k", "1k 1t"), ("1k 1p", "1e 1k 1p", "1e 1k 1p 1t")),
    "s2": (("1e 1k", "4e 4k", "1e 1k 1p"), ("1e 1k 1p", "1k 1p", "2e 1k 1p")),
    "pw1x1": (("1e 1k", "1e 1k", "1k 1t"), ("1p", "1p", "1e 1p 1t")),
    "last": (("1e 1k", "1e 1k", "1k 1t"), ("1e 1k", "1e 1k", "1e 1k 1p")),
    "dw": (("1k", "1k", "1k 1t"), None),
    "signal": (("1e 1k", "1e 1k", "1k 1t"), None),
    "volume": (("1e 1k", "1e 1k", "1k 1t"), None),
    "single": (("1e 1k", "1e 1k", "1k 1t"), None),
    "tiny": (("2e 1k", "1k 1p", "1e 1k 1p"), None),
}
#: The same of what has columns, where that is not all there is.
WITH_COLUMNS = STEPS | {
    "c64_56": (("1k 1p", "1e 1k 1p", "1k 1p 1t"), ("1k 1p", "1e 1k 1p", "1e 1k 1p 1t")),
    "c256_14": (("1e 1k 1p", "2e 1k 1p", "1e 1k 1p"), ("1e 1k 1p", "2e 1k 1p", "2e 1k 1p")),
    "stem": (("1k 1p", "1k 1p", "1k 1p 1t"), ("1k 1p", "1k 1p", "1e 1k 1p 1t")),
    "vgg": (("2k 2p", "1e 2k 2p", "1e 2k 2p 2t"), ("1k 1p", "1e 1k 1p", "1e 1k 1p 1t")),
    "s2": (("1e 1k 1p", "1k 1p", "1e 1k 1p"), ("1e 1k 1p", "1k 1p", "2e 1k 1p")),
    "pw1x1": (("1p", "1p", "1p 1t"), ("1p", "1p", "1e 1p 1t")),
    "last": (("1e 1k 1p", "1e 1k 1p", "1k 1p"), ("1e 1k 1p", "1e 1k 1p", "1e 1k 1p")),
    "signal": (("1k 1p", "1e 1k 1p", "1k 1p 1t"), None),
    "volume": (("1k 1p", "1e 1k 1p", "1k 1p 1t"), None),
    "single": (("1k 1p", "1e 1k 1p", "1k 1p"), None),
    "tiny": (("1e 1k 1p", "1k 1p", "1e 1k 1p"), None),
}


@pytest.mark.parametrize("table", [STEPS, WITH_COLUMNS], ids=["all", "columns"])
@pytest.mark.parametrize("name", GPU_CASES)
def test_the_steps_of_the_benchmark(monkeypatch, name, table):
    if table is WITH_COLUMNS:
        unproven = _backend.CupyBackend.unproven | {"implicit"}
        monkeypatch.setattr(_backend.CupyBackend, "unproven", unproven)
    case = GPU_CASES[name]
    shapes = {operand: case.shape(operand) for operand in ("x", "w", "dy")}
    options = {field: getattr(case, field) for field in ("stride", "padding", "dilation", "groups")}
    options["layout"] = "channels_last" if case.channels_last else "channels_first"
    for precision, expected in zip(("ieee", "float16"), table[name], strict=True):
        assert (precision in case.precisions) == (expected is not None)
        if expected:
            dtype = PRECISIONS[precision][0]
            assert tuple(written(shapes, function, dtype, **options) for function in OPERANDS) == expected


@pytest.mark.parametrize("function", ["forward", "input_grad"])
def test_filters_with_channels_behind_are_multiplied_as_they_lie(function):
    """Where those of the images are, too. Filters in the default order are copied first."""
    images = {"x": (3, 6, 8, 16), "dy": (3, 4, 7, 32)}
    filters = {"oi...": (32, 16, 3, 2), "o...i": (32, 3, 2, 16), "...io": (3, 2, 16, 32), "i...o": (16, 3, 2, 32)}
    steps = {
        w_layout: written(images | {"w": w}, function, layout="channels_last", w_layout=w_layout, algorithm="gemm")
        for w_layout, w in filters.items()
    }
    assert steps == {"oi...": "1e 1k 1p", "o...i": "1k 1p", "...io": "1k 1p", "i...o": "1e 1k 1p"}


def shapes_of(x, w, **options):
    on_host = (np.lib.stride_tricks.as_strided(np.float32(0), shape, (0,) * len(shape)) for shape in (x, w))
    return {"x": x, "w": w, "dy": xconv.plan(*on_host, **options).y_shape}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [7, 35, 56])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "groups"), [(64, 1), (64, 32), (60, 5)])
def test_one_product_for_all_groups_and_images(dtype, size, kernel, channels, groups):
    """Whatever begins at no multiple of 16 bytes: planes of 35 by 35 halves, or groups of them."""
    w = (channels + 4 * groups, channels // groups, kernel, kernel)
    shapes = shapes_of((6, channels, size, size), w, groups=groups, padding=kernel // 2)
    options = {"groups": groups, "padding": kernel // 2, "algorithm": "pointwise" if kernel == 1 else "gemm"}
    for function in OPERANDS:
        steps = written(shapes, function, dtype, **options)
        assert [step for step in steps.split() if step.endswith("p")] == ["1p"], function


def test_nothing_is_cut_that_need_not_be():
    """1 GiB of columns are one tile; so is what has no columns, whatever its size, unless the workspace has no room."""
    big = (64, 64, 170, 170), (64, 64, 3, 3)  # 4 GiB of columns, 5.3 with all that may go beside them
    columns = {"padding": 1, "algorithm": "gemm"}
    assert written(shapes_of(*big, padding=1), "forward", **columns).split()[0] == "4k"
    big = (16, 64, 170, 170), (64, 64, 3, 3)  # 1.0 GiB
    assert 16 * 64 * 9 * 170**2 * 4 > 0.99 * 2**30
    for function in OPERANDS:
        steps = written(shapes_of(*big, padding=1), function, **columns)
        assert "1k 1p" in steps
        assert "1k 1p" not in written(shapes_of(*big, padding=1), function, **columns, workspace=2**28)
    huge = (256, 256, 256, 256), (256, 256, 1, 1)
    pixels = {"algorithm": "pointwise"}
    assert written(shapes_of(*huge), "forward", **pixels) == "1p"
    assert written(shapes_of(*huge), "forward", **pixels, workspace=2**28) != "1p"
    assert written(shapes_of(*huge), "forward", "float16", **pixels) != "1p"  # with a bias, summed in float32 first
    huge = (256, 256, 256, 256), (256, 1, 3, 3)
    assert written(shapes_of(*huge, groups=256), "forward", groups=256) == "1k"


@pytest.mark.parametrize("padding", [0, 1])
def test_a_tile_is_judged_as_its_target_is_set(padding):
    """Padding counts as input in both, or a padded convolution would be cut in two wherever an unpadded one is not."""
    x = np.zeros((1, 1, 1, 1), np.float32)
    for side in (40, 200):
        plan = xconv.plan(
            np.broadcast_to(x, (1, 16, side, side)),
            np.ones((16, 16, 3, 3), np.float32),
            padding=padding,
            algorithm="gemm",
        )
        assert (plan.tiles == 1) == (side == 40)


def test_halves_take_half_of_the_workspace():
    shapes = shapes_of((16, 64, 56, 56), (64, 64, 3, 3), padding=1)
    columns = 16 * 64 * 9 * 56 * 56
    tiles = [
        int(written(shapes, "forward", dtype, workspace=columns, padding=1, algorithm="gemm").split()[0][:-1])
        for dtype in ("float32", "float16")
    ]
    assert tiles[0] >= 5
    assert tiles[1] <= tiles[0] // 2 + 1


# Programs


def functions(arrays, options):
    x, w, dy, b, more = arrays
    back = {k: v for k, v in options.items() if k not in {"pad_mode"}}
    yield lambda: xconv.conv(x, w, **options)
    yield lambda: xconv.conv(x, w, b, **options)
    yield lambda: xconv.conv_input_grad(dy, w, x.shape, **options)
    yield lambda: xconv.conv_weight_grad(dy, x, w.shape, **options)
    yield lambda: xconv.conv_transpose(dy, w, more, **back)


LAST = {"layout": "channels_last"}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"padding": 1}),
        ("float16", {"padding": 1}),
        ("complex64", {"padding": 1, **LAST}),
        ("bfloat16", {"padding": 1, **LAST}),
        ("complex64", {"padding": 1, "groups": 2}),
        ("float16", {"padding": 1, "groups": 2, "stride": 2, **LAST}),
        ("complex64", {"padding": 1, "groups": 4, "algorithm": "depthwise"}),
        ("float16", {"padding": 1, "groups": 4, "algorithm": "depthwise", **LAST}),
        ("float16", {"algorithm": "pointwise"}),
        ("complex64", {"algorithm": "pointwise", "groups": 2, **LAST}),
        ("float32", {"algorithm": "implicit", "padding": 1, "stride": 2, **LAST}),
        ("float16", {"padding": 1, "workspace": 20_000}),
        ("float32", {"padding": 1, "algorithm": "winograd", "groups": 2, **LAST}),
        ("complex64", {"padding": 1, "algorithm": "winograd"}),
    ],
    ids=str,
)
def test_a_program_gives_the_same_bits(standin, monkeypatch, dtype, options):
    """As the same steps, taken as they come; on arrays in any order of memory."""
    options = dict(options)
    workspace = options.pop("workspace", None)
    groups, kernel = options.get("groups", 1), 1 if options.get("algorithm") == "pointwise" else 3
    x, w, b, more = ((3, 4, 6, 7), (8, 4 // groups, kernel, kernel), (8,), (4,))
    if options.get("layout") == "channels_last":
        x = (x[0], *x[2:], x[1])
    settings = {"precision": "tf32", "workspace": workspace}
    dy = xconv.plan(*(np.ones(shape, np.float32) for shape in (x, w)), **{**options, "algorithm": "auto"}).y_shape
    values = [numbers(shape, dtype, seed) for seed, shape in enumerate((x, w, dy, b, more))]
    plain = [device(a) for a in values]
    mirrored = [device(np.ascontiguousarray(a.T[::-1]))[::-1].T for a in values]
    shifted = []
    for a in values:
        shifted.append(device(np.zeros(a.size + 1, dtype))[1:].reshape(a.shape))
        host(shifted[-1])[...] = a
    with xconv.config(**settings):
        for arrays in (plain, mirrored, shifted):
            taken = [[function() for _ in range(4)] for function in functions(arrays, options)]
            with monkeypatch.context() as patch:
                patch.setattr(_backend, "PROGRAMMED", set())
                standin._forget()
                expected = [function() for function in functions(arrays, options)]
                standin._forget()
            for made, other in zip(taken, expected, strict=True):
                assert all(host(one).tobytes() == host(other).tobytes() for one in made)
                assert all(one.strides == other.strides for one in made)


def programs_of(plan):
    return list(plan.schedule.predicted("forward").remembered.values())


def test_a_program_is_kept(standin):
    """For the way in which the arrays lie, their alignment included; twice, since the third call has other kernels."""
    x, w = device(numbers((2, 3, 8, 8))), device(numbers((4, 3, 3, 3)))
    plan = xconv.plan(x, w, padding=1, algorithm="gemm")
    first = [plan.conv(x, w) for _ in range(2)]
    (general,) = programs_of(plan)
    assert (general.calls, general.literal) == (2, False)
    later = [plan.conv(x, w) for _ in range(3)]
    (special,) = programs_of(plan)
    assert (special.calls, special.literal) == (3, True)
    assert all(np.array_equal(host(y), host(first[0])) for y in first + later)
    plan.conv(device(numbers((2, 8, 8, 3))).transpose(0, 3, 1, 2), w)
    assert len(programs_of(plan)) == 2
    shifted = device(np.zeros(x.size + 1, "float32"))[1:].reshape(x.shape)
    plan.conv(shifted, w)
    assert len(programs_of(plan)) == 3
    with standin.devices[1]:
        there = [device(host(a)) for a in (x, w)]
    assert plan.conv(*there).device is standin.devices[1]
    assert len(programs_of(plan)) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_a_padding_with_a_value_is_a_program(standin, dtype, layout):
    x, w = numbers((2, 3, 8, 3), dtype), numbers((4, 3, 3, 3), dtype)
    options = {"layout": layout, "algorithm": "gemm"}
    padding = [(0, 0), (1, 2), (0, 3), (0, 0)] if layout == "channels_last" else [(0, 0), (0, 0), (1, 2), (0, 3)]
    expected = xconv.conv(np.pad(x, padding, constant_values=x.dtype.type(-3)), w, **options)
    plan = xconv.plan(device(x), device(w), padding=((1, 2), (0, 3)), pad_value=-3, **options)
    for _ in range(3):
        assert np.array_equal(host(plan.conv(device(x), device(w))), expected)
    assert programs_of(plan)


def test_what_writes_its_padding_out_is_cut_into_tiles():
    """And what takes no memory but the result is not."""
    backend = _backend.CupyBackend()
    for value, size in ((0, np.inf), (5, backend.tile_bytes)):
        g = geometry((1, 4, 9), (4, 1, 3), groups=4, padding=1, pad_value=value)
        assert backend.tile_size("depthwise", g, np.dtype("float32"), 0, 1) == size


def test_only_so_many_programs_are_kept(standin, monkeypatch):
    monkeypatch.setattr(_backend, "MOST_PROGRAMS", 3)
    w = device(numbers((4, 3, 3, 3)))
    for shift in range(8):
        x = device(np.zeros((2, 3, 8, 8 + shift), "float32"))[..., :8]
        plan = xconv.plan(x, w, algorithm="gemm")
        plan.conv(x, w)
        assert 1 <= len(programs_of(plan)) <= 3


def test_what_is_no_program(standin):
    """Products of integers, padding from the array, other algorithms, and what is cut into very many tiles."""
    for dtype, options in (
        ("int32", {}),
        ("float32", {"pad_mode": "wrap", "padding": 1}),
    ):
        x, w = device(numbers((2, 3, 8, 8), dtype)), device(numbers((4, 3, 3, 3), dtype))
        plan = xconv.plan(x, w, **options, algorithm="gemm")
        plan.conv(x, w)
        assert not programs_of(plan)
    with xconv.config(workspace=5000):
        x, w = device(numbers((4, 2, 30, 30))), device(numbers((2, 2, 3, 3)))
        plan = xconv.plan(x, w, algorithm="gemm")
        assert plan.tiles > _backend.MOST_PROGRAMMED_TILES
        expected = xconv.conv(host(x), host(w), algorithm="gemm")
        assert np.array_equal(host(plan.conv(x, w)), expected)
        assert not programs_of(plan)


def test_integers_have_programs_of_windows(standin):
    x = device(numbers((2, 3, 8, 8), "int8"))
    cols = [xconv.im2col(x, 3) for _ in range(4)]
    assert len({host(c).tobytes() for c in cols}) == 1
    assert len({host(xconv.col2im(cols[0], 8)).tobytes() for _ in range(4)}) == 1


@pytest.mark.parametrize(("kernel", "padding"), [(1, 2), (3, 6), (3, 1)])
@pytest.mark.parametrize("groups", [1, 4])
def test_integers_by_any_way(standin, kernel, padding, groups):
    """Their products are CuPy's own; an input gradient may be made by another algorithm than the forward pass."""
    shapes, options = ((2, 4, 4, 5), (12, 4 // groups, kernel, kernel)), {"padding": padding, "groups": groups}
    x, w = (device(numbers(shape, "int8")) for shape in shapes)
    oracle = Oracle(*shapes, **options)
    dy = device(numbers(oracle.y_shape, "int8", 1))
    for _ in range(3):
        assert np.array_equal(host(xconv.conv(x, w, **options)), oracle.conv(host(x), host(w)).astype("int8"))
        dx = oracle.input_grad(host(dy), host(w)).astype("int8")
        assert np.array_equal(host(xconv.conv_input_grad(dy, w, x.shape, **options)), dx)
        assert np.array_equal(host(xconv.conv_transpose(dy, w, **options)), dx)


def test_one_schedule_for_several_kinds_of_calls(standin):
    """Conjugated or not, of one half type or the other: parts of Dask arrays share what only their result decides."""
    x, w = numbers((2, 2, 6, 6), "complex64"), numbers((4, 2, 3, 3), "complex64", 1)
    oracle = Oracle(x.shape, w.shape)
    dy = numbers(oracle.y_shape, "complex64", 2)
    g = xconv.plan(device(x), device(w)).schedule.geometry

    def part(dtype, function, *arrays, **options):
        arrays = [device(a) for a in arrays]
        return host(computed("auto", _config.current(), g, np.dtype(dtype), function, *arrays, **options))

    for _ in range(4):
        assert np.array_equal(part("complex64", "input_grad", dy, w), oracle.input_grad(dy, w))
        plain = part("complex64", "input_grad", dy, w, conjugate=False)
        assert np.array_equal(plain, oracle.input_grad(dy, w.conj()))
        for half in ("float16", "bfloat16"):
            made = part("float32", "forward", x.real.astype(half), w.real.astype("float32"))
            assert np.array_equal(made, oracle.conv(x.real, w.real))


def test_programs_settle(standin, monkeypatch):
    """As many ways to lie as are kept, one after the other: nothing is written anew once all have their kernels."""
    monkeypatch.setattr(_backend, "MOST_PROGRAMS", 4)
    w = device(numbers((4, 2, 3, 3), "float16"))
    whole = device(numbers((2, 2, 6, 20), "float16"))
    plan = xconv.plan(whole[..., :6], w, algorithm="gemm")
    for turn in range(5):
        for shift in range(4) if turn != 2 else reversed(range(4)):  # in turn 2, the newest is the first to be replaced
            plan.conv(whole[..., shift : shift + 6], w)
        if turn == 3:
            kept = programs_of(plan)
    assert [a is b for a, b in zip(programs_of(plan), kept, strict=True)] == [True] * 4


@pytest.mark.parametrize("groups", [1, 2])
def test_a_weight_gradient_of_many_channels_and_few_pixels(standin, groups):
    """The sums side by side are fewer than the images, which are added to them in turn."""
    shapes = (7, 64, 3, 2), (4, 64 // groups, 1, 1)
    oracle = Oracle(*shapes, groups=groups)
    x, dy = device(numbers(shapes[0])), device(numbers(oracle.y_shape, seed=1))
    made = xconv.conv_weight_grad(dy, x, shapes[1], groups=groups, algorithm="pointwise")
    assert np.array_equal(host(made), oracle.weight_grad(host(dy), host(x)))
    assert len(standin.blas.calls) == {1: 7, 2: 4}[groups]


@pytest.mark.parametrize(("step", "start"), [(1, 0), (1, 1), (-1, 0), (-1, 1)])
def test_alignment_is_that_of_the_memory_and_not_of_its_first_element(step, start):
    whole = Symbol.described(Block(0, 0), (1, 1, 41), np.dtype("float32"))
    _, memory = flat(whole[..., start : start + 38][..., ::step])
    assert memory.start == (0 if step > 0 else 37)
    assert memory.aligned == (start == 0)


@pytest.mark.parametrize("programmed", [True, False])
def test_memory_is_given_back_as_it_is_without_a_program(standin, monkeypatch, programmed):
    """Tile after tile: the next begins when the one before has left its memory."""
    if not programmed:
        monkeypatch.setattr(_backend, "PROGRAMMED", set())
    standin.launches = Names()
    x, w = device(numbers((8, 8, 20, 20))), device(numbers((8, 8, 3, 3)))
    dy, options = device(numbers((8, 8, 20, 20), seed=1)), {"padding": 1, "algorithm": "gemm"}
    for function in (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    ):
        whole = peak(monkeypatch, function)
        workspace = 200_000
        assert whole > 3 * workspace
        with xconv.config(workspace=workspace):
            for _ in range(4):
                standin.launches.clear()
                assert peak(monkeypatch, function) <= workspace
                assert len(standin.launches) >= 3


BOUNDED = [
    ({"groups": 2, "algorithm": "gemm"}, (6, 8, 9, 7), (8, 4, 3, 3)),
    ({"groups": 4, "algorithm": "pointwise"}, (6, 64, 3, 3), (64, 16, 1, 1)),
    ({"algorithm": "pointwise"}, (5, 64, 3, 2), (8, 64, 1, 1)),
    ({"groups": 2, "padding": 1, "algorithm": "gemm"}, (3, 4, 33, 35), (6, 2, 3, 3)),
    ({"padding": 1, "stride": 2, "algorithm": "gemm"}, (4, 16, 15, 15), (24, 16, 3, 3)),
    ({"padding": 1, "layout": "channels_last", "algorithm": "gemm"}, (4, 15, 14, 8), (8, 8, 3, 3)),
    ({"groups": 8, "algorithm": "depthwise"}, (4, 8, 15, 15), (16, 1, 3, 3)),
    ({"stride": 9, "algorithm": "gemm"}, (2, 4, 40, 40), (4, 4, 1, 1)),
    ({"stride": 2, "algorithm": "gemm"}, (1, 64, 4, 4), (64, 64, 1, 1)),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize(("options", "x", "w"), BOUNDED, ids=str)
def test_the_workspace_is_a_bound(standin, monkeypatch, options, x, w, dtype):
    """Also for what is copied on the way: planes that begin anywhere, filters once an image, sums side by side."""
    standin.launches = Names()
    x, w = device(numbers(x, dtype)), device(numbers(w, dtype))
    plan = xconv.plan(x, w, **options)
    dy, b = device(numbers(plan.y_shape, dtype, 1)), device(numbers(w.shape[:1], dtype))
    for function in (
        lambda: xconv.conv(x, w, b, **options),
        lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    ):
        with pytest.raises(ValueError, match="`workspace` must be at least") as caught, xconv.config(workspace=1):
            function()
        least = caught.value.least
        for workspace in (
            (least, 3 * least) if dy.size < 2000 else (9 * least, 27 * least)
        ):  # in hundreds of tiles at most
            with xconv.config(workspace=workspace):
                assert peak(monkeypatch, function) <= workspace


def test_lanes_of_a_weight_gradient_are_within_the_workspace(standin, monkeypatch):
    """The last tile may have more of them than the others."""
    standin.launches = Names()
    x, dy = device(np.zeros((1, 16, 4865), "float32")), device(np.zeros((1, 16, 4865), "float32"))
    with xconv.config(workspace=38_000):
        most = peak(monkeypatch, lambda: xconv.conv_weight_grad(dy, x, (16, 16, 1), algorithm="implicit"))
    assert most <= 38_000


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_has_no_columns_takes_no_memory(standin, monkeypatch, dtype):
    """But for filters in another order of memory, and a weight gradient's partial sums."""
    standin.launches = Names()
    x, dy = (device(numbers((8, 8, 33, 32), dtype, seed)) for seed in (0, 1))
    one, each, b = (device(numbers(shape, dtype)) for shape in ((8, 8, 1, 1), (8, 1, 3, 3), (8,)))
    for function in (
        lambda: xconv.conv(x, one),
        lambda: xconv.conv(x, each, padding=1, groups=8),
        lambda: xconv.conv_input_grad(dy, one, x.shape),
        lambda: xconv.conv_input_grad(dy, each, x.shape, padding=1, groups=8),
        lambda: xconv.conv(x, one, b) if dtype == "float32" else xconv.conv(x, one),
    ):
        for _ in range(4):
            assert peak(monkeypatch, function) <= each.nbytes


def test_an_older_device_is_found_by_every_call(standin, monkeypatch):
    x, w = device(numbers((1, 4, 4, 8), "float16")), device(numbers((8, 8, 3, 3), "float16"))
    plan = xconv.plan(x, w, algorithm="implicit", layout="channels_last")
    for _ in range(4):
        plan.conv(x, w)
    monkeypatch.setattr(_implicit, "LEAST_CAPABILITY", 1000)
    with pytest.raises(ValueError, match="takes a device of compute capability"):
        plan.conv(x, w)
    y = xconv.conv(x, w, algorithm="gemm", layout="channels_last")
    plan = xconv.plan(device(numbers((64, 56, 56, 8), "float16")), w, layout="channels_last")
    assert plan.algorithm == "implicit"  # and a plan that was not asked for it takes the next
    assert np.array_equal(host(xconv.plan(x, w, layout="channels_last").conv(x, w)), host(y))


def test_a_symbol_is_a_view_or_an_error():
    a = Symbol.described(Block(3, 2), (2, 3, 4), np.dtype("float32"))
    assert (a.place, a.data.ptr) == ((3, 0), 2)
    part = a[1:, ::-1].transpose(0, 2, 1)
    assert part.place == (3, 4 * (12 + 8))
    assert part.data.ptr == 2 + 4 * (12 + 8)
    assert part.strides == (48, 4, -16)
    with pytest.raises(ValueError, match="copy"):
        part.reshape(12)
    assert a[:0, 1:].place == (3, 0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)])
def test_elements_are_gone_through_as_the_result_lies(order):
    """Neighbours in memory by threads that are neighbours: CuPy never changes the order of axes."""
    y, b = ((shape, np.dtype("float32"), None) for shape in ((2, 3, 4, 5), (1, 3, 1, 1)))
    do = Recorder(0, literal=False)
    program = do.record(lambda y, b: each(do, SUM, y, b, ordered(do, y.shape, y.dtype, order)), (y, 0), (b, 0))
    (step,) = (step for step, _ in program.steps if type(step) is Each)
    steps = step.views[-1].strides
    assert list(steps) == sorted(steps, reverse=True)
    assert step.views[1].shape == tuple((1, 3, 1, 1)[axis] for axis in order)


def test_a_program_is_not_entered_with_arrays(standin):
    """What it is written of are symbols, which hold no memory."""
    x, w = device(numbers((2, 3, 8, 8))), device(numbers((4, 3, 3, 3)))
    plan = xconv.plan(x, w, algorithm="gemm")
    plan.conv(x, w)
    (program,) = programs_of(plan)
    assert isinstance(program, Program)
    before = host(x).copy()
    host(x)[...] = 1
    ones = host(plan.conv(x, w)).copy()
    assert np.array_equal(ones, xconv.conv(np.ones_like(before), host(w), algorithm="gemm"))


def test_a_view_of_nothing_begins_where_its_memory_does(standin):
    """There is no pointer in front of memory that is not there."""
    x = device(np.zeros((0, 1, 3), "float32"))[:, :, ::-1]
    view, memory = flat(x)
    assert (view.before, memory.start) == (0, 0)
    x, w, options = device(np.zeros((0, 1, 1), "float32")), device(np.ones((1, 1, 1), "float32")), {"pad_mode": "edge"}
    dw = xconv.conv_weight_grad(
        xconv.conv(x, w, padding=((-1, 2),), **options), x, w.shape, padding=((-1, 2),), **options
    )
    assert np.array_equal(host(dw), [[[0]]])
