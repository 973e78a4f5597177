// Batches served on a CUDA device, or on the emulator, against what the CPU
// reports of the same.
#include "experiments/bench/throughput.h"

#include <cuda_runtime_api.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "experiments/bench/bench_report.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

BenchOptions Small() {
  BenchOptions options;
  options.shape = "135m:1";
  options.model.set_compute(ModelSource::BFLOAT16);
  options.model.set_device(ModelSource::CUDA);
  options.throughput = true;
  options.prompt_tokens = 33;
  options.decode_tokens = 2;
  options.methods = {"fp16", "2bit_g32"};
  options.batches = {2};
  options.threads = {1};
  options.repeat = 1;
  return options;
}

bool IsEmulator() {
  cudaDeviceProp device;
  EXPECT_EQ(cudaGetDeviceProperties(&device, 0), cudaSuccess);
  return std::string(device.name) == "CUDA emulator";
}

TEST(ThroughputTest, EveryMethodGetsARow) {
  ASSERT_OK_AND_ASSIGN(const BenchReport report,
                       RunThroughput(Small(), nullptr));
  ASSERT_EQ(report.rows.size(), 2u);
  for (const BenchRow& row : report.rows) {
    EXPECT_EQ(row.batch, 2);
    EXPECT_EQ(row.threads, 0);
    EXPECT_GT(row.prefill.median, 0);
    EXPECT_GT(row.decode.median, 0);
    EXPECT_GT(row.throughput.median, 0);
    EXPECT_THAT(row.kernels, HasSubstr("tensor cores"));
    // A device hands memory out in pages; the emulator, to the byte.
    if (IsEmulator()) {
      EXPECT_EQ(row.resident_bytes, row.cache_bytes);
    }
  }
  EXPECT_LT(report.rows[1].cache_bytes, report.rows[0].cache_bytes);
  EXPECT_THAT(FormatBench(report, BenchOutput::kMarkdown),
              AllOf(HasSubstr("| 2bit_g32 |     2 |"),
                    HasSubstr("33 tokens in, 2 out"), HasSubstr("GiB, sm_")));
  const auto json =
      nlohmann::json::parse(FormatBench(report, BenchOutput::kJson));
  EXPECT_EQ(json["rows"][0]["device"], "CUDA");
  EXPECT_GT(json["rows"][0]["throughput_tokens_per_second"], 0);
}

// The limit leaves room for three or four sequences.
BenchOptions Limited() {
  BenchOptions options = Small();
  options.methods = {"fp16"};
  options.batches = {1};
  const auto report = RunThroughput(options, nullptr);
  EXPECT_OK(report.status());
  options.memory_limit =
      report->weight_bytes + report->rows[0].cache_bytes * 7 / 2;
  return options;
}

TEST(ThroughputTest, TheLargestBatchFitsAndOneMoreDoesNot) {
  BenchOptions options = Limited();
  options.batches = {kLargestBatch};
  ASSERT_OK_AND_ASSIGN(const BenchReport report,
                       RunThroughput(options, nullptr));
  const int64_t batch = report.rows[0].batch;
  EXPECT_GT(batch, 2);
  EXPECT_LE(report.weight_bytes + report.rows[0].cache_bytes,
            options.memory_limit);
  options.batches = {batch + 1};
  EXPECT_THAT(RunThroughput(options, nullptr).status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr(absl::StrCat("fp16, batch ", batch + 1)),
                             HasSubstr("--memory_limit"))));
}

TEST(ThroughputTest, ABatchThatDoesNotFitTheDeviceIsAnErrorWithItsBytes) {
  BenchOptions options = Small();
  options.methods = {"fp16"};
  options.prompt_tokens = 20000;
  options.batches = {60000};
  EXPECT_THAT(RunThroughput(options, nullptr).status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("fp16, batch 60000"),
                             HasSubstr("bytes) do not fit the CUDA device"))));
}

// Full precision in float has no kernels.
BenchOptions OnTheHost() {
  BenchOptions options = Small();
  options.methods = {"fp32", "fp16"};
  options.prompt_tokens = 200;
  options.batches = {4};
  options.repeat = 2;
  return options;
}

