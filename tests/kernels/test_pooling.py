"""The kernels that pool: run on the CPU beside NumPy, compiled for devices, and with slips that must be noticed."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kernels import cuda
from kernels.cases import DTYPES, POOLING, REAL, case, even_geometries, geometries, mutated, normal
from kernels.cpu import KernelError, harness
from kernels.test_compile import LAYER, STEPS, compiled, pack_of, period
from kernels.test_mutations import EVEN, GEOMETRIES
from kernels.test_values import check, far_apart
from xconv._axis import Axis
from xconv._geometry import Geometry

MEANS = tuple(verb for verb in POOLING if verb.startswith("avg"))
BACK = ("max_pool_grad", "avg_pool_grad", "avg_pool_grad_seen")


def kind(verb, dtype):
    """This dtype, or for a mean one that has means."""
    return "float32" if verb in MEANS and np.dtype(dtype).kind in "iu" else dtype


# Values


@pytest.mark.parametrize(("literal", "count"), [(False, 90), (True, 12)])
def test_any_geometry(literal, count):
    """Beside one tap after the other, among equals, NaN and infinities."""
    dtypes = ("float32", "int8", "float16")
    cases = check(
        case(verb, g, kind(verb, dtypes[i % 3]), literal=literal, seed=i // 2, scattered=i % 3 > 0)
        for i, g in enumerate(geometries(count, seed=literal))
        for verb in POOLING
    )
    packed = {verb for c, verb in zip(cases, POOLING * count, strict=True) if pack_of(c) > 1}
    assert packed == set(POOLING) - {"avg_shares"}  # which is one for each output
    blind = [c for c in cases if c.geometry.is_blind and "max_taps" in c.kernel.name]
    assert any(255 in c.expected for c in blind)


@pytest.mark.parametrize(("literal", "count"), [(False, 25), (True, 16)])
def test_neighbours_in_one_thread(literal, count):
    dtypes = ("float16", "float32", "int8", "bfloat16", "int16")
    cases = check(
        case(
            verb, g, kind(verb, dtypes[i % 5]), literal=literal, seed=i, even=True, scattered=i % 3 > 0, wide=i % 5 == 0
        )
        for i, g in enumerate(even_geometries(count, seed=9))
        for verb in POOLING
    )
    found = {(verb, pack_of(c)) for c, verb in zip(cases, POOLING * count, strict=True)}
    verbs = [verb for verb in POOLING if verb != "avg_shares" and (literal or verb not in BACK)]
    assert {pair for pair in found if pair[1] > 1} == set(product(verbs, (2, 4)))


def test_any_dtype():
    """Compiled together, for each kernel and dtype in one form or the other."""
    dtypes = dict.fromkeys(REAL + DTYPES)
    check(
        case(verb, g, dtype, literal=i % 2 == 0, seed=i, scattered=i % 3 == 0, wide=i % 3 == 1)
        for i, (dtype, g) in enumerate(zip(dtypes, geometries(len(dtypes), seed=7), strict=True))
        for verb in POOLING
        if np.dtype(dtype).kind not in ("iu" if verb in MEANS else "c")
    )


@pytest.mark.parametrize("kernel", [(8, 7), (16, 17)])
def test_more_taps_than_are_written_out(kernel):
    """And so many that their numbers take four bytes."""
    axes = (Axis(17, kernel[0], 2, 1, 3, 3), Axis(18, kernel[1], 1, 1, 2, 6))
    g = Geometry(2, 2, 2, 1, axes)
    cases = check(case(verb, g, literal=literal, seed=literal) for verb in POOLING for literal in (True, False))
    assert all("for (I t0" in c.kernel.operation for c in cases)
    (taps,) = {c.arrays[-1].flat.dtype for c in cases if "max_taps" in c.kernel.name}
    assert taps == ("int32" if math.prod(kernel) > 254 else "uint8")


@pytest.mark.parametrize(("kernel", "dtype"), [((2, 127), "uint8"), ((3, 85), "int32")])
def test_the_number_of_the_last_tap(kernel, dtype):
    """254 taps have numbers of a byte, in which one is left for none."""
    g = Geometry(1, 1, 1, 1, tuple(Axis(n, n, 1, 1, 0, n) for n in kernel))

    def last(rng, shape, dtype):
        return np.arange(math.prod(shape)).reshape(shape)

    (c, *_) = cases = check(case(verb, g, values=last) for verb in ("max_taps", "max_pool_grad"))
    assert c.arrays[-1].flat.dtype == dtype
    assert c.expected[0, 0, 0, 0] == math.prod(kernel) - 1
    assert cases[1].expected.any()


def test_sums_in_the_order_of_the_taps():
    """Every form makes the same bits: with neighbours and without, specialised and general."""
    forms = [{"literal": literal, "threads": threads} for literal in (True, False) for threads in (0, 2**40)]
    groups = [
        [case(verb, g, dtype, seed=i, scattered=False, even=True, values=normal, **form) for form in forms]
        for i, g in enumerate(even_geometries(2, seed=5))
        for dtype in (("float32", "float16")[i % 2],)
        for verb in POOLING
    ]
    harness().prepare([(c.kernel, c.flats) for group in groups for c in group if c.kernel.size])
    for group in groups:
        for c in group:
            result, _ = c.run(harness())
            expected = c.expected.astype(result.dtype)
            np.testing.assert_array_equal(result, expected, c.kernel.name, strict=True)


def test_of_equals_the_first_stays():
    """Minus zero before zero, and the other way round: they are equal."""
    g = Geometry(1, 1, 1, 1, (Axis(4, 2, 2),))

    def zeros(rng, shape, dtype):
        return np.array([-0.0, 0.0, 0.0, -0.0]).reshape(shape)

    (c,) = check([case("max_pool", g, values=zeros)])
    assert np.signbit(c.run(harness())[0]).tolist() == [[[True, False]]]


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("side", ["input", "result"])
def test_offsets_above_32_bits(side, literal):
    cases = [far_apart(verb, side, literal=literal) for verb in POOLING[:3]]
    check(cases)
    for c in cases:
        assert max(flat.size for flat in c.flats) > 2**31
        assert "_i64_" in c.kernel.name


# What NVIDIA's compiler makes of them


@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_they_compile(architecture):
    """In every dtype, in some dtype for every architecture."""
    dtypes = ("float32", "float16", "complex64", "int8", "float64", "bfloat16", "int64", "uint8")
    some = [d for i, d in enumerate(dtypes) if i % len(cuda.ARCHITECTURES) == cuda.ARCHITECTURES.index(architecture)]
    forms = [(d, True, i % 2) for i, d in enumerate(some)] + [("float32", False, 0)]
    compiled(
        (
            case(verb, LAYER, dtype, literal=literal, seed=seed, scattered=False)
            for dtype, literal, seed in forms
            for verb in POOLING[:-1]  # the last is a fold
            if np.dtype(dtype).kind not in ("iu" if verb in MEANS else "c")
        ),
        architecture,
    )


@pytest.mark.parametrize("axes", [LAYER.axes, STEPS[:2]], ids=["layer", "steps"])
def test_a_specialised_kernel_only_waits_for_memory(axes):
    """It loads what its taps read and no more, and has no division but that of a mean."""
    g = Geometry(2, 16, 16, 1, axes)
    verbs = POOLING[:-1]
    for (c, binary), verb in zip(
        compiled(case(v, g, literal=True, scattered=False) for v in verbs), verbs, strict=True
    ):
        assert pack_of(c) in ({1} if verb == "avg_shares" else {1, 2}), verb
        assert binary.count("LDL|STL") == 0
        assert binary.count("LDG") == loads(verb, g, pack_of(c)), verb
        assert binary.count("STG") == 1
        if verb not in MEANS:
            assert binary.count("CALL|MUFU") == 0, verb


def loads(verb, g, pack):
    """Elements that a thread reads for `pack` neighbours on the last axis."""
    *others, last = g.axes
    if verb == "avg_shares":
        return 1
    if verb not in BACK:
        places = {t * last.dilation + j * last.stride for t in range(last.kernel) for j in range(pack)}
        return math.prod(a.kernel for a in others) * len(places)
    matter = math.prod(-(-a.kernel // period(a)) for a in others)
    reached = {j + last.lo - t * last.dilation for t in range(last.kernel) for j in range(pack)}
    along = (
        len({q // last.stride for q in reached if q % last.stride == 0})
        if pack > 1
        else -(-last.kernel // period(last))
    )
    return matter * along * (2 if verb == "max_pool_grad" else 1)


def test_packs_of_channels_are_loaded_at_once():
    for c, binary in compiled(case(verb, LAYER, seed=1, scattered=False) for verb in POOLING[:5]):
        assert pack_of(c) == 4
        numbers = binary.count("LDG") // 2 if "max_pool_grad" in c.kernel.name else 0
        assert binary.count(r"LDG\S*\.128") == binary.count("LDG") - numbers > 0
        assert binary.count("STG") == 1


# Slips

MUTATIONS = [
    # The first of equals, NaN, and what is padding.
    ("max_taps", True, r"!\(v <= sum", "!(v < sum"),
    ("max_taps", False, r"!\(v <= sum", "!(v < sum"),
    ("max_pool", True, r"!\(v <= sum\[j\]\)", "v > sum[j]"),
    ("max_pool", False, r"sum\[j\] == sum\[j\] &&", ""),
    ("max_taps", True, r"sum\[j\] == sum\[j\] &&", ""),
    ("max_pool", False, r"if \(in0 & in1 &&", "if (in0 &&"),
    ("max_pool", False, r"if \(in0 & in1 &&", "if (true &&"),
    ("max_taps", True, r"\(in0_(\w+) & in1_(\w+) && \(tap", r"(in0_\1 && (tap"),
    ("max_pool", True, r"-1 / A\(0\)", "0"),
    # The number of a tap.
    ("max_taps", False, r"tap\[j\] < 0 \|\|", "false ||"),
    ("max_taps", False, r"t0 \* weight0", "t0"),
    ("max_taps", True, r"\(int\)\(1\)", "(int)(0)"),
    ("max_taps", True, r"tap\[j\] = -1", "tap[j] = 0"),
    ("max_pool_grad", False, r"\* weight0", "* weight1"),
    ("max_pool_grad", True, r"F\(\(int\)\(", "F((int)(1 + "),
    # Where it is noted, and what it is noted for.
    ("max_pool_grad", False, r"\bby1_t1\b = [^;]*", "by1_t1 = 0"),
    ("max_pool_grad", False, r"\bbeside_n\b", "beside_c"),
    ("max_pool_grad", False, r"from \+ at", "from + by"),
    ("max_pool_grad", True, r"const I by1_(\w+) = (-?\d+)", r"const I by1_\1 = \2 + 1"),
    ("max_pool_grad", True, r"if \(p\d+\.v\[j\] == .*\) sum", "sum"),
    # What is counted.
    ("avg_pool", False, r"\(float\)taps", "(float)2"),
    ("avg_pool_seen", True, r"seen\[j\] \+= in0_(\w+) & in1_\w+", r"seen[j] += in0_\1"),
    ("avg_pool_seen", False, r"seen\[j\] = 0", "seen[j] = 1"),
    ("avg_shares", False, r"in0 & in1", "in0"),
    ("avg_shares", True, r"/ \(float\)seen", ""),
    ("avg_pool_grad", True, r"/ \(float\)\d+", ""),
    ("avg_pool_grad", False, r"\(float\)taps", "(float)(taps + 1)"),
]


def slipping(verb, literal):
    """Contiguous arrays, scattered ones, and neighbours; among equals and NaN where there are such."""
    for i, g in enumerate(GEOMETRIES[:2]):
        for dtype, scattered in (("float32", False), ("float16", True)):
            yield case(verb, g, dtype, literal=literal, seed=2 * i + 1, scattered=scattered)
    yield case(verb, EVEN, "float16", literal=literal, even=True)


@pytest.fixture(scope="module")
def slips():
    """All texts with their slips, compiled together."""
    made = [
        [(c, mutated(c.kernel, pattern, slip)) for c in slipping(verb, literal)]
        for verb, literal, pattern, slip in MUTATIONS
    ]
    harness().prepare([(wrong, c.flats) for pairs in made for c, wrong in pairs])
    return dict(zip(MUTATIONS, made, strict=True))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m[0]} {m[1]} {m[2]} {m[3]}")
def test_a_slip_is_caught(slips, mutation):
    caught = False
    for c, wrong in slips[mutation]:
        try:
            c.check(harness(), wrong)
        except (AssertionError, KernelError):
            caught = True
    assert any(wrong != c.kernel for c, wrong in slips[mutation])
    assert caught


def test_without_a_slip():
    check(c for verb in POOLING for literal in (True, False) for c in slipping(verb, literal))


def test_narrow_sums_are_noticed():
    def odd(rng, shape, dtype):
        return 1025.0 + 2 * rng.integers(0, 100, shape)

    for verb in ("max_pool_grad", "avg_pool"):
        c = case(verb, replace(GEOMETRIES[0]), "float16", values=odd, wide=True)
        c.check(harness())
        with pytest.raises(AssertionError):
            c.check(harness(), mutated(c.kernel, "typedef float A", "typedef T A"))
