#include "experiments/text_proto.h"

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/text_format.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

void TextProtoErrors::AddError(int line, int column,
                               const std::string& message) {
  if (!text_.empty()) text_ += "\n";
  absl::StrAppend(&text_, file_, ":", line + 1, ":", column + 1, ": ", message);
  if (absl::StartsWith(message, "Could not find type")) {
    text_ += "; its target is not linked into this binary";
  }
}

absl::Status ParseTextProto(absl::string_view text, const std::string& file,
                            google::protobuf::Message& message) {
  google::protobuf::TextFormat::Parser parser;
  TextProtoErrors errors(file);
  parser.RecordErrorsTo(&errors);
  if (parser.ParseFromString(std::string(text), &message))
    return absl::OkStatus();
  return absl::InvalidArgumentError(errors.text());
}

absl::Status ReadTextProto(const std::string& path,
                           google::protobuf::Message& message) {
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseTextProto(text, path, message);
}

std::string PrintTextProto(const google::protobuf::Message& message) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetExpandAny(true);
  printer.SetUseShortRepeatedPrimitives(true);
  std::string text;
  printer.PrintToString(message, &text);
  return text;
}

absl::Status WriteTextProto(const google::protobuf::Message& message,
                            const std::string& path) {
  return WriteFileAtomically(
      path,
      absl::StrCat("# proto-message: ", message.GetDescriptor()->full_name(),
                   "\n", PrintTextProto(message)));
}

}  // namespace kvmix
