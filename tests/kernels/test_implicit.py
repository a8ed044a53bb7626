"""The kernel on tensor cores: compiled, run on the CPU, broken on purpose, and called as on a device."""

import io
import itertools
import re

import cupy
import numpy as np
import pytest
from cupy.cuda import compiler
from oracle import Oracle

import xconv
from kernels import cuda
from kernels.cases import Placed
from kernels.cpu import KernelError
from kernels.products import DTYPES, case, geometry, random_cases
from kernels.standin import StandIn, device, host
from kernels.test_sanitizers import run as run_sanitized
from kernels.warps import warps
from xconv._axis import Axis
from xconv._ranking import plans
from xconv.backends.cupy import _implicit, _implicit_kernel

ARCHITECTURES = [a for a in cuda.ARCHITECTURES if a >= _implicit_kernel.LEAST_CAPABILITY]
LAYER, STEPS = (Axis(24, 3, 1, 1, 1, 1),) * 2, (Axis(17, 4, 3, 2, 0, 1), Axis(6, 2, 1, 1, 1, 0))
#: Channels in and out, axes, and whether it is the input gradient.
COMPILED = {
    "layer": (64, 128, LAYER, False),
    "narrow": (64, 64, LAYER, False),
    "few": (32, 32, LAYER, False),
    "ragged": (3, 72, LAYER, False),
    "line": (24, 64, (Axis(400, 4, 3, 2, 0, 1),), False),
    "volume": (16, 32, (*STEPS, LAYER[0]), False),
    "adjoint": (128, 64, (Axis(24, 3, 2, 1, 1, 1),) * 2, True),
}


# What NVIDIA's compiler makes of it


def binary(product, architecture):
    """As CuPy compiles it, but for the headers, of which it needs none."""
    log = io.StringIO()
    options = (f"-arch=sm_{architecture}", "-std=c++17", "--ptxas-options=-v")
    cubin, _ = compiler._NVRTCProgram(product.code, product.name, method="cubin").compile(options, log)
    return cuda.Binary(cubin, log.getvalue())


def product_of(channels, filters, axes, dtype, *, adjoint=False):
    """The kernel for contiguous images, channels last."""
    g = geometry(channels, filters, *axes, batch=8)
    shapes = (g.y_shape, g.x_shape) if adjoint else (g.x_shape, g.y_shape)
    order = (0, *range(2, 2 + len(axes)), 1)
    return _implicit_kernel.product(g, *(Placed(shape, dtype, order=order).memory for shape in shapes), adjoint=adjoint)


@pytest.mark.parametrize(
    ("name", "dtype", "architecture"),
    [
        *(("layer", dtype, architecture) for dtype in DTYPES for architecture in ARCHITECTURES),
        *((name, "float16", 90) for name in COMPILED if name != "layer"),
        ("ragged", "float32", 80),
        ("ragged", "bfloat16", 100),
    ],
)
def test_compiled(name, dtype, architecture):
    """No spills, two blocks on a multiprocessor, and the instructions that it is written for."""
    channels, filters, axes, adjoint = COMPILED[name]
    made = binary(product_of(channels, filters, axes, dtype, adjoint=adjoint), architecture)
    assert made.spilled == made.stack == 0
    assert made.registers <= 128
    assert made.count("LDL|STL|MUFU") == 0
    # Each half of a slice takes a warp `high` matrices of pixels, 2 of filters and 4 products of each of the former;
    # the compiler may write out more than one slice.
    tile = 128 if (channels if adjoint else filters) > 64 else filters
    high = _implicit_kernel.ROWS * tile // _implicit_kernel.THREADS // 16
    products, matrices = made.count("HMMA"), made.count("LDSM")
    assert products % (2 * high * 4) == 0 < products
    assert matrices * high * 4 == products * (high + 2)
    kind = {"float16": "16816.F32", "bfloat16": "16816.F32.BF16", "float32": "1688.F32.TF32"}[dtype]
    assert made.count(rf"HMMA\.{re.escape(kind)}$") == products
    assert made.count(r"LDGSTS\S*\.128") == made.count("LDGSTS") > 0
    assert (made.count(r"LDG\.") > 0) == (name == "ragged")


