#include "models/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {

const char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
    R"(|\s+(?!\S)|\s+)";
const char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
constexpr absl::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// Oniguruma's pattern as PCRE2 reads it. Both agree on what most tokenizers
// use; \s differs (PCRE2's includes U+180E) and is written out as a property.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!in_.empty()) {
      if (in_[0] == '\\')
        KVMIX_RETURN_IF_ERROR(TakeEscape());
      else if (in_class_)
        KVMIX_RETURN_IF_ERROR(TakeInClass());
      else
        KVMIX_RETURN_IF_ERROR(TakeOutsideClass());
    }
    return out_;
  }

 private:
  void Take(size_t n) {
    out_.append(in_.data(), n);
    in_.remove_prefix(n);
  }

  static absl::Status Refuse(absl::string_view what) {
    return absl::UnimplementedError(
        absl::StrCat("pattern uses ", what,
                     ", which Oniguruma and PCRE2 may read differently"));
  }

  absl::Status TakeEscape() {
    if (in_.size() < 2)
      return absl::InvalidArgumentError("pattern ends in a lone backslash");
    const char c = in_[1];
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      in_.remove_prefix(2);
    } else if (c == 'p' || c == 'P') {
      const size_t end = in_.find('}');
      if (end == in_.npos || in_[2] != '{')
        return absl::InvalidArgumentError("pattern has \\p without {name}");
      Take(end + 1);
    } else if (absl::StrContains("dDrntf", c) || absl::ascii_ispunct(c)) {
      Take(2);
    } else {
      return Refuse(absl::StrCat("\\", in_.substr(1, 1)));
    }
    return absl::OkStatus();
  }

  absl::Status TakeInClass() {
    if (in_[0] == '[') return Refuse("[ inside a character class");
    if (absl::StartsWith(in_, "&&")) return Refuse("&& in a character class");
    if (in_[0] == ']') in_class_ = false;
    Take(1);
    return absl::OkStatus();
  }

  absl::Status TakeOutsideClass() {
    if (in_[0] == '^' || in_[0] == '$') return Refuse(in_.substr(0, 1));
    if (absl::StartsWith(in_, "}+")) return Refuse("a possessive {n,m}+");
    if (absl::StartsWith(in_, "(*")) return Refuse("(*");
    if (absl::StartsWith(in_, "(?")) {
      for (absl::string_view group :
           {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
        if (!absl::StartsWith(in_, group)) continue;
        Take(group.size());
        return absl::OkStatus();
      }
      return Refuse(in_.substr(0, 3));
    }
    if (in_[0] != '[') {
      Take(1);
      return absl::OkStatus();
    }
    in_class_ = true;
    Take(absl::StartsWith(in_, "[^") ? 2 : 1);
    if (absl::StartsWith(in_, "]")) return Refuse("] first in a class");
    return absl::OkStatus();
  }

  absl::string_view in_;
  std::string out_;
  bool in_class_ = false;
};

std::string Pcre2Message(int error) {
  char message[256] = "";
  pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message),
                          sizeof(message));
  return message;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

std::string Regex::Escape(absl::string_view text) {
  std::string out;
  for (char c : text) {
    if (absl::ascii_ispunct(c)) out.push_back('\\');
    out.push_back(c);
  }
  return out;
}

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern has ", pattern.size(), " bytes; at most ",
                     kMaxPatternBytes, " are accepted"));
  }
  KVMIX_ASSIGN_OR_RETURN(const std::string translated,
                         Translator(pattern).Run());
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  const std::unique_ptr<pcre2_compile_context,
                        decltype(&pcre2_compile_context_free)>
      context(pcre2_compile_context_create(nullptr),
              &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // what . leaves out
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                             translated.size(), PCRE2_UTF | PCRE2_UCP, &error,
                             &offset, context.get());
  if (code->code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern does not compile: ", Pcre2Message(error),
                     " at byte ", offset, " of ", translated));
  }
  // Where the processor or the kernel allows no JIT, the interpreter runs.
  (void)pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

absl::Status Regex::Visit(
    absl::string_view text,
    const std::function<absl::Status(size_t, size_t, bool)>& visit) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>
      match(pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
  const auto find = [&](size_t from, uint32_t options) {
    return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()),
                       text.size(), from, options | PCRE2_NO_UTF_CHECK,
                       match.get(), nullptr);
  };
  size_t done = 0;  // text[0, done) has been visited
  for (size_t from = 0; from < text.size();) {
    int result = find(from, 0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = find(from, PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("splitting text by the pre-tokenizer's pattern failed: ",
                       Pcre2Message(result)));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    const size_t begin = range[0];
    const size_t end = range[1];
    if (begin > done) KVMIX_RETURN_IF_ERROR(visit(done, begin, false));
    if (end > begin) KVMIX_RETURN_IF_ERROR(visit(begin, end, true));
    done = end;
    // An empty match separates its neighbours and has no text of its own.
    from = end > begin
               ? end
               : end + std::max<size_t>(Utf8CharSize(text.substr(end)), 1);
  }
  if (done < text.size()) return visit(done, text.size(), false);
  return absl::OkStatus();
}

