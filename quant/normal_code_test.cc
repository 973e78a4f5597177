#include "quant/normal_code.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "quant/normal_codebook.h"
#include "quant/trellis_code.h"

namespace kvmix {
namespace {

std::vector<float> NormalNumbers(int n, uint64_t stream) {
  CounterRandom random(11, stream);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

// Quantiles of the normal distribution, shuffled: random numbers of which the
// few far out are as many as they should be.
std::vector<float> NormalQuantiles(int n) {
  CounterRandom random(2, 0);
  std::vector<float> x(n);
  for (int i = 0; i < n; ++i) {
    double low = -9, high = 9;
    for (int step = 0; step < 50; ++step) {
      const double middle = (low + high) / 2;
      (std::erfc(-middle / M_SQRT2) / 2 < (i + 0.5) / n ? low : high) = middle;
    }
    x[i] = static_cast<float>(low);
    std::swap(x[i], x[random.Below(i + 1)]);
  }
  return x;
}

double SquaredError(const NormalCode& code, const std::vector<float>& x,
                    const std::vector<uint32_t>& codes) {
  std::vector<float> levels(x.size());
  code.Decode(codes.data(), static_cast<int>(x.size()), levels.data());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = static_cast<double>(x[i]) - levels[i];
    sum += e * e;
  }
  return sum;
}

std::vector<uint32_t> Encoded(const NormalCode& code,
                              const std::vector<float>& x) {
  std::vector<uint32_t> codes(x.size());
  code.Encode(x.data(), static_cast<int>(x.size()), codes.data());
  return codes;
}

TEST(NormalCodeTest, ErrorIsWhatNormalNumbersSuffer) {
  const std::vector<float> all = NormalQuantiles(128 * 400);
  for (const bool trellis : {false, true}) {
    for (int bits = 1; bits <= MaxNormalCodeBits(trellis); ++bits) {
      SCOPED_TRACE(testing::Message()
                   << (trellis ? "trellis " : "scalar ") << bits);
      const NormalCode& code = NormalCodeOfBits(trellis, bits);
      double error = 0;
      for (auto row = all.begin(); row < all.end(); row += 128) {
        const std::vector<float> x(row, row + 128);
        error += SquaredError(code, x, Encoded(code, x));
      }
      EXPECT_NEAR(error / static_cast<double>(all.size()) / code.error(), 1,
                  0.02);
    }
  }
}

// What a trellis is for: less error than the best codebook in as many bits, and
// more than any code of so many bits can have (rate-distortion, 4^-bits).
TEST(NormalCodeTest, ATrellisLiesBetweenTheBestCodebookAndTheBound) {
  const double at_most[] = {0.83, 0.73, 0.69, 0.66, 0.66, 0.66, 0.66};
  for (int bits = 1; bits <= MaxNormalCodeBits(true); ++bits) {
    const double error = NormalCodeOfBits(true, bits).error();
    EXPECT_LT(error, at_most[bits - 1] * NormalCodebookError(bits)) << bits;
    EXPECT_GT(error, std::exp2(-2 * bits)) << bits;
  }
}

// All codes of a short row, longer than the seven numbers that a level depends
// on.
TEST(TrellisCodeTest, NoOtherCodesAreOfLessError) {
  struct {
    int bits, n;
  } const cases[] = {{1, 14}, {2, 8}, {3, 5}};
  for (const auto [bits, n] : cases) {
    const TrellisCode code(bits);
    for (uint64_t stream = 0; stream < 8; ++stream) {
      const std::vector<float> x = NormalNumbers(n, stream);
      double least = INFINITY;
      std::vector<uint32_t> codes(n);
      for (uint32_t all = 0; all < 1u << bits * n; ++all) {
        for (int t = 0; t < n; ++t)
          codes[t] = all >> bits * t & ((1 << bits) - 1);
        least = std::min(least, SquaredError(code, x, codes));
      }
      // The encoder adds in float.
      EXPECT_NEAR(SquaredError(code, x, Encoded(code, x)), least, 1e-5 * n)
          << bits << " bits, stream " << stream;
    }
  }
}

// The convolutional code as a textbook has it: two taps on the bits so far.
TEST(TrellisCodeTest, LevelsAreThoseOfTheConvolutionalCode) {
  const TrellisCode code(3);
  ASSERT_EQ(code.levels().size(), 16u);
  CounterRandom random(5, 0);
  std::vector<uint32_t> codes(100);
  for (uint32_t& c : codes) c = static_cast<uint32_t>(random.Below(8));
  std::vector<float> levels(codes.size());
  code.Decode(codes.data(), 100, levels.data());
  const auto bit = [&](int t) { return t < 0 ? 0u : codes[t] & 1; };
  for (int t = 0; t < 100; ++t) {
    const unsigned high = bit(t) ^ bit(t - 1) ^ bit(t - 6);
    const unsigned low = bit(t - 2) ^ bit(t - 4);
    EXPECT_EQ(levels[t], code.levels()[4 * (codes[t] >> 1) + 2 * high + low]);
  }
}

TEST(TrellisCodeTest, ANumberThatIsNotFiniteCountsAs0) {
  const float infinity = std::numeric_limits<float>::infinity();
  const TrellisCode code(4);
  std::vector<float> x = NormalNumbers(64, 1), zeros = x;
  x[7] = NAN, x[20] = infinity, x[33] = -infinity;
  for (const int i : {7, 20, 33}) zeros[i] = 0;
  EXPECT_EQ(Encoded(code, x), Encoded(code, zeros));
}

TEST(NormalCodeTest, AnyNumberHasACode) {
  for (const bool trellis : {false, true}) {
    for (int bits = 1; bits <= MaxNormalCodeBits(trellis); ++bits) {
      const std::vector<float> x = {3e38f, -3e38f, 1e-40f, NAN, 1e20f, -1e20f};
      for (const uint32_t c : Encoded(NormalCodeOfBits(trellis, bits), x))
        EXPECT_LT(c, 1u << bits);
    }
  }
}

}  // namespace
}  // namespace kvmix
