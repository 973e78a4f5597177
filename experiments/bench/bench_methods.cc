#include "experiments/bench/bench_methods.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "experiments/experiment.pb.h"
#include "experiments/paths.h"
#include "experiments/stages.h"
#include "experiments/text_proto.h"
#include "kvmix/base/check.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

// The KVmix rows of the paper's tables: keys in words of eleven 3-bit codes
// where a layer gets 3 bits.
struct NamedPlan {
  const char* name;
  const char* meaning;
  const char* bit_allocator;
  const char* packing;
};
constexpr char kUniform2[] =
    "name: 'uniform' options { [type.googleapis.com/kvmix.UniformOptions] { "
    "key_bits: 2 value_bits: 2 } }";
constexpr char kTop20[] =
    "name: 'top_fraction' options { "
    "[type.googleapis.com/kvmix.TopFractionOptions] { high_fraction: 0.2 } }";
constexpr char kTop30[] =
    "name: 'top_fraction' options { "
    "[type.googleapis.com/kvmix.TopFractionOptions] { high_fraction: 0.3 } }";
constexpr std::array<NamedPlan, 5> kNamedPlans = {{
    {"kvmix",
     "as published: 20 % of the layers at K3 (words of eleven) V4, the others "
     "at 2 bits",
     kTop20, "KVMIX_3BIT_11"},
    {"k2.19v2.38", "the same, by the paper's name of it for 32 layers", kTop20,
     "KVMIX_3BIT_11"},
    {"k2.28v2.56", "the same with 30 % of the layers", kTop30, "KVMIX_3BIT_11"},
    {"kvmix-dense", "kvmix with dense 3-bit codes", kTop20, "DENSE"},
    {"kvmix-2bit", "KVmix with 2 bits in every layer", kUniform2, "DENSE"},
}};

Method KvmixMethod(const NamedPlan& plan) {
  Method method;
  const absl::Status parsed = ParseTextProto(
      absl::StrFormat(
          "importance_estimator { name: 'random' } bit_allocator { %s } "
          "quantizer { name: 'group_affine' options { "
          "[type.googleapis.com/kvmix.GroupAffineOptions] { key { three_bit: "
          "%s } } } } recency_policy { name: 'pivotal_context' } "
          "eviction_policy { name: 'keep_all' }",
          plan.bit_allocator, plan.packing),
      plan.name, method);
  KVMIX_CHECK(parsed.ok()) << parsed;
  return method;
}

// "4bit_g32", or "4bit_token_g32": keys and values alike, in groups of
// `group`.
struct UniformName {
  int bits = 0;
  int group = 0;
  bool keys_per_token = false;
};
bool ParseUniform(absl::string_view name, UniformName& parsed) {
  const size_t bits_end = name.find("bit_");
  if (bits_end == absl::string_view::npos ||
      !absl::SimpleAtoi(name.substr(0, bits_end), &parsed.bits))
    return false;
  name.remove_prefix(bits_end + 4);
  parsed.keys_per_token = absl::ConsumePrefix(&name, "token_");
  return absl::ConsumePrefix(&name, "g") &&
         absl::SimpleAtoi(name, &parsed.group) && parsed.bits >= 1 &&
         parsed.bits <= 8 &&
         (parsed.group == 32 || parsed.group == 64 || parsed.group == 128);
}

Method UniformMethod(const UniformName& name) {
  // A per-token format packs every token at once; a per-channel one waits until
  // a group is full, as KIVI does.
  const std::string recency =
      name.keys_per_token
          ? "name: 'none'"
          : absl::StrFormat(
                "name: 'residual_window' options { "
                "[type.googleapis.com/kvmix.ResidualWindowOptions] { tokens: "
                "%d } }",
                name.group);
  Method method;
  const absl::Status parsed = ParseTextProto(
      absl::StrFormat(
          "bit_allocator { name: 'uniform' options { "
          "[type.googleapis.com/kvmix.UniformOptions] { key_bits: %d "
          "value_bits: %d } } } quantizer { name: 'group_affine' options { "
          "[type.googleapis.com/kvmix.GroupAffineOptions] { key { axis: %s "
          "group_size: %d } value { group_size: %d } } } } recency_policy { %s "
          "} eviction_policy { name: 'keep_all' }",
          name.bits, name.bits,
          name.keys_per_token ? "PER_TOKEN" : "PER_CHANNEL", name.group,
          name.group, recency),
      "uniform", method);
  KVMIX_CHECK(parsed.ok()) << parsed;
  return method;
}

