// Vectors of floats from numbers as a cache holds them unpacked. For inclusion
// once for each instruction set.
#if defined(KVMIX_ATTENTION_FULL_PRECISION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMIX_ATTENTION_FULL_PRECISION_INL_H_
#undef KVMIX_ATTENTION_FULL_PRECISION_INL_H_
#else
#define KVMIX_ATTENTION_FULL_PRECISION_INL_H_
#endif

#include "hwy/highway.h"
#include "kvmix/base/half.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {

// D: a tag of float.
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> LoadNumbers(D d, const Half* from) {
  namespace hn = hwy::HWY_NAMESPACE;
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(d, ToFloat(*from));
#else
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::PromoteTo(
      d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from)));
#endif
}
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> LoadNumbers(D d, const BFloat16* from) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToUnsigned<D> d32;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> LoadNumbers(D d, const float* from) {
  return hwy::HWY_NAMESPACE::LoadU(d, from);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
