#include "attention/full_precision.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/full_precision.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "attention/full_precision-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;

template <class T>
void ToFloatsOf(const T* from, int64_t n, float* x) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(LoadNumbers(d, from + i), d, x + i);
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) hn::StoreU(LoadNumbers(one, from + i), one, x + i);
}

void ToFloatsImpl(NumberType type, const void* numbers, int64_t n, float* x) {
  VisitNumbers(type, numbers,
               [&](const auto* from) HWY_ATTR { ToFloatsOf(from, n, x); });
}

void FloatsToHalvesImpl(const float* x, int64_t n, Half* to) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto* halves = reinterpret_cast<hwy::float16_t*>(to);
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(d, x + i)), dh, halves + i);
#endif
  for (; i < n; ++i) to[i] = ToHalf(x[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(ToFloatsImpl);
HWY_EXPORT(FloatsToHalvesImpl);

void ToFloats(NumberType type, const void* numbers, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(ToFloatsImpl)(type, numbers, n, x);
}

void FromFloats(NumberType type, const float* x, int64_t n, void* numbers) {
  switch (type) {
    case NumberType::kHalf:
      HWY_DYNAMIC_DISPATCH(FloatsToHalvesImpl)
      (x, n, static_cast<Half*>(numbers));
      return;
    case NumberType::kBFloat16:  // integers alone: compilers vectorise it
      std::transform(x, x + n, static_cast<BFloat16*>(numbers), ToBFloat16);
      return;
    case NumberType::kFloat:
      std::copy_n(x, n, static_cast<float*>(numbers));
      return;
  }
}

}  // namespace kvmix
#endif  // HWY_ONCE
