// The access checker: races, reads of memory never written, wild addresses.
//
// Kernels are compiled with -fsanitize=thread, which makes the compiler call a
// function at every load and store; this file defines those functions, and
// libtsan is not linked. Compile this file itself without -fsanitize.
//
// For every byte of shared and device memory it keeps the last writer and the
// last two readers, each with its block, thread, barrier epoch, warp epoch
// (__syncwarp) and number of fences. Approximations: a __syncwarp of part of a
// warp orders as one of the whole; fences order block against block.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tools/cuda_emulator/emulator.h"
#include "tools/cuda_emulator/internal.h"

// The program's own image, by the linker.
extern "C" char __executable_start, end;

namespace emu {
namespace {

struct Stamp {
  uint32_t epoch = 0;  // 0: no access yet
  uint32_t block = 0;
  uint16_t thread = 0, warp_epoch = 0;
  uint16_t fences = 0;  // of its block so far
  bool atomic = false;
};

struct Cell {
  Stamp write, read, other_read;
  bool written = false;
};

// Cells of a page exist once a kernel touches it: weights that only cuBLAS
// reads cost nothing.
constexpr size_t kPage = 1024;
struct Page {
  std::unique_ptr<Cell[]> cells;
  bool written = false;  // all of it, where there are no cells
};

struct Region {
  char* begin;
  size_t bytes;
  const char* name;
  bool shared;
  std::vector<Page> pages;

