// Tokens that leave the device KV cache, against the CPU's: the same tokens
// stay, in the same bits, and attention over them is the reference's.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/cuda_cache_testing.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

using namespace testing;  // NOLINT
using ::testing::HasSubstr;

// Keeps `tokens` tokens; drops them `step` at a time. more: fields of the
// options besides the budget.
std::string Scored(const std::string& name, const std::string& options,
                   int tokens, int step, const std::string& more = "") {
  return absl::StrCat("name: '", name,
                      "' options { [type.googleapis.com/kvmix.", options,
                      "] { budget { tokens: ", tokens,
                      " recent_tokens: 8 step: ", step, " } ", more, " } }");
}
std::string ByScore(const std::string& name, int tokens, int step) {
  return Scored(name, "ScoredEvictionOptions", tokens, step);
}
std::string AtRandom(int tokens, int step) {
  return Scored("random", "RandomEvictionOptions", tokens, step);
}
std::string Around(const std::string& name, const std::string& options,
                   const std::string& inner) {
  return absl::StrCat("name: '", name,
                      "' options { [type.googleapis.com/kvmix.", options,
                      "] { inner { ", inner, " } } }");
}

std::shared_ptr<const EvictionPolicy> Made(const std::string& text) {
  Component component;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &component));
  auto policy = Registry<EvictionPolicy>::Get().Make(component, "eviction");
  EXPECT_OK(policy);
  return *std::move(policy);
}

struct EvictionCase {
  std::string name;
  std::string policy;
  Case cache;
  std::vector<int64_t> chunks;  // tokens
};

// Both caches, fed alike.
class Both {
 public:
  Both(const Case& c, std::shared_ptr<const EvictionPolicy> policy)
      : case_(c),
        cpu_(*KvCache::Create(ShapeOf(c), PlanOf(c.key, c.value),
                              std::make_shared<KeepRecent>(c.recency), policy)),
        cuda_(*CudaKvCache::Create(ShapeOf(c), PlanOf(c.key, c.value),
                                   std::make_shared<KeepRecent>(c.recency),
                                   {.num_sequences = 1,
                                    .max_tokens = 1000,
                                    .max_chunk_tokens = 200,
                                    .num_heads = c.kv_heads * c.group,
                                    .eviction = policy})) {}

  void Pass(int64_t n) {
    const int64_t row = int64_t{case_.kv_heads} * case_.head_dim;
    auto keys = Normals(n * row, ++stream_);
    const auto values = Normals(n * row, ++stream_);
    // Keys of different sizes, so that policies tell tokens apart.
    for (size_t i = 0; i < keys.size(); ++i)
      keys[i] *= 0.5f + 1.5f * static_cast<float>(i / row % 7) / 7;
    ASSERT_OK(cpu_->Append(0, n, keys.data(), values.data()));
    AppendCuda(*cuda_, {{0, n}}, keys, values);
    const auto queries = Normals(n * row * case_.group, ++stream_);
    ExpectNearReference(case_, *cpu_, queries,
                        AttendCuda(*cuda_, case_, queries));
    ASSERT_OK(cpu_->Observe(0, queries.data(), case_.kv_heads * case_.group,
                            1 / std::sqrt(static_cast<float>(case_.head_dim))));
    DeviceRows<float> q(queries, row * case_.group);
    ASSERT_OK(cuda_->Observe(0, q.rows(),
                             1 / std::sqrt(static_cast<float>(case_.head_dim)),
                             nullptr));
    ASSERT_OK(cpu_->FinishChunk(0));
    ASSERT_OK(cuda_->FinishChunk(0, nullptr));
    ASSERT_OK(cuda_->EndChunk(nullptr));
    ExpectSameStored(case_, *cpu_, *cuda_, 0);
    EXPECT_OK(cuda_->CheckNumbers(nullptr));
  }
  const KvCache& cpu() const { return *cpu_; }
  CudaKvCache& cuda() { return *cuda_; }

 private:
  const Case case_;
  std::unique_ptr<KvCache> cpu_;
  std::unique_ptr<CudaKvCache> cuda_;
  uint64_t stream_ = 0;
};

class CudaEvictionTest : public ::testing::TestWithParam<EvictionCase> {};

TEST_P(CudaEvictionTest, StoresAndAttendsAsTheCpu) {
  const EvictionCase& c = GetParam();
  Both both(c.cache, Made(c.policy));
  int64_t seen = 0;
  for (const int64_t n : c.chunks) {
    SCOPED_TRACE("after " + std::to_string(seen) + " tokens");
    both.Pass(n);
    seen += n;
    EXPECT_EQ(both.cuda().num_tokens(0), seen);
  }
  int64_t stored = 0;
  for (const KvStream& keys : both.cpu().layer(0).keys)
    stored += keys.num_tokens();
  EXPECT_LT(stored, seen * c.cache.kv_heads) << "nothing left";
}

