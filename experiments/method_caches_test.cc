// The caches of a device that the CPU checks. The device is the CPU's own
// model, whose logits can be made to differ.
#include "experiments/method_caches.h"

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "attention/test_policies.h"
#include "kvmix/base/status_matchers.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::kvmix::testing::KeepAll;
using ::kvmix::testing::KeepRecent;
using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// What happens to a row of logits, given the token's place in its chunk.
using Change = std::function<void(int64_t token, std::vector<float>& row)>;

class FakeSequences final : public DeviceSequences {
 public:
  explicit FakeSequences(std::unique_ptr<KvCache> cache)
      : cache(std::move(cache)) {}
  int64_t num_tokens(int) const override { return cache->num_tokens(0); }
  MemoryLedger ledger() const override {
    MemoryLedger ledger;
    ledger.bookkeeping = 1234;
    return ledger;
  }
  std::string AttentionKernels() const override { return "fake"; }
  std::string WhyOnHost() const override { return ""; }
  void Reset(int) override {}
  const std::unique_ptr<KvCache> cache;
};

class FakeDevice final : public DeviceModel {
 public:
  explicit FakeDevice(Transformer& model) : model_(model) {}
  Change change = [](int64_t, std::vector<float>&) {};
  absl::Status error;                              // of NewSequences
  std::shared_ptr<const EvictionPolicy> eviction;  // of the newest sequences

  const ModelConfig& config() const override { return model_.config(); }
  int64_t weight_bytes() const override { return 0; }
  absl::StatusOr<DeviceMemoryUse> MemoryUse() const override {
    return DeviceMemoryUse();
  }
  absl::StatusOr<std::unique_ptr<DeviceSequences>> NewSequences(
      const CachePlan& plan, std::shared_ptr<const RecencyPolicy> recency,
      const SequencesOptions& options) override {
    KVMIX_RETURN_IF_ERROR(error);
    eviction = options.eviction;
    KVMIX_ASSIGN_OR_RETURN(
        std::unique_ptr<KvCache> cache,
        KvCache::Create(model_.cache_shape(), plan, std::move(recency),
                        std::make_shared<KeepAll>()));
    return std::make_unique<FakeSequences>(std::move(cache));
  }
  absl::Status Forward(DeviceSequences& sequences,
                       absl::Span<const DeviceChunk> batch,
                       const LogitsConsumer& consume) override {
    KvCache* cache = static_cast<FakeSequences&>(sequences).cache.get();
    const int64_t vocab = config().vocab_size;
    return model_.Forward(
        {Chunk{batch[0].tokens, cache, batch[0].logits}},
        [&](int chunk, int64_t first, int64_t rows, const float* x) {
          std::vector<float> changed;
          for (int64_t r = 0; r < rows; ++r) {
            std::vector<float> row(x + r * vocab, x + (r + 1) * vocab);
            change(first + r, row);
            changed.insert(changed.end(), row.begin(), row.end());
          }
          return consume(chunk, first, rows, changed.data());
        });
  }
  absl::StatusOr<double> TraceLayers(
      absl::Span<const int32_t>, const TraceOptions&,
      const std::function<absl::Status(const LayerTrace&)>&) override {
    return absl::UnimplementedError("no traces");
  }

 private:
  Transformer& model_;
};

// Drops tokens, in name.
class Evicting final : public EvictionPolicy {
 public:
  bool WouldDrop(const EvictionState&) const override { return true; }
  std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const override {
    return std::vector<TokenList>(state.heads.size());
  }
};

class MethodCachesTest : public ::testing::Test {
 protected:
  MethodCachesTest()
      : config_(testing::SmallConfig()),
        cpu_(testing::Load(config_, testing::RandomWeights(config_), 1)),
        device_(*cpu_),
        tokens_(testing::RandomTokens(config_, 12)) {}

