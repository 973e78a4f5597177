// The kinds of component that methods and datasets are made of, by the name of
// the config field that holds them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "kvmix/base/component.pb.h"

namespace kvmix {

struct ComponentDescription {
  std::string name;
  std::string summary;
  const google::protobuf::Descriptor* options;  // Empty: takes none
};

struct ComponentKind {
  std::string field;  // "bit_allocator"
  std::vector<ComponentDescription> components;
};

// All kinds, with every component that is linked into this binary.
std::vector<ComponentKind> LinkedComponents();

// A component's options as a message of its type; defaults where none are
// given. Errors: an unknown kind or name, options of another type.
absl::StatusOr<std::unique_ptr<google::protobuf::Message>> UnpackOptions(
    const Component& component, absl::string_view kind);

}  // namespace kvmix
