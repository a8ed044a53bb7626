"""What is multiplied on tensor cores, slice by slice: the text of those who gather it (`Work`), for `_tensor_cores`.

A convolution's rows are pixels of the result, and its columns taps and channels. The input gradient is one, too: there
the result is dx and the source dy, and with a stride, the pixels of dx that are a multiple of the stride apart, its
phase, are a convolution of stride 1 with the taps that meet them. A gradient of the filters has taps and channels for
its rows, and pixels for its columns.

Where channels are neighbours in memory and fill chunks of 16 bytes, these are copied whole. Else every element is
copied on its own, by neighbouring threads for neighbouring pixels.
"""

#: Where a chunk lies in a slice; what a tap reads.
PLACES = r"""
__device__ inline Chunk* place(Chunk* slice, int row, int chunk) { return slice + row * 4 + (chunk ^ (row / 2 % 4)); }

// Where tap 0 reads: an offset in the source, and the place along each axis; and by tap whether that is inside.
struct Place { I from; int i0, i1, i2; unsigned taps; };

// What a tap adds to that, and which of the bits is its own.
struct Tap { I from; int i0, i1, i2; unsigned bit; };

struct alignas(PAIRED ? 2 * sizeof(U) : sizeof(U)) Pair { U v[1 + PAIRED]; };

// The numbers of a geometry are constants, or they are members.
struct Gather : Numbers {
  __device__ inline Gather(const Numbers& numbers) : Numbers(numbers) {}

  __device__ inline Tap tap(int t) const {
    const int i0 = t / (KERNEL2 * KERNEL1) * DILATION0, i1 = t / KERNEL2 % KERNEL1 * DILATION1;
    const int i2 = t % KERNEL2 * DILATION2;
    return {i0 * SOURCE_STEP0 + i1 * SOURCE_STEP1 + i2 * SOURCE_STEP2, i0, i1, i2, FEW ? 1u << t % 32 : 0};
  }

  __device__ inline static unsigned along(int i, I size, I kernel, I dilation, unsigned taps, int shift) {
    unsigned found = 0;
#pragma unroll
    for (int t = 0; t < kernel; ++t)
      if ((unsigned)(i + t * dilation) < size) found |= taps << t * shift;
    return found;
  }

  __device__ inline Place reads_from(I from, int i0, int i1, int i2) const {
    unsigned taps = 0;
    if (FEW) {
      taps = along(i2, SOURCE2, KERNEL2, DILATION2, 1, 1);
      taps = along(i1, SOURCE1, KERNEL1, DILATION1, taps, KERNEL2);
      taps = along(i0, SOURCE0, KERNEL0, DILATION0, taps, KERNEL2 * KERNEL1);
    }
    return {from, i0, i1, i2, taps};
  }

  __device__ inline bool inside(const Place& p, const Tap& t) const {
    if (FEW) return p.taps & t.bit;
    return (unsigned)(p.i0 + t.i0) < SOURCE0 && (unsigned)(p.i1 + t.i1) < SOURCE1 && (unsigned)(p.i2 + t.i2) < SOURCE2;
  }

  // Two neighbouring filters of a row.
  __device__ inline void put(U* to, int filter, float one, float other) const {
    const float sums[2] = {one, other};
#pragma unroll
    for (int s = 0; s < 2; s += 1 + PAIRED) {
      Pair pair;
      for (int e = 0; e < 1 + PAIRED; ++e) convert(pair.v[e], sums[s + e]);
      if (filter + s < LAST_FILTER) store((Pair*)(to + (I)(filter + s) * RESULT_C), pair);
    }
  }
};
"""

