#include "experiments/report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/config.h"
#include "experiments/figure.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

using Json = nlohmann::ordered_json;

const MethodSpeed* FindSpeed(const Timings& timings,
                             const std::string& method) {
  for (const MethodSpeed& speed : timings.speed())
    if (speed.method() == method) return &speed;
  return nullptr;
}

Json AnswersJson(const AnswerQuality& answers) {
  return {{"answers", answers.answers()},
          {"accuracy", answers.accuracy()},
          {"accuracy_stderr", answers.accuracy_stderr()},
          {"accuracy_difference", answers.accuracy_difference()},
          {"accuracy_difference_stderr", answers.accuracy_difference_stderr()},
          {"nll", answers.nll()},
          {"nll_stderr", answers.nll_stderr()},
          {"nll_difference", answers.nll_difference()},
          {"nll_difference_stderr", answers.nll_difference_stderr()}};
}

Json QualityJson(const Quality& quality) {
  Json json = {{"perplexity", quality.perplexity()},
               {"perplexity_stderr", quality.perplexity_stderr()},
               {"word_perplexity", quality.word_perplexity()},
               {"kl_mean", quality.kl_mean()},
               {"kl_stderr", quality.kl_stderr()},
               {"kl_median", quality.kl_median()},
               {"kl_p99", quality.kl_p99()},
               {"top1_agreement", quality.top1_agreement()},
               {"tokens", quality.tokens()},
               {"words", quality.words()},
               {"windows", quality.windows()},
               {"nll", quality.nll()},
               {"nll_difference", quality.nll_difference()},
               {"nll_difference_stderr", quality.nll_difference_stderr()},
               {"stderr_over", quality.stderr_over()}};
  if (quality.answers().answers() > 0)
    json["answers"] = AnswersJson(quality.answers());
  return json;
}

Json SideJson(const SideBytes& side) {
  return {{"codes", side.codes()}, {"scales", side.scales()},
          {"zeros", side.zeros()}, {"side_data", side.side_data()},
          {"sinks", side.sinks()}, {"window", side.window()},
          {"slack", side.slack()}};
}

Json MemoryJson(const MethodRecord& method, const Memory& memory) {
  return {{"key_effective_bits", memory.key_effective_bits()},
          {"value_effective_bits", memory.value_effective_bits()},
          {"key_nominal_bits", method.key_nominal_bits()},
          {"value_nominal_bits", method.value_nominal_bits()},
          {"bytes", memory.bytes()},
          {"fp16_bytes", memory.fp16_bytes()},
          {"compression", memory.compression()},
          {"bytes_by_cause",
           {{"key", SideJson(memory.key())},
            {"value", SideJson(memory.value())},
            {"bookkeeping", memory.bookkeeping()}}}};
}

double Mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

Json SpeedJson(const MethodSpeed* speed) {
  if (speed == nullptr) {
    return {{"prefill_tokens_per_second", nullptr},
            {"decode_tokens_per_second", nullptr}};
  }
  return {{"prefill_tokens_per_second", speed->prefill()},
          {"prefill_low", speed->prefill_low()},
          {"prefill_high", speed->prefill_high()},
          {"decode_tokens_per_second", speed->decode()},
          {"decode_low", speed->decode_low()},
          {"decode_high", speed->decode_high()},
          {"rounds", speed->rounds()},
          {"cache_bytes", speed->cache_bytes()},
          {"device_bytes", speed->device_bytes()}};
}

Json TaskJson(const TaskQuality& task) {
  return {{"metric", task.metric()},
          {"samples", task.samples()},
          {"score", task.score()},
          {"score_stderr", task.score_stderr()},
          {"score_difference", task.score_difference()},
          {"score_difference_stderr", task.score_difference_stderr()}};
}

// What only datasets of tasks have: "task", "groups", the worst of which by the
// change of its score, or else by divergence, is "worst_group", and "places" of
// needles.
void AddTaskJson(const DatasetRecord& dataset, Json& json) {
  if (dataset.has_task()) json["task"] = TaskJson(dataset.task());
  const GroupRecord* worst = nullptr;
  for (const GroupRecord& group : dataset.group()) {
    json["groups"][group.name()] = {{"windows", group.windows()},
                                    {"quality", QualityJson(group.quality())}};
    if (group.has_task())
      json["groups"][group.name()]["task"] = TaskJson(group.task());
    const bool worse = worst == nullptr ||
                       (group.has_task() ? group.task().score_difference() <
                                               worst->task().score_difference()
                                         : group.quality().kl_mean() >
                                               worst->quality().kl_mean());
    if (worse) worst = &group;
  }
  if (worst != nullptr) json["worst_group"] = worst->name();
  for (const PlaceRecord& place : dataset.place()) {
    json["places"].push_back({{"tokens", place.tokens()},
                              {"depth", place.depth()},
                              {"answers", place.answers()},
                              {"accuracy", place.accuracy()},
                              {"nll", place.nll()}});
  }
}

