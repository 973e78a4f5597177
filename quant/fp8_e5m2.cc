// Quantizer "fp8_e5m2": 8-bit floats E5M2 (float_formats.h), one scale, a half,
// for each token of a KV head. Serving engines store the cache so (vLLM,
// TensorRT-LLM, SGLang), with a scale for a head or a tensor.
#include "kvmix/base/registry.h"
#include "quant/float_formats.h"
#include "quant/quantizer.h"
#include "quant/scaled_floats.h"

namespace kvmix {
namespace {

const bool kRegistered = Registry<Quantizer>::Get().Add(
    "fp8_e5m2",
    "8-bit floats (wider range), a scale for each token and KV head",
    [](const google::protobuf::Empty&) -> Registry<Quantizer>::Result {
      return MakeFp8Quantizer("fp8_e5m2", E5M2Values);
    });

}  // namespace
}  // namespace kvmix