#: A convolution: rows are pixels of the result, and columns taps and channels.
CONVOLUTION = r"""
struct Work : Gather {
  const E *x, *u;
  U* y;
  int thread, first_filter;
  N first_row;
  Place pixels[OWN_ROWS];
  int t = 0, c = 0;  // of the slice that is fetched next, where it is one tap's

  __device__ inline Work(const Numbers& numbers, const E* x, const E* u, U* y, int block, int thread)
      : Gather(numbers), thread(thread) {
    const int group = block / BLOCKS_OF_FILTERS % GROUPS;
    first_filter = block % BLOCKS_OF_FILTERS * FILTERS;
    first_row = (N)(block / (BLOCKS_OF_FILTERS * GROUPS)) * ROWS;
    this->x = x + (I)group * CHANNELS * SOURCE_C;
    this->u = u + U_START + (I)group * LAST_FILTER * DEPTH;
    this->y = y + RESULT_START + (I)group * LAST_FILTER * RESULT_C;
#pragma unroll
    for (int i = 0; i < OWN_ROWS; ++i) pixels[i] = pixel(first_row + row(i));
  }

  // For a pixel of the result.
  __device__ inline Place pixel(N m) const {
    if (m >= PIXELS) return {0, OUTSIDE, 0, 0, 0};
    const int i2 = (int)(m % RESULT2) * STRIDE2 - LO2, i1 = (int)(m / RESULT2 % RESULT1) * STRIDE1 - LO1;
    const int i0 = (int)(m / ((N)RESULT2 * RESULT1) % RESULT0) * STRIDE0 - LO0;
    const I n = (I)(m / ((N)RESULT2 * RESULT1 * RESULT0));
    const I from = SOURCE_START + n * SOURCE_N + i0 * SOURCE_STEP0 + i1 * SOURCE_STEP1 + i2 * SOURCE_STEP2;
    return reads_from(from, i0, i1, i2);
  }

  // The rows of which a thread copies: chunk by chunk, or with the next pixel in the next thread.
#ifdef PACKED
  __device__ inline int row(int i) const { return thread / 4 + i * (THREADS / 4); }
#else
  __device__ inline int row(int) const { return thread; }
#endif

  __device__ inline void fetch(Chunk* slice, int step) {
#ifdef PACKED
    const int k = (step * 4 + thread % 4) * V, t = WHOLE ? this->t : k / CHANNELS;
    const Tap reads = tap(t);
    const I at = reads.from + (WHOLE ? c + thread % 4 * V : k % CHANNELS);
#pragma unroll
    for (int i = 0; i < OWN_ROWS; ++i)
      copy_async(place(slice, row(i), thread % 4), x + (pixels[i].from + at),
                 (FEW || WHOLE || t < TAPS) && inside(pixels[i], reads));
#else
#pragma unroll(WHOLE ? 4 : 1)
    for (int q = 0; q < 4; ++q) {
      Chunk* to = place(slice, row(0), q);
#ifndef COPIED
      Chunk chunk;
#endif
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int k = (step * 4 + q) * V + j, t = WHOLE ? this->t : k / CHANNELS;
        const Tap reads = tap(t);
        const bool in = (FEW || WHOLE || t < TAPS) && inside(pixels[0], reads);
        const E* from = x + (pixels[0].from + reads.from + (I)(WHOLE ? c + q * V + j : k % CHANNELS) * SOURCE_C);
#ifdef COPIED
        copy_async(&to->v[j], from, in);
#else
        chunk.v[j] = in ? load(from) : E(0);
#endif
      }
#ifndef COPIED
      store_shared(to, chunk);
#endif
    }
#endif
#pragma unroll
    for (int i = 0; i < (FILTERS * 4 + THREADS - 1) / THREADS; ++i) {
      const int f = (thread + i * THREADS) / 4, k = (step * 4 + thread % 4) * V;
      const bool in = first_filter + f < LAST_FILTER;
      if (FILTERS * 4 % THREADS == 0 || f < FILTERS)
        copy_async(place(slice, ROWS + f, thread % 4), u + ((I)(first_filter + f) * DEPTH + k), in);
    }
    if (WHOLE && (c += 4 * V) == CHANNELS) c = 0, ++this->t;
  }

#ifdef THREE
  // One sum, in float32.
  __device__ inline float sum(N m, int f) const {
    const Place p = pixel(m);
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < TAPS * CHANNELS; ++k) {
      const Tap reads = tap(k / CHANNELS);
      const I from = p.from + reads.from + (I)(k % CHANNELS) * SOURCE_C;
      sum = fmaf(inside(p, reads) ? load(x + from) : 0.f, load(u + ((I)f * DEPTH + k)), sum);
    }
    return sum;
  }
#endif

  __device__ inline U* result(N m) const {
    const I at2 = m % RESULT2, at1 = m / RESULT2 % RESULT1, at0 = m / ((N)RESULT2 * RESULT1) % RESULT0;
    const I n = m / ((N)RESULT2 * RESULT1 * RESULT0);
    return y + (n * RESULT_N + at0 * RESULT_STEP0 + at1 * RESULT_STEP1 + at2 * RESULT_STEP2);
  }
};
"""