def test_a_misspelt_name_is_an_error():
    product = product_of(8, 8, LAYER, "float16")
    with pytest.raises(compiler.CompileException, match="sum"):
        binary(product._replace(kernel=product.kernel.replace("sums[i][j]", "sum[i][j]")), 90)


# Its values


def check(cases):
    cases = list(cases)
    warps().prepare([c.product for c in cases])
    for c in cases:
        c.check(warps())


def test_any_geometry():
    check(random_cases(48))


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_of_tiles(dtype):
    """Pixels, filters and depths that fill tiles, and that are one more or one less."""
    axes = [Axis(n, 1) for n in (127, 128, 129)]
    sizes = [(8, 31), (24, 64), (9, 65), (32, 128), (7, 129)]
    check(case(geometry(c, f, axes[i % 3], batch=1), dtype, seed=i, wide=i % 2 > 0) for i, (c, f) in enumerate(sizes))


@pytest.mark.parametrize("adjoint", [False, True])
def test_not_a_number_stays_in_the_windows_that_see_it(adjoint):
    sizes = itertools.product((8, 12), (40, 70))
    check(case(geometry(c, f, Axis(40, 3, 3, 1, 1, 1)), nan=True, adjoint=adjoint) for c, f in sizes)


@pytest.mark.parametrize("scattered", [False, True])
def test_more_than_2_31_elements(scattered):
    g = geometry(8, 16, Axis(5, 3, 1, 1, 1, 1))
    c = case(g, apart=2**31) if not scattered else case(g, seed=3, scattered=True)
    assert ("_i64_" in c.product.name) == (not scattered)
    c.check(warps())


