#include <algorithm>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/paths.h"
#include "experiments/record.pb.h"
#include "experiments/report/page_style.h"
#include "experiments/svg.h"
#include "experiments/table.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;

// Continuations of one prompt by two ways to store the cache.
struct Pair {
  std::string prompt, full, method;
};

// The end of a long prompt is what a continuation goes on from.
std::string PromptEnd(const std::string& prompt) {
  constexpr size_t kMost = 1500;
  if (prompt.size() <= kMost) return prompt;
  size_t begin = prompt.size() - kMost;
  // Not in the middle of a character.
  while ((prompt[begin] & 0xC0) == 0x80) ++begin;
  return "... " + prompt.substr(begin);
}

absl::StatusOr<std::vector<Pair>> ReadPairs(const std::string& folder,
                                            int method) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder + "/windows", error))
    files.push_back(entry.path());
  if (error) return absl::ErrnoToStatus(error.value(), "cannot list " + folder);
  std::sort(files.begin(), files.end());
  std::vector<Pair> pairs;
  for (const fs::path& file : files) {
    KVMIX_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(file.string()));
    WindowRecord window;
    if (!window.ParseFromString(bytes) || window.method_size() <= method)
      return absl::DataLossError(file.string() + " is damaged");
    if (window.prompt().empty()) continue;
    pairs.push_back({PromptEnd(window.prompt()), window.method(0).text(),
                     window.method(method).text()});
  }
  if (!pairs.empty()) return pairs;
  return absl::FailedPreconditionError(absl::StrCat(
      folder,
      " holds no continuations; run a task that makes them, as prompts "
      "with continue_tokens"));
}

std::string Choice(size_t row, const char* name) {
  return absl::StrCat("<label><input type=\"radio\" name=\"r", row,
                      "\" value=\"", name, "\"> ", name, "</label> ");
}

constexpr char kSheetStyle[] = R"(
.pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}
.pair div,.prompt{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);border-radius:6px;padding:8px}
.prompt{color:var(--soft);margin-bottom:8px;max-height:240px;overflow:auto}
)";

constexpr char kSheetScript[] = R"(
document.getElementById('save').onclick=()=>{const lines=['row,better'];
 document.querySelectorAll('section').forEach((s,i)=>{const c=s.querySelector('input:checked');
  lines.push((i+1)+','+(c?c.value:''))});
 const a=document.createElement('a');a.download='judgements.csv';
 a.href='data:text/csv,'+encodeURIComponent(lines.join('\n')+'\n');a.click()};
)";

}  // namespace

absl::Status SheetCommand(absl::Span<const std::string> args,
                          const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix sheet FOLDER --method=NAME [flags]",
      "Writes a page for people to judge: continuations in full precision and "
      "under a method side\nby side, in an order drawn for each prompt, and a "
      "key file that says which is which. FOLDER\nis that of a run whose task "
      "continues prompts.");
  std::string method_name, output = "sheet";
  int64_t seed = 1;
  command_line.Flag("method", &method_name, "name of the method");
  command_line.Flag("output", &output, "folder for sheet.html and key.csv");
  command_line.Flag("seed", &seed, "of the order");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 1)
    return UsageError("takes one folder; see kvmix sheet --help");
  KVMIX_ASSIGN_OR_RETURN(const std::string folder,
                         ResolveInputPath(arguments[0]));
  RunRecord record;
  KVMIX_RETURN_IF_ERROR(ReadTextProto(folder + "/record.textproto", record));
  int method = -1;
  std::vector<std::string> names;
  for (int m = 1; m < record.method_size(); ++m) {
    names.push_back(record.method(m).name());
    if (names.back() == method_name) method = m;
  }
  if (method < 0) {
    return absl::NotFoundError(absl::StrCat(
        "the run has no method \"", method_name,
        "\" besides full precision; it has ", absl::StrJoin(names, ", ")));
  }
  KVMIX_ASSIGN_OR_RETURN(const std::vector<Pair> pairs,
                         ReadPairs(folder, method));
  CounterRandom random(static_cast<uint64_t>(seed), 0);
  Table key;
  key.header = {"row", "A", "B"};
  std::string html = absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>"
      "Which is better?</title><link rel=\"icon\" href=\"data:,\"><style>",
      kPageStyle, kSheetStyle,
      "</style></head><body><main>\n<h1>Which "
      "continuation is better?</h1>\n<p>A and B are in a random order. <button "
      "id=\"save\">save judgements</button></p>\n");
  for (size_t i = 0; i < pairs.size(); ++i) {
    const bool full_first = random.Below(2) == 0;
    const std::string& a = full_first ? pairs[i].full : pairs[i].method;
    const std::string& b = full_first ? pairs[i].method : pairs[i].full;
    const std::string& full_name = record.method(0).name();
    key.rows.push_back({absl::StrCat(i + 1),
                        full_first ? full_name : method_name,
                        full_first ? method_name : full_name});
    absl::StrAppend(
        &html, "<section><h2>", i + 1, "</h2>\n<div class=\"prompt\">",
        svg::Escaped(pairs[i].prompt),
        "</div>\n<div class=\"pair\"><div><b>A</b> ", svg::Escaped(a),
        "</div><div><b>B</b> ", svg::Escaped(b), "</div></div>\n<p>",
        Choice(i, "A"), Choice(i, "same"), Choice(i, "B"), "</p></section>\n");
  }
  absl::StrAppend(&html, "</main><script>", kSheetScript,
                  "</script></body></html>\n");
  const std::string target = ResolvePath(output);
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(target + "/sheet.html", html));
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(target + "/key.csv", key.Csv()));
  std::cout << pairs.size() << " pairs: " << target
            << "/sheet.html; which is which: key.csv\n";
  return absl::OkStatus();
}

}  // namespace kvmix
