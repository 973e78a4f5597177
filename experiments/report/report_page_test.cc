#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "experiments/report/collect.h"
#include "experiments/report/measures.h"
#include "experiments/report/page.h"
#include "experiments/report/plot.h"
#include "experiments/small_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;
using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(MeasuresTest, RankCorrelationIsSpearmans) {
  EXPECT_DOUBLE_EQ(RankCorrelation({1, 2, 3}, {10, 20, 15}), 0.5);
  EXPECT_DOUBLE_EQ(RankCorrelation({1, 2, 3}, {3, 2, 1}), -1);
  // Ties share the mean rank: ranks 0.5, 0.5, 2 against 0, 1, 2.
  EXPECT_NEAR(RankCorrelation({1, 1, 2}, {1, 2, 3}), 0.8660254, 1e-6);
  EXPECT_TRUE(std::isnan(RankCorrelation({1, 1}, {1, 2})));
}

TEST(PlotTest, TheFrontIsWhatNothingBeats) {
  const std::vector<plot::Series> series = {
      {"a", {{.x = 1, .y = 5}, {.x = 2, .y = 6}}},
      {"b", {{.x = 3, .y = 1}, {.x = 4, .y = 1}}}};
  const plot::Series front = plot::LowerLeftFront(series);
  ASSERT_EQ(front.points.size(), 2u);
  EXPECT_EQ(front.points[0].x, 1);
  EXPECT_EQ(front.points[1].x, 3);
}

TEST(PlotTest, TheFrontIsALineBeneathTheMarks) {
  plot::XyPlot plot = {
      .series = {{"a", {{.x = 1, .y = 5}}}, {"b", {{.x = 3, .y = 1}}}}};
  plot.series.push_back(plot::LowerLeftFront(plot.series));
  const std::string svg = plot::Draw(plot);
  size_t marks = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos;
       at = svg.find("<circle", at + 1))
    ++marks;
  EXPECT_EQ(marks, 4u);  // each with its row of the legend
  EXPECT_THAT(svg, HasSubstr("Pareto front"));
}

TEST(PlotTest, AStyleIsAColourAndAfterAllColoursAShape) {
  const auto mark_of = [](const plot::Series& series) {
    const std::string svg = plot::Draw(plot::XyPlot{.series = {series}});
    const size_t end = svg.find("</title>");
    const size_t begin = svg.rfind("\n<", end) + 1;
    return svg.substr(begin, svg.find("><title>", begin) - begin);
  };
  const auto of_style = [&](int style) {
    return mark_of({.name = "a", .points = {{.x = 1, .y = 1}}, .style = style});
  };
  EXPECT_EQ(of_style(-1), of_style(0));
  std::set<std::string> marks;
  for (int style = 0; style < 52; ++style) marks.insert(of_style(style));
  EXPECT_EQ(marks.size(), 52u);
  EXPECT_THAT(of_style(3), HasSubstr("<circle"));
  EXPECT_THAT(of_style(13), HasSubstr("<path"));
}

TEST(MeasuresTest, HighIsWhatIsAboveTheLowestOfAllPlans) {
  CachePlan low, mixed, high;
  for (int bits : {2, 2}) {
    LayerPlan& layer = *low.add_layer();
    layer.mutable_key()->set_bits(bits);
    layer.mutable_value()->set_bits(bits);
  }
  mixed = low;
  mixed.mutable_layer(1)->mutable_value()->set_bits(4);
  high = mixed;
  high.mutable_layer(0)->mutable_key()->set_bits(3);
  LowestBits lowest;
  for (const CachePlan* plan : {&low, &mixed, &high}) lowest.Include(*plan);
  EXPECT_EQ(ShareOfHighBitLayers(low, lowest), 0);
  EXPECT_EQ(ShareOfHighBitLayers(mixed, lowest), 0.5);
  EXPECT_EQ(ShareOfHighBitLayers(high, lowest), 1);
}

TEST(PlotTest, NamesOfPeopleAreNoMarkup) {
  const std::string svg =
      plot::Draw(plot::XyPlot{.x_label = "<x>",
                              .y_label = "y",
                              .series = {{"a<b", {{.x = 1, .y = 1}}}}});
  EXPECT_THAT(svg, HasSubstr("a&lt;b"));
  EXPECT_THAT(svg, Not(HasSubstr("<x>")));
}