#: A gradient of the filters: rows are taps and channels, and columns pixels, of which a lane adds up some.
WEIGHT_GRADIENT = r"""
// What is read for a pixel of dy, and where that is.
struct Pixel { Place reads; I at; };

struct Work : Gather {
  const E *x, *dy;
  U* y;
  int thread, first_filter, first_row;
  N first_pixel;
#ifdef PIXELS_TOGETHER
  const Tap* rows;
#else
  Tap own;
  Pixel* pixels;
#endif

  __device__ inline Pixel pixel(N k) const {
    if (k >= PIXELS) return {{0, OUTSIDE, 0, 0, 0}, -1};
    const int o2 = (int)(k % OUT2), o1 = (int)(k / OUT2 % OUT1), o0 = (int)(k / ((N)OUT2 * OUT1) % OUT0);
    const int i2 = o2 * STRIDE2 - LO2, i1 = o1 * STRIDE1 - LO1, i0 = o0 * STRIDE0 - LO0;
    const I n = (I)(k / ((N)OUT2 * OUT1 * OUT0));
    const I from = SOURCE_START + n * SOURCE_N + i0 * SOURCE_STEP0 + i1 * SOURCE_STEP1 + i2 * SOURCE_STEP2;
    return {reads_from(from, i0, i1, i2), DY_START + n * DY_N + o0 * DY_STEP0 + o1 * DY_STEP1 + o2 * DY_STEP2};
  }

  // The tap and the channel of a row; taps of one channel are neighbours where pixels are.
#ifdef PIXELS_TOGETHER
  __device__ inline int tap_of(int row) const { return row % TAPS; }
  __device__ inline int channel_of(int row) const { return row / TAPS; }
#else
  __device__ inline int tap_of(int row) const { return row / CHANNELS; }
  __device__ inline int channel_of(int row) const { return row % CHANNELS; }
#endif

  __device__ inline Tap of_row(int row) const {
    if (row >= LAST_ROW) return {0, OUTSIDE, 0, 0, 0};
    Tap reads = tap(tap_of(row));
    reads.from += (I)channel_of(row) * SOURCE_C;
    return reads;
  }

  __device__ inline Work(const Numbers& numbers, const E* x, const E* dy, U* y, int block, int thread)
      : Gather(numbers), thread(thread) {
    const int lane = block / (BLOCKS_OF_FILTERS * BLOCKS_OF_ROWS * GROUPS);
    const int group = block / (BLOCKS_OF_FILTERS * BLOCKS_OF_ROWS) % GROUPS;
    first_filter = block % BLOCKS_OF_FILTERS * FILTERS;
    first_row = block / BLOCKS_OF_FILTERS % BLOCKS_OF_ROWS * ROWS;
    first_pixel = (N)lane * STEPS * 16;
    this->x = x + (I)group * CHANNELS * SOURCE_C;
    this->dy = dy + (I)group * LAST_FILTER * DY_C;
    this->y = y + ((I)lane * GROUPS + group) * LAST_FILTER * LAST_ROW;
#ifdef PIXELS_TOGETHER
    __shared__ Tap table[ROWS];
    store_shared(&table[thread], of_row(first_row + thread));
    rows = table;
#else
    __shared__ Pixel table[STAGES][16];
    pixels = table[0];
    own = of_row(first_row + thread);
    for (int k = thread; k < STAGES * 16; k += THREADS) store_shared(&pixels[k], pixel(first_pixel + k));
#endif
    __syncthreads();
  }

  __device__ inline void fetch(Chunk* slice, int step) {
#ifdef PIXELS_TOGETHER
    const int k = thread % 16;
    const Pixel p = pixel(first_pixel + step * 16 + k);
#pragma unroll 4
    for (int i = 0; i < ROWS * 16 / THREADS; ++i) {
      const int row = thread / 16 + i * (THREADS / 16);
      const Tap reads = load_shared(&rows[row]);
      copy_async(&place(slice, row, k / 4)->v[k % 4], x + (p.reads.from + reads.from), inside(p.reads, reads));
    }
#pragma unroll 4
    for (int i = 0; i < FILTERS * 16 / THREADS; ++i) {
      const int f = thread / 16 + i * (THREADS / 16);
      copy_async(&place(slice, ROWS + f, k / 4)->v[k % 4], dy + (p.at + (I)(first_filter + f) * DY_C),
                 p.at >= 0 && first_filter + f < LAST_FILTER);
    }
#else
    const int next = step + 1;  // the first ones are there
    if (next >= STAGES && thread < 16)
      store_shared(&pixels[next % STAGES * 16 + thread], pixel(first_pixel + next * 16 + thread));
    const Pixel* here = pixels + step % STAGES * 16;
    const int f = thread % FILTERS;
#pragma unroll 4
    for (int k = 0; k < 16; ++k) {
      const Place p = load_shared(&here[k].reads);
      copy_async(&place(slice, thread, k / 4)->v[k % 4], x + (p.from + own.from), inside(p, own));
    }
#pragma unroll 4
    for (int i = 0; i < FILTERS * 16 / THREADS; ++i) {
      const int k = thread / FILTERS + i * (THREADS / FILTERS);
      const I at = load_shared(&here[k].at);
      copy_async(&place(slice, ROWS + f, k / 4)->v[k % 4], dy + (at + (I)(first_filter + f) * DY_C),
                 at >= 0 && first_filter + f < LAST_FILTER);
    }
#endif
  }

#ifdef THREE
  // One sum, in float32.
  __device__ inline float sum(int row, int f) const {
    const Tap reads = of_row(row);
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < STEPS * 16; ++k) {
      const Pixel p = pixel(first_pixel + k);
      if (p.at < 0) break;
      const float from = inside(p.reads, reads) ? load(x + (p.reads.from + reads.from)) : 0;
      sum = fmaf(from, load(dy + (p.at + (I)f * DY_C)), sum);
    }
    return sum;
  }
#endif

  __device__ inline U* result(int row) const { return y + (channel_of(row) * TAPS + tap_of(row)); }
};
"""
