// What a kernel on tensor cores finds around it, for g++: what CUDA has as words, and the instructions of a warp, which
// warps.cpp does and checks.
#include "cpu.hpp"

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() barrier()
#define threadIdx (Index{thread_number()})
#define blockIdx (Index{block_number()})

struct Index { int x; };

// Types of products, and how many columns the left side has; F16, BF16 and TF32 are macros of kernels.
struct OfF16 { static const int DEPTH = 16; };
struct OfBF16 { static const int DEPTH = 16; };
struct OfTF32 { static const int DEPTH = 8; };

int thread_number();
int block_number();
void barrier();
void copy_to_shared(void* to, const void* from, int bytes, bool inside);
void commit();
void wait_for_all_but(unsigned left);
void check_shared(void* to, int bytes);
void check_read(const void* from, int bytes);
void check_load(const void* from, int bytes);
void check_store(void* to, int bytes);
void load_matrices(unsigned* v, const void* row);
void multiply_as(OfF16, float* c, const unsigned* a, const unsigned* b);
void multiply_as(OfBF16, float* c, const unsigned* a, const unsigned* b);
void multiply_as(OfTF32, float* c, const unsigned* a, const unsigned* b);

// The blocks from `first` to `last` of a kernel on three arrays, of which the last is the result; `written` is counted by
// element, and the first thing that went wrong is in `text`.
void run_blocks(void (*kernel)(), int threads, int first, int last, void** data, const long long* sizes,
                const int* itemsizes, unsigned char* written, char* text);

template <int LEFT> void wait() { wait_for_all_but(LEFT); }

template <class T> void copy_async(T* to, const void* from, bool inside) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16, "");
  copy_to_shared(to, from, sizeof(T), inside);
}

template <class T> void store_shared(T* to, const T& values) {
  static_assert(sizeof(T) % 4 == 0, "");
  const int step = alignof(T) == 16 ? 16 : 4;
  for (size_t at = 0; at < sizeof(T); at += step) check_shared((char*)to + at, step);
  *to = values;
}

template <class T> T load_shared(const T* from) {
  static_assert(sizeof(T) % 4 == 0, "");
  for (size_t at = 0; at < sizeof(T); at += 4) check_read((const char*)from + at, 4);
  return *from;
}

inline float __uint_as_float(unsigned bits) { return bits_to_float(bits); }
inline unsigned __float_as_uint(float x) { return float_to_bits(x); }

// To the nearest, and away from zero from the middle.
inline unsigned rounded_to_tf32(unsigned bits) { return (bits + 0x1000) & ~0x1fffu; }

template <class E> E load(const E* from) {
  check_load(from, sizeof(E));
  return *from;
}

template <class V> void store(V* to, const V& values) {
  check_store(to, sizeof(V));
  *to = values;
}
