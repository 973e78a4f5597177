#include "experiments/exchange/lm_eval_json.h"

#include <map>

#include "absl/strings/str_cat.h"

namespace kvmix {
namespace {

using Json = nlohmann::ordered_json;

// What lm-evaluation-harness calls a metric of ours.
std::string MetricName(const std::string& metric) {
  static const auto* kNames = new std::map<std::string, std::string>{
      {"exact match", "exact_match"},
      {"accuracy", "acc"},
      {"accuracy, normalized", "acc_norm"},
      {"F1", "f1"},
      {"ROUGE-L", "rougeL"},
      {"classification", "classification_score"},
      {"retrieval", "retrieval_score"},
      {"edit similarity", "code_sim_score"}};
  const auto at = kNames->find(metric);
  return at == kNames->end() ? metric : at->second;
}

void Add(const std::string& metric, double value, double error, Json& result) {
  result[metric + ",none"] = value;
  result[metric + "_stderr,none"] = error;
}

}  // namespace

absl::StatusOr<Json> LmEvalJson(const RunRecord& record,
                                const std::string& method) {
  std::string names;
  for (const MethodRecord& row : record.method()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", row.name());
    if (row.name() != method) continue;
    Json json = {
        {"results", Json::object()},
        {"group_subtasks", Json::object()},
        {"configs", Json::object()},
        {"versions", Json::object()},
        {"n-shot", Json::object()},
        {"higher_is_better", Json::object()},
        {"n-samples", Json::object()},
        {"config",
         {{"model", "kvmix"},
          {"model_args", absl::StrCat("pretrained=", record.model().path(),
                                      ",kv_cache=", method)},
          {"random_seed", record.seed()}}}};
    for (const DatasetRecord& dataset : row.dataset()) {
      Json result = {{"alias", dataset.name()}};
      int64_t samples = dataset.quality().windows();
      if (dataset.has_task()) {
        samples = dataset.task().samples();
        Add(MetricName(dataset.task().metric()), dataset.task().score(),
            dataset.task().score_stderr(), result);
      } else if (dataset.quality().answers().answers() > 0) {
        samples = dataset.quality().answers().answers();
        Add("acc", dataset.quality().answers().accuracy(),
            dataset.quality().answers().accuracy_stderr(), result);
      } else {
        result["word_perplexity,none"] = dataset.quality().word_perplexity();
        result["perplexity,none"] = dataset.quality().perplexity();
      }
      json["results"][dataset.name()] = std::move(result);
      json["group_subtasks"][dataset.name()] = Json::array();
      json["configs"][dataset.name()] = {{"task", dataset.name()}};
      json["versions"][dataset.name()] = 1;
      json["n-samples"][dataset.name()] = {{"original", samples},
                                           {"effective", samples}};
    }
    return json;
  }
  return absl::NotFoundError(absl::StrCat("the record has no method \"", method,
                                          "\"; it has ", names));
}

}  // namespace kvmix
