// Sums and maxima over the lanes of several vectors at once: a reduction of one
// vector is a chain of steps that each wait for the last. For one instruction
// set: to be included inside HWY_NAMESPACE code, as Highway's own -inl.h files
// are.
#if defined(KVMIX_ATTENTION_REDUCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMIX_ATTENTION_REDUCE_INL_H_
#undef KVMIX_ATTENTION_REDUCE_INL_H_
#else
#define KVMIX_ATTENTION_REDUCE_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace reduce {
namespace hn = hwy::HWY_NAMESPACE;

struct AddOp {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};
struct MaxOp {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

// out [4] = all lanes of a, of b, of c and of e. `out` is aligned to 16 bytes.
template <class D, class Op, class V>
HWY_INLINE void ReduceFour([[maybe_unused]] D d, [[maybe_unused]] Op op, V a,
                           V b, V c, V e, float* out) {
#if HWY_TARGET == HWY_SCALAR
  out[0] = hn::GetLane(a);
  out[1] = hn::GetLane(b);
  out[2] = hn::GetLane(c);
  out[3] = hn::GetLane(e);
#else
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  const hn::CappedTag<float, 4> d4;
  // Interleaving two vectors and reducing the halves leaves two numbers of each
  // in every block of 128 bits; once more, one number of each of four.
  const auto halve = [&](V x, V y) HWY_ATTR __attribute__((always_inline)) {
    return op(hn::InterleaveLower(d, x, y), hn::InterleaveUpper(d, x, y));
  };
  alignas(64) float blocks[kLanes];
  hn::Store(halve(halve(a, c), halve(b, e)), d, blocks);
  auto total = hn::Load(d4, blocks);
  for (int i = 4; i < kLanes; i += 4)
    total = op(total, hn::Load(d4, blocks + i));
  hn::Store(total, d4, out);
#endif
}

}  // namespace reduce
}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#endif  // KVMIX_ATTENTION_REDUCE_INL_H_
