// SentencePiece BPE (Kudo and Richardson, "SentencePiece: A simple and language
// independent subword tokenizer", 2018): spaces become U+2581, text is merged
// by the scores of pieces, unknown characters become byte tokens.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/readers.h"
#include "models/tokenizer/sentencepiece_model.pb.h"

namespace kvmix {
namespace {

constexpr char kSpaceMark[] = "\xE2\x96\x81";  // U+2581

absl::Status CheckNormalizer(const sentencepiece::Normalizer& spec,
                             absl::string_view field) {
  if (!spec.precompiled_charsmap().empty()) {
    return absl::UnimplementedError(absl::StrCat(
        field, ".name is \"", absl::CHexEscape(spec.name()),
        "\" with a character map; only \"identity\" is implemented"));
  }
  if (!spec.escape_whitespaces()) {
    return absl::UnimplementedError(absl::StrCat(
        field, ".escape_whitespaces is false; only true is implemented"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PipelineSpec> BuildSentencePiece(
    const SentencePieceVocab& vocab) {
  using Vocab = SentencePieceVocab;
  PipelineSpec pipeline;
  ScoredBpeSpec bpe;
  absl::flat_hash_set<absl::string_view> texts;
  int num_byte_tokens = 0;
  for (size_t id = 0; id < vocab.pieces.size(); ++id) {
    const Vocab::Piece& piece = vocab.pieces[id];
    const auto error = [&](absl::string_view reason) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", id, " \"", absl::CHexEscape(piece.text), "\" ", reason));
    };
    if (piece.text.empty()) return error("is empty");
    if (!texts.insert(piece.text).second)
      return error("stands twice in the vocabulary");
    PipelineSpec::Token token;
    token.bytes = piece.text;
    const int32_t signed_id = id;
    switch (piece.type) {
      case Vocab::kNormal:
      case Vocab::kUserDefined:
      case Vocab::kUnused:
        bpe.pieces.push_back({piece.text, piece.score, signed_id,
                              piece.type == Vocab::kUserDefined,
                              piece.type == Vocab::kUnused});
        token.bytes = absl::StrReplaceAll(piece.text, {{kSpaceMark, " "}});
        break;
      case Vocab::kUnknown:
        if (bpe.unknown_id != kNoToken)
          return error("is a second token of type unknown");
        bpe.unknown_id = id;
        token.bytes = vocab.unknown_surface;
        break;
      case Vocab::kControl: {
        token.special = true;
        AddedToken added;
        added.content = piece.text;
        added.id = id;
        added.special = true;
        pipeline.added_tokens.push_back(added);
        break;
      }
      case Vocab::kByte: {
        const auto byte = ParseByteToken(piece.text);
        if (!byte) return error("is of type byte but not of the form <0x0A>");
        if (bpe.byte_fallback[*byte] != kNoToken)
          return error("is a second token of its byte");
        bpe.byte_fallback[*byte] = id;
        token.bytes = std::string(1, static_cast<char>(*byte));
        ++num_byte_tokens;
        break;
      }
      default:
        return error(
            absl::StrCat("has type ", piece.type, " but types are 1 to 6"));
    }
    KVMIX_RETURN_IF_ERROR(pipeline.AddToken(id, std::move(token)));
  }
  if (num_byte_tokens != 0 && num_byte_tokens != 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("the vocabulary has ", num_byte_tokens,
                     " byte tokens but must have none or all 256"));
  }
  if (vocab.remove_extra_whitespaces)
    pipeline.normalizer.AddRemoveExtraSpaces();
  if (vocab.add_dummy_prefix) pipeline.normalizer.AddPrepend(kSpaceMark);
  pipeline.normalizer.AddReplace(" ", kSpaceMark);
  pipeline.strip_leading_space = vocab.add_dummy_prefix;
  KVMIX_ASSIGN_OR_RETURN(pipeline.word_encoder, MakeScoredBpe(bpe));
  if (pipeline.word_encoder->CutsBeforeSpaceMark())
    pipeline.pre_tokenizer.AddCutBeforeSpaceMark();
  return pipeline;
}

absl::StatusOr<PipelineSpec> ReadSentencePieceModel(absl::string_view bytes) {
  sentencepiece::Model model;
  if (bytes.size() > (size_t{1} << 30) ||
      !model.ParseFromArray(bytes.data(), bytes.size()) ||
      model.pieces_size() == 0) {
    return absl::InvalidArgumentError(
        "not a SentencePiece model: truncated, corrupt or of another format");
  }
  const sentencepiece::Trainer& trainer = model.trainer_spec();
  if (trainer.model_type() != sentencepiece::Trainer::BPE) {
    return absl::UnimplementedError(absl::StrCat(
        "trainer_spec.model_type is ",
        sentencepiece::Trainer::ModelType_Name(trainer.model_type()),
        "; only BPE is implemented (the Llama and Mistral families use it)"));
  }
  if (trainer.treat_whitespace_as_suffix()) {
    return absl::UnimplementedError(
        "trainer_spec.treat_whitespace_as_suffix is true; only false is "
        "implemented");
  }
  KVMIX_RETURN_IF_ERROR(
      CheckNormalizer(model.normalizer_spec(), "normalizer_spec"));
  KVMIX_RETURN_IF_ERROR(
      CheckNormalizer(model.denormalizer_spec(), "denormalizer_spec"));
  SentencePieceVocab vocab;
  vocab.pieces.reserve(model.pieces_size());
  for (const auto& piece : model.pieces())
    vocab.pieces.push_back({piece.piece(), piece.score(), piece.type()});
  vocab.add_dummy_prefix = model.normalizer_spec().add_dummy_prefix();
  vocab.remove_extra_whitespaces =
      model.normalizer_spec().remove_extra_whitespaces();
  vocab.unknown_surface = trainer.unk_surface();
  KVMIX_ASSIGN_OR_RETURN(PipelineSpec pipeline, BuildSentencePiece(vocab));
  if (trainer.bos_id() >= 0) {
    pipeline.bos_id = trainer.bos_id();
    pipeline.prefix = {trainer.bos_id()};
  }
  if (trainer.eos_id() >= 0) pipeline.eos_ids = {trainer.eos_id()};
  return pipeline;
}

}  // namespace kvmix
