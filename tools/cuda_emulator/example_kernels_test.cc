// Kernels on the emulator, and on a device, against plain loops.
#include "tools/cuda_emulator/example_kernels.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/device_vector.h"

namespace kvmix {
namespace {

std::vector<__half> RandomHalves(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<__half> v(n);
  for (__half& x : v) x = __float2half(normal(random));
  return v;
}

template <typename T>
std::vector<double> ToDouble(const std::vector<T>& v) {
  std::vector<double> d;
  for (const T& x : v) d.push_back(static_cast<float>(x));
  return d;
}

// Largest error of RunRowScale, relative to 1e-3 + |result|.
template <typename T>
double RowScaleError() {
  const int rows = 5, n = 300;
  std::vector<T> x, w;
  for (__half v : RandomHalves(rows * n, 1)) x.push_back(T(__half2float(v)));
  for (__half v : RandomHalves(n, 2)) w.push_back(T(__half2float(v)));
  DeviceVector<T> dx(x), dw(w), dy(rows * n);
  EXPECT_EQ(RunRowScale(dx.data(), dw.data(), dy.data(), rows, n, nullptr),
            cudaSuccess);
  const std::vector<double> xd = ToDouble(x), wd = ToDouble(w),
                            y = ToDouble(dy.ToHost());
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    double squares = 0;
    for (int i = 0; i < n; ++i) squares += xd[r * n + i] * xd[r * n + i];
    for (int i = 0; i < n; ++i) {
      const double want = xd[r * n + i] / std::sqrt(squares / n + 1e-5) * wd[i];
      worst = std::max(worst,
                       std::abs(want - y[r * n + i]) / (1e-3 + std::abs(want)));
    }
  }
  return worst;
}

TEST(ExampleKernelsTest, ReductionByShufflesAndSharedMemory) {
  EXPECT_LT(RowScaleError<__half>(), 1e-3);
  EXPECT_LT(RowScaleError<__nv_bfloat16>(), 5e-3);
}

TEST(ExampleKernelsTest, PackingByShufflesVotesAndAtomics) {
  const int groups = 64;
  const std::vector<__half> x = RandomHalves(groups * 32, 3);
  DeviceVector<__half> dx(x);
  DeviceVector<unsigned> packed(groups * 4),
      histogram(std::vector<unsigned>(2));
  DeviceVector<__half2> meta(groups);
  ASSERT_EQ(
      RunPack4(dx.data(), packed.data(), meta.data(), histogram.data(), groups),
      cudaSuccess);
  const auto p = packed.ToHost(), h = histogram.ToHost();
  const auto m = meta.ToHost();
  unsigned nonzero = 0, most = 0;
  for (int g = 0; g < groups; ++g) {
    unsigned here = 0;
    const double step = __low2float(m[g]), low = __high2float(m[g]);
    for (int i = 0; i < 32; ++i) {
      const unsigned code = p[g * 4 + i / 8] >> (i % 8 * 4) & 15;
      here += code != 0;
      EXPECT_LT(std::abs(code * step + low - __half2float(x[g * 32 + i])),
                0.52 * step);
    }
    nonzero += here;
    most = std::max(most, here);
  }
  EXPECT_EQ(h[0], nonzero);
  EXPECT_EQ(h[1], most);
}

TEST(ExampleKernelsTest, AtomicsOfFloatAndInt) {
  std::vector<float> x(1000);
  for (int i = 0; i < 1000; ++i) x[i] = i % 77;
  DeviceVector<float> dx(x), sum(std::vector<float>{0});
  DeviceVector<int> largest(std::vector<int>{-5});
  ASSERT_EQ(RunAtomics(sum.data(), largest.data(), dx.data(), 1000),
            cudaSuccess);
  double want = 0;
  for (float v : x) want += v;
  EXPECT_EQ(sum.ToHost()[0], want);
  EXPECT_EQ(largest.ToHost()[0], 76);
}

TEST(ExampleKernelsTest, TensorCoreTileByAsyncCopyAndLdmatrix) {
  for (int k : {16, 64, 128}) {
    const auto a = RandomHalves(16 * k, 4), b = RandomHalves(8 * k, 5);
    DeviceVector<__half> da(a), db(b);
    DeviceVector<float> dc(128);
    ASSERT_EQ(RunOneTile(da.data(), db.data(), dc.data(), k), cudaSuccess);
    const auto c = dc.ToHost();
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        double sum = 0;
        for (int q = 0; q < k; ++q) {
          sum += static_cast<double>(__half2float(a[i * k + q])) *
                 __half2float(b[j * k + q]);
        }
        EXPECT_NEAR(c[i * 8 + j], sum, 1e-4) << "k " << k;
      }
    }
  }
}

TEST(ExampleKernelsTest, LdmatrixTransposes) {
  std::vector<__half> x(256);
  for (int i = 0; i < 256; ++i) x[i] = __float2half(i);
  DeviceVector<__half> dx(x);
  DeviceVector<unsigned> out(128), moved(128);
  ASSERT_EQ(RunTransposed(dx.data(), out.data(), moved.data()), cudaSuccess);
  const auto o = out.ToHost();
  EXPECT_EQ(moved.ToHost(), o);
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      __half pair[2];
      std::memcpy(static_cast<void*>(pair), &o[matrix * 32 + lane],
                  sizeof pair);
      const int row = matrix * 8 + lane % 4 * 2;
      EXPECT_EQ(__half2float(pair[0]), row * 8 + lane / 4);
      EXPECT_EQ(__half2float(pair[1]), (row + 1) * 8 + lane / 4);
    }
  }
}

}  // namespace
}  // namespace kvmix
