// What the body of a CUDA kernel finds around it, for g++: CuPy's types of numbers, and arrays that check every index.
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

using std::complex;
using std::conj;

// Half types: stored in 16 bits, computed with in float, rounded to the nearest even.

inline float bits_to_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t float_to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  bfloat16& operator+=(float x) { return *this = bfloat16(*this + x); }
  bfloat16(float x) {
    uint32_t b = float_to_bits(x);
    bits = x != x ? 0x7fc0 : (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  }
  operator float() const { return bits_to_float((uint32_t)bits << 16); }
};

struct float16 {
  uint16_t bits;
  float16() = default;
  float16& operator+=(float x) { return *this = float16(*this + x); }
  float16(float x) { _Float16 h = x; std::memcpy(&bits, &h, 2); }
  operator float() const { _Float16 h; std::memcpy(&h, &bits, 2); return h; }
};

template <class T> struct is_complex : std::false_type {};
template <class T> struct is_complex<complex<T>> : std::true_type {};

// The first thing that went wrong.
struct Report {
  char* text;
  long long thread;
  template <class... Values> void operator()(const char* format, Values... values) {
    if (*text) return;
    int used = std::snprintf(text, 250, "thread %lld: ", thread);
    std::snprintf(text + used, 250 - used, format, values...);
  }
};

// A flat array that knows its size, and that at most one thread writes to each of its elements.
template <class T> struct Array {
  T* data;
  long long size;
  unsigned char* written;  // by element, where the array is a result
  const char* name;
  Report* report;

  // An element, or the place of a pack of neighbours.
  struct Element {
    const Array& array;
    long long at;

    T* place(int count, std::size_t alignment, bool writes) const {
      alignas(64) static typename std::remove_const<T>::type elsewhere[64];
      if (at < 0 || at + count > array.size) {
        (*array.report)("%s[%lld] is outside its %lld elements", array.name, at, array.size);
        return elsewhere;
      }
      if ((uintptr_t)(array.data + at) % alignment) {
        (*array.report)("%s[%lld] is not aligned to %d bytes", array.name, at, (int)alignment);
        return elsewhere;
      }
      for (int j = 0; writes && j < count; ++j)
        if (array.written[at + j]++) (*array.report)("%s[%lld] is written twice", array.name, at + j);
      return array.data + at;
    }

    struct Address {
      const Element element;
      template <class P> explicit operator const P*() const {
        return (const P*)element.place(sizeof(P) / sizeof(T), alignof(P), false);
      }
      template <class P> explicit operator P*() const {
        static_assert(!std::is_const<T>::value, "an input is not written to");
        return (P*)element.place(sizeof(P) / sizeof(T), alignof(P), true);
      }
    };
    Address operator&() const { return {*this}; }

    T value() const { return *place(1, alignof(T), false); }
    void operator=(const T& value) const { *place(1, alignof(T), true) = value; }
    template <class V, class = typename std::enable_if<std::is_arithmetic<V>::value &&
                                                       !is_complex<typename std::remove_const<T>::type>::value>::type>
    operator V() const { return (V)value(); }
    operator T() const { return value(); }
  };

  Element operator[](long long at) const { return {*this, at}; }
};
