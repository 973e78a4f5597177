#include "tools/cuda_emulator/tensor_cores.h"

#include <cstring>

#include "tools/cuda_emulator/emulator.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/cuda_emulator/tensor_cores.cc"
// clang-format off
#include "hwy/foreach_target.h"  // before the others
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace emu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 8>;
using Halves = hn::Rebind<hwy::float16_t, Floats>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kVectors = 8 / kLanes;
constexpr int kRows =
    kVectors == 1 ? 8 : 4;  // of D whose sums stay in registers

HWY_INLINE const TensorOperands& Lane(void** lanes, int l) {
  return *static_cast<const TensorOperands*>(lanes[l]);
}

// 8 halves.
HWY_INLINE void Widen(const uint16_t* from, float* to) {
  for (int v = 0; v < 8; v += kLanes) {
    const auto x =
        hn::LoadU(Halves(), reinterpret_cast<const hwy::float16_t*>(from + v));
    hn::StoreU(hn::PromoteTo(Floats(), x), Floats(), to + v);
  }
}

// Matrices of 8 x 8 halves, as fragments of the lanes, as rows.
template <int kMatrices, typename FragmentsOf>
HWY_INLINE void RowsOfFragments(const FragmentsOf& fragments_of,
                                uint16_t (&rows)[8 * kMatrices][8]) {
  for (int l = 0; l < 32; ++l) {
    const unsigned* const own = fragments_of(l);
    for (int m = 0; m < kMatrices; ++m)
      std::memcpy(&rows[8 * m + l / 4][l % 4 * 2], own + m, sizeof *own);
  }
}

HWY_INLINE void LoadA(void** lanes, int step, float (&a)[16][16]) {
  // Row l % 8 of matrix l / 8.
  const auto place = [&](int l) {
    return &a[l / 8 % 2 * 8 + l % 8][l / 16 * 8];
  };
  if (Lane(lanes, 0).a_rows != nullptr) {
    for (int l = 0; l < 32; ++l) Widen(Lane(lanes, l).a_rows[step], place(l));
    return;
  }
  uint16_t rows[32][8];
  RowsOfFragments<4>([&](int l) { return Lane(lanes, l).a[step]; }, rows);
  for (int l = 0; l < 32; ++l) Widen(rows[l], place(l));
}

// Of product n, [k][n].
HWY_INLINE void LoadB(void** lanes, int step, int n, float (&b)[16][8]) {
  const int at = step * Lane(lanes, 0).products + n;
  const auto load_row = [&](int i, const uint16_t* row, bool transposed) {
    if (transposed) return Widen(row, b[i]);
    float column[8];
    Widen(row, column);
    for (int k = 0; k < 8; ++k) b[i / 8 * 8 + k][i % 8] = column[k];
  };
  if (Lane(lanes, 0).b_rows != nullptr) {
    for (int i = 0; i < 16; ++i) {
      const TensorOperands& own = Lane(lanes, n % 2 * 16 + i);
      load_row(i, own.b_rows[at / 2], own.b_transposed);
    }
    return;
  }
  uint16_t rows[16][8];
  RowsOfFragments<2>([&](int l) { return Lane(lanes, l).b[at]; }, rows);
  for (int i = 0; i < 16; ++i) load_row(i, rows[i], false);
}

// d += a b, of 16 x 8.
HWY_INLINE void MultiplyOne(const float (&a)[16][16], const float (&b)[16][8],
                            float (&d)[16][8]) {
  for (int r = 0; r < 16; r += kRows) {
    hn::Vec<Floats> sum[kRows * kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kVectors; ++i)
      sum[i] = hn::LoadU(Floats(), d[r] + i * kLanes);
    for (int k = 0; k < 16; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < kRows * kVectors; ++i)
        sum[i] = hn::MulAdd(hn::Set(Floats(), a[r + i / kVectors][k]),
                            hn::LoadU(Floats(), b[k] + i % kVectors * kLanes),
                            sum[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kVectors; ++i)
      hn::StoreU(sum[i], Floats(), d[r] + i * kLanes);
  }
}

void MultiplyWarp(void** lanes) {
  const int steps = Lane(lanes, 0).steps, products = Lane(lanes, 0).products;
  float d[kMaxProducts][16][8];
  // Two neighbours of a row lie in a lane.
  const auto each_pair = [&](const auto& body) {
    for (int l = 0; l < 32; ++l) {
      float(*const own)[4] = Lane(lanes, l).d;
      for (int n = 0; n < products; ++n)
        for (int half = 0; half < 2; ++half)
          body(&own[n][2 * half], &d[n][l / 4 + 8 * half][l % 4 * 2]);
    }
  };
  each_pair([](const float* of_lane, float* of_warp) {
    std::memcpy(of_warp, of_lane, 2 * sizeof(float));
  });
  for (int s = 0; s < steps; ++s) {
    float a[16][16];
    LoadA(lanes, s, a);
    for (int n = 0; n < products; ++n) {
      float b[16][8];
      LoadB(lanes, s, n, b);
      MultiplyOne(a, b, d[n]);
    }
  }
  each_pair([](float* of_lane, const float* of_warp) {
    std::memcpy(of_lane, of_warp, 2 * sizeof(float));
  });
}

}  // namespace emu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace emu {

HWY_EXPORT(MultiplyWarp);

void Multiply(void** lanes, unsigned present) {
  if (present != ~0u) return Report("mma: lanes %#x take no part", ~present);
  HWY_DYNAMIC_DISPATCH(MultiplyWarp)(lanes);
}

}  // namespace emu
#endif  // HWY_ONCE
