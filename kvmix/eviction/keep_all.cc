// Drops nothing: what KVmix and every other method that only quantizes does.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix {
namespace {

class KeepAll final : public EvictionPolicy {
 public:
  bool evicts() const override { return false; }
  bool WouldDrop(const EvictionState&) const override { return false; }
  std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const override {
    return std::vector<TokenList>(state.heads.size());
  }
};

const bool kRegistered = Registry<EvictionPolicy>::Get().Add(
    "keep_all", "drops no token",
    [](const google::protobuf::Empty&) -> Registry<EvictionPolicy>::Result {
      return std::make_unique<KeepAll>();
    });

}  // namespace
}  // namespace kvmix
