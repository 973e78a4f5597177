#include "experiments/bench/bench_report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/bench/bench_growth.h"
#include "experiments/command_line.h"
#include "experiments/machine.h"
#include "experiments/table.h"
#include "kvmix/base/cuda_devices.h"

namespace kvmix {
namespace {

using Json = nlohmann::ordered_json;

// The parts of a record that both benchmarks have.
Json HeaderJson(const char* bench) {
  return {
      {"format", 1},
      {"bench", bench},
      {"build", {{"commit", CheckoutCommit()}, {"compiler", CompilerName()}}},
      {"machine",
       {{"cpu", CpuName()},
        {"instruction_set", InstructionSet()},
        {"cuda_devices", CudaDevices()}}}};
}

std::string MachineNote() {
  return absl::StrCat(CpuName(), ", ", InstructionSet(), "; commit ",
                      CheckoutCommit(), ", ", CompilerName(), ".\n");
}

// JSON values as cells: a row's names and numbers are said once, in its JSON.
std::string Csv(const Json& rows) {
  Table table;
  for (const Json& row : rows) {
    const bool first = table.header.empty();
    std::vector<std::string> cells;
    for (const auto& [key, value] : row.items()) {
      if (first) table.header.push_back(key);
      cells.push_back(value.is_string() ? value.get<std::string>()
                                        : value.dump());
    }
    table.rows.push_back(std::move(cells));
  }
  return table.Csv();
}

std::string Dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json RowJson(const BenchReport& report, const BenchRow& row) {
  return {{"model", report.model},
          {"device", report.device},
          {"compute", report.compute},
          {"arithmetic", report.arithmetic},
          {"kv", row.method},
          {"depth", row.depth},
          {"batch", row.batch},
          {"threads", row.threads},
          {"prefill_tokens_per_second", row.prefill.median},
          {"prefill_low", row.prefill.low},
          {"prefill_high", row.prefill.high},
          {"decode_tokens_per_second", row.decode.median},
          {"decode_low", row.decode.low},
          {"decode_high", row.decode.high},
          {"throughput_tokens_per_second", row.throughput.median},
          {"throughput_low", row.throughput.low},
          {"throughput_high", row.throughput.high},
          {"cache_bytes", row.cache_bytes},
          {"resident_bytes", row.resident_bytes},
          {"decode_bytes", row.decode_bytes},
          {"bandwidth_share", row.bandwidth_share},
          {"kernels", row.kernels}};
}

Json RowsJson(const BenchReport& report) {
  Json rows = Json::array();
  for (const BenchRow& row : report.rows) rows.push_back(RowJson(report, row));
  return rows;
}

std::string BenchJson(const BenchReport& report) {
  Json json = HeaderJson("generate");
  json["command"] = report.command;
  json["weight_bytes"] = report.weight_bytes;
  json["read_bandwidth"] = Json::array();
  for (const BenchBandwidth& read : report.bandwidth) {
    json["read_bandwidth"].push_back(
        {{"threads", read.threads},
         {"bytes_per_second", read.bytes_per_second}});
  }
  json["rows"] = RowsJson(report);
  json["depth_growth"] = Json::array();
  for (const DepthGrowth& growth : DepthGrowthOf(report)) {
    json["depth_growth"].push_back(
        {{"kv", growth.method},
         {"batch", growth.batch},
         {"threads", growth.threads},
         {"seconds_at_zero", growth.seconds_at_zero},
         {"seconds_per_token", growth.seconds_per_token},
         {"r_squared", growth.r_squared}});
  }
  return Dump(json);
}

// "312.4 (301.0-315.2)"
std::string SpreadText(const Spread& spread, int digits) {
  if (spread.median == 0) return "-";
  return absl::StrFormat("%.*f (%.*f-%.*f)", digits, spread.median, digits,
                         spread.low, digits, spread.high);
}

std::string MebiBytes(int64_t bytes) {
  return absl::StrFormat("%.1f", static_cast<double>(bytes) / (1 << 20));
}

std::string Share(double share) {
  return share == 0 ? "-" : absl::StrFormat("%.0f %%", 100 * share);
}

// A line for each growth: "fp16: a step takes 9.96 ms + 0.571 us for ...".
std::string GrowthText(const BenchReport& report) {
  std::string text;
  for (const DepthGrowth& growth : DepthGrowthOf(report)) {
    absl::StrAppendFormat(
        &text,
        "\n%s, batch %d, %d thread%s: a step takes %.3g ms + %.3g us for each "
        "1000 cached tokens; R^2 of the line %.4f.",
        growth.method, growth.batch, growth.threads,
        growth.threads == 1 ? "" : "s", 1e3 * growth.seconds_at_zero,
        1e9 * growth.seconds_per_token, growth.r_squared);
  }
  return text.empty() ? text : text + "\n";
}

// "Model 135m BF16, FLOAT32, weights 256.6 MiB"
std::string ModelText(const BenchReport& report) {
  return absl::StrCat("\nModel ", report.model, ", ", report.compute,
                      ", weights ", MebiBytes(report.weight_bytes), " MiB");
}

std::string ThroughputMarkdown(const BenchReport& report) {
  Table table;
  table.header = {"kv",           "batch",     "tok/s",        "prefill tok/s",
                  "decode tok/s", "cache MiB", "resident MiB", "attention"};
  for (const BenchRow& row : report.rows) {
    table.rows.push_back({row.method, absl::StrCat(row.batch),
                          SpreadText(row.throughput, 1),
                          SpreadText(row.prefill, 1), SpreadText(row.decode, 1),
                          MebiBytes(row.cache_bytes),
                          MebiBytes(row.resident_bytes), row.kernels});
  }
  const std::string device =
      report.device == "CUDA" ? absl::StrCat(CudaDevices()[0], "; ") : "";
  return absl::StrCat(table.Markdown(), ModelText(report), "; ",
                      report.prompt_tokens, " tokens in, ",
                      report.decode_tokens,
                      " out; tok/s: those that came out, over all time. Median "
                      "(lowest-highest).\n",
                      device, MachineNote());
}

std::string BenchMarkdown(const BenchReport& report) {
  Table table;
  table.header = {"kv",        "depth",         "batch",
                  "threads",   "prefill tok/s", "decode tok/s",
                  "cache MiB", "resident MiB",  "of bandwidth",
                  "attention"};
  for (const BenchRow& row : report.rows) {
    table.rows.push_back({row.method, absl::StrCat(row.depth),
                          absl::StrCat(row.batch), absl::StrCat(row.threads),
                          SpreadText(row.prefill, 1), SpreadText(row.decode, 2),
                          MebiBytes(row.cache_bytes),
                          MebiBytes(row.resident_bytes),
                          Share(row.bandwidth_share), row.kernels});
  }
  std::string text = table.Markdown();
  absl::StrAppend(&text, ModelText(report), "; attention in ",
                  report.arithmetic,
                  ". Median (lowest-highest).\nMemory is read at ");
  const char* separator = "";
  for (const BenchBandwidth& read : report.bandwidth) {
    absl::StrAppendFormat(&text, "%s%.1f GB/s by %d thread%s", separator,
                          1e-9 * read.bytes_per_second, read.threads,
                          read.threads == 1 ? "" : "s");
    separator = ", ";
  }
  return absl::StrCat(text, "; ", MachineNote(), GrowthText(report));
}

Json RowJson(const ProfileBenchReport& report, const ProfileBenchRow& row) {
  return {{"model", report.model},
          {"compute", report.compute},
          {"estimator", row.estimator},
          {"threads", row.threads},
          {"prompts", row.prompts},
          {"prompt_tokens", row.prompt_tokens},
          {"forward_seconds", row.forward_seconds},
          {"profile_seconds", row.profile_seconds},
          {"ratio", row.ratio.median},
          {"ratio_low", row.ratio.low},
          {"ratio_high", row.ratio.high}};
}

Json RowsJson(const ProfileBenchReport& report) {
  Json rows = Json::array();
  for (const ProfileBenchRow& row : report.rows)
    rows.push_back(RowJson(report, row));
  return rows;
}

std::string ProfileBenchMarkdown(const ProfileBenchReport& report) {
  Table table;
  table.header = {"estimator", "threads",   "prompts",          "tokens each",
                  "forward s", "profile s", "profile / forward"};
  for (const ProfileBenchRow& row : report.rows) {
    table.rows.push_back({row.estimator, absl::StrCat(row.threads),
                          absl::StrCat(row.prompts),
                          absl::StrCat(row.prompt_tokens),
                          absl::StrFormat("%.2f", row.forward_seconds),
                          absl::StrFormat("%.2f", row.profile_seconds),
                          SpreadText(row.ratio, 2)});
  }
  return absl::StrCat(
      table.Markdown(), "\nModel ", report.model, ", ", report.compute,
      ". Ratio: median of the prompts (lowest-highest); ", MachineNote());
}

}  // namespace

absl::StatusOr<BenchOutput> ParseBenchOutput(absl::string_view name) {
  if (name == "md") return BenchOutput::kMarkdown;
  if (name == "csv") return BenchOutput::kCsv;
  if (name == "json") return BenchOutput::kJson;
  return UsageError(absl::StrCat("--output does not take the value \"", name,
                                 "\"; it is one of md, csv, json"));
}

std::string FormatBench(const BenchReport& report, BenchOutput output) {
  if (output == BenchOutput::kMarkdown) {
    return report.throughput ? ThroughputMarkdown(report)
                             : BenchMarkdown(report);
  }
  if (output == BenchOutput::kCsv) return Csv(RowsJson(report));
  return BenchJson(report);
}

std::string FormatProfileBench(const ProfileBenchReport& report,
                               BenchOutput output) {
  if (output == BenchOutput::kMarkdown) return ProfileBenchMarkdown(report);
  if (output == BenchOutput::kCsv) return Csv(RowsJson(report));
  Json json = HeaderJson("profile");
  json["rows"] = RowsJson(report);
  return Dump(json);
}

}  // namespace kvmix
