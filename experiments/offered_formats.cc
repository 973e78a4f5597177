#include "experiments/offered_formats.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/eviction/eviction_policy.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

using Formats = google::protobuf::RepeatedPtrField<QuantFormat>;

QuantFormat FullPrecisionFormat() {
  QuantFormat format;
  format.set_bits(16);
  return format;
}

absl::Status AddOffered(const Component& quantizer, Side side, int bits,
                        int head_dim, Formats& formats) {
  if (bits == 16) {
    *formats.Add() = FullPrecisionFormat();
    return absl::OkStatus();
  }
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<Quantizer> made,
      Registry<Quantizer>::Get().Make(quantizer, "quantizer"));
  KVMIX_ASSIGN_OR_RETURN(QuantFormat format,
                         made->FormatFor(side, bits, head_dim));
  *formats.Add() = std::move(format);
  return absl::OkStatus();
}

absl::Status AddCandidate(const Candidate& candidate, const Method& method,
                          int head_dim, FormatChoices& choices) {
  const Component& quantizer =
      candidate.has_quantizer() ? candidate.quantizer() : method.quantizer();
  if (candidate.sides() != Candidate::VALUES) {
    KVMIX_RETURN_IF_ERROR(AddOffered(quantizer, Side::kKey, candidate.bits(),
                                     head_dim, *choices.mutable_key()));
  }
  if (candidate.sides() == Candidate::KEYS) return absl::OkStatus();
  return AddOffered(quantizer, Side::kValue, candidate.bits(), head_dim,
                    *choices.mutable_value());
}

// Whether the method's recency policy, if it has one, can serve the format.
absl::StatusOr<bool> IsServed(const Method& method, const QuantFormat& format,
                              Side side, int head_dim) {
  if (!method.has_recency_policy() || format.bits() == 16) return true;
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<RecencyPolicy> recency,
                         Registry<RecencyPolicy>::Get().Make(
                             method.recency_policy(), "recency_policy"));
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                         MakeBlockCodec(format, side, head_dim));
  return recency
      ->Validate({.side = side,
                  .bits = format.bits(),
                  .granularity = codec->granularity()})
      .ok();
}

// What the method's parts can serve of the usual bits.
absl::Status AddDefaults(const Method& method, Side side, int head_dim,
                         Formats& formats) {
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<Quantizer> quantizer,
      Registry<Quantizer>::Get().Make(method.quantizer(), "quantizer"));
  for (int bits : {2, 3, 4, 8, 16}) {
    const absl::StatusOr<QuantFormat> format =
        bits == 16 ? FullPrecisionFormat()
                   : quantizer->FormatFor(side, bits, head_dim);
    if (!format.ok()) continue;
    KVMIX_ASSIGN_OR_RETURN(const bool served,
                           IsServed(method, *format, side, head_dim));
    if (served) *formats.Add() = *format;
  }
  return absl::OkStatus();
}

// Cheapest first, each once.
absl::Status SortFormats(Side side, int head_dim, Formats& formats) {
  const BlockCosts costs(/*num_kv_heads=*/1, head_dim);
  std::vector<std::pair<int64_t, QuantFormat>> priced;
  for (const QuantFormat& format : formats) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t bytes, costs.LayerBytes(side, format));
    const bool known =
        std::any_of(priced.begin(), priced.end(), [&](const auto& other) {
          return other.second.SerializeAsString() == format.SerializeAsString();
        });
    if (!known) priced.emplace_back(bytes, format);
  }
  std::stable_sort(
      priced.begin(), priced.end(),
      [](const auto& a, const auto& b) { return a.first < b.first; });
  formats.Clear();
  for (const auto& [bytes, format] : priced) *formats.Add() = format;
  if (!priced.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("no candidate is for ", SideName(side),
                   "; offer at least one format for keys and one for values"));
}

}  // namespace

