#include "attention/half_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/half_rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;

void HalfToFloatImpl(const Half* half, int64_t n, float* x) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* from = reinterpret_cast<const hwy::float16_t*>(half);
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, from + i)), d, x + i);
#endif
  for (; i < n; ++i) x[i] = ToFloat(half[i]);
}

void FloatToHalfImpl(const float* x, int64_t n, Half* half) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto* to = reinterpret_cast<hwy::float16_t*>(half);
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(d, x + i)), dh, to + i);
#endif
  for (; i < n; ++i) half[i] = ToHalf(x[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(HalfToFloatImpl);
HWY_EXPORT(FloatToHalfImpl);

void HalfToFloat(const Half* half, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(HalfToFloatImpl)(half, n, x);
}

void FloatToHalf(const float* x, int64_t n, Half* half) {
  HWY_DYNAMIC_DISPATCH(FloatToHalfImpl)(x, n, half);
}

}  // namespace kvmix
#endif  // HWY_ONCE
