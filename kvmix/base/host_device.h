// KVMIX_HD: a function for the host and, under nvcc, for the device.
#pragma once

#ifdef __CUDACC__
#define KVMIX_HD __host__ __device__ __forceinline__
#else
#define KVMIX_HD inline
#endif
