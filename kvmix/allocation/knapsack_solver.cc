#include "kvmix/allocation/knapsack_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A choice for every item up to some one.
struct State {
  int64_t bytes = 0;
  double loss = 0;
  int parent = -1;  // among the states of the item before
  int choice = 0;
};

// Sorted by bytes, losses falling: what no other state beats.
void KeepUndominated(std::vector<State>& states) {
  std::sort(states.begin(), states.end(), [](const State& a, const State& b) {
    if (a.bytes != b.bytes) return a.bytes < b.bytes;
    if (a.loss != b.loss) return a.loss < b.loss;
    return a.parent != b.parent ? a.parent < b.parent : a.choice < b.choice;
  });
  size_t kept = 0;
  for (const State& state : states) {
    if (kept == 0 || state.loss < states[kept - 1].loss) states[kept++] = state;
  }
  states.resize(kept);
}

// Each item's choice of least loss + price * bytes; of equals the cheaper.
std::vector<int> PricedChoices(const ChoiceTable& table, double price) {
  std::vector<int> chosen;
  for (const std::vector<Choice>& item : table) {
    int best = 0;
    const auto cost = [&](int c) {
      return item[c].loss + price * static_cast<double>(item[c].bytes);
    };
    for (int c = 1; c < static_cast<int>(item.size()); ++c) {
      if (cost(c) < cost(best) ||
          (cost(c) == cost(best) && item[c].bytes < item[best].bytes))
        best = c;
    }
    chosen.push_back(best);
  }
  return chosen;
}

// The least price of a byte, in loss, at which priced choices fit: it gives the
// tightest bound. Choices change only at prices where two choices of an item
// cost the same.
double FitPrice(const ChoiceTable& table, int64_t budget) {
  std::vector<double> prices = {0};
  for (const std::vector<Choice>& item : table) {
    for (const Choice& a : item) {
      for (const Choice& b : item) {
        if (a.bytes <= b.bytes || a.loss >= b.loss) continue;
        const double price =
            (b.loss - a.loss) / static_cast<double>(a.bytes - b.bytes);
        prices.push_back(price * (1 + 1e-9));  // past the tie, despite rounding
      }
    }
  }
  std::sort(prices.begin(), prices.end());
  return *std::partition_point(
      prices.begin(), prices.end() - 1, [&](double price) {
        return BytesOf(table, PricedChoices(table, price)) > budget;
      });
}

class Solver {
 public:
  Solver(const ChoiceTable& table, int64_t budget)
      : table_(table), budget_(budget), price_(FitPrice(table, budget)) {
    std::vector<int> incumbent = PricedChoices(table, price_);
    if (BytesOf(table, incumbent) > budget) incumbent = CheapestChoices(table);
    best_known_ = LossOf(table, incumbent);
    // What rounding may add to a bound.
    slack_ = 1e-11 * (MostLoss() + price_ * static_cast<double>(budget));
    rest_.assign(table.size() + 1, 0);
    least_bytes_.assign(table.size() + 1, 0);
    for (size_t i = table.size(); i-- > 0;) {
      double best = kInfinity;
      int64_t least = std::numeric_limits<int64_t>::max();
      for (const Choice& choice : table[i]) {
        best = std::min(
            best, choice.loss + price_ * static_cast<double>(choice.bytes));
        least = std::min(least, choice.bytes);
      }
      rest_[i] = rest_[i + 1] + best;
      least_bytes_[i] = least_bytes_[i + 1] + least;
    }
  }

  std::vector<int> Solve() {
    std::vector<std::vector<State>> steps(1, {State()});
    for (size_t i = 0; i < table_.size(); ++i)
      steps.push_back(Extend(steps.back(), i));
    KVMIX_CHECK(!steps.back().empty());
    // The last undominated state has the least loss.
    int at = static_cast<int>(steps.back().size()) - 1;
    std::vector<int> chosen(table_.size());
    for (size_t i = table_.size(); i-- > 0;) {
      const State& state = steps[i + 1][at];
      chosen[i] = state.choice;
      at = state.parent;
    }
    return chosen;
  }

 private:
  double MostLoss() const {
    double sum = 0;
    for (const std::vector<Choice>& item : table_) {
      double most = 0;
      for (const Choice& choice : item)
        most = std::max(most, std::abs(choice.loss));
      sum += most;
    }
    return sum;
  }

  std::vector<State> Extend(const std::vector<State>& states, size_t item) {
    std::vector<State> next;
    for (size_t s = 0; s < states.size(); ++s) {
      for (size_t c = 0; c < table_[item].size(); ++c) {
        const Choice& choice = table_[item][c];
        const State state = {.bytes = states[s].bytes + choice.bytes,
                             .loss = states[s].loss + choice.loss,
                             .parent = static_cast<int>(s),
                             .choice = static_cast<int>(c)};
        if (CanWin(state, item + 1)) next.push_back(state);
      }
    }
    KeepUndominated(next);
    return next;
  }

  // Whether the items from `item` on can still fit and reach the best known.
  bool CanWin(const State& state, size_t item) const {
    if (state.bytes + least_bytes_[item] > budget_) return false;
    const double bound = state.loss + rest_[item] -
                         price_ * static_cast<double>(budget_ - state.bytes);
    return bound <= best_known_ + slack_;
  }

  const ChoiceTable& table_;
  const int64_t budget_;
  const double price_;
  double best_known_ = 0;
  double slack_ = 0;
  std::vector<double> rest_;          // [items + 1] least priced cost from i on
  std::vector<int64_t> least_bytes_;  // [items + 1] likewise
};

}  // namespace

std::vector<int> SolveKnapsack(const ChoiceTable& table, int64_t budget_bytes) {
  return Solver(table, budget_bytes).Solve();
}

}  // namespace kvmix
