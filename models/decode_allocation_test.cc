// A decode step allocates nothing once the model is warm, but for the cache's
// memory, which grows through its own resource.
//
// This binary's operator new counts while it is told to, in all threads.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory_resource>
#include <new>
#include <vector>

#include "kvmix/base/status_matchers.h"
#include "models/test_model.h"
#include "models/transformer.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void* Allocate(std::size_t size, std::size_t alignment) {
  if (counting) ++allocations;
  void* const p = std::aligned_alloc(
      alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t size) { return Allocate(size, 16); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return Allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace kvmix::testing {
namespace {

// Memory of the cache: not counted.
class MallocResource final : public std::pmr::memory_resource {
  void* do_allocate(size_t bytes, size_t alignment) override {
    alignment = std::max<size_t>(alignment, 16);
    return std::aligned_alloc(alignment,
                              (bytes + alignment - 1) / alignment * alignment);
  }
  void do_deallocate(void* p, size_t, size_t) override { std::free(p); }
  bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }
};

class DecodeAllocationTest : public ::testing::TestWithParam<ComputeType> {};

TEST_P(DecodeAllocationTest, AWarmDecodeStepAllocatesNothing) {
  const ModelConfig config = SmallConfig();
  auto loaded = Transformer::Load(config, RandomWeights(config),
                                  {.num_threads = 2, .compute = GetParam()});
  ASSERT_OK(loaded.status());
  Transformer& model = **loaded;
  MallocResource memory;
  const auto tokens = RandomTokens(config, 200);
  const LogitsConsumer ignore = [](int, int64_t, int64_t, const float*) {
    return absl::OkStatus();
  };
  // Two sequences, from prefill to a step in which both decode.
  std::vector<std::unique_ptr<KvCache>> caches;
  for (int i = 0; i < 2; ++i) {
    caches.push_back(FullPrecisionCache(model, &memory));
    ASSERT_OK(model.Forward({{.tokens = {tokens.data(), 40},
                              .cache = caches[i].get(),
                              .logits = WantLogits::kLast}},
                            ignore));
  }
  const auto decode = [&](int t) {
    const Chunk batch[] = {
        {.tokens = {&tokens[t], 1}, .cache = caches[0].get()},
        {.tokens = {&tokens[t + 50], 1}, .cache = caches[1].get()}};
    return model.Forward(batch, ignore);
  };
  for (int t = 0; t < 4; ++t) ASSERT_OK(decode(t));
  allocations = 0;
  counting = true;
  absl::Status status;
  for (int t = 4; t < 100 && status.ok(); ++t) status = decode(t);
  counting = false;
  EXPECT_OK(status);
  EXPECT_EQ(allocations, 0);
}

INSTANTIATE_TEST_SUITE_P(Compute, DecodeAllocationTest,
                         ::testing::Values(ComputeType::kFloat32,
                                           ComputeType::kBFloat16,
                                           ComputeType::kInt8),
                         [](const auto& info) {
                           return std::string(ComputeTypeName(info.param));
                         });

}  // namespace
}  // namespace kvmix::testing
