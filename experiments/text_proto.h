// Textprotos with errors that say where: "file:line:column: message".
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/message.h"

namespace kvmix {

// Collects what a parser complains about.
class TextProtoErrors final : public google::protobuf::io::ErrorCollector {
 public:
  explicit TextProtoErrors(std::string file) : file_(std::move(file)) {}
  void AddError(int line, int column, const std::string& message) override;
  void AddWarning(int, int, const std::string&) override {}
  const std::string& text() const { return text_; }

 private:
  const std::string file_;
  std::string text_;
};

// `file` only names the text in errors. `message` is replaced.
absl::Status ParseTextProto(absl::string_view text, const std::string& file,
                            google::protobuf::Message& message);

absl::Status ReadTextProto(const std::string& path,
                           google::protobuf::Message& message);

// Any fields are written out readably. Equal messages give equal text.
std::string PrintTextProto(const google::protobuf::Message& message);

// With a first line that names the message type.
absl::Status WriteTextProto(const google::protobuf::Message& message,
                            const std::string& path);

}  // namespace kvmix
