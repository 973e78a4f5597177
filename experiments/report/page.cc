#include "experiments/report/page.h"

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "experiments/report.h"
#include "experiments/report/page_style.h"
#include "experiments/svg.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

using svg::Escaped;

std::string HtmlTable(const Table& table) {
  std::string html = "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& cell : table.header)
    absl::StrAppend(&html, "<th tabindex=\"0\">", Escaped(cell), "</th>");
  html += "</tr></thead><tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (const std::string& cell : row)
      absl::StrAppend(&html, "<td>", Escaped(cell), "</td>");
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string CsvLink(const std::string& id, const Table& table) {
  return absl::StrCat("<a download=\"", id,
                      ".csv\" href=\"data:text/csv;base64,",
                      absl::Base64Escape(table.Csv()), "\">data as CSV</a>");
}

std::string FigureHtml(const Figure& figure) {
  return absl::StrCat(
      "<figure id=\"", figure.id, "\"><h3>", Escaped(figure.title), "</h3>\n",
      figure.svg, "<figcaption>", Escaped(figure.caption), " ",
      CsvLink(figure.id, figure.data), ", made by <code>",
      Escaped(figure.command), "</code></figcaption></figure>\n");
}

std::string Where(const Timings& timings) {
  if (timings.cpu().empty()) return "";
  return absl::StrCat(timings.cpu(), ", ", timings.instruction_set(), ", ",
                      timings.threads(), " threads, ", timings.compiler());
}

Table RunsTable(const ReportPage& page) {
  Table table;
  table.header = {"experiment", "fingerprint", "model",   "compute",
                  "attention",  "mode",        "machine", "folder"};
  for (const ReportedRun& run : page.input.runs) {
    const ModelRecord& model = run.record.model();
    table.rows.push_back({run.Name(), run.record.fingerprint(), model.path(),
                          model.compute(), model.attention_arithmetic(),
                          run.record.mode(), Where(run.timings), run.folder});
  }
  return table;
}

// All measures of all runs; the run's name in front.
Table AllRows(const ReportPage& page) {
  Table all;
  for (const ReportedRun& run : page.input.runs) {
    Table table = FullTable(run.record, run.timings);
    table.PutInFront({"experiment"}, {run.Name()});
    all.Append(table);
  }
  return all;
}

// The main table of each experiment, and one of all cells of a sweep.
std::vector<std::pair<std::string, Table>> SummaryTables(
    const ReportPage& page) {
  std::vector<std::pair<std::string, Table>> tables;
  for (const RunGroup& group : GroupRuns(page.input)) {
    Table all;
    for (const RunGroup::Row& row : group.Rows()) {
      const Table table = SummaryTable(row.run->record, row.run->timings);
      Table own = {.header = table.header, .rows = {table.rows[row.method]}};
      own.rows[0][0] = row.name;
      all.Append(own);
    }
    tables.push_back({group.name, std::move(all)});
  }
  return tables;
}

constexpr char kIndicatorsNote[] =
    "Against full precision (the first method of each experiment). Memory: "
    "half-precision bytes over all bytes that the cache allocated, windows, "
    "scales and bookkeeping included. Decode, prefill: tokens per second over "
    "those of full precision, one sequence; - where speed was not measured, "
    "behind all others. "
    "Change of quality: paired sample by sample, ± its standard error.";

constexpr char kCapacityNote[] =
    "Tokens of one sequence, and sequences of 4096 tokens, that fit beside the "
    "weights in so many GB (1e9 bytes). Bits are those measured on the first "
    "dataset, whole cache; for models other than the runs' own they are "
    "carried "
    "over, not measured, and activations are not counted.";

std::string LatexCell(const std::string& text) {
  return absl::StrReplaceAll(text, {{"\\", "\\textbackslash{}"},
                                    {"&", "\\&"},
                                    {"%", "\\%"},
                                    {"$", "\\$"},
                                    {"#", "\\#"},
                                    {"_", "\\_"},
                                    {"{", "\\{"},
                                    {"}", "\\}"},
                                    {"~", "\\textasciitilde{}"},
                                    {"^", "\\textasciicircum{}"},
                                    {"±", "$\\pm$"}});
}

std::string LatexTable(const std::string& caption, const std::string& label,
                       const Table& table) {
  std::string text =
      absl::StrCat("\\begin{table}\n\\caption{", LatexCell(caption),
                   "}\n\\label{tab:", label, "}\n\\begin{tabular}{l",
                   std::string(table.header.size() - 1, 'r'), "}\n\\toprule\n");
  const auto line = [&](const std::vector<std::string>& cells) {
    for (size_t i = 0; i < cells.size(); ++i)
      absl::StrAppend(&text, i > 0 ? " & " : "", LatexCell(cells[i]));
    text += " \\\\\n";
  };
  line(table.header);
  text += "\\midrule\n";
  for (const auto& row : table.rows) line(row);
  return text + "\\bottomrule\n\\end{tabular}\n\\end{table}\n\n";
}

nlohmann::ordered_json TableJson(const Table& table) {
  auto rows = nlohmann::ordered_json::array();
  for (const auto& cells : table.rows) {
    nlohmann::ordered_json row;
    for (size_t i = 0; i < cells.size(); ++i) row[table.header[i]] = cells[i];
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

ReportPage MakePage(ReportInput input, const std::string& title,
                    const std::string& command) {
  ReportPage page = {
      .title = title, .command = command, .input = std::move(input)};
  page.indicators = IndicatorTable(page.input);
  page.capacity = CapacityTable(page.input);
  page.figures = MakeFigures(page.input);
  return page;
}

std::string Html(const ReportPage& page) {
  std::string html = absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width\">\n<title>",
      Escaped(page.title),
      "</title>\n<link rel=\"icon\" href=\"data:,\">\n"
      "<style>",
      kPageStyle, "</style></head>\n<body><main>\n<h1>", Escaped(page.title),
      "</h1>\n<p class=\"made\">Made by <code>", Escaped(page.command),
      "</code> <button id=\"theme\">light / dark</button></p>\n");
  for (const std::string& failed : page.input.failed)
    absl::StrAppend(&html, "<p class=\"bad\">Missing: ", Escaped(failed),
                    "</p>\n");
  if (!page.input.runs.empty()) {
    absl::StrAppend(
        &html, "<h2 id=\"indicators\">Memory, throughput, quality</h2>",
        HtmlTable(page.indicators), "<p class=\"note\">", kIndicatorsNote, " ",
        CsvLink("indicators", page.indicators), "</p>\n",
        "<h2 id=\"capacity\">What fits</h2>", HtmlTable(page.capacity),
        "<p class=\"note\">", kCapacityNote, " ",
        CsvLink("capacity", page.capacity), "</p>\n");
  }
  html += "<h2 id=\"figures\">Figures</h2>\n<nav><ol>\n";
  for (const Figure& figure : page.figures) {
    absl::StrAppend(&html, "<li><a href=\"#", figure.id, "\">",
                    Escaped(figure.title), "</a></li>\n");
  }
  html += "</ol></nav>\n";
  for (const Figure& figure : page.figures) html += FigureHtml(figure);
  if (!page.input.runs.empty()) {
    html += "<h2 id=\"tables\">Tables</h2>\n";
    for (const auto& [name, table] : SummaryTables(page))
      absl::StrAppend(&html, "<h3>", Escaped(name), "</h3>\n",
                      HtmlTable(table));
    const Table all = AllRows(page);
    absl::StrAppend(&html, "<p>Every measure, unrounded: ", CsvLink("all", all),
                    "</p>\n<h2 id=\"runs\">Experiments</h2>",
                    HtmlTable(RunsTable(page)));
  }
  return absl::StrCat(html, "</main>\n<script>", kPageScript,
                      "</script></body></html>\n");
}

std::string Markdown(const ReportPage& page) {
  std::string text =
      absl::StrCat("# ", page.title, "\n\nMade by `", page.command, "`.\n");
  for (const std::string& failed : page.input.failed)
    absl::StrAppend(&text, "\nMissing: ", failed, "\n");
  if (page.input.runs.empty()) return text;
  absl::StrAppend(&text, "\n## Memory, throughput, quality\n\n",
                  page.indicators.Markdown(), "\n", kIndicatorsNote,
                  "\n\n## What fits\n\n", page.capacity.Markdown(), "\n",
                  kCapacityNote, "\n");
  for (const auto& [name, table] : SummaryTables(page))
    absl::StrAppend(&text, "\n## ", name, "\n\n", table.Markdown());
  absl::StrAppend(&text, "\n## Experiments\n\n", RunsTable(page).Markdown());
  return text;
}

std::string Latex(const ReportPage& page) {
  std::string text = "% \\usepackage{booktabs}\n";
  if (page.input.runs.empty()) return text;
  text += LatexTable("Memory, throughput and quality against full precision.",
                     "indicators", page.indicators);
  text +=
      LatexTable("What fits in a device's memory.", "capacity", page.capacity);
  for (const auto& [name, table] : SummaryTables(page))
    text += LatexTable(name + ".", name, table);
  return text;
}

std::string Json(const ReportPage& page) {
  nlohmann::ordered_json json = {{"format", 1},
                                 {"title", page.title},
                                 {"command", page.command},
                                 {"failed", page.input.failed},
                                 {"indicators", TableJson(page.indicators)},
                                 {"capacity", TableJson(page.capacity)},
                                 {"experiments", TableJson(RunsTable(page))},
                                 {"rows", TableJson(AllRows(page))}};
  json["figures"] = nlohmann::ordered_json::array();
  for (const Figure& figure : page.figures) {
    json["figures"].push_back({{"id", figure.id},
                               {"title", figure.title},
                               {"caption", figure.caption},
                               {"command", figure.command},
                               {"data", TableJson(figure.data)}});
  }
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

absl::Status WriteReport(const ReportPage& page, const std::string& folder) {
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/report.html", Html(page)));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/report.md", Markdown(page)));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/report.tex", Latex(page)));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/report.json", Json(page)));
  for (const Figure& figure : page.figures) {
    KVMIX_RETURN_IF_ERROR(WriteFileAtomically(
        absl::StrCat(folder, "/data/", figure.id, ".csv"), figure.data.Csv()));
  }
  return absl::OkStatus();
}

}  // namespace kvmix