constexpr char kRecord[] = R"pb(
  name: "small"
  fingerprint: "f"
  mode: "CHUNKED(128)"
  model {
    path: "m"
    fingerprint: "mf"
    num_layers: 2
    num_kv_heads: 1
    head_dim: 64
    weight_bytes: 1000000
  }
  method {
    name: "FP16"
    plan {
      layer {
        key { bits: 16 }
        value { bits: 16 }
      }
      layer {
        key { bits: 16 }
        value { bits: 16 }
      }
    }
    dataset {
      name: "d"
      quality { nll: 1 perplexity: 2.7 tokens: 10 }
      memory { bytes: 1000 fp16_bytes: 1000 compression: 1 }
    }
  }
  method {
    name: "A & B_1"
    plan {
      layer {
        key { bits: 3 }
        value { bits: 4 }
      }
      layer {
        key { bits: 2 }
        value { bits: 2 }
      }
    }
    dataset {
      name: "d"
      quality {
        nll: 1.1
        perplexity: 3.0
        tokens: 10
        kl_mean: 0.05
        nll_difference: 0.1
        nll_difference_stderr: 0.02
      }
      memory {
        bytes: 250
        fp16_bytes: 1000
        compression: 4
        key { codes: 100 }
        value { codes: 150 }
      }
    }
  }
)pb";

class ReportPageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = EmptyFolder("report_page");
    ASSERT_OK(WriteFileAtomically(folder_ + "/run/record.textproto", kRecord));
    ASSERT_OK(WriteFileAtomically(folder_ + "/run/config.textproto",
                                  "name: \"small\""));
    ASSERT_OK(WriteFileAtomically(
        folder_ + "/run/timings.textproto",
        "speed { method: \"FP16\" decode: 10 prefill: 100 } speed { method: "
        "\"A & B_1\" decode: 25 prefill: 90 }"));
  }
  std::string folder_;
};

TEST_F(ReportPageTest, TheThreeIndicatorsAndWhatFits) {
  ASSERT_OK_AND_ASSIGN(ReportInput input, CollectRecords({folder_}));
  ReportedRun untimed = input.runs[0];
  untimed.record.set_name("untimed");
  untimed.timings.Clear();
  input.runs.insert(input.runs.begin(), untimed);
  const ReportPage page = MakePage(std::move(input), "T", "kvmix report x");
  ASSERT_EQ(page.indicators.rows.size(), 2u);
  EXPECT_THAT(
      page.indicators.rows[0],
      ::testing::ElementsAre("small", "A & B_1", "4.00x", "2.50x", "0.90x", "d",
                             "10", "+0.1000 ± 0.0200 nats", "NLL 1.1000"));
  EXPECT_EQ(page.indicators.rows[1][0], "untimed");
  EXPECT_EQ(page.indicators.rows[1][3], "-");
  // 2 layers * 64 * 2 sides * 4 bits / 8 = 128 bytes a token.
  EXPECT_EQ(page.capacity.rows[1][3],
            absl::StrCat((8000000000 - 1000000) / 128, " / ",
                         (8000000000 - 1000000) / 128 / 4096));
}

TEST_F(ReportPageTest, OneFileThatNeedsNothingElse) {
  ASSERT_OK_AND_ASSIGN(ReportInput input, CollectRecords({folder_}));
  const ReportPage page = MakePage(std::move(input), "T", "kvmix report x");
  const std::string html = Html(page);
  EXPECT_THAT(html, Not(HasSubstr("src=")));
  EXPECT_THAT(html, HasSubstr("A &amp; B_1"));
  for (const Figure& figure : page.figures) {
    EXPECT_FALSE(figure.data.rows.empty()) << figure.title;
    EXPECT_THAT(html, HasSubstr(absl::StrCat("id=\"", figure.id, "\"")));
    EXPECT_THAT(html, HasSubstr(absl::StrCat("href=\"#", figure.id, "\"")));
    EXPECT_THAT(figure.svg, Not(HasSubstr("nan"))) << figure.title;
  }
  EXPECT_THAT(Latex(page), HasSubstr("A \\& B\\_1"));
  EXPECT_THAT(Latex(page), HasSubstr("\\toprule"));
  EXPECT_THAT(Markdown(page), HasSubstr("| A & B_1"));
  const auto json = nlohmann::json::parse(Json(page));
  EXPECT_EQ(json["rows"].size(), 2u);
  EXPECT_EQ(json["figures"].size(), page.figures.size());
  ASSERT_OK(WriteReport(page, folder_ + "/out"));
  EXPECT_TRUE(fs::exists(
      absl::StrCat(folder_, "/out/data/", page.figures[0].id, ".csv")));
}

