// Bits chosen by hand, layer by layer, or KV head by KV head:
//   entry { layers: "0-3,7" bits { key_bits: 4 value_bits: 4 } }
//   entry { layers: "5" heads: "0" bits { key_bits: 8 value_bits: 4 } }
//   other_layers { key_bits: 2 value_bits: 2 }
// With other_layers of 16 bits only the named layers are compressed: the way to
// adopt compression in steps. Every layer gets its bits exactly once.
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/manual.pb.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/base/registry.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

struct Range {
  int first = 0;
  int last = 0;  // included
};

// "7" or "0-3".
absl::StatusOr<Range> ParseRange(absl::string_view text, const char* what,
                                 int count) {
  const std::pair<absl::string_view, absl::string_view> ends =
      absl::StrSplit(text, absl::MaxSplits('-', 1));
  Range range;
  if (!absl::SimpleAtoi(ends.first, &range.first) ||
      !absl::SimpleAtoi(absl::StrContains(text, "-") ? ends.second : ends.first,
                        &range.last) ||
      range.first > range.last) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a ", what, " or a range of ", what,
                     "s as \"7\" or \"0-3\""));
  }
  if (range.first < 0 || range.last >= count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", text, "\" is outside of the model's ", what, "s 0-", count - 1));
  }
  return range;
}

// "0-3,7" as numbers. Errors begin with the field.
absl::StatusOr<std::vector<int>> ParseRanges(const std::string& text,
                                             const std::string& field,
                                             const char* what, int count) {
  std::vector<int> numbers;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::StatusOr<Range> range =
        ParseRange(absl::StripAsciiWhitespace(part), what, count);
    if (!range.ok()) return AddContext(range.status(), field);
    for (int i = range->first; i <= range->last; ++i) numbers.push_back(i);
  }
  return numbers;
}

PartBits ToPartBits(const ManualOptions::Bits& bits) {
  return {.key = bits.key_bits(), .value = bits.value_bits()};
}

absl::Status ValidateBits(const ManualOptions::Bits& bits,
                          absl::string_view field) {
  if (bits.key_bits() > 0 && bits.value_bits() > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " has key_bits ", bits.key_bits(), " and value_bits ",
      bits.value_bits(), " but both must be positive; 16 is full precision"));
}

std::string NameOf(int part, const AllocationContext& context) {
  const int parts = context.parts_of_layer();
  return LayerName(part / parts, part % parts, parts);
}

// The parts that the entry names, in order.
absl::StatusOr<std::vector<int>> PartsOf(const ManualOptions::Entry& entry,
                                         const std::string& field,
                                         const AllocationContext& context) {
  const int parts = context.parts_of_layer();
  KVMIX_ASSIGN_OR_RETURN(const std::vector<int> layers,
                         ParseRanges(entry.layers(), field + ".layers", "layer",
                                     context.num_layers));
  std::vector<int> heads(parts);
  std::iota(heads.begin(), heads.end(), 0);
  if (!entry.heads().empty()) {
    KVMIX_ASSIGN_OR_RETURN(
        heads, ParseRanges(entry.heads(), field + ".heads", "KV head", parts));
  }
  std::vector<int> all;
  for (int layer : layers) {
    for (int head : heads) all.push_back(layer * parts + head);
  }
  return all;
}

class ManualBits final : public BitAllocator {
 public:
  explicit ManualBits(const ManualOptions& options) : options_(options) {}

  bool NeedsProfile() const override { return false; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile&, const AllocationContext& given) const override {
    AllocationContext context = given;
    for (const ManualOptions::Entry& entry : options_.entry())
      if (!entry.heads().empty()) context.granularity = CachePlan::HEAD;
    std::vector<PartBits> bits(context.num_parts());
    for (int e = 0; e < options_.entry_size(); ++e) {
      const ManualOptions::Entry& entry = options_.entry(e);
      const std::string field = absl::StrCat("options.entry[", e, "]");
      KVMIX_ASSIGN_OR_RETURN(const std::vector<int> parts,
                             PartsOf(entry, field, context));
      for (int part : parts) {
        if (bits[part].key != 0) {
          return absl::InvalidArgumentError(
              absl::StrCat(field, ".layers: layer ", NameOf(part, context),
                           " is named twice"));
        }
        bits[part] = ToPartBits(entry.bits());
      }
    }
    for (int part = 0; part < context.num_parts(); ++part) {
      if (bits[part].key != 0) continue;
      if (!options_.has_other_layers()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "no options.entry names layer ", NameOf(part, context),
            "; every layer must have bits; name it or set other_layers"));
      }
      bits[part] = ToPartBits(options_.other_layers());
    }
    return PlanFromBits(bits, context);
  }

 private:
  const ManualOptions options_;
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<ManualOptions>(
    "manual", "bits chosen by hand for each layer, or KV head",
    [](const ManualOptions& options) -> Registry<BitAllocator>::Result {
      for (int e = 0; e < options.entry_size(); ++e) {
        KVMIX_RETURN_IF_ERROR(
            ValidateBits(options.entry(e).bits(),
                         absl::StrCat("options.entry[", e, "].bits")));
      }
      if (options.has_other_layers()) {
        KVMIX_RETURN_IF_ERROR(
            ValidateBits(options.other_layers(), "options.other_layers"));
      }
      return std::make_unique<ManualBits>(options);
    });

}  // namespace
}  // namespace kvmix
