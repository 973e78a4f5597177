// A decode step allocates nothing once the model is warm, but for the cache's
// memory, which grows through its own resource.
//
// This binary's operator new counts while it is told to, in all threads.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory_resource>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "attention/attention_cases.h"
#include "attention/test_policies.h"
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

struct Formats {
  std::string name;
  QuantFormat key, value;
};

// 20 tokens stay in the window, others fill blocks as it decodes.
std::unique_ptr<KvCache> MakeCache(const Transformer& model,
                                   const Formats& formats,
                                   std::pmr::memory_resource* memory) {
  CachePlan plan;
  for (int i = 0; i < model.config().num_layers; ++i) {
    LayerPlan& layer = *plan.add_layer();
    *layer.mutable_key() = formats.key;
    *layer.mutable_value() = formats.value;
  }
  auto cache = KvCache::Create(
      model.cache_shape(), plan,
      std::make_shared<KeepRecent>(KeepRecentOptions{.keep = 20}),
      std::make_shared<KeepAll>(), memory);
  EXPECT_OK(cache.status());
  return *std::move(cache);
}

class DecodeAllocationTest
    : public ::testing::TestWithParam<std::tuple<ComputeType, Formats>> {};

TEST_P(DecodeAllocationTest, AWarmDecodeStepAllocatesNothing) {
  const auto& [compute, formats] = GetParam();
  const ModelConfig config = SmallConfig();
  auto loaded = Transformer::Load(config, RandomWeights(config),
                                  {.num_threads = 2, .compute = compute});
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
    caches.push_back(MakeCache(model, formats, &memory));
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
  // Rounds in which every stream fills a block. What a thread keeps for later
  // it allocates when it first needs it, so that early rounds may count some.
  constexpr int kRounds = 4, kSteps = 32;
  int fewest = std::numeric_limits<int>::max();
  for (int round = 0; round < kRounds; ++round) {
    allocations = 0;
    counting = true;
    absl::Status status;
    for (int step = 0; step < kSteps && status.ok(); ++step)
      status = decode(round * kSteps + step);
    counting = false;
    ASSERT_OK(status);
    fewest = std::min<int>(fewest, allocations);
  }
  EXPECT_EQ(fewest, 0);
}

INSTANTIATE_TEST_SUITE_P(
    ComputeAndFormats, DecodeAllocationTest,
    ::testing::Combine(
        ::testing::Values(ComputeType::kFloat32, ComputeType::kBFloat16,
                          ComputeType::kInt8),
        ::testing::Values(Formats{"half", Unquantized(), Unquantized()},
                          Formats{"k2v4", PerChannel(2, 32), PerToken(4, 16)},
                          // Without a kernel of its own: decoded first.
                          Formats{"k5v6", PerChannel(5, 32), PerToken(6, 16)},
                          Formats{"k3w11", ThreeBitWords(), PerToken(2, 16)})),
    [](const auto& info) {
      return std::string(ComputeTypeName(std::get<0>(info.param))) + "_" +
             std::get<1>(info.param).name;
    });

}  // namespace
}  // namespace kvmix::testing
