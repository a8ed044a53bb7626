r"""Matrix products of slices in shared memory, on tensor cores (`mma.sync`, from sm_80 on).

A block of threads walks along the columns of ``y[m, f] = sum_k a[m, k] u[f, k]`` in slices of 64 bytes. While the
tensor cores are at work on one slice the next ones are on their way into shared memory: who fetches them, and where
sums go, is a `Work` (`_operands`). Every sum has one order, no two blocks write to one place: results are bitwise
reproducible.
(For ``mma`` and ``ldmatrix`` see NVIDIA, *PTX ISA*, on warp-level matrix instructions.)

A slice has four chunks of 16 bytes a row. Chunk q of row r lies at ``q ^ (r / 2 % 4)``, so that the eight rows that
`ldmatrix` reads at once come from different banks.

Three TF32 products make one of float32: an operand is its TF32 part and the TF32 part of the rest, and what is left
out, the product of two rests, is below the rounding of float32. A tensor core cuts where it adds, towards zero. So it
adds up no more than a slice: the small products first, then the large ones, and then the slice's sum is added to the
others by a float32 addition, which rounds. The error is that of a float32 sum of K / 16 numbers, and no more than eight
roundings of every product: ``|err| <= (K + 8) * eps * sum |a u|``. (M. Fasi, N. Higham, M. Mikaitis, S. Pranesh,
*Numerical behavior of NVIDIA tensor cores*, 2021; H. Ootomo, R. Yokota, *Recovering single precision accuracy from
tensor cores while surpassing the FP32 theoretical peak performance*, 2022.) A sum that is not finite is added up again
in float32: an infinity has no rest, and a large number may have no TF32 that is near.
"""

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

// The same of 4 bytes.
__device__ inline void copy_async(float* to, const float* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(inside ? 4 : 0) : "memory");
}

__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than `LEFT` groups of this thread's copies are on their way.
template <int LEFT> __device__ inline void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory"); }

template <class T> __device__ inline void store_shared(T* to, const T& value) { *to = value; }

template <class T> __device__ inline T load_shared(const T* from) { return *from; }

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
#if defined(TF32) && !defined(THREE)
// A float32 whose first bits, which are all that is multiplied, are rounded to the nearest.
__device__ inline unsigned rounded(unsigned bits) {
  return fabsf(__uint_as_float(bits)) <= LARGEST ? bits + 0x1000 : bits;
}
#endif

#ifdef THREE
// The TF32 that is nearest, and what is left of a number.
__device__ inline unsigned large_part(unsigned bits) { return (bits + 0x1000) & 0xffffe000; }
__device__ inline unsigned small_part(unsigned bits, unsigned large) {
  return __float_as_uint(__uint_as_float(bits) - __uint_as_float(large));
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const E* x, const E* u, U* y PARAMETERS) {
  alignas(128) __shared__ Chunk slices[STAGES][(ROWS + FILTERS) * 4];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = warp / WARPS_ALONG * WARP_ROWS, warp_filter = warp % WARPS_ALONG * WARP_FILTERS;
  Work work(Numbers{NUMBERS}, x, u, y, blockIdx.x, thread);

  float sums[WARP_ROWS / 16][WARP_FILTERS / 8][4] = {};
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < STEPS) work.fetch(slices[step], step);
    commit();
  }
#pragma unroll 1
  for (int step = 0; step < STEPS; ++step) {
    wait<STAGES - 2>();
    __syncthreads();  // the slice is there, and nobody needs the one before it any longer
    const int next = step + STAGES - 1;
    if (next < STEPS) work.fetch(slices[next % STAGES], next);
    commit();
    Chunk* slice = slices[step % STAGES];
    const int a_row = warp_row + lane % 16, b_row = ROWS + warp_filter + lane % 8 + lane / 16 * 8;
#ifdef THREE
    unsigned b[2][WARP_FILTERS / 8][2], small_b[2][WARP_FILTERS / 8][2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < WARP_FILTERS / 8; j += 2)
        load_matrices(b[half][j], place(slice, b_row + j * 8, half * 2 + lane / 8 % 2));
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < WARP_FILTERS / 4; ++j) {
        unsigned& whole = b[half][j / 2][j % 2];
        const unsigned large = large_part(whole);
        small_b[half][j / 2][j % 2] = small_part(whole, large);
        whole = large;
      }
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; ++i) {
      unsigned a[2][4], small_a[2][4];
      float part[WARP_FILTERS / 8][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        load_matrices(a[half], place(slice, a_row + i * 16, half * 2 + lane / 16));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const unsigned large = large_part(a[half][e]);
          small_a[half][e] = small_part(a[half][e], large);
          a[half][e] = large;
        }
      }
#pragma unroll
      for (int term = 0; term < 6; ++term)  // the small ones first
#pragma unroll
        for (int j = 0; j < WARP_FILTERS / 8; ++j)
          multiply(part[j], term < 2 ? small_a[term % 2] : a[term % 2],
                   term / 2 == 1 ? small_b[term % 2][j] : b[term % 2][j]);
#pragma unroll
      for (int j = 0; j < WARP_FILTERS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] += part[j][e];
    }
#else
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned a[WARP_ROWS / 16][4], b[WARP_FILTERS / 8][2];
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 16; ++i)
        load_matrices(a[i], place(slice, a_row + i * 16, half * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < WARP_FILTERS / 8; j += 2)
        load_matrices(b[j], place(slice, b_row + j * 8, half * 2 + lane / 8 % 2));
#ifdef TF32
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 4; ++i) a[i / 4][i % 4] = rounded(a[i / 4][i % 4]);
#pragma unroll
      for (int j = 0; j < WARP_FILTERS / 4; ++j) b[j / 2][j % 2] = rounded(b[j / 2][j % 2]);
#endif
#pragma unroll
      for (int i = 0; i < WARP_ROWS / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_FILTERS / 8; ++j) multiply(sums[i][j], a[i], b[j]);
    }
#endif
  }

#ifdef THREE
  unsigned again = 0;  // which pairs of sums are not finite
#endif
#pragma unroll
  for (int i = 0; i < WARP_ROWS / 8; ++i) {  // a lane holds two neighbouring filters of rows that are 8 apart
    const auto m = work.first_row + warp_row + i * 8 + lane / 4;
    if (m >= LAST_ROW) continue;
    U* to = work.result(m);
#pragma unroll
    for (int j = 0; j < WARP_FILTERS / 8; ++j) {
      const float* sum = &sums[i / 2][j][i % 2 * 2];
#ifdef THREE
      if (!(fabsf(sum[0]) <= LARGEST && fabsf(sum[1]) <= LARGEST)) {
        again |= 1u << (i * (WARP_FILTERS / 8) + j);
        continue;
      }
#endif
      work.put(to, work.first_filter + warp_filter + j * 8 + lane % 4 * 2, sum[0], sum[1]);
    }
  }
#ifdef THREE
#pragma unroll 1
  for (int at = 0; again; ++at, again >>= 1)
    if (again & 1) {
      const auto m = work.first_row + warp_row + at / (WARP_FILTERS / 8) * 8 + lane / 4;
      const int f = work.first_filter + warp_filter + at % (WARP_FILTERS / 8) * 8 + lane % 4 * 2;
      work.put(work.result(m), f, f < LAST_FILTER ? work.sum(m, f) : 0, f + 1 < LAST_FILTER ? work.sum(m, f + 1) : 0);
    }
#endif
}
"""
