#include "kvmix/allocation/pareto_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "kvmix/base/check.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"
#include "pagmo/algorithms/nsga2.hpp"
#include "pagmo/batch_evaluators/member_bfe.hpp"
#include "pagmo/bfe.hpp"
#include "pagmo/population.hpp"
#include "pagmo/problem.hpp"

namespace kvmix {
namespace {

// Away from the streams of other allocators.
constexpr uint64_t kStream = (uint64_t{1} << 48) + (uint64_t{2} << 40);
// The loss of what exceeds the budget.
constexpr double kExceeds = std::numeric_limits<double>::max();

// What the search has seen. pagmo copies problems, so that they point here.
class Search {
 public:
  explicit Search(const FrontProblem& problem) : problem_(problem) {
    for (size_t g = 0; g < problem.num_choices.size(); ++g) {
      if (problem.num_choices[g] > 1) free_.push_back(g);
    }
  }

  // Genes that have a choice: what pagmo searches over.
  size_t num_free() const { return free_.size(); }
  int choices(size_t free) const { return problem_.num_choices[free_[free]]; }
  const absl::Status& status() const { return status_; }

  pagmo::vector_double Encode(const Genes& genes) const {
    pagmo::vector_double x;
    for (size_t g : free_) x.push_back(genes[g]);
    return x;
  }
  Genes Decode(const double* x) const {
    Genes genes(problem_.num_choices.size());
    for (size_t i = 0; i < free_.size(); ++i)
      genes[free_[i]] = static_cast<int>(x[i]);
    return genes;
  }

  // {bytes, loss} of each. After an error all are alike, and status() says so.
  std::vector<pagmo::vector_double> Fitness(const std::vector<Genes>& all) {
    if (status_.ok()) status_ = See(all);
    std::vector<pagmo::vector_double> fitness;
    for (const Genes& genes : all) {
      const auto at = seen_.find(genes);
      fitness.push_back({static_cast<double>(problem_.bytes(genes)),
                         at == seen_.end() ? kExceeds : at->second});
    }
    return fitness;
  }

  std::vector<FrontPoint> Front() const {
    std::vector<FrontPoint> points;
    for (const auto& [genes, loss] : seen_)
      points.push_back({genes, problem_.bytes(genes), loss});
    std::stable_sort(points.begin(), points.end(),
                     [](const FrontPoint& a, const FrontPoint& b) {
                       return a.bytes != b.bytes ? a.bytes < b.bytes
                                                 : a.loss < b.loss;
                     });
    std::vector<FrontPoint> front;
    for (FrontPoint& point : points) {
      if (front.empty() || point.loss < front.back().loss)
        front.push_back(std::move(point));
    }
    return front;
  }

 private:
  absl::Status See(const std::vector<Genes>& all) {
    std::vector<Genes> fresh;
    for (const Genes& genes : all) {
      if (seen_.count(genes) == 0 &&
          problem_.bytes(genes) <= problem_.budget_bytes &&
          std::find(fresh.begin(), fresh.end(), genes) == fresh.end())
        fresh.push_back(genes);
    }
    if (fresh.empty()) return absl::OkStatus();
    KVMIX_ASSIGN_OR_RETURN(const std::vector<double> losses,
                           problem_.losses(fresh));
    KVMIX_CHECK(losses.size() == fresh.size());
    for (size_t i = 0; i < fresh.size(); ++i) {
      KVMIX_CHECK(std::isfinite(losses[i]));
      seen_.emplace(std::move(fresh[i]), losses[i]);
    }
    return absl::OkStatus();
  }

  const FrontProblem& problem_;
  std::vector<size_t> free_;
  std::map<Genes, double> seen_;  // within the budget
  absl::Status status_;
};

// pagmo's view of it.
struct Problem {
  Search* search = nullptr;

  pagmo::vector_double::size_type get_nobj() const { return 2; }
  pagmo::vector_double::size_type get_nix() const { return search->num_free(); }
  std::pair<pagmo::vector_double, pagmo::vector_double> get_bounds() const {
    // pagmo asks a problem that was made by default, too.
    const size_t n = search == nullptr ? 1 : search->num_free();
    pagmo::vector_double high;
    for (size_t i = 0; i < n; ++i)
      high.push_back(search == nullptr ? 0 : search->choices(i) - 1);
    return {pagmo::vector_double(n, 0), high};
  }
  pagmo::vector_double fitness(const pagmo::vector_double& x) const {
    return search->Fitness({search->Decode(x.data())})[0];
  }
  pagmo::vector_double batch_fitness(const pagmo::vector_double& xs) const {
    std::vector<Genes> all;
    for (size_t i = 0; i < xs.size(); i += search->num_free())
      all.push_back(search->Decode(xs.data() + i));
    pagmo::vector_double flat;
    for (const pagmo::vector_double& f : search->Fitness(all))
      flat.insert(flat.end(), f.begin(), f.end());
    return flat;
  }
};

std::vector<Genes> FirstGeneration(const FrontProblem& problem,
                                   const FrontOptions& options) {
  std::vector<Genes> all = problem.start;
  all.resize(std::min<size_t>(all.size(), options.population));
  CounterRandom random(options.seed, kStream);
  while (static_cast<int>(all.size()) < options.population) {
    Genes& genes = all.emplace_back();
    for (int choices : problem.num_choices)
      genes.push_back(static_cast<int>(random.Below(choices)));
  }
  return all;
}

}  // namespace

absl::StatusOr<std::vector<FrontPoint>> SearchFront(
    const FrontProblem& problem, const FrontOptions& options) {
  Search search(problem);
  std::optional<ProgressBar> bar;
  if (options.show_progress)
    bar.emplace("search", options.generations + 1, "generations");
  const std::vector<Genes> first = FirstGeneration(problem, options);
  const std::vector<pagmo::vector_double> fitness = search.Fitness(first);
  KVMIX_RETURN_IF_ERROR(search.status());
  if (bar) bar->Advance();
  if (search.num_free() == 0) return search.Front();
  const auto seed = static_cast<unsigned>(options.seed);
  pagmo::population population(pagmo::problem(Problem{&search}), 0, seed);
  for (size_t i = 0; i < first.size(); ++i)
    population.push_back(search.Encode(first[i]), fitness[i]);
  // One gene in a candidate changes at random, in the mean.
  pagmo::nsga2 nsga2(/*gen=*/1, /*cr=*/0.9, /*eta_c=*/10,
                     /*m=*/1.0 / static_cast<double>(search.num_free()),
                     /*eta_m=*/50, seed);
  nsga2.set_bfe(pagmo::bfe(pagmo::member_bfe()));
  for (int g = 0; g < options.generations; ++g) {
    population = nsga2.evolve(std::move(population));
    KVMIX_RETURN_IF_ERROR(search.status());
    if (bar) bar->Advance();
  }
  return search.Front();
}

}  // namespace kvmix