void PreTokenizer::AddSplit(Regex regex, Behavior behavior, bool invert) {
  const auto split = [regex, behavior, invert](absl::string_view text,
                                               const Visitor& next) {
    std::optional<absl::string_view> held;  // a piece that may yet grow
    const auto release = [&] {
      return held ? next(*std::exchange(held, std::nullopt)) : absl::OkStatus();
    };
    bool after_match = false;
    const auto visit = [&](size_t begin, size_t end, bool is_match) {
      is_match = is_match != invert;
      absl::string_view piece = text.substr(begin, end - begin);
      const bool was_after_match = std::exchange(after_match, is_match);
      switch (behavior) {
        case Behavior::kIsolated:
          return next(piece);
        case Behavior::kRemoved:
          return is_match ? absl::OkStatus() : next(piece);
        case Behavior::kMergedWithPrevious:
          if (is_match && !was_after_match && held) {
            held = {held->data(), held->size() + piece.size()};
            return absl::OkStatus();
          }
          KVMIX_RETURN_IF_ERROR(release());
          held = piece;
          return absl::OkStatus();
        case Behavior::kMergedWithNext:
          if (!is_match) {
            if (held) piece = {held->data(), held->size() + piece.size()};
            held.reset();
            return next(piece);
          }
          KVMIX_RETURN_IF_ERROR(release());
          held = piece;
          return absl::OkStatus();
      }
      return absl::OkStatus();
    };
    KVMIX_RETURN_IF_ERROR(regex.Visit(text, visit));
    return release();
  };
  steps_.push_back([split](absl::string_view piece, bool, const Visitor& next) {
    while (!piece.empty()) {
      const size_t valid = ValidUtf8Prefix(piece);
      if (valid > 0) KVMIX_RETURN_IF_ERROR(split(piece.substr(0, valid), next));
      piece.remove_prefix(valid);
      size_t malformed = 0;
      while (malformed < piece.size() &&
             Utf8CharSize(piece.substr(malformed)) == 0) {
        ++malformed;
      }
      if (malformed > 0)
        KVMIX_RETURN_IF_ERROR(next(piece.substr(0, malformed)));
      piece.remove_prefix(malformed);
    }
    return absl::OkStatus();
  });
}

void PreTokenizer::AddPrepend(absl::string_view prefix, PrependAt where) {
  steps_.push_back(
      [prefix = std::string(prefix), where](
          absl::string_view piece, bool at_text_start, const Visitor& next) {
        if (absl::StartsWith(piece, prefix) ||
            (where == PrependAt::kTextStart && !at_text_start)) {
          return next(piece);
        }
        return next(absl::StrCat(prefix, piece));
      });
}

void PreTokenizer::AddReplace(absl::string_view from, absl::string_view to) {
  steps_.push_back([from = std::string(from), to = std::string(to)](
                       absl::string_view piece, bool, const Visitor& next) {
    return next(absl::StrReplaceAll(piece, {{from, to}}));
  });
}

void PreTokenizer::AddCutBeforeSpaceMark() {
  steps_.push_back([](absl::string_view piece, bool, const Visitor& next) {
    size_t begin = 0;
    size_t after_mark = 0;  // end of the last mark
    for (size_t at = piece.find(kSpaceMark); at != absl::string_view::npos;
         at = piece.find(kSpaceMark, at + kSpaceMark.size())) {
      if (at > begin && at != after_mark) {
        KVMIX_RETURN_IF_ERROR(next(piece.substr(begin, at - begin)));
        begin = at;
      }
      after_mark = at + kSpaceMark.size();
    }
    return next(piece.substr(begin));
  });
}

absl::Status PreTokenizer::Split(absl::string_view text, bool at_text_start,
                                 const Visitor& visit) const {
  return text.empty() ? absl::OkStatus() : Run(0, text, at_text_start, visit);
}

absl::Status PreTokenizer::Run(size_t step, absl::string_view piece,
                               bool at_text_start, const Visitor& visit) const {
  if (step == steps_.size()) return visit(piece);
  return steps_[step](piece, at_text_start, [&](absl::string_view next) {
    return Run(step + 1, next, at_text_start, visit);
  });
}

}  // namespace kvmix
