// Attention of one layer over a cache of n tokens.
//   Decode/<shape>/<format>/<n>/<threads>   one query, T = 1
//   Prefill/<shape>/<format>/<n>/<threads>  512 queries, the last of n tokens
//   Append/<shape>/<format>/<n>/<threads>   one token more, quantized, after n
//   Read/<threads>                          how fast memory is read, to compare
// A format is half, bfloat16, float, or k<bits>v<bits> in groups of 32 (k3w11:
// KVmix's words), with int8 at its end if products are computed in integers.
// Shapes are G<KV heads>x<query heads each>_D<head_dim>. ns_per_token is per
// cached token and KV head; a decode step cannot be faster than reading
// bytes_per_token allows. Ratios between formats are best taken with
// --benchmark_enable_random_interleaving=true --benchmark_repetitions=9.

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/cache_memory.h"
#include "attention/test_policies.h"
#include "benchmark/benchmark.h"
#include "kvmix/base/check.h"
#include "kvmix/base/random.h"
#include "kvmix/base/read_bandwidth.h"

namespace kvmix {
namespace {

struct Shape {
  const char *name;
  int kv_heads, group, head_dim;
};
constexpr Shape kShapes[] = {{"G3x3_D64", 3, 3, 64},
                             {"G4x8_D64", 4, 8, 64},
                             {"G8x4_D128", 8, 4, 128},
                             {"G8x1_D128", 8, 1, 128}};
constexpr int64_t kPrefillTokens = 512;
constexpr int64_t kAppendedTokens = 4096;
constexpr int64_t kReadBytes = 256 << 20;

struct Bits {
  const char *name;
  int key, value;
  bool int8 = false, words_of_eleven = false;
  CachePlan::FullPrecision full_precision = CachePlan::HALF;
};
constexpr Bits kBits[] = {
    {"half", 16, 16},
    {"bfloat16", 16, 16, false, false, CachePlan::BFLOAT16},
    {"float", 16, 16, false, false, CachePlan::FLOAT},
    {"k8v8", 8, 8},
    {"k4v4", 4, 4},
    {"k3v3", 3, 3},
    {"k2v2", 2, 2},
    {"k4v4int8", 4, 4, true},
    {"k3v3int8", 3, 3, true},
    {"k2v2int8", 2, 2, true},
    {"k3w11v4", 3, 4, false, true}};

QuantFormat Format(int bits, QuantFormat::Axis axis, bool words_of_eleven) {
  QuantFormat format;
  format.set_bits(bits);
  if (bits == 16) return format;
  format.set_quantizer("group_affine");
  format.set_axis(axis);
  format.set_group_size(words_of_eleven ? 11 : 32);
  if (words_of_eleven) format.set_packing(QuantFormat::KVMIX_3BIT_11);
  return format;
}

struct Sequence {
  std::unique_ptr<KvCache> cache;
  std::vector<float> queries, out;
  AttentionItem item;
  AttentionOptions options;
};

// n tokens in the cache, the last T of them the chunk.
Sequence Make(const Shape &shape, const Bits &bits, int64_t n, int64_t T,
              std::pmr::memory_resource *memory = nullptr) {
  CachePlan plan;
  plan.set_full_precision(bits.full_precision);
  LayerPlan *layer = plan.add_layer();
  *layer->mutable_key() =
      Format(bits.key, QuantFormat::PER_CHANNEL, bits.words_of_eleven);
  *layer->mutable_value() = Format(bits.value, QuantFormat::PER_TOKEN, false);
  Sequence s;
  s.cache = *KvCache::Create(
      {.num_layers = 1,
       .num_kv_heads = shape.kv_heads,
       .head_dim = shape.head_dim},
      plan, std::make_shared<testing::KeepRecent>(testing::KeepRecentOptions{}),
      std::make_shared<testing::KeepAll>(), memory);
  const int64_t row = int64_t{shape.kv_heads} * shape.head_dim;
  CounterRandom random(1, 0);
  std::vector<float> x(n * row + n);  // keys from 0, values from n on
  for (float &v : x) v = static_cast<float>(random.Normal());
  const auto append = [&](int64_t count) {
    KVMIX_CHECK(s.cache->Append(0, count, x.data(), x.data() + n).ok());
  };
  if (n > T) {
    append(n - T);
    KVMIX_CHECK(s.cache->FinishChunk(0).ok());
  }
  append(T);
  s.queries.resize(T * row * shape.group);
  for (float &v : s.queries) v = static_cast<float>(random.Normal());
  s.out.resize(s.queries.size());
  s.options = {.num_heads = shape.kv_heads * shape.group,
               .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim)),
               .arithmetic = bits.int8 ? AttentionArithmetic::kInt8
                                       : AttentionArithmetic::kFloat};
  s.item = {.cache = s.cache.get(),
            .num_tokens = T,
            .queries = s.queries.data(),
            .out = s.out.data()};
  return s;
}