absl::StatusOr<Method> PlanFileMethod(absl::string_view path) {
  Method method;
  KVMIX_ASSIGN_OR_RETURN(const std::string file,
                         ResolveInputPath(std::string(path)));
  KVMIX_RETURN_IF_ERROR(ReadTextProto(file, *method.mutable_plan()));
  method.mutable_quantizer()->set_name("group_affine");
  method.mutable_eviction_policy()->set_name("keep_all");
  const absl::Status parsed = ParseTextProto(
      "name: 'pivotal_context' options { "
      "[type.googleapis.com/kvmix.PivotalContextOptions] { ratio: 0 } }",
      "recency", *method.mutable_recency_policy());
  KVMIX_CHECK(parsed.ok()) << parsed;
  return method;
}

struct NamedNumbers {
  const char* name;
  CachePlan::FullPrecision type;
  const char* meaning;
};
constexpr NamedNumbers kNamedNumbers[] = {
    {"fp16", CachePlan::HALF, "half precision"},
    {"bf16", CachePlan::BFLOAT16, "bfloat16, on the CPU"},
    {"fp32", CachePlan::FLOAT, "float, on the CPU"}};

bool IsPath(absl::string_view name) {
  return absl::StrContains(name, "/") || absl::EndsWith(name, ".textproto");
}

absl::StatusOr<Method> FindMethod(absl::string_view name) {
  if (IsPath(name)) return PlanFileMethod(name);
  UniformName uniform;
  if (ParseUniform(name, uniform)) return UniformMethod(uniform);
  for (const NamedPlan& plan : kNamedPlans)
    if (name == plan.name) return KvmixMethod(plan);
  return absl::NotFoundError(
      absl::StrCat("\"", name, "\" is no way to store a cache; there are\n",
                   BenchMethodHelp()));
}

// Chance's: a benchmark has no prompts to profile.
absl::StatusOr<ImportanceProfile> RandomProfile(const CacheShape& shape) {
  Component component;
  component.set_name("random");
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<ImportanceEstimator> estimator,
      Registry<ImportanceEstimator>::Get().Make(component, "random"));
  KVMIX_RETURN_IF_ERROR(
      estimator->Start({.num_layers = shape.num_layers, .seed = 1}));
  return estimator->Finish();
}

}  // namespace

std::string BenchMethodHelp() {
  std::string help;
  const auto add = [&help](const char* name, const char* meaning) {
    absl::StrAppendFormat(&help, "  %-28s %s\n", name, meaning);
  };
  for (const NamedNumbers& numbers : kNamedNumbers)
    add(numbers.name, numbers.meaning);
  add("{1..8}bit_g{32,64,128}",
      "KIVI: keys per channel, values per token; groups, and a full-precision "
      "window, of so many");
  add("{1..8}bit_token_g{32,64,128}",
      "keys and values per token, none in full precision");
  for (const NamedPlan& plan : kNamedPlans) add(plan.name, plan.meaning);
  add("PATH.textproto", "a plan, as kvmix plan --output_file writes it");
  return help;
}

absl::StatusOr<RunnableMethod> MakeBenchMethod(absl::string_view name,
                                               const CacheShape& shape) {
  absl::StatusOr<RunnableMethod> runnable;
  const auto numbers =
      std::find_if(std::begin(kNamedNumbers), std::end(kNamedNumbers),
                   [&](const NamedNumbers& n) { return n.name == name; });
  if (numbers != std::end(kNamedNumbers)) {
    runnable = FullPrecision(shape, numbers->type);
  } else {
    KVMIX_ASSIGN_OR_RETURN(const Method method, FindMethod(name));
    KVMIX_ASSIGN_OR_RETURN(const ImportanceProfile profile,
                           RandomProfile(shape));
    runnable = Allocate(method, profile, shape, Evaluation(), /*seed=*/1);
  }
  if (!runnable.ok()) return AddContext(runnable.status(), name);
  runnable->name = std::string(name);
  return runnable;
}

}  // namespace kvmix