Json RowJson(const MethodRecord& method, const Timings& timings) {
  const DatasetRecord& first = method.dataset(0);
  Json row = {{"method", method.name()},
              {"attention_kernels", method.attention_kernels()},
              {"why_on_host", method.why_on_host()},
              {"dataset", first.name()},
              {"quality", QualityJson(first.quality())},
              {"memory", MemoryJson(method, first.memory())},
              {"speed", SpeedJson(FindSpeed(timings, method.name()))}};
  AddTaskJson(first, row);
  row["more_datasets"] = Json::array();
  for (int i = 1; i < method.dataset_size(); ++i) {
    const DatasetRecord& dataset = method.dataset(i);
    row["more_datasets"].push_back(
        {{"dataset", dataset.name()},
         {"quality", QualityJson(dataset.quality())},
         {"memory", MemoryJson(method, dataset.memory())}});
    AddTaskJson(dataset, row["more_datasets"].back());
  }
  return row;
}

Json ProfilesJson(const Timings& timings) {
  Json profiles = Json::array();
  for (const ProfileTiming& profile : timings.profile()) {
    profiles.push_back({{"key", profile.key()},
                        {"estimator", profile.estimator()},
                        {"seconds", profile.seconds()}});
  }
  return profiles;
}

std::string Fixed(double value, int digits) {
  return absl::StrFormat("%.*f", digits, value);
}

// Three significant digits, so that 0.00012 and 5.1 both read well.
std::string Short(double value) {
  return value == 0 ? "0" : absl::StrFormat("%.3g", value);
}

// Five digits of a perplexity, however large it is.
std::string Perplexity(double value) {
  return value < 1000 ? Fixed(value, 3) : absl::StrFormat("%.5g", value);
}

std::string Bits(double effective, double nominal) {
  return absl::StrFormat("%.2f (%.2f)", effective, nominal);
}

std::string Exact(double value) { return absl::StrFormat("%.17g", value); }

void AddColumnsOfMore(const DatasetRecord& dataset, bool first,
                      std::vector<std::string>& header) {
  if (dataset.has_task()) {
    header.push_back(
        absl::StrCat(dataset.name(), " ", dataset.task().metric()));
  } else if (dataset.quality().answers().answers() > 0) {
    header.push_back(dataset.name() + " right");
    header.push_back(dataset.name() + " NLL");
  } else if (!first) {
    header.push_back(dataset.name() + " PPL");
  }
}

void AddCellsOfMore(const DatasetRecord& dataset, bool first,
                    std::vector<std::string>& row) {
  const AnswerQuality& answers = dataset.quality().answers();
  if (dataset.has_task()) {
    row.push_back(absl::StrFormat("%.1f %%", 100 * dataset.task().score()));
  } else if (answers.answers() > 0) {
    row.push_back(absl::StrFormat("%.1f %%", 100 * answers.accuracy()));
    row.push_back(Fixed(answers.nll(), 3));
  } else if (!first) {
    row.push_back(Perplexity(dataset.quality().perplexity()));
  }
}

}  // namespace

