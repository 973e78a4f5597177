// BudgetProblem: an allocation under a budget with losses and bytes made up,
// for tests of allocators.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvmix/allocation/any_bits_quantizer.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/cache_plan.h"

namespace kvmix {

// Bytes that the keys or the values of a KV head take, by bits of the format.
class CostsByBits final : public LayerCosts {
 public:
  CostsByBits(std::map<int, int64_t> key, std::map<int, int64_t> value,
              int num_kv_heads, int64_t elements)
      : key_(std::move(key)),
        value_(std::move(value)),
        num_kv_heads_(num_kv_heads),
        elements_(elements) {}

  absl::StatusOr<int64_t> HeadBytes(Side side, int,
                                    const QuantFormat& format) const override {
    const auto& bytes = side == Side::kKey ? key_ : value_;
    const auto it = bytes.find(format.bits());
    if (it == bytes.end()) return absl::NotFoundError("no such format");
    return it->second;
  }
  int num_kv_heads() const override { return num_kv_heads_; }
  int64_t elements() const override { return elements_; }

 private:
  const std::map<int, int64_t> key_, value_;
  const int num_kv_heads_;
  const int64_t elements_;
};

inline QuantFormat FormatOfBits(int bits) {
  AnyBitsQuantizer quantizer;
  return *quantizer.FormatFor(Side::kKey, bits, 64);
}

struct BudgetProblem {
  // Formats of `bits` for keys and values; a KV head's side has 800 elements,
  // so that a bit is 100 bytes. With several KV heads the problem is one at
  // head granularity.
  BudgetProblem(const std::vector<int>& bits, int num_layers,
                int num_kv_heads = 1)
      : costs(BytesOf(bits), BytesOf(bits), num_kv_heads, 800 * num_kv_heads) {
    for (int b : bits) {
      *choices.add_key() = FormatOfBits(b);
      *choices.add_value() = FormatOfBits(b);
    }
    profile.set_estimator("made_up");
    profile.set_unit(ImportanceProfile::NATS);
    *profile.mutable_formats() = choices;
    for (int i = 0; i < num_layers; ++i) profile.add_layer();
  }

  // Losses of layer `i`, in the order of the formats.
  void SetLosses(int i, const std::vector<double>& key,
                 const std::vector<double>& value) {
    LayerImportance& layer = *profile.mutable_layer(i);
    layer.mutable_key_loss()->Assign(key.begin(), key.end());
    layer.mutable_value_loss()->Assign(value.begin(), value.end());
    layer.set_key(key[0]);
    layer.set_value(value[0]);
  }

  // amplitude 4^-bits, amplitudes from 10^-3 to 1; of KV heads, if there are
  // several.
  void SetRandomLosses(uint64_t stream) {
    CounterRandom random(/*seed=*/1, stream);
    for (int i = 0; i < profile.layer_size(); ++i) {
      std::vector<double> losses[2];
      for (auto& side : losses) {
        for (int head = 0; head < costs.num_kv_heads(); ++head) {
          const double amplitude = std::pow(10, -3 * random.Uniform());
          for (const QuantFormat& format : choices.key())
            side.push_back(amplitude * std::pow(4, -format.bits()));
        }
      }
      if (!tells_heads_apart()) {
        SetLosses(i, losses[0], losses[1]);
        continue;
      }
      LayerImportance& layer = *profile.mutable_layer(i);
      layer.mutable_key_head_loss()->Assign(losses[0].begin(), losses[0].end());
      layer.mutable_value_head_loss()->Assign(losses[1].begin(),
                                              losses[1].end());
    }
  }

  bool tells_heads_apart() const { return costs.num_kv_heads() > 1; }

  AllocationContext Context() const {
    return {
        .num_layers = profile.layer_size(),
        .num_kv_heads = costs.num_kv_heads(),
        .head_dim = 64,
        .granularity = tells_heads_apart() ? CachePlan::HEAD : CachePlan::LAYER,
        .seed = 5,
        .quantizer = &quantizer,
        .choices = &choices,
        .costs = &costs,
        .budget_bytes = budget_bytes};
  }

  absl::StatusOr<CachePlan> Allocate(const Component& component) const {
    const auto made =
        Registry<BitAllocator>::Get().Make(component, "bit_allocator");
    if (!made.ok()) return made.status();
    return (*made)->Allocate(profile, Context());
  }
  absl::StatusOr<CachePlan> Allocate(const char* name) const {
    Component component;
    component.set_name(name);
    return Allocate(component);
  }

  double Loss(const CachePlan& plan) const {
    double sum = 0;
    for (int i = 0; i < plan.layer_size(); ++i) {
      const LayerImportance& layer = profile.layer(i);
      const bool heads = tells_heads_apart();
      const auto& key = heads ? layer.key_head_loss() : layer.key_loss();
      const auto& value = heads ? layer.value_head_loss() : layer.value_loss();
      const int n = choices.key_size();
      for (int at = 0; at < n * costs.num_kv_heads(); ++at) {
        const int bits = choices.key(at % n).bits();
        if (FormatOfHead(plan.layer(i), Side::kKey, at / n).bits() == bits)
          sum += key[at];
        if (FormatOfHead(plan.layer(i), Side::kValue, at / n).bits() == bits)
          sum += value[at];
      }
    }
    return sum;
  }

  static std::map<int, int64_t> BytesOf(const std::vector<int>& bits) {
    std::map<int, int64_t> bytes;
    for (int b : bits) bytes[b] = 100 * b;
    return bytes;
  }

  AnyBitsQuantizer quantizer;
  FormatChoices choices;
  CostsByBits costs;
  ImportanceProfile profile;
  int64_t budget_bytes = 0;
};

}  // namespace kvmix
