// The mean L2 norm of a layer's values, for keys and values alike: what a wrong
// attention weight, or a wrong value, adds to the output grows with them.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/mean_norm.h"

namespace kvmix {
namespace {

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "value_norm", "mean L2 norm of the values",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<MeanNorm>("value_norm", Side::kValue);
    });

}  // namespace
}  // namespace kvmix
