// The threads of a block as fibers that take turns, and the instructions of a warp after NVIDIA's PTX ISA, with checks for
// what a device would not report.
//
// Threads of one warp run as far as they can before the next warp's turn, and an asynchronous copy arrives when it is
// waited for and no sooner; until then there are not-a-numbers in its place. So whoever reads too early, or writes to
// what others still read, is seen; and between two barriers every two threads are held to be unordered.
#include "warps.hpp"
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <link.h>
#include <map>
#include <memory>
#include <ucontext.h>
#include <vector>

// Memory of a device: an array that a kernel reads, or writes once an element.
struct Range {
  char* begin;
  long long size;  // in elements
  int itemsize;
  unsigned char* written;  // by element, where the array is a result
};

struct Copy { char* to; const char* from; int bytes; };  // from nowhere: zeros

// 4 bytes of shared memory: the interval between two barriers in which they were last written and read, and the first
// one of the block that has a copy on its way to them. Intervals are counted from 1 on, through all blocks and kernels.
struct Cell { int written, read, on_its_way; };

// The memory of a kernel's static variables, with a cell for each 4 bytes.
struct Shared {
  uintptr_t begin, end;
  std::unique_ptr<Cell, void (*)(void*)> cells;
};

// The variables around p, or nothing where no file's are.
static Shared* shared_around(uintptr_t p) {
  static std::map<uintptr_t, Shared> known;  // by their end
  auto found = known.upper_bound(p);
  if (found != known.end() && p >= found->second.begin) return &found->second;
  uintptr_t range[3] = {p};
  dl_iterate_phdr([](dl_phdr_info* file, size_t, void* data) {
    uintptr_t* range = (uintptr_t*)data;
    for (int i = 0; i < file->dlpi_phnum; ++i) {
      const auto& segment = file->dlpi_phdr[i];
      const uintptr_t begin = file->dlpi_addr + segment.p_vaddr, end = begin + segment.p_memsz;
      if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_W) || range[0] < begin || range[0] >= end) continue;
      range[1] = begin / 16 * 16, range[2] = end;
    }
    return 0;
  }, range);
  if (!range[2]) return nullptr;
  Cell* cells = (Cell*)std::calloc((range[2] - range[1]) / 4 + 1, sizeof(Cell));
  return &known.emplace(range[2], Shared{range[1], range[2], {cells, std::free}}).first->second;
}

__attribute__((noinline)) static void jump(void** to) { __builtin_longjmp(to, 1); }

enum State { READY, IN_WARP, AT_BARRIER, DONE };

struct Thread {
  int x;  // the number that the kernel sees
  State state;
  ucontext_t start;
  void* at[5];  // where it paused, if it has
  bool started;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  unsigned* registers;  // what it brings to its warp's instruction
  const void* inputs[2];
};

static int intervals = 0;

struct Block {
  static const int STACK = 1 << 18;
  int number;
  std::vector<Thread> threads;
  std::unique_ptr<char[]> stacks;
  Thread* running;
  void* scheduler[5];
  Shared* shared = nullptr;  // what was used last
  int first, now;  // intervals between barriers
  int on_their_way;
  std::vector<int> arrived;
  std::vector<const char*> instruction;
  std::vector<Range> ranges;
  void (*kernel)();
  Report* report;

  bool failed() const { return *report->text; }

  // The compiler's own way to jump between stacks is many times as fast as `swapcontext`, which asks the system.
  __attribute__((noinline)) void pause(State state) {
    running->state = state;
    if (!__builtin_setjmp(running->at)) jump(scheduler);
  }

  __attribute__((noinline)) void resume(Thread* thread) {
    running = thread;
    if (__builtin_setjmp(scheduler)) return;
    if (thread->started) jump(thread->at);
    thread->started = true;
    setcontext(&thread->start);
  }

  template <class... Values> void fail(const char* format, Values... values) {
    report->thread = running->x;
    (*report)(format, values...);
    pause(DONE);  // and never runs again
  }

