// Eviction, demotion and age tiers in the cache, and attention over what is
// left.

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/counting_resource.h"
#include "attention/kv_cache.h"
#include "attention/kv_cache_layer.h"
#include "attention/test_policies.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/eviction/ada.pb.h"
#include "kvmix/eviction/demote.pb.h"
#include "kvmix/eviction/eviction_budget.pb.h"
#include "kvmix/recency/age_tiers.pb.h"

namespace kvmix {
namespace {

using testing::CountingResource;
using ::testing::HasSubstr;
using testing::KeepAll;
using testing::KeepRecent;
using testing::KeepRecentOptions;
using testing::StatusIs;

constexpr int kHeads = 2, kGroup = 3, kDim = 64;
constexpr int kQueryHeads = kHeads * kGroup;
constexpr float kScale = 0.125f;

std::vector<float> Normals(int64_t n, uint64_t seed) {
  CounterRandom random(seed, 0);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

// [T, G, D] and [T, H, D] of a text.
struct Text {
  explicit Text(int64_t tokens)
      : keys(Normals(tokens * kHeads * kDim, 1)),
        values(Normals(tokens * kHeads * kDim, 2)),
        queries(Normals(tokens * kQueryHeads * kDim, 3)) {
    // Keys that differ in size, so that tokens differ in attention.
    for (int64_t t = 0; t < tokens; ++t)
      for (int i = 0; i < kHeads * kDim; ++i)
        keys[t * kHeads * kDim + i] *=
            0.5f + 1.5f * static_cast<float>(t % 7) / 7;
  }
  std::vector<float> keys, values, queries;
};

CachePlan Plan(int bits,
               QuantFormat::Axis key_axis = QuantFormat::PER_CHANNEL) {
  CachePlan plan;
  LayerPlan* layer = plan.add_layer();
  for (QuantFormat* format : {layer->mutable_key(), layer->mutable_value()}) {
    format->set_bits(bits);
    if (bits == 16) continue;
    format->set_quantizer("group_affine");
    format->set_group_size(32);
    format->set_axis(QuantFormat::PER_TOKEN);
  }
  if (bits != 16) layer->mutable_key()->set_axis(key_axis);
  return plan;
}

template <typename Options>
std::shared_ptr<const EvictionPolicy> Policy(const std::string& name,
                                             const Options& options) {
  Component component;
  component.set_name(name);
  component.mutable_options()->PackFrom(options);
  auto made =
      Registry<EvictionPolicy>::Get().Make(component, "eviction_policy");
  EXPECT_OK(made);
  return *std::move(made);
}

ScoredEvictionOptions Budget(int64_t tokens) {
  ScoredEvictionOptions options;
  options.mutable_budget()->set_tokens(tokens);
  options.mutable_budget()->set_recent_tokens(8);
  options.mutable_budget()->set_step(1);
  return options;
}

// A cache of one layer and the text that passes through it.
class Passing {
 public:
  Passing(const CachePlan& plan, std::shared_ptr<const EvictionPolicy> eviction,
          std::shared_ptr<const RecencyPolicy> recency =
              std::make_shared<KeepRecent>(KeepRecentOptions{}),
          std::pmr::memory_resource* memory = nullptr)
      : text_(2000), threads_(1) {
    auto cache = KvCache::Create(
        {.num_layers = 1, .num_kv_heads = kHeads, .head_dim = kDim}, plan,
        std::move(recency), std::move(eviction), memory);
    EXPECT_OK(cache);
    cache_ = *std::move(cache);
  }

  // A chunk of `count` tokens; the attention of its queries, [T, H, D].
  std::vector<float> Pass(int64_t count) {
    const int64_t t = cache_->num_tokens(0);
    EXPECT_OK(cache_->Append(0, count, text_.keys.data() + t * kHeads * kDim,
                             text_.values.data() + t * kHeads * kDim));
    std::vector<float> out(count * kQueryHeads * kDim);
    const float* queries = text_.queries.data() + t * kQueryHeads * kDim;
    const AttentionItem item{.cache = cache_.get(),
                             .num_tokens = count,
                             .queries = queries,
                             .out = out.data()};
    Attention(0, {&item, 1}, {.num_heads = kQueryHeads, .scale = kScale},
              threads_);
    EXPECT_OK(cache_->Observe(0, queries, kQueryHeads, kScale));
    EXPECT_OK(cache_->FinishChunk(0));
    return out;
  }

  // Positions in the text of the tokens of a KV head.
  std::vector<int64_t> Positions(int head) const {
    const auto& positions = layer().heads[head].positions;
    return {positions.begin(), positions.end()};
  }
  const KvCache::Layer& layer() const { return cache_->layer(0); }
  KvCache& cache() { return *cache_; }
  const Text& text() const { return text_; }

  // In double, of the query at `position`, over the tokens at `visible`.
  std::vector<double> Reference(int64_t position, int query_head,
                                const std::vector<int64_t>& visible) const {
    const int head = query_head / kGroup;
    std::vector<double> weights = Weights(position, query_head, visible);
    std::vector<double> out(kDim);
    for (size_t i = 0; i < visible.size(); ++i)
      for (int d = 0; d < kDim; ++d)
        out[d] += weights[i] *
                  ToFloat(ToHalf(
                      text_.values[(visible[i] * kHeads + head) * kDim + d]));
    return out;
  }
  std::vector<double> Weights(int64_t position, int query_head,
                              const std::vector<int64_t>& visible) const {
    const int head = query_head / kGroup;
    std::vector<double> weights;
    double sum = 0;
    for (const int64_t t : visible) {
      double score = 0;
      for (int d = 0; d < kDim; ++d)
        score +=
            static_cast<double>(
                text_.queries[(position * kQueryHeads + query_head) * kDim +
                              d]) *
            ToFloat(ToHalf(text_.keys[(t * kHeads + head) * kDim + d]));
      weights.push_back(std::exp(score * kScale));
      sum += weights.back();
    }
    for (double& w : weights) w /= sum;
    return weights;
  }

  // The next token's attention is that over what the streams hold, read back,
  // and its own key and value. Its step must not quantize before it attends.
  void ExpectAttendsWhatIsStored() {
    const int64_t position = cache_->num_tokens(0);
    std::vector<std::vector<double>> expected;
    for (int q = 0; q < kQueryHeads; ++q) {
      const int head = q / kGroup;
      const int64_t n = layer().keys[head].num_tokens();
      std::vector<float> keys(n * kDim), values(n * kDim);
      layer().keys[head].ReadTokens(0, n, keys.data());
      layer().values[head].ReadTokens(0, n, values.data());
      for (int d = 0; d < kDim; ++d) {
        const int64_t at = (position * kHeads + head) * kDim + d;
        keys.push_back(ToFloat(ToHalf(text_.keys[at])));
        values.push_back(ToFloat(ToHalf(text_.values[at])));
      }
      std::vector<double> out(kDim);
      double sum = 0;
      for (int64_t t = 0; t <= n; ++t) {
        double score = 0;
        for (int d = 0; d < kDim; ++d)
          score += static_cast<double>(
                       text_.queries[(position * kQueryHeads + q) * kDim + d]) *
                   keys[t * kDim + d];
        const double weight = std::exp(score * kScale);
        sum += weight;
        for (int d = 0; d < kDim; ++d) out[d] += weight * values[t * kDim + d];
      }
      for (double& v : out) v /= sum;
      expected.push_back(out);
    }
    const std::vector<float> out = Pass(1);
    for (int q = 0; q < kQueryHeads; ++q)
      for (int d = 0; d < kDim; ++d)
        ASSERT_NEAR(out[q * kDim + d], expected[q][d], 1e-4);
  }

  // The next token's attention is that over the tokens that are left, and its
  // own.
  void ExpectDecodesWithOthersMasked(double tolerance) {
    const int64_t position = cache_->num_tokens(0);
    std::vector<std::vector<int64_t>> visible;
    for (int head = 0; head < kHeads; ++head) {
      visible.push_back(Positions(head));
      visible.back().push_back(position);
    }
    const std::vector<float> out = Pass(1);
    for (int q = 0; q < kQueryHeads; ++q) {
      const std::vector<double> expected =
          Reference(position, q, visible[q / kGroup]);
      for (int d = 0; d < kDim; ++d)
        ASSERT_NEAR(out[q * kDim + d], expected[d], tolerance);
    }
  }

 private:
  const Text text_;
  ThreadPool threads_;
  std::unique_ptr<KvCache> cache_;
};

const char* const kScored[] = {
    "sink_window", "h2o",      "snapkv", "tova",
    "key_norm",    "key_diff", "random", "expected_attention"};

std::shared_ptr<const EvictionPolicy> ByName(const std::string& name,
                                             int64_t tokens) {
  // All of these have the budget as field 1.
  Component component;
  component.set_name(name);
  const auto& entry = Registry<EvictionPolicy>::Get().entries().at(name);
  component.mutable_options()->PackFrom(Budget(tokens));
  component.mutable_options()->set_type_url("type.googleapis.com/" +
                                            entry.options->full_name());
  auto made =
      Registry<EvictionPolicy>::Get().Make(component, "eviction_policy");
  EXPECT_OK(made);
  return *std::move(made);
}

TEST(EvictionTest, DecodingAfterwardsIsAttentionWithTheDroppedTokensMasked) {
  for (const char* name : kScored) {
    for (const int bits : {16, 8}) {
      SCOPED_TRACE(name);
      Passing run(Plan(bits), ByName(name, 60));
      run.Pass(100);
      for (int head = 0; head < kHeads; ++head)
        ASSERT_EQ(run.Positions(head).size(), 60u);
      for (int i = 0; i < 8; ++i)
        run.ExpectDecodesWithOthersMasked(bits == 16 ? 1e-4 : 5e-2);
      EXPECT_EQ(run.layer().keys[0].num_tokens(), 60);
      run.Pass(70);  // a longer chunk
      run.ExpectDecodesWithOthersMasked(bits == 16 ? 1e-4 : 5e-2);
    }
  }
}

TEST(EvictionTest, HeadsOfUnequalLengthsAreAttendedEachForItself) {
  AdaOptions options;
  options.set_floor(0);
  Component& inner = *options.mutable_inner();
  inner.set_name("h2o");
  inner.mutable_options()->PackFrom(Budget(60));
  Passing run(Plan(16), Policy("ada", options));
  run.Pass(150);
  const int64_t first = run.layer().keys[0].num_tokens();
  const int64_t second = run.layer().keys[1].num_tokens();
  EXPECT_EQ(first + second, 120);
  EXPECT_NE(first, second);
  for (int i = 0; i < 5; ++i) run.ExpectDecodesWithOthersMasked(1e-4);
  run.Pass(33);
  run.ExpectDecodesWithOthersMasked(1e-4);
}

// Eviction of full-precision tokens comes before they are quantized, so what is
// packed is as if the dropped tokens had never been.
TEST(EvictionTest, AChunkIsThinnedBeforeItIsQuantized) {
  Passing run(Plan(4), ByName("key_norm", 64));
  run.Pass(200);
  EXPECT_EQ(run.layer().keys[0].packed_tokens(), 64);
  std::vector<float> rows(64 * kDim);
  run.layer().keys[0].ReadTokens(0, 64, rows.data());
  const std::vector<int64_t> positions = run.Positions(0);
  for (int64_t first : {0, 32}) {
    for (int d = 0; d < kDim; ++d) {
      // A group's extremes are kept to the rounding of its scale.
      float low = 1e9f, high = -1e9f, low_hat = 1e9f, high_hat = -1e9f;
      for (int64_t t = first; t < first + 32; ++t) {
        const float k = run.text().keys[positions[t] * kHeads * kDim + d];
        low = std::min(low, k), high = std::max(high, k);
        low_hat = std::min(low_hat, rows[t * kDim + d]);
        high_hat = std::max(high_hat, rows[t * kDim + d]);
      }
      EXPECT_NEAR(low_hat, low, 5e-3);
      EXPECT_NEAR(high_hat, high, 2e-2);
    }
  }
}

TEST(EvictionTest, MemoryIsReleasedAndLedgerEqualsWhatWasAllocated) {
  DemoteOptions demote;
  demote.mutable_inner()->set_name("key_diff");
  demote.mutable_inner()->mutable_options()->PackFrom(Budget(64));

  Component age;
  age.set_name("age_tiers");
  auto aging = Registry<RecencyPolicy>::Get().Make(age, "recency_policy");
  ASSERT_OK(aging);
  const std::shared_ptr<const RecencyPolicy> recencies[] = {
      std::make_shared<KeepRecent>(KeepRecentOptions{.keep = 20, .sinks = 3}),
      *std::move(aging)};
  for (const int bits : {16, 2}) {
    for (const auto& recency : recencies) {
      for (const auto& policy :
           {ByName("h2o", 64), ByName("expected_attention", 64),
            Policy("demote", demote)}) {
        CountingResource memory;
        {
          Passing run(Plan(bits), policy, recency, &memory);
          Passing all(Plan(bits), std::make_shared<KeepAll>(), recency);
          CounterRandom random(1, 1);
          ASSERT_EQ(run.cache().ledger().total(), memory.allocated);
          while (run.cache().num_tokens(0) < 600) {
            const int64_t n = random.Below(2) ? 1 : 1 + random.Below(150);
            run.Pass(n);
            all.Pass(n);
            ASSERT_EQ(run.cache().ledger().total(), memory.allocated);
          }
          const auto bytes = [](Passing& r) {
            const MemoryLedger ledger = r.cache().ledger();
            return ledger.key.bytes() + ledger.value.bytes();
          };
          const bool drops =
              policy->DemotionFormat(Side::kKey, kDim)->bits() == 0;
          if (drops) {
            EXPECT_LT(bytes(run), bytes(all) / (bits == 16 ? 5 : 2));
          } else if (bits == 16) {
            EXPECT_LT(bytes(run), bytes(all) / 2);
          }
        }
        ASSERT_EQ(memory.allocated, 0);
      }
    }
  }
}

// Runs of several formats, demoted tokens in front, in one stream.
TEST(EvictionTest, AttentionReadsEveryRunInItsFormat) {
  DemoteOptions demote;
  demote.mutable_inner()->set_name("h2o");
  demote.mutable_inner()->mutable_options()->PackFrom(Budget(200));
  Component age;
  age.set_name("age_tiers");
  for (const int bits : {16, 3}) {
    auto aging = Registry<RecencyPolicy>::Get().Make(age, "recency_policy");
    ASSERT_OK(aging);
    Passing run(Plan(bits), Policy("demote", demote), *std::move(aging));
    for (const int64_t n : {300, 1, 130, 64, 1, 200}) run.Pass(n);
    const KvStream& keys = run.layer().keys[0];
    EXPECT_EQ(keys.num_tokens(), 696);
    EXPECT_GE(keys.demoted_tokens(), 400);
    EXPECT_EQ(keys.num_age_runs(), bits == 16 ? 0 : 3);
    for (int i = 0; i < 40; ++i) run.ExpectAttendsWhatIsStored();
  }
}

// The oldest tokens, whole groups of them, are demoted: what is stored is what
// a plan of these bits stores of them.
TEST(EvictionTest, DemotionOfWholeGroupsIsDirectQuantization) {
  DemoteOptions demote;  // to 2 bits
  ScoredEvictionOptions budget = Budget(64);
  budget.mutable_budget()->set_first_tokens(0);
  demote.mutable_inner()->set_name("sink_window");
  demote.mutable_inner()->mutable_options()->PackFrom(budget);
  Passing direct(Plan(2), std::make_shared<KeepAll>(),
                 std::make_shared<KeepRecent>(KeepRecentOptions{.keep = 64}));
  direct.Pass(160);
  for (const int bits : {16, 4}) {
    Passing demoted(Plan(bits), Policy("demote", demote));
    demoted.Pass(160);
    for (int head = 0; head < kHeads; ++head) {
      for (const auto side : {&KvCache::Layer::keys, &KvCache::Layer::values}) {
        const KvStream& stream = (demoted.layer().*side)[head];
        const KvStream& expected = (direct.layer().*side)[head];
        ASSERT_EQ(stream.demoted_tokens(), 96);
        ASSERT_EQ(expected.packed_tokens(), 96);
        std::vector<float> a(96 * kDim), b(96 * kDim);
        stream.ReadTokens(0, 96, a.data());
        expected.ReadTokens(0, 96, b.data());
        EXPECT_EQ(a, b);
      }
    }
  }
}

// Records what it is shown; drops tokens 3 and 5 of the second head once.
class Probe final : public EvictionPolicy {
 public:
  EvictionSignals signals() const override {
    return {.keys = true, .values = true, .received = true, .query_window = 4};
  }
  bool WouldDrop(const EvictionState&) const override { return true; }
  std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const override {
    const EvictionHead& head = state.heads[1];
    const int64_t n = head.num_tokens;
    received.assign(head.received, head.received + n);
    scores.assign(head.scores, head.scores + head.score_rows * n);
    keys.assign(head.keys, head.keys + n * state.head_dim);
    values.assign(head.values, head.values + n * state.head_dim);
    std::vector<TokenList> dropped(state.heads.size());
    if (state.tokens_seen == 20) dropped[1] = {3, 5};
    return dropped;
  }
  mutable std::vector<float> received, scores, keys, values;
};

TEST(EvictionTest, SignalsAreThoseOfTheRunningModel) {
  const auto probe = std::make_shared<Probe>();
  Passing run(Plan(16), probe);
  run.Pass(20);  // then tokens 3 and 5 leave head 1
  run.Pass(1);
  run.Pass(9);
  std::vector<int64_t> left = run.Positions(1);
  ASSERT_EQ(left.size(), 28u);
  EXPECT_EQ(std::count(left.begin(), left.end(), 5), 0);
  std::vector<double> received(30);
  for (int64_t q = 0; q < 30; ++q) {
    std::vector<int64_t> visible;
    for (int64_t t = 0; t <= q; ++t)
      if (q < 20 || (t != 3 && t != 5)) visible.push_back(t);
    for (int j = 0; j < kGroup; ++j) {
      const auto weights = run.Weights(q, kGroup + j, visible);
      for (size_t i = 0; i < visible.size(); ++i)
        received[visible[i]] += weights[i] / kGroup;
    }
  }
  ASSERT_EQ(probe->scores.size(), 4u * kGroup * 28u);
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_NEAR(probe->received[i], received[left[i]], 1e-4);
    for (int d = 0; d < kDim; ++d) {
      const int64_t at = (left[i] * kHeads + 1) * kDim + d;
      EXPECT_NEAR(probe->keys[i * kDim + d], run.text().keys[at], 2e-3);
      EXPECT_NEAR(probe->values[i * kDim + d], run.text().values[at], 2e-3);
    }
    for (int r = 0; r < 4 * kGroup; ++r) {
      const int64_t position = 26 + r / kGroup;
      const float score = probe->scores[r * 28 + i];
      if (left[i] > position) {
        EXPECT_EQ(score, -INFINITY);
        continue;
      }
      double expected = 0;
      for (int d = 0; d < kDim; ++d)
        expected +=
            static_cast<double>(
                run.text()
                    .queries[(position * kQueryHeads + kGroup + r % kGroup) *
                                 kDim +
                             d]) *
            ToFloat(ToHalf(run.text().keys[(left[i] * kHeads + 1) * kDim + d]));
      EXPECT_NEAR(score, expected * kScale, 1e-3);
    }
  }
}

TEST(EvictionTest, AnAnswerThatBreaksTheContractIsAnError) {
  class Broken final : public EvictionPolicy {
   public:
    bool WouldDrop(const EvictionState&) const override { return true; }
    std::vector<TokenList> TokensToDrop(
        const EvictionState& state) const override {
      std::vector<TokenList> dropped(state.heads.size());
      dropped[1] = {7, 7};
      return dropped;
    }
  };
  auto cache = KvCache::Create(
      {.num_layers = 1, .num_kv_heads = kHeads, .head_dim = kDim}, Plan(16),
      std::make_shared<KeepRecent>(KeepRecentOptions{}),
      std::make_shared<Broken>());
  ASSERT_OK(cache);
  const Text text(10);
  ASSERT_OK((*cache)->Append(0, 10, text.keys.data(), text.values.data()));
  EXPECT_THAT((*cache)->FinishChunk(0),
              StatusIs(absl::StatusCode::kInternal,
                       HasSubstr("layer 0, KV head 1: the eviction policy "
                                 "names token 7 behind 7")));
}

// Window, then 6 bits for 64 tokens, then the plan's 2 bits.
TEST(AgeTiersTest, TokensPassThroughTheFormatsInOrder) {
  AgeTiersOptions options;
  options.set_tokens(40);
  options.set_sink_tokens(4);
  AgeTiersOptions::Tier& tier = *options.add_tier();
  tier.set_bits(6);
  tier.set_tokens(64);
  Component component;
  component.set_name("age_tiers");
  component.mutable_options()->PackFrom(options);
  auto recency =
      Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
  ASSERT_OK(recency);
  Passing run(Plan(2), std::make_shared<KeepAll>(), *std::move(recency));
  for (const int64_t n : {100, 1, 1, 57, 150, 1}) run.Pass(n);
  for (const auto* streams : {&run.layer().keys, &run.layer().values}) {
    for (const KvStream& stream : *streams) {
      ASSERT_EQ(stream.num_tokens(), 310);
      ASSERT_EQ(stream.num_age_runs(), 2);
      EXPECT_EQ(stream.num_sinks(), 4);
      EXPECT_GE(stream.window_tokens(), 40);
      EXPECT_LT(stream.window_tokens(), 40 + 32);
      EXPECT_GE(stream.age_tokens(1), 64);
      EXPECT_LT(stream.age_tokens(1), 64 + 32);
      EXPECT_EQ(stream.age_tokens(0) % 32, 0);
      EXPECT_GT(stream.age_tokens(0), 100);
      std::vector<float> rows(310 * kDim);
      stream.ReadTokens(0, 310, rows.data());
      const int head = static_cast<int>(&stream - streams->data());
      const std::vector<float>& exact =
          streams == &run.layer().keys ? run.text().keys : run.text().values;
      double error[4] = {};  // of sinks, 2 bits, 6 bits, the window
      for (int64_t t = 0; t < 310; ++t) {
        const int part = t < 4                              ? 0
                         : t < 4 + stream.age_tokens(0)     ? 1
                         : t < 310 - stream.window_tokens() ? 2
                                                            : 3;
        for (int d = 0; d < kDim; ++d)
          error[part] = std::max<double>(
              error[part], std::fabs(rows[t * kDim + d] -
                                     exact[(t * kHeads + head) * kDim + d]));
      }
      EXPECT_LT(error[0], 4e-3);
      EXPECT_GT(error[1], 0.2);
      EXPECT_LT(error[2], 0.1);
      EXPECT_GT(error[2], 4e-3);
      EXPECT_LT(error[3], 4e-3);
    }
  }
}

// No window and a tier of no tokens for keys: those that do not fill a block
// yet lie in 8 bits, token by token; values need no such place.
TEST(AgeTiersTest, KeysWaitInTheTierUntilTheirBlockIsFull) {
  AgeTiersOptions options;
  options.set_tokens(0);
  options.set_sink_tokens(4);
  options.mutable_quantizer()->set_name("turbo");
  AgeTiersOptions::Tier& tier = *options.add_tier();
  tier.set_bits(8);
  tier.set_sides(AgeTiersOptions::KEYS);
  Component component;
  component.set_name("age_tiers");
  component.mutable_options()->PackFrom(options);
  auto recency =
      Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
  ASSERT_OK(recency);
  Passing run(Plan(2), std::make_shared<KeepAll>(), *std::move(recency));
  int64_t tokens = 0;
  for (const int64_t n : {3, 1, 20, 1, 57, 150, 1, 3}) {
    run.Pass(n);
    tokens += n;
    const int64_t packed = tokens < 4 ? 0 : tokens - 4;
    for (const KvStream& stream : run.layer().keys) {
      EXPECT_EQ(stream.window_tokens(), 0);
      EXPECT_EQ(stream.age_tokens(1), packed % 32);
      EXPECT_EQ(stream.age_tokens(0), packed - packed % 32);
    }
    for (const KvStream& stream : run.layer().values) {
      EXPECT_EQ(stream.window_tokens(), 0);
      EXPECT_EQ(stream.num_age_runs(), 1);
      EXPECT_EQ(stream.age_tokens(0), packed);
    }
  }
}

// x [32, D] of one head, packed and read again.
std::vector<float> RoundTrip(const QuantFormat& format, Side side,
                             const std::vector<float>& x) {
  const auto codec = *MakeBlockCodec(format, side, kDim);
  const bool keys = side == Side::kKey;
  const auto at = [&](int t, int d) {
    return keys ? d * 32 + t : t * kDim + d;
  };
  std::vector<float> in(x.size()), out(x.size()), rows(x.size());
  for (int t = 0; t < 32; ++t)
    for (int d = 0; d < kDim; ++d) in[at(t, d)] = x[t * kDim + d];
  std::vector<uint32_t> block(codec->bytes().total() / 4 + 1);
  auto* const bytes = reinterpret_cast<uint8_t*>(block.data());
  codec->Encode(in.data(), keys ? 32 : kDim, 0, 32, bytes);
  codec->Decode(bytes, 0, 32, out.data(), keys ? 32 : kDim);
  for (int t = 0; t < 32; ++t)
    for (int d = 0; d < kDim; ++d) rows[t * kDim + d] = out[at(t, d)];
  return rows;
}

// Default tiers: a window of 64, 8 bits for 128 tokens, 4 for 512, then 2.
TEST(AgeTiersTest, OlderTokensAreQuantizedFromWhatTheTierBeforeHolds) {
  Component component;
  component.set_name("age_tiers");
  auto recency =
      Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
  ASSERT_OK(recency);
  Passing run(Plan(2), std::make_shared<KeepAll>(), *std::move(recency));
  for (const int64_t n : {500, 1, 299}) run.Pass(n);
  for (const Side side : {Side::kKey, Side::kValue}) {
    const bool keys = side == Side::kKey;
    const KvStream& stream = (keys ? run.layer().keys : run.layer().values)[1];
    ASSERT_EQ(stream.num_age_runs(), 3);
    ASSERT_GE(stream.age_tokens(0), 64);
    const std::vector<float>& text = keys ? run.text().keys : run.text().values;
    for (const int64_t first : {0, 32, 128}) {
      std::vector<float> x(32 * kDim), stored(32 * kDim);
      for (int t = 0; t < 32; ++t)
        for (int d = 0; d < kDim; ++d)
          x[t * kDim + d] =
              ToFloat(ToHalf(text[((first + t) * kHeads + 1) * kDim + d]));
      const int oldest = first < stream.age_tokens(0) ? 2 : 4;
      for (int bits : {8, 4, 2}) {
        if (bits < oldest) break;
        const LayerPlan format = Plan(bits).layer(0);
        x = RoundTrip(keys ? format.key() : format.value(), side, x);
      }
      stream.ReadTokens(first, 32, stored.data());
      EXPECT_EQ(stored, x) << SideName(side) << " from token " << first;
    }
  }
}

}  // namespace
}  // namespace kvmix
