// Quantizer "fp8_e4m3": 8-bit floats E4M3 (float_formats.h), one scale, a half,
// for each token of a KV head. Serving engines store the cache so (vLLM,
// TensorRT-LLM, SGLang), with a scale for a head or a tensor.
#include "kvmix/base/registry.h"
#include "quant/float_formats.h"
#include "quant/quantizer.h"
#include "quant/scaled_floats.h"

namespace kvmix {
namespace {

const bool kRegistered = Registry<Quantizer>::Get().Add(
    "fp8_e4m3",
    "8-bit floats (wider mantissa), a scale for each token and KV head",
    [](const google::protobuf::Empty&) -> Registry<Quantizer>::Result {
      return MakeFp8Quantizer("fp8_e4m3", E4M3Values);
    });

}  // namespace
}  // namespace kvmix
