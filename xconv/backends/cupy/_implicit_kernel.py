r"""Convolution as one matrix product whose left side is never written out, on tensor cores (`mma.sync`, from sm_80 on).

The product is ``y[m, f] = sum_k a[m, k] u[f, k]``: a row m is a pixel of the result, a column k a tap and a channel,
and ``a[m, k]`` the element of the source that the tap reads for the pixel, or a zero. A block of threads makes `ROWS`
pixels of up to 128 filters. It walks along k in slices of 64 bytes, gathers each slice of a and u into shared memory
while the tensor cores are at work on the slice before, and writes sums in float32 out once, in the dtype of the result.
Every sum has one order, no two blocks write to one place: results are bitwise reproducible.

The same text is the input gradient: there the result is dx, the source dy, and a tap reads ``(i + lo - t * dilation) /
stride`` where that is whole. (For ``mma`` and ``ldmatrix`` see NVIDIA, *PTX ISA*, on warp-level matrix instructions.)

A slice has four chunks of 16 bytes a row. Chunk q of row r lies at ``q ^ (r / 2 % 4)``, so that the eight rows that
`ldmatrix` reads at once come from different banks. A tap's channels fill whole chunks, with zeros behind the last.
"""

import math
from typing import Any, NamedTuple

from ..._geometry import Geometry
from ..._typing import Shape
from ._lines import WIDEST, Memory

#: Pixels of a block, its threads, and the slices that it keeps in shared memory: 48 KiB for 128 filters.
ROWS, THREADS, STAGES = 128, 256, 3
#: Bytes of a slice of one row.
SLICE = 64
#: By dtype: what an element is kept in, and the product's type.
TYPES = {"float16": ("unsigned short", "F16"), "bfloat16": ("unsigned short", "BF16"), "float32": ("float", "TF32")}
#: The first architecture that has these instructions.
LEAST_CAPABILITY = 80

#: What the machine does for the kernel below; the tests put the same, written in C++, in its place.
INSTRUCTIONS = r"""
__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// 16 bytes to shared memory, zeros where not `inside`; they are there once they have been waited for.
__device__ inline void copy_async(Chunk* to, const E* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than `LEFT` groups of this thread's copies are on their way.
template <int LEFT> __device__ inline void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory"); }

__device__ inline void store_shared(Chunk* to, const Chunk& chunk) { *to = chunk; }

// Four matrices of eight rows of 16 bytes: lane l names row l % 8 of matrix l / 8, and gets 4 bytes of each matrix,
// from row l / 4.
__device__ inline void load_matrices(unsigned* v, const Chunk* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(shared_address(row)) : "memory");
}

#if defined(TF32)
#define SHAPE "m16n8k8.row.col.f32.tf32.tf32.f32"
#elif defined(BF16)
#define SHAPE "m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define SHAPE "m16n8k16.row.col.f32.f16.f16.f32"
#endif

// c += a b, of 16 rows, 8 columns and 32 bytes between them. All lanes take part: no compiler may move it to a branch.
__device__ inline void multiply(float* c, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float32 as a TF32, rounded to the nearest.
__device__ inline unsigned rounded_to_tf32(unsigned bits) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

__device__ inline void convert(float& to, float from) { to = from; }

__device__ inline void convert(unsigned short& to, float from) {
#ifdef BF16
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to) : "f"(from));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to) : "f"(from));
#endif
}

__device__ inline E load(const E* from) { return __ldg(from); }

template <class V> __device__ inline void store(V* to, const V& values) { *to = values; }
"""

