#!/usr/bin/env python3
"""Trains the embedded model from a seed to models/embedded/model.safetensors, on a CPU.

    bazel build -c opt //experiments/synthetic:generate_text
    tools/train_embedded_model.py --generator=bazel-bin/experiments/synthetic/generate_text

The curriculum is STAGES below; the text comes from the generator's pipe and is a function of the seed. A checkpoint
(weights, optimizer, step) is written every --checkpoint_every steps, and the same command goes on from it.

Optimizer: Muon for the matrices of the layers (Newton-Schulz orthogonalized momentum), AdamW for the embedding and the
norms. The loss weights each target by its class: answers fully, what is random not at all.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from collections import namedtuple

# Fresh memory maps cost more in page faults than the arithmetic on them, so keep the heap; one thread computes.
if "MALLOC_MMAP_MAX_" not in os.environ:
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 36), MALLOC_TOP_PAD_=str(1 << 28),
                      OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    os.execv(sys.executable, [sys.executable] + sys.argv)

import numpy
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import embedded_model  # noqa: E402

# tokens * batch is one step; facts, difficulty and confusable go to the generator; lr falls or rises linearly in a stage.
Stage = namedtuple("Stage", "tokens batch steps facts difficulty confusable lr_begin lr_end mixture")
# Copying random strings brings induction about; recall follows within a hundred steps. Without it, recall stays at
# guessing among the values of the context for several hundred steps.
FIRST = "0.62,0.08,0.16,0.08,0.06"  # recall, copy, hop, count, story
COPYING = "0.4,0.5,0.06,0.02,0.02"
BROAD = "0.5,0.08,0.22,0.14,0.06"
LONG = "0.46,0.06,0.2,0.23,0.05"
COUNTING = "0.2,0.04,0.26,0.46,0.04"
STAGES = [
    Stage(64, 64, 100, 4, 0.0, 0.5, 0.0, 6e-3, FIRST),
    Stage(128, 32, 200, 8, 0.0, 0.5, 6e-3, 6e-3, FIRST),
    Stage(128, 32, 150, 8, 0.0, 0.3, 6e-3, 6e-3, COPYING),
    Stage(256, 16, 100, 16, 0.6, 0.7, 6e-3, 6e-3, BROAD),
    Stage(512, 8, 200, 32, 1.0, 0.8, 6e-3, 6e-3, BROAD),
    Stage(1024, 4, 150, 64, 1.0, 0.9, 6e-3, 6e-3, LONG),
    Stage(2048, 2, 300, 128, 1.0, 1.0, 6e-3, 4.385e-3, LONG),
    Stage(256, 16, 300, 24, 1.0, 0.9, 5e-3, 5e-3, COUNTING),
    Stage(2048, 2, 250, 128, 1.0, 1.0, 5e-3, 3.4375e-3, LONG),
    Stage(4096, 1, 330, 160, 1.0, 1.0, 3.4375e-3, 0.0, LONG),
]
CLASS_WEIGHTS = torch.tensor([0.0, 0.05, 0.1, 0.2, 1.0, 1.0])  # by TokenClass
ANSWER, ANSWER_FIRST = 4, 5
TASKS = ["recall", "copy", "hop", "count", "story"]


class Batches:
    """Batches of one stage from the generator's pipe."""

    def __init__(self, generator, seed, stage_number, stage, first_step):
        self.stage = stage
        self.process = subprocess.Popen(
            [generator, "--training", "--format=ids", "--count=0", f"--tokens={stage.tokens}",
             f"--facts={stage.facts}", f"--difficulty={stage.difficulty}", f"--confusable={stage.confusable}",
             f"--mixture={stage.mixture}", "--hops=3", f"--seed={1000 * seed + stage_number}", f"--first={first_step * stage.batch}"],
            stdout=subprocess.PIPE)

    def next(self):
        """Inputs (B, T), targets (B, T), classes of the targets (B, T), tasks (B)."""
        batch, tokens = self.stage.batch, self.stage.tokens
        raw = self.process.stdout.read(batch * (1 + 3 * tokens))
        rows = numpy.frombuffer(raw, numpy.uint8).reshape(batch, 1 + 3 * tokens)
        ids = numpy.ascontiguousarray(rows[:, 1:1 + 2 * tokens]).view(numpy.uint16).astype(numpy.int64)
        targets = torch.from_numpy(ids)
        inputs = torch.cat([torch.full((batch, 1), embedded_model.BOS), targets[:, :-1]], 1)
        classes = torch.from_numpy(rows[:, 1 + 2 * tokens:].astype(numpy.int64))
        return inputs, targets, classes, torch.from_numpy(rows[:, 0].astype(numpy.int64))

    def close(self):
        """Ends the generator."""
        self.process.stdout.close()
        self.process.wait()


