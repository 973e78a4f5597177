#!/usr/bin/env python3
"""Figures of the embedded model: models/embedded/figures.json.

    tools/evaluate_embedded_model.py --generator=bazel-bin/experiments/synthetic/generate_text

Held-out perplexity against a unigram model, and the synthetic tasks in full precision (fp32 arithmetic on the bf16
weights) and with a 2-bit cache in the CHUNKED mode: chunks of 32 tokens attend the quantized cache of all earlier
chunks; K per channel in groups of 32 tokens, V per token in groups of 32 channels, asymmetric min/max. Each question
is asked alone after its context; an answer is right when every token of it is the most probable one. Both modes see
the same questions; the differences are paired, their standard errors are over contexts.
"""
import argparse
import json
import math
import os
import subprocess
import sys

if "MALLOC_MMAP_MAX_" not in os.environ:  # fresh memory maps cost more than the arithmetic on them
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 36), MALLOC_TOP_PAD_=str(1 << 28),
                      OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    os.execv(sys.executable, [sys.executable] + sys.argv)

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import embedded_model  # noqa: E402

CHUNK = 32
HELD_OUT_SEED = 900001  # training uses seeds 1000 * seed + stage

# name, generator options, contexts, questions a context
SUITE = [
    ("recall, 32 confusable keys, 2048 tokens", "--task=recall --facts=32 --tokens=2048", 60, 20),
    ("recall, 32 confusable keys, 4096 tokens", "--task=recall --facts=32 --tokens=4088", 60, 20),
    ("recall, 128 confusable keys, 2048 tokens", "--task=recall --facts=128 --tokens=2048", 40, 25),
    ("recall, 128 confusable keys, 4096 tokens", "--task=recall --facts=128 --tokens=4088", 20, 25),
    ("recall, 32 random keys, 2048 tokens", "--task=recall --facts=32 --tokens=2048 --confusable=0", 30, 20),
    ("hop, trace of 2 hops, 24 variables, 2048 tokens", "--task=hop --facts=24 --hops=2 --tokens=2048", 50, 8),
    ("hop, value alone after 1 hop, 24 variables, 2048 tokens", "--task=hop --facts=24 --hops=1 --direct --tokens=2048", 40, 10),
    ("hop, value alone after 2 hops, 24 variables, 2048 tokens", "--task=hop --facts=24 --hops=2 --direct --tokens=2048", 40, 8),
    ("count, 32 additions of 9 kinds, 512 tokens", "--task=count --facts=32 --tokens=512", 60, 6),
    ("count, 32 additions of 9 kinds, 2048 tokens", "--task=count --facts=32 --tokens=2048", 60, 6),
    ("copy, 16 strings of 12 symbols, 2048 tokens", "--task=copy --facts=16 --tokens=2048", 40, 10),
    ("copy, 16 strings of 12 symbols, 4096 tokens", "--task=copy --facts=16 --tokens=4080", 20, 10),
]


def documents(generator, options, count, seed):
    """Documents of the generator as dictionaries."""
    command = [generator, *options.split(), f"--count={count}", f"--seed={seed}", "--format=jsonl"]
    return [json.loads(line) for line in subprocess.run(command, check=True, capture_output=True).stdout.splitlines()]


def prefill(model, ids, bits):
    """The cache of ids (1, T): exact, or with every whole chunk quantized before the next one attends to it."""
    size = CHUNK if bits else 512
    cache = []
    for i in range(0, ids.shape[1], size):
        _, fresh = model.extend(ids[:, i:i + size], cache)
        cache = embedded_model.append_cache(cache, embedded_model.fake_quantize_cache(fresh, bits) if bits else fresh)
    return cache


def score(model, document, bits):
    """(right, negative log-likelihood of the answer) of each question, each asked alone after the context.

    The questions of a document have equal lengths: one batch.
    """
    context, ids = document["context_tokens"], document["ids"]
    cache = prefill(model, torch.tensor([[embedded_model.BOS] + ids[:context]]), bits)
    spans = [(question, begin, begin + length) for _, _, _, question, begin, length in document["answers"]]
    (before,), (length,) = {begin - question for question, begin, _ in spans}, {end - begin for _, begin, end in spans}
    hidden, _ = model.extend(torch.tensor([ids[question:end] for question, _, end in spans]), cache)
    logits = model.logits(hidden[:, before - 1:-1])  # (questions, tokens of the answer, vocabulary)
    answers = torch.tensor([ids[end - length:end] for _, _, end in spans])
    right = (logits.argmax(-1) == answers).all(1)
    losses = F.cross_entropy(logits.transpose(1, 2), answers, reduction="none").sum(1)
    return list(zip(right.tolist(), losses.tolist()))


