"""The emulation of a block's warps: what it notices, and how its tensor cores add up."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

from kernels.cpu import KernelError
from kernels.warps import WIDTH, warps


class Product(NamedTuple):
    name: str
    head: str
    blocks: int
    kernel: str
    threads: int
    numbers: tuple = ()


def product(body, *, blocks=1, threads=32, **numbers):
    """A kernel on float32 around a body."""
    lines = ["#define TF32", "#define NAME tiny", "typedef float E;", "typedef float U;"]
    lines += [f"constexpr int {name} = {number};" for name, number in {"THREADS": threads, **numbers}.items()]
    lines += ["struct alignas(16) Chunk { E v[4]; };"]
    signature = 'extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const E* x, const E* u, U* y)'
    kernel = f"{signature} {{\nconst int t = threadIdx.x;\n{body}\n}}"
    return Product("tiny", "\n".join(lines) + "\n", blocks, kernel, threads)


# Shared memory

#: 100 numbers go through shared memory, 4 bytes at once, with zeros behind them, and numbers of u are added.
COPY = """
alignas(128) __shared__ Chunk tile[64];
float* cells = (float*)tile;
for (int i = 0; i < 4; ++i) copy_async(cells + i * 32 + t, x + i * 32 + t, i * 32 + t < 100);
commit();
wait<0>();
__syncthreads();
unsigned v[4];
load_matrices(v, tile + t);
for (int i = 0; i < 4; ++i) store(y + i * 32 + t, __uint_as_float(v[i]) + load(u + i * 32 + t));
"""
#: The same, 16 bytes at once.
CHUNKS = COPY.replace(COPY.splitlines()[3], "copy_async(tile + t, x + 4 * t, t < 25);")
READ = "load_matrices(v, tile + t);"

#: What is replaced, by what, and what is said of it.
SLIPS = [
    # Reads of a chunk of which one cell, or all, are not there.
    ("wait<0>();", "", "read that a copy is on its way to"),
    ("commit();", "if (t != 15) commit();", "read that a copy is on its way to"),
    ("__syncthreads();", "", "read without a barrier since it was written"),
    (READ, "if (t == 0) store_shared(cells + 127, 1.0f); " + READ, "read without a barrier since it was written"),
    ("i < 4; ++i) copy", "i < 3; ++i) copy", "read that nobody has written to"),
    ("copy_async", "if (i * 32 + t != 127) copy_async", "read that nobody has written to"),
    ("copy_async", "if (blockIdx.x == 0 || t < 31) copy_async", "read that nobody has written to"),
    # Writes.
    ("commit();", "if (t == 5) store_shared(cells + 5, 1.0f); commit();", "written to that a copy is on its way to"),
    ("commit();", "if (t == 8) store_shared(tile + 2, Chunk()); commit();", "written to that a copy is on its way to"),
    ("commit();", "if (t == 8) copy_async(tile + 2, x, true); commit();", "written to that a copy is on its way to"),
    ("__sync", "if (t == 7) store_shared(tile + 1, Chunk()); __sync", "written to twice"),
    ("__sync", "if (t == 7) copy_async(cells + 6, x, true); __sync", "written to twice"),
    ("__sync", "if (t == 7) { store_shared(tile + 40, Chunk()); store_shared(cells + 163, 1.0f); } __sync", "to twice"),
    ("__sync", "if (t == 7) { store_shared(cells + 163, 1.0f); store_shared(tile + 40, Chunk()); } __sync", "to twice"),
    (
        "commit",
        "if (t == 7) { copy_async(tile + 40, x, true); store_shared(cells + 163, 1.0f); } commit",
        "on its way to",
    ),
    (READ, READ + "if (t == 0) store_shared(cells + 127, 1.0f);", "written to that others may still read"),
    ("__sync", "if (t == 0) load_shared(cells); __sync", "read that a copy is on its way to|without a barrier"),
    (READ, "load_shared(cells + 3); " + READ + "if (t == 9) store_shared(cells + 3, 1.0f);", "others may still read"),
    (READ, READ + "if (t == 0) copy_async(cells + 2, x, true);", "written to that others may still read"),
    (READ, READ + "if (t == 0) copy_async(cells + 200, x, true);", "a copy is on its way when the kernel ends"),
    # Addresses.
    ("x + i * 32 + t,", "(const float*)((const char*)x + 2),", "not a multiple of 4"),
    ("cells + i * 32 + t,", "(float*)((char*)tile + 2),", "not a multiple of 4"),
    ("commit();", "copy_async(tile + 32 + t, x + t, true); commit();", "not a multiple of 16"),
    ("commit();", "copy_async((Chunk*)(cells + 128 + 2 * t), x, true); commit();", "not a multiple of 16"),
    ("commit();", "copy_async(tile + 32 + t, x + 1, false); commit();", "not a multiple of 16"),
    ("load(u", "load((const float*)((const char*)u + 2)", "not a multiple of 4"),
    (" < 100", " < 101", "4 bytes are outside of all arrays"),
    ("commit();", "copy_async(tile + 32 + t, x + 4 * t, t < 26); commit();", "16 bytes are outside of all arrays"),
    ("cells + i * 32 + t, x", "(float*)y + i * 32 + t, x", "4 bytes are outside of shared memory"),
    (READ, "load_matrices(v, (const Chunk*)u + t);", "16 bytes are outside of shared memory"),
    # Which array.
    ("load(u", "load(x", "outside of all arrays"),
    ("load(u", "load(y", "the result is read"),
    ("x + i", "y + i", "the result is read"),
    ("store(y", "store((float*)u", "an input is written to"),
]


def slipped(pattern, slip):
    assert COPY.count(pattern) == 1
    return product(COPY.replace(pattern, slip), blocks=2)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """All texts, compiled together."""
    forms = [product(DOT, **form) for form in FORMS]
    warps().prepare([product(COPY), product(CHUNKS), *forms, *(slipped(pattern, slip) for pattern, slip, _ in SLIPS)])


def arrays():
    return np.arange(1, 101, dtype="f4"), np.arange(128, dtype="f4") / 4, np.zeros(128, "f4")


@pytest.mark.parametrize("body", [COPY, CHUNKS])
def test_numbers_go_through_shared_memory(body):
    x, u, y = arrays()
    assert warps().launch(product(body), x, u, y).tolist() == [1] * 128
    assert np.array_equal(y, np.append(x, np.zeros(28, "f4")) + u)


@pytest.mark.parametrize(("pattern", "slip", "message"), SLIPS)
def test_a_slip_is_noticed(pattern, slip, message):
    with pytest.raises(KernelError, match=message):
        warps().launch(slipped(pattern, slip), *arrays())


def test_a_launch_knows_nothing_of_the_one_before():
    """Neither of what it has written, nor of a copy that was on its way when it failed."""
    text = COPY.replace("wait<0>", "if (load(u) == 0) wait<0>").replace("i < 4; ++i) c", "i < 4 - load(u + 1); ++i) c")
    one, (x, u, y) = product(text), arrays()
    for flags, message in (((0, 0), ""), ((1, 0), "on its way"), ((0, 1), "nobody has written"), ((0, 0), "")):
        u[:2] = flags
        if not message:
            warps().launch(one, x, u, y)
            continue
        with pytest.raises(KernelError, match=message):
            warps().launch(one, x, u, y)


@pytest.mark.parametrize("threads", [16, 40])
def test_threads_make_whole_warps(threads):
    with pytest.raises(KernelError, match=f"{threads} threads are not whole warps"):
        warps().launch(product(COPY, threads=threads), *arrays())


# Sums

#: 16 rows of x a block times 8 rows of u, `DEPTH` long. With `PARTS` of 0, operands are taken as they are; of 1, they
#: are rounded; of 3, they are a big and a small part. With `CHUNK`, so many products are added up apart, the small ones
#: first.
DOT = """
const float* rows = x + blockIdx.x * 16 * DEPTH;
auto part = [](float value, bool small) {
  const unsigned big = PARTS ? rounded_to_tf32(__float_as_uint(value)) : __float_as_uint(value);
  return small ? __float_as_uint(value - __uint_as_float(big)) : big;
};
float sums[4] = {};
for (int first = 0; first < DEPTH; first += CHUNK ? CHUNK : 8) {
  float apart[4] = {};
  for (int term = PARTS == 3 ? 0 : 2; term < 3; ++term)
    for (int k = first; k < first + (CHUNK ? CHUNK : 8); k += 8) {
      unsigned a[4], b[2];
      for (int i = 0; i < 4; ++i)
        a[i] = part(load(rows + (t / 4 + i % 2 * 8) * DEPTH + k + t % 4 + i / 2 * 4), term == 0);
      for (int i = 0; i < 2; ++i) b[i] = part(load(u + t / 4 * DEPTH + k + t % 4 + i * 4), term == 1);
      multiply(CHUNK ? apart : sums, a, b);
    }
  for (int i = 0; i < 4; ++i) sums[i] += apart[i];
}
for (int i = 0; i < 4; ++i) store(y + (blockIdx.x * 16 + t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2, sums[i]);
"""
SIZES = {576: 8, 4608: 2}
SUMS = {"one": (1, 0), "three": (3, 0), "chunks of 16": (3, 16), "chunks of 32": (3, 32)}
FORMS = [{"DEPTH": depth, "PARTS": 0, "CHUNK": 0} for depth in (8, 16)]
FORMS += [
    {"DEPTH": depth, "PARTS": parts, "CHUNK": chunk, "blocks": blocks}
    for depth, blocks in SIZES.items()
    for parts, chunk in SUMS.values()
]


def dot(a, b, parts=0, chunk=0):
    """Rows of a, 16 a block, times 8 rows of b."""
    y = np.zeros((len(a), 8), "f4")
    form = product(DOT, DEPTH=a.shape[1], PARTS=parts, CHUNK=chunk, blocks=len(a) // 16)
    warps().launch(form, *(np.ascontiguousarray(z, "f4").ravel() for z in (a, b)), y.ravel())
    return y


def total(*terms, depth=8):
    """The sum of products of a and b, where each term is such a pair or a number that is multiplied by 1."""
    a, b = np.zeros((16, depth), "f4"), np.zeros((8, depth), "f4")
    pairs = [term if isinstance(term, tuple) else (term, 1) for term in terms]
    a[3, : len(terms)], b[5, : len(terms)] = zip(*pairs, strict=True)
    return dot(a, b)[3, 5]


def model(a, b, width):
    """The same by exact numbers."""
    c = np.float32(0)
    for k in range(0, len(a), 8):
        terms = [Fraction(float(c))]
        terms += [Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a[k : k + 8], b[k : k + 8], strict=True)]
        unit = Fraction(2) ** (math.frexp(max(map(abs, map(float, terms))))[1] - width)
        exact = sum(int(term / unit) for term in terms) * unit
        c = np.float32(float(exact))
        if abs(Fraction(float(c))) > abs(exact):
            c = np.nextafter(c, np.float32(0))
    return c


@pytest.mark.parametrize("width", [24, WIDTH, 30])
def test_sums_are_those_of_the_model(width):
    rng = np.random.default_rng(width)
    a, b = (np.ldexp(rng.integers(-2047, 2048, (rows, 16)), rng.integers(-16, 17, (rows, 16))) for rows in (16, 8))
    with warps().width(width):
        y = dot(a, b)
    assert y.tolist() == [[model(row, other, width) for other in b.astype("f4")] for row in a.astype("f4")]


def test_integers_stay_exact():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-500, 501, (16, 16)), rng.integers(-500, 501, (8, 16))
    assert np.array_equal(dot(a, b), a @ b.T)


def test_terms_are_cut_below_the_largest():
    """Tiny terms beside a large one are lost, be it a product or the sum before; what is left is cut, too."""
    for sign in (1, -1):
        assert total(sign, *[sign * 2.0**-26] * 7) == sign
        assert total(sign, *[sign * 2.0**-25] * 7) == sign * (1 + 2**-23)
        assert total(sign, *[sign * 2.0**-25] * 3) == sign
        assert total(sign, -sign * 2.0**-25) == sign * (1 - 2**-24)
        assert total(*[sign, *[0] * 7], *[sign * 2.0**-26] * 8, depth=16) == sign
        assert total(*[sign, *[0] * 7], *[sign * 2.0**-25] * 8, depth=16) == sign * (1 + 2**-22)
        assert total(*[sign * 2.0**-26] * 7) == sign * 7 * 2.0**-26


def test_the_width():
    made = {}
    for width in (25, 26, 27, 0):
        with warps().width(width):
            made[width] = (total(*[1.5 * 2.0**-25] * 7, 1) - 1) * 2**23
    assert made == {25: 0, 26: 1, 27: 2, 0: 3}
    assert total(*[1.5 * 2.0**-25] * 7, 1) == 1 + 2**-23


def test_operands_lose_their_low_bits():
    """Cut, not rounded."""
    for sign in (1, -1):
        assert total(sign * (1 + 2**-10 + 2**-11 + 2**-23)) == sign * (1 + 2**-10)
        assert total((2.0, sign * (1 + 2**-11))) == sign * 2


def test_what_is_not_finite():
    inf, nan = float("inf"), float("nan")
    cases = [((inf,), inf), ((-inf, 3), -inf), ((inf, -inf), nan), (((inf, 0),), nan), ((nan, 1, 2), nan)]
    large = 2.0**64
    cases += [(((large, large),), inf), (((large, -large),), -inf), (((large, large), (large, -large), 1), 0)]
    cases += [(((large, large), (-(2.0**51), 2.0**52)), np.finfo("f4").max)]
    for terms, expected in cases:
        np.testing.assert_equal(total(*terms), np.float32(expected))
        np.testing.assert_equal(total(*terms, *[0] * (16 - len(terms)), depth=16), np.float32(expected))


@pytest.mark.parametrize("depth", SIZES)
def test_three_products(depth):
    """In chunks that leave the tensor core, they are as exact as float32; in one accumulator they are not."""
    rng = np.random.default_rng(depth)
    a, b = rng.standard_normal((16 * SIZES[depth], depth)).astype("f4"), rng.standard_normal((8, depth)).astype("f4")
    expected = a.astype(float) @ b.T.astype(float)
    plain = np.zeros(expected.shape, "f4")
    for k in range(depth):
        plain += a[:, k : k + 1] * b[:, k]

    def error(y):
        return np.abs(y - expected).max() / np.abs(expected).max()

    errors = {name: error(dot(a, b, *form)) for name, form in SUMS.items()}
    assert errors["chunks of 16"] < error(plain)
    assert errors["chunks of 32"] < error(plain)
    assert error(plain) < errors["three"] < errors["one"] / 5