std::vector<int64_t> Chunks(std::vector<int64_t> first, int single) {
  first.insert(first.end(), single, 1);
  return first;
}

Case K3V4() {
  return {.name = "",
          .kv_heads = 2,
          .group = 3,
          .key = PerChannel(3, 32),
          .value = PerToken(4, 32),
          .recency = {.keep = 5, .sinks = 3}};
}

std::vector<EvictionCase> EvictionCases() {
  const Case half{.name = "", .kv_heads = 2, .group = 3};
  const Case k3v4 = K3V4();
  Case after = k3v4;
  after.recency = {
      .keep = 40, .sinks = 0, .order = FlushOrder::kAfterAttention};
  after.head_dim = 128;
  Case words{.name = "",
             .kv_heads = 1,
             .group = 2,
             .key = ThreeBitWords(),
             .value = PerToken(4, 16),
             .recency = {.ratio = 0.1, .sinks = 2}};
  Case swapped{.name = "",
               .kv_heads = 2,
               .group = 1,
               .head_dim = 48,
               .key = PerToken(5, 24),
               .value = PerChannel(7, 40),
               .recency = {.keep = 9}};
  Case long_groups = after;
  long_groups.key = PerChannel(2, 64);
  long_groups.value = PerToken(2, 64);
  return {
      {"half_sink_window", ByScore("sink_window", 40, 1), half,
       Chunks({70, 33}, 8)},
      {"k3v4_sink_window", ByScore("sink_window", 60, 4), k3v4,
       Chunks({100, 3}, 12)},
      {"k3v4_random", AtRandom(90, 1), k3v4, Chunks({150, 40}, 6)},
      {"k3v4_key_norm_from_the_first_token", ByScore("key_norm", 44, 3), k3v4,
       Chunks({}, 75)},
      {"k3v4_after_attention_key_diff", ByScore("key_diff", 120, 2), after,
       Chunks({50, 90, 20}, 8)},
      {"k3v4_heads_share_a_budget",
       Around("ada", "AdaOptions", ByScore("key_norm", 70, 1)), k3v4,
       Chunks({120, 10}, 5)},
      {"half_pyramid",
       Around("pyramid", "PyramidOptions", ByScore("key_norm", 60, 2)), half,
       Chunks({90}, 8)},
      {"words_random", AtRandom(100, 5), words, Chunks({130, 2}, 11)},
      {"axes_swapped_random", AtRandom(100, 1), swapped, Chunks({170, 5}, 3)},
      {"long_groups_random", AtRandom(150, 10), long_groups,
       Chunks({180, 30}, 21)},
      // No token leaves for long: new memory all the same, when there is need.
      {"half_grows", AtRandom(250, 1), half, Chunks({190, 2}, 70)},
      // By attention.
      {"k3v4_h2o", ByScore("h2o", 60, 1), k3v4, Chunks({80, 7}, 9)},
      {"after_attention_h2o_from_the_first_token", ByScore("h2o", 44, 5), after,
       Chunks({}, 60)},
      {"half_tova", ByScore("tova", 50, 1), half, Chunks({90, 2}, 6)},
      {"k3v4_snapkv", Scored("snapkv", "SnapKvOptions", 70, 1, "window: 6"),
       k3v4, Chunks({100, 3, 9}, 8)},
      {"k3v4_expected_attention",
       Scored("expected_attention", "ExpectedAttentionOptions", 60, 2,
              "window: 16"),
       k3v4, Chunks({5, 90}, 8)},
      {"words_heads_share_a_budget_of_h2o",
       Around("ada", "AdaOptions", ByScore("h2o", 60, 1)), words,
       Chunks({90, 10}, 6)},
  };
}

INSTANTIATE_TEST_SUITE_P(All, CudaEvictionTest,
                         ::testing::ValuesIn(EvictionCases()),
                         [](const auto& info) { return info.param.name; });

// ---- Bytes ----

int64_t FreeBytes() {
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return static_cast<int64_t>(free);
}

// A device hands memory out in pages; the emulator, to the byte.
bool Emulated() {
  cudaDeviceProp device;
  EXPECT_EQ(cudaGetDeviceProperties(&device, 0), cudaSuccess);
  return std::string(device.name) == "CUDA emulator";
}