// Two cells of a sweep and a run: full precision is listed once where it is the
// same.
TEST(RunGroupTest, FullPrecisionIsListedOncePerText) {
  ReportedRun cell;
  ASSERT_OK(ParseTextProto(kRecord, "test", cell.record));
  cell.sweep = "s";
  cell.group = "/a";
  cell.settings = {{"bits", "2"}};
  ReportedRun other = cell;
  other.settings = {{"bits", "4"}};
  ReportedRun elsewhere = cell;  // a sweep of the same name in another folder
  elsewhere.group = "/b";
  const auto names = [](const RunGroup& group) {
    std::vector<std::string> names;
    for (const RunGroup::Row& row : group.Rows()) names.push_back(row.name);
    return names;
  };
  ReportInput input;
  input.runs = {cell, other, elsewhere};
  std::vector<RunGroup> groups = GroupRuns(input);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_THAT(names(groups[0]), ::testing::ElementsAre("FP16", "A & B_1 bits=2",
                                                       "A & B_1 bits=4"));
  input.runs[1]
      .record.mutable_method(0)
      ->mutable_dataset(0)
      ->mutable_quality()
      ->set_nll(2);
  groups = GroupRuns(input);
  EXPECT_THAT(names(groups[0]),
              ::testing::ElementsAre("FP16 bits=2", "A & B_1 bits=2",
                                     "FP16 bits=4", "A & B_1 bits=4"));
}

// Keys agree (1), values disagree (-1); neither one ranking of both nor keys
// against values would give 0.
TEST(FiguresTest, AgreementIsTheMeanOfKeysAndValues) {
  ReportInput input;
  ReportedRun& run = input.runs.emplace_back();
  ASSERT_OK(ParseTextProto(kRecord, "test", run.record));
  for (
      const char* text :
      {"key: 'a' model: 'mf' profile { estimator: 'A' layer { key: 1 value: 20 "
       "} layer { key: 2 value: 10 } layer { key: 3 value: 30 } }",
       "key: 'b' model: 'mf' profile { estimator: 'B' layer { key: 1 value: 20 "
       "} layer { key: 2 value: 30 } layer { key: 3 value: 10 } }"})
    ASSERT_OK(ParseTextProto(text, "test", run.profiles.emplace_back()));
  for (const Figure& figure : MakeFigures(input)) {
    if (!absl::StartsWith(figure.id, "agreement")) continue;
    ASSERT_EQ(figure.data.rows.size(), 4u);
    EXPECT_EQ(figure.data.rows[0][2], "1");
    EXPECT_EQ(figure.data.rows[1][2], "0");
    return;
  }
  FAIL() << "no figure of agreement";
}

