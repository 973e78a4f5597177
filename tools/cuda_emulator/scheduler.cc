// Runs the blocks of a grid: fibers, barriers, warp collectives, shared memory,
// queues of asynchronous copies.
//
// A thread runs until it waits, then jumps straight to another ready thread;
// when none is ready it returns to the root, which is the host's own stack. It
// takes a stack when it begins: that of the thread that just ended, where one
// did, so that threads that never wait cost no jump. Shuffled, released threads
// are put at random places of the whole ready list, so that warps interleave.
// ASan is told of every jump: it keeps a stack's bounds and a "fake stack" for
// each.
#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tools/cuda_emulator/emulator.h"
#include "tools/cuda_emulator/internal.h"

#ifdef __SANITIZE_ADDRESS__
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fc = boost::context::detail;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {
namespace {

enum class State { kReady, kBarrier, kWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Stack {
  fc::fcontext_t context = nullptr;
  void* lowest = nullptr;  // usable address
  size_t bytes = 0;
  void* fake_stack = nullptr;  // ASan's
};

struct Thread {
  Stack* stack = nullptr;  // null before it begins
  uint3 index{};
  int id = 0;
  State state = State::kReady;
  const char* file = nullptr;
  int line = 0;
  const char* op = nullptr;
  unsigned warp_epoch = 0;
  std::vector<Copy> copies;        // asked for, not yet done
  std::vector<size_t> group_ends;  // in `copies`, of committed groups
};

struct Collective {
  unsigned mask, arrived;
  const char* op;
  WarpFn fn;
  void* args[32];
};
struct Warp {
  std::vector<Collective> pending;
  unsigned exited = 0;
};
struct Shared {
  void* key;
  const char* name;
  char* data;
  size_t bytes;
};

struct Grid {
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Stack>> stacks;
  std::vector<Stack*> idle;
  std::vector<Thread*> ready;
  std::vector<Warp> warps;
  std::vector<Shared> shared;
  char* dynamic = nullptr;
  size_t dynamic_bytes = 0, limit = 0;
  int at_barrier = 0, exited = 0;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  size_t argument_bytes = 0;
  bool in_collective = false;
  bool failed = false;
  int num_threads() const { return static_cast<int>(threads.size()); }
};

Grid g;
Stack root;
Stack* running = &root;
Thread* current = nullptr;  // of the kernel; null on the root
Options the_options;
std::string reports;
uint64_t random_state = 1;
std::map<const void*, size_t> dynamic_limits;

uint64_t Random() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

// Operations are named by literals, which differ between object files at most.
bool SameOperation(const char* a, const char* b) {
  return a == b || !std::strcmp(a, b);
}

size_t Below(size_t n) { return (Random() >> 32) * n >> 32; }

// First thing done on a stack after it was switched to.
void Switched() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(running->fake_stack, nullptr, nullptr);
#endif
}

void SwitchTo(Stack* to) {
  Stack* from = running;
  if (from == to) return;
  running = to;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from->fake_stack, to->lowest, to->bytes);
#endif
  fc::transfer_t t = fc::jump_fcontext(to->context, from);
  static_cast<Stack*>(t.data)->context = t.fctx;
  Switched();
}

void FiberMain();
void Entry(fc::transfer_t t) {
  static_cast<Stack*>(t.data)->context = t.fctx;
  FiberMain();
}

// A fresh context. Tops of stacks lie in different sets of the caches.
void Prepare(Stack* s, size_t number) {
#ifdef __SANITIZE_ADDRESS__
  // Frames of an abandoned thread.
  __asan_unpoison_memory_region(s->lowest, s->bytes);
#endif
  s->fake_stack = nullptr;
  const size_t bytes = s->bytes - number * 192 % 4096;
  s->context =
      fc::make_fcontext(static_cast<char*>(s->lowest) + bytes, bytes, Entry);
}

// With a guard page below.
std::unique_ptr<Stack> NewStack() {
  const size_t bytes = the_options.stack_bytes;
  char* m = static_cast<char*>(
      mmap(nullptr, bytes + 4096, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mprotect(m, 4096, PROT_NONE);
  auto s = std::make_unique<Stack>();
  s->lowest = m + 4096;
  s->bytes = bytes;
  return s;
}

// Stacks are kept between launches, each waiting in FiberMain for a thread to
// run; not after a failure, which abandons threads on them.
void PrepareStacks() {
  if (!g.stacks.empty() && g.stacks[0]->bytes != the_options.stack_bytes) {
    for (const auto& s : g.stacks)
      munmap(static_cast<char*>(s->lowest) - 4096, s->bytes + 4096);
    g.stacks.clear();
    g.idle.clear();
  }
  if (g.idle.size() == g.stacks.size()) return;
  g.idle.clear();
  for (size_t i = 0; i < g.stacks.size(); ++i) {
    Prepare(g.stacks[i].get(), i);
    g.idle.push_back(g.stacks[i].get());
  }
}

Stack* IdleStack() {
  if (g.idle.empty()) {
    g.stacks.push_back(NewStack());
    Prepare(g.stacks.back().get(), g.stacks.size() - 1);
    g.idle.push_back(g.stacks.back().get());
  }
  Stack* s = g.idle.back();
  g.idle.pop_back();
  return s;
}

// The thread to go on with; null: back to the root.
Thread* TakeReady() {
  if (g.failed || g.ready.empty()) return nullptr;
  Thread* t = g.ready.back();
  g.ready.pop_back();
  return t;
}

void Become(Thread* t) {
  current = t;
  threadIdx = t->index;
}

void Resume(Thread* t) {
  if (t == nullptr) {
    current = nullptr;
    return SwitchTo(&root);
  }
  Become(t);
  if (t->stack == nullptr) t->stack = IdleStack();
  SwitchTo(t->stack);
}

// The running thread waits.
void Next() { Resume(TakeReady()); }

// `threads`, in ascending order, run before whatever was ready, in the order
// asked for; shuffled ones anywhere in the whole list, so that warps
// interleave.
void Release(Thread** threads, int count) {
  const size_t at = g.ready.size();
  g.ready.resize(at + count);
  for (int i = 0; i < count; ++i) {
    threads[i]->state = State::kReady;
    const bool first_is_last = the_options.order == Order::kAscending;
    g.ready[at + (first_is_last ? count - 1 - i : i)] = threads[i];
  }
  if (the_options.order != Order::kShuffled) return;
  for (size_t i = at; i < g.ready.size(); ++i)
    std::swap(g.ready[i], g.ready[Below(i + 1)]);
}

void ReleaseBlock() {
  static std::vector<Thread*> all;
  all.clear();
  for (Thread& t : g.threads) all.push_back(&t);
  Release(all.data(), g.num_threads());
}

void Complete(Warp& w, size_t i, int warp) {
  Collective& c = w.pending[i];
  g.in_collective = true;
  c.fn(c.args, c.arrived);
  g.in_collective = false;
  const bool orders = SameOperation(c.op, "syncwarp");
  Thread* back[32];
  int n = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(c.arrived >> lane & 1)) continue;
    back[n] = &g.threads[warp * 32 + lane];
    back[n++]->warp_epoch += orders;
  }
  if (i + 1 < w.pending.size()) c = w.pending.back();
  w.pending.pop_back();
  Release(back, n);
}

// Of the running thread, in the books.
void End() {
  Warp& w = g.warps[current->id / 32];
  w.exited |= 1u << current->id % 32;
  ++g.exited;
  current->state = State::kDone;
  for (size_t i = 0; i < w.pending.size(); ++i)
    if (((w.pending[i].arrived | w.exited) & w.pending[i].mask) ==
        w.pending[i].mask) {
      Complete(w, i, current->id / 32);
      break;
    }
  if (!current->copies.empty() || !current->group_ends.empty())
    Report("thread %d ends with cp.async copies not waited for", current->id);
}

// What runs on every stack: `current`, once it was switched to, and then
// whatever thread begins where it ended.
void FiberMain() {
  Switched();
  for (;;) {
    g.body(g.argument);
    End();
    Stack* const own = std::exchange(current->stack, nullptr);
    Thread* const next = TakeReady();
    if (next != nullptr && next->stack == nullptr) {
      next->stack = own;
      Become(next);
    } else {
      g.idle.push_back(own);
      Resume(next);
    }
  }
}

void DescribeStuckBlock() {
  struct Line {
    int count;
    int first;
  };
  std::map<std::string, Line> where;
  for (const Thread& t : g.threads) {
    std::string key =
        t.state == State::kDone
            ? "ended"
            : std::string("wait at ") +
                  (t.state == State::kBarrier ? "__syncthreads" : t.op) + " " +
                  t.file + ":" + std::to_string(t.line);
    auto [it, fresh] = where.try_emplace(key, Line{0, t.id});
    ++it->second.count;
  }
  std::string text;
  for (auto& [k, l] : where)
    text += " | " + std::to_string(l.count) + " threads (first " +
            std::to_string(l.first) + ") " + k;
  Report("divergent barrier: block (%u,%u,%u) is stuck%s", blockIdx.x,
         blockIdx.y, blockIdx.z, text.c_str());
}

void FindRootStack() {
#ifdef __SANITIZE_ADDRESS__
  if (root.lowest) return;
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &root.lowest, &root.bytes);
  pthread_attr_destroy(&attributes);
  the_options.stack_bytes =
      std::max<size_t>(the_options.stack_bytes, 256 << 10);
#endif
}

