#!/usr/bin/env python3
"""Compares our logits and importance profile of a GGUF model (architecture llama) with PyTorch's.

The weights are dequantized by the gguf package, put back into rotate-half order, and run by transformers'
LlamaForCausalLM in float, without a cache: compare `kvmix logits --exact`, since a cache rounds keys and
values to half.

Needs: pip install torch transformers gguf
  bazel run //experiments:kvmix -- logits --exact --model=M.gguf --ids-file=IDS --output=/tmp/logits.npy
  bazel run //experiments:kvmix -- profile ...                    (writes a profile, textproto)
  tools/compare_with_pytorch.py --model=M.gguf --tokens=IDS --logits=/tmp/logits.npy --profile=P.textproto

IDS is a text file with one token a line. Exits with 1 if a check fails: relative error of the logits at most
1e-4, the most likely token equal wherever PyTorch's lead is above 1e-3 of the logits' range, gradient norms
within 1e-3 and ranked alike.
"""
import argparse
import re
import sys

import gguf
import numpy as np
import torch
import transformers


def load(path):
    reader = gguf.GGUFReader(path)

    def value(key):
        field = reader.fields[f"llama.{key}"]
        return field.parts[field.data[0]][0].item()

    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0], hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"), num_hidden_layers=value("block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"), tie_word_embeddings="output.weight" not in tensors,
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")})
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {}
    for name, weight in tensors.items():
        if name == "token_embd.weight":
            state["model.embed_tokens.weight"] = weight
        elif name == "output_norm.weight":
            state["model.norm.weight"] = weight
        elif name == "output.weight":
            state["lm_head.weight"] = weight
        else:
            _, layer, part, kind = name.split(".")
            if part in ("attn_q", "attn_k"):  # from interleaved pairs to halves
                rows = heads if part == "attn_q" else kv_heads
                weight = weight.reshape(rows, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            state[f"model.layers.{layer}.{names[part]}.{kind}"] = weight
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")
    model.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()}, assign=True)
    # Built on the meta device, the rotary table has no numbers yet.
    model.model.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def relative(difference, reference):
    return np.linalg.norm(difference) / np.linalg.norm(reference)


def compare_logits(ours, reference):
    rows = [relative(a - b, b) for a, b in zip(ours, reference)]
    error = relative(ours - reference, reference)
    ordered = np.sort(reference, axis=1)
    lead = (ordered[:, -1] - ordered[:, -2]) / (ordered[:, -1] - ordered[:, 0])
    differ = ours.argmax(1) != reference.argmax(1)
    print(f"logits of {len(rows)} tokens: relative error {error:.3g} (median row {np.median(rows):.3g}, worst "
          f"{max(rows):.3g}); most likely token differs at {differ.sum()}, of those not a tie {(differ & (lead > 1e-3)).sum()}")
    return error <= 1e-4 and not (differ & (lead > 1e-3)).any()


def gradient_norms(model, tokens):
    layers = model.model.layers
    for layer in layers:
        layer.self_attn.k_proj.weight.requires_grad_()
        layer.self_attn.v_proj.weight.requires_grad_()
    logits = model(tokens[None], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])
    loss.backward()
    print(f"PyTorch's loss: {loss.item():.7f}")
    return [np.array([getattr(layer.self_attn, p).weight.grad.double().norm().item() for layer in layers])
            for p in ("k_proj", "v_proj")]


def read_profile(path):
    """key and value of every `layer { ... }` of an ImportanceProfile in text form."""
    layers = re.findall(r"layer\s*\{([^}]*)\}", open(path).read())
    return [np.array([float(re.search(rf"\b{side}: (\S+)", layer).group(1)) for layer in layers])
            for side in ("key", "value")]


def compare_profile(ours, reference):
    good = True
    for side, a, b in zip(("keys", "values"), ours, reference):
        error = np.max(np.abs(a - b) / b)
        same = (np.argsort(a) == np.argsort(b)).all()
        print(f"gradient norms of W, {side}: largest relative error {error:.3g}, ranking {'equal' if same else 'DIFFERENT'}")
        good = good and error <= 1e-3 and same
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=".gguf file")
    parser.add_argument("--tokens", required=True, help="text file, one token a line")
    parser.add_argument("--logits", help=".npy file, float [T, vocab]")
    parser.add_argument("--profile", help="textproto of a gradient_norm profile of these tokens as one prompt")
    arguments = parser.parse_args()
    tokens = torch.tensor([int(line) for line in open(arguments.tokens)])
    model = load(arguments.model)
    good = True
    if arguments.logits:
        good &= compare_logits(np.load(arguments.logits), model(tokens[None], use_cache=False).logits[0].numpy())
    if arguments.profile:
        good &= compare_profile(read_profile(arguments.profile), gradient_norms(model, tokens))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
