#include "experiments/bench/bench.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/bench/bench_figure.h"
#include "experiments/bench/bench_growth.h"
#include "experiments/bench/bench_methods.h"
#include "experiments/bench/bench_report.h"
#include "experiments/bench/random_states.h"
#include "experiments/loaded_model.h"
#include "experiments/text_proto.h"
#include "experiments/timed_passes.h"
#include "kvmix/base/status_matchers.h"
#include "models/generate.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const CacheShape kShape = {.num_layers = 30, .num_kv_heads = 3, .head_dim = 64};

ModelSource Embedded() {
  ModelSource source;
  source.set_path("embedded");
  return source;
}

TEST(BenchMethodsTest, UniformNamesAreKivisAxesWithAWindowOfOneGroup) {
  ASSERT_OK_AND_ASSIGN(const RunnableMethod method,
                       MakeBenchMethod("4bit_g64", kShape));
  ASSERT_EQ(method.plan.layer_size(), 30);
  const LayerPlan& layer = method.plan.layer(29);
  EXPECT_EQ(layer.key().bits(), 4);
  EXPECT_EQ(layer.value().bits(), 4);
  EXPECT_EQ(layer.key().axis(), QuantFormat::PER_CHANNEL);
  EXPECT_EQ(layer.value().axis(), QuantFormat::PER_TOKEN);
  EXPECT_EQ(layer.key().group_size(), 64);
  EXPECT_EQ(layer.value().group_size(), 64);
  EXPECT_EQ(method.recency->TokensToQuantize({.side = Side::kKey,
                                              .bits = 4,
                                              .granularity = 64,
                                              .window_tokens = 100}),
            64);
}

TEST(BenchMethodsTest, TokenNamesPackEverythingPerToken) {
  ASSERT_OK_AND_ASSIGN(const RunnableMethod method,
                       MakeBenchMethod("8bit_token_g32", kShape));
  EXPECT_EQ(method.plan.layer(0).key().axis(), QuantFormat::PER_TOKEN);
  EXPECT_EQ(method.plan.layer(0).key().bits(), 8);
  EXPECT_EQ(method.recency->TokensToQuantize({.window_tokens = 7}), 7);
}

// "layers with 3-bit keys, with 4-bit values", all others having 2 bits.
std::string HighLayers(const char* name, QuantFormat::Packing packing) {
  const absl::StatusOr<RunnableMethod> method = MakeBenchMethod(name, kShape);
  if (!method.ok()) return std::string(method.status().message());
  int keys = 0, values = 0;
  for (const LayerPlan& layer : method->plan.layer()) {
    EXPECT_TRUE(layer.key().bits() == 3 || layer.key().bits() == 2);
    EXPECT_TRUE(layer.value().bits() == 4 || layer.value().bits() == 2);
    values += layer.value().bits() == 4;
    if (layer.key().bits() != 3) continue;
    EXPECT_EQ(layer.key().packing(), packing);
    ++keys;
  }
  return absl::StrCat(keys, ", ", values);
}

TEST(BenchMethodsTest, KvmixNamesAreThePapersPlans) {
  EXPECT_EQ(HighLayers("kvmix", QuantFormat::KVMIX_3BIT_11), "6, 6");
  EXPECT_EQ(HighLayers("k2.19v2.38", QuantFormat::KVMIX_3BIT_11), "6, 6");
  EXPECT_EQ(HighLayers("k2.28v2.56", QuantFormat::KVMIX_3BIT_11), "9, 9");
  EXPECT_EQ(HighLayers("kvmix-dense", QuantFormat::DENSE), "6, 6");
  EXPECT_EQ(HighLayers("kvmix-2bit", QuantFormat::DENSE), "0, 0");
}

TEST(BenchMethodsTest, APathIsAPlan) {
  ASSERT_OK_AND_ASSIGN(RunnableMethod method,
                       MakeBenchMethod("3bit_g32", kShape));
  const std::string path = ::testing::TempDir() + "/plan.textproto";
  ASSERT_OK(WriteTextProto(method.plan, path));
  ASSERT_OK_AND_ASSIGN(const RunnableMethod read,
                       MakeBenchMethod(path, kShape));
  EXPECT_EQ(PrintTextProto(read.plan), PrintTextProto(method.plan));
  EXPECT_THAT(MakeBenchMethod("no/plan.textproto", kShape).status(),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("no/plan.textproto does not exist")));
}

