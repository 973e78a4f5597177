#!/usr/bin/env python3
"""Makes models/tokenizer/testdata: tiny tokenizers with the ids they give.

Trains one tokenizer of each kind that we read, on a small mixed text, with
Hugging Face's `tokenizers` and Google's `sentencepiece`, and writes each with
the ids that these libraries give for cases.json. Our own code has no part in
it, so models/tokenizer compares itself with them.

  testdata/cases.json             the texts
  testdata/<name>/tokenizer.json  or tokenizer.model
  testdata/<name>/ids.json        ids of each text; special tokens added, and
                                  parsed where the library parses them
  testdata/<name>/plain_ids.json  special tokens neither added nor parsed

Run from the repository root: python3 tools/make_tokenizer_goldens.py
Needs: tokenizers, sentencepiece.
"""

import io
import json
import pathlib

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from tokenizers import normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path("models/tokenizer/testdata")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# What the tiny tokenizers learn from.
CORPUS = """\
The cache holds the keys and the values of all the tokens before this one.
We don't say that it's small; they're large, and we'll compress them.
Attention reads the keys, weighs them, and adds the values up.
def attend(query, keys, values):
    scores = query @ keys.T
    return softmax(scores) @ values
for (int i = 0; i < 128; ++i) { sum += x[i] * 3.14159; }
缓存保存所有键和值。注意力读取这些键。キャッシュは鍵と値を保持します。
The values 2024, 1000000 and 3.5 are numbers. L'été, la fenêtre, où ça?
"""

# Where tokenizers go wrong.
CASES = [
    "",
    " ",
    "  ",
    "a",
    "\n",
    "The cache holds the keys, and the values.",
    " leading and trailing ",
    "double  spaces   and    more",
    "I'm you're WE'LL DON'T it'S o'clock 'tis 'S 't",
    "\u2019s isn\u2019t \u017f 'ſ",
    "0 7 42 123 1234 12345 1234567 3.14 1,000 2nd x86 ٣٤ ½ Ⅷ 一二",
    "def f(x):\n    return x[0]  # ok\n\n\treturn\t{'a': 1}\r\n\r\n",
    "tabs\tand\r\nCRLF\rCR\n\n\nmany  \n  \n end   \n",
    "nbsp\u00a0here thin\u2009wide\u3000zero\u200bjoin\u200d sep\u2028par\u2029"
    "nel\u0085mvs\u180eend",
    "缓存保存键。注意力！日本語キャッシュ、한국어 캐시 नमस्ते ไทย",
    "😀 👩‍👩‍👧‍👦👍🏽 🇩🇪🇯🇵 e\u0301 vs é \u1e9b\u0323 o\u0323\u0302 \ufb01 Å",
    "a\u0301\u0323\u0300 \u0301alone \u1100\u1161\u11a8 \u212b",
    "aaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!!!! ---- ====",
    "x\u0000y \u0001\u001f\u007f \ufffd \ufeffbom \U0010ffff \ue000",
    "▁literal▁mark ▁ ▁▁",
    "<s> </s> <unk> <0x41> <|eot|> <|eot|>x  <|eot|>  y<tool>z",
    "<tool> <tool>s a<tool> word <mask> end<mask>word  <mask>  x",
    "    four\n        eight\n   x",
    "l'été L'ÉTÉ ça_va __init__ a_b snake_case CamelCase $x%^&*",
]


def byte_level(pre, vocab_size, corpus=CORPUS):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([corpus], trainer)
    return tokenizer


def byte_level_step(**kw):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **kw)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def gpt2():
    tokenizer = byte_level(byte_level_step(), 330)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<|eot|>"])
    return tokenizer


