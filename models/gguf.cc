#include "models/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "models/quote.h"

namespace kvmix {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint32_t kMaxRank = 4;
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr int kMaxArrayDepth = 4;
// What an entry, a string and a tensor take at least: bounds on counts.
constexpr uint64_t kMinEntryBytes = 8 + 4 + 1;
constexpr uint64_t kMinStringBytes = 8;
constexpr uint64_t kMinArrayBytes = 4 + 8;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kNumValueTypes
};
struct ValueTypeInfo {
  absl::string_view name;
  uint64_t bytes;  // 0: varies
};
constexpr ValueTypeInfo kValueTypes[kNumValueTypes] = {
    {"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
    {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 0}, {"array", 0},
    {"u64", 8}, {"i64", 8}, {"f64", 8},
};

std::string TypeText(const GgufValue& value) {
  if (value.type != kArray) return std::string(kValueTypes[value.type].name);
  return absl::StrCat("array of ", kValueTypes[value.element_type].name);
}

// Reads forward through bytes that may end anywhere.
class Cursor {
 public:
  explicit Cursor(absl::string_view bytes) : bytes_(bytes) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  absl::StatusOr<absl::string_view> Take(uint64_t count,
                                         absl::string_view what) {
    if (count > remaining())
      return absl::InvalidArgumentError(
          absl::StrCat(what, " at byte ", offset_, " takes ", count,
                       " bytes but the file ends after ", remaining(),
                       "; it is damaged or incomplete, fetch it again"));
    const absl::string_view taken = bytes_.substr(offset_, count);
    offset_ += count;
    return taken;
  }

  template <typename T>
  absl::StatusOr<T> Read(absl::string_view what) {
    KVMIX_ASSIGN_OR_RETURN(const absl::string_view taken,
                           Take(sizeof(T), what));
    T value;
    std::memcpy(&value, taken.data(), sizeof(T));
    return value;
  }

  absl::StatusOr<absl::string_view> ReadString(uint64_t max_bytes,
                                               absl::string_view what) {
    KVMIX_ASSIGN_OR_RETURN(const uint64_t length, Read<uint64_t>(what));
    if (length > max_bytes && length <= remaining())
      return absl::InvalidArgumentError(
          absl::StrCat(what, " at byte ", offset_, " is ", length,
                       " bytes long but at most ", max_bytes, " are allowed"));
    return Take(length, what);
  }

  // A count of things that take at least min_bytes each.
  absl::StatusOr<uint64_t> ReadCount(uint64_t min_bytes,
                                     absl::string_view what) {
    KVMIX_ASSIGN_OR_RETURN(const uint64_t count, Read<uint64_t>(what));
    if (count > remaining() / min_bytes)
      return absl::InvalidArgumentError(absl::StrCat(
          what, " is ", count, " but the ", remaining(),
          " bytes left in the file cannot hold so many; it is damaged or "
          "incomplete, fetch it again"));
    return count;
  }

 private:
  absl::string_view bytes_;
  uint64_t offset_ = 0;
};

absl::Status CheckValueType(uint32_t type) {
  if (type < kNumValueTypes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("value type ", type, " is unknown; GGUF has types 0 to ",
                   kNumValueTypes - 1));
}

absl::Status CheckBools(absl::string_view bytes) {
  for (const char c : bytes)
    if (c != 0 && c != 1)
      return absl::InvalidArgumentError("a bool is neither 0 nor 1");
  return absl::OkStatus();
}

// Walks over the elements of an array without keeping them.
absl::Status WalkArray(Cursor& cursor, int depth, uint32_t* element_type,
                       uint64_t* count) {
  if (depth > kMaxArrayDepth)
    return absl::InvalidArgumentError(
        absl::StrCat("arrays are nested more than ", kMaxArrayDepth, " deep"));
  KVMIX_ASSIGN_OR_RETURN(*element_type,
                         cursor.Read<uint32_t>("array element type"));
  KVMIX_RETURN_IF_ERROR(CheckValueType(*element_type));
  const uint64_t fixed = kValueTypes[*element_type].bytes;
  const uint64_t at_least =
      fixed > 0 ? fixed
                : (*element_type == kString ? kMinStringBytes : kMinArrayBytes);
  KVMIX_ASSIGN_OR_RETURN(*count, cursor.ReadCount(at_least, "array length"));
  if (fixed > 0) {
    KVMIX_ASSIGN_OR_RETURN(const absl::string_view elements,
                           cursor.Take(*count * fixed, "array"));
    return *element_type == kBool ? CheckBools(elements) : absl::OkStatus();
  }
  for (uint64_t i = 0; i < *count; ++i) {
    if (*element_type == kString) {
      KVMIX_RETURN_IF_ERROR(
          cursor.ReadString(std::numeric_limits<uint64_t>::max(), "string")
              .status());
    } else {
      uint32_t inner_type;
      uint64_t inner_count;
      KVMIX_RETURN_IF_ERROR(
          WalkArray(cursor, depth + 1, &inner_type, &inner_count));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufValue> ReadValue(Cursor& cursor, absl::string_view file) {
  constexpr uint64_t kArrayHeaderBytes = 12;
  GgufValue value = {};
  KVMIX_ASSIGN_OR_RETURN(value.type, cursor.Read<uint32_t>("value type"));
  KVMIX_RETURN_IF_ERROR(CheckValueType(value.type));
  if (value.type == kString) {
    KVMIX_ASSIGN_OR_RETURN(
        value.bytes,
        cursor.ReadString(std::numeric_limits<uint64_t>::max(), "string"));
  } else if (value.type == kArray) {
    const uint64_t begin = cursor.offset() + kArrayHeaderBytes;
    KVMIX_RETURN_IF_ERROR(
        WalkArray(cursor, 1, &value.element_type, &value.count));
    value.bytes = file.substr(begin, cursor.offset() - begin);
  } else {
    KVMIX_ASSIGN_OR_RETURN(value.bytes,
                           cursor.Take(kValueTypes[value.type].bytes, "value"));
    if (value.type == kBool) KVMIX_RETURN_IF_ERROR(CheckBools(value.bytes));
  }
  return value;
}

template <typename T>
T Load(absl::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// Decode*(type, bytes, out): false if the value is not of the wanted kind.
bool DecodeScalar(uint32_t type, absl::string_view bytes, int64_t* out) {
  switch (type) {
    case kU8:
      *out = Load<uint8_t>(bytes);
      return true;
    case kI8:
      *out = Load<int8_t>(bytes);
      return true;
    case kU16:
      *out = Load<uint16_t>(bytes);
      return true;
    case kI16:
      *out = Load<int16_t>(bytes);
      return true;
    case kU32:
      *out = Load<uint32_t>(bytes);
      return true;
    case kI32:
      *out = Load<int32_t>(bytes);
      return true;
    case kI64:
      *out = Load<int64_t>(bytes);
      return true;
    case kU64:
      *out = Load<int64_t>(bytes);
      return *out >= 0;
    default:
      return false;
  }
}

bool DecodeScalar(uint32_t type, absl::string_view bytes, double* out) {
  if (type == kF32) *out = Load<float>(bytes);
  if (type == kF64) *out = Load<double>(bytes);
  return type == kF32 || type == kF64;
}

bool Decode(const GgufValue& value, int64_t* out) {
  return DecodeScalar(value.type, value.bytes, out);
}
bool Decode(const GgufValue& value, double* out) {
  return DecodeScalar(value.type, value.bytes, out);
}
bool Decode(const GgufValue& value, bool* out) {
  if (value.type == kBool) *out = value.bytes[0] != 0;
  return value.type == kBool;
}
bool Decode(const GgufValue& value, absl::string_view* out) {
  if (value.type == kString) *out = value.bytes;
  return value.type == kString;
}
bool Decode(const GgufValue& value, std::vector<absl::string_view>* out) {
  if (value.type != kArray || value.element_type != kString) return false;
  out->reserve(value.count);
  for (absl::string_view rest = value.bytes; !rest.empty();) {
    const auto length = Load<uint64_t>(rest);
    out->push_back(rest.substr(sizeof(length), length));
    rest.remove_prefix(sizeof(length) + length);
  }
  return true;
}
template <typename T>
bool Decode(const GgufValue& value, std::vector<T>* out) {
  if (value.type != kArray) return false;
  const uint64_t stride = kValueTypes[value.element_type].bytes;
  if (stride == 0) return false;
  out->reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    T element;
    if (!DecodeScalar(value.element_type,
                      value.bytes.substr(i * stride, stride), &element))
      return false;
    out->push_back(element);
  }
  return true;
}

template <typename T>
constexpr absl::string_view kWanted = "";
template <>
constexpr absl::string_view kWanted<bool> = "bool";
template <>
constexpr absl::string_view kWanted<int64_t> = "an integer below 2^63";
template <>
constexpr absl::string_view kWanted<double> = "f32 or f64";
template <>
constexpr absl::string_view kWanted<absl::string_view> = "string";
template <>
constexpr absl::string_view kWanted<std::vector<absl::string_view>> =
    "array of string";
template <>
constexpr absl::string_view kWanted<std::vector<int64_t>> =
    "array of integers below 2^63";
template <>
constexpr absl::string_view kWanted<std::vector<double>> =
    "array of f32 or f64";

absl::StatusOr<ElementType> ElementTypeOf(uint32_t ggml_type) {
  switch (ggml_type) {
    case 0:
      return ElementType::kF32;
    case 1:
      return ElementType::kF16;
    case 2:
      return ElementType::kQ4_0;
    case 3:
      return ElementType::kQ4_1;
    case 6:
      return ElementType::kQ5_0;
    case 7:
      return ElementType::kQ5_1;
    case 8:
      return ElementType::kQ8_0;
    case 12:
      return ElementType::kQ4_K;
    case 13:
      return ElementType::kQ5_K;
    case 14:
      return ElementType::kQ6_K;
    case 30:
      return ElementType::kBF16;
    default:
      break;
  }
  static constexpr std::pair<uint32_t, absl::string_view> kOthers[] = {
      {9, "Q8_1"},     {10, "Q2_K"},   {11, "Q3_K"},    {15, "Q8_K"},
      {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
      {20, "IQ4_NL"},  {21, "IQ3_S"},  {22, "IQ2_S"},   {23, "IQ4_XS"},
      {24, "I8"},      {25, "I16"},    {26, "I32"},     {27, "I64"},
      {28, "F64"},     {29, "IQ1_M"},  {34, "TQ1_0"},   {35, "TQ2_0"},
      {39, "MXFP4"},   {40, "NVFP4"},  {41, "Q1_0"},
  };
  for (const auto& [type, name] : kOthers)
    if (type == ggml_type)
      return absl::UnimplementedError(absl::StrCat(
          "element type ", name,
          " is not supported; fetch or make the model "
          "in F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or "
          "Q6_K"));
  return absl::InvalidArgumentError(
      absl::StrCat("element type ", ggml_type, " is unknown"));
}

// Hugging Face's name, or the tensor's own if it has none there.
std::string HuggingFaceName(absl::string_view name) {
  using Pair = std::pair<absl::string_view, absl::string_view>;
  static constexpr Pair kGlobal[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"output.weight", "lm_head.weight"},
  };
  static constexpr Pair kInLayer[] = {
      {"attn_norm", "input_layernorm"},
      {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"},
      {"attn_q_norm", "self_attn.q_norm"},
      {"attn_k_norm", "self_attn.k_norm"},
      {"ffn_norm", "post_attention_layernorm"},
      {"ffn_gate", "mlp.gate_proj"},
      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},
  };
  for (const auto& [gguf, hugging_face] : kGlobal)
    if (name == gguf) return std::string(hugging_face);
  absl::string_view rest = name;
  if (!absl::ConsumePrefix(&rest, "blk.")) return std::string(name);
  const size_t layer_end = rest.find('.');
  const size_t kind_begin = rest.rfind('.');  // ".weight" or ".bias"
  if (layer_end >= kind_begin) return std::string(name);
  const absl::string_view part =
      rest.substr(layer_end + 1, kind_begin - layer_end - 1);
  for (const auto& [gguf, hugging_face] : kInLayer)
    if (part == gguf)
      return absl::StrCat("model.layers.", rest.substr(0, layer_end), ".",
                          hugging_face, rest.substr(kind_begin));
  return std::string(name);
}

struct StoredTensor {
  TensorInfo info;
  uint64_t offset;
  uint64_t bytes;
};

absl::Status CheckSizes(StoredTensor& tensor) {
  const BlockLayout& layout = LayoutOf(tensor.info.type);
  KVMIX_ASSIGN_OR_RETURN(const int64_t count, CountElements(tensor.info.shape));
  if (count == 0)
    return absl::InvalidArgumentError(
        absl::StrCat("shape ", ShapeText(tensor.info.shape), " is empty"));
  if (tensor.info.shape.back() % layout.elements != 0)
    return absl::InvalidArgumentError(absl::StrCat(
        "shape ", ShapeText(tensor.info.shape), " must end in a multiple of ",
        layout.elements, ", the block size of ", layout.name));
  int64_t bytes;
  if (__builtin_mul_overflow(count / layout.elements, layout.bytes, &bytes))
    return absl::InvalidArgumentError(absl::StrCat(
        "shape ", ShapeText(tensor.info.shape), " has too many elements"));
  tensor.bytes = static_cast<uint64_t>(bytes);
  return absl::OkStatus();
}

// One entry of the tensor table; `name` is read already.
absl::StatusOr<StoredTensor> ReadTensor(Cursor& cursor,
                                        absl::string_view name) {
  StoredTensor tensor = {};
  tensor.info.name = HuggingFaceName(name);
  KVMIX_ASSIGN_OR_RETURN(const uint32_t rank, cursor.Read<uint32_t>("rank"));
  if (rank < 1 || rank > kMaxRank)
    return absl::InvalidArgumentError(
        absl::StrCat("rank is ", rank, " but must be in [1, ", kMaxRank, "]"));
  for (uint32_t i = 0; i < rank; ++i) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t dimension,
                           cursor.Read<int64_t>("dimension"));
    tensor.info.shape.push_back(dimension);
  }
  std::reverse(tensor.info.shape.begin(), tensor.info.shape.end());
  KVMIX_ASSIGN_OR_RETURN(const uint32_t type,
                         cursor.Read<uint32_t>("element type"));
  KVMIX_ASSIGN_OR_RETURN(tensor.info.type, ElementTypeOf(type));
  KVMIX_ASSIGN_OR_RETURN(tensor.offset, cursor.Read<uint64_t>("offset"));
  KVMIX_RETURN_IF_ERROR(CheckSizes(tensor));
  return tensor;
}

// Every tensor inside the data, aligned, none over another.
absl::Status CheckPlaces(const std::vector<StoredTensor>& tensors,
                         uint64_t alignment, uint64_t data_bytes) {
  std::vector<const StoredTensor*> by_offset;
  by_offset.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) {
    if (tensor.offset % alignment != 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quote(tensor.info.name), " has offset ", tensor.offset,
          " but it must be a multiple of general.alignment ", alignment));
    if (tensor.offset > data_bytes || tensor.bytes > data_bytes - tensor.offset)
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quote(tensor.info.name), " takes ", tensor.bytes,
          " bytes at offset ", tensor.offset, " but the file has ", data_bytes,
          " bytes of data; it is damaged or incomplete, fetch it again"));
    by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const StoredTensor* a, const StoredTensor* b) {
              return a->offset < b->offset;
            });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const StoredTensor& left = *by_offset[i - 1];
    const StoredTensor& right = *by_offset[i];
    if (left.offset + left.bytes > right.offset)
      return absl::InvalidArgumentError(absl::StrCat(
          "tensors ", Quote(left.info.name), " and ", Quote(right.info.name),
          " overlap in the file; it is damaged, fetch it again"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ReadAlignment(const GgufMetadata& metadata) {
  KVMIX_ASSIGN_OR_RETURN(const int64_t alignment,
                         metadata.GetOr<int64_t>("general.alignment", 32));
  if (alignment < 8 || static_cast<uint64_t>(alignment) > kMaxAlignment ||
      !std::has_single_bit(static_cast<uint64_t>(alignment)))
    return absl::InvalidArgumentError(absl::StrCat(
        "general.alignment is ", alignment,
        " but must be a power of two in [8, ", kMaxAlignment, "]"));
  return static_cast<uint64_t>(alignment);
}

absl::Status ReadPreamble(Cursor& cursor) {
  KVMIX_ASSIGN_OR_RETURN(const absl::string_view magic,
                         cursor.Take(4, "the magic"));
  if (magic != "GGUF")
    return absl::InvalidArgumentError(absl::StrCat(
        "begins with ", Quote(magic), " but a GGUF file begins with \"GGUF\""));
  KVMIX_ASSIGN_OR_RETURN(const uint32_t version,
                         cursor.Read<uint32_t>("version"));
  if (version == kVersion) return absl::OkStatus();
  if (version == __builtin_bswap32(kVersion))
    return absl::UnimplementedError(
        "the file is big-endian; convert it to little-endian");
  return absl::UnimplementedError(
      absl::StrCat("GGUF version is ", version, " but must be ", kVersion,
                   "; convert the model again with a current tool"));
}

// head_dim of a tensor whose rows are in the order of interleaved RoPE, else 0.
absl::StatusOr<int64_t> InterleavedHeadDim(const GgufMetadata& metadata,
                                           const TensorInfo& info) {
  const bool query = absl::EndsWith(info.name, ".self_attn.q_proj.weight");
  const bool key = absl::EndsWith(info.name, ".self_attn.k_proj.weight");
  KVMIX_ASSIGN_OR_RETURN(
      const absl::string_view architecture,
      metadata.GetOr<absl::string_view>("general.architecture", ""));
  if (architecture != "llama" || !(query || key)) return 0;
  KVMIX_ASSIGN_OR_RETURN(int64_t heads,
                         metadata.Get<int64_t>("llama.attention.head_count"));
  if (key) {
    KVMIX_ASSIGN_OR_RETURN(
        heads, metadata.GetOr<int64_t>("llama.attention.head_count_kv", heads));
  }
  if (heads < 1 || info.shape.size() != 2 || info.shape[0] % heads != 0 ||
      info.shape[0] / heads % 2 != 0)
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quote(info.name), " has shape ", ShapeText(info.shape),
        ", which does not divide into ", heads, " heads of an even head_dim"));
  return info.shape[0] / heads;
}

}  // namespace