class Muon:
    """Momentum whose update is orthogonalized by five Newton-Schulz steps, for stacks of matrices."""

    def __init__(self, parameters, momentum=0.95, decay=0.01):
        self.parameters, self.momentum, self.decay = parameters, momentum, decay
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, rate):
        """One update of every parameter that has a gradient."""
        for p, buffer in zip(self.parameters, self.buffers):
            buffer.mul_(self.momentum).add_(p.grad)
            x = p.grad + self.momentum * buffer
            wide = x if x.shape[1] <= x.shape[2] else x.transpose(1, 2)
            wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                gram = wide @ wide.transpose(1, 2)
                wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * (gram @ gram)) @ wide
            update = wide if x.shape[1] <= x.shape[2] else wide.transpose(1, 2)
            p.mul_(1 - rate * self.decay).add_(update, alpha=-rate * 0.2 * max(x.shape[1:]) ** 0.5)


class Meter:
    """Means since the last report: loss on answers, accuracy of the first token of answers for each task."""

    def __init__(self):
        self.sums = {}

    def add(self, name, values):
        """Adds a vector of values."""
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + values.sum().item(), count + values.numel())

    def report(self):
        """The means, and starts anew."""
        means = {name: round(total / count, 4) for name, (total, count) in sorted(self.sums.items()) if count}
        self.sums = {}
        return means


def weighted_loss(model, batch, meter):
    """Mean cross-entropy with the weights of the classes."""
    inputs, targets, classes, tasks = batch
    weights = CLASS_WEIGHTS[classes].reshape(-1)
    chosen = weights > 0
    hidden = model(inputs).reshape(inputs.numel(), -1)[chosen]
    logits = model.logits(hidden)
    target = targets.reshape(-1)[chosen]
    losses = F.cross_entropy(logits, target, reduction="none")
    with torch.no_grad():
        kinds = classes.reshape(-1)[chosen]
        right = (logits.argmax(-1) == target).float()
        owner = tasks[:, None].expand_as(inputs).reshape(-1)[chosen]
        meter.add("answer_loss", losses[kinds >= ANSWER])
        for number, name in enumerate(TASKS):
            meter.add(f"first_{name}", right[(kinds == ANSWER_FIRST) & (owner == number)])
            meter.add(f"rest_{name}", right[(kinds == ANSWER) & (owner == number)])
    return (losses * weights[chosen]).sum() / weights.sum()


def schedule(step):
    """(stage number, step inside the stage, learning rate) of a step."""
    for number, stage in enumerate(STAGES):
        if step < stage.steps:
            return number, step, stage.lr_begin + (stage.lr_end - stage.lr_begin) * (step + 1) / stage.steps
        step -= stage.steps
    raise ValueError("step is past the last stage")


def train(args):
    """Runs the curriculum from the last checkpoint, or from the seed."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = embedded_model.Llama()
    matrices = {id(p) for p in model.matrices()}
    muon = Muon(model.matrices())
    adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in matrices], betas=(0.9, 0.98), eps=1e-9,
                             weight_decay=0.0)
    step, seconds, checkpoint = 0, 0.0, os.path.join(args.work, "checkpoint.pt")
    os.makedirs(args.work, exist_ok=True)
    if os.path.exists(checkpoint):
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.buffers = state["muon"]
        step, seconds = state["step"], state["seconds"]
    total, meter, batches, last_number = sum(stage.steps for stage in STAGES), Meter(), None, None
    began = time.time() - seconds
    log = open(os.path.join(args.work, "training_log.jsonl"), "a", encoding="utf-8")
    while step < total:
        number, inside, rate = schedule(step)
        if number != last_number:
            if batches:
                batches.close()
            batches, last_number = Batches(args.generator, args.seed, number, STAGES[number], inside), number
        loss = weighted_loss(model, batches.next(), meter)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        muon.step(rate)
        step += 1
        if step % args.log_every == 0 or step == total:
            line = dict(step=step, tokens=STAGES[number].tokens, seconds=round(time.time() - began),
                        lr=round(rate, 6), **meter.report())
            print(json.dumps(line), file=log, flush=True)
        if step % args.checkpoint_every == 0 or step == total:
            state = dict(model=model.state_dict(), adam=adam.state_dict(), muon=muon.buffers, step=step,
                         seconds=time.time() - began)
            torch.save(state, checkpoint + ".new")
            os.replace(checkpoint + ".new", checkpoint)
            embedded_model.export(model, args.generator, args.work)
    embedded_model.export(model, args.generator, args.output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="bazel-bin/experiments/synthetic/generate_text")
    parser.add_argument("--output", default="models/embedded", help="folder of the result")
    parser.add_argument("--work", default="/tmp/embedded_model", help="folder of checkpoint and log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log_every", type=int, default=25)
    parser.add_argument("--checkpoint_every", type=int, default=50)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