std::string MetricsJson(const ExperimentConfig& config, const RunRecord& record,
                        const Timings& timings) {
  Json json = {
      {"format", 1},
      {"name", record.name()},
      {"fingerprint", record.fingerprint()},
      {"seed", record.seed()},
      {"mode", record.mode()},
      {"model",
       {{"path", record.model().path()},
        {"fingerprint", record.model().fingerprint()},
        {"num_layers", record.model().num_layers()},
        {"num_kv_heads", record.model().num_kv_heads()},
        {"head_dim", record.model().head_dim()},
        {"weight_bytes", record.model().weight_bytes()},
        {"device", record.model().device()},
        {"compute", record.model().compute()},
        {"attention_arithmetic", record.model().attention_arithmetic()}}},
      {"build",
       {{"commit", timings.commit()},
        {"compiler", timings.compiler()},
        {"cuda_toolkit", timings.cuda_toolkit()}}},
      {"machine",
       {{"cpu", timings.cpu()},
        {"instruction_set", timings.instruction_set()},
        {"cuda_devices",
         Json(std::vector<std::string>(timings.cuda_device().begin(),
                                       timings.cuda_device().end()))},
        {"threads", timings.threads()},
        {"peak_resident_bytes", timings.peak_resident_bytes()},
        {"device_memory",
         {{"model", timings.device_memory().model()},
          {"passes", timings.device_memory().passes()},
          {"in_use", timings.device_memory().in_use()}}}}},
      {"profiles", ProfilesJson(timings)},
      {"config", ConfigText(config)}};
  json["rows"] = Json::array();
  for (const MethodRecord& method : record.method())
    json["rows"].push_back(RowJson(method, timings));
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Table SummaryTable(const RunRecord& record, const Timings& timings) {
  Table table;
  table.header = {"method", "PPL", "+-", "KL mean", "+-", "KL p99", "top-1"};
  const auto& datasets = record.method(0).dataset();
  for (int i = 0; i < datasets.size(); ++i)
    AddColumnsOfMore(datasets[i], i == 0, table.header);
  for (const char* name : {"K bits", "V bits", "memory", "compression"})
    table.header.push_back(name);
  const bool timed = timings.speed_size() > 0;
  if (timed) {
    table.header.push_back("prefill tok/s");
    table.header.push_back("decode tok/s");
  }
  for (const MethodRecord& method : record.method()) {
    const Quality& quality = method.dataset(0).quality();
    const Memory& memory = method.dataset(0).memory();
    std::vector<std::string> row = {method.name()};
    if (quality.tokens() > 0) {
      row.insert(row.end(),
                 {Perplexity(quality.perplexity()),
                  Short(quality.perplexity_stderr()), Short(quality.kl_mean()),
                  Short(quality.kl_stderr()), Short(quality.kl_p99()),
                  absl::StrFormat("%.1f %%", 100 * quality.top1_agreement())});
    } else {
      row.resize(7, "-");  // continuations: no token was scored
    }
    for (int i = 0; i < method.dataset_size(); ++i)
      AddCellsOfMore(method.dataset(i), i == 0, row);
    row.push_back(Bits(memory.key_effective_bits(), method.key_nominal_bits()));
    row.push_back(
        Bits(memory.value_effective_bits(), method.value_nominal_bits()));
    row.push_back(absl::StrFormat("%.2f MiB", memory.bytes() / (1 << 20)));
    row.push_back(absl::StrFormat("%.2fx", memory.compression()));
    if (timed) {
      const MethodSpeed* speed = FindSpeed(timings, method.name());
      row.push_back(speed ? Fixed(speed->prefill(), 0) : "-");
      row.push_back(speed ? Fixed(speed->decode(), 1) : "-");
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

Table FullTable(const RunRecord& record, const Timings& timings) {
  Table table;
  table.header = {"method",
                  "dataset",
                  "perplexity",
                  "perplexity_stderr",
                  "word_perplexity",
                  "nll",
                  "nll_difference",
                  "nll_difference_stderr",
                  "kl_mean",
                  "kl_stderr",
                  "kl_median",
                  "kl_p99",
                  "top1_agreement",
                  "tokens",
                  "windows",
                  "answers",
                  "answer_accuracy",
                  "answer_accuracy_stderr",
                  "answer_accuracy_difference",
                  "answer_accuracy_difference_stderr",
                  "answer_nll",
                  "answer_nll_stderr",
                  "answer_nll_difference",
                  "answer_nll_difference_stderr",
                  "task_metric",
                  "task_samples",
                  "task_score",
                  "task_score_stderr",
                  "task_score_difference",
                  "task_score_difference_stderr",
                  "key_effective_bits",
                  "value_effective_bits",
                  "key_nominal_bits",
                  "value_nominal_bits",
                  "bytes",
                  "fp16_bytes",
                  "compression",
                  "prefill_tokens_per_second",
                  "decode_tokens_per_second"};
  for (const MethodRecord& method : record.method()) {
    const MethodSpeed* speed = FindSpeed(timings, method.name());
    for (const DatasetRecord& dataset : method.dataset()) {
      const Quality& q = dataset.quality();
      const AnswerQuality& a = q.answers();
      const Memory& m = dataset.memory();
      std::vector<std::string> row = {method.name(), dataset.name()};
      for (double value :
           {q.perplexity(), q.perplexity_stderr(), q.word_perplexity(), q.nll(),
            q.nll_difference(), q.nll_difference_stderr(), q.kl_mean(),
            q.kl_stderr(), q.kl_median(), q.kl_p99(), q.top1_agreement()})
        row.push_back(q.tokens() > 0 ? Exact(value) : "");
      row.push_back(absl::StrCat(q.tokens()));
      row.push_back(absl::StrCat(q.windows()));
      row.push_back(absl::StrCat(a.answers()));
      for (double value :
           {a.accuracy(), a.accuracy_stderr(), a.accuracy_difference(),
            a.accuracy_difference_stderr(), a.nll(), a.nll_stderr(),
            a.nll_difference(), a.nll_difference_stderr()})
        row.push_back(a.answers() > 0 ? Exact(value) : "");
      const TaskQuality& t = dataset.task();
      row.push_back(t.metric());
      row.push_back(dataset.has_task() ? absl::StrCat(t.samples()) : "");
      for (double value : {t.score(), t.score_stderr(), t.score_difference(),
                           t.score_difference_stderr()})
        row.push_back(dataset.has_task() ? Exact(value) : "");
      for (double value :
           {m.key_effective_bits(), m.value_effective_bits(),
            method.key_nominal_bits(), method.value_nominal_bits(), m.bytes(),
            m.fp16_bytes(), m.compression()})
        row.push_back(Exact(value));
      row.push_back(speed ? Exact(speed->prefill()) : "");
      row.push_back(speed ? Exact(speed->decode()) : "");
      table.rows.push_back(std::move(row));
    }
  }
  return table;
}

std::string SummaryNotes(const RunRecord& record, const Timings& timings) {
  const DatasetRecord& first = record.method(0).dataset(0);
  std::string notes = absl::StrFormat(
      "PPL, KL, top-1, memory: %s, %d tokens in %d windows, %s. +-: standard "
      "error over %s.\nKL: nats per token, against the first row. Bits: "
      "stored, "
      "scales and zero points included (nominal).\nMemory: the whole cache at "
      "the end of a window, full-precision tokens included; compression "
      "against "
      "fp16.\n",
      first.name(), first.quality().tokens(), first.quality().windows(),
      record.mode(), first.quality().stderr_over());
  absl::StrAppendFormat(
      &notes,
      "Model %s, %s, attention in %s; %s, %d threads; peak resident memory "
      "%.0f MiB.\n",
      record.model().path(), record.model().compute(),
      record.model().attention_arithmetic(), timings.instruction_set(),
      timings.threads(), Mib(timings.peak_resident_bytes()));
  if (timings.has_device_memory()) {
    const DeviceMemoryRecord& device = timings.device_memory();
    absl::StrAppendFormat(
        &notes,
        "Device memory: model %.1f MiB, passes %.1f MiB; the driver counts "
        "%.1f MiB.\n",
        Mib(device.model()), Mib(device.passes()), Mib(device.in_use()));
    for (const MethodSpeed& speed : timings.speed()) {
      absl::StrAppendFormat(&notes,
                            "Cache of %s when its speed was measured: %.2f "
                            "MiB; the driver counts %.2f MiB.\n",
                            speed.method(), Mib(speed.cache_bytes()),
                            Mib(speed.device_bytes()));
    }
  }
  for (const MethodRecord& method : record.method()) {
    if (method.why_on_host().empty()) continue;
    absl::StrAppendFormat(&notes,
                          "The cache of %s lay in host memory, and the CPU "
                          "attended to it: %s.\n",
                          method.name(), method.why_on_host());
  }
  for (const ProfileTiming& profile : timings.profile()) {
    absl::StrAppendFormat(&notes, "Profile %s: %.1f s.\n", profile.estimator(),
                          profile.seconds());
  }
  return notes;
}

absl::Status Report(const ExperimentConfig& config, const RunRecord& record,
                    const Timings& timings, const std::string& folder) {
  KVMIX_RETURN_IF_ERROR(
      WriteTextProto(timings, absl::StrCat(folder, "/timings.textproto")));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(absl::StrCat(folder, "/metrics.json"),
                          MetricsJson(config, record, timings)));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(absl::StrCat(folder, "/table.md"),
                          absl::StrCat(SummaryTable(record, timings).Markdown(),
                                       "\n", SummaryNotes(record, timings))));
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/table.csv"),
                                            FullTable(record, timings).Csv()));
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/figure.svg"),
                                            FigureSvg(record)));
  // Last, since a record says that the experiment is done.
  return WriteTextProto(record, absl::StrCat(folder, "/record.textproto"));
}

}  // namespace kvmix
