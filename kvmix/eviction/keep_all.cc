// Drops nothing: what KVmix and every other method that only quantizes does.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix {
namespace {

class KeepAll final : public EvictionPolicy {
 public:
  SignalSet RequiredSignals() const override { return {}; }
  std::vector<int64_t> TokensToDrop(const EvictionState&) const override {
    return {};
  }
};

const bool kRegistered = Registry<EvictionPolicy>::Get().Add(
    "keep_all", "drops no token",
    [](const google::protobuf::Empty&) -> Registry<EvictionPolicy>::Result {
      return std::make_unique<KeepAll>();
    });

}  // namespace
}  // namespace kvmix