  void barrier() { pause(AT_BARRIER); }

  // The warp's instruction, which `run` does for all its lanes when the last has come.
  void together(const char* name, unsigned* registers, const void* a, const void* b, void (*run)(Thread*)) {
    const int warp = running->x / 32;
    running->registers = registers, running->inputs[0] = a, running->inputs[1] = b;
    if (arrived[warp] && std::strcmp(instruction[warp], name)) fail("%s beside %s in one warp", name, instruction[warp]);
    instruction[warp] = name;
    if (++arrived[warp] < 32) return pause(IN_WARP);
    arrived[warp] = 0;
    run(&threads[warp * 32]);
    for (int lane = 0; lane < 32; ++lane) threads[warp * 32 + lane].state = READY;
  }

  static void enter() {
    block_of_this()->kernel();
    block_of_this()->pause(DONE);
  }
  static Block* block_of_this();

  void start(int count) {
    threads.assign(count, Thread());
    first = now = ++intervals;
    on_their_way = 0;
    arrived.assign(count / 32, 0);
    instruction.assign(count / 32, "");
    for (int i = 0; i < count; ++i) {
      Thread& thread = threads[i];
      thread.x = i, thread.state = READY, thread.started = false;
      getcontext(&thread.start);
      thread.start.uc_stack.ss_sp = stacks.get() + (size_t)i * STACK;
      thread.start.uc_stack.ss_size = STACK;
      thread.start.uc_link = nullptr;
      makecontext(&thread.start, enter, 0);
    }
  }

  bool turns() {
    bool moved = false;
    for (size_t warp = 0; warp < threads.size() / 32; ++warp) {
      for (bool again = true; again && !failed();) {
        again = false;
        for (int lane = 0; lane < 32 && !failed(); ++lane) {
          Thread& thread = threads[warp * 32 + lane];
          if (thread.state != READY) continue;
          resume(&thread);
          again = moved = true;
        }
      }
    }
    return moved;
  }

  void run(int count) {
    if (!stacks) stacks.reset(new char[(size_t)count * STACK]);
    if (count % 32) return (*report)("%d threads are not whole warps", count);
    start(count);
    while (!failed()) {
      if (turns()) continue;
      int waiting = 0, done = 0;
      for (Thread& thread : threads) waiting += thread.state == AT_BARRIER, done += thread.state == DONE;
      if (done == count) break;
      running = &threads[0];
      if (waiting < count) return (*report)("%d threads are at a barrier, %d at their end: the rest waits", waiting, done);
      for (Thread& thread : threads) thread.state = READY;
      now = ++intervals;
    }
    if (on_their_way && !failed()) (*report)("a copy is on its way when the kernel ends");
  }

  // Memory

  Range* range_of(const void* p, int bytes) {
    const char* begin = (const char*)p;
    for (Range& range : ranges)
      if (begin >= range.begin && begin + bytes <= range.begin + range.size * range.itemsize) return &range;
    fail("%d bytes are outside of all arrays", bytes);
    return nullptr;
  }

  void aligned(const void* p, int bytes) {
    if ((uintptr_t)p % bytes) fail("an address is not a multiple of %d", bytes);
  }

  void check_input(const void* p, int bytes) {
    if (range_of(p, bytes)->written) fail("the result is read");
  }

  Cell* cells_of(const void* p, int bytes) {
    aligned(p, bytes);
    const uintptr_t at = (uintptr_t)p;
    if (!shared || at < shared->begin || at + bytes > shared->end) shared = shared_around(at);
    if (!shared || at + bytes > shared->end) fail("%d bytes are outside of shared memory", bytes);
    return shared->cells.get() + (at - shared->begin) / 4;
  }

  Cell* written_to(const void* p, int bytes) {
    Cell* cells = cells_of(p, bytes);
    for (Cell* cell = cells; cell < cells + bytes / 4; ++cell) {
      if (cell->on_its_way == first) fail("shared memory is written to that a copy is on its way to");
      if (cell->read == now) fail("shared memory is written to that others may still read");
      if (cell->written == now) fail("shared memory is written to twice");
    }
    return cells;
  }

