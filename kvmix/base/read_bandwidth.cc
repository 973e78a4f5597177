#include "kvmix/base/read_bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvmix/base/read_bandwidth.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The exclusive or of all words, so that every one must be loaded. Prefetches
// run up to `ahead` bytes past the end, which a prefetch may.
uint64_t ReadAllImpl(const uint64_t* words, int64_t count, int64_t ahead) {
  constexpr int64_t kLineWords = 64 / sizeof(uint64_t);
  const hn::CappedTag<uint64_t, kLineWords> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d), other = hn::Zero(d);
  for (int64_t i = 0; i + 2 * kLineWords <= count; i += 2 * kLineWords) {
    if (ahead > 0) {
      hwy::Prefetch(words + i + ahead / sizeof(uint64_t));
      hwy::Prefetch(words + i + kLineWords + ahead / sizeof(uint64_t));
    }
    for (int64_t k = 0; k < kLineWords; k += lanes) {
      sum = hn::Xor(sum, hn::Load(d, words + i + k));
      other = hn::Xor(other, hn::Load(d, words + i + kLineWords + k));
    }
  }
  alignas(64) uint64_t lane[kLineWords];
  hn::Store(hn::Xor(sum, other), d, lane);
  uint64_t all = 0;
  for (int64_t k = 0; k < lanes; ++k) all ^= lane[k];
  return all;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {
namespace {

HWY_EXPORT(ReadAllImpl);

constexpr int64_t kHugePage = 2 << 20;
constexpr int kPasses = 5;
constexpr int64_t kPrefetchDistances[] = {0, 1024, 2048, 4096};

// Anonymous memory, in huge pages if the system has them.
class Mapping {
 public:
  explicit Mapping(int64_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (ok()) madvise(data_, bytes_, MADV_HUGEPAGE);
  }
  ~Mapping() {
    if (ok()) munmap(data_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  bool ok() const { return data_ != MAP_FAILED; }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

 private:
  const int64_t bytes_;
  void* const data_;
};

// From when all threads are there to when the last one is done. A thread that
// waits for the others takes no second part.
double ReadSeconds(const Mapping& mapping, int64_t part_bytes, int64_t ahead,
                   ThreadPool& threads) {
  std::atomic<uint64_t> sink{0};
  std::atomic<int> missing{threads.num_threads()};
  std::atomic<int64_t> start{0};
  threads.ParallelFor(threads.num_threads(), [&](int64_t part, int) {
    if (--missing == 0) start = absl::GetCurrentTimeNanos();
    while (start == 0) std::this_thread::yield();
    const auto* words =
        reinterpret_cast<const uint64_t*>(mapping.data() + part * part_bytes);
    sink ^= HWY_DYNAMIC_DISPATCH(ReadAllImpl)(
        words, part_bytes / static_cast<int64_t>(sizeof(uint64_t)), ahead);
  });
  return 1e-9 * static_cast<double>(absl::GetCurrentTimeNanos() - start);
}

}  // namespace

absl::StatusOr<double> MeasureReadBandwidth(ThreadPool& threads,
                                            int64_t bytes) {
  const int64_t parts = threads.num_threads();
  const int64_t part_bytes =
      (bytes / parts + kHugePage - 1) / kHugePage * kHugePage;
  const Mapping mapping(parts * part_bytes);
  if (!mapping.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no room for ", parts * part_bytes,
                     " bytes to measure the read bandwidth with"));
  }
  // Written by the thread that reads it: there its pages lie.
  threads.ParallelFor(parts, [&](int64_t part, int) {
    std::memset(mapping.data() + part * part_bytes, 1, part_bytes);
  });
  double seconds = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) {
    for (const int64_t ahead : kPrefetchDistances) {
      seconds =
          std::min(seconds, ReadSeconds(mapping, part_bytes, ahead, threads));
    }
  }
  return static_cast<double>(parts * part_bytes) / seconds;
}

}  // namespace kvmix
#endif  // HWY_ONCE
