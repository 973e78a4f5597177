#include "experiments/components.h"

#include "absl/strings/str_cat.h"
#include "experiments/tasks/task.h"
#include "google/protobuf/any.pb.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/base/registry.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/recency/recency_policy.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

template <typename Interface>
ComponentKind Kind(const char* field) {
  ComponentKind kind{field, {}};
  for (const auto& [name, entry] : Registry<Interface>::Get().entries())
    kind.components.push_back({name, entry.summary, entry.options});
  return kind;
}

absl::StatusOr<ComponentDescription> Find(const Component& component,
                                          absl::string_view kind) {
  for (const ComponentKind& linked : LinkedComponents()) {
    if (linked.field != kind) continue;
    std::string names;
    for (const ComponentDescription& c : linked.components) {
      if (c.name == component.name()) return c;
      absl::StrAppend(&names, names.empty() ? "" : ", ", c.name);
    }
    return absl::NotFoundError(
        absl::StrCat(kind, " \"", component.name(),
                     "\" is not linked into this binary; linked: ", names));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(kind, " is not a kind of component"));
}

}  // namespace

std::vector<ComponentKind> LinkedComponents() {
  return {Kind<ImportanceEstimator>("importance_estimator"),
          Kind<BitAllocator>("bit_allocator"),
          Kind<Quantizer>("quantizer"),
          Kind<RecencyPolicy>("recency_policy"),
          Kind<EvictionPolicy>("eviction_policy"),
          Kind<Task>("task")};
}

absl::StatusOr<std::unique_ptr<google::protobuf::Message>> UnpackOptions(
    const Component& component, absl::string_view kind) {
  KVMIX_ASSIGN_OR_RETURN(const ComponentDescription found,
                         Find(component, kind));
  std::unique_ptr<google::protobuf::Message> options(
      google::protobuf::MessageFactory::generated_factory()
          ->GetPrototype(found.options)
          ->New());
  if (component.has_options() && !component.options().UnpackTo(options.get())) {
    return absl::InvalidArgumentError(
        absl::StrCat(kind, " \"", component.name(), "\" takes options of type ",
                     found.options->full_name(), " but has ",
                     component.options().type_url()));
  }
  return options;
}

}  // namespace kvmix
