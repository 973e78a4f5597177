#include "models/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>

#include "kvmix/base/check.h"

namespace kvmix {

void AlignedBuffer::Free::operator()(float* p) const { std::free(p); }

void AlignedBuffer::Reserve(int64_t size) {
  if (size <= capacity_) return;
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t wanted = size * static_cast<int64_t>(sizeof(float));
  const int64_t alignment = wanted >= 2 * kHugePage ? kHugePage : 128;
  const int64_t bytes = (wanted + alignment - 1) / alignment * alignment;
  data_.reset();
  data_.reset(static_cast<float*>(std::aligned_alloc(alignment, bytes)));
  KVMIX_CHECK(data_ != nullptr) << "out of memory: " << bytes << " bytes";
  if (alignment == kHugePage) madvise(data_.get(), bytes, MADV_HUGEPAGE);
  capacity_ = size;
}

}  // namespace kvmix