// Four methods, each better than the one before in both but the last in score.
TEST(FiguresTest, ScoresAreRankedAgainstKl) {
  ReportInput input;
  RunRecord& record = input.runs.emplace_back().record;
  record.set_name("suite");
  const double kl[] = {0, 0.4, 0.3, 0.2, 0.1};
  const double score[] = {1, 0.2, 0.4, 0.8, 0.6};
  for (int m = 0; m < 5; ++m) {
    MethodRecord& method = *record.add_method();
    method.set_name(absl::StrCat("m", m));
    for (const double shift : {-0.1, 0.1}) {
      Quality& quality = *method.add_dataset()->mutable_quality();
      quality.set_tokens(1);
      quality.set_kl_mean(kl[m]);
      quality.mutable_answers()->set_answers(10);
      quality.mutable_answers()->set_accuracy(score[m] + shift);
      quality.mutable_answers()->set_accuracy_stderr(0.3);
    }
  }
  for (const Figure& figure : MakeFigures(input)) {
    if (!absl::StartsWith(figure.id, "scores_and_KL")) continue;
    ASSERT_EQ(figure.data.rows.size(), 4u);  // without full precision
    EXPECT_THAT(figure.data.rows[0],
                ::testing::ElementsAre("m1", "0.2", "0.2121320344", "0.4"));
    EXPECT_THAT(figure.caption, HasSubstr("over these 4 methods: -0.80"));
    return;
  }
  FAIL() << "no figure of scores";
}

TEST_F(ReportPageTest, APlanOfOtherKvHeadsThanTheModelsIsAnError) {
  std::string record = kRecord;
  const std::string shared = "key { bits: 3 }";
  record.replace(record.find(shared), shared.size(),
                 "key_head { bits: 3 } key_head { bits: 2 }");
  ASSERT_OK(WriteFileAtomically(folder_ + "/run/record.textproto", record));
  EXPECT_THAT(CollectRecords({folder_}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("run/record.textproto: method A & B_1: the "
                                 "plan's layer[0] key_head has 2 formats but "
                                 "the model has 1 KV heads")));
}

TEST_F(ReportPageTest, BatchesThatWereServedWholeAreDrawnByThemselves) {
  ASSERT_OK(WriteFileAtomically(folder_ + "/bench/bench.json", R"({
    "command": "kvmix bench --batch=1,max",
    "rows": [
      {"model": "m", "device": "CPU", "threads": 2, "kv": "fp16", "batch": 1,
       "depth": 8, "decode_tokens_per_second": 5},
      {"model": "m", "device": "CPU", "threads": 2, "kv": "fp16", "batch": 2,
       "depth": 8, "decode_tokens_per_second": 7},
      {"model": "m", "device": "CUDA", "threads": 0, "kv": "fp16", "batch": 1,
       "throughput_tokens_per_second": 11, "throughput_low": 10,
       "throughput_high": 12, "cache_bytes": 1048576},
      {"model": "m", "device": "CUDA", "threads": 0, "kv": "fp16", "batch": 9,
       "throughput_tokens_per_second": 80}]})"));
  ASSERT_OK_AND_ASSIGN(const ReportInput input,
                       CollectRecords({folder_ + "/bench"}));
  const std::vector<Figure> figures = MakeFigures(input);
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[0].title, "Batches served whole, m, CUDA");
  EXPECT_EQ(figures[0].command, "kvmix bench --batch=1,max");
  EXPECT_THAT(figures[0].data.rows[0],
              ::testing::ElementsAre("fp16", "1", "11", "10", "12", "1048576"));
  EXPECT_THAT(figures[0].svg, HasSubstr("fp16, batch 9: 80 tok/s"));
  EXPECT_EQ(figures[1].title,
            "Throughput against batch, m, depth 8, 2 threads");
  EXPECT_THAT(figures[1].svg, HasSubstr("batch 2: 7 tok/s"));
}

TEST_F(ReportPageTest, ABenchmarkWithAFieldOfAnotherKindIsAnError) {
  ASSERT_OK(WriteFileAtomically(folder_ + "/bench.json",
                                R"({"rows": [{"kv": "fp16", "batch": "1"}]})"));
  EXPECT_THAT(CollectRecords({folder_}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("bench.json is not what kvmix bench")));
}

TEST_F(ReportPageTest, WhatIsNoRecordIsSaid) {
  EXPECT_THAT(CollectRecords({"/none"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/none")));
  fs::create_directories(folder_ + "/empty");
  EXPECT_THAT(CollectRecords({folder_ + "/empty"}),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("no record.textproto below")));
  ASSERT_OK(WriteFileAtomically(folder_ + "/run/record.textproto", "name: 3"));
  EXPECT_THAT(CollectRecords({folder_}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("record.textproto:1")));
}

}  // namespace
}  // namespace kvmix