TEST(CudaEvictionLedgerTest, WhatTokensTookIsFreedHeadByHead) {
  Case c = K3V4();
  const int64_t free_before = FreeBytes();
  // Heads keep different numbers of tokens.
  Both both(c, Made(Around("ada", "AdaOptions", ByScore("h2o", 60, 1))));
  int64_t most = 0;
  for (const int64_t n : Chunks({200, 150, 9}, 8)) {
    both.Pass(n);
    const MemoryLedger want = both.cpu().ledger(), got = both.cuda().ledger();
    for (const auto side : {&MemoryLedger::key, &MemoryLedger::value}) {
      EXPECT_EQ((got.*side).codes, (want.*side).codes);
      EXPECT_EQ((got.*side).scales, (want.*side).scales);
      EXPECT_EQ((got.*side).zeros, (want.*side).zeros);
      EXPECT_EQ((got.*side).sinks, (want.*side).sinks);
      EXPECT_EQ((got.*side).window, (want.*side).window);
      EXPECT_EQ((got.*side).packed_tokens, (want.*side).packed_tokens);
      EXPECT_EQ((got.*side).full_precision_tokens,
                (want.*side).full_precision_tokens);
      EXPECT_EQ((got.*side).unquantized_tokens,
                (want.*side).unquantized_tokens);
      EXPECT_GE((got.*side).slack, 0);
    }
    if (Emulated()) {
      EXPECT_EQ(got.total(), free_before - FreeBytes());
    }
    most = std::max(most, got.key.bytes() + got.value.bytes());
  }
  // 60 tokens a head and room for 64, of 367.
  const auto all = CudaCache(c, 1, 367, 200);
  const MemoryLedger ledger = all->ledger();
  EXPECT_LT(most, (ledger.key.bytes() + ledger.value.bytes()) * 3 / 4);
  both.cuda().Reset(0);
  EXPECT_EQ(both.cuda().ledger().key.bytes(), 0);
}

// ---- Decode steps as graphs ----

// Tokens leave between steps; a captured step stays valid.
TEST(CudaEvictionGraphTest, ReplaysADecodeStep) {
  const Case c = K3V4();
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const auto policy = Made(ByScore("h2o", 60, 3));
  const auto make = [&] {
    return *CudaKvCache::Create(ShapeOf(c), PlanOf(c.key, c.value),
                                std::make_shared<KeepRecent>(c.recency),
                                {.num_sequences = 1,
                                 .max_tokens = 200,
                                 .max_chunk_tokens = 100,
                                 .num_heads = c.kv_heads * c.group,
                                 .eviction = policy});
  };
  const auto launched = make(), replayed = make();
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  DeviceVector<float> keys(100 * row), values(100 * row);
  DeviceVector<float> queries(100 * row * c.group), out(100 * row * c.group);
  const auto step = [&](CudaKvCache& cache) {
    const int64_t width = row * c.group;
    ASSERT_OK(cache.Append(0, {keys.data(), CudaNumber::kFloat, row},
                           {values.data(), CudaNumber::kFloat, row}, stream));
    ASSERT_OK(cache.Attention(0, {queries.data(), CudaNumber::kFloat, width},
                              {out.data(), CudaNumber::kFloat, width},
                              {.scale = 0.125f}, stream));
    ASSERT_OK(cache.Observe(0, {queries.data(), CudaNumber::kFloat, width},
                            0.125f, stream));
    ASSERT_OK(cache.FinishChunk(0, stream));
  };
  CudaGraph graph;
  int captures = 0;
  for (int i = 0; i < 30; ++i) {
    const int64_t n = i == 0 ? 100 : 1;
    const auto upload = [&](DeviceVector<float>& to, uint64_t seed) {
      const auto x = Normals(static_cast<int64_t>(to.size()), seed);
      ASSERT_EQ(
          cudaMemcpy(to.data(), x.data(), 4 * x.size(), cudaMemcpyHostToDevice),
          cudaSuccess);
    };
    upload(keys, 10 + i);
    upload(values, 100 + i);
    upload(queries, 200 + i);
    ASSERT_OK(launched->BeginChunk({{0, n}}, stream));
    step(*launched);
    ASSERT_OK(launched->EndChunk(stream));
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const std::vector<float> want = out.ToHost();
    ASSERT_OK(replayed->BeginChunk({{0, n}}, stream));
    if (n > 1) {
      step(*replayed);
    } else {
      captures += CaptureOrReplay(graph, *replayed, stream, step);
    }
    ASSERT_OK(replayed->EndChunk(stream));
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    ASSERT_EQ(out.ToHost(), want) << "step " << i;
  }
  EXPECT_EQ(captures, 1);
  const auto got = replayed->Read(0, 0, 1, Side::kKey);
  const auto want = launched->Read(0, 0, 1, Side::kKey);
  ASSERT_OK(got);
  ASSERT_OK(want);
  EXPECT_TRUE(got->x == want->x);
  EXPECT_LT(got->x.size(), 64u * c.head_dim);
  cudaStreamDestroy(stream);
}

