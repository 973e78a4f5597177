// What a warp's tensor cores compute. No part of what kernels include:
// kvmix/base/ptx.h calls it.
#pragma once

#include <cstdint>

namespace emu {

// Eight halves, as ldmatrix reads them from the address that a lane gives.
using MatrixRow = uint16_t[8];

// A lane's part of  D[n] += A[s] B[s][n], for steps s in order and all products
// n: each A 16 x 16 and B 16 x 8 halves, D 16 x 8 floats, laid out over the
// lanes as the PTX ISA says of mma.m16n8k16. An operand is either fragments, or
// the rows that ldmatrix would make into them.
struct TensorOperands {
  int steps = 1, products = 1;        // at most kMaxProducts
  const unsigned (*a)[4] = nullptr;   // [steps]
  const MatrixRow* a_rows = nullptr;  // [steps]
  const unsigned (*b)[2] = nullptr;   // [steps][products]
  const MatrixRow* b_rows = nullptr;  // [steps][products / 2]
  bool b_transposed = false;          // ldmatrix.trans
  float (*d)[4] = nullptr;            // [products]
};
constexpr int kMaxProducts = 32;

// Of a whole warp: lanes[l] is lane l's TensorOperands. The hardware's order
// and rounding of a sum are unspecified: compare with a tolerance. Here it is
// float, in order; products of halves are exact in it, so every instruction set
// gives the same bits.
void Multiply(void** lanes, unsigned present);

}  // namespace emu
