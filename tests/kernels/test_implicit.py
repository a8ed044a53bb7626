"""The kernel on tensor cores: compiled, run on the CPU, broken on purpose, and called as on a device."""

import io
import itertools
import math
import re
from dataclasses import replace

import cupy
import numpy as np
import pytest
from cupy.cuda import compiler
from oracle import Oracle

import xconv
from kernels import cuda
from kernels.cpu import KernelError
from kernels.products import DTYPES, FUNCTIONS, case, geometry, number, random_cases
from kernels.standin import Names, StandIn, device, host, peak
from kernels.test_sanitizers import run as run_sanitized
from kernels.warps import warps
from xconv._axis import Axis
from xconv._ranking import plans
from xconv.backends.cupy import _cudnn, _lines, _tensor_cores, _texts
from xconv.backends.cupy._implicit_kernel import convolutions, lanes, most_lanes, phases

ARCHITECTURES = [a for a in cuda.ARCHITECTURES if a >= _tensor_cores.LEAST_CAPABILITY]
ORDERS = ("last", "first")
LAYER, STEPS = (Axis(24, 3, 1, 1, 1, 1),) * 2, (Axis(17, 4, 3, 2, 0, 1), Axis(6, 2, 1, 1, 1, 0))
COMPILED = {
    "layer": geometry(64, 128, *LAYER, batch=8),
    "few": geometry(32, 32, *LAYER, batch=8),
    "ragged": geometry(3, 72, *LAYER, batch=8),
    "line": geometry(24, 64, Axis(400, 4, 3, 2, 0, 1), batch=8),
    "volume": geometry(16, 32, *STEPS, LAYER[0], batch=8),
    "stride": geometry(128, 64, *(Axis(24, 3, 2, 1, 1, 1),) * 2, batch=8),
    "groups": geometry(64, 64, *LAYER, batch=8, groups=2),
}


# What NVIDIA's compiler makes of it


def binary(product, architecture):
    """As CuPy compiles it, but for the headers, of which it needs none."""
    log = io.StringIO()
    options = (f"-arch=sm_{architecture}", "-std=c++17", "-ftz=true", "--ptxas-options=-v")
    cubin, _ = compiler._NVRTCProgram(product.code, product.name, method="cubin").compile(options, log)
    return cuda.Binary(cubin, log.getvalue())


@pytest.mark.parametrize(
    ("name", "function", "dtype", "tf32", "order", "architecture"),
    [
        *(
            ("layer", "forward", dtype, False, "last", architecture)
            for dtype in DTYPES
            for architecture in ARCHITECTURES
        ),
        *((name, "forward", "float32", False, "first", 90) for name in COMPILED if name != "layer"),
        *((name, "weight_grad", "float32", False, order, 90) for name in ("layer", "ragged") for order in ORDERS),
        ("layer", "forward", "float32", True, "first", 90),
        ("layer", "weight_grad", "float32", True, "last", 80),
        ("stride", "input_grad", "float32", False, "first", 90),
        ("stride", "input_grad", "float16", False, "last", 90),
        ("ragged", "forward", "float16", False, "first", 90),
        ("ragged", "forward", "float32", False, "last", 80),
        ("ragged", "forward", "bfloat16", False, "last", 100),
    ],
)
def test_compiled(name, function, dtype, tf32, order, architecture):
    """Hardly a spill, three blocks on a multiprocessor, and the instructions that it is written for."""
    c = case(COMPILED[name], dtype, function, tf32=tf32, order=order)
    made = binary(c.product, architecture)
    assert made.spilled <= 64
    assert made.registers <= 65536 // (3 * c.product.threads)
    if not made.spilled:
        assert made.count("LDL|STL") == 0
    assert made.count("MUFU") == 0
    # Each half of a slice takes a warp `high` matrices of pixels, 2 of filters and 4 products of each of the former, or
    # three for each; the compiler may write out more than one slice.
    high, times = number(c.product, "WARP_ROWS") // 16, 3 if "_three" in c.product.name else 1
    products, matrices = made.count("HMMA"), made.count("LDSM")
    assert products % (2 * high * 4 * times) == 0 < products
    assert matrices * high * 4 * times == products * (high + 2)
    kind = {"float16": "16816.F32", "bfloat16": "16816.F32.BF16", "float32": "1688.F32.TF32"}[dtype]
    assert made.count(rf"HMMA\.{re.escape(kind)}$") == products
    alone = order == "first" or name == "ragged" or function == "weight_grad"  # elements are copied on their own
    assert (made.count(r"LDGSTS\S*\.128") < made.count("LDGSTS")) == (alone and dtype == "float32")
    assert (made.count(r"LDG\.") > 0) == ("_three" in c.product.name or (alone and dtype != "float32"))