// ---- Batches ----

// Sequences of unequal lengths, in one chunk: of each the tokens stay that stay
// on the CPU.
TEST(CudaEvictionBatchTest, SequencesOfUnequalLengthsInOneChunk) {
  const Case c = K3V4();
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const auto policy = Made(ByScore("h2o", 50, 2));
  const auto recency = std::make_shared<KeepRecent>(c.recency);
  const auto plan = PlanOf(c.key, c.value);
  const auto cuda = *CudaKvCache::Create(ShapeOf(c), plan, recency,
                                         {.num_sequences = 3,
                                          .max_tokens = 150,
                                          .max_chunk_tokens = 150,
                                          .num_heads = c.kv_heads * c.group,
                                          .eviction = policy});
  std::vector<std::unique_ptr<KvCache>> cpu;
  for (int i = 0; i < 3; ++i)
    cpu.push_back(*KvCache::Create(ShapeOf(c), plan, recency, policy));
  const float scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  uint64_t stream = 1;
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{40, 1, 97}, {1, 1, 1}, {60, 30, 1}, {1, 1, 1}}) {
    std::vector<SequenceChunk> chunk;
    std::vector<float> keys, values, queries;
    for (const int i : {2, 0, 1}) {  // not in the order of their memory
      const int64_t n = lengths[i];
      const auto k = Normals(n * row, stream++), v = Normals(n * row, stream++);
      const auto q = Normals(n * row * c.group, stream++);
      chunk.push_back({i, n});
      keys.insert(keys.end(), k.begin(), k.end());
      values.insert(values.end(), v.begin(), v.end());
      queries.insert(queries.end(), q.begin(), q.end());
      ASSERT_OK(cpu[i]->Append(0, n, k.data(), v.data()));
      ASSERT_OK(cpu[i]->Observe(0, q.data(), c.kv_heads * c.group, scale));
      ASSERT_OK(cpu[i]->FinishChunk(0));
    }
    AppendCuda(*cuda, chunk, keys, values);
    DeviceRows<float> q(queries, row * c.group);
    ASSERT_OK(cuda->Observe(0, q.rows(), scale, nullptr));
    ASSERT_OK(cuda->FinishChunk(0, nullptr));
    ASSERT_OK(cuda->EndChunk(nullptr));
    for (int i = 0; i < 3; ++i) {
      SCOPED_TRACE(i);
      ExpectSameStored(c, *cpu[i], *cuda, i);
    }
  }
}

// ---- Errors ----

// Names a token twice.
class NamesATokenTwice final : public EvictionPolicy {
 public:
  bool WouldDrop(const EvictionState&) const override { return true; }
  std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const override {
    return std::vector<TokenList>(state.heads.size(), {5, 5});
  }
};

TEST(CudaEvictionErrorTest, PoliciesThatItCannotServe) {
  const Case c = K3V4();
  const auto create = [&](std::shared_ptr<const EvictionPolicy> policy) {
    return CudaKvCache::Create(ShapeOf(c), PlanOf(c.key, c.value),
                               std::make_shared<KeepRecent>(c.recency),
                               {.num_sequences = 1,
                                .max_tokens = 20,
                                .max_chunk_tokens = 20,
                                .num_heads = c.kv_heads * c.group,
                                .eviction = std::move(policy)});
  };
  EXPECT_THAT(create(Made("name: 'demote'")).status(),
              StatusIs(absl::StatusCode::kUnimplemented,
                       HasSubstr("demotes tokens to fewer bits")));
  const auto cuda = create(std::make_shared<NamesATokenTwice>());
  ASSERT_OK(cuda);
  const int64_t size = 10 * int64_t{c.kv_heads} * c.head_dim;
  AppendCuda(**cuda, {{0, 10}}, Normals(size, 1), Normals(size, 2));
  EXPECT_THAT((*cuda)->FinishChunk(0, nullptr),
              StatusIs(absl::StatusCode::kInternal,
                       HasSubstr("layer 0, KV head 0: the eviction policy "
                                 "names token 5 behind 5")));
}

}  // namespace
}  // namespace kvmix
