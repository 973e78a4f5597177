#include "models/ggml_blocks.h"

#include <bit>
#include <cstring>

#include "kvmix/base/check.h"
#include "kvmix/base/half.h"

namespace kvmix {
namespace {

static_assert(std::endian::native == std::endian::little,
              "weight files are little-endian");

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float LoadHalf(const uint8_t* p) { return ToFloat(Half{Load<uint16_t>(p)}); }

// Code of element i of a 32-element block of nibbles.
int Nibble(const uint8_t* nibbles, int i) {
  return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
}

// Unpackers of one block of a type; see CodeBlock.
void UnpackQ4_0(const uint8_t* block, CodeBlock* out) {
  *out = {.scale = {LoadHalf(block), LoadHalf(block)}};
  for (int i = 0; i < 32; ++i)
    out->codes[i] = static_cast<uint8_t>(Nibble(block + 2, i));
}

void UnpackQ4_1(const uint8_t* block, CodeBlock* out) {
  *out = {.scale = {LoadHalf(block), LoadHalf(block)},
          .minimum = LoadHalf(block + 2)};
  for (int i = 0; i < 32; ++i)
    out->codes[i] = static_cast<uint8_t>(Nibble(block + 4, i));
}

int FiveBits(const uint8_t* nibbles, uint32_t high, int i) {
  return Nibble(nibbles, i) | static_cast<int>(high >> i & 1) << 4;
}

// Codes of 8 bits count from 128.
uint8_t FromSigned(int q) { return static_cast<uint8_t>(q + 128); }

void UnpackQ5_0(const uint8_t* block, CodeBlock* out) {
  *out = {.scale = {LoadHalf(block), LoadHalf(block)}};
  const uint32_t high = Load<uint32_t>(block + 2);
  for (int i = 0; i < 32; ++i)
    out->codes[i] = FromSigned(FiveBits(block + 6, high, i) - 16);
}

void UnpackQ5_1(const uint8_t* block, CodeBlock* out) {
  *out = {.scale = {LoadHalf(block), LoadHalf(block)},
          .minimum = LoadHalf(block + 2)};
  const uint32_t high = Load<uint32_t>(block + 4);
  for (int i = 0; i < 32; ++i)
    out->codes[i] = static_cast<uint8_t>(FiveBits(block + 8, high, i));
}

void UnpackQ8_0(const uint8_t* block, CodeBlock* out) {
  *out = {.scale = {LoadHalf(block), LoadHalf(block)}};
  for (int i = 0; i < 32; ++i)
    out->codes[i] = FromSigned(static_cast<int8_t>(block[2 + i]));
}

// Scale and minimum of sub-block k of a Q4_K or Q5_K block.
CodeBlock SubBlock(const uint8_t* block, int k) {
  const uint8_t* packed = block + 4;
  int s, t;
  if (k < 4) {
    s = packed[k] & 63;
    t = packed[k + 4] & 63;
  } else {
    s = (packed[k + 4] & 15) | packed[k - 4] >> 6 << 4;
    t = packed[k + 4] >> 4 | packed[k] >> 6 << 4;
  }
  const float scale = LoadHalf(block) * static_cast<float>(s);
  return {.scale = {scale, scale},
          .minimum = -(LoadHalf(block + 2) * static_cast<float>(t))};
}

void UnpackQ4_K(const uint8_t* block, CodeBlock* out) {
  for (int k = 0; k < 8; ++k) {
    out[k] = SubBlock(block, k);
    const uint8_t* nibbles = block + 16 + 32 * (k / 2);
    const int shift = 4 * (k % 2);
    for (int j = 0; j < 32; ++j) out[k].codes[j] = nibbles[j] >> shift & 15;
  }
}

void UnpackQ5_K(const uint8_t* block, CodeBlock* out) {
  const uint8_t* high = block + 16;
  for (int k = 0; k < 8; ++k) {
    out[k] = SubBlock(block, k);
    const uint8_t* nibbles = block + 48 + 32 * (k / 2);
    const int shift = 4 * (k % 2);
    for (int j = 0; j < 32; ++j) {
      out[k].codes[j] = static_cast<uint8_t>((nibbles[j] >> shift & 15) |
                                             (high[j] >> k & 1) << 4);
    }
  }
}

void UnpackQ6_K(const uint8_t* block, CodeBlock* out) {
  const float d = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + 64 * half;
    const uint8_t* high = block + 128 + 32 * half;
    const uint8_t* scales = block + 192 + 8 * half;
    for (int g = 0; g < 4; ++g, ++out) {
      const auto scale = [&](int i) {
        return d * static_cast<float>(static_cast<int8_t>(scales[2 * g + i]));
      };
      *out = {.scale = {scale(0), scale(1)}};
      for (int j = 0; j < 32; ++j) {
        const int q = (low[32 * (g % 2) + j] >> 4 * (g / 2) & 15) |
                      (high[j] >> 2 * g & 3) << 4;
        out->codes[j] = FromSigned(q - 32);
      }
    }
  }
}

void DecodeF32(const uint8_t* p, float* out) { *out = Load<float>(p); }
void DecodeF16(const uint8_t* p, float* out) { *out = LoadHalf(p); }
void DecodeBF16(const uint8_t* p, float* out) {
  *out = ToFloat(BFloat16{Load<uint16_t>(p)});
}

template <void (*kDecodeOne)(const uint8_t*, float*)>
void DecodeEach(const BlockLayout& layout, const uint8_t* source,
                int64_t num_blocks, float* out) {
  for (int64_t b = 0; b < num_blocks; ++b)
    kDecodeOne(source + b * layout.bytes, out + b * layout.elements);
}

// kUnpack's codes as float; `zero` is the code that stands for 0.
template <void (*kUnpack)(const uint8_t*, CodeBlock*), int kZero>
void DecodeCodes(const BlockLayout& layout, const uint8_t* source,
                 int64_t num_blocks, float* out) {
  for (int64_t b = 0; b < num_blocks; ++b) {
    CodeBlock blocks[8];
    kUnpack(source + b * layout.bytes, blocks);
    for (int64_t i = 0; i < layout.elements; ++i) {
      const CodeBlock& block = blocks[i / 32];
      const int q = block.codes[i % 32] - kZero;
      *out++ = block.scale[i % 32 / 16] * static_cast<float>(q) + block.minimum;
    }
  }
}

struct Format {
  ElementType type;
  BlockLayout layout;
  void (*decode)(const BlockLayout&, const uint8_t*, int64_t, float*);
  void (*unpack)(const uint8_t*, CodeBlock*) = nullptr;
};

constexpr Format kFormats[] = {
    {ElementType::kF32, {"F32", 1, 4}, DecodeEach<DecodeF32>},
    {ElementType::kF16, {"F16", 1, 2}, DecodeEach<DecodeF16>},
    {ElementType::kBF16, {"BF16", 1, 2}, DecodeEach<DecodeBF16>},
    {ElementType::kQ4_0,
     {"Q4_0", 32, 18},
     DecodeCodes<UnpackQ4_0, 8>,
     UnpackQ4_0},
    {ElementType::kQ4_1,
     {"Q4_1", 32, 20},
     DecodeCodes<UnpackQ4_1, 0>,
     UnpackQ4_1},
    {ElementType::kQ5_0,
     {"Q5_0", 32, 22},
     DecodeCodes<UnpackQ5_0, 128>,
     UnpackQ5_0},
    {ElementType::kQ5_1,
     {"Q5_1", 32, 24},
     DecodeCodes<UnpackQ5_1, 0>,
     UnpackQ5_1},
    {ElementType::kQ8_0,
     {"Q8_0", 32, 34},
     DecodeCodes<UnpackQ8_0, 128>,
     UnpackQ8_0},
    {ElementType::kQ4_K,
     {"Q4_K", 256, 144},
     DecodeCodes<UnpackQ4_K, 0>,
     UnpackQ4_K},
    {ElementType::kQ5_K,
     {"Q5_K", 256, 176},
     DecodeCodes<UnpackQ5_K, 0>,
     UnpackQ5_K},
    {ElementType::kQ6_K,
     {"Q6_K", 256, 210},
     DecodeCodes<UnpackQ6_K, 128>,
     UnpackQ6_K},
};

const Format& FormatOf(ElementType type) {
  const Format& format = kFormats[static_cast<int>(type)];
  KVMIX_CHECK(format.type == type) << "kFormats is out of order";
  return format;
}

}  // namespace

const BlockLayout& LayoutOf(ElementType type) { return FormatOf(type).layout; }

void DecodeBlocks(ElementType type, const uint8_t* source, int64_t num_elements,
                  float* out) {
  const Format& format = FormatOf(type);
  KVMIX_CHECK(num_elements % format.layout.elements == 0)
      << num_elements << " elements of " << std::string(format.layout.name);
  format.decode(format.layout, source, num_elements / format.layout.elements,
                out);
}

void UnpackCodes(ElementType type, const uint8_t* source, int64_t num_elements,
                 CodeBlock* out) {
  const Format& format = FormatOf(type);
  KVMIX_CHECK(format.unpack != nullptr &&
              num_elements % format.layout.elements == 0)
      << num_elements << " elements of " << std::string(format.layout.name);
  for (int64_t i = 0; i < num_elements; i += format.layout.elements) {
    format.unpack(source, out + i / 32);
    source += format.layout.bytes;
  }
}

}  // namespace kvmix
