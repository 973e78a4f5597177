#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/exchange/lm_eval_json.h"
#include "experiments/exchange/plan_formats.h"
#include "experiments/paths.h"
#include "experiments/text_proto.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

absl::StatusOr<std::string> ExportPlan(const std::string& file,
                                       const std::string& format) {
  CachePlan plan;
  KVMIX_RETURN_IF_ERROR(ReadTextProto(file, plan));
  if (format == "kvtuner") return KvTunerYaml(plan);
  if (format == "types") return TypeLists(plan);
  return PlanJson(plan).dump(1) + "\n";
}

absl::StatusOr<std::string> ImportPlan(const std::string& file) {
  KVMIX_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(file));
  const absl::StatusOr<ManualOptions> options = ParseKvTunerYaml(yaml);
  if (!options.ok()) return AddContext(options.status(), file);
  Component allocator;
  allocator.set_name("manual");
  allocator.mutable_options()->PackFrom(*options);
  return absl::StrCat("bit_allocator {\n", PrintTextProto(allocator), "}\n");
}

absl::StatusOr<std::string> Convert(const std::string& file,
                                    const std::string& format,
                                    const std::string& method) {
  if (format == "kvtuner" || format == "json" || format == "types")
    return ExportPlan(file, format);
  if (format == "from_kvtuner") return ImportPlan(file);
  if (format != "lm_eval") {
    return UsageError(
        "--to is one of kvtuner, json, types, lm_eval, from_kvtuner");
  }
  RunRecord record;
  KVMIX_RETURN_IF_ERROR(ReadTextProto(file, record));
  KVMIX_ASSIGN_OR_RETURN(const nlohmann::ordered_json json,
                         LmEvalJson(record, method));
  return json.dump(2) + "\n";
}

}  // namespace

absl::Status ExchangeCommand(absl::Span<const std::string> args,
                             const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix exchange FILE --to=FORMAT [flags]",
      "Writes a plan or a record as other programs read it, and theirs as a "
      "config's text:\n  kvtuner       a plan (plan_*.textproto) as KVTuner's "
      "YAML\n  json          a plan as JSON, with groups, axes, KV heads\n  "
      "types     "
      " "
      "   a plan as lists of types\n  lm_eval       a record "
      "(record.textproto) and a --method as lm-evaluation-harness's\n          "
      "      JSON\n  from_kvtuner  KVTuner's YAML as a bit_allocator for a "
      "config");
  std::string format, method, output = "/dev/stdout";
  command_line.Flag("to", &format, "what to write, see above");
  command_line.Flag("method", &method, "of a record");
  command_line.Flag("output", &output, "file to write");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 1)
    return UsageError("takes one file; see kvmix exchange --help");
  KVMIX_ASSIGN_OR_RETURN(const std::string file,
                         ResolveInputPath(arguments[0]));
  KVMIX_ASSIGN_OR_RETURN(const std::string text, Convert(file, format, method));
  return WriteFileAtomically(ResolvePath(output), text);
}

}  // namespace kvmix
