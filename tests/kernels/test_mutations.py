"""The comparison with plain loops notices a wrong kernel: one slip at a time is written into a text."""

import pytest

from kernels.cases import VERBS, case, mutated
from kernels.cpu import KernelError, harness
from xconv._axis import Axis
from xconv._geometry import Geometry

GEOMETRIES = (
    Geometry(2, 4, 4, 1, (Axis(7, 3, 2, 1, 1, 2), Axis(6, 2, 1, 2, 0, 1))),
    Geometry(2, 4, 4, 1, (Axis(6, 3, 3, 2, 2, 2), Axis(9, 3, 2, 2, -1, 2))),
    Geometry(1, 8, 8, 1, (Axis(8, 2, 1, 3, 3, -1), Axis(9, 3, 3, 2, -1, 2))),
)
#: Neighbours on the last axis share a thread.
EVEN = Geometry(2, 2, 2, 1, (Axis(7, 3, 2, 1, 1, 2), Axis(8, 3, 2, 1, 1, 1)))

#: The kernel, whether its numbers are literals, what is replaced in its text, and by what.
MUTATIONS = [
    # Where a window begins, and which tap it is.
    ("im2col", False, r"\* stride0 - lo0", "* stride0 + lo0"),
    ("im2col", False, r"o1 \* stride1 - lo1", "o1 - lo1"),
    ("im2col", False, r"t0 \* dilation0", "t0"),
    ("im2col", False, r"t1 = 0", "t1 = 1"),
    ("im2col", False, r"t0 < t0_length", "t0 + 1 < t0_length"),
    ("im2col", False, r"\bto_t0\b", "to_t1"),
    ("im2col", False, r"\btap0\b", "tap1"),
    ("im2col", True, r"const I at1_2 = \d+", "const I at1_2 = 0"),
    # The bounds of the array.
    ("im2col", False, r"< \(N\)size0", "<= (N)size0"),
    ("im2col", False, r"\(N\)(\(i0 [^<]*) < \(N\)size0", r"(I)\1 < (I)size0"),
    ("im2col", False, r"in0 & in1\b", "in0"),
    ("im2col", True, r"in0_0 & in1_2", "in0_0"),
    ("depthwise", False, r"in0 & in1\b", "in1"),
    # The place of a thread.
    ("im2col", False, r"%( \(N\))o1_length", r"%\1o0_length"),
    ("im2col", False, r"from_start", "0"),
    ("im2col", False, r"from_n\b", "from_c"),
    ("im2col", True, r"\*= [248];", "*= 1;"),
    ("im2col", True, r"j < [248]; j \+= 1\) q", "j < 1; j += 1) q"),
    # Neighbours on the last axis: where each reads, and what they read together.
    ("im2col", False, r"(bool in1_1 = .*) \+ 1 \* stride1", r"\1"),
    ("im2col", False, r"(I at1_1 = .*) \+ 1 \* next1", r"\1"),
    ("im2col", False, r"in0 & in1_1", "in0 & in1"),
    ("im2col", True, r"bool in1_0 = [^;]*", "bool in1_0 = true"),
    ("im2col", True, r"I at1_4 = \d+", "I at1_4 = 3"),
    ("im2col", True, r"= p0\.v\[1\];", "= p0.v[0];"),
    ("depthwise", False, r"f1\.v\[1\] = f1_", "f1.v[1] = T(0)"),
    ("depthwise", True, r"f1\.v\[0\] = f1_", "f1.v[0] = T(0)"),
    ("col2im", True, r"o1 = i1 / 2", "o1 = i1"),
    ("col2im", True, r"j = 1; j < (\d); j \+= 2", r"j = 0; j < \1; j += 2"),
    ("col2im", True, r"bool in1_(\w+) = \(N\)[^;]*", r"bool in1_\1 = true"),
    ("col2im", True, r"I at1_(\w+) = (-?\d+)", r"I at1_\1 = \2 + 1"),
    ("depthwise_input_grad", True, r"T (f\d+)_ = T\(0\); if \(in0_0", r"T \1_ = T(0); if (!in0_0"),
    ("depthwise_input_grad", True, r"= p0\.v\[1\];", "= T(0);"),
    ("col2im", False, r"to_i0\b", "to_i1"),
    # Which outputs read a position.
    ("col2im", False, r" \+ lo0", " - lo0"),
    ("col2im", False, r"q1 % common1 == 0", "true"),
    ("col2im", False, r"q1 >= 0 &&", ""),
    ("col2im", False, r" < kernel0", " <= kernel0"),
    ("col2im", False, r" < \(N\)out0", " <= (N)out0"),
    ("col2im", False, r" \* \(N\)inverse0", ""),
    ("col2im", False, r"o1 - t1 \* move1", "o1 + t1 * move1"),
    ("col2im", False, r"\* along1", "* along0"),
    ("col2im", True, r"whole1 &&", ""),
    ("depthwise_input_grad", False, r"first0 \* dilation0", "0"),
    # The sum.
    ("col2im", True, r"sum\[j\] \+=", "sum[j] ="),
    ("depthwise", True, r"sum\[j\] = A\(0\)", "sum[j] = A(1)"),
    ("depthwise", False, r"c / multiplier", "c % multiplier"),
    ("depthwise", False, r"\bw_t0\b", "w_t1"),
    ("depthwise", True, r"&w\[c \* (\d+) \+ \d+", r"&w[c * \1 + 0"),
    ("depthwise_input_grad", False, r"< b \* multiplier \+ multiplier", "< b * multiplier + 1"),
    ("depthwise_input_grad", False, r"c \* w_channel", "b * w_channel"),
    ("depthwise_weight_grad", False, r"m \+= \(N\)lanes", "m += (N)lanes + 1"),
    ("depthwise_weight_grad", False, r"m = \(N\)lane;", "m = 0;"),
    ("depthwise_weight_grad", True, r"m < \(N\)(\d+)", r"m < (N)\1 - 1"),
    ("depthwise_weight_grad", True, r"conj\(", "("),
    ("depthwise_weight_grad", False, r"\bat_o0\b", "at_o1"),
]