// Numbers of the blocks, in the order in which they run.
std::vector<uint64_t> BlockOrder(uint64_t blocks) {
  std::vector<uint64_t> order(blocks);
  for (uint64_t b = 0; b < blocks; ++b) {
    order[b] = the_options.order == Order::kDescending ? blocks - 1 - b : b;
  }
  if (the_options.order == Order::kShuffled) {
    for (uint64_t b = blocks; b > 1; --b)
      std::swap(order[b - 1], order[Below(b)]);
  }
  return order;
}

// Of the block's threads, numbers and indices.
void PrepareThreads(dim3 block) {
  const int count = block.x * block.y * block.z;
  g.threads.resize(count);
  for (int i = 0; i < count; ++i) {
    g.threads[i].id = i;
    g.threads[i].index =
        make_uint3(i % block.x, i / block.x % block.y, i / block.x / block.y);
  }
  g.warps.resize((count + 31) / 32);
}

// blockIdx is set.
void RunBlock() {
  for (Warp& w : g.warps) {
    w.pending.clear();
    w.exited = 0;
  }
  for (Thread& t : g.threads) {
    t.stack = nullptr;
    t.warp_epoch = 0;
    t.copies.clear();
    t.group_ends.clear();
  }
  g.at_barrier = g.exited = 0;
  g.ready.clear();
  for (Shared& s : g.shared) std::memset(s.data, the_options.poison, s.bytes);
  if (g.dynamic) std::memset(g.dynamic, the_options.poison, g.dynamic_bytes);
  BeginBlock();
  ReleaseBlock();
  Next();
  if (!g.failed && g.exited != g.num_threads()) {
    DescribeStuckBlock();
    g.failed = true;
  }
}