def test_operands_are_rounded_to_tf32():
    """Each to the nearest, before it is multiplied; sums are not."""
    c = case(geometry(1, 1, Axis(60, 1)), "float32")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 1, 60)).astype("f4"), np.float32(1 / 3)
    c.source.fill(x)
    c.filters[...] = 0
    c.filters[0, 0, 0] = w

    def rounded(a):
        return ((a.view("u4") + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view("f4")

    warps().launch(c.product, c.source.flat, c.filters.ravel(), c.result.flat)
    assert np.array_equal(c.result.view, rounded(x) * rounded(np.array([w])))
    assert not np.array_equal(c.result.view, x * w)


def test_the_form_of_a_kernel():
    """16 bytes at once where everything is aligned, two results at once where they are neighbours; and its name."""
    g = geometry(8, 16, Axis(9, 3, 2, 1, 1, 0), Axis(8, 2, 1, 2, -1, 0))
    product = case(g).product
    assert product.name == ("xconv_implicit_n2_c8_o16_9x8_k3x2_s2x1_d1x2_l1xm1_h0x0_float16_float16_i32_8_32")
    assert "#define PACKED" in product.head
    assert "PAIRED = 1;" in product.head
    odd = case(geometry(7, 15, *g.axes)).product
    assert odd.name.endswith("_i32_1_32")
    assert "#define PACKED" not in odd.head
    assert "PAIRED = 0;" in odd.head


# Slips in its text

FORMS = {
    "plain": lambda: case(geometry(40, 40, Axis(9, 3, 2, 1, 1, 2), Axis(11, 2, 1, 2, 0, 1)), nan=True),
    "deep": lambda: case(geometry(64, 70, Axis(70, 3, 1, 1, 1, 1)), "bfloat16"),
    "tf32": lambda: case(geometry(20, 33, Axis(7, 3, 2, 1, 1, 1), Axis(9, 2)), "float32", nan=True),
    "single": lambda: case(geometry(11, 20, Axis(9, 3, 2, 1, 1, 2), Axis(9, 2, 1, 2)), nan=True, wide=True),
    "scattered": lambda: case(geometry(9, 21, Axis(9, 3, 2), Axis(8, 2), Axis(3, 2)), seed=2, scattered=True),
    "volume": lambda: case(geometry(8, 24, Axis(8, 3, 1, 1, 1, 0), Axis(3, 1), Axis(2, 1)), nan=True),
    "backwards": lambda: case(geometry(9, 21, Axis(9, 3), Axis(8, 2)), seed=9, scattered=True),
    "adjoint": lambda: case(geometry(33, 24, Axis(12, 3, 2, 1, 1, 1), Axis(9, 2, 3, 2, 0, 2)), adjoint=True, nan=True),
}

#: The form, what is replaced in its text, and by what.
MUTATIONS = [
    # Shared memory: where a chunk lies, and when it may be read and written to.
    ("plain", r"\(chunk \^ \(row / 2 % 4\)\)", "chunk"),
    ("plain", r"row / 2 % 4", "row % 4"),
    ("plain", r"row \* 4 \+ \(chunk", "row * 2 + (chunk"),
    ("plain", r"slices\[step % STAGES\];\n    const", "slices[(step + 1) % STAGES];\n    const"),
    ("deep", r"__syncthreads\(\);", ""),
    ("deep", r"wait<STAGES - 2>\(\);", ""),
    ("deep", r"wait<STAGES - 2>", "wait<STAGES - 1>"),
    ("deep", r"commit\(\);\n    Chunk", "Chunk"),
    ("deep", r"fetch\(step \+ STAGES - 1\)", "fetch(step + STAGES)"),
    ("deep", r"step \+ STAGES - 1 < STEPS", "step + STAGES < STEPS"),
    ("deep", r"step < STAGES - 1; \+\+step", "step < STAGES; ++step"),
    ("single", r"step % STAGES\];\n#pragma", "step % 2];\n#pragma"),
    # Fragments, and a lane's place in them.
    ("plain", r"lane % 16, half \+ lane / 16", "lane % 16, half + lane / 8 % 2"),
    ("plain", r"i \* 16 \+ lane % 16", "i * 16 + lane / 2"),
    ("plain", r"lane % 8 \+ lane / 16 \* 8", "lane % 16"),
    ("plain", r"half \+ lane / 8 % 2", "half + lane / 16"),
    ("plain", r"half < 4; half \+= 2", "half < 2; half += 2"),
    ("plain", r"b\[j\], place", "b[j ^ 2], place"),
    ("tf32", r"half \+ lane / 8 % 2", "half"),
    ("tf32", r"a\[i / 4\]\[i % 4\] = rounded_to_tf32\((.*?)\);", r"a[i / 4][i % 4] = \1;"),
    ("tf32", r"j < 8; \+\+j\) b", "j < 7; ++j) b"),
    ("deep", r"multiply\(sums\[i\]\[j\], a\[i\]", "multiply(sums[i][j], a[0]"),
    ("plain", r"i % 2 \* 2\]", "0]"),
    ("plain", r"i \* 8 \+ lane / 4", "i * 8 + lane % 8"),
    ("plain", r"j \* 8 \+ lane % 4 \* 2", "j * 8 + lane % 8"),
    ("scattered", r"lane % 4 \* 2 \+ s", "lane % 4 * 2"),
    ("deep", r"warp / WARPS_ALONG \* WARP_ROWS", "warp % WARPS_ALONG * WARP_ROWS"),
    ("deep", r"% BLOCKS_OF_FILTERS \* FILTERS", "/ BLOCKS_OF_FILTERS * FILTERS"),
    # What is inside.
    ("plain", r"f < RESULT_CHANNELS && k < DEPTH", "k < DEPTH"),
    ("plain", r"f < RESULT_CHANNELS && k < DEPTH", "f < RESULT_CHANNELS"),
    ("plain", r"if \(f < RESULT_CHANNELS\)", ""),
    ("plain", r"if \(m >= PIXELS\) return \{-1, 0, 0, 0\};", ""),
    ("plain", r"if \(p.n < 0\) continue;", ""),
    ("backwards", r"p.n < 0 \|\| t", "t"),
    ("volume", r"t >= TAPS \|\| ", ""),
    ("volume", r"i0 < 0 \|\| ", ""),
    ("plain", r" \|\| i2 < 0", ""),
    ("plain", r"i < SIZE", "i <= SIZE"),
    ("single", r"from >= 0 && c \+ j", "c + j"),
    ("single", r"&& c \+ j < CHANNELS", ""),
    ("plain", r"from >= 0\);", "true);"),
    ("adjoint", r"q % STRIDE == 0 &&", ""),
    ("adjoint", r"o < SIZE", "o <= SIZE"),
    # Which element.
    ("plain", r"at \* STRIDE - LO", "at * STRIDE + LO"),
    ("plain", r"t \* DILATION;\n  return i", "t;\n  return i"),
    ("adjoint", r"at \+ LO", "at - LO"),
    ("adjoint", r"t \* DILATION, o", "t, o"),
    ("volume", r"t / KERNEL2 % KERNEL1", "t / KERNEL2"),
    ("volume", r"m / RESULT2 % RESULT1", "m / RESULT1 % RESULT1"),
    ("plain", r"k % CHUNKS \* V", "k % CHUNKS"),
    ("plain", r"step \* 4 \+ q", "step * 4 + q + 1"),
    ("scattered", r"p.n \* SOURCE_N", "0"),
    ("scattered", r"SOURCE_START \+ ", ""),
    ("scattered", r"RESULT_START \+ ", ""),
    ("scattered", r"\(c \+ j\) \* SOURCE_C", "(c + j)"),
    ("scattered", r"\(I\)f \* RESULT_C", "f"),
    ("scattered", r"i1 \* SOURCE_STEP1", "i1 * SOURCE_STEP2"),
]


@pytest.fixture(scope="module")
def forms():
    """All texts, as they are and with their slips, compiled together."""
    made = {name: make() for name, make in FORMS.items()}
    slips = [made[name].mutated(pattern, slip) for name, pattern, slip in MUTATIONS]
    warps().prepare([c.product for c in made.values()] + slips)
    return made


@pytest.mark.parametrize("name", FORMS)
def test_without_a_slip(forms, name):
    forms[name].check(warps())


@pytest.mark.parametrize(("name", "pattern", "slip"), MUTATIONS)
def test_a_slip_is_caught(forms, name, pattern, slip):
    wrong = forms[name].mutated(pattern, slip)
    assert wrong != forms[name].product
    with pytest.raises((AssertionError, KernelError)):
        forms[name].check(warps(), wrong)


def test_no_undefined_behaviour():
    """And a slip that leaves an array is noticed by the same process."""
    done = run_sanitized("warps", r"i < WARP_ROWS / 16; \+\+i\)\n        load", "i < 99; ++i)\n        load")
    assert done.stdout == "no error without the slip\n", done.stderr[-4000:]
    assert done.returncode != 0
    assert re.search("out of bounds|overflow", done.stderr)


# The whole way of a call


@pytest.fixture
def standin():
    with StandIn().installed() as standin:
        yield standin


OPTIONS = {"stride": (2, 1), "padding": ((1, 2), 0), "dilation": (1, 2)}
IMPLICIT = {"layout": "channels_last", "algorithm": "implicit"}


def numbers(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


def first(a):
    return np.moveaxis(a, -1, 1)


def same(actual, expected, dtype):
    assert type(actual) is cupy.ndarray
    assert actual.dtype == dtype
    assert np.array_equal(host(actual), expected.astype(dtype))


def names(standin):
    return [re.match("xconv_(implicit_input_grad|implicit|im2col|add)", name).group(1) for name in standin.names]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *((dtype, OPTIONS) for dtype in DTYPES),
        ("float32", {"padding": 1}),
    ],
)
def test_the_three_functions(standin, dtype, options):
    x, w, b = (device(numbers(shape, dtype)) for shape in ((2, 6, 8, 5), (10, 5, 3, 2), (10,)))
    oracle = Oracle((2, 5, 6, 8), w.shape, **options)
    dy = device(np.moveaxis(numbers(oracle.y_shape, dtype, 1), 1, -1).copy())
    options = {**options, **IMPLICIT}
    y = np.moveaxis(oracle.conv(first(host(x)), host(w)), 1, -1)
    with xconv.config(precision="tf32"):
        same(xconv.conv(x, w, **options), y, dtype)
        same(xconv.conv(x, w, b, **options), y + host(b), dtype)
        dx = xconv.conv_input_grad(dy, w, x.shape, **options)
        same(dx, np.moveaxis(oracle.input_grad(first(host(dy)), host(w)), 1, -1), dtype)
        assert not any("im2col" in name or "col2im" in name for name in standin.names)
        dw = xconv.conv_weight_grad(dy, x, w.shape, **options)
    same(dw, oracle.weight_grad(first(host(dy)), first(host(x))), dtype)
    assert names(standin)[-1] == "im2col"


@pytest.mark.parametrize("stride", [1, (2, 1)])
def test_an_input_gradient_by_either_kernel(standin, stride):
    """By its own, or of stride 1 by that of the forward pass with reflected filters."""
    x, w = device(numbers((2, 6, 8, 5), "float16")), device(numbers((10, 5, 3, 2), "float16"))
    oracle = Oracle((2, 5, 6, 8), w.shape, padding=1, stride=stride)
    dy = device(np.moveaxis(numbers(oracle.y_shape, "float16", 1), 1, -1).copy())
    plan = xconv.plan(x, w, padding=1, stride=stride, **IMPLICIT)
    ways = {one.name: one for one in plans(plan.schedule.problem, "input_grad")}
    assert set(ways) == ({"implicit", "implicit, reflected"} if stride == 1 else {"implicit"})
    for name, way in ways.items():
        standin.launches.clear()
        same(
            plan.schedule.problem.backend.call(way, dy, w),
            np.moveaxis(oracle.input_grad(first(host(dy)), host(w)), 1, -1),
            "float16",
        )
        assert set(names(standin)) == {"implicit" if name.endswith("reflected") else "implicit_input_grad"}


def test_a_padding_that_is_not_zeros(standin):
    x, w, options = (
        device(numbers((2, 9, 5), "float16")),
        device(numbers((6, 5, 3), "float16")),
        {"pad_mode": "reflect"},
    )
    oracle = Oracle((2, 5, 9), w.shape, padding=2, stride=2, **options)
    options |= {"padding": 2, "stride": 2, **IMPLICIT}
    y = xconv.conv(x, w, **options)
    same(y, np.moveaxis(oracle.conv(first(host(x)), host(w)), 1, -1), "float16")
    dx = xconv.conv_input_grad(y, w, x.shape, **options)
    same(dx, np.moveaxis(oracle.input_grad(first(host(y)), host(w)), 1, -1), "float16")


def test_transposed(standin):
    x, w, b = (device(numbers(shape, "float16")) for shape in ((2, 5, 5, 4), (4, 3, 3, 3), (3,)))
    y = xconv.conv_transpose(x, w, b, stride=2, padding=1, output_padding=1, **IMPLICIT)
    expected = Oracle((2, 3, 10, 10), w.shape, stride=2, padding=1).input_grad(first(host(x)), host(w))
    same(y, np.moveaxis(expected, 1, -1) + host(b), "float16")
    assert "implicit_input_grad" in names(standin)


def test_a_kernel_is_written_once_a_geometry(standin):
    x, w = device(numbers((2, 6, 8, 8), "float16")), device(numbers((16, 8, 3, 3), "float16"))
    before = _implicit.ready.cache_info()
    for _ in range(3):
        xconv.conv(x, w, **IMPLICIT)
    assert _implicit.ready.cache_info().misses - before.misses == 1
    assert len(set(standin.names)) == 1


def test_in_tiles(standin):
    """A small workspace cuts it, as it does im2col."""
    x, w = device(numbers((3, 12, 8, 8), "float16")), device(numbers((4, 8, 3, 3), "float16"))
    expected = np.moveaxis(Oracle((3, 8, 12, 8), w.shape, padding=1).conv(first(host(x)), host(w)), 1, -1)
    with xconv.config(workspace=20_000):
        same(xconv.conv(x, w, padding=1, **IMPLICIT), expected, "float16")
    assert len(standin.names) > 1


def test_views(standin):
    """Whatever a view looks like, it is neither copied nor moved; packs are read where it is aligned."""
    whole, w = device(numbers((4, 9, 8, 16), "float16")), device(numbers((4, 8, 2, 2), "float16"))
    views = whole[..., :8], whole[..., 1:9], whole[::2, 1:8, ::-1, ::2], device(numbers((2, 8, 9, 8), "float16"))
    views = (*views[:3], views[3].transpose(0, 2, 3, 1))
    for x in views:
        y = np.moveaxis(Oracle(first(host(x)).shape, w.shape).conv(first(host(x)), host(w)), 1, -1)
        same(xconv.conv(x, w, **IMPLICIT), y, "float16")
    assert [re.search(r"_i32_(\d)_", name).group(1) for name in standin.names] == ["8", "1", "1", "1"]


def test_empty_arrays(standin):
    for n, c, f in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        x, w = device(numbers((n, 4, 4, c), "float16")), device(numbers((f, c, 3, 3), "float16"))
        y = xconv.conv(x, w, stride=2, **IMPLICIT)
        same(y, np.zeros((n, 1, 1, f)), "float16")
        same(xconv.conv_input_grad(y, w, x.shape, stride=2, **IMPLICIT), np.zeros(x.shape), "float16")
        same(xconv.conv_weight_grad(y, x, w.shape, stride=2, **IMPLICIT), np.zeros(w.shape), "float16")


def refused(x, w, precision="ieee", **options):
    with pytest.raises(ValueError, match=r"^`algorithm` 'implicit'") as caught, xconv.config(precision=precision):
        xconv.conv(device(x), device(w), **{**IMPLICIT, **options})
    return str(caught.value).partition(": ")[2]


def test_what_it_cannot_serve(standin):
    x, w = np.zeros((2, 6, 6, 4), "float16"), np.zeros((4, 4, 3, 3), "float16")
    assert refused(x.swapaxes(1, 3), w, layout="channels_first") == 'it takes `layout` "channels_last"'
    assert refused(x, w[:, :2], groups=2) == "it takes one group, and there are 2"
    assert refused(x.astype("complex64"), w) == "it multiplies real floating-point numbers, and these are complex"
    assert refused(x.astype("int8"), w.astype("int8")).endswith("these are integer")
    line = np.zeros((1, 2, 2, 2, 2, 4), "float16"), np.zeros((4, 4, 1, 1, 1, 1), "float16")
    assert refused(*line) == "it takes up to 3 spatial axes, and there are 4"
    kernel = 'its kernel takes float16, bfloat16, and float32 with `precision` "tf32", and these are '
    assert refused(x, w.astype("float32")) == kernel + "float32"
    assert refused(x, w.astype("float64"), "tf32") == kernel + "float64"


def test_an_older_device(standin, monkeypatch):
    monkeypatch.setattr(type(standin.devices[0]), "compute_capability", "75")
    x, w = (device(numbers(shape, "float16")) for shape in ((1, 4, 4, 8), (8, 8, 3, 3)))
    with pytest.raises(ValueError, match=r"takes a device of compute capability 8\.0, and this has 7\.5"):
        xconv.conv(x, w, **IMPLICIT)


def test_it_is_not_chosen_by_itself(standin):
    """Nobody has measured it."""
    x, w = device(np.zeros((8, 56, 56, 64), "float16")), device(np.zeros((64, 64, 3, 3), "float16"))
    plan = xconv.plan(x, w, padding=1, layout="channels_last")
    assert plan.algorithm == "gemm"
    (found,) = (c for c in plan.candidates if c.name == "implicit")
    assert found.refusal is None
    assert found.note == "it has not been measured on cupy; ask for it by name"
    asked = xconv.plan(x, w, padding=1, **IMPLICIT)
    assert (asked.algorithm, asked.tiles) == ("implicit", 1)
    assert asked.bytes_moved < plan.bytes_moved / 5
