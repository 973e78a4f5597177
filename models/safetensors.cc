#include "models/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "models/quote.h"

namespace kvmix {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxIndexBytes = size_t{4} << 20;
constexpr size_t kMaxRank = 8;
constexpr absl::string_view kDamaged =
    "; the file is damaged or incomplete, fetch it again";

// One entry of a header, as written.
struct Entry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> offsets;  // begin, end
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Reads a header's JSON event by event, so that memory follows the entries that
// are there and not whatever else the JSON holds.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  absl::StatusOr<std::vector<Entry>> Read(absl::string_view json) && {
    if (Json::sax_parse(json.begin(), json.end(), this))
      return std::move(entries_);
    return absl::InvalidArgumentError(absl::StrCat("header: ", error_));
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kBegin) return Enter(Place::kNames);
    if (place_ != Place::kName) return Fail("an object is not expected");
    if (key_ == "__metadata__") return Enter(Place::kMetadata);
    entries_.emplace_back();
    entries_.back().name = key_;
    return Enter(Place::kFields);
  }
  bool end_object() override {
    switch (place_) {
      case Place::kFields: {
        const Entry& entry = entries_.back();
        if (!entry.has_dtype || !entry.has_shape || !entry.has_offsets)
          return Fail("dtype, shape or data_offsets is missing");
        return Enter(Place::kNames);
      }
      case Place::kMetadata:
        return Enter(Place::kNames);
      default:
        return Enter(Place::kEnd);
    }
  }
  bool key(string_t& key) override {
    switch (place_) {
      case Place::kNames:
        key_ = key;
        return Enter(Place::kName);
      case Place::kFields: {
        Entry& entry = entries_.back();
        if (key == "dtype") return EnterField(Place::kDtype, entry.has_dtype);
        if (key == "shape") return EnterField(Place::kShape, entry.has_shape);
        if (key == "data_offsets")
          return EnterField(Place::kOffsets, entry.has_offsets);
        return Fail(absl::StrCat("field ", Quote(key), " is unknown"));
      }
      default:
        return true;  // of __metadata__
    }
  }
  bool start_array(std::size_t) override {
    if (place_ == Place::kShape) return Enter(Place::kInShape);
    if (place_ == Place::kOffsets) return Enter(Place::kInOffsets);
    return Fail("an array is not expected");
  }
  bool end_array() override {
    if (place_ == Place::kInOffsets && entries_.back().offsets.size() != 2)
      return Fail("data_offsets must be two numbers");
    return Enter(Place::kFields);
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > std::numeric_limits<int64_t>::max())
      return Fail(absl::StrCat(value, " is too large"));
    const auto number = static_cast<int64_t>(value);
    if (place_ == Place::kInShape) {
      entries_.back().shape.push_back(number);
      return entries_.back().shape.size() <= kMaxRank ||
             Fail(absl::StrCat("a shape has more than ", kMaxRank,
                               " dimensions"));
    }
    if (place_ == Place::kInOffsets) {
      entries_.back().offsets.push_back(number);
      return entries_.back().offsets.size() <= 2 ||
             Fail("data_offsets must be two numbers");
    }
    return Fail("a number is not expected");
  }
  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kDtype) return Fail("a string is not expected");
    entries_.back().dtype = value;
    return Enter(Place::kFields);
  }
  bool number_integer(number_integer_t value) override {
    return Fail(
        absl::StrCat("the negative number ", value, " is not expected"));
  }
  bool number_float(number_float_t value, const string_t&) override {
    return Fail(absl::StrCat("the number ", value,
                             " is not expected; sizes are integers"));
  }
  bool null() override { return Fail("null is not expected"); }
  bool boolean(bool) override { return Fail("a bool is not expected"); }
  bool binary(binary_t&) override { return Fail("binary is not expected"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("not valid JSON at byte ", position));
  }

 private:
  enum class Place {
    kBegin,
    kNames,  // between tensors
    kName,   // after a tensor's name
    kMetadata,
    kFields,  // between the fields of a tensor
    kDtype,
    kShape,
    kInShape,
    kOffsets,
    kInOffsets,
    kEnd,
  };

  bool Enter(Place place) {
    place_ = place;
    return true;
  }
  bool EnterField(Place place, bool& seen) {
    if (seen) return Fail("a field occurs twice");
    seen = true;
    return Enter(place);
  }
  bool Fail(absl::string_view why) {
    if (!error_.empty()) return false;  // the first reason is the true one
    error_ = key_.empty() ? std::string(why)
                          : absl::StrCat("at ", Quote(key_), ": ", why);
    return false;
  }

  Place place_ = Place::kBegin;
  std::string key_;  // the last tensor's name
  std::string error_;
  std::vector<Entry> entries_;
};

