#include "experiments/runtime_flags.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"

namespace kvmix {
namespace {

// "float32, bfloat16"
std::string Names(const google::protobuf::EnumDescriptor& type) {
  std::string names;
  for (int i = 0; i < type.value_count(); ++i) {
    absl::StrAppend(&names, i > 0 ? ", " : "",
                    absl::AsciiStrToLower(type.value(i)->name()));
  }
  return names;
}

absl::Status IsNoneOf(const char* flag, const std::string& value,
                      const google::protobuf::EnumDescriptor& type) {
  return UsageError(absl::StrCat("--", flag, " does not take the value \"",
                                 value, "\"; it is one of ", Names(type)));
}

}  // namespace

void ComputeFlag::AddTo(CommandLine& command_line) {
  command_line.Flag("compute", &value,
                    absl::StrCat("numbers of linear layers: ",
                                 Names(*ModelSource::Compute_descriptor())));
}

absl::Status ComputeFlag::Apply(ModelSource& source) const {
  ModelSource::Compute compute;
  if (!ModelSource::Compute_Parse(absl::AsciiStrToUpper(value), &compute))
    return IsNoneOf("compute", value, *ModelSource::Compute_descriptor());
  source.set_compute(compute);
  return absl::OkStatus();
}

void DeviceFlag::AddTo(CommandLine& command_line) {
  command_line.Flag("device", &value,
                    absl::StrCat("what computes: ",
                                 Names(*ModelSource::Device_descriptor())));
}

absl::Status DeviceFlag::Apply(ModelSource& source) const {
  ModelSource::Device device;
  if (!ModelSource::Device_Parse(absl::AsciiStrToUpper(value), &device))
    return IsNoneOf("device", value, *ModelSource::Device_descriptor());
  source.set_device(device);
  return absl::OkStatus();
}

void ArithmeticFlag::AddTo(CommandLine& command_line) {
  command_line.Flag(
      "arithmetic", &value,
      absl::StrCat("of decode attention over packed codes: ",
                   Names(*AttentionConfig::Arithmetic_descriptor())));
}

absl::Status ArithmeticFlag::Apply(ModelSource& source) const {
  AttentionConfig::Arithmetic arithmetic;
  if (!AttentionConfig::Arithmetic_Parse(absl::AsciiStrToUpper(value),
                                         &arithmetic)) {
    return IsNoneOf("arithmetic", value,
                    *AttentionConfig::Arithmetic_descriptor());
  }
  source.set_attention_arithmetic(arithmetic);
  return absl::OkStatus();
}

}  // namespace kvmix