def test_few_instructions_for_a_product():
    """Those of a slice for each of its products."""
    g = geometry(64, 64, *(Axis(56, 3, 1, 1, 1, 1),) * 2, batch=64)
    for dtype, most in (("float32", 4.6), ("float16", 4.3)):
        made = binary(case(g, dtype, high=1).product, 90)
        assert len(made.loop("HMMA")) <= most * made.count("HMMA")


def test_a_misspelt_name_is_an_error():
    product = case(geometry(8, 8, *LAYER)).product
    with pytest.raises(compiler.CompileException, match="sum"):
        binary(product._replace(kernel=product.kernel.replace("sums[i][j], a[i]", "sum[i][j], a[i]")), 90)


# Its values


def check(cases):
    cases = list(cases)
    warps().prepare([p for c in cases for p in c.products])
    for c in cases:
        c.check(warps())


def test_any_geometry():
    check(random_cases(81))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["last", "first"])
def test_edges_of_tiles(dtype, order):
    """Pixels, filters and depths that fill tiles, and that are one more or one less."""
    axes = [Axis(n, 1) for n in (127, 128, 129)]
    sizes = [(8, 31), (24, 64), (9, 65), (32, 128), (7, 129)]
    check(
        case(geometry(c, f, axes[i % 3], batch=1), dtype, seed=i, wide=i % 2 > 0, order=order)
        for i, (c, f) in enumerate(sizes)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_one_pixel(dtype):
    """Channels are neighbours then, whatever comes first; no address in the padding is computed by a step of one."""
    g = geometry(8, 8, *(Axis(1, 3, 1, 1, 1, 1),) * 2)
    check(
        case(g, dtype, function, order=order, literal=literal)
        for function, order, literal in itertools.product(FUNCTIONS[:2], ["last", "first"], [True, False])
    )


def test_steps_are_counted_in_the_index_type():
    """Those from one pixel of a phase to the next may be longer than any offset in the arrays."""
    g = geometry(1024, 8, Axis(32768, 64, 64, 1, 0, 126), Axis(1024, 1), batch=1)
    order = (0, 2, 3, 1)
    memories = [
        _lines.Memory("float32", 4, shape, steps_of(shape, order), aligned=True) for shape in (g.y_shape, g.x_shape)
    ]
    for literal in (True, False):
        products = convolutions(g, *memories, adjoint=True, literal=literal)
        assert all("_i64_" in product.name for product in products)


def steps_of(shape, order):
    steps, step = [0] * len(shape), 1
    for axis in reversed(order):
        steps[axis], step = step, step * shape[axis]
    return tuple(steps)


def test_lanes_of_a_tile_are_no_more_than_those_of_the_largest():
    """Where the largest is counted by the most that there may be."""
    for pixels in range(1, 6000, 7):
        g = geometry(16, 16, Axis(pixels, 1), batch=1)
        assert 1 <= lanes(g) <= most_lanes(g) <= most_lanes(geometry(16, 16, Axis(pixels + 7, 1), batch=1))


@pytest.mark.parametrize("order", ["last", "first", "scattered"])
def test_edges_of_a_weight_gradient(order):
    """Taps and channels that fill a tile, or not; pixels that fill lanes; more taps than there are bits."""
    sizes = [
        (128, 3, Axis(40, 1)),
        (43, 65, Axis(66, 3, 1, 1, 1, 1)),
        (1, 1, Axis(5, 2)),
        (2, 4, Axis(300, 40, 2, 3, 9, 0)),
    ]
    check(case(geometry(c, f, axis), "float32", "weight_grad", order=order, seed=c) for c, f, axis in sizes)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("order", ["last", "first"])
def test_not_a_number_stays_in_the_windows_that_see_it(function, order):
    for tf32 in (False, True):
        check(
            case(geometry(c, f, Axis(40, 3, 3, 1, 1, 1)), "float32", function, nan=True, order=order, tf32=tf32)
            for c, f in itertools.product((8, 12), (40, 70))
        )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("order", ["last", "scattered"])
def test_more_than_2_31_elements(function, order):
    g, dtype = geometry(8, 16, Axis(5, 3, 1, 1, 1, 1)), "float32" if function == "weight_grad" else "float16"
    c = case(g, dtype, function, apart=2**31) if order == "last" else case(g, dtype, function, seed=3, order=order)
    assert ("_i64_" in c.product.name) == (order == "last")
    c.check(warps())


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_places_times_steps_beyond_2_31(function, literal):
    """Neither fills 32 bits by itself."""
    g, dtype = geometry(8, 16, Axis(9, 3, 1, 1, 1, 1), batch=1), "float32" if function == "weight_grad" else "float16"
    c = case(g, dtype, function, apart=9 * 2**28, literal=literal)
    assert c.source.memory.steps[2] == 2**28
    c.check(warps())


@pytest.mark.parametrize("stride", [2, 3, (5, 2)])
def test_an_input_gradient_has_a_kernel_for_each_phase(stride):
    """The filters of a phase are the same for whatever part of the input it is."""
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    g = geometry(5, 4, *(Axis(9, 3, s, d, 1, 2) for s, d in zip(strides, (1, 2), strict=True)))
    c = case(g, function="input_grad")
    assert len(c.products) == strides[0] * strides[1]
    c.check(warps())
    shifted = replace(g, axes=tuple(replace(a, lo=a.lo + 1) for a in g.axes))
    found = ([(p.start, p.depth, [s.taps for s in p.sides]) for p in phases(x, 2, adjoint=True)] for x in (g, shifted))
    assert next(found) == next(found)


def numbers_of(c, source, other):
    """A case with other numbers in it, and what its kernel makes of them."""
    c.source.fill(source)
    c.other.flat[...] = other
    warps().launch(c.product, *c.flats)
    return c.result.view


def test_operands_are_rounded_to_tf32():
    """Each to the nearest, before it is multiplied; sums are not. What is no number, or infinite, stays that."""
    c = case(geometry(1, 1, Axis(60, 1)), "float32", tf32=True)
    x = np.random.default_rng(0).standard_normal((2, 1, 60)).astype("f4")
    x[0, 0, :3] = np.inf, -np.inf, np.nan
    x[0, 0, 3:4].view("u4")[...] = 0x7FFFFFFF  # not a number on a GPU
    w = np.zeros(c.other.flat.size, "f4")
    w[0] = 1 / 3

    def rounded(a):
        return np.where(np.isfinite(a), ((a.view("u4") + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view("f4"), a)

    y = numbers_of(c, x, w)
    assert np.array_equal(y, rounded(x) * rounded(w[:1]), equal_nan=True)
    assert not np.array_equal(y, x * w[0], equal_nan=True)


# Three products for one


def sums(depth, draw, seed=0):
    """Sums of so many products as the kernel, and as float32 one after the other, beside those of double precision."""
    rng = np.random.default_rng(seed)
    c = case(geometry(depth, 32, Axis(128, 1), batch=1), "float32", order="first")
    x, w = draw(rng, (1, depth, 128)).astype("f4"), draw(rng, (32, depth)).astype("f4")
    u = np.zeros((32, number(c.product, "DEPTH")), "f4")
    u[:, :depth] = w
    made = numbers_of(c, x, u.ravel())[0]
    plain = np.zeros((32, 128), "f4")
    for k in range(depth):
        plain += w[:, k, None] * x[0, k]
    exact = w.astype(float) @ x[0].astype(float)
    return made, plain, exact, np.abs(w.astype(float)) @ np.abs(x[0].astype(float))


DRAWN = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0, 1, shape),
}


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("width", [24, 26])
def test_three_products_are_more_exact_than_float32(drawn, width):
    """Sums of many numbers of one size are; in all of a result, and element by element."""
    for depth in (64, 576):
        with warps().width(width):
            made, plain, exact, bound = sums(depth, DRAWN[drawn])
        assert np.abs(made - exact).max() <= np.abs(plain - exact).max()
        assert np.max(np.abs(made - exact) / bound) <= np.max(np.abs(plain - exact) / bound) * (1 if width > 24 else 2)


@pytest.mark.parametrize("depth", [1, 2, 7, 30])
def test_the_bound(depth):
    """|err| <= (K + 8) * eps * sum |a u|."""
    with warps().width(24):
        made, _, exact, bound = sums(
            depth, lambda rng, shape: rng.standard_normal(shape) * np.exp(8 * rng.standard_normal(shape))
        )
    assert np.all(np.abs(made - exact) <= (depth + 8) * np.finfo("f4").eps * bound)


def test_numbers_at_both_ends():
    """What has no TF32 that is near, or no rest, is summed in float32; what is tiny keeps all but the last bits."""
    largest, eps = np.finfo("f4").max, np.finfo("f4").eps
    values = np.array([largest, -largest, np.inf, 3e38, 1e-38, 1e-40, 3e-45, 1.5, np.nan] * 4, "f4")
    for value in (1, -0.75, 0.0):
        c = case(geometry(1, 2, Axis(36, 1), batch=1), "float32")
        u = np.zeros((2, number(c.product, "DEPTH")), "f4")
        u[:, 0] = value, -value
        with np.errstate(invalid="ignore"):
            y, expected = numbers_of(c, values.reshape(1, 1, -1), u.ravel())[0], u[:, :1] * values
        np.testing.assert_allclose(y, expected, rtol=8 * eps, atol=2.0**-136)


def test_the_form_of_a_kernel():
    """16 bytes at once where everything is aligned, two results at once where they are neighbours; and its name."""
    g = geometry(8, 16, Axis(9, 3, 2, 1, 1, 0), Axis(8, 2, 1, 2, -1, 0))
    product = case(g).product
    assert product.name == "xconv_implicit_n2_c8_o16_g1_9x8_k3x2_s2x1_d1x2_l1xm1_h0x0_float16_float16_i32_8"
    assert "#define PACKED" in product.head
    assert number(product, "PAIRED") == 1
    odd = case(geometry(7, 15, *g.axes)).product
    assert odd.name.endswith("_i32_1")
    assert "#define PACKED" not in odd.head
    assert number(odd, "PAIRED") == 0
    assert case(g, "float32").product.name.endswith("_i32_4_three")
    assert "_implicit_input_grad_p1_" in case(g, function="input_grad").products[1].name


# Slips in its text

FORMS = {
    "plain": lambda: case(geometry(40, 40, Axis(9, 3, 2, 1, 1, 2), Axis(11, 2, 1, 2, 0, 1)), nan=True),
    "deep": lambda: case(geometry(64, 70, Axis(70, 3, 1, 1, 1, 1)), "bfloat16"),
    "tf32": lambda: case(geometry(20, 33, Axis(7, 3, 2, 1, 1, 1), Axis(9, 2)), "float32", tf32=True, nan=True),
    "three": lambda: case(geometry(24, 70, Axis(40, 3, 1, 1, 1, 1)), "float32", nan=True, high=5000),
    "first": lambda: case(geometry(16, 40, Axis(9, 3, 1, 1, 1, 1), Axis(8, 2, 2)), "float32", order="first", nan=True),
    "ragged": lambda: case(geometry(6, 20, Axis(9, 3, 2, 1, 1, 2), Axis(9, 7, 1, 1, 3, 3)), "float32", order="first"),
    "single": lambda: case(geometry(11, 20, Axis(9, 3, 2, 1, 1, 2), Axis(9, 2, 1, 2)), nan=True, wide=True),
    "scattered": lambda: case(geometry(9, 21, Axis(9, 3, 2), Axis(8, 2), Axis(3, 2)), seed=2, order="scattered"),
    "volume": lambda: case(geometry(8, 24, Axis(8, 3, 1, 1, 1, 0), Axis(3, 1), Axis(2, 1)), nan=True),
    "many": lambda: case(
        geometry(8, 24, Axis(9, 3, 1, 1, 1, 2), Axis(5, 3, 1, 1, 0, 2), Axis(6, 5, 1, 1, 1, 2)), nan=True
    ),
    "groups": lambda: case(geometry(48, 140, Axis(40, 3, 1, 1, 1, 1), groups=2)),
    "adjoint": lambda: case(
        geometry(33, 24, Axis(12, 3, 2, 1, 1, 1), Axis(9, 2, 3, 2, 0, 2)), function="input_grad", nan=True
    ),
    "weights": lambda: case(
        geometry(24, 40, Axis(20, 3, 2, 1, 1, 1), Axis(10, 2), groups=2),
        "float32",
        "weight_grad",
        order="first",
        nan=True,
    ),
    "weights, again": lambda: case(geometry(8, 8, Axis(12, 3)), "float32", "weight_grad", order="first", nan=True),
    "weights, last": lambda: case(
        geometry(20, 70, Axis(20, 3, 1, 2, 1, 1), Axis(9, 2)), "float32", "weight_grad", tf32=True
    ),
}

#: The form, what is replaced in its text, and by what.
MUTATIONS = [
    # Shared memory: where a chunk lies, and when it may be read and written to.
    ("plain", r"\(chunk \^ \(row / 2 % 4\)\)", "chunk"),
    ("plain", r"row / 2 % 4", "row % 4"),
    ("plain", r"row \* 4 \+ \(chunk", "row * 2 + (chunk"),
    ("plain", r"slices\[step % STAGES\];\n    const", "slices[(step + 1) % STAGES];\n    const"),
    ("deep", r"__syncthreads\(\);  // the", "// the"),
    ("deep", r"wait<STAGES - 2>\(\);", ""),
    ("deep", r"wait<STAGES - 2>", "wait<STAGES - 1>"),
    ("deep", r"commit\(\);\n    Chunk", "Chunk"),
    ("deep", r"next = step \+ STAGES - 1", "next = step + STAGES"),
    ("deep", r"next < STEPS", "next + 1 < STEPS"),
    ("deep", r"step < STAGES - 1; \+\+step", "step < STAGES; ++step"),
    ("single", r"slices\[next % STAGES\]", "slices[next % 2]"),
    # Fragments, and a lane's place in them.
    ("plain", r"half \* 2 \+ lane / 16", "half * 2 + lane / 8 % 2"),
    ("plain", r"warp_row \+ lane % 16", "warp_row + lane / 2"),
    ("plain", r"lane % 8 \+ lane / 16 \* 8", "lane % 16"),
    ("plain", r"half \* 2 \+ lane / 8 % 2", "half * 2 + lane / 16"),
    ("plain", r"half < 2; \+\+half", "half < 1; ++half"),
    ("plain", r"b\[j\], place", "b[j ^ 2], place"),
    ("tf32", r"half \* 2 \+ lane / 8 % 2", "half * 2"),
    ("tf32", r"a\[i / 4\]\[i % 4\] = rounded\((.*?)\);", r"a[i / 4][i % 4] = \1;"),
    ("tf32", r"b\[j / 2\]\[j % 2\] = rounded\((.*?)\);", r"b[j / 2][j % 2] = \1;"),
    ("deep", r"multiply\(sums\[i\]\[j\], a\[i\]", "multiply(sums[i][j], a[0]"),
    ("plain", r"i % 2 \* 2\]", "0]"),
    ("plain", r"warp_row \+ i \* 8 \+ lane / 4", "warp_row + i * 8 + lane % 8"),
    ("plain", r"j \* 8 \+ lane % 4 \* 2, sum", "j * 8 + lane % 8, sum"),
    ("scattered", r"sums\[s \+ e\]", "sums[e]"),
    ("deep", r"warp / WARPS_ALONG \* WARP_ROWS", "warp % WARPS_ALONG * WARP_ROWS"),
    ("deep", r"block % BLOCKS_OF_FILTERS \* FILTERS", "block / BLOCKS_OF_FILTERS * FILTERS"),
    # Three products for one.
    ("three", r"term < 2 \? small_a\[term % 2\] : a", "a"),
    ("three", r"term / 2 == 1 \? small_b\[term % 2\]\[j\] : b", "b"),
    ("three", r"term < 6", "term < 4"),
    ("three", r"int term = 0", "int term = 1"),
    ("three", r"bits\) - __uint_as_float\(large", "bits) + __uint_as_float(large"),
    ("three", r"& 0xffffe000", "& 0xfffff000"),
    ("three", r"a\[half\]\[e\] = large", "a[half][e] += 0"),
    ("three", r"whole = large", "whole += 0"),
    ("three", r"sums\[i\]\[j\]\[e\] \+= part", "sums[i][j][e] = part"),
    ("three", r"again \|= 1u", "again |= 0u"),
    ("three", r"at / \(WARP_FILTERS / 8\) \* 8", "at % (WARP_FILTERS / 8) * 8"),
    ("three", r"put\(work.result\(m\), f,", "put(work.result(m), f + 2,"),
    ("three", r"k < TAPS \* CHANNELS; \+\+k", "k + 1 < TAPS * CHANNELS; ++k"),
    ("weights", r"k < STEPS \* 16; \+\+k", "k < STEPS * 16; k += 2"),
    # What is inside.
    ("plain", r"const bool in = first_filter \+ f < LAST_FILTER;", "const bool in = true;"),
    ("plain", r"if \(filter \+ s < LAST_FILTER\)", ""),
    ("plain", r"if \(m >= PIXELS\) return \{0, OUTSIDE, 0, 0, 0\};", ""),
    ("plain", r"if \(m >= LAST_ROW\) continue;", ""),
    ("many", r"if \(m >= PIXELS\) return \{0, OUTSIDE, 0, 0, 0\};", ""),
    ("many", r"t < TAPS\) && inside", "true) && inside"),
    ("many", r"\(unsigned\)\(p.i0 \+ t.i0\) < SOURCE0 && ", ""),
    ("many", r" && \(unsigned\)\(p.i2 \+ t.i2\) < SOURCE2", ""),
    ("many", r"p.i1 \+ t.i1\) <", "p.i1 + t.i1) <="),
    ("plain", r"i \+ t \* dilation\) < size", "i + t * dilation) <= size"),
    ("plain", r"taps << t \* shift", "taps << t"),
    ("plain", r"1u << t % 32", "1u << (t + 1) % 32"),
    ("first", r"inside\(pixels\[0\], reads\)", "true"),
    ("adjoint", r"p.taps & t.bit", "true"),
    ("weights", r"p.at >= 0 && first", "first"),
    ("weights", r"p.at >= 0 && first_filter \+ f < LAST_FILTER", "p.at >= 0"),
    ("weights", r"row >= LAST_ROW", "false"),
    ("weights, last", r"at >= 0 && first_filter \+ f < LAST_FILTER", "at >= 0"),
    ("weights, last", r"at >= 0 && first_filter", "first_filter"),
    ("weights, again", r"if \(p.at < 0\) break;", ""),
    # Which element.
    ("deep", r"\* STRIDE2 - LO2", "* STRIDE2 + LO2"),
    ("adjoint", r"KERNEL1 \* DILATION1", "KERNEL1"),
    ("volume", r"t / KERNEL2 % KERNEL1", "t / KERNEL2"),
    ("volume", r"m / RESULT2 % RESULT1", "m / RESULT1 % RESULT1"),
    ("plain", r"k % CHANNELS\);\n", "0);\n"),
    ("deep", r"c \+ thread % 4 \* V", "c + thread % 4"),
    ("deep", r"c = 0, \+\+this->t", "++this->t"),
    ("deep", r"c = 0, \+\+this->t", "c = 0"),
    ("first", r"c \+ q \* V \+ j", "c + q * V"),
    ("ragged", r"k % CHANNELS\) \* SOURCE_C", "0) * SOURCE_C"),
    ("ragged", r"\(step \* 4 \+ q\) \* V \+ j", "(step * 4 + q) * V"),
    ("scattered", r"n \* SOURCE_N", "0"),
    ("scattered", r"SOURCE_START \+ ", ""),
    ("scattered", r"y \+ RESULT_START", "y"),
    ("scattered", r"\(filter \+ s\) \* RESULT_C", "(filter + s)"),
    ("scattered", r"i1 \* SOURCE_STEP1 \+", "i1 * SOURCE_STEP2 +"),
    ("groups", r"group \* CHANNELS \* SOURCE_C", "0"),
    ("groups", r"group \* LAST_FILTER \* DEPTH", "0"),
    ("groups", r"group \* LAST_FILTER \* RESULT_C", "0"),
    ("groups", r"/ BLOCKS_OF_FILTERS % GROUPS", "% GROUPS"),
    ("adjoint", r"u \+ U_START", "u"),
    ("adjoint", r"at2 \* RESULT_STEP2", "at2"),
    ("weights", r"row % TAPS", "row / TAPS"),
    ("weights", r"channel_of\(row\) \* TAPS \+ tap_of\(row\)", "row / 2 * 2"),
    ("weights, last", r"channel_of\(row\) \* TAPS \+ tap_of\(row\)", "row"),
    ("weights", r"lane \* STEPS \* 16", "lane * STEPS * 8"),
    ("weights", r"lane \* GROUPS \+ group", "lane + group"),
    ("weights", r"o2 \* DY_STEP2", "o2 * DY_STEP1"),
    ("weights", r"group \* LAST_FILTER \* DY_C", "0"),
    ("weights", r"\(first_filter \+ f\) \* DY_C\),", "f * SOURCE_C),"),
    ("weights, last", r"next % STAGES \* 16", "(next + 1) % STAGES * 16"),
    ("weights, last", r"first_pixel \+ next \* 16", "first_pixel + step * 16"),
    ("weights, last", r"next >= STAGES && ", ""),
    ("weights", r"    __syncthreads\(\);\n  }", "  }"),
    ("weights, last", r"k < STAGES \* 16; k \+= THREADS", "k < 16; k += THREADS"),
]


@pytest.fixture(scope="module")
def forms():
    """All texts, as they are and with their slips, compiled together."""
    made = {name: make() for name, make in FORMS.items()}
    slips = [made[name].mutated(pattern, slip) for name, pattern, slip in MUTATIONS]
    warps().prepare([p for c in made.values() for p in c.products] + [p for slip in slips for p in slip])
    return made


@pytest.mark.parametrize("name", FORMS)
def test_without_a_slip(forms, name):
    forms[name].check(warps())


@pytest.mark.parametrize(("name", "pattern", "slip"), MUTATIONS)
def test_a_slip_is_caught(forms, name, pattern, slip):
    wrong = forms[name].mutated(pattern, slip)
    assert wrong != forms[name].products
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
    found = (re.match("xconv_(implicit_input_grad|implicit_weight_grad|implicit|im2col|add)", n) for n in standin.names)
    return [match.group(1) for match in found]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "precision", "options"),
    [
        *((dtype, "ieee", OPTIONS) for dtype in DTYPES),
        ("float32", "tf32", OPTIONS),
        *(("float32", precision, {"padding": 1, "groups": 5}) for precision in ("ieee", "tf32")),
        ("float32", "ieee", {"stride": (1, 70), "padding": ((0, 0), (0, 70))}),
    ],
)
def test_the_three_functions(standin, dtype, precision, options, layout):
    groups = options.get("groups", 1)
    x, w, b = (numbers(shape, dtype) for shape in ((2, 5, 6, 8), (10, 5 // groups, 3, 2), (10,)))
    oracle = Oracle(x.shape, w.shape, **options)
    dy = numbers(oracle.y_shape, dtype, 1)
    expected = oracle.conv(x, w), oracle.input_grad(dy, w), oracle.weight_grad(dy, x)

    def laid(a):
        return np.moveaxis(a, 1, -1) if layout == "channels_last" else a

    x_there, w_there, b_there, dy_there = (device(a.copy()) for a in (laid(x), w, b, laid(dy)))
    options = {**options, "layout": layout, "algorithm": "implicit"}
    with xconv.config(precision=precision):
        same(xconv.conv(x_there, w_there, **options), laid(expected[0]), dtype)
        same(xconv.conv(x_there, w_there, b_there, **options), laid(expected[0] + b[:, None, None]), dtype)
        few = options.get("stride") != (1, 70)
        dx = xconv.conv_input_grad(dy_there, w_there, x_there.shape, **options)
        same(dx, laid(expected[1]), dtype)
        assert any("im2col" in name or "col2im" in name for name in standin.names) == (not few)  # 70 phases
        standin.launches.clear()
        same(xconv.conv_weight_grad(dy_there, x_there, w.shape, **options), expected[2], dtype)
    assert set(names(standin)) == {"implicit_weight_grad" if dtype == "float32" else "im2col"}


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
        for _ in range(3):
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
    assert set(names(standin)) == {"implicit"}


def test_a_geometry_gets_kernels_of_its_own(standin, monkeypatch):
    """In its third call; those before, and all beyond so many geometries, share kernels. The bits are the same."""
    w = device(numbers((16, 8, 3, 3), "float16"))
    monkeypatch.setattr(_texts, "MOST_TEXTS", 1 + len(_texts._texts.special))
    for size in (8, 9):
        x = device(numbers((2, size, 8, 8), "float16"))
        standin.launches.clear()
        assert len({host(xconv.conv(x, w, **IMPLICIT)).tobytes() for _ in range(4)}) == 1
        own = [f"n2_c8_o16_g1_{size}x8" in name for name in standin.names]
        assert own == ([False, False, True, True] if size == 8 else [False] * 4)
        assert standin.names[0].startswith("xconv_implicit_128_32_")


def test_many_phases_share_their_text(standin):
    """Each of its own would take some tenths of a second to compile."""
    w = device(numbers((4, 4, 4, 4), "float16"))
    for _ in range(3):
        xconv.conv_transpose(device(numbers((1, 3, 3, 4), "float16")), w, stride=4, **IMPLICIT)
    assert set(standin.names) == {standin.names[0]}


def test_kernels_for_every_geometry(standin):
    """Sizes that are handed over give what those in the text do."""
    for function in FUNCTIONS:
        g = geometry(24, 40, Axis(20, 3, 2, 1, 1, 1), Axis(10, 2, 1, 2), groups=2)
        both = [case(g, "float32", function, literal=literal, high=1) for literal in (True, False)]
        for c in both:
            c.source.flat[...] = (rng := np.random.default_rng(1)).standard_normal(c.source.flat.size)
            c.other.flat[...] = rng.standard_normal(c.other.flat.size)
            for product in c.products:
                warps().launch(product, *c.flats)
        assert np.array_equal(both[0].result.flat, both[1].result.flat)
        assert len({(p.head, p.kernel) for p in both[1].products}) == 1


def test_in_a_small_workspace(standin):
    """It takes the memory of the filters, and of partial sums; what is im2col's is cut, as that is."""
    x, w = numbers((3, 8, 12, 8), "float16"), numbers((4, 8, 3, 3), "float16")
    oracle = Oracle(x.shape, w.shape, padding=1)
    dy, options = numbers(oracle.y_shape, "float16", 1), {"padding": 1, "algorithm": "implicit"}
    with xconv.config(workspace=20_000):
        same(xconv.conv(device(x), device(w), **options), oracle.conv(x, w), "float16")
        assert len(standin.names) == 1
        dw = xconv.conv_weight_grad(device(dy), device(x), w.shape, **options)
    same(dw, oracle.weight_grad(dy, x), "float16")
    assert len(standin.names) > 2


def test_halves_wait_for_their_bias_in_the_workspace(standin, monkeypatch):
    """In float32, to be rounded once; without a bias, nothing is written but the result."""
    standin.launches = Names()
    x, w, b = (device(numbers(shape, "float16")) for shape in ((2, 8, 16, 12), (16, 8, 3, 3), (16,)))
    options, workspace = {"padding": 1, "algorithm": "implicit"}, 20_000
    assert 4 * math.prod(xconv.plan(x, w, **options).y_shape) > workspace
    for bias in (None, b):
        for function in (
            lambda bias=bias: xconv.conv(x, w, bias, **options),
            lambda bias=bias: xconv.conv_transpose(x, w.swapaxes(0, 1), bias, **options),
        ):
            with xconv.config(workspace=workspace):
                assert peak(monkeypatch, function) <= (2 * w.nbytes if bias is None else workspace)


def test_views(standin):
    """Whatever a view looks like, it is neither copied nor moved; packs are read where it is aligned."""
    whole, w = device(numbers((4, 9, 8, 16), "float16")), device(numbers((4, 8, 2, 2), "float16"))
    views = whole[..., :8], whole[..., 1:9], whole[::2, 1:8, ::-1, ::2], device(numbers((2, 8, 9, 8), "float16"))
    views = (*views[:3], views[3].transpose(0, 2, 3, 1))
    for x in views:
        y = np.moveaxis(Oracle(first(host(x)).shape, w.shape).conv(first(host(x)), host(w)), 1, -1)
        same(xconv.conv(x, w, **IMPLICIT), y, "float16")
    assert [re.search(r"_i32_(\d)", name).group(1) for name in standin.names] == ["8", "1", "1", "1"]


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
    assert refused(x.astype("complex64"), w) == "it multiplies real floating-point numbers, and these are complex"
    assert refused(x.astype("int8"), w.astype("int8")).endswith("these are integer")
    line = np.zeros((1, 2, 2, 2, 2, 4), "float16"), np.zeros((4, 4, 1, 1, 1, 1), "float16")
    assert refused(*line) == "it takes up to 3 spatial axes, and there are 4"
    far = np.zeros((1, 9, 4), "float16"), np.zeros((4, 4, 3), "float16")
    assert refused(*far, padding=2**29) == "it counts along an axis, padding, taps and stride included, up to 536870912"
    for options in ({"padding": 2**28, "dilation": 2**28}, {"stride": 2**28, "padding": 2**28}):
        assert refused(*far, **options).startswith("it counts along an axis")
    double = "its kernels take float16, bfloat16 and float32, and these are float64"
    assert refused(x, w.astype("float64"), "tf32") == double


def test_an_older_device(standin, monkeypatch):
    monkeypatch.setattr(type(standin.devices[0]), "compute_capability", "75")
    x, w = (device(numbers(shape, "float16")) for shape in ((1, 4, 4, 8), (8, 8, 3, 3)))
    with pytest.raises(ValueError, match=r"'implicit' cannot serve .* it takes a device of compute capability 8\.0$"):
        xconv.conv(x, w, **IMPLICIT)
    y = xconv.conv(x, w, layout="channels_last")
    same(y, np.moveaxis(Oracle((1, 8, 4, 4), w.shape).conv(first(host(x)), host(w)), 1, -1), "float16")
    assert not any("implicit" in name for name in standin.names)


def planned(shape, filters, dtype="float32", numerics="fast", precision="ieee", **options):
    x, w = device(np.zeros(shape, dtype)), device(np.zeros(filters, dtype))
    with xconv.config(numerics=numerics, precision=precision):
        plan = xconv.plan(x, w, padding=1, **options)
        return [plan.forward.algorithm, plan.input_grad.algorithm, plan.weight_grad.algorithm], plan


def test_it_is_chosen_where_it_was_measured_to_be_faster(standin):
    """On an H200; strict convolutions of float32 are those of the units for float32."""
    wide, deep = ((64, 64, 56, 56), (64, 64, 3, 3)), ((64, 256, 14, 14), (256, 256, 3, 3))
    with_it = ["implicit", "implicit", "implicit"]
    assert planned(*wide)[0] == with_it
    assert planned(*deep)[0] == ["implicit", "implicit", "gemm"]
    assert planned(*wide, numerics="strict")[0] == ["gemm", "gemm", "gemm"]
    assert planned(*wide, "float16")[0] == planned(*wide, precision="tf32")[0] == ["implicit", "implicit", "gemm"]
    assert planned(*deep, "float16")[0] == planned(*deep, precision="tf32")[0] == ["gemm", "gemm", "gemm"]
    last = (64, 56, 56, 64), (64, 64, 3, 3)
    assert planned(*last, layout="channels_last")[0] == with_it
    strict, _ = planned(*last, "float16", "strict", layout="channels_last")
    assert strict == ["implicit", "gemm", "gemm"]
    asked = planned(*wide, algorithm="implicit")[1]
    assert asked.tiles == 1
    assert asked.bytes_moved < planned(*wide, algorithm="gemm")[1].bytes_moved / 5


def test_cudnn_is_chosen_where_it_was_measured_to_be_faster(standin, monkeypatch):
    monkeypatch.setattr(_cudnn, "find_spec", lambda name: name)
    wide, last = ((64, 64, 56, 56), (64, 64, 3, 3)), {"layout": "channels_last"}
    assert planned(*wide)[0] == ["implicit", "implicit", "implicit"]
    assert planned(*wide, numerics="strict")[0] == ["cudnn", "gemm", "gemm"]
    for shape, options in (((64, 64, 56, 56), {}), ((64, 56, 56, 64), last)):
        for how in ({"dtype": "float16"}, {"precision": "tf32"}):
            assert planned(shape, wide[1], **how, **options)[0] == ["cudnn", "cudnn", "cudnn"]