absl::StatusOr<FormatChoices> OfferedFormats(const Method& method,
                                             int head_dim) {
  FormatChoices choices;
  for (int i = 0; i < method.candidate_size(); ++i) {
    KVMIX_RETURN_IF_ERROR(
        AddContext(AddCandidate(method.candidate(i), method, head_dim, choices),
                   absl::StrCat("candidate[", i, "]")));
  }
  if (method.candidate().empty()) {
    KVMIX_RETURN_IF_ERROR(
        AddDefaults(method, Side::kKey, head_dim, *choices.mutable_key()));
    KVMIX_RETURN_IF_ERROR(
        AddDefaults(method, Side::kValue, head_dim, *choices.mutable_value()));
  }
  KVMIX_RETURN_IF_ERROR(
      SortFormats(Side::kKey, head_dim, *choices.mutable_key()));
  KVMIX_RETURN_IF_ERROR(
      SortFormats(Side::kValue, head_dim, *choices.mutable_value()));
  return choices;
}

MeasuredCosts::MeasuredCosts(const CacheShape& shape,
                             std::vector<int64_t> chunks,
                             std::shared_ptr<const RecencyPolicy> recency,
                             CachePlan::FullPrecision full_precision)
    : shape_{.num_layers = 1,
             .num_kv_heads = shape.num_kv_heads,
             .head_dim = shape.head_dim,
             .key_rotation = shape.key_rotation},
      chunks_(std::move(chunks)),
      recency_(std::move(recency)),
      full_precision_(full_precision) {}

int64_t MeasuredCosts::elements() const {
  return std::accumulate(chunks_.begin(), chunks_.end(), int64_t{0}) *
         shape_.num_kv_heads * shape_.head_dim;
}

absl::StatusOr<int64_t> MeasuredCosts::CacheBytes(
    const QuantFormat& key, const QuantFormat& value) const {
  CachePlan plan;
  *plan.add_layer()->mutable_key() = key;
  *plan.mutable_layer(0)->mutable_value() = value;
  plan.set_full_precision(full_precision_);
  Component keep_all;
  keep_all.set_name("keep_all");
  KVMIX_ASSIGN_OR_RETURN(
      std::shared_ptr<const EvictionPolicy> eviction,
      Registry<EvictionPolicy>::Get().Make(keep_all, "eviction_policy"));
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<KvCache> cache,
      KvCache::Create(shape_, plan, recency_, std::move(eviction)));
  const int64_t longest = *std::max_element(chunks_.begin(), chunks_.end());
  const std::vector<float> states(longest * shape_.num_kv_heads *
                                  shape_.head_dim);
  for (int64_t length : chunks_) {
    KVMIX_RETURN_IF_ERROR(
        cache->Append(/*layer=*/0, length, states.data(), states.data()));
    KVMIX_RETURN_IF_ERROR(cache->FinishChunk(/*layer=*/0));
  }
  return cache->ledger().total();
}

absl::StatusOr<int64_t> MeasuredCosts::ChangeOf(
    Side side, const QuantFormat& format) const {
  const std::pair key(side, format.SerializeAsString());
  const auto known = changes_.find(key);
  if (known != changes_.end()) return known->second;
  const QuantFormat full = FullPrecisionFormat();
  KVMIX_ASSIGN_OR_RETURN(const int64_t bytes, side == Side::kKey
                                                  ? CacheBytes(format, full)
                                                  : CacheBytes(full, format));
  // Heads hold the same tokens.
  KVMIX_CHECK((bytes - *full_) % shape_.num_kv_heads == 0);
  return changes_[key] = (bytes - *full_) / shape_.num_kv_heads;
}

// A cache's bytes are those in full precision, shared out evenly among the keys
// and the values of its KV heads, and what each of them takes more or less.
absl::StatusOr<int64_t> MeasuredCosts::HeadBytes(
    Side side, int head, const QuantFormat& format) const {
  if (!full_.has_value()) {
    const QuantFormat full = FullPrecisionFormat();
    KVMIX_ASSIGN_OR_RETURN(full_, CacheBytes(full, full));
  }
  KVMIX_ASSIGN_OR_RETURN(const int64_t change, ChangeOf(side, format));
  const int shares = 2 * shape_.num_kv_heads;
  const int share = side == Side::kKey ? head : shape_.num_kv_heads + head;
  return change + *full_ * (share + 1) / shares - *full_ * share / shares;
}

}  // namespace kvmix
