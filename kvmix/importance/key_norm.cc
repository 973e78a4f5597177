// The mean L2 norm of a layer's keys, for keys and values alike: the
// quantization error of keys grows with them, and with it the error of the
// attention's scores (KV-AdaQuant, arXiv 2502.15075, gives keys more bits by
// norms).
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/mean_norm.h"

namespace kvmix {
namespace {

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "key_norm", "mean L2 norm of the keys",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<MeanNorm>("key_norm", Side::kKey);
    });

}  // namespace
}  // namespace kvmix