TEST(ThroughputTest, CachesOnTheHostAreServedAndBilledThere) {
  ::testing::internal::CaptureStderr();
  const absl::StatusOr<BenchReport> report =
      RunThroughput(OnTheHost(), nullptr);
  const std::string told = ::testing::internal::GetCapturedStderr();
  ASSERT_OK(report.status());
  const BenchRow& fp32 = report->rows[0];
  const BenchRow& fp16 = report->rows[1];
  EXPECT_EQ(fp32.kernels, "host: float");
  EXPECT_EQ(fp32.threads, 1);
  EXPECT_EQ(fp16.threads, 0);
  // 4 sequences of 201 tokens of 3 KV heads of 64 channels, keys and values.
  EXPECT_GE(fp32.cache_bytes, 4 * 201 * 3 * 64 * 2 * 4);
  // What the driver counts would be 0. Not all is new to the process.
  EXPECT_GT(fp32.resident_bytes, 0);
  constexpr char kTold[] = "method fp32: its cache lies in host memory";
  const size_t first = told.find(kTold);
  ASSERT_NE(first, std::string::npos) << told;
  EXPECT_EQ(told.find(kTold, first + 1), std::string::npos) << told;
  EXPECT_EQ(told.find("method fp16"), std::string::npos) << told;
}

TEST(ThroughputTest, CachesOnTheHostDoNotFillTheDevice) {
  BenchOptions largest = OnTheHost(), limited = OnTheHost();
  largest.batches = {1, kLargestBatch};
  limited.memory_limit = int64_t{1} << 40;
  for (const BenchOptions& options : {largest, limited}) {
    EXPECT_THAT(
        RunThroughput(options, nullptr).status(),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 AllOf(HasSubstr("fp32: --batch=max and --memory_limit are of "
                                 "the device's memory"),
                       HasSubstr("full_precision is FLOAT"),
                       HasSubstr("or use --device=cpu"))));
  }
}

TEST(ThroughputTest, TheCpuServesTheSame) {
  BenchOptions options = Small();
  options.model.set_device(ModelSource::CPU);
  options.prompt_tokens = 200;
  options.batches = {kLargestBatch};
  EXPECT_THAT(RunThroughput(options, nullptr).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("needs --memory_limit")));
  options.memory_limit = 1;
  EXPECT_THAT(RunThroughput(options, nullptr).status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("fp16, batch 1: weights of")));
  options.batches = {2};
  options.memory_limit = 0;
  ASSERT_OK_AND_ASSIGN(BenchReport report, RunThroughput(options, nullptr));
  // One sequence's bytes, and half of another's.
  options.memory_limit =
      report.weight_bytes + report.rows[0].cache_bytes * 3 / 4;
  options.batches = {kLargestBatch};
  ASSERT_OK_AND_ASSIGN(report, RunThroughput(options, nullptr));
  EXPECT_EQ(report.rows[0].batch, 1);
  EXPECT_GT(report.rows[1].batch, 1);
  EXPECT_EQ(report.rows[0].threads, 1);
}

TEST(ThroughputTest, RefusesWhatCannotBeMeasured) {
  const auto run = [](const auto& change) {
    BenchOptions options = Small();
    change(options);
    return RunThroughput(options, nullptr).status();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(run([](auto& o) {
                o.depths = {0, 64};
              }),
              StatusIs(kInvalid, HasSubstr("--depth must be 0")));
  EXPECT_THAT(run([](auto& o) {
                o.threads = {1, 2};
              }),
              StatusIs(kInvalid, HasSubstr("--threads must be one number")));
  EXPECT_THAT(run([](auto& o) { o.decode_tokens = 1; }),
              StatusIs(kInvalid, HasSubstr("--generate is 1")));
  EXPECT_THAT(run([](auto& o) { o.batches = {0}; }),
              StatusIs(kInvalid, HasSubstr("--batch is 0")));
  EXPECT_THAT(run([](auto& o) { o.prompt_tokens = 40000; }),
              StatusIs(kInvalid, HasSubstr("do not fit in the model's")));
  EXPECT_THAT(run([](auto& o) {
                o.model.set_attention_arithmetic(AttentionConfig::INT8);
              }),
              StatusIs(kInvalid, HasSubstr("must be float")));
  EXPECT_THAT(run([](auto& o) { o.model.set_compute(ModelSource::INT8); }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("INT8")));
}

}  // namespace
}  // namespace kvmix