KERNEL = r"""
struct alignas(PAIRED ? 2 * sizeof(U) : sizeof(U)) Pair { U v[1 + PAIRED]; };

// A pixel of the result; n is -1 behind the last.
struct Pixel { I n, at0, at1, at2; };

__device__ inline Pixel pixel(WIDE_N m) {
  if (m >= PIXELS) return {-1, 0, 0, 0};
  const I at2 = m % RESULT2, at1 = m / RESULT2 % RESULT1, at0 = m / ((WIDE_N)RESULT2 * RESULT1) % RESULT0;
  return {(I)(m / ((WIDE_N)RESULT2 * RESULT1 * RESULT0)), at0, at1, at2};
}

// Where tap t of one axis reads for the place `at` of the result; less than 0 where that is outside.
template <int SIZE, int STRIDE, int DILATION, int LO> __device__ inline I read(I at, int t) {
#ifdef ADJOINT
  const I q = at + LO - t * DILATION, o = q / STRIDE;
  return q % STRIDE == 0 && o < SIZE ? o : -1;
#else
  const I i = at * STRIDE - LO + t * DILATION;
  return i < SIZE ? i : -1;
#endif
}

// The first channel that tap `t` reads for a pixel, as an offset in the source; -1 for zeros.
__device__ inline I source(const Pixel& p, int t) {
  const I i0 = read<SOURCE0, STRIDE0, DILATION0, LO0>(p.at0, t / (KERNEL2 * KERNEL1));
  const I i1 = read<SOURCE1, STRIDE1, DILATION1, LO1>(p.at1, t / KERNEL2 % KERNEL1);
  const I i2 = read<SOURCE2, STRIDE2, DILATION2, LO2>(p.at2, t % KERNEL2);
  if (p.n < 0 || t >= TAPS || i0 < 0 || i1 < 0 || i2 < 0) return -1;
  return SOURCE_START + p.n * SOURCE_N + i0 * SOURCE_STEP0 + i1 * SOURCE_STEP1 + i2 * SOURCE_STEP2;
}

__device__ inline Chunk* place(Chunk* slice, int row, int chunk) { return slice + row * 4 + (chunk ^ (row / 2 % 4)); }

// The channels from `c` of what lies at `from` in the source.
__device__ inline void gather(Chunk* to, const E* x, I from, int c) {
#ifdef PACKED
  copy_async(to, x + (from < 0 ? 0 : from + c), from >= 0);
#else
  Chunk chunk;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const bool inside = from >= 0 && c + j < CHANNELS;
    chunk.v[j] = inside ? load(x + from + (I)(c + j) * SOURCE_C) : E(0);
  }
  store_shared(to, chunk);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) NAME(const E* x, const E* u, U* y) {
  alignas(128) __shared__ Chunk slices[STAGES][(ROWS + FILTERS) * 4];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, q = thread % 4;
  const int first_filter = blockIdx.x % BLOCKS_OF_FILTERS * FILTERS;
  const WIDE_N first_pixel = (WIDE_N)(blockIdx.x / BLOCKS_OF_FILTERS) * ROWS;
  const int warp_row = warp / WARPS_ALONG * WARP_ROWS, warp_filter = warp % WARPS_ALONG * 32;

  Pixel pixels[ROWS * 4 / THREADS];
#pragma unroll
  for (int i = 0; i < ROWS * 4 / THREADS; ++i) pixels[i] = pixel(first_pixel + (thread + i * THREADS) / 4);

  // Every thread copies chunk q of some rows of the pixels, and of the filters.
  auto fetch = [&](int step) {
    Chunk* slice = slices[step % STAGES];
    const int k = step * 4 + q, tap = k / CHUNKS, c = k % CHUNKS * V;
#pragma unroll
    for (int i = 0; i < ROWS * 4 / THREADS; ++i)
      gather(place(slice, (thread + i * THREADS) / 4, q), x, source(pixels[i], tap), c);
#pragma unroll
    for (int i = 0; i < (FILTERS * 4 + THREADS - 1) / THREADS; ++i) {
      const int row = (thread + i * THREADS) / 4, f = first_filter + row;
      const bool inside = f < RESULT_CHANNELS && k < DEPTH;
      if (FILTERS * 4 % THREADS == 0 || row < FILTERS)
        copy_async(place(slice, ROWS + row, q), u + (inside ? ((I)f * DEPTH + k) * V : 0), inside);
    }
  };

  float sums[WARP_ROWS / 16][4][4] = {};
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < STEPS) fetch(step);
    commit();
  }
  for (int step = 0; step < STEPS; ++step) {
    wait<STAGES - 2>();
    __syncthreads();  // the slice is there, and nobody needs the one before it any longer
    if (step + STAGES - 1 < STEPS) fetch(step + STAGES - 1);
    commit();
    Chunk* slice = slices[step % STAGES];
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
      unsigned a[WARP_ROWS / 16][4], b[4][2];
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 16; ++i)
        load_matrices(a[i], place(slice, warp_row + i * 16 + lane % 16, half + lane / 16));
#pragma unroll
      for (int j = 0; j < 4; j += 2)
        load_matrices(b[j], place(slice, ROWS + warp_filter + j * 8 + lane % 8 + lane / 16 * 8, half + lane / 8 % 2));
#ifdef TF32
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 4; ++i) a[i / 4][i % 4] = rounded_to_tf32(a[i / 4][i % 4]);
#pragma unroll
      for (int j = 0; j < 8; ++j) b[j / 2][j % 2] = rounded_to_tf32(b[j / 2][j % 2]);
#endif
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 16; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(sums[i][j], a[i], b[j]);
    }
  }

#pragma unroll
  for (int i = 0; i < WARP_ROWS / 8; ++i) {  // a lane holds two neighbouring filters of rows that are 8 apart
    const Pixel p = pixel(first_pixel + warp_row + i * 8 + lane / 4);
    if (p.n < 0) continue;
    const I to = RESULT_START + p.n * RESULT_N + p.at0 * RESULT_STEP0 + p.at1 * RESULT_STEP1 + p.at2 * RESULT_STEP2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* sum = &sums[i / 2][j][i % 2 * 2];
#pragma unroll
      for (int s = 0; s < 2; s += 1 + PAIRED) {
        const int f = first_filter + warp_filter + j * 8 + lane % 4 * 2 + s;
        Pair pair;
        for (int e = 0; e < 1 + PAIRED; ++e) convert(pair.v[e], sum[s + e]);
        if (f < RESULT_CHANNELS) store((Pair*)(y + (to + (I)f * RESULT_C)), pair);
      }
    }
  }
}
"""