struct StoredTensor {
  TensorInfo info;
  const uint8_t* data;
};

absl::StatusOr<ElementType> ElementTypeOf(absl::string_view dtype) {
  if (dtype == "F32") return ElementType::kF32;
  if (dtype == "F16") return ElementType::kF16;
  if (dtype == "BF16") return ElementType::kBF16;
  return absl::UnimplementedError(absl::StrCat(
      "dtype is ", Quote(dtype),
      " but must be F32, F16 or BF16; fetch the model in its unquantized form "
      "or save it as bfloat16"));
}

// The tensor that an entry describes, which must lie within `data`.
absl::StatusOr<StoredTensor> PlaceEntry(Entry& entry, absl::string_view data) {
  StoredTensor tensor;
  KVMIX_ASSIGN_OR_RETURN(tensor.info.type, ElementTypeOf(entry.dtype));
  KVMIX_ASSIGN_OR_RETURN(const int64_t count, CountElements(entry.shape));
  int64_t bytes;
  if (__builtin_mul_overflow(count, LayoutOf(tensor.info.type).bytes, &bytes))
    return absl::InvalidArgumentError(absl::StrCat(
        "shape ", ShapeText(entry.shape), " has too many elements"));
  const int64_t begin = entry.offsets[0];
  const int64_t end = entry.offsets[1];
  if (begin > end || static_cast<uint64_t>(end) > data.size())
    return absl::InvalidArgumentError(absl::StrCat(
        "data_offsets are ", ShapeText(entry.offsets), " but the file has ",
        data.size(), " bytes of data", kDamaged));
  if (end - begin != bytes)
    return absl::InvalidArgumentError(
        absl::StrCat("data_offsets ", ShapeText(entry.offsets), " span ",
                     end - begin, " bytes but shape ", ShapeText(entry.shape),
                     " of ", entry.dtype, " takes ", bytes));
  tensor.info.shape = std::move(entry.shape);
  tensor.info.name = entry.name;
  tensor.data = reinterpret_cast<const uint8_t*>(data.data()) + begin;
  return tensor;
}

// Tensors cover the data from end to end, each byte once.
absl::Status CheckCover(std::vector<Entry>& entries, size_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.offsets < b.offsets;
  });
  int64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.offsets[0] != covered)
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quote(entry.name), " begins at byte ", entry.offsets[0],
          " of the data but the one before it ends at ", covered, kDamaged));
    covered = entry.offsets[1];
  }
  if (static_cast<uint64_t>(covered) != data_bytes)
    return absl::InvalidArgumentError(absl::StrCat(
        "tensors end at byte ", covered, " of the data but it has ", data_bytes,
        " bytes", kDamaged));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredTensor>> ParseFile(absl::string_view bytes) {
  uint64_t header_bytes;
  if (bytes.size() < sizeof(header_bytes))
    return absl::InvalidArgumentError(absl::StrCat(
        "has ", bytes.size(), " bytes, less than a header's length", kDamaged));
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const absl::string_view rest = bytes.substr(sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > rest.size())
    return absl::InvalidArgumentError(absl::StrCat(
        "header length is ", header_bytes, " but must be at most ",
        std::min<uint64_t>(kMaxHeaderBytes, rest.size()), kDamaged));
  const absl::string_view header = rest.substr(0, header_bytes);
  if (header.empty() || header[0] != '{')
    return absl::InvalidArgumentError(
        "header must begin with '{'; this is not a safetensors file");
  const absl::string_view data = rest.substr(header_bytes);

  KVMIX_ASSIGN_OR_RETURN(std::vector<Entry> entries,
                         HeaderReader().Read(header));
  std::vector<StoredTensor> tensors;
  KVMIX_RETURN_IF_ERROR(CheckCover(entries, data.size()));
  for (Entry& entry : entries) {
    absl::StatusOr<StoredTensor> tensor = PlaceEntry(entry, data);
    if (!tensor.ok())
      return AddContext(tensor.status(),
                        absl::StrCat("tensor ", Quote(entry.name)));
    tensors.push_back(*std::move(tensor));
  }
  return tensors;
}

