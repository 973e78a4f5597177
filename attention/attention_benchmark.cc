// Attention of one layer over a cache of n tokens.
//   Decode/<shape>/<format>/<n>/<threads>   one query, T = 1
//   Prefill/<shape>/<format>/<T>/<threads>  T queries of an empty cache
// ns_per_token is per cached token and KV head; a decode step cannot be faster
// than reading bytes_per_token allows.

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/test_policies.h"
#include "benchmark/benchmark.h"
#include "kvmix/base/check.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

struct Shape {
  const char* name;
  int kv_heads, group, head_dim;
};
constexpr Shape kShapes[] = {{"G3x3_D64", 3, 3, 64},
                             {"G4x8_D64", 4, 8, 64},
                             {"G8x4_D128", 8, 4, 128},
                             {"G8x1_D128", 8, 1, 128}};

struct Bits {
  const char* name;
  int key, value;
  bool words_of_eleven = false;
};
constexpr Bits kBits[] = {{"half", 16, 16},
                          {"k4v4", 4, 4},
                          {"k3v4", 3, 4},
                          {"k2v2", 2, 2},
                          {"k3w11v4", 3, 4, true}};

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
Sequence Make(const Shape& shape, const Bits& bits, int64_t n, int64_t T) {
  CachePlan plan;
  LayerPlan* layer = plan.add_layer();
  *layer->mutable_key() =
      Format(bits.key, QuantFormat::PER_CHANNEL, bits.words_of_eleven);
  *layer->mutable_value() = Format(bits.value, QuantFormat::PER_TOKEN, false);
  Sequence s;
  s.cache = *KvCache::Create(
      {.num_layers = 1,
       .num_kv_heads = shape.kv_heads,
       .head_dim = shape.head_dim},
      plan, std::make_shared<testing::KeepRecent>(testing::KeepRecentOptions{}),
      std::make_shared<testing::KeepAll>());
  const int64_t row = int64_t{shape.kv_heads} * shape.head_dim;
  CounterRandom random(1, 0);
  std::vector<float> x(n * row + n);  // keys from 0, values from n on
  for (float& v : x) v = static_cast<float>(random.Normal());
  const auto append = [&](int64_t count) {
    KVMIX_CHECK(s.cache->Append(0, count, x.data(), x.data() + n).ok());
  };
  if (n > T) {
    append(n - T);
    KVMIX_CHECK(s.cache->FinishChunk(0).ok());
  }
  append(T);
  s.queries.resize(T * row * shape.group);
  for (float& v : s.queries) v = static_cast<float>(random.Normal());
  s.out.resize(s.queries.size());
  s.options = {.num_heads = shape.kv_heads * shape.group,
               .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  s.item = {.cache = s.cache.get(),
            .num_tokens = T,
            .queries = s.queries.data(),
            .out = s.out.data()};
  return s;
}

void Run(benchmark::State& state, const Shape& shape, const Bits& bits,
         int64_t n, int64_t T, int num_threads) {
  Sequence s = Make(shape, bits, n, T);
  ThreadPool threads(num_threads);
  for (auto _ : state) Attention(0, {&s.item, 1}, s.options, threads);
  const MemoryLedger ledger = s.cache->ledger();
  state.counters["bytes_per_token"] = static_cast<double>(
      (ledger.key.bytes() + ledger.value.bytes()) / (n * shape.kv_heads));
  const auto per_second = benchmark::Counter::kIsIterationInvariantRate;
  if (T == 1) {
    state.counters["ns_per_token"] =
        benchmark::Counter(1e-9 * static_cast<double>(n * shape.kv_heads),
                           static_cast<benchmark::Counter::Flags>(
                               per_second | benchmark::Counter::kInvert));
  } else {
    // Two products of two operations over half of the T x T scores.
    state.counters["GFLOP/s"] = benchmark::Counter(
        2e-9 *
            static_cast<double>(T * T * s.options.num_heads * shape.head_dim),
        per_second);
  }
}

void RegisterAll() {
  const auto add = [](const std::string& kind, const Shape& shape,
                      const Bits& bits, int64_t n, int64_t T, int threads) {
    const std::string name = kind + "/" + shape.name + "/" + bits.name + "/" +
                             std::to_string(n) + "/" + std::to_string(threads);
    benchmark::RegisterBenchmark(name.c_str(),
                                 [=](benchmark::State& state) {
                                   Run(state, shape, bits, n, T, threads);
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  };
  for (int threads : {1, 2}) {
    for (const Shape& shape : kShapes)
      for (const Bits& bits : kBits) {
        for (int64_t n : {512, 8192}) add("Decode", shape, bits, n, 1, threads);
      }
    for (int64_t T : {512, 2048})
      add("Prefill", kShapes[0], kBits[0], T, T, threads);
  }
}

}  // namespace
}  // namespace kvmix

int main(int argc, char** argv) {
  kvmix::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