def gpt2_prefix_space():
    """add_prefix_space, and added tokens with every flag."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), 300)
    tokenizer.add_special_tokens([
        AddedToken("<mask>", lstrip=True, rstrip=True, special=True),
        AddedToken("<|eot|>", rstrip=True, special=True)])
    tokenizer.add_tokens([
        AddedToken("<tool>", single_word=True, normalized=False),
        AddedToken("spaces", lstrip=True, normalized=True)])
    return tokenizer


def smollm():
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), byte_level_step()])
    tokenizer = byte_level(pre, 330)
    tokenizer.add_special_tokens(["<|eot|>", "<s>"])
    return tokenizer


def llama3():
    pre = pre_tokenizers.Sequence([
        split(LLAMA3), byte_level_step(use_regex=False)])
    tokenizer = byte_level(pre, 330)
    # Words that no merges lead to, to see that ignore_merges finds them.
    text = json.loads(tokenizer.to_str())
    vocab = text["model"]["vocab"]
    for word in ["Ġleading", "snake", "ĠCamel"]:
        vocab.setdefault(word, len(vocab))
    text["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(text))
    tokenizer.add_special_tokens(["<s>", "<|eot|>"])
    template = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen2():
    pre = pre_tokenizers.Sequence([
        split(QWEN2), byte_level_step(use_regex=False)])
    tokenizer = byte_level(pre, 330)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|eot|>"])
    return tokenizer


def split_behaviors():
    """The ways of Split that are rare; runs of digits; a template with EOS."""
    pre = pre_tokenizers.Sequence([
        split(r"\p{L}+|\s+|\p{N}+|[^\s\p{L}\p{N}]+", "removed", True),
        split(r"[aeiou]", "merged_with_previous"),
        split(r"[xyz\-]", "merged_with_next"),
        pre_tokenizers.Digits(individual_digits=False),
        byte_level_step(use_regex=False)])
    tokenizer = byte_level(pre, 300)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ["<s>", "</s>"]])
    return tokenizer


def train_sentencepiece(**kw):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()), model_writer=model,
        model_type="bpe", character_coverage=0.995, minloglevel=2,
        normalization_rule_name="identity", num_threads=1, **kw)
    return model.getvalue()


def llama2_model():
    return train_sentencepiece(vocab_size=420, byte_fallback=True,
                               split_digits=True, allow_whitespace_only_pieces=True,
                               remove_extra_whitespaces=False)


def unknown_model():
    """No byte tokens, extra spaces removed, user-defined symbols."""
    return train_sentencepiece(vocab_size=150, byte_fallback=False,
                               remove_extra_whitespaces=True,
                               user_defined_symbols=["<tool>", "return"])


def llama2_json(model_bytes, metaspace):
    """The SentencePiece model as Hugging Face's converter writes it: merges are
    all the ways to split a piece in two, in the order of the pieces' scores."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    vocab = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    merges = []
    for piece, i in vocab.items():
        for k in range(1, len(piece)):
            if piece[:k] in vocab and piece[k:] in vocab:
                if not (sp.is_byte(i) or sp.is_control(i) or sp.is_unknown(i)):
                    merges.append((i, vocab[piece[:k]], piece[:k], piece[k:]))
    merges.sort(key=lambda m: (-sp.get_score(m[0]), m[0], m[1]))
    tokenizer = Tokenizer(models.BPE(
        vocab, [(left, right) for _, _, left, right in merges],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(),
             decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([
            normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([
        AddedToken(t, normalized=False, special=True)
        for t in ["<unk>", "<s>", "</s>"]])
    if not metaspace:
        tokenizer.add_tokens([AddedToken("<tool>", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True,
                               separators=(",", ":")) + "\n")


def write_hugging_face(name, tokenizer):
    write(OUT / name / "tokenizer.json", json.loads(tokenizer.to_str()))
    tokenizer.encode_special_tokens = False
    write(OUT / name / "ids.json", [tokenizer.encode(t).ids for t in CASES])
    tokenizer.encode_special_tokens = True
    write(OUT / name / "plain_ids.json",
          [tokenizer.encode(t, add_special_tokens=False).ids for t in CASES])


def write_sentencepiece(name, model):
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    path = OUT / name / "tokenizer.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    write(OUT / name / "plain_ids.json", [sp.encode(t) for t in CASES])


def main():
    write(OUT / "cases.json", CASES)
    for make in [gpt2, gpt2_prefix_space, smollm, llama3, qwen2,
                 split_behaviors]:
        write_hugging_face(make.__name__, make())
    model = llama2_model()
    write_sentencepiece("llama2_model", model)
    write_sentencepiece("unknown_model", unknown_model())
    write_hugging_face("llama2_json", llama2_json(model, metaspace=False))
    write_hugging_face("metaspace_json", llama2_json(model, metaspace=True))


if __name__ == "__main__":
    main()