TEST(BenchMethodsTest, WhatIsNoNameListsTheNames) {
  for (const char* name : {"", "4bit", "9bit_g32", "0bit_g32", "4bit_g48",
                           "4bit_g32x", "xbit_g32", "fp8"}) {
    EXPECT_THAT(MakeBenchMethod(name, kShape).status(),
                StatusIs(absl::StatusCode::kNotFound,
                         AllOf(HasSubstr("no way to store a cache"),
                               HasSubstr("kvmix-2bit"))))
        << name;
  }
}

TEST(RandomStatesTest, FillsEveryLayerAndPacks) {
  const CacheShape shape = {.num_layers = 3, .num_kv_heads = 2, .head_dim = 32};
  ASSERT_OK_AND_ASSIGN(const RunnableMethod method,
                       MakeBenchMethod("2bit_g32", shape));
  ASSERT_OK_AND_ASSIGN(
      const std::unique_ptr<KvCache> cache,
      KvCache::Create(shape, method.plan, method.recency, method.eviction));
  ASSERT_OK(RandomStates(shape, 1).Append(700, 0, *cache));
  for (int layer = 0; layer < 3; ++layer)
    EXPECT_EQ(cache->num_tokens(layer), 700);
  // All but 700 mod 32 keys of every layer and head.
  EXPECT_EQ(cache->ledger().key.packed_tokens, 3 * 2 * (700 - 28));
}

TEST(TimedPassesTest, AreAGreedyGeneration) {
  ASSERT_OK_AND_ASSIGN(LoadedModel model, LoadModel(Embedded(), 2));
  ASSERT_OK_AND_ASSIGN(const RunnableMethod full,
                       FullPrecision(model.transformer->cache_shape()));
  const std::vector<int32_t> prompt = {5, 40, 41, 42, 7};
  CacheBatch caches(2);
  for (auto& cache : caches) {
    ASSERT_OK_AND_ASSIGN(cache, MakeCache(*model.transformer, full));
  }
  std::vector<int32_t> next;
  ASSERT_OK_AND_ASSIGN(double seconds,
                       TimePrefill(*model.transformer, caches, prompt, next));
  EXPECT_GT(seconds, 0);
  const std::vector<int32_t> first = next;
  ASSERT_OK_AND_ASSIGN(seconds,
                       TimeDecode(*model.transformer, caches, 3, next));
  EXPECT_GT(seconds, 0);
  EXPECT_EQ(caches[1]->num_tokens(0), 8);

  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<KvCache> cache,
                       MakeCache(*model.transformer, full));
  GenerateOptions options;
  options.max_new_tokens = 4;
  options.sampling.temperature = 0;
  ASSERT_OK_AND_ASSIGN(
      const Generation generation,
      Generate(*model.transformer, prompt, *cache, options, nullptr));
  ASSERT_EQ(generation.tokens.size(), 4u);
  EXPECT_THAT(first, ElementsAre(generation.tokens[0], generation.tokens[0]));
  EXPECT_THAT(next, ElementsAre(generation.tokens[3], generation.tokens[3]));
}

TEST(SpreadTest, IsTheMiddleAndTheEnds) {
  const Spread odd = SpreadOf({5, 1, 4});
  EXPECT_EQ(odd.low, 1);
  EXPECT_EQ(odd.median, 4);
  EXPECT_EQ(odd.high, 5);
  EXPECT_EQ(SpreadOf({5, 1, 4, 2}).median, 3);
}

BenchOptions Small() {
  BenchOptions options;
  options.model = Embedded();
  options.prompt_tokens = 8;
  options.decode_tokens = 2;
  options.methods = {"fp16", "kvmix"};
  options.depths = {0, 128};
  options.batches = {1, 3};
  options.threads = {1};
  options.repeat = 2;
  return options;
}

