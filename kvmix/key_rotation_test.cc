#include "kvmix/key_rotation.h"

#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

constexpr int kDim = 24;
constexpr int64_t kCount = 150, kStride = 153;  // 3 pages from anywhere

double Angle(int64_t position, int pair) {
  return static_cast<double>(position) * std::pow(500.0, -2.0 * pair / kDim);
}

KeyRotation Make(double factor) {
  return KeyRotation(kDim, [factor](int64_t position, float* cos, float* sin) {
    for (int i = 0; i < kDim / 2; ++i) {
      cos[i] = static_cast<float>(factor * std::cos(Angle(position, i)));
      sin[i] = static_cast<float>(factor * std::sin(Angle(position, i)));
    }
  });
}

std::vector<float> Numbers() {
  CounterRandom random(3, 0);
  std::vector<float> x(kDim * kStride);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

TEST(KeyRotationTest, TurnsEveryPairByItsPosition) {
  for (const double factor : {1.0, 1.25}) {
    const KeyRotation rotation = Make(factor);
    for (const int64_t first : {0, 1, 63, 64, 1000}) {
      const std::vector<float> x = Numbers();
      std::vector<float> y = x;
      rotation.Rotate(first, kCount, y.data(), kStride);
      for (int i = 0; i < kDim / 2; ++i) {
        for (int64_t t = 0; t < kStride; ++t) {
          const int64_t a = i * kStride + t, b = (i + kDim / 2) * kStride + t;
          if (t >= kCount) {
            ASSERT_EQ(y[a], x[a]);  // beyond the tokens
            ASSERT_EQ(y[b], x[b]);
            continue;
          }
          const double c = factor * std::cos(Angle(first + t, i));
          const double s = factor * std::sin(Angle(first + t, i));
          ASSERT_NEAR(y[a], c * x[a] - s * x[b], 2e-6);
          ASSERT_NEAR(y[b], c * x[b] + s * x[a], 2e-6);
        }
      }
    }
  }
}

TEST(KeyRotationTest, BackIsTheInverse) {
  for (const double factor : {1.0, 1.25}) {
    const KeyRotation rotation = Make(factor);
    const std::vector<float> x = Numbers();
    for (const int64_t first : {0, 40, 5000}) {
      std::vector<float> there = x, back = x;
      rotation.Rotate(first, kCount, there.data(), kStride);
      rotation.Unrotate(first, kCount, there.data(), kStride);
      rotation.Unrotate(first, kCount, back.data(), kStride);
      rotation.Rotate(first, kCount, back.data(), kStride);
      for (size_t i = 0; i < x.size(); ++i) {
        // A pair's length is at most about 5.
        ASSERT_NEAR(there[i], x[i], 1e-6);
        ASSERT_NEAR(back[i], x[i], 1e-6);
      }
    }
  }
}

TEST(KeyRotationTest, PartsAreThoseOfTheWhole) {
  const KeyRotation rotation = Make(1);
  std::vector<float> whole = Numbers(), parts = whole;
  rotation.Rotate(30, kCount, whole.data(), kStride);
  for (int64_t t = 0; t < kCount; t += 7)
    rotation.Rotate(30 + t, std::min<int64_t>(7, kCount - t), parts.data() + t,
                    kStride);
  EXPECT_EQ(parts, whole);
}

TEST(KeyRotationTest, ThreadsMayMeetNewPositionsTogether) {
  const KeyRotation rotation = Make(1);
  std::vector<std::vector<float>> turned(4, Numbers());
  std::vector<std::thread> threads;
  for (std::vector<float>& x : turned) {
    threads.emplace_back([&rotation, &x] {
      for (int64_t first = 0; first < 5000; first += 97)
        rotation.Rotate(first, kCount, x.data(), kStride);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& x : turned) EXPECT_EQ(x, turned[0]);
}

}  // namespace
}  // namespace kvmix
