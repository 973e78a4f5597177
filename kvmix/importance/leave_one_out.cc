// The oracle: how much the loss really rises when one layer's keys (values) are
// stored in a format instead of full precision, everything else alike, averaged
// over prompts. Means below 0, noise, count as 0. Needs one forward pass for
// every layer, side and format: what cheaper estimators are measured by (kvmix
// compare_estimators).
#include <memory>

#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/leave_one_out.pb.h"
#include "kvmix/importance/single_change_trials.h"

namespace kvmix {
namespace {

class LeaveOneOut final : public ImportanceEstimator {
 public:
  explicit LeaveOneOut(SingleChangeTrials::Base base) : base_(base) {}

  SignalSet RequiredSignals() const override { return {}; }
  bool NeedsFormats() const override { return true; }
  bool NeedsTrials() const override { return true; }

  absl::Status Start(const ProfileContext& context) override {
    trials_ = SingleChangeTrials(context.num_layers, *context.formats, base_,
                                 &TrialResult::loss_difference);
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace&) override { return absl::OkStatus(); }

  std::vector<CachePlan> TrialPlans() const override { return trials_.plans(); }

  absl::Status ObserveTrial(const TrialResult& result) override {
    return trials_.Observe(result);
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    return trials_.Profile("leave_one_out");
  }

 private:
  const SingleChangeTrials::Base base_;
  SingleChangeTrials trials_;
};

const bool kRegistered =
    Registry<ImportanceEstimator>::Get().Add<LeaveOneOutOptions>(
        "leave_one_out", "the oracle: rise of the loss by each single layer",
        [](const LeaveOneOutOptions& options)
            -> Registry<ImportanceEstimator>::Result {
          if (!LeaveOneOutOptions::Others_IsValid(options.others())) {
            return absl::InvalidArgumentError(
                absl::StrCat("options.others is ", options.others(),
                             " but must be FULL_PRECISION (0) or QUANTIZED "
                             "(1)"));
          }
          return std::make_unique<LeaveOneOut>(
              options.others() == LeaveOneOutOptions::QUANTIZED
                  ? SingleChangeTrials::Base::kFirstFormats
                  : SingleChangeTrials::Base::kFullPrecision);
        });

}  // namespace
}  // namespace kvmix