  Cell* read_at(const void* p, int bytes) {
    Cell* cells = cells_of(p, bytes);
    for (Cell* cell = cells; cell < cells + bytes / 4; ++cell) {
      if (cell->on_its_way == first) fail("shared memory is read that a copy is on its way to");
      if (cell->written < first) fail("shared memory is read that nobody has written to");
      if (cell->written == now) fail("shared memory is read without a barrier since it was written");
      cell->read = now;
    }
    return cells;
  }

  void arrive(const Copy& copy) {
    std::memset(copy.to, 0, copy.bytes);
    if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
    Cell* cells = cells_of(copy.to, copy.bytes);
    for (Cell* cell = cells; cell < cells + copy.bytes / 4; ++cell) cell->on_its_way = 0, cell->written = now;
    --on_their_way;
  }

  void matrices(Thread* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const char* from = (const char*)lanes[matrix * 8 + row].inputs[0];
        read_at(from, 16);
        banks |= 1u << (uintptr_t)from / 16 % 8;
        for (int lane = row * 4; lane < row * 4 + 4; ++lane)
          std::memcpy(&lanes[lane].registers[matrix], from + lane % 4 * 4, 4);
      }
      if (banks != 255) return fail("two rows of a matrix lie in the same banks");
    }
  }
};

static Block* block;
Block* Block::block_of_this() { return block; }

int thread_number() { return block->running->x; }
int block_number() { return block->number; }
void barrier() { block->barrier(); }

void copy_to_shared(void* to, const void* from, int bytes, bool inside) {
  block->aligned(from, bytes);
  if (inside) block->check_input(from, bytes);
  Cell* cells = block->written_to(to, bytes);
  for (Cell* cell = cells; cell < cells + bytes / 4; ++cell) cell->on_its_way = block->first;
  ++block->on_their_way;
  std::memset(to, 0xff, bytes);
  block->running->open.push_back({(char*)to, inside ? (const char*)from : nullptr, bytes});
}

void commit() {
  block->running->groups.push_back(std::move(block->running->open));
  block->running->open.clear();
}

void wait_for_all_but(unsigned left) {
  for (auto& groups = block->running->groups; groups.size() > left; groups.pop_front())
    for (const Copy& copy : groups.front()) block->arrive(copy);
}

void check_shared(void* to, int bytes) {
  Cell* cells = block->written_to(to, bytes);
  for (Cell* cell = cells; cell < cells + bytes / 4; ++cell) cell->written = block->now;
}

void check_read(const void* from, int bytes) { block->read_at(from, bytes); }

void check_load(const void* from, int bytes) {
  block->aligned(from, bytes);
  block->check_input(from, bytes);
}

void check_store(void* to, int bytes) {
  block->aligned(to, bytes);
  Range* range = block->range_of(to, bytes);
  const long long at = ((char*)to - range->begin) / range->itemsize;
  for (int j = 0; j < bytes / range->itemsize; ++j) {
    if (!range->written) block->fail("an input is written to");
    if (range->written[at + j]++) block->fail("an element is written twice");
  }
}

void load_matrices(unsigned* v, const void* row) {
  block->together("ldmatrix", v, row, nullptr, [](Thread* lanes) { block->matrices(lanes); });
}

// Number i of a lane's fragment.
static float element(OfF16, const unsigned* v, int i) { float16 h; h.bits = v[i / 2] >> i % 2 * 16; return h; }
static float element(OfBF16, const unsigned* v, int i) { bfloat16 h; h.bits = v[i / 2] >> i % 2 * 16; return h; }
static float element(OfTF32, const unsigned* v, int i) { return bits_to_float(v[i] & ~0x1fffu); }

