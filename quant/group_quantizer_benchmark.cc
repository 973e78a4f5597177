// Encoding and decoding of groups: 64 groups of 32 (a block of a 64-channel
// head), or of 11 for KVmix's words.

#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kvmix/base/random.h"
#include "quant/group_quantizer.h"

namespace kvmix {
namespace {

constexpr int kGroups = 64;

struct Block {
  explicit Block(const GroupFormat& format)
      : x(kGroups * format.size),
        words(kGroups * format.words() + 2),
        scales(kGroups),
        zeros(kGroups) {
    CounterRandom random(1, 0);
    for (float& v : x) v = static_cast<float>(random.Normal());
  }
  std::vector<float> x;
  std::vector<uint32_t> words;
  std::vector<Half> scales, zeros;
};

void Encode(benchmark::State& state, GroupFormat format) {
  Block b(format);
  for (auto _ : state) {
    EncodeGroups(format, b.x.data(), kGroups, b.words.data(), b.scales.data(),
                 b.zeros.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * b.x.size());
}

void Decode(benchmark::State& state, GroupFormat format) {
  Block b(format);
  EncodeGroups(format, b.x.data(), kGroups, b.words.data(), b.scales.data(),
               b.zeros.data());
  for (auto _ : state) {
    DecodeGroups(format, b.words.data(), b.scales.data(), b.zeros.data(),
                 kGroups, b.x.data(), format.size);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * b.x.size());
}

void RegisterAll() {
  std::vector<std::pair<std::string, GroupFormat>> formats = {
      {"3bit_11",
       {.bits = 3, .size = 11, .packing = QuantFormat::KVMIX_3BIT_11}}};
  for (int bits = 1; bits <= 8; ++bits)
    formats.push_back(
        {std::to_string(bits) + "bit_g32", {.bits = bits, .size = 32}});
  for (const auto& [name, format] : formats) {
    benchmark::RegisterBenchmark(("Encode/" + name).c_str(), Encode, format);
    benchmark::RegisterBenchmark(("Decode/" + name).c_str(), Decode, format);
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
