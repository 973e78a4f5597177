// Reads tokenizer.json. What it asks for and is not implemented is
// UNIMPLEMENTED with its path: a tokenizer that is only nearly right is worse
// than none.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/json.h"
#include "models/tokenizer/readers.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {
namespace {

constexpr char kSpaceMark[] = "\xE2\x96\x81";  // U+2581

absl::Status Unimplemented(const JsonValue& value,
                           absl::string_view implemented) {
  return absl::UnimplementedError(absl::StrCat(value.path(), " is ",
                                               value.json().dump(),
                                               "; implemented: ", implemented));
}

class TokenizerJsonReader {
 public:
  explicit TokenizerJsonReader(const JsonValue& root) : root_(root) {}

  absl::StatusOr<PipelineSpec> Read() {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue model, root_.Get("model"));
    KVMIX_RETURN_IF_ERROR(CheckModel(model));
    if (const auto normalizer = root_.Find("normalizer"))
      KVMIX_RETURN_IF_ERROR(ReadNormalizer(*normalizer));
    if (const auto pre_tokenizer = root_.Find("pre_tokenizer"))
      KVMIX_RETURN_IF_ERROR(ReadPreTokenizer(*pre_tokenizer));
    KVMIX_RETURN_IF_ERROR(ReadDecoder());
    KVMIX_RETURN_IF_ERROR(ReadModel(model));
    if (const auto added = root_.Find("added_tokens"))
      KVMIX_RETURN_IF_ERROR(ReadAddedTokens(*added));
    if (const auto processor = root_.Find("post_processor"))
      KVMIX_RETURN_IF_ERROR(ReadPostProcessor(*processor));
    KVMIX_ASSIGN_OR_RETURN(pipeline_.word_encoder, MakeRankedBpe(bpe_));
    if (pipeline_.word_encoder->CutsBeforeSpaceMark())
      pipeline_.pre_tokenizer.AddCutBeforeSpaceMark();
    if (!pipeline_.prefix.empty()) pipeline_.bos_id = pipeline_.prefix[0];
    pipeline_.eos_ids = pipeline_.suffix;
    return std::move(pipeline_);
  }

 private:
  // model: what kind of model it is.
  absl::Status CheckModel(const JsonValue& model) {
    KVMIX_ASSIGN_OR_RETURN(const std::string type,
                           model.StringOr("type", "BPE"));
    if (type != "BPE") return Unimplemented(*model.Find("type"), "\"BPE\"");
    if (const auto dropout = model.Find("dropout");
        dropout && dropout->json() != 0)
      return Unimplemented(*dropout, "null");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (const auto affix = model.Find(key); affix && affix->json() != "")
        return Unimplemented(*affix, "null");
    return absl::OkStatus();
  }