// Tensor name -> file name.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(
    const std::string& path) {
  KVMIX_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (file.size() > kMaxIndexBytes)
    return absl::InvalidArgumentError(
        absl::StrCat("has ", file.size(), " bytes but an index has at most ",
                     kMaxIndexBytes));
  const Json index = Json::parse(file.data(), file.data() + file.size(),
                                 /*cb=*/nullptr, /*allow_exceptions=*/false);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object())
    return absl::InvalidArgumentError(
        "is not JSON with an object \"weight_map\"; fetch it again");
  std::map<std::string, std::string> file_of;
  for (const auto& [name, value] : map->items()) {
    const auto* shard = value.get_ptr<const std::string*>();
    if (shard == nullptr || shard->empty() ||
        shard->find('/') != std::string::npos)
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map[", Quote(name),
                       "] must be the name of a file in the same folder"));
    file_of.emplace(name, *shard);
  }
  return file_of;
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFiles>> SafetensorsFiles::OpenFolder(
    const std::string& folder) {
  const std::string single = absl::StrCat(folder, "/model.safetensors");
  const std::string index = absl::StrCat(single, ".index.json");
  if (Exists(single)) {
    KVMIX_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(single));
    const auto owner = std::make_shared<MappedFile>(std::move(mapped));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFiles> files,
                           FromBytes(owner->view(), owner, single));
    files->AddMappedFile(owner);
    return files;
  }
  if (Exists(index)) {
    auto files = std::unique_ptr<SafetensorsFiles>(new SafetensorsFiles);
    KVMIX_RETURN_IF_ERROR(files->OpenShards(folder, index));
    return files;
  }
  return absl::NotFoundError(absl::StrCat(
      folder, " has neither model.safetensors nor model.safetensors.index.json",
      Exists(absl::StrCat(folder, "/pytorch_model.bin"))
          ? "; save pytorch_model.bin as safetensors"
          : "; give a folder with them, or a .gguf file"));
}

absl::StatusOr<std::unique_ptr<SafetensorsFiles>> SafetensorsFiles::FromBytes(
    absl::string_view bytes, std::shared_ptr<const void> owner,
    absl::string_view name) {
  auto files = std::unique_ptr<SafetensorsFiles>(new SafetensorsFiles);
  absl::StatusOr<std::vector<StoredTensor>> tensors = ParseFile(bytes);
  if (!tensors.ok()) return AddContext(tensors.status(), name);
  for (StoredTensor& tensor : *tensors) {
    files->data_.push_back(tensor.data);
    KVMIX_RETURN_IF_ERROR(
        AddContext(files->AddTensor(std::move(tensor.info)), name));
  }
  files->owners_.push_back(std::move(owner));
  return files;
}

absl::Status SafetensorsFiles::OpenShards(const std::string& folder,
                                          const std::string& index_path) {
  auto file_of = ReadIndex(index_path);
  if (!file_of.ok()) return AddContext(file_of.status(), index_path);
  std::vector<std::string> shards;
  for (const auto& [name, shard] : *file_of) shards.push_back(shard);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());

  for (const std::string& shard : shards) {
    const std::string path = absl::StrCat(folder, "/", shard);
    KVMIX_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
    const auto owner = std::make_shared<MappedFile>(std::move(mapped));
    absl::StatusOr<std::vector<StoredTensor>> tensors =
        ParseFile(owner->view());
    if (!tensors.ok()) return AddContext(tensors.status(), path);
    for (StoredTensor& tensor : *tensors) {
      const auto listed = file_of->find(tensor.info.name);
      if (listed == file_of->end() || listed->second != shard) continue;
      data_.push_back(tensor.data);
      KVMIX_RETURN_IF_ERROR(
          AddContext(AddTensor(std::move(tensor.info)), path));
    }
    owners_.push_back(owner);
    AddMappedFile(owner);
  }
  if (tensors().size() == file_of->size()) return absl::OkStatus();
  for (const auto& [name, shard] : *file_of)
    if (absl::IsNotFound(Find(name).status()))
      return absl::NotFoundError(
          absl::StrCat(index_path, ": tensor ", Quote(name), " is not in ",
                       Quote(shard), " as weight_map says"));
  return absl::OkStatus();
}

void SafetensorsFiles::CopyRows(size_t index, int64_t first_row,
                                int64_t num_rows, uint8_t* out) const {
  const TensorInfo& info = tensors()[index];
  const int64_t columns = info.shape.empty() ? 1 : info.shape.back();
  const int64_t row_bytes = columns * LayoutOf(info.type).bytes;
  std::memcpy(out, data_[index] + first_row * row_bytes, num_rows * row_bytes);
}

}  // namespace kvmix
