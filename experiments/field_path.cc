#include "experiments/field_path.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "experiments/components.h"
#include "experiments/text_proto.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/text_format.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

using google::protobuf::Any;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

struct Segment {
  std::string name;
  int index = -1;  // -1: not given
};

absl::StatusOr<std::vector<Segment>> ParsePath(absl::string_view path) {
  std::vector<Segment> segments;
  for (absl::string_view part : absl::StrSplit(path, '.')) {
    Segment segment;
    const size_t bracket = part.find('[');
    segment.name = std::string(part.substr(0, bracket));
    if (bracket != absl::string_view::npos) {
      absl::string_view index = part.substr(bracket + 1);
      if (!absl::ConsumeSuffix(&index, "]") ||
          !absl::SimpleAtoi(index, &segment.index) || segment.index < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("\"", part, "\" in path \"", path,
                         "\" is not a field or field[index]"));
      }
    }
    if (segment.name.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("path \"", path, "\" has an empty field name"));
    }
    segments.push_back(std::move(segment));
  }
  return segments;
}

std::string FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i)
    names.push_back(type.field(i)->name());
  return names.empty() ? "none" : absl::StrJoin(names, ", ");
}

absl::StatusOr<const FieldDescriptor*> FindField(const std::string& name,
                                                 const Message& message) {
  const Descriptor& type = *message.GetDescriptor();
  const FieldDescriptor* field = type.FindFieldByName(name);
  if (field != nullptr) return field;
  return absl::InvalidArgumentError(
      absl::StrCat(type.full_name(), " has no field \"", name,
                   "\"; its fields: ", FieldNames(type)));
}

// The element of a repeated field that a segment means. `grow`: [size] appends.
absl::StatusOr<int> ElementIndex(const Segment& segment,
                                 const FieldDescriptor& field,
                                 Message& message) {
  const int size = message.GetReflection()->FieldSize(message, &field);
  int index = segment.index;
  if (index < 0) {
    if (size > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(segment.name, " has ", size, " elements; say which, as ",
                       segment.name, "[0]"));
    }
    index = 0;
  }
  if (index > size) {
    return absl::InvalidArgumentError(absl::StrCat(
        segment.name, "[", index, "] does not exist: ", segment.name, " has ",
        size, " elements"));
  }
  return index;
}

absl::Status ReplaceMessage(absl::string_view value, Message& target) {
  target.Clear();
  const absl::string_view text = absl::StripAsciiWhitespace(value);
  if (target.GetDescriptor() == Component::descriptor() &&
      text.find_first_of("{:") == absl::string_view::npos) {
    static_cast<Component&>(target).set_name(std::string(text));
    return absl::OkStatus();
  }
  absl::string_view inner = text;
  if (absl::ConsumePrefix(&inner, "{") && !absl::ConsumeSuffix(&inner, "}")) {
    return absl::InvalidArgumentError("a \"{\" is not closed");
  }
  return ParseTextProto(inner, "value", target);
}

// "[a, b]": all elements of a repeated field.
absl::Status ReplaceElements(absl::string_view value,
                             const FieldDescriptor& field, Message& message) {
  const std::unique_ptr<Message> holder(message.New());
  KVMIX_RETURN_IF_ERROR(ParseTextProto(absl::StrCat(field.name(), ": ", value),
                                       "value", *holder));
  message.GetReflection()->SwapFields(&message, holder.get(), {&field});
  return absl::OkStatus();
}

absl::Status SetScalar(absl::string_view value, const FieldDescriptor& field,
                       int index, Message& message) {
  const auto* reflection = message.GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    if (!field.is_repeated())
      reflection->SetString(&message, &field, std::string(value));
    else if (index == reflection->FieldSize(message, &field))
      reflection->AddString(&message, &field, std::string(value));
    else
      reflection->SetRepeatedString(&message, &field, index,
                                    std::string(value));
    return absl::OkStatus();
  }
  if (field.is_repeated() && index != reflection->FieldSize(message, &field)) {
    return absl::UnimplementedError(
        absl::StrCat("a number in the middle of repeated ", field.name(),
                     " cannot be set; replace the message that holds it"));
  }
  google::protobuf::TextFormat::Parser parser;
  TextProtoErrors errors("value");
  parser.RecordErrorsTo(&errors);
  if (!field.is_repeated()) reflection->ClearField(&message, &field);
  if (!parser.ParseFieldValueFromString(std::string(value), &field, &message))
    return absl::InvalidArgumentError(errors.text());
  return absl::OkStatus();
}

absl::Status SetBelow(const std::vector<Segment>& path, size_t depth,
                      absl::string_view value, Message& message);

// Steps into the options of a component: unpacks, sets, packs again. Options
// that are not there yet start as the component's defaults.
absl::Status SetInOptions(const std::vector<Segment>& path, size_t depth,
                          absl::string_view value, Component& component) {
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Message> options,
                         UnpackOptions(component, path[depth - 1].name));
  KVMIX_RETURN_IF_ERROR(SetBelow(path, depth + 1, value, *options));
  component.mutable_options()->PackFrom(*options);
  return absl::OkStatus();
}

absl::Status SetBelow(const std::vector<Segment>& path, size_t depth,
                      absl::string_view value, Message& message) {
  const Segment& segment = path[depth];
  KVMIX_ASSIGN_OR_RETURN(const FieldDescriptor* field,
                         FindField(segment.name, message));
  const bool last = depth + 1 == path.size();
  if (last && field->is_repeated() && segment.index < 0 &&
      absl::StartsWith(value, "["))
    return ReplaceElements(value, *field, message);
  int index = -1;
  if (field->is_repeated()) {
    KVMIX_ASSIGN_OR_RETURN(index, ElementIndex(segment, *field, message));
  } else if (segment.index >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(segment.name, " is not repeated and takes no index"));
  }
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
    if (last) return SetScalar(value, *field, index, message);
    return absl::InvalidArgumentError(
        absl::StrCat(segment.name, " is no message and has no field \"",
                     path[depth + 1].name, "\""));
  }
  if (!last && field->message_type() == Any::descriptor() && depth > 0 &&
      message.GetDescriptor() == Component::descriptor()) {
    return SetInOptions(path, depth, value, static_cast<Component&>(message));
  }
  const auto* reflection = message.GetReflection();
  Message* child =
      !field->is_repeated() ? reflection->MutableMessage(&message, field)
      : index == reflection->FieldSize(message, field)
          ? reflection->AddMessage(&message, field)
          : reflection->MutableRepeatedMessage(&message, field, index);
  return last ? ReplaceMessage(value, *child)
              : SetBelow(path, depth + 1, value, *child);
}

}  // namespace

absl::Status SetField(absl::string_view path, absl::string_view value,
                      Message& message) {
  KVMIX_ASSIGN_OR_RETURN(const std::vector<Segment> segments, ParsePath(path));
  return AddContext(SetBelow(segments, 0, value, message), path);
}

absl::Status ApplyOverride(absl::string_view assignment, Message& message) {
  const size_t equals = assignment.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--set takes path=value, as seed=17; got \"", assignment, "\""));
  }
  return AddContext(SetField(assignment.substr(0, equals),
                             assignment.substr(equals + 1), message),
                    "--set");
}

}  // namespace kvmix