def mean_and_error(groups):
    """Mean of all values and its standard error over groups of equal size."""
    means = [sum(group) / len(group) for group in groups]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / max(1, len(means) - 1)
    return round(mean, 4), round(math.sqrt(variance / len(means)), 4)


def evaluate_task(model, generator, options, contexts, questions, bits):
    """Accuracy and answer NLL in full precision and at `bits`, and the paired differences."""
    docs = documents(generator, f"{options} --questions={questions}", contexts, HELD_OUT_SEED)
    exact = [score(model, document, None) for document in docs]
    figures = dict(options=options, contexts=contexts, queries=contexts * questions)

    def put(name, scores):
        figures[f"{name}_accuracy"], figures[f"{name}_accuracy_error"] = mean_and_error(
            [[float(right) for right, _ in doc] for doc in scores])
        figures[f"{name}_nll"], figures[f"{name}_nll_error"] = mean_and_error([[nll for _, nll in doc] for doc in scores])

    put("full", exact)
    for b in bits:
        quantized = [score(model, document, b) for document in docs]
        put(f"chunked_{b}bit", quantized)
        put(f"difference_{b}bit", [[(q[0] - e[0], q[1] - e[1]) for q, e in zip(*pair)] for pair in zip(quantized, exact)])
    return figures


@torch.no_grad()
def evaluate_perplexity(model, generator, options, count):
    """Perplexity per token of held-out documents, and of a unigram model of other documents (add-one)."""
    counts = torch.ones(embedded_model.CONFIG["vocab_size"])
    for document in documents(generator, options, 200, HELD_OUT_SEED + 1):
        counts += torch.bincount(torch.tensor(document["ids"]), minlength=len(counts))
    unigram = (counts / counts.sum()).log()
    losses, unigram_losses = [], []
    for document in documents(generator, options, count, HELD_OUT_SEED):
        target = torch.tensor(document["ids"])
        inputs = torch.cat([torch.tensor([embedded_model.BOS]), target[:-1]])
        losses.append(F.cross_entropy(model.logits(model(inputs[None])[0]), target).item())
        unigram_losses.append(-unigram[target].mean().item())
    return dict(options=options, documents=count, perplexity=round(math.exp(sum(losses) / count), 3),
                unigram_perplexity=round(math.exp(sum(unigram_losses) / count), 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="bazel-bin/experiments/synthetic/generate_text")
    parser.add_argument("--weights", default="models/embedded/model.safetensors")
    parser.add_argument("--output", default="models/embedded/figures.json")
    parser.add_argument("--only", default="", help="evaluate only the tasks whose name contains this, and keep the other figures")
    parser.add_argument("--bits", default="2", help="comma-separated bit widths")
    parser.add_argument("--share", type=float, default=1.0, help="share of the contexts, for a quick look")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = embedded_model.load_model(args.weights)
    bits = [int(b) for b in args.bits.split(",") if b]
    figures = dict(perplexity={}, tasks={})
    if args.only and os.path.exists(args.output):
        with open(args.output, encoding="utf-8") as file:
            figures = json.load(file)
    if not args.only:
        for name, options in (("story", "--task=story"), ("training mixture", "--task=mixture --training --facts=64")):
            figures["perplexity"][name] = evaluate_perplexity(model, args.generator, options, 40)
            print(name, figures["perplexity"][name], flush=True)
    for name, options, contexts, questions in SUITE:
        if args.only in name:
            contexts = max(2, round(contexts * args.share))
            figures["tasks"][name] = evaluate_task(model, args.generator, options, contexts, questions, bits)
            print(name, {k: v for k, v in figures["tasks"][name].items() if k != "options"}, flush=True)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