TEST(BenchTest, MeasuresEveryCombination) {
  ASSERT_OK_AND_ASSIGN(const BenchReport report, RunBench(Small()));
  ASSERT_EQ(report.rows.size(), 8u);
  EXPECT_EQ(report.rows[0].method, "fp16");
  EXPECT_EQ(report.rows[1].method, "kvmix");
  EXPECT_EQ(report.rows[2].batch, 3);
  EXPECT_EQ(report.rows[4].depth, 128);
  EXPECT_EQ(report.rows[0].kernels, "half");
  EXPECT_THAT(report.rows[1].kernels, HasSubstr("float"));
  for (const BenchRow& row : report.rows) {
    EXPECT_GT(row.prefill.low, 0);
    EXPECT_LE(row.prefill.low, row.prefill.median);
    EXPECT_LE(row.decode.median, row.decode.high);
  }
}

TEST(BenchTest, CountsTheBytesOfCachesAndOfADecodeStep) {
  ASSERT_OK_AND_ASSIGN(const BenchReport report, RunBench(Small()));
  ASSERT_OK_AND_ASSIGN(const LoadedModel model, LoadModel(Embedded(), 1));
  const CacheShape shape = model.transformer->cache_shape();
  const int64_t token_bytes =
      2 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim;
  const BenchRow& row = report.rows[6];  // fp16, 128 tokens, 3 sequences
  EXPECT_GE(row.cache_bytes, 3 * 128 * token_bytes);
  EXPECT_LT(row.cache_bytes, 1.1 * 3 * 128 * token_bytes);
  // The embeddings are tied, so that a step reads all weights; it sees 129
  // tokens on average, of steps that end with 129 and 130.
  EXPECT_EQ(row.decode_bytes,
            model.transformer->weight_bytes() + 3 * 129 * token_bytes);
  ASSERT_EQ(report.bandwidth.size(), 1u);
  EXPECT_NEAR(row.bandwidth_share,
              static_cast<double>(row.decode_bytes) * row.decode.median / 3 /
                  report.bandwidth[0].bytes_per_second,
              1e-9);
}

TEST(BenchTest, FullPrecisionHasThreeKinds) {
  BenchOptions options = Small();
  options.methods = {"fp16", "bf16", "fp32"};
  options.depths = {128};
  options.batches = {1};
  ASSERT_OK_AND_ASSIGN(const BenchReport report, RunBench(options));
  ASSERT_EQ(report.rows.size(), 3u);
  EXPECT_EQ(report.rows[1].kernels, "bfloat16");
  EXPECT_EQ(report.rows[1].cache_bytes, report.rows[0].cache_bytes);
  EXPECT_EQ(report.rows[2].kernels, "float");
  EXPECT_GT(report.rows[2].cache_bytes, 1.9 * report.rows[0].cache_bytes);
}

TEST(BenchTest, WhatIsNotAskedForIsNotMeasured) {
  BenchOptions options = Small();
  options.prompt_tokens = 0;
  options.methods = {"fp16"};
  options.depths = {32};
  options.batches = {1};
  ASSERT_OK_AND_ASSIGN(BenchReport report, RunBench(options));
  EXPECT_EQ(report.rows[0].prefill.median, 0);
  EXPECT_GT(report.rows[0].decode.median, 0);
  EXPECT_GT(report.rows[0].cache_bytes, 0);
  options.prompt_tokens = 8;
  options.decode_tokens = 0;
  ASSERT_OK_AND_ASSIGN(report, RunBench(options));
  EXPECT_GT(report.rows[0].prefill.median, 0);
  EXPECT_EQ(report.rows[0].decode_bytes, 0);
  EXPECT_EQ(report.rows[0].bandwidth_share, 0);
}

TEST(BenchTest, NamesTheKernelsOfItsArithmetic) {
  BenchOptions options = Small();
  options.model.set_attention_arithmetic(AttentionConfig::INT8);
  options.methods = {"2bit_g32", "8bit_g32"};
  options.depths = {64};
  options.batches = {1};
  ASSERT_OK_AND_ASSIGN(const BenchReport report, RunBench(options));
  EXPECT_EQ(report.rows[0].kernels, "int8");
  EXPECT_THAT(report.rows[1].kernels, HasSubstr("float"));
}

