#include "gtest/gtest.h"
#include "kvmix/allocation/any_bits_quantizer.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/uniform.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

LayerPlan LastLayer(const UniformOptions& options) {
  Component component;
  component.set_name("uniform");
  component.mutable_options()->PackFrom(options);
  const auto allocator =
      *Registry<BitAllocator>::Get().Make(component, "bit_allocator");
  AnyBitsQuantizer quantizer;
  return *allocator
              ->Allocate(
                  {},
                  {.num_layers = 3, .head_dim = 64, .quantizer = &quantizer})
              ->layer()
              .rbegin();
}

TEST(UniformBitsTest, KeysAndValuesHaveTheirOwnBits) {
  UniformOptions options;
  EXPECT_EQ(LastLayer(options).key().bits(), 2);
  EXPECT_EQ(LastLayer(options).value().bits(), 2);
  options.set_key_bits(4);
  EXPECT_EQ(LastLayer(options).key().bits(), 4);
  EXPECT_EQ(LastLayer(options).value().bits(), 2);
  options.set_value_bits(3);
  EXPECT_EQ(LastLayer(options).value().bits(), 3);
}

}  // namespace
}  // namespace kvmix