std::vector<absl::string_view> GgufMetadata::Keys() const {
  std::vector<absl::string_view> keys;
  keys.reserve(values_.size());
  for (const auto& [key, value] : values_) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  return keys;
}

absl::StatusOr<const GgufValue*> GgufMetadata::Find(
    absl::string_view key) const {
  const auto found = values_.find(key);
  if (found != values_.end()) return &found->second;
  return absl::NotFoundError(absl::StrCat("GGUF metadata has no ", Quote(key)));
}

template <typename T>
absl::StatusOr<T> GgufMetadata::Get(absl::string_view key) const {
  KVMIX_ASSIGN_OR_RETURN(const GgufValue* const value, Find(key));
  T result = {};
  if (Decode(*value, &result)) return result;
  return absl::InvalidArgumentError(absl::StrCat("GGUF metadata ", Quote(key),
                                                 " is ", TypeText(*value),
                                                 " but must be ", kWanted<T>));
}

template absl::StatusOr<bool> GgufMetadata::Get(absl::string_view) const;
template absl::StatusOr<int64_t> GgufMetadata::Get(absl::string_view) const;
template absl::StatusOr<double> GgufMetadata::Get(absl::string_view) const;
template absl::StatusOr<absl::string_view> GgufMetadata::Get(
    absl::string_view) const;