// Made once: attention changes nothing, and a long one takes seconds to fill.
Sequence &Made(const Shape &shape, const Bits &bits, int64_t n, int64_t T) {
  static auto &made = *new std::map<std::string, Sequence>();
  const std::string key = std::string(shape.name) + "/" + bits.name + "/" +
                          std::to_string(n) + "/" + std::to_string(T);
  auto it = made.find(key);
  if (it == made.end()) it = made.emplace(key, Make(shape, bits, n, T)).first;
  return it->second;
}

void Run(benchmark::State &state, const Shape &shape, const Bits &bits,
         int64_t n, int64_t T, int num_threads) {
  Sequence &s = Made(shape, bits, n, T);
  ThreadPool threads(num_threads);
  for (auto _ : state) Attention(0, {&s.item, 1}, s.options, threads);
  const MemoryLedger ledger = s.cache->ledger();
  state.counters["bytes_per_token"] =
      static_cast<double>(ledger.key.bytes() + ledger.value.bytes()) /
      static_cast<double>(n * shape.kv_heads);
  const auto per_second = benchmark::Counter::kIsIterationInvariantRate;
  if (T == 1) {
    state.counters["ns_per_token"] =
        benchmark::Counter(1e-9 * static_cast<double>(n * shape.kv_heads),
                           static_cast<benchmark::Counter::Flags>(
                               per_second | benchmark::Counter::kInvert));
  } else {
    // Two products of two operations; query t sees n - T + t + 1 tokens.
    const int64_t scores = T * (n - T) + T * (T + 1) / 2;
    state.counters["GFLOP/s"] = benchmark::Counter(
        4e-9 *
            static_cast<double>(scores * s.options.num_heads * shape.head_dim),
        per_second);
  }
}

// A decode step's Append of keys and values that leave the window at once, a
// block at a time. In memory that a longer cache has used before: what a system
// takes to hand out memory for the first time, which can be more, is not
// Append's, and depends on the bytes alone.
void RunAppend(benchmark::State &state, const Shape &shape, const Bits &bits,
               int64_t n) {
  CacheMemory memory;
  Make(shape, bits, n + kAppendedTokens, 1, &memory);
  Sequence s = Make(shape, bits, n, 1, &memory);
  KVMIX_CHECK(s.cache->FinishChunk(0).ok());
  const int64_t row = int64_t{shape.kv_heads} * shape.head_dim;
  const std::vector<float> x(row, 0.5f);
  for (auto _ : state) {
    KVMIX_CHECK(s.cache->Append(0, 1, x.data(), x.data()).ok());
    KVMIX_CHECK(s.cache->FinishChunk(0).ok());
  }
  state.counters["numbers_per_second"] =
      benchmark::Counter(static_cast<double>(2 * row),
                         benchmark::Counter::kIsIterationInvariantRate);
}

// The counter is what counts, not the time.
void RunRead(benchmark::State &state, int num_threads) {
  ThreadPool threads(num_threads);
  double rate = 0;
  for (auto _ : state) rate = *MeasureReadBandwidth(threads, kReadBytes);
  state.counters["read_bytes_per_second"] = rate;
}

benchmark::internal::Benchmark *Add(
    const std::string &kind, const Shape &shape, const Bits &bits, int64_t n,
    int threads, const std::function<void(benchmark::State &)> &run) {
  const std::string name = kind + "/" + shape.name + "/" + bits.name + "/" +
                           std::to_string(n) + "/" + std::to_string(threads);
  return benchmark::RegisterBenchmark(name.c_str(), run)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

void RegisterAll() {
  for (int threads : {1, 2}) {
    benchmark::RegisterBenchmark(
        ("Read/" + std::to_string(threads)).c_str(),
        [=](benchmark::State &state) { RunRead(state, threads); })
        ->UseRealTime()
        ->Iterations(1);
  }
  for (const Shape &shape : kShapes) {
    for (const Bits &bits : kBits) {
      for (int threads : {1, 2}) {
        for (int64_t n : {512, 8192, 32768})
          Add("Decode", shape, bits, n, threads, [=](benchmark::State &state) {
            Run(state, shape, bits, n, 1, threads);
          });
        for (int64_t n : {512, 8192})
          Add("Prefill", shape, bits, n, threads, [=](benchmark::State &state) {
            Run(state, shape, bits, n, kPrefillTokens, threads);
          });
      }
      for (int64_t n : {512, 32768})
        Add("Append", shape, bits, n, 1, [=](benchmark::State &state) {
          RunAppend(state, shape, bits, n);
        })->Iterations(kAppendedTokens);
    }
  }
}

}  // namespace
}  // namespace kvmix

int main(int argc, char **argv) {
  kvmix::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
