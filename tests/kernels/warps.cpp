// The threads of a block as fibers that take turns, and the instructions of a warp after NVIDIA's PTX ISA, with checks for
// what a device would not report.
//
// Threads of one warp run as far as they can before the next warp's turn, and an asynchronous copy arrives when it is
// waited for and no sooner; until then there are not-a-numbers in its place. So whoever reads too early, or writes to
// what others still read, is seen; and between two barriers every two threads are held to be unordered.
#include "warps.hpp"
#include <deque>
#include <memory>
#include <ucontext.h>
#include <unordered_map>
#include <vector>

// Memory of a device: an array that a kernel reads, or writes once an element.
struct Range {
  char* begin;
  long long size;  // in elements
  int itemsize;
  unsigned char* written;  // by element, where the array is a result
};

struct Copy { char* to; const char* from; };  // from nowhere: zeros

// 16 bytes of shared memory: when they were last written and read, counted in barriers.
struct Cell { int written = -1, read = -1; bool on_its_way = false; };

enum State { READY, IN_WARP, AT_BARRIER, DONE };

struct Thread {
  int x;  // the number that the kernel sees
  State state;
  int barriers;
  ucontext_t context;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  unsigned* registers;  // what it brings to its warp's instruction
  const void* inputs[2];
};

struct Block {
  static const int STACK = 1 << 18;
  int number;
  std::vector<Thread> threads;
  std::unique_ptr<char[]> stacks;
  Thread* running;
  ucontext_t scheduler;
  std::unordered_map<uintptr_t, Cell> shared;
  std::vector<int> arrived;
  std::vector<const char*> instruction;
  std::vector<Range> ranges;
  void (*kernel)();
  Report* report;

  bool failed() const { return *report->text; }

  void pause(State state) {
    Thread* self = running;
    self->state = state;
    swapcontext(&self->context, &scheduler);
  }

  template <class... Values> void fail(const char* format, Values... values) {
    report->thread = running->x;
    (*report)(format, values...);
    pause(DONE);  // and never runs again
  }

  void barrier() {
    pause(AT_BARRIER);
    ++running->barriers;
  }

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
    shared.clear();
    arrived.assign(count / 32, 0);
    instruction.assign(count / 32, "");
    for (int i = 0; i < count; ++i) {
      Thread& thread = threads[i];
      thread.x = i, thread.state = READY, thread.barriers = 0;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = stacks.get() + (size_t)i * STACK;
      thread.context.uc_stack.ss_size = STACK;
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, enter, 0);
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
          running = &thread;
          swapcontext(&scheduler, &thread.context);
          again = moved = true;
        }
      }
    }
    return moved;
  }

  void run(int count) {
    if (!stacks) stacks.reset(new char[(size_t)count * STACK]);
    start(count);
    while (!failed()) {
      if (turns()) continue;
      int waiting = 0, done = 0;
      for (Thread& thread : threads) waiting += thread.state == AT_BARRIER, done += thread.state == DONE;
      if (done == count) break;
      running = &threads[0];
      if (waiting < count) return (*report)("%d threads are at a barrier, %d at their end: the rest waits", waiting, done);
      for (Thread& thread : threads) thread.state = READY;
    }
    for (auto& cell : shared)
      if (cell.second.on_its_way && !failed()) (*report)("a copy is on its way when the kernel ends");
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

  Cell& written_to(const void* p) {
    aligned(p, 16);
    Cell& cell = shared[(uintptr_t)p];
    if (cell.on_its_way) fail("shared memory is written to that a copy is on its way to");
    if (cell.read == running->barriers) fail("shared memory is written to that others may still read");
    if (cell.written == running->barriers) fail("shared memory is written to twice");
    return cell;
  }

  void arrive(const Copy& copy) {
    std::memset(copy.to, 0, 16);
    if (copy.from) std::memcpy(copy.to, copy.from, 16);
    Cell& cell = shared[(uintptr_t)copy.to];
    cell.on_its_way = false, cell.written = running->barriers;
  }

  void matrices(Thread* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const Thread& names = lanes[matrix * 8 + row];
        const uintptr_t address = (uintptr_t)names.inputs[0];
        aligned(names.inputs[0], 16);
        auto found = shared.find(address);
        if (found == shared.end()) return fail("shared memory is read that nobody has written to");
        Cell& cell = found->second;
        if (cell.on_its_way) return fail("shared memory is read that a copy is on its way to");
        if (cell.written == names.barriers) return fail("shared memory is read without a barrier since it was written");
        cell.read = names.barriers;
        banks |= 1u << address / 16 % 8;
        for (int lane = row * 4; lane < row * 4 + 4; ++lane)
          std::memcpy(&lanes[lane].registers[matrix], (const char*)address + lane % 4 * 4, 4);
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

void copy_async(void* to, const void* from, bool inside) {
  block->aligned(from, 16);
  if (inside) block->range_of(from, 16);
  Cell& cell = block->written_to(to);
  cell.on_its_way = true;
  std::memset(to, 0xff, 16);
  block->running->open.push_back({(char*)to, inside ? (const char*)from : nullptr});
}

void commit() {
  block->running->groups.push_back(block->running->open);
  block->running->open.clear();
}

void wait_for_all_but(unsigned left) {
  for (auto& groups = block->running->groups; groups.size() > left; groups.pop_front())
    for (const Copy& copy : groups.front()) block->arrive(copy);
}

void check_shared(void* to) { block->written_to(to).written = block->running->barriers; }

void check_load(const void* from, int bytes) {
  if (block->range_of(from, bytes) != &block->ranges[0]) block->fail("an element is loaded from another array than x");
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
static float element(F16, const unsigned* v, int i) { float16 h; h.bits = v[i / 2] >> i % 2 * 16; return h; }
static float element(BF16, const unsigned* v, int i) { bfloat16 h; h.bits = v[i / 2] >> i % 2 * 16; return h; }
static float element(TF32, const unsigned* v, int i) {
  if (v[i] & 0x1fff) block->fail("an operand has not been rounded to TF32");
  return bits_to_float(v[i]);
}

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

template <class T> void multiply(Thread* lanes) {
  float a[16][T::DEPTH], b[T::DEPTH][8];
  int row, column;
  for (int lane = 0; lane < 32; ++lane) {
    const unsigned* const* inputs = (const unsigned* const*)lanes[lane].inputs;
    for (int i = 0; i < T::DEPTH / 2; ++i) {
      fragment_of_a<T>(lane, i, row, column);
      a[row][column] = element(T(), inputs[0], i);
    }
    for (int i = 0; i < T::DEPTH / 4; ++i) {
      fragment_of_b<T>(lane, i, row, column);
      b[row][column] = element(T(), inputs[1], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float* c = (float*)lanes[lane].registers;
      row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
      for (int k = 0; k < T::DEPTH; ++k) c[i] += a[row][k] * b[k][column];
    }
}

void multiply_as(F16, float* c, const unsigned* a, const unsigned* b) {
  block->together("mma", (unsigned*)c, a, b, multiply<F16>);
}
void multiply_as(BF16, float* c, const unsigned* a, const unsigned* b) {
  block->together("mma", (unsigned*)c, a, b, multiply<BF16>);
}
void multiply_as(TF32, float* c, const unsigned* a, const unsigned* b) {
  block->together("mma", (unsigned*)c, a, b, multiply<TF32>);
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
