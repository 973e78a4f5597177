#include "experiments/commands.h"

namespace kvmix {

absl::Span<const Command> Commands() {
  static constexpr Command kCommands[] = {
      {"run", "run an experiment and write its tables", RunCommand},
      {"sweep", "run an experiment for all combinations of axes", SweepCommand},
      {"cell", "run one cell of a sweep that is set up", CellCommand},
      {"tables", "write the tables of a sweep's finished cells", TablesCommand},
      {"report", "write one report of many runs and sweeps", ReportCommand},
      {"sheet", "continuations side by side, for people to judge",
       SheetCommand},
      {"magnitudes", "measure the channels of keys and values",
       MagnitudesCommand},
      {"exchange", "plans and results for other programs, and back",
       ExchangeCommand},
      {"profile", "measure how much each layer matters", ProfileCommand},
      {"plan", "show and write the bits that methods give each layer",
       PlanCommand},
      {"compare_estimators",
       "compare importance estimators with an oracle, and what they cost",
       CompareEstimatorsCommand},
      {"calibrate_codebook",
       "fit levels of quantizer codebook to a model's keys and values",
       CalibrateCodebookCommand},
      {"generate", "continue a prompt, full precision beside a method",
       GenerateCommand},
      {"bench", "measure speed and memory of caches stored in several ways",
       BenchCommand},
      {"tokenize", "print the token ids of a text", TokenizeCommand},
      {"logits", "write the logits of a text as a .npy file", LogitsCommand},
      {"inspect", "print a model's shape, tensors and cache sizes",
       InspectCommand},
      {"list", "list the components and their options", ListCommand},
  };
  return kCommands;
}

}  // namespace kvmix
