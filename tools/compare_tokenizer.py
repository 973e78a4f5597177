#!/usr/bin/env python3
"""Compares token ids of a text with those of Hugging Face's `tokenizers`.

  python3 tools/compare_tokenizer.py --text FILE --ids FILE \\
      (--gguf model.gguf | --tokenizer tokenizer.json) [--special] [--parse]

--ids holds one id per line. The reference comes from a tokenizer.json, or is
built from a GGUF file's tokens and merges (byte-level BPE with
tokenizer.ggml.pre "gpt-2" or "smollm"). --special: BOS and EOS are added.
--parse: special tokens in the text are parsed. Exits with 1 at a difference.
Needs: tokenizers; gguf for --gguf.
"""

import argparse
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def from_gguf(path):
    import gguf
    fields = gguf.GGUFReader(path).fields

    def get(name):
        return fields["tokenizer.ggml." + name].contents()

    tokens = get("tokens")
    merges = [tuple(merge.split(" ")) for merge in get("merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    if get("pre") not in steps:
        sys.exit(f"tokenizer.ggml.pre is {get('pre')}; known: {list(steps)}")
    tokenizer.pre_tokenizer = steps[get("pre")]
    tokenizer.decoder = decoders.ByteLevel()
    control, user_defined = 3, 4
    for token, kind in zip(tokens, get("token_type")):
        added = AddedToken(token, normalized=False, special=kind == control)
        if kind == control:
            tokenizer.add_special_tokens([added])
        elif kind == user_defined:
            tokenizer.add_tokens([added])
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True)
    parser.add_argument("--ids", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf")
    source.add_argument("--tokenizer")
    parser.add_argument("--special", action="store_true")
    parser.add_argument("--parse", action="store_true")
    args = parser.parse_args()

    tokenizer = (from_gguf(args.gguf) if args.gguf
                 else Tokenizer.from_file(args.tokenizer))
    tokenizer.encode_special_tokens = not args.parse
    with open(args.text, encoding="utf-8", newline="") as file:
        text = file.read()
    with open(args.ids, encoding="ascii") as file:
        ours = [int(line) for line in file]
    reference = tokenizer.encode(text, add_special_tokens=args.special).ids

    if ours == reference:
        print(f"{len(ours)} ids of {len(text.encode())} bytes are equal")
        return
    length = min(len(ours), len(reference))
    at = next((i for i in range(length) if ours[i] != reference[i]), length)
    window = slice(max(0, at - 3), at + 5)
    print(f"{len(ours)} ids, reference {len(reference)}; first difference at "
          f"{at}:\n  ours      {ours[window]}"
          f"\n  reference {reference[window]}"
          f" {[tokenizer.id_to_token(i) for i in reference[window]]}")
    sys.exit(1)


if __name__ == "__main__":
    main()
