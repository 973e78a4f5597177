#include "quant/normal_code.h"

#include <memory>
#include <vector>

#include "kvmix/base/check.h"
#include "quant/level_table.h"
#include "quant/normal_codebook.h"
#include "quant/trellis_code.h"

namespace kvmix {
namespace {

class ScalarCode final : public NormalCode {
 public:
  explicit ScalarCode(int bits)
      : table_(NormalCodebook(bits)), error_(NormalCodebookError(bits)) {}
  void Encode(const float* x, int n, uint32_t* codes) const override {
    for (int i = 0; i < n; ++i) codes[i] = table_.Nearest(x[i]);
  }
  void Decode(const uint32_t* codes, int n, float* levels) const override {
    for (int i = 0; i < n; ++i) levels[i] = table_.value(codes[i]);
  }
  double error() const override { return error_; }

 private:
  const LevelTable table_;
  const double error_;
};

using Codes = std::vector<std::unique_ptr<const NormalCode>>;

template <class Code>
Codes* AllOf(int max_bits) {
  auto* codes = new Codes;
  for (int b = 1; b <= max_bits; ++b)
    codes->push_back(std::make_unique<Code>(b));
  return codes;
}

}  // namespace

const NormalCode& NormalCodeOfBits(bool trellis, int bits) {
  KVMIX_CHECK(bits >= 1 && bits <= MaxNormalCodeBits(trellis));
  static const Codes* const scalar =
      AllOf<ScalarCode>(MaxNormalCodeBits(/*trellis=*/false));
  static const Codes* const trellises =
      AllOf<TrellisCode>(MaxNormalCodeBits(/*trellis=*/true));
  return *(*(trellis ? trellises : scalar))[bits - 1];
}

}  // namespace kvmix
