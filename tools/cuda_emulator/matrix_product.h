// Products of column-major float matrices, for the stand-in for cuBLAS.
#pragma once

namespace emu {

// c = a b, with a [m, k], b [k, n], c [m, n], columns without gaps. Every
// number of c is a sum in float in the order of k: results depend on nothing
// but whether the CPU has fused multiply-adds.
void MatrixProduct(const float* a, const float* b, int m, int n, int k,
                   float* c);

}  // namespace emu
