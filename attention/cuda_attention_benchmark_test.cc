#include "attention/cuda_attention_benchmark.h"

#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;

TEST(CudaAttentionBenchmarkTest, RunsWhole) {
  std::ostringstream out;
  ASSERT_OK(RunCudaAttentionBenchmark({.head_dim = 64,
                                       .kv_heads = 1,
                                       .groups = {1, 2},
                                       .depths = {48},
                                       .prefill_queries = 20,
                                       .batch_bytes = 48 * 64 * 4 * 2,
                                       .max_batch = 2,
                                       .copy_bytes = 1 << 20,
                                       .repetitions = 1},
                                      out));
  const std::string text = out.str();
  EXPECT_THAT(text, HasSubstr("Device copy of 1 MiB"));
  EXPECT_THAT(text, HasSubstr("| K16 V16 | 1 | 48 | 2 |"));
  EXPECT_THAT(text, HasSubstr("decode, tensor cores, K2 V2 |"));
  EXPECT_THAT(text, HasSubstr("| K3 in words of 11, V4 | 2 | 48 | 20 |"));
  int rows = 0;
  for (size_t at = 0; (at = text.find("\n| K", at)) != std::string::npos; ++at)
    ++rows;
  EXPECT_EQ(rows, 7 * 2 + 7);  // formats x groups, and prefill
}

}  // namespace
}  // namespace kvmix