void FreeSharedMemory() {
  for (Shared& s : g.shared) {
    RemoveRegion(s.data);
    std::free(s.data);
  }
  g.shared.clear();
  if (!g.dynamic) return;
  RemoveRegion(g.dynamic);
  std::free(g.dynamic);
  g.dynamic = nullptr;
}

}  // namespace

Options& options() { return the_options; }
std::string TakeReports() { return std::exchange(reports, {}); }
unsigned LaneId() { return current->id % 32; }
void* DynamicShared() { return g.dynamic; }
int CurrentThread() { return current == nullptr ? -1 : current->id; }
unsigned CurrentWarpEpoch() { return current->warp_epoch; }
bool IsThreadLocal(const void* p) {
  auto in = [p](void* begin, size_t bytes) {
    return p >= begin && p < static_cast<char*>(begin) + bytes;
  };
  return g.in_collective || in(running->lowest, running->bytes) ||
         in(g.argument, g.argument_bytes);
}
// Of exactly this size, so that ASan sees the end; aligned_alloc would want a
// multiple of the alignment.
void* Allocate(size_t alignment, size_t bytes) {
  void* p = nullptr;
  return posix_memalign(&p, alignment, bytes ? bytes : 1) ? nullptr : p;
}

void Report(const char* format, ...) {
  char text[2048];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  reports += text;
  reports += '\n';
  SetLastError(cudaErrorLaunchFailure);
}

void Trap(const char* what) {
  Report("%s in thread %d", what, current->id);
  g.failed = true;
  Resume(nullptr);
  std::abort();
}

void SetDynamicLimit(const void* kernel, size_t bytes) {
  dynamic_limits[kernel] = bytes;
}

void* SharedVariable(void* key, const char* name, size_t bytes) {
  for (Shared& s : g.shared)
    if (s.key == key) return s.data;
  // An allocation each: ASan sees every bound.
  char* data = static_cast<char*>(Allocate(128, bytes));
  std::memset(data, the_options.poison, bytes);
  AddRegion(data, bytes, name, true);
  g.shared.push_back({key, name, data, bytes});
  size_t total = g.dynamic_bytes;
  for (Shared& s : g.shared) total += s.bytes;
  if (total > g.limit)
    Report(
        "%zu bytes of shared memory, limit %zu "
        "(cudaFuncAttributeMaxDynamicSharedMemorySize?)",
        total, g.limit);
  return data;
}

void SyncThreads(const char* file, int line) {
  current->file = file;
  current->line = line;
  current->state = State::kBarrier;
  if (++g.at_barrier < g.num_threads()) return Next();
  g.at_barrier = 0;
  for (const Thread& t : g.threads) {
    if (t.line != line || t.file != file) {
      Report("divergent barrier: thread %d waits at %s:%d, thread %d at %s:%d",
             t.id, t.file, t.line, current->id, file, line);
      break;
    }
  }
  NextEpoch();
  ReleaseBlock();
  Next();
}

