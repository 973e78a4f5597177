// Sets one field of a message by its path, as the command line's --set does:
//
//   seed=17
//   method[2].bit_allocator.options.high_fraction=0.3
//   importance_estimator=random            a component without options
//   bit_allocator={ name: "uniform" options {...} }
//   dataset=[{ path: "a.txt" }, { path: "b.txt" }]   all elements of a list
//
// A path steps through messages, into repeated fields by [index] (an index may
// be left out where there is one element, and [size] appends one), and through
// the Any of a component's options. A message is replaced whole, never merged:
// an Any would keep its old bytes.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace kvmix {

// Errors name the part of the path that does not fit and what would.
absl::Status SetField(absl::string_view path, absl::string_view value,
                      google::protobuf::Message& message);

// "path=value".
absl::Status ApplyOverride(absl::string_view assignment,
                           google::protobuf::Message& message);

}  // namespace kvmix
