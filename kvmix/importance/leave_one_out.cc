// The oracle: how much the loss really rises when one layer's keys (values) are
// stored in a format instead of full precision, everything else alike, averaged
// over prompts. Means below 0, noise, count as 0. Needs one forward pass for
// every layer, side and format: what cheaper estimators are measured by (kvmix
// compare_estimators).
#include <memory>

#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/importance/leave_one_out.pb.h"
#include "kvmix/importance/trial_estimator.h"

namespace kvmix {
namespace {

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
          return std::make_unique<TrialEstimator>(
              "leave_one_out",
              options.others() == LeaveOneOutOptions::QUANTIZED
                  ? SingleChangeTrials::Base::kFirstFormats
                  : SingleChangeTrials::Base::kFullPrecision,
              &TrialResult::loss_difference);
        });

}  // namespace
}  // namespace kvmix
