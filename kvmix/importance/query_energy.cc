#include "kvmix/importance/query_energy.h"

#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/cache_plan.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

absl::StatusOr<bool> AnyWants(
    const google::protobuf::RepeatedPtrField<QuantFormat>& formats) {
  for (const QuantFormat& format : formats) {
    if (format.bits() == 16) continue;
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Quantizer> quantizer,
                           QuantizerOf(format));
    if (quantizer->WantsQueryEnergy()) return true;
  }
  return false;
}

absl::Status Calibrate(const LayerImportance& layer, QuantFormat& format) {
  if (format.bits() == 16) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Quantizer> quantizer,
                         QuantizerOf(format));
  if (!quantizer->WantsQueryEnergy()) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(format,
                         quantizer->Calibrated(format, layer.query_energy()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<bool> WantQueryEnergy(const FormatChoices& formats) {
  KVMIX_ASSIGN_OR_RETURN(const bool keys, AnyWants(formats.key()));
  if (keys) return true;
  return AnyWants(formats.value());
}

absl::Status CalibratePlan(const ImportanceProfile& profile, CachePlan& plan) {
  for (int l = 0; l < plan.layer_size() && l < profile.layer_size(); ++l) {
    if (profile.layer(l).query_energy().empty()) continue;
    LayerPlan& layer = *plan.mutable_layer(l);
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (QuantFormat* format : MutableFormatsOf(layer, side)) {
        KVMIX_RETURN_IF_ERROR(AddContext(Calibrate(profile.layer(l), *format),
                                         absl::StrCat("layer ", l)));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status QueryEnergy::Start(const ProfileContext& context) {
  squares_.assign(context.num_layers, {});
  head_dim_ = context.head_dim;
  return absl::OkStatus();
}

absl::Status QueryEnergy::Observe(const LayerTrace& trace) {
  std::vector<double>& sums = squares_[trace.layer];
  sums.resize(static_cast<size_t>(trace.num_kv_heads) * head_dim_);
  const float* q = trace.query_states;
  for (int64_t t = 0; t < trace.num_tokens; ++t) {
    for (int head = 0; head < trace.num_heads; ++head) {
      double* sum = sums.data() + head /
                                      (trace.num_heads / trace.num_kv_heads) *
                                      static_cast<int64_t>(head_dim_);
      for (int c = 0; c < head_dim_; ++c, ++q)
        sum[c] += static_cast<double>(*q) * *q;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ImportanceProfile> QueryEnergy::Finish() {
  ImportanceProfile profile;
  for (const std::vector<double>& sums : squares_) {
    std::vector<double> energy(head_dim_);
    for (size_t head = 0; head < sums.size(); head += head_dim_) {
      const double total = std::accumulate(
          sums.begin() + static_cast<int64_t>(head),
          sums.begin() + static_cast<int64_t>(head) + head_dim_, 0.0);
      if (total <= 0) continue;
      for (int c = 0; c < head_dim_; ++c)
        energy[c] += sums[head + c] / total * head_dim_ * head_dim_ /
                     static_cast<double>(sums.size());
    }
    profile.add_layer()->mutable_query_energy()->Assign(energy.begin(),
                                                        energy.end());
  }
  return profile;
}

}  // namespace kvmix
