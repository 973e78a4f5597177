// The problem of a ChoiceTable by GLPK's branch and bound, for tests. testonly.
#pragma once

#include <glpk.h>

#include <cstdint>

#include "gtest/gtest.h"
#include "kvmix/allocation/choice_table.h"

namespace kvmix {

// GLPK takes a solution for optimal within 1e-7 of its objective.
inline constexpr double kGlpkTolerance = 2e-7;

// Least loss within the budget: x[i][c] in {0, 1}, one choice of each item.
inline double GlpkOptimum(const ChoiceTable& table, int64_t budget_bytes) {
  glp_term_out(GLP_OFF);
  glp_prob* problem = glp_create_prob();
  glp_set_obj_dir(problem, GLP_MIN);
  const int num_items = static_cast<int>(table.size());
  glp_add_rows(problem, num_items + 1);
  glp_set_row_bnds(problem, num_items + 1, GLP_UP, 0,
                   static_cast<double>(budget_bytes));
  for (int i = 0; i < num_items; ++i) {
    glp_set_row_bnds(problem, i + 1, GLP_FX, 1, 1);
    for (const Choice& choice : table[i]) {
      const int column = glp_add_cols(problem, 1);
      glp_set_col_kind(problem, column, GLP_BV);
      glp_set_obj_coef(problem, column, choice.loss);
      const int rows[] = {0, i + 1, num_items + 1};
      const double values[] = {0, 1, static_cast<double>(choice.bytes)};
      glp_set_mat_col(problem, column, 2, rows, values);
    }
  }
  glp_iocp options;
  glp_init_iocp(&options);
  options.presolve = GLP_ON;
  EXPECT_EQ(glp_intopt(problem, &options), 0);
  EXPECT_EQ(glp_mip_status(problem), GLP_OPT);
  const double optimum = glp_mip_obj_val(problem);
  glp_delete_prob(problem);
  return optimum;
}

}  // namespace kvmix
