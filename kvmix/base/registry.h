// Registry<Interface>: the components of one kind that are linked into this
// binary, by name.
//
// A component registers itself in the last lines of its own .cc file:
//   const bool kRegistered =
//       Registry<ImportanceEstimator>::Get().Add<GradientNormOptions>(
//           "gradient_norm", "norm of the loss gradient ...",
//           [](const GradientNormOptions& options) {...});
// Name, options type and summary are all that the registry knows of it. A
// component without options leaves the template argument out and is handed a
// google.protobuf.Empty.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/empty.pb.h"
#include "kvmix/base/check.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

template <typename Interface>
class Registry {
 public:
  using Result = absl::StatusOr<std::unique_ptr<Interface>>;

  struct Entry {
    std::string summary;
    const google::protobuf::Descriptor*
        options;  // google.protobuf.Empty: the component takes none
    std::function<Result(const Component&)> make;
  };

  static Registry& Get() {
    static auto* registry = new Registry;
    return *registry;
  }

  // `make` takes `const Options&` and returns Result. Adding a name twice is a
  // bug and aborts.
  template <typename Options = google::protobuf::Empty, typename Make>
  bool Add(const std::string& name, const std::string& summary, Make make) {
    Entry entry{
        summary, Options::descriptor(),
        [make](const Component& component) -> Result {
          Options options;
          if (component.has_options() &&
              !component.options().UnpackTo(&options)) {
            return absl::InvalidArgumentError(absl::StrCat(
                "options of \"", component.name(), "\" are not a readable ",
                Options::descriptor()->full_name()));
          }
          return make(options);
        }};
    const bool added = entries_.emplace(name, std::move(entry)).second;
    KVMIX_CHECK(added) << "component \"" << name << "\" is registered twice";
    return added;
  }

  // `kind` is the config field that names the component, for messages:
  // "importance_estimator".
  Result Make(const Component& component, absl::string_view kind) const {
    auto it = entries_.find(component.name());
    if (it == entries_.end()) {
      return absl::NotFoundError(absl::StrCat(
          kind, " \"", component.name(),
          "\" is not linked into this binary; linked: ",
          entries_.empty() ? "none" : absl::StrJoin(Names(), ", ")));
    }
    if (component.has_options()) {
      const std::string& url = component.options().type_url();
      const std::string given = url.substr(url.rfind('/') + 1);
      if (given != it->second.options->full_name()) {
        return absl::InvalidArgumentError(
            absl::StrCat(kind, " \"", component.name(), "\" takes ",
                         TakesOptions(it->second)
                             ? absl::StrCat("options of type ",
                                            it->second.options->full_name())
                             : "no options",
                         " but the config gives ", given));
      }
    }
    Result made = it->second.make(component);
    if (!made.ok())
      return AddContext(made.status(),
                        absl::StrCat(kind, " \"", component.name(), "\""));
    return made;
  }

  static bool TakesOptions(const Entry& entry) {
    return entry.options != google::protobuf::Empty::descriptor();
  }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries_) names.push_back(name);
    return names;
  }

  const std::map<std::string, Entry>& entries() const { return entries_; }

 private:
  std::map<std::string, Entry> entries_;
};

}  // namespace kvmix