void WarpCollective(unsigned mask, const char* op, void* arg, WarpFn fn,
                    const char* file, int line) {
  const int warp = current->id / 32, lane = current->id % 32;
  Warp& w = g.warps[warp];
  current->file = file;
  current->line = line;
  current->op = op;
  if (!(mask >> lane & 1))
    Report("%s %s:%d: lane %d is not in its own mask %#x", op, file, line, lane,
           mask);
  const int in_warp = std::min(32, g.num_threads() - warp * 32);
  // Of a partial last warp, lanes that never existed count as exited.
  if (in_warp < 32) mask &= (1u << in_warp) - 1;
  size_t i = 0;
  while (i < w.pending.size() && !(w.pending[i].mask & mask)) ++i;
  if (i == w.pending.size()) w.pending.push_back({mask, 0, op, fn, {}});
  Collective& c = w.pending[i];
  if (c.mask != mask || !SameOperation(c.op, op)) {
    Report(
        "warp divergence: lane %d at %s mask %#x %s:%d while others wait at %s "
        "mask %#x",
        lane, op, mask, file, line, c.op, c.mask);
    g.failed = true;
    return Resume(nullptr);
  }
  c.arrived |= 1u << lane;
  c.args[lane] = arg;
  current->state = State::kWarp;
  if (((c.arrived | w.exited) & c.mask) == c.mask) Complete(w, i, warp);
  Next();
}

void CpAsync(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes ||
      reinterpret_cast<uintptr_t>(global) % bytes)
    Report("cp.async: address not %d-byte aligned", bytes);
  current->copies.push_back({shared, global, bytes});
}
void CpAsyncCommit() { current->group_ends.push_back(current->copies.size()); }
void CpAsyncWait(int newest_left) {
  auto& ends = current->group_ends;
  if (static_cast<int>(ends.size()) <= newest_left) return;
  const auto last = ends.end() - newest_left;  // of the groups waited for
  const size_t done = last[-1];
  auto& copies = current->copies;
  for (size_t i = 0; i < done; ++i) {
    const Copy& c = copies[i];
    Record(c.from, c.bytes, kRead, __builtin_return_address(0));
    Record(c.to, c.bytes, kWrite, __builtin_return_address(0));
    std::memcpy(c.to, c.from, c.bytes);
  }
  copies.erase(copies.begin(), copies.begin() + done);
  ends.erase(ends.begin(), last);
  for (size_t& end : ends) end -= done;
}

size_t DynamicLimit(const void* kernel) {
  auto limit = dynamic_limits.find(kernel);
  return limit == dynamic_limits.end()
             ? 48 << 10
             : std::max<size_t>(48 << 10, limit->second);
}

bool ValidLaunch(const void* kernel, dim3 grid, dim3 block, size_t smem) {
  // CUDA programming guide, technical specifications per compute capability.
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads < 1 || threads > 1024 || block.z > 64 || grid.x < 1 ||
      grid.x > 0x7fffffff || grid.y < 1 || grid.y > 65535 || grid.z < 1 ||
      grid.z > 65535) {
    SetLastError(cudaErrorInvalidConfiguration);
    return false;
  }
  if (smem > DynamicLimit(kernel)) {
    SetLastError(cudaErrorInvalidValue);
    return false;
  }
  return true;
}

void RunGrid(const void* kernel, dim3 grid, dim3 block, size_t smem,
             void (*body)(void*), void* argument, size_t argument_bytes) {
  FindRootStack();
  random_state = the_options.seed * 0x9E3779B97F4A7C15ull | 1;
  g.limit = DynamicLimit(kernel);
  g.body = body;
  g.argument = argument;
  g.argument_bytes = argument_bytes;
  g.failed = false;
  g.dynamic_bytes = smem;
  PrepareThreads(block);
  PrepareStacks();
  if (smem) {
    g.dynamic = static_cast<char*>(Allocate(128, smem));
    AddRegion(g.dynamic, smem, "dynamic shared memory", true);
  }
  blockDim = block;
  gridDim = grid;
  DeviceMemoryAccessible(true);
  BeginGrid();
  for (const uint64_t b : BlockOrder(uint64_t{grid.x} * grid.y * grid.z)) {
    blockIdx = make_uint3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    RunBlock();
    if (g.failed) break;
  }
  DeviceMemoryAccessible(false);
  FreeSharedMemory();
}

}  // namespace emu
