#include "kvmix/importance/query_energy.h"

#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/cache_plan.h"
#include "kvmix/importance/causal_weights.h"
#include "kvmix/key_rotation.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

absl::StatusOr<bool> Wants(const QuantFormat& format) {
  if (format.bits() == 16) return false;
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Quantizer> quantizer,
                         QuantizerOf(format));
  return quantizer->WantsQueryEnergy(format);
}

absl::StatusOr<bool> AnyWants(
    const google::protobuf::RepeatedPtrField<QuantFormat>& formats) {
  for (const QuantFormat& format : formats) {
    KVMIX_ASSIGN_OR_RETURN(const bool wants, Wants(format));
    if (wants) return true;
  }
  return false;
}

// By the energy of what the format's codec encodes.
absl::Status Calibrate(const LayerImportance& layer, Side side,
                       QuantFormat& format) {
  KVMIX_ASSIGN_OR_RETURN(const bool wants, Wants(format));
  if (!wants) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<BlockCodec> codec,
      MakeBlockCodec(format, side, layer.query_energy_size()));
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Quantizer> quantizer,
                         QuantizerOf(format));
  KVMIX_ASSIGN_OR_RETURN(
      format, quantizer->Calibrated(
                  format, codec->pre_rope() ? layer.query_energy_before_rope()
                                            : layer.query_energy()));
  return absl::OkStatus();
}

// What position t makes of a pair of channels' squares and product: row t is
// cos^2, sin^2 and 2 sin cos of every pair, [T, 3, D / 2].
RowMatrix Turns(const KeyRotation& rotation, int64_t tokens, int head_dim) {
  const int half = head_dim / 2;
  // Keys of 1 in the first channel of each pair become cos and sin.
  RowMatrix keys = RowMatrix::Zero(head_dim, tokens);
  keys.topRows(half).setOnes();
  rotation.Rotate(0, tokens, keys.data(), tokens);
  const auto cos = keys.topRows(half).transpose().array();
  const auto sin = keys.bottomRows(half).transpose().array();
  RowMatrix turns(tokens, 3 * half);
  turns << (cos * cos).matrix(), (sin * sin).matrix(), (2 * sin * cos).matrix();
  return turns;
}

// sum [D] += (R_n^T q)_c^2 over the queries of a head and all tokens n, row t
// of `weights` [T, T] saying how much each token counts for query t:
//   (R_n^T q)_a^2 = cos^2 q_a^2 + sin^2 q_b^2 + 2 sin cos q_a q_b
//   (R_n^T q)_b^2 = cos^2 q_b^2 + sin^2 q_a^2 - 2 sin cos q_a q_b
void AddBeforeRope(const HeadRows& queries, const RowMatrix& weights,
                   const RowMatrix& turns, double* sum) {
  const int64_t half = queries.cols() / 2;
  const RowMatrix turned = weights * turns;
  const auto a = queries.leftCols(half).array();
  const auto b = queries.rightCols(half).array();
  const auto cos2 = turned.leftCols(half).array();
  const auto sin2 = turned.middleCols(half, half).array();
  const auto cross = turned.rightCols(half).array() * a * b;
  const auto add = [](const auto& squares, double* to) {
    Eigen::Map<Eigen::RowVectorXd>(to, squares.cols()) +=
        squares.matrix().template cast<double>().colwise().sum();
  };
  add(cos2 * a * a + sin2 * b * b + cross, sum);
  add(cos2 * b * b + sin2 * a * a - cross, sum + half);
}

// Sums [G, D] relative to their mean, KV head by KV head, averaged over these.
std::vector<float> Relative(const std::vector<double>& sums, int head_dim) {
  std::vector<double> energy(head_dim);
  for (auto head = sums.begin(); head < sums.end(); head += head_dim) {
    const double total = std::accumulate(head, head + head_dim, 0.0);
    if (total <= 0) continue;
    for (int c = 0; c < head_dim; ++c)
      energy[c] += head[c] / total * head_dim * head_dim /
                   static_cast<double>(sums.size());
  }
  return {energy.begin(), energy.end()};
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
        KVMIX_RETURN_IF_ERROR(
            AddContext(Calibrate(profile.layer(l), side, *format),
                       absl::StrCat("layer ", l)));
      }
    }
  }
  return absl::OkStatus();
}

SignalSet QueryEnergy::RequiredSignals() const {
  return {Signal::kQueryStates, Signal::kKeyStates};
}

absl::Status QueryEnergy::Start(const ProfileContext& context) {
  after_rope_.assign(context.num_layers, {});
  before_rope_.assign(context.num_layers, {});
  head_dim_ = context.head_dim;
  return absl::OkStatus();
}

absl::Status QueryEnergy::Observe(const LayerTrace& trace) {
  KVMIX_CHECK(trace.key_rotation != nullptr);
  std::vector<double>& after = after_rope_[trace.layer];
  std::vector<double>& before = before_rope_[trace.layer];
  after.resize(static_cast<size_t>(trace.num_kv_heads) * head_dim_);
  before.resize(after.size());
  const RowMatrix turns =
      Turns(*trace.key_rotation, trace.num_tokens, head_dim_);
  for (int head = 0; head < trace.num_heads; ++head) {
    const HeadRows queries = RowsOfHead(trace.query_states, trace.num_tokens,
                                        trace.num_heads, head_dim_, head);
    const int64_t at = int64_t{KvHeadOf(trace, head)} * head_dim_;
    Eigen::Map<Eigen::RowVectorXd>(after.data() + at, head_dim_) +=
        queries.cast<double>().colwise().squaredNorm();
    AddBeforeRope(queries, CausalWeights(trace, trace.key_states, head), turns,
                  before.data() + at);
  }
  return absl::OkStatus();
}

absl::StatusOr<ImportanceProfile> QueryEnergy::Finish() {
  ImportanceProfile profile;
  for (size_t l = 0; l < after_rope_.size(); ++l) {
    LayerImportance& layer = *profile.add_layer();
    const std::vector<float> after = Relative(after_rope_[l], head_dim_);
    const std::vector<float> before = Relative(before_rope_[l], head_dim_);
    layer.mutable_query_energy()->Assign(after.begin(), after.end());
    layer.mutable_query_energy_before_rope()->Assign(before.begin(),
                                                     before.end());
  }
  return profile;
}

}  // namespace kvmix
