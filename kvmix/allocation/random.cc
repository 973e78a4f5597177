// Control: formats drawn at random within a budget. Starts from the cheapest
// formats and lets a random layer's keys or values take the next dearer format,
// until none fits; what is left of the budget is less than the cheapest step. A
// function of the experiment's seed alone.
#include "kvmix/base/random.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/choice_table.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

// The cheapest choice of an item that is dearer than `chosen`, -1 if there is
// none.
int NextDearer(const std::vector<Choice>& item, int chosen) {
  int next = -1;
  for (int c = 0; c < static_cast<int>(item.size()); ++c) {
    if (item[c].bytes > item[chosen].bytes &&
        (next < 0 || item[c].bytes < item[next].bytes))
      next = c;
  }
  return next;
}

class RandomBits final : public BitAllocator {
 public:
  bool NeedsProfile() const override { return false; }
  bool KeepsBudget() const override { return true; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile&,
      const AllocationContext& context) const override {
    KVMIX_ASSIGN_OR_RETURN(const ChoiceTable table, BytesOfChoices(context));
    std::vector<int> chosen = CheapestChoices(table);
    int64_t room = context.budget_bytes - BytesOf(table, chosen);
    constexpr uint64_t kStream = (uint64_t{1} << 48) + (uint64_t{1} << 40);
    CounterRandom random(context.seed, kStream);
    std::vector<int> open;  // items whose next step fits
    const auto step_bytes = [&](int item) {
      const int next = NextDearer(table[item], chosen[item]);
      return next < 0
                 ? -1
                 : table[item][next].bytes - table[item][chosen[item]].bytes;
    };
    while (true) {
      open.clear();
      for (int i = 0; i < static_cast<int>(table.size()); ++i) {
        const int64_t bytes = step_bytes(i);
        if (bytes >= 0 && bytes <= room) open.push_back(i);
      }
      if (open.empty()) return PlanFromChoices(chosen, context);
      const int item = open[random.Below(open.size())];
      room -= step_bytes(item);
      chosen[item] = NextDearer(table[item], chosen[item]);
    }
  }
};

const bool kRegistered = Registry<BitAllocator>::Get().Add(
    "random", "control: formats drawn at random within a budget",
    [](const google::protobuf::Empty&) -> Registry<BitAllocator>::Result {
      return std::make_unique<RandomBits>();
    });

}  // namespace
}  // namespace kvmix
