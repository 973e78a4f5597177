// Control: the same bits for every layer. With 16 bits it is the full-precision
// baseline.
#include <memory>
#include <vector>

#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/allocation/uniform.pb.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

class UniformBits final : public BitAllocator {
 public:
  explicit UniformBits(const PartBits& bits) : bits_(bits) {}

  bool NeedsProfile() const override { return false; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile&,
      const AllocationContext& context) const override {
    return PlanFromBits(std::vector<PartBits>(context.num_parts(), bits_),
                        context);
  }

 private:
  const PartBits bits_;
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<UniformOptions>(
    "uniform", "the same bits for every layer",
    [](const UniformOptions& options) -> Registry<BitAllocator>::Result {
      return std::make_unique<UniformBits>(PartBits{
          .key = options.key_bits() == 0 ? 2 : options.key_bits(),
          .value = options.value_bits() == 0 ? 2 : options.value_bits()});
    });

}  // namespace
}  // namespace kvmix