  absl::Status ReadNormalizer(const JsonValue& normalizer) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue type_value, normalizer.Get("type"));
    KVMIX_ASSIGN_OR_RETURN(const std::string type, type_value.String());
    if (type == "Sequence") {
      KVMIX_ASSIGN_OR_RETURN(const JsonValue list,
                             normalizer.Get("normalizers"));
      KVMIX_ASSIGN_OR_RETURN(const auto steps, list.Array());
      for (const JsonValue& step : steps)
        KVMIX_RETURN_IF_ERROR(ReadNormalizer(step));
      return absl::OkStatus();
    }
    if (type == "NFC") {
      pipeline_.normalizer.AddNfc();
      return absl::OkStatus();
    }
    if (type == "Prepend") {
      KVMIX_ASSIGN_OR_RETURN(const std::string prefix,
                             ReadLiteral(normalizer, "prepend"));
      pipeline_.normalizer.AddPrepend(prefix);
      return absl::OkStatus();
    }
    if (type == "Replace") {
      KVMIX_ASSIGN_OR_RETURN(const JsonValue pattern,
                             normalizer.Get("pattern"));
      if (!pattern.Find("String"))
        return Unimplemented(pattern, "a pattern of type String");
      KVMIX_ASSIGN_OR_RETURN(const std::string from,
                             ReadLiteral(pattern, "String"));
      KVMIX_ASSIGN_OR_RETURN(const std::string to,
                             ReadLiteral(normalizer, "content"));
      pipeline_.normalizer.AddReplace(from, to);
      return absl::OkStatus();
    }
    return Unimplemented(type_value, "NFC, Prepend, Replace, Sequence");
  }

  // A string that is put into text: not empty, and short, so that a file cannot
  // make text explode.
  static absl::StatusOr<std::string> ReadLiteral(const JsonValue& object,
                                                 const char* key) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue value, object.Get(key));
    KVMIX_ASSIGN_OR_RETURN(std::string text, value.String());
    constexpr size_t kLongest = 16;
    if (text.empty() || text.size() > kLongest)
      return value.Error(absl::StrCat("1 to ", kLongest, " bytes long"));
    return text;
  }

  absl::Status ReadPreTokenizer(const JsonValue& step) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue type_value, step.Get("type"));
    KVMIX_ASSIGN_OR_RETURN(const std::string type, type_value.String());
    if (type == "Sequence") {
      KVMIX_ASSIGN_OR_RETURN(const JsonValue list, step.Get("pretokenizers"));
      KVMIX_ASSIGN_OR_RETURN(const auto steps, list.Array());
      for (const JsonValue& inner : steps)
        KVMIX_RETURN_IF_ERROR(ReadPreTokenizer(inner));
      return absl::OkStatus();
    }
    if (bpe_byte_level_) {
      return absl::UnimplementedError(absl::StrCat(
          step.path(), " comes after ByteLevel, which must be the last step"));
    }
    if (++num_pre_tokenizer_steps_ > 16) {
      return absl::InvalidArgumentError(absl::StrCat(
          step.path(), " is one step too many; at most 16 are accepted"));
    }
    if (type == "ByteLevel") return ReadByteLevel(step);
    if (type == "Split") return ReadSplit(step);
    if (type == "Metaspace") return ReadMetaspace(step);
    if (type == "Digits") {
      KVMIX_ASSIGN_OR_RETURN(const bool individual,
                             step.BoolOr("individual_digits", false));
      return AddSplit(step, individual ? "\\p{N}" : "\\p{N}+",
                      PreTokenizer::Behavior::kIsolated, false);
    }
    return Unimplemented(type_value,
                         "ByteLevel, Digits, Metaspace, Sequence, Split");
  }

  absl::Status ReadByteLevel(const JsonValue& step) {
    KVMIX_ASSIGN_OR_RETURN(const bool add_prefix_space,
                           step.BoolOr("add_prefix_space", true));
    KVMIX_ASSIGN_OR_RETURN(const bool use_regex,
                           step.BoolOr("use_regex", true));
    if (add_prefix_space) {
      pipeline_.pre_tokenizer.AddPrepend(" ",
                                         PreTokenizer::PrependAt::kEveryPiece);
    }
    if (use_regex) {
      KVMIX_RETURN_IF_ERROR(AddSplit(step, kGpt2Pattern,
                                     PreTokenizer::Behavior::kIsolated, false));
    }
    bpe_byte_level_ = true;
    return absl::OkStatus();
  }

  absl::Status ReadSplit(const JsonValue& step) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue pattern_value, step.Get("pattern"));
    std::string pattern;
    if (const auto regex = pattern_value.Find("Regex")) {
      KVMIX_ASSIGN_OR_RETURN(pattern, regex->String());
    } else {
      KVMIX_ASSIGN_OR_RETURN(const std::string literal,
                             ReadLiteral(pattern_value, "String"));
      pattern = Regex::Escape(literal);
    }
    KVMIX_ASSIGN_OR_RETURN(const bool invert, step.BoolOr("invert", false));
    KVMIX_ASSIGN_OR_RETURN(const JsonValue behavior_value,
                           step.Get("behavior"));
    using Behavior = PreTokenizer::Behavior;
    static constexpr std::pair<const char*, Behavior> kBehaviors[] = {
        {"Isolated", Behavior::kIsolated},
        {"Removed", Behavior::kRemoved},
        {"MergedWithPrevious", Behavior::kMergedWithPrevious},
        {"MergedWithNext", Behavior::kMergedWithNext}};
    for (const auto& [name, behavior] : kBehaviors)
      if (behavior_value.json() == name)
        return AddSplit(pattern_value, pattern, behavior, invert);
    return Unimplemented(behavior_value,
                         "Isolated, Removed, MergedWithPrevious, "
                         "MergedWithNext");
  }

  absl::Status AddSplit(const JsonValue& place, absl::string_view pattern,
                        PreTokenizer::Behavior behavior, bool invert) {
    auto regex = Regex::Compile(pattern);
    if (!regex.ok()) return AddContext(regex.status(), place.path());
    pipeline_.pre_tokenizer.AddSplit(*std::move(regex), behavior, invert);
    return absl::OkStatus();
  }

  absl::Status ReadMetaspace(const JsonValue& step) {
    KVMIX_ASSIGN_OR_RETURN(const std::string mark,
                           step.StringOr("replacement", kSpaceMark));
    if (mark != kSpaceMark)
      return Unimplemented(*step.Find("replacement"), "U+2581");
    KVMIX_ASSIGN_OR_RETURN(const std::string scheme, PrependScheme(step));
    KVMIX_ASSIGN_OR_RETURN(const bool split, step.BoolOr("split", true));
    if (scheme == "first" && num_pre_tokenizer_steps_ > 1) {
      return absl::UnimplementedError(absl::StrCat(
          step.path(),
          ".prepend_scheme is \"first\", which only the first step may have"));
    }
    pipeline_.pre_tokenizer.AddReplace(" ", mark);
    if (scheme != "never") {
      pipeline_.pre_tokenizer.AddPrepend(
          mark, scheme == "first" ? PreTokenizer::PrependAt::kTextStart
                                  : PreTokenizer::PrependAt::kEveryPiece);
    }
    if (!split) return absl::OkStatus();
    return AddSplit(step, kSpaceMark, PreTokenizer::Behavior::kMergedWithNext,
                    false);
  }

  // "always", "first" or "never"; older files have a bool instead.
  static absl::StatusOr<std::string> PrependScheme(const JsonValue& metaspace) {
    KVMIX_ASSIGN_OR_RETURN(const bool add_prefix_space,
                           metaspace.BoolOr("add_prefix_space", true));
    KVMIX_ASSIGN_OR_RETURN(
        std::string scheme,
        metaspace.StringOr("prepend_scheme",
                           add_prefix_space ? "always" : "never"));
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      return Unimplemented(*metaspace.Find("prepend_scheme"),
                           "always, first, never");
    }
    return scheme;
  }

  // The decoder must undo what the other parts do.
  absl::Status ReadDecoder() {
    const auto decoder = root_.Find("decoder");
    if (!decoder && bpe_byte_level_) return absl::OkStatus();
    if (!decoder) {
      return absl::UnimplementedError(
          "decoder is null; implemented without a ByteLevel pre-tokenizer: a "
          "Sequence of Replace, ByteFallback, Fuse, Strip, or Metaspace");
    }
    return ReadDecoderStep(*decoder);
  }

  absl::Status ReadDecoderStep(const JsonValue& step) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue type_value, step.Get("type"));
    KVMIX_ASSIGN_OR_RETURN(const std::string type, type_value.String());
    if (type == "Sequence") {
      KVMIX_ASSIGN_OR_RETURN(const JsonValue list, step.Get("decoders"));
      KVMIX_ASSIGN_OR_RETURN(const auto steps, list.Array());
      for (const JsonValue& inner : steps)
        KVMIX_RETURN_IF_ERROR(ReadDecoderStep(inner));
      return absl::OkStatus();
    }
    if (bpe_byte_level_) {
      if (type == "ByteLevel") return absl::OkStatus();
      return Unimplemented(type_value, "ByteLevel, like the pre_tokenizer");
    }
    if (type == "ByteFallback" || type == "Fuse") return absl::OkStatus();
    if (type == "Replace") {
      const auto& json = step.json();
      const nlohmann::json mark = {{"String", kSpaceMark}};
      if (json.value("pattern", nlohmann::json()) != mark ||
          json.value("content", nlohmann::json()) != " ")
        return Unimplemented(step, "the replacement of U+2581 by a space");
      return absl::OkStatus();
    }
    if (type == "Strip") {
      const auto& json = step.json();
      if (json.value("content", nlohmann::json()) != " " ||
          json.value("start", nlohmann::json()) != 1 ||
          json.value("stop", nlohmann::json()) != 0)
        return Unimplemented(step, "content \" \", start 1, stop 0");
      pipeline_.strip_leading_space = true;
      return absl::OkStatus();
    }
    if (type == "Metaspace") {
      KVMIX_ASSIGN_OR_RETURN(const std::string scheme, PrependScheme(step));
      pipeline_.strip_leading_space = scheme != "never";
      return absl::OkStatus();
    }
    return Unimplemented(type_value,
                         "Replace, ByteFallback, Fuse, Strip, Metaspace, "
                         "Sequence");
  }

  absl::Status ReadModel(const JsonValue& model) {
    bpe_.byte_level = bpe_byte_level_;
    KVMIX_ASSIGN_OR_RETURN(bpe_.ignore_merges,
                           model.BoolOr("ignore_merges", false));
    KVMIX_ASSIGN_OR_RETURN(bpe_.fuse_unknown, model.BoolOr("fuse_unk", false));
    KVMIX_ASSIGN_OR_RETURN(byte_fallback_,
                           model.BoolOr("byte_fallback", false));
    KVMIX_ASSIGN_OR_RETURN(const JsonValue vocab, model.Get("vocab"));
    KVMIX_RETURN_IF_ERROR(ReadVocab(vocab));
    KVMIX_ASSIGN_OR_RETURN(const JsonValue merges, model.Get("merges"));
    KVMIX_RETURN_IF_ERROR(ReadMerges(merges));
    if (const auto unknown = model.Find("unk_token")) {
      KVMIX_ASSIGN_OR_RETURN(const std::string text, unknown->String());
      const auto id = FindId(text);
      if (!id) return unknown->Error("in model.vocab");
      bpe_.unknown_id = *id;
    }
    return absl::OkStatus();
  }

  // The id of a token of model.vocab.
  std::optional<int32_t> FindId(const std::string& text) const {
    const auto& vocab = root_.json()["model"]["vocab"];
    const auto it = vocab.find(text);
    if (it == vocab.end()) return std::nullopt;
    return it->get<int32_t>();
  }

  absl::Status ReadVocab(const JsonValue& vocab) {
    if (!vocab.json().is_object() || vocab.json().empty())
      return vocab.Error("an object of token: id");
    for (const auto& [text, id_json] : vocab.json().items()) {
      const auto id = JsonValue(id_json, "").Int();
      if (!id.ok() || *id < 0 || *id >= kMaxVocabSize) {
        return JsonValue(id_json,
                         absl::StrCat(vocab.path(), "[\"", text, "\"]"))
            .Error(absl::StrCat("an integer in [0, ", kMaxVocabSize, ")"));
      }
      PipelineSpec::Token token;
      token.bytes = ToBytes(text);
      if (const auto bytes =
              bpe_byte_level_ ? FromByteAlphabet(text) : std::optional(text)) {
        bpe_.vocab[*bytes] = *id;
      }
      if (byte_fallback_)
        if (const auto byte = ParseByteToken(text))
          bpe_.byte_fallback[*byte] = *id;
      const absl::Status added = pipeline_.AddToken(*id, std::move(token));
      if (!added.ok()) return AddContext(added, vocab.path());
    }
    return absl::OkStatus();
  }

  // What a token of model.vocab decodes to.
  std::string ToBytes(const std::string& text) const {
    if (bpe_byte_level_) return FromByteAlphabet(text).value_or(text);
    if (byte_fallback_)
      if (const auto byte = ParseByteToken(text))
        return std::string(1, static_cast<char>(*byte));
    return absl::StrReplaceAll(text, {{kSpaceMark, " "}});
  }

  absl::Status ReadMerges(const JsonValue& merges) {
    if (!merges.json().is_array()) return merges.Error("an array");
    bpe_.merges.reserve(merges.json().size());
    for (size_t i = 0; i < merges.json().size(); ++i) {
      const auto& json = merges.json()[i];
      const auto parts = SplitMerge(json);
      const auto left = parts ? ToBpeText(parts->first) : std::nullopt;
      const auto right = parts ? ToBpeText(parts->second) : std::nullopt;
      if (!left || !right) {
        return JsonValue(json, absl::StrCat(merges.path(), "[", i, "]"))
            .Error(bpe_byte_level_ ? "two tokens in the byte alphabet of GPT-2"
                                   : "two tokens");
      }
      bpe_.merges.emplace_back(*left, *right);
    }
    return absl::OkStatus();
  }

  // "left right" in older files, ["left", "right"] in newer ones.
  static std::optional<std::pair<std::string, std::string>> SplitMerge(
      const nlohmann::json& merge) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
        merge[1].is_string()) {
      return std::pair(merge[0].get<std::string>(),
                       merge[1].get<std::string>());
    }
    if (!merge.is_string()) return std::nullopt;
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == text.npos || text.find(' ', space + 1) != text.npos)
      return std::nullopt;
    return std::pair(text.substr(0, space), text.substr(space + 1));
  }

  std::optional<std::string> ToBpeText(const std::string& text) const {
    return bpe_byte_level_ ? FromByteAlphabet(text) : std::optional(text);
  }

  absl::Status ReadAddedTokens(const JsonValue& list) {
    KVMIX_ASSIGN_OR_RETURN(const auto items, list.Array());
    for (const JsonValue& item : items) {
      AddedToken token;
      KVMIX_ASSIGN_OR_RETURN(const JsonValue content, item.Get("content"));
      KVMIX_ASSIGN_OR_RETURN(token.content, content.String());
      if (token.content.empty()) return content.Error("not empty");
      KVMIX_ASSIGN_OR_RETURN(token.special, item.BoolOr("special", false));
      KVMIX_ASSIGN_OR_RETURN(token.normalized,
                             item.BoolOr("normalized", !token.special));
      KVMIX_ASSIGN_OR_RETURN(token.single_word,
                             item.BoolOr("single_word", false));
      KVMIX_ASSIGN_OR_RETURN(token.lstrip, item.BoolOr("lstrip", false));
      KVMIX_ASSIGN_OR_RETURN(token.rstrip, item.BoolOr("rstrip", false));
      KVMIX_ASSIGN_OR_RETURN(const JsonValue id_value, item.Get("id"));
      KVMIX_ASSIGN_OR_RETURN(const int64_t id, id_value.Int());
      KVMIX_RETURN_IF_ERROR(PlaceAddedToken(item, id, token));
      token.id = id;
      pipeline_.added_tokens.push_back(token);
    }
    return absl::OkStatus();
  }

  absl::Status PlaceAddedToken(const JsonValue& item, int64_t id,
                               const AddedToken& token) {
    const auto same = [&](const AddedToken& other) {
      return other.content == token.content;
    };
    if (std::any_of(pipeline_.added_tokens.begin(),
                    pipeline_.added_tokens.end(), same))
      return item.Error("a token that was not added before");
    PipelineSpec::Token entry;
    entry.bytes = bpe_byte_level_ ? token.content : ToBytes(token.content);
    entry.special = token.special;
    const auto known_id = FindId(token.content);
    if (known_id && *known_id != id) {
      return absl::InvalidArgumentError(
          absl::StrCat(item.path(), ".id is ", id, " but model.vocab has \"",
                       token.content, "\" at ", *known_id));
    }
    if (known_id) {
      entry.exists = true;
      pipeline_.tokens[id] = std::move(entry);
      return absl::OkStatus();
    }
    return AddContext(pipeline_.AddToken(id, std::move(entry)), item.path());
  }

  absl::Status ReadPostProcessor(const JsonValue& processor) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue type_value, processor.Get("type"));
    KVMIX_ASSIGN_OR_RETURN(const std::string type, type_value.String());
    if (type == "ByteLevel") return absl::OkStatus();  // offsets only
    if (type == "TemplateProcessing") return ReadTemplate(processor);
    if (type != "Sequence")
      return Unimplemented(type_value,
                           "ByteLevel, TemplateProcessing, Sequence");
    KVMIX_ASSIGN_OR_RETURN(const JsonValue list, processor.Get("processors"));
    KVMIX_ASSIGN_OR_RETURN(const auto steps, list.Array());
    for (const JsonValue& step : steps)
      KVMIX_RETURN_IF_ERROR(ReadPostProcessor(step));
    return absl::OkStatus();
  }

  // single: [special tokens, the text, special tokens].
  absl::Status ReadTemplate(const JsonValue& processor) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue single, processor.Get("single"));
    KVMIX_ASSIGN_OR_RETURN(const auto items, single.Array());
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    bool seen_text = false;
    for (const JsonValue& item : items) {
      if (item.Find("Sequence")) {
        if (std::exchange(seen_text, true))
          return item.Error("the only Sequence");
        continue;
      }
      KVMIX_ASSIGN_OR_RETURN(const JsonValue special, item.Get("SpecialToken"));
      KVMIX_ASSIGN_OR_RETURN(const JsonValue name_value, special.Get("id"));
      KVMIX_ASSIGN_OR_RETURN(const std::string name, name_value.String());
      KVMIX_ASSIGN_OR_RETURN(const JsonValue specials,
                             processor.Get("special_tokens"));
      KVMIX_ASSIGN_OR_RETURN(const JsonValue entry, specials.Get(name));
      KVMIX_ASSIGN_OR_RETURN(const JsonValue ids_value, entry.Get("ids"));
      KVMIX_ASSIGN_OR_RETURN(const auto ids, ids_value.Array());
      for (const JsonValue& id_value : ids) {
        KVMIX_ASSIGN_OR_RETURN(const int64_t id, id_value.Int());
        if (id < 0 || id >= static_cast<int64_t>(pipeline_.tokens.size()))
          return id_value.Error("the id of a token");
        (seen_text ? after : before).push_back(id);
      }
    }
    if (!seen_text) return single.Error("a template with a Sequence in it");
    pipeline_.prefix.insert(pipeline_.prefix.begin(), before.begin(),
                            before.end());
    pipeline_.suffix.insert(pipeline_.suffix.end(), after.begin(), after.end());
    return absl::OkStatus();
  }

  const JsonValue& root_;
  PipelineSpec pipeline_;
  RankedBpeSpec bpe_;
  bool bpe_byte_level_ = false;
  bool byte_fallback_ = false;
  int num_pre_tokenizer_steps_ = 0;
};

}  // namespace

absl::StatusOr<PipelineSpec> ReadTokenizerJson(absl::string_view text) {
  KVMIX_ASSIGN_OR_RETURN(const nlohmann::json document, ParseJson(text));
  const JsonValue root(document, "");
  return TokenizerJsonReader(root).Read();
}

}  // namespace kvmix