  Cell& At(size_t i) {
    Page& page = pages[i / kPage];
    if (!page.cells) {
      page.cells = std::make_unique<Cell[]>(kPage);
      for (size_t j = 0; j < kPage; ++j) page.cells[j].written = page.written;
    }
    return page.cells[i % kPage];
  }
};

std::map<char*, Region> regions;
Region* last_region = nullptr;
uint32_t epoch = 1, block = 1, grid_first_block = 1;
std::vector<uint16_t> fences;    // by block of the running grid
std::set<const void*> reported;  // places in the code, once a grid

Region* Find(const char* p) {
  if (last_region && p >= last_region->begin &&
      p < last_region->begin + last_region->bytes)
    return last_region;
  auto it = regions.upper_bound(const_cast<char*>(p));
  if (it == regions.begin()) return nullptr;
  --it;
  return p < it->second.begin + it->second.bytes ? last_region = &it->second
                                                 : nullptr;
}

// "file:line" of the instruction before pc, by addr2line (binutils).
std::string Where(const void* pc) {
  char exe[512], command[700], line[512] = "?";
  exe[std::max<ssize_t>(0, readlink("/proc/self/exe", exe, sizeof exe - 1))] =
      0;
  std::snprintf(command, sizeof command, "addr2line -s -e '%s' 0x%zx", exe,
                static_cast<const char*>(pc) - &__executable_start - 1);
  if (FILE* f = popen(command, "r")) {
    if (!std::fgets(line, sizeof line, f)) line[0] = 0;
    pclose(f);
  }
  std::string s = line;
  while (!s.empty() && s.back() == '\n') s.pop_back();
  return s;
}

Stamp Now(Access access) {
  return {epoch,
          block,
          static_cast<uint16_t>(CurrentThread()),
          static_cast<uint16_t>(CurrentWarpEpoch()),
          fences.back(),
          access == kAtomic};
}

// Whether the running thread's access comes surely after that of s.
bool Ordered(const Stamp& s, const Stamp& now, const Region& r) {
  if (s.block == now.block) {
    return s.epoch != now.epoch || s.thread == now.thread ||
           (s.thread / 32 == now.thread / 32 && s.warp_epoch != now.warp_epoch);
  }
  if (r.shared || s.block < grid_first_block) return true;
  // Released by a __threadfence of its block, acquired by one of ours.
  return fences[s.block - grid_first_block] > s.fences && now.fences;
}

void CheckByte(const char* p, Region& r, Access access, const void* pc) {
  const size_t at = p - r.begin;
  Cell& c = r.At(at);
  const Stamp now = Now(access);
  const char* what = nullptr;
  const Stamp* with = &c.write;
  const bool both_atomic = c.write.atomic && access == kAtomic;
  if (c.write.epoch && !both_atomic && !Ordered(c.write, now, r)) {
    what = access == kRead ? "read after write" : "write after write";
  }
  if (access != kRead) {
    for (Stamp* s : {&c.read, &c.other_read}) {
      if (s->epoch && !Ordered(*s, now, r)) {
        what = "write after read";
        with = s;
      }
    }
  }
  if (what && reported.insert(pc).second) {
    Report(
        "race: %s in %s[byte %zu], thread %d block %u against thread %d%s, at "
        "%s",
        what, r.name, at, now.thread, blockIdx.x, with->thread,
        with->block == block ? "" : " of another block", Where(pc).c_str());
  }
  const bool initialised = r.shared ? c.write.block == block : c.written;
  if (access != kWrite && !initialised && reported.insert(pc).second) {
    Report(
        "uninitialised: thread %d block %u reads %s[byte %zu] before any "
        "write, at %s",
        now.thread, blockIdx.x, r.name, at, Where(pc).c_str());
  }
  if (access == kRead) {
    if (c.read.thread != now.thread || c.read.block != block)
      c.other_read = c.read;
    c.read = now;
  } else {
    c.write = now;
    c.written = true;
  }
}

void Check(const void* address, size_t bytes, Access access, const void* pc) {
  const int thread = CurrentThread();
  if (thread < 0 || IsThreadLocal(address)) return;
  const char* p = static_cast<const char*>(address);
  Region* r = Find(p);
  if (!r && p >= &__executable_start && p < &end)
    return;  // constants, static storage
  if (!r || p + bytes > r->begin + r->bytes) {
    if (!reported.insert(pc).second) return;
    const std::string where = r ? std::string("past the end of ") + r->name
                                : "outside shared and device memory";
    Report("wild access: thread %d of block %u touches %zu bytes %s at %s",
           thread, blockIdx.x, bytes, where.c_str(), Where(pc).c_str());
    return;
  }
  if (access != kAtomic && reinterpret_cast<uintptr_t>(p) % bytes &&
      reported.insert(pc).second) {
    Report("misaligned: %zu bytes of %s at %s", bytes, r->name,
           Where(pc).c_str());
  }
  for (size_t i = 0; i < bytes; ++i) CheckByte(p + i, *r, access, pc);
}

void CheckRange(void* p, size_t bytes, Access access, const void* pc) {
  for (size_t i = 0; i < bytes; ++i)
    Check(static_cast<char*>(p) + i, 1, access, pc);
}

}  // namespace

void Record(const void* p, size_t bytes, Access access, const void* pc) {
  Check(p, bytes, access, pc);
}
void Fence() { ++fences.back(); }

void AddRegion(void* data, size_t bytes, const char* name, bool shared) {
  char* begin = static_cast<char*>(data);
  regions[begin] = {begin, bytes, name, shared,
                    std::vector<Page>((bytes + kPage - 1) / kPage)};
}

void RemoveRegion(void* data) {
  regions.erase(static_cast<char*>(data));
  last_region = nullptr;
}

void MarkWritten(void* data, size_t bytes) {
  Region* r = Find(static_cast<char*>(data));
  if (!r) return;
  const size_t first = static_cast<char*>(data) - r->begin;
  for (size_t i = first; i < first + bytes;) {
    Page& page = r->pages[i / kPage];
    const bool whole = i % kPage == 0 && (first + bytes - i >= kPage ||
                                          first + bytes == r->bytes);
    if (whole) {
      page.cells.reset();
      page.written = true;
      i += kPage;
    } else {
      Cell& c = r->At(i++);
      c = {};
      c.written = true;
    }
  }
}

void NextEpoch() { ++epoch; }
void BeginBlock() {
  ++block;
  ++epoch;
  fences.push_back(0);
}
void BeginGrid() {
  grid_first_block = block + 1;
  reported.clear();
  fences.clear();
}

}  // namespace emu

#define EMU_HOOK(name, bytes, access)                          \
  extern "C" void name(void* p) {                              \
    emu::Check(p, bytes, access, __builtin_return_address(0)); \
  }
EMU_HOOK(__tsan_read1, 1, emu::kRead)
EMU_HOOK(__tsan_read2, 2, emu::kRead)
EMU_HOOK(__tsan_read4, 4, emu::kRead)
EMU_HOOK(__tsan_read8, 8, emu::kRead)
EMU_HOOK(__tsan_read16, 16, emu::kRead)
EMU_HOOK(__tsan_write1, 1, emu::kWrite)
EMU_HOOK(__tsan_write2, 2, emu::kWrite)
EMU_HOOK(__tsan_write4, 4, emu::kWrite)
EMU_HOOK(__tsan_write8, 8, emu::kWrite)
EMU_HOOK(__tsan_write16, 16, emu::kWrite)
EMU_HOOK(__tsan_volatile_read4, 4, emu::kAtomic)
EMU_HOOK(__tsan_volatile_write4, 4, emu::kAtomic)
#undef EMU_HOOK

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* p, size_t n) {
  emu::CheckRange(p, n, emu::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  emu::CheckRange(p, n, emu::kWrite, __builtin_return_address(0));
}
}
