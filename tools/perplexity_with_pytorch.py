#!/usr/bin/env python3
"""Perplexity of a GGUF model (architecture llama) in PyTorch, to hold against `kvmix run` in full precision.

Tokens are cut into windows of --context that start from nothing; the first token of a window is not scored, and
what is shorter than a window is left out, as a text dataset of KVmix does it.

Needs: pip install torch transformers gguf
  bazel run //experiments:kvmix -- tokenize --model=M.gguf --text-file=TEXT > IDS
  tools/perplexity_with_pytorch.py --model=M.gguf --tokens=IDS --context=1024 --max_tokens=34816
"""
import argparse
import math

import numpy as np
import torch

from compare_with_pytorch import load


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True, help="text file, one token a line")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--max_tokens", type=int, default=34816)
    args = parser.parse_args()
    ids = np.loadtxt(args.tokens, dtype=np.int64)[:args.max_tokens]
    windows = torch.tensor(ids[:len(ids) // args.context * args.context]).view(-1, args.context)
    model = load(args.model)
    nll = 0.0
    with torch.no_grad():
        for i, window in enumerate(windows):
            logits = model(window[None]).logits[0, :-1].double()
            nll += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            print(f"{i + 1}/{len(windows)} windows: {math.exp(nll / ((i + 1) * (args.context - 1))):.5f}", flush=True)


if __name__ == "__main__":
    main()
