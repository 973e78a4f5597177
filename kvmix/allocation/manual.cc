// Bits chosen by hand, layer by layer:
//   entry { layers: "0-3,7" bits { key_bits: 4 value_bits: 4 } }
//   other_layers { key_bits: 2 value_bits: 2 }
// With other_layers of 16 bits only the named layers are compressed: the way to
// adopt compression in steps. Every layer gets its bits exactly once.
#include <memory>
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

namespace kvmix {
namespace {

struct LayerRange {
  int first = 0;
  int last = 0;  // included
};

// "7" or "0-3".
absl::StatusOr<LayerRange> ParseRange(absl::string_view text, int num_layers) {
  const std::pair<absl::string_view, absl::string_view> ends =
      absl::StrSplit(text, absl::MaxSplits('-', 1));
  LayerRange range;
  if (!absl::SimpleAtoi(ends.first, &range.first) ||
      !absl::SimpleAtoi(absl::StrContains(text, "-") ? ends.second : ends.first,
                        &range.last) ||
      range.first > range.last) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a layer or a range of layers as ",
                     "\"7\" or \"0-3\""));
  }
  if (range.first < 0 || range.last >= num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", text, "\" is outside of the model's layers 0-", num_layers - 1));
  }
  return range;
}

LayerBits ToLayerBits(const ManualOptions::Bits& bits) {
  return {.key = bits.key_bits(), .value = bits.value_bits()};
}

absl::Status ValidateBits(const ManualOptions::Bits& bits,
                          absl::string_view field) {
  if (bits.key_bits() > 0 && bits.value_bits() > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " has key_bits ", bits.key_bits(), " and value_bits ",
      bits.value_bits(), " but both must be positive; 16 is full precision"));
}

// Gives the entry's bits to its layers, none of which may have any yet.
absl::Status AddEntry(const ManualOptions::Entry& entry,
                      std::vector<LayerBits>& layers) {
  for (absl::string_view text : absl::StrSplit(entry.layers(), ',')) {
    KVMIX_ASSIGN_OR_RETURN(const LayerRange range,
                           ParseRange(absl::StripAsciiWhitespace(text),
                                      static_cast<int>(layers.size())));
    for (int i = range.first; i <= range.last; ++i) {
      if (layers[i].key != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("layer ", i, " is named twice"));
      }
      layers[i] = ToLayerBits(entry.bits());
    }
  }
  return absl::OkStatus();
}

class ManualBits final : public BitAllocator {
 public:
  explicit ManualBits(const ManualOptions& options) : options_(options) {}

  bool NeedsProfile() const override { return false; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile&,
      const AllocationContext& context) const override {
    std::vector<LayerBits> layers(context.num_layers);
    for (int e = 0; e < options_.entry_size(); ++e) {
      KVMIX_RETURN_IF_ERROR(
          AddContext(AddEntry(options_.entry(e), layers),
                     absl::StrCat("options.entry[", e, "].layers")));
    }
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i].key != 0) continue;
      if (!options_.has_other_layers()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "no options.entry names layer ", i,
            "; every layer must have bits; name it or set other_layers"));
      }
      layers[i] = ToLayerBits(options_.other_layers());
    }
    return PlanFromBits(layers, context);
  }

 private:
  const ManualOptions options_;
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<ManualOptions>(
    "manual", "bits chosen by hand for each layer",
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