def cases(verb, literal):
    """Contiguous, scattered, and channels last; in dtypes of which one can be conjugated; and with neighbours."""
    for i, g in enumerate(GEOMETRIES):
        for dtype, scattered in (("float32", False), ("complex64", True), ("float32", True)):
            yield case(verb, g, dtype, literal=literal, seed=2 * i + 1, scattered=scattered)
    for dtype, scattered in (("float32", False), ("float16", True)):
        yield case(verb, EVEN, dtype, literal=literal, even=True, scattered=scattered)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """All texts, as they are and with their slips, compiled together."""
    harness().prepare(
        [(c.kernel, c.flats) for verb in VERBS for literal in (True, False) for c in cases(verb, literal)]
    )
    everything = [(c, pattern, slip) for verb, literal, pattern, slip in MUTATIONS for c in cases(verb, literal)]
    harness().prepare([(mutated(c.kernel, pattern, slip), c.flats) for c, pattern, slip in everything])


@pytest.mark.parametrize(("verb", "literal", "pattern", "slip"), MUTATIONS)
def test_caught(verb, literal, pattern, slip):
    touched = caught = 0
    for c in cases(verb, literal):
        wrong = mutated(c.kernel, pattern, slip)
        touched += wrong != c.kernel
        try:
            c.check(harness(), wrong)
        except (AssertionError, KernelError):
            caught += 1
    assert touched
    assert caught


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("verb", VERBS)
def test_without_a_slip(verb, literal):
    for c in cases(verb, literal):
        c.check(harness())


def test_a_narrow_sum():
    def odd(rng, shape, dtype):
        return 1025.0 + 2 * rng.integers(0, 100, shape)

    c = case("col2im", GEOMETRIES[0], "float16", values=odd, wide=True)
    c.check(harness())
    with pytest.raises(AssertionError):
        c.check(harness(), mutated(c.kernel, "typedef float A", "typedef T A"))
