#include "experiments/report.h"

#include <nlohmann/json.hpp>

#include "experiments/figure.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

RunRecord TwoRows() {
  RunRecord record;
  EXPECT_OK(ParseTextProto(
      R"pb(name: "x"
           fingerprint: "f"
           seed: 1
           mode: "CHUNKED(128)"
           model { num_layers: 1 }
           method {
             name: "FP16"
             key_nominal_bits: 16
             value_nominal_bits: 16
             plan {
               layer {
                 key { bits: 16 }
                 value { bits: 16 }
               }
             }
             dataset {
               name: "text"
               quality {
                 perplexity: 8.5
                 perplexity_stderr: 0.25
                 top1_agreement: 1
                 tokens: 99
                 stderr_over: "windows"
                 answers { answers: 4 accuracy: 1 nll: 0.25 }
               }
               memory {
                 bytes: 1048576
                 compression: 1
                 key_effective_bits: 16
                 value_effective_bits: 16
               }
             }
           }
           method {
             name: "a|b, <c>"
             key_nominal_bits: 2.1875
             value_nominal_bits: 2.375
             plan {
               layer {
                 key { bits: 3 }
                 value { bits: 4 }
               }
             }
             dataset {
               name: "text"
               quality {
                 perplexity: 11089
                 kl_mean: 0.001234
                 top1_agreement: 0.875
                 tokens: 99
                 answers { answers: 4 accuracy: 0.75 nll: 0.5 }
               }
               memory {
                 bytes: 524288
                 compression: 2
                 key_effective_bits: 3.53
                 value_effective_bits: 3.375
               }
             }
           })pb",
      "test", record));
  return record;
}

TEST(TableTest, ColumnsAlignInMarkdownAndOnTheTerminal) {
  const Table table = {{"name", "n"}, {{"a", "1"}, {"\xc3\xa4\xc3\xb6", "10"}}};
  EXPECT_EQ(table.Markdown(),
            "| name |  n |\n"
            "|------|---:|\n"
            "| a    |  1 |\n"
            "| \xc3\xa4\xc3\xb6   | 10 |\n");
  EXPECT_EQ(table.Aligned(),
            "name   n\n"
            "--------\n"
            "a      1\n"
            "\xc3\xa4\xc3\xb6    10\n");
}

TEST(TableTest, CsvQuotesWhatNeedsIt) {
  const Table table = {{"a", "b"}, {{"x,y", "say \"hi\""}}};
  EXPECT_EQ(table.Csv(), "a,b\n\"x,y\",\"say \"\"hi\"\"\"\n");
}

TEST(ReportTest, SummaryRoundsAndKeepsLargePerplexitiesReadable) {
  const Table table = SummaryTable(TwoRows(), Timings());
  EXPECT_EQ(table.rows[0][1], "8.500");
  EXPECT_EQ(table.rows[1][1], "11089");
  EXPECT_THAT(table.Aligned(), HasSubstr("3.53 (2.19)"));
  EXPECT_THAT(table.Aligned(), HasSubstr("87.5 %"));
  EXPECT_THAT(table.Aligned(), HasSubstr("2.00x"));
  EXPECT_THAT(table.Aligned(), Not(HasSubstr("tok/s")));  // not measured
  EXPECT_THAT(table.Markdown(), HasSubstr("a/b, <c>"));
}

TEST(ReportTest, EveryRowIsAsLongAsTheHeader) {
  for (const Table& table :
       {SummaryTable(TwoRows(), Timings()), FullTable(TwoRows(), Timings())})
    for (const auto& row : table.rows)
      EXPECT_EQ(row.size(), table.header.size());
}

TEST(ReportTest, SpeedThatWasNotMeasuredIsNull) {
  const auto json = nlohmann::json::parse(
      MetricsJson(ExperimentConfig(), TwoRows(), Timings()));
  EXPECT_TRUE(json["rows"][0]["speed"]["decode_tokens_per_second"].is_null());
  EXPECT_EQ(json["rows"][1]["memory"]["key_nominal_bits"], 2.1875);
  EXPECT_EQ(json["rows"][1]["quality"]["answers"]["accuracy"], 0.75);
}

TEST(ReportTest, MetricsNameTheCudaToolkitAndDevices) {
  Timings timings;
  timings.set_cuda_toolkit("13.0");
  timings.add_cuda_device("NVIDIA H100, 79 GiB, sm_90");
  const auto json = nlohmann::json::parse(
      MetricsJson(ExperimentConfig(), TwoRows(), timings));
  EXPECT_EQ(json["build"]["cuda_toolkit"], "13.0");
  const nlohmann::json devices = {"NVIDIA H100, 79 GiB, sm_90"};
  EXPECT_EQ(json["machine"]["cuda_devices"], devices);
}

TEST(FigureTest, NamesAreEscaped) {
  const std::string svg = FigureSvg(TwoRows());
  EXPECT_THAT(svg, HasSubstr("&lt;c&gt;"));
  EXPECT_THAT(svg, Not(HasSubstr("<c>")));
  EXPECT_THAT(svg, HasSubstr("layer 0 keys: 3 bits"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(TableTest, AppendedCellsStandUnderTheirNames) {
  Table table = {.header = {"x", "a", "b"}, .rows = {{"1", "a1", "b1"}}};
  Table more = {.header = {"c", "a"}, .rows = {{"c2", "a2"}}};
  more.PutInFront({"x"}, {"2"});
  table.Append(more);
  EXPECT_EQ(table.Csv(), "x,a,b,c\n1,a1,b1,\n2,a2,,c2\n");
  // A name that stands twice: one column after the other.
  Table twice = {.header = {"x", "x"}, .rows = {{"1", "2"}}};
  twice.Append(Table(twice));
  EXPECT_EQ(twice.Csv(), "x,x\n1,2\n1,2\n");
}

TEST(SummaryTableTest, ContinuationsHaveNoPerplexity) {
  RunRecord record = TwoRows();
  for (MethodRecord& method : *record.mutable_method()) {
    DatasetRecord& dataset = *method.mutable_dataset(0);
    dataset.clear_quality();
    dataset.mutable_task()->set_metric("F1");
    dataset.mutable_task()->set_score(0.5);
  }
  const Table summary = SummaryTable(record, {});
  EXPECT_EQ(summary.rows[0][1], "-");
  EXPECT_EQ(summary.rows[0].size(), summary.header.size());
  EXPECT_EQ(summary.header[7], "text F1");
  EXPECT_EQ(summary.rows[0][7], "50.0 %");
  const Table full = FullTable(record, {});
  EXPECT_EQ(full.header[2], "perplexity");
  EXPECT_EQ(full.rows[0][2], "");
}

}  // namespace
}  // namespace kvmix
