// LevelCodec: groups of codes that name levels.
//
//   x_hat = level * scale
//
// The scale is a group's own and stored in one or two bytes; there is no zero
// point. Schemes differ in the levels (a table of integers, small floats or a
// codebook for normal numbers; a trellis) and in how a group's scale is chosen
// and stored:
//   codes   [groups, words] uint32, a group as bit_packing.h draws it
//   scales  [groups] of scheme.scale_bytes() bytes
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "quant/group_codec.h"
#include "quant/level_table.h"

namespace kvmix {

class LevelScheme {
 public:
  virtual ~LevelScheme() = default;
  virtual int bits() const = 0;  // of a code
  virtual int scale_bytes() const { return 2; }
  // x [n] -> codes [n]; returns the scale as stored.
  virtual uint32_t Encode(const float* x, int n, uint32_t* codes) const = 0;
  // The levels that a group's codes name, [n].
  virtual void Levels(const uint32_t* codes, int n, float* levels) const = 0;
  // A stored scale as a number; default: it is a half.
  virtual float Scale(uint32_t stored) const;
};

// Every code names a level of one table.
class TableScheme : public LevelScheme {
 public:
  explicit TableScheme(LevelTable table) : table_(std::move(table)) {}
  int bits() const final { return table_.bits(); }
  void Levels(const uint32_t* codes, int n, float* levels) const final;

 protected:
  const LevelTable& table() const { return table_; }
  void NearestCodes(const float* x, int n, float scale, uint32_t* codes) const;

 private:
  const LevelTable table_;
};

// The largest of |x|; numbers that are not finite count as 0.
float MaxMagnitude(const float* x, int n);

class LevelCodec final : public GroupCodec {
 public:
  LevelCodec(const QuantFormat& format, Side side, int head_dim,
             std::unique_ptr<const LevelScheme> scheme);
  BlockBytes bytes() const override;

 private:
  void WriteGroups(const float* x, int first, int n,
                   uint8_t* block) const override;
  void ReadGroups(const uint8_t* block, int first, int n, float* x,
                  int64_t stride) const override;
  uint32_t* Words(uint8_t* block, int group) const;
  uint8_t* ScaleOf(uint8_t* block, int group) const;

  const std::unique_ptr<const LevelScheme> scheme_;
  const int bits_;
  const int words_;  // of a group
};

// A quantizer whose formats are LevelCodecs.
struct LevelQuantizerOptions {
  std::string name = {};
  int min_bits = 0, max_bits = 0;
  QuantFormat::Axis key_axis = QuantFormat::PER_TOKEN;
  QuantFormat::Axis value_axis = QuantFormat::PER_TOKEN;
  int key_group = 0, value_group = 0;  // 0: head_dim
  bool fixed_group = false;            // formats with other groups are refused
  // Of a valid format. Must depend on the format alone.
  std::function<absl::StatusOr<std::unique_ptr<LevelScheme>>(
      const QuantFormat&)>
      scheme = {};
  // Adds what `scheme` reads beside the bits; may be null.
  std::function<void(QuantFormat&)> complete = {};
};
std::unique_ptr<Quantizer> MakeLevelQuantizer(LevelQuantizerOptions options);

}  // namespace kvmix