TEST(BenchTest, RefusesWhatCannotBeMeasured) {
  const auto run = [](const auto& change) {
    BenchOptions options = Small();
    change(options);
    return RunBench(options).status();
  };
  EXPECT_THAT(run([](auto& o) { o.shape = "135m"; }),
              StatusIs(kInvalid, HasSubstr("one of --shape")));
  EXPECT_THAT(run([](auto& o) { o.repeat = 0; }),
              StatusIs(kInvalid, HasSubstr("--repeat is 0")));
  EXPECT_THAT(run([](auto& o) {
                o.batches = {1, 0};
              }),
              StatusIs(kInvalid, HasSubstr("--batch is 0")));
  EXPECT_THAT(run([](auto& o) { o.depths = {}; }),
              StatusIs(kInvalid, HasSubstr("--depth is empty")));
  EXPECT_THAT(run([](auto& o) { o.methods = {}; }),
              StatusIs(kInvalid, HasSubstr("--kv is empty")));
  EXPECT_THAT(run([](auto& o) { o.depths = {1 << 20}; }),
              StatusIs(kInvalid, HasSubstr("do not fit")));
  EXPECT_THAT(run([](auto& o) { o.prompt_tokens = o.decode_tokens = 0; }),
              StatusIs(kInvalid, HasSubstr("nothing to measure")));
  EXPECT_THAT(run([](auto& o) { o.methods = {"2bit_g128"}; }),
              StatusIs(kInvalid, HasSubstr("must divide head_dim")));
  EXPECT_THAT(run([](auto& o) {
                o.model.clear_path();
                o.shape = "135m";
                o.weights = "q3";
              }),
              StatusIs(kInvalid, HasSubstr("--weights is \"q3\"")));
  const std::atomic<bool> stop = true;
  EXPECT_THAT(RunBench(Small(), &stop).status(),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("interrupted")));
}

TEST(BenchTest, AProfileIsComparedWithItsForwardPass) {
  ProfileBenchOptions options;
  options.model = Embedded();
  options.prompts = 3;
  options.prompt_tokens = 16;
  options.threads = {2};
  ASSERT_OK_AND_ASSIGN(const ProfileBenchReport report,
                       RunProfileBench(options));
  ASSERT_EQ(report.rows.size(), 1u);
  const ProfileBenchRow& row = report.rows[0];
  EXPECT_EQ(row.prompts, 3);
  EXPECT_GT(row.forward_seconds, 0);
  const double ratio = row.profile_seconds / row.forward_seconds;
  EXPECT_LE(row.ratio.low, ratio);
  EXPECT_GE(row.ratio.high, ratio);
  options.estimators = {"random"};
  EXPECT_THAT(RunProfileBench(options).status(),
              StatusIs(kInvalid, HasSubstr("looks at no prompt")));
}

// A report of one row, with a name that needs quotes.
BenchReport OneRow() {
  BenchReport report;
  report.model = "135m";
  report.compute = "FLOAT32";
  report.arithmetic = "FLOAT";
  report.bandwidth = {{1, 4e10}, {2, 8e10}};
  BenchRow row;
  row.method = "a,\"b\"|c";
  row.depth = 8192;
  row.prefill = {.median = 1.0 / 3, .low = 0.25, .high = 0.5};
  row.cache_bytes = 3 << 20;
  report.rows = {row};
  return report;
}

TEST(BenchReportTest, CsvAndJsonHaveTheSameFieldsUnrounded) {
  const BenchReport report = OneRow();
  const auto json =
      nlohmann::json::parse(FormatBench(report, BenchOutput::kJson));
  EXPECT_EQ(json["rows"][0]["kv"], "a,\"b\"|c");
  EXPECT_EQ(json["rows"][0]["prefill_tokens_per_second"], 1.0 / 3);
  EXPECT_EQ(json["read_bandwidth"][1]["bytes_per_second"], 8e10);
  const std::vector<std::string> lines =
      absl::StrSplit(FormatBench(report, BenchOutput::kCsv), '\n');
  ASSERT_EQ(lines.size(), 3u);  // the last is empty
  const std::vector<std::string> names = absl::StrSplit(lines[0], ',');
  ASSERT_EQ(names.size(), json["rows"][0].size());
  for (const std::string& name : names)
    EXPECT_TRUE(json["rows"][0].contains(name)) << name;
  EXPECT_THAT(lines[1], AllOf(HasSubstr(R"("a,""b""|c",8192,)"),
                              HasSubstr("0.3333333333333333,0.25,0.5")));
}