// Where element i of a lane's fragment is in its matrix: mma.m16n8k16 for half types, mma.m16n8k8 for TF32.
template <class T> void fragment_of_a(int lane, int i, int& row, int& column) {
  const int group = lane >> 2, in_group = lane % 4;
  if (T::DEPTH == 16) {
    row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
  } else {
    row = i == 0 || i == 2 ? group : group + 8;
    column = i < 2 ? in_group : in_group + 4;
  }
}

template <class T> void fragment_of_b(int lane, int i, int& row, int& column) {
  const int group = lane >> 2, in_group = lane % 4;
  column = group;
  if (T::DEPTH == 16) row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
  else row = i == 0 ? in_group : in_group + 4;
}

// How many bits of each term a tensor core adds up, from the highest bit of the largest on; with 0, terms are added one
// after the other in float32.
static int width;
extern "C" void set_width(int bits) { width = bits; }

// The sum of c and 8 products after M. Fasi, N. Higham, M. Mikaitis, S. Pranesh, Numerical behavior of NVIDIA tensor
// cores, PeerJ Computer Science, 2021: terms are cut to `width` bits, added exactly, and their sum is cut to a float32.
// Not-a-numbers and infinities are those of sums in float32, and a sum that is too large is infinite.
static float sum_of_terms(float c, const float* a, const float* b) {
  double terms[9], largest = std::fabs(c);
  float plain = c;
  bool finite = std::isfinite(c);
  terms[8] = c;
  for (int k = 0; k < 8; ++k) {
    plain += a[k] * b[k];
    terms[k] = (double)a[k] * b[k];
    finite = finite && std::isfinite(terms[k]);
    largest = std::max(largest, std::fabs(terms[k]));
  }
  if (!width || !finite || largest == 0) return plain;
  const int shift = width - 1 - std::ilogb(largest);
  const double unit = std::ldexp(1.0, -shift), units = std::ldexp(1.0, shift);
  long long sum = 0;
  for (double term : terms) sum += (long long)(term * units);
  const double exact = (double)sum * unit;
  const float nearest = (float)exact;
  if (std::isinf(nearest)) return std::fabs(exact) < 0x1p128 ? std::copysign(FLT_MAX, nearest) : nearest;
  return std::fabs(nearest) > std::fabs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

template <class T> void multiply(Thread* lanes) {
  float a[16][T::DEPTH], b[8][T::DEPTH];
  int row, column;
  for (int lane = 0; lane < 32; ++lane) {
    const unsigned* const* inputs = (const unsigned* const*)lanes[lane].inputs;
    for (int i = 0; i < T::DEPTH / 2; ++i) {
      fragment_of_a<T>(lane, i, row, column);
      a[row][column] = element(T(), inputs[0], i);
    }
    for (int i = 0; i < T::DEPTH / 4; ++i) {
      fragment_of_b<T>(lane, i, row, column);
      b[column][row] = element(T(), inputs[1], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float* c = (float*)lanes[lane].registers;
      row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
      for (int k = 0; k < T::DEPTH; k += 8) c[i] = sum_of_terms(c[i], a[row] + k, b[column] + k);
    }
}

void multiply_as(OfF16, float* c, const unsigned* a, const unsigned* b) {
  block->together("mma", (unsigned*)c, a, b, multiply<OfF16>);
}
void multiply_as(OfBF16, float* c, const unsigned* a, const unsigned* b) {
  block->together("mma", (unsigned*)c, a, b, multiply<OfBF16>);
}
void multiply_as(OfTF32, float* c, const unsigned* a, const unsigned* b) {
  block->together("mma", (unsigned*)c, a, b, multiply<OfTF32>);
}

void run_blocks(void (*kernel)(), int threads, int first, int last, void** data, const long long* sizes,
                const int* itemsizes, unsigned char* written, char* text) {
  Report report = {text, 0};
  Block here;
  here.report = &report, here.kernel = kernel;
  for (int i = 0; i < 3; ++i) here.ranges.push_back({(char*)data[i], sizes[i], itemsizes[i], i < 2 ? nullptr : written});
  block = &here;
  for (here.number = first; here.number < last && !*text; ++here.number) here.run(threads);
}