  RunnableMethod Method(const std::string& name) const {
    RunnableMethod method;
    method.name = name;
    method.recency =
        std::make_shared<KeepRecent>(testing::KeepRecentOptions{.ratio = 1});
    method.eviction = std::make_shared<KeepAll>();
    for (int i = 0; i < config_.num_layers; ++i) {
      LayerPlan& layer = *method.plan.add_layer();
      layer.mutable_key()->set_bits(16);
      layer.mutable_value()->set_bits(16);
    }
    return method;
  }
  absl::StatusOr<std::unique_ptr<MethodCaches>> Make(
      const std::vector<RunnableMethod>& methods) {
    return MakeMethodCaches(
        {.cpu = cpu_.get(), .device = &device_, .check_against_cpu = true},
        methods, {.max_tokens = 12, .max_chunk_tokens = 12});
  }
  // Passes tokens [0, 8) and [8, 12) of two methods; counts the rows shown.
  absl::Status Run(WantLogits logits = WantLogits::kAll) {
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<MethodCaches> caches,
                           Make({Method("first"), Method("second")}));
    shown_ = 0;
    const auto consume = [&](int, int64_t, int64_t rows, const float*) {
      shown_ += rows;
      return absl::OkStatus();
    };
    const auto all = absl::MakeConstSpan(tokens_);
    KVMIX_RETURN_IF_ERROR(caches->Forward(all.first(8), logits, consume));
    return caches->Forward(all.subspan(8), logits, consume);
  }

  const ModelConfig config_;
  const std::unique_ptr<Transformer> cpu_;
  FakeDevice device_;
  const std::vector<int32_t> tokens_;
  int64_t shown_ = 0;
};

TEST_F(MethodCachesTest, LogitsThatAgreeAreShown) {
  EXPECT_OK(Run());
  EXPECT_EQ(shown_, 2 * 12);
  EXPECT_OK(Run(WantLogits::kLast));
  EXPECT_EQ(shown_, 2 * 2);
  EXPECT_OK(Run(WantLogits::kNone));
  EXPECT_EQ(shown_, 0);
}

// A logit that is d too large moves p (1 - p) d^2 / 2 nats of divergence, d
// small; these models' p are about 1 / vocab.
TEST_F(MethodCachesTest, TheMeanDivergenceOfAChunkDecides) {
  const auto add = [&](float d, int64_t from) {
    device_.change = [=](int64_t token, std::vector<float>& row) {
      if (token >= from) row[7] += d;
    };
  };
  add(0.3f, 0);  // about 0.0006
  EXPECT_OK(Run());
  add(3, 0);
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kDataLoss,
                              AllOf(HasSubstr("method first, tokens 0 to 8"),
                                    HasSubstr("at most 0.01"))));
  // The first chunk's last row: one of eight, or the only one that is shown.
  add(1.5f, 7);
  EXPECT_OK(Run());
  EXPECT_THAT(Run(WantLogits::kLast),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("0 to 8")));
}

TEST_F(MethodCachesTest, DisagreementOfALaterChunkAndMethodIsNamed) {
  int passes = 0;
  device_.change = [&](int64_t token, std::vector<float>& row) {
    if (token == 0) ++passes;
    if (passes == 4) row[7] += 5;  // second method, second chunk
  };
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kDataLoss,
                              HasSubstr("method second, tokens 8 to 12")));
}

TEST_F(MethodCachesTest, NanDisagrees) {
  device_.change = [](int64_t, std::vector<float>& row) { row[3] = NAN; };
  EXPECT_THAT(Run(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("of nan nats")));
}

TEST_F(MethodCachesTest, TheLedgerIsTheDevices) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<MethodCaches> caches,
                       Make({Method("only")}));
  EXPECT_EQ(caches->ledger(0).total(), 1234);
}

TEST_F(MethodCachesTest, ADeviceEvictsAsTheMethodSays) {
  RunnableMethod method = Method("dropping");
  method.eviction = std::make_shared<Evicting>();
  EXPECT_OK(Make({method}));
  EXPECT_EQ(device_.eviction, method.eviction);
}

TEST_F(MethodCachesTest, ErrorsOfADeviceNameTheMethod) {
  device_.error = absl::ResourceExhaustedError("no room");
  EXPECT_THAT(Make({Method("large")}).status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("method large: no room")));
}

TEST_F(MethodCachesTest, WhatIsOnTheHostIsTold) {
  ::testing::internal::CaptureStderr();
  TellIfOnHost("on the device", "");
  TellIfOnHost("aging", "no kernels for formats by age");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "method aging: its cache lies in host memory, and the CPU attends "
            "to it: no kernels for formats by age\n");
}

}  // namespace
}  // namespace kvmix