TEST(BenchReportTest, MarkdownNamesUnitsAndBandwidth) {
  EXPECT_THAT(
      FormatBench(OneRow(), BenchOutput::kMarkdown),
      AllOf(HasSubstr("| a,\"b\"/c |  8192 |"), HasSubstr("0.3 (0.2-0.5)"),
            HasSubstr("|       3.0 |"),
            HasSubstr("40.0 GB/s by 1 thread, 80.0 GB/s by 2 threads")));
}

// Steps of 10 ms and 2 us a token, of a batch of 4; another method at two
// depths only; a third whose times do not lie on a line.
TEST(BenchGrowthTest, FitsALineThroughThreeDepths) {
  BenchReport report;
  const auto add = [&](const char* method, int64_t depth, double seconds) {
    BenchRow row;
    row.method = method;
    row.depth = depth;
    row.batch = 4;
    row.threads = 2;
    row.decode.median = 4 / seconds;
    report.rows.push_back(row);
  };
  for (const int64_t depth : {0, 1000, 5000})
    add("line", depth, 0.010 + 2e-6 * static_cast<double>(depth));
  add("short", 0, 1);
  add("short", 1000, 2);
  add("bent", 0, 1);
  add("bent", 1, 1);
  add("bent", 2, 4);
  const std::vector<DepthGrowth> growths = DepthGrowthOf(report);
  ASSERT_EQ(growths.size(), 2u);
  EXPECT_EQ(growths[0].method, "line");
  EXPECT_NEAR(growths[0].seconds_at_zero, 0.010, 1e-12);
  EXPECT_NEAR(growths[0].seconds_per_token, 2e-6, 1e-15);
  EXPECT_NEAR(growths[0].r_squared, 1, 1e-12);
  // Slope 1.5, residuals 1/2, -1, 1/2; total sum of squares 6.
  EXPECT_NEAR(growths[1].r_squared, 0.75, 1e-12);
  EXPECT_THAT(FormatBench(report, BenchOutput::kMarkdown),
              HasSubstr("line, batch 4, 2 threads: a step takes 10 ms + 2e+03 "
                        "us for each 1000 cached tokens; R^2 of the line 1.0"));
  EXPECT_EQ(nlohmann::json::parse(FormatBench(
                report, BenchOutput::kJson))["depth_growth"][1]["kv"],
            "bent");
}

TEST(BenchFigureTest, DotsAtTheBandwidthLieOnItsLine) {
  BenchReport report = OneRow();
  EXPECT_EQ(BenchFigureSvg(report), "");  // no decode
  // Two rows at 40 GB/s: both dots lie on the line of one thread.
  BenchRow& row = report.rows[0];
  row.batch = 2;
  row.decode_bytes = 400'000'000;
  row.decode.median = 200;
  report.rows.push_back(row);
  report.rows[1].decode_bytes = 100'000'000;
  report.rows[1].decode.median = 800;
  const std::string svg = BenchFigureSvg(report);
  const auto number = [&svg](const std::string& name, size_t& from) {
    from = svg.find(name + "=\"", from) + name.size() + 2;
    return std::stod(svg.substr(from));
  };
  size_t at = svg.find("<line", svg.find("#999999") - 120);
  const double x1 = number("x1", at), y1 = number("y1", at),
               x2 = number("x2", at), y2 = number("y2", at);
  at = svg.find("<circle");
  for (int dot = 0; dot < 2; ++dot) {
    const double cx = number("cx", at), cy = number("cy", at);
    EXPECT_NEAR(cy, y1 + (y2 - y1) * (cx - x1) / (x2 - x1), 0.5);
  }
  EXPECT_THAT(svg, HasSubstr("40.0 GB/s, 1 thread<"));
  EXPECT_THAT(svg, HasSubstr("&quot;b&quot;|c, depth 8192"));
}

}  // namespace
}  // namespace kvmix
