#include "kvmix/base/device_memory.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

// "1.25 GiB", "3.00 MiB"
std::string Bytes(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? absl::StrFormat("%.2f MiB", mib)
                    : absl::StrFormat("%.2f GiB", mib / 1024);
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, absl::string_view doing) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(doing, ": CUDA says: ", cudaGetErrorString(error));
  cudaGetLastError();  // told; not again by the next call
  if (error == cudaErrorMemoryAllocation)
    return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

absl::StatusOr<int64_t> FreeDeviceBytes() {
  size_t free = 0, total = 0;
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemGetInfo(&free, &total), "free memory of the device"));
  return static_cast<int64_t>(free);
}

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(int64_t bytes,
                                                    absl::string_view what) {
  DeviceMemory memory;
  memory.bytes_ = bytes;
  const cudaError_t error =
      cudaMalloc(&memory.data_, static_cast<size_t>(bytes));
  if (error == cudaSuccess) return memory;
  if (error != cudaErrorMemoryAllocation) return CudaStatus(error, what);
  cudaGetLastError();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return absl::ResourceExhaustedError(absl::StrCat(
      what, ": ", Bytes(bytes), " (", bytes,
      " bytes) do not fit the CUDA device, of whose ",
      Bytes(static_cast<int64_t>(total)), " ",
      Bytes(static_cast<int64_t>(free)),
      " are free; use fewer or shorter sequences, a plan of fewer bits, or "
      "smaller weights"));
}

absl::Status DeviceMemory::Upload(const void* from, int64_t bytes,
                                  int64_t offset) {
  KVMIX_CHECK(offset >= 0 && bytes >= 0 && offset + bytes <= bytes_);
  return CudaStatus(
      cudaMemcpy(as<char>() + offset, from, static_cast<size_t>(bytes),
                 cudaMemcpyHostToDevice),
      "copy to the device");
}

absl::Status PinnedMemory::Reserve(int64_t bytes, absl::string_view what) {
  if (bytes <= bytes_) return absl::OkStatus();
  cudaFreeHost(std::exchange(data_, nullptr));
  bytes_ = 0;
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMallocHost(&data_, static_cast<size_t>(bytes)),
                 absl::StrCat(what, ": page-locked memory of the host, ", bytes,
                              " bytes")));
  bytes_ = bytes;
  return absl::OkStatus();
}

}  // namespace kvmix
