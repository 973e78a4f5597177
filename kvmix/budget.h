// Budget: what a plan takes, in bits for each element and in bytes.
//
// Nominal bits count codes alone, as papers quote them ("k2.19v2.38").
// Effective bits count scales and zero points too: what memory is really spent.
// Both are means over layers of equal shape and over their KV heads, and of
// packed blocks; the window in full precision, which depends on the recency
// policy, comes on top.
//
// LayerCosts counts the window as well, at one length of context: what an
// allocator has to keep within a budget.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvmix/budget.pb.h"
#include "kvmix/cache_plan.pb.h"
#include "quant/quantizer.h"

namespace kvmix {

struct AverageBits {
  double nominal = 0;
  double effective = 0;
};

struct PlanBits {
  AverageBits key;
  AverageBits value;
  // Of packed blocks against half precision.
  double compression() const { return 32 / (key.effective + value.effective); }
};

// Errors: an empty plan; a layer without a format, or with one that its
// quantizer refuses.
absl::StatusOr<PlanBits> BitsOfPlan(const CachePlan& plan, int head_dim);

// Bytes that keys (or values) take in a format. Those of a plan are the sum
// over layers, sides and KV heads.
class LayerCosts {
 public:
  virtual ~LayerCosts() = default;
  // Of KV head `head` of any layer.
  virtual absl::StatusOr<int64_t> HeadBytes(
      Side side, int head, const QuantFormat& format) const = 0;
  virtual int num_kv_heads() const = 0;
  // Elements of the keys (or values) of one layer, all KV heads together.
  virtual int64_t elements() const = 0;

  // Of all KV heads of a layer in one format.
  absl::StatusOr<int64_t> LayerBytes(Side side,
                                     const QuantFormat& format) const;
};

// Of an endless context: the packed blocks of 2^20 tokens, rounded up to a byte
// for each KV head, and no window.
class BlockCosts final : public LayerCosts {
 public:
  BlockCosts(int num_kv_heads, int head_dim,
             CachePlan::FullPrecision full_precision = CachePlan::HALF)
      : num_kv_heads_(num_kv_heads),
        head_dim_(head_dim),
        full_precision_(full_precision) {}
  absl::StatusOr<int64_t> HeadBytes(Side side, int head,
                                    const QuantFormat& format) const override;
  int num_kv_heads() const override { return num_kv_heads_; }
  int64_t elements() const override {
    return (int64_t{head_dim_} << 20) * num_kv_heads_;
  }

 private:
  const int num_kv_heads_;
  const int head_dim_;
  const CachePlan::FullPrecision full_precision_;
};

// Errors name layer and side; a plan of another number of KV heads.
absl::StatusOr<int64_t> PlanBytes(const CachePlan& plan,
                                  const LayerCosts& costs);

// The bytes that a budget allows a cache of num_layers layers. Errors: neither
// or both of effective_bits and bytes, bytes without a context_length, numbers
// that are negative.
absl::StatusOr<int64_t> BudgetBytes(const Budget& budget, int num_layers,
                                    const LayerCosts& costs);

// An error that says by how much, and what to do, if the plan takes more.
absl::Status CheckBudget(const CachePlan& plan, int64_t budget_bytes,
                         const LayerCosts& costs);

}  // namespace kvmix