class Product(NamedTuple):
    """The kernel of one geometry: its name, its numbers and types, and how many blocks it takes."""

    name: str
    head: str
    blocks: int
    kernel: str = KERNEL

    @property
    def code(self) -> str:
        return self.head + INSTRUCTIONS + self.kernel


def chunks(channels: int, itemsize: int) -> int:
    """Chunks of 16 bytes that a tap's channels fill."""
    return max(1, -(-channels * itemsize // WIDEST))


def product(g: Geometry, source: Memory, result: Memory, *, adjoint: bool) -> Product:
    """The kernel for ``y = conv(x, w)``; with `adjoint`, for dx, where dy is the source."""
    channels, filters = (g.c_out, g.c_in) if adjoint else (g.c_in, g.c_out)
    along = 32 if filters <= 32 else 64 if filters <= 64 else 128
    blocks_of_filters, depth = -(-filters // along), g.taps * chunks(channels, source.itemsize)
    pixels = g.batch * math.prod(result.shape[2:])
    blocks = -(-pixels // ROWS) * blocks_of_filters
    wide = max(pixels + ROWS, depth * along * blocks_of_filters * WIDEST, *map(_reach, (source, result))) >= 2**31
    packed, paired = _packed(source), _paired(result)
    element, kind = TYPES[source.dtype]
    numbers = {
        "THREADS": THREADS,
        "STAGES": STAGES,
        "ROWS": ROWS,
        "FILTERS": along,
        "BLOCKS_OF_FILTERS": blocks_of_filters,
        "WARPS_ALONG": along // 32,
        "WARP_ROWS": ROWS * along // THREADS,
        "V": WIDEST // source.itemsize,
        "CHUNKS": chunks(channels, source.itemsize),
        "DEPTH": depth,
        "STEPS": -(-depth * WIDEST // SLICE),
        "TAPS": g.taps,
        "CHANNELS": channels,
        "PIXELS": pixels,
        "RESULT_CHANNELS": filters,
        "PAIRED": int(paired),
        **_axes("KERNEL", g.kernel, 1),
        **_axes("STRIDE", [a.stride for a in g.axes], 1),
        **_axes("DILATION", [a.dilation for a in g.axes], 1),
        **_axes("LO", [a.lo for a in g.axes], 0),
        **_placed("SOURCE", source),
        **_placed("RESULT", result),
    }
    lines = [f"#define {kind}"] + ["#define ADJOINT"] * adjoint + ["#define PACKED"] * packed
    form = f"{'i64' if wide else 'i32'}_{WIDEST // source.itemsize if packed else 1}_{along}"
    name = _name(g, source.dtype, result.dtype, form, adjoint=adjoint)
    lines += [f"#define NAME {name}", f"typedef {'long long' if wide else 'int'} I;"]
    lines += [f"typedef unsigned {'long long' if wide else 'int'} WIDE_N;", f"typedef {element} E;"]
    lines += [f"typedef {TYPES[result.dtype][0]} U;"]
    lines += [f"constexpr {'long long' if abs(n) >= 2**31 else 'int'} {key} = {n};" for key, n in numbers.items()]
    lines += ["struct alignas(16) Chunk { E v[V]; };"]
    return Product(name, "\n".join(lines) + "\n", blocks)


def width(channels: int, itemsize: int) -> int:
    """Elements of a tap's channels in whole chunks, as the filters ``(c_out, *kernel, width)`` are taken.

    With zeros behind the last channel; for the input gradient ``(c_in, *kernel, width)``, of the output channels.
    """
    return chunks(channels, itemsize) * WIDEST // itemsize


def _name(g: Geometry, source: str, result: str, form: str, *, adjoint: bool) -> str:
    """Says what the kernel is specialised to."""
    axes = {"": g.size, "k": g.kernel} | {
        letter: tuple(getattr(axis, field) for axis in g.axes)
        for letter, field in (("s", "stride"), ("d", "dilation"), ("l", "lo"), ("h", "hi"))
    }
    tags = "_".join(letter + "x".join(map(str, values)) for letter, values in axes.items()).replace("-", "m")
    verb = "implicit_input_grad" if adjoint else "implicit"
    return f"xconv_{verb}_n{g.batch}_c{g.c_in}_o{g.c_out}_{tags}_{source}_{result}_{form}"


def _axes(name: str, values: Any, missing: int) -> dict[str, int]:
    """A number for each of three axes, of which the first may be missing."""
    return {f"{name}{a}": value for a, value in enumerate((*[missing] * (3 - len(values)), *values))}


def _placed(name: str, memory: Memory) -> dict[str, int]:
    """The sizes and steps of an image."""
    sizes = _axes(name, memory.shape[2:], 1) | _axes(f"{name}_STEP", memory.steps[2:], 0)
    return sizes | {f"{name}_START": memory.start, f"{name}_N": memory.steps[0], f"{name}_C": memory.steps[1]}


def _packed(source: Memory) -> bool:
    """Whether 16 bytes can be copied at once: channels are neighbours, fill whole chunks, and begin where they must."""
    numbers = (source.shape[1], source.start, *_steps_taken(source))
    together = source.steps[1] == 1 and source.aligned and source.shape[1] > 0
    return together and all(number * source.itemsize % WIDEST == 0 for number in numbers)


def _paired(result: Memory) -> bool:
    """Whether two channels can be written at once."""
    numbers = (result.shape[1], result.start, *_steps_taken(result))
    return result.steps[1] == 1 and result.aligned and all(number % 2 == 0 for number in numbers)


def _steps_taken(memory: Memory) -> Shape:
    """From one pixel to the next, along axes that have more than one."""
    return tuple(step for axis, step in enumerate(memory.steps) if axis != 1 and memory.shape[axis] > 1)


def _reach(memory: Memory) -> int:
    return memory.start + sum(abs(step) * size for step, size in zip(memory.steps, memory.shape, strict=True))