template absl::StatusOr<std::vector<absl::string_view>> GgufMetadata::Get(
    absl::string_view) const;
template absl::StatusOr<std::vector<int64_t>> GgufMetadata::Get(
    absl::string_view) const;
template absl::StatusOr<std::vector<double>> GgufMetadata::Get(
    absl::string_view) const;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(
    const std::string& path) {
  KVMIX_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  const auto owner = std::make_shared<MappedFile>(std::move(mapped));
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file,
                         FromBytes(owner->view(), owner, path));
  file->AddMappedFile(owner);
  return file;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::FromBytes(
    absl::string_view bytes, std::shared_ptr<const void> owner,
    absl::string_view name) {
  auto file = std::unique_ptr<GgufFile>(new GgufFile);
  KVMIX_RETURN_IF_ERROR(AddContext(file->Parse(bytes, std::move(owner)), name));
  return file;
}

absl::Status GgufFile::Parse(absl::string_view bytes,
                             std::shared_ptr<const void> owner) {
  Cursor cursor(bytes);
  KVMIX_RETURN_IF_ERROR(ReadPreamble(cursor));
  KVMIX_ASSIGN_OR_RETURN(const uint64_t num_tensors,
                         cursor.ReadCount(kMinTensorBytes, "tensor count"));
  KVMIX_ASSIGN_OR_RETURN(const uint64_t num_entries,
                         cursor.ReadCount(kMinEntryBytes, "metadata count"));

  auto metadata = std::make_shared<GgufMetadata>();
  metadata->owner_ = std::move(owner);
  for (uint64_t i = 0; i < num_entries; ++i) {
    KVMIX_ASSIGN_OR_RETURN(const absl::string_view key,
                           cursor.ReadString(kMaxKeyBytes, "metadata key"));
    absl::StatusOr<GgufValue> value = ReadValue(cursor, bytes);
    if (!value.ok())
      return AddContext(value.status(), absl::StrCat("metadata ", Quote(key)));
    if (!metadata->values_.emplace(key, *value).second)
      return absl::InvalidArgumentError(
          absl::StrCat("metadata ", Quote(key), " occurs twice"));
  }

  std::vector<StoredTensor> tensors;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    KVMIX_ASSIGN_OR_RETURN(
        const absl::string_view name,
        cursor.ReadString(kMaxTensorNameBytes, "tensor name"));
    absl::StatusOr<StoredTensor> tensor = ReadTensor(cursor, name);
    if (!tensor.ok())
      return AddContext(tensor.status(), absl::StrCat("tensor ", Quote(name)));
    tensors.push_back(*std::move(tensor));
  }

  KVMIX_ASSIGN_OR_RETURN(const uint64_t alignment, ReadAlignment(*metadata));
  const uint64_t data_begin = std::min<uint64_t>(
      (cursor.offset() + alignment - 1) / alignment * alignment, bytes.size());
  const absl::string_view data = bytes.substr(data_begin);
  KVMIX_RETURN_IF_ERROR(CheckPlaces(tensors, alignment, data.size()));
  for (StoredTensor& tensor : tensors) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t head_dim,
                           InterleavedHeadDim(*metadata, tensor.info));
    placements_.push_back(
        {reinterpret_cast<const uint8_t*>(data.data()) + tensor.offset,
         head_dim});
    KVMIX_RETURN_IF_ERROR(AddTensor(std::move(tensor.info)));
  }
  metadata_ = std::move(metadata);
  return absl::OkStatus();
}

void GgufFile::CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                        uint8_t* out) const {
  const TensorInfo& info = tensors()[index];
  const Placement& place = placements_[index];
  const BlockLayout& layout = LayoutOf(info.type);
  const int64_t row_bytes = info.shape.back() / layout.elements * layout.bytes;
  if (place.interleaved_head_dim == 0) {
    std::memcpy(out, place.data + first_row * row_bytes, num_rows * row_bytes);
    return;
  }
  // Interleaved RoPE turns rows (2i, 2i+1) of a head together, rotate-half rows
  // (i, i + D/2): row s * D/2 + i is stored as row 2i + s.
  const int64_t D = place.interleaved_head_dim;
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    const int64_t in_head = row % D;
    const int64_t stored =
        row - in_head + in_head % (D / 2) * 2 + in_head / (D / 2);
    std::memcpy(out + (row - first_row) * row_bytes,
                place.data + stored * row_bytes, row_bytes);
  }
}

}  // namespace kvmix
