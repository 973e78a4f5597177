#!/usr/bin/env python3
"""Makes models/testdata/families: a tiny random model of each family, and what PyTorch computes with it.

Each folder has a model (Hugging Face's layout, or model.gguf) and golden.json: tokens, logits of some
positions, every position's most likely token, the loss, and for each layer the Frobenius norms of the
loss's gradients with respect to W_k, W_v and the key (after RoPE) and value states. The forward pass is
transformers', in double precision, on the weights as the file stores them.

Needs: pip install torch transformers safetensors gguf
Usage: tools/make_model_goldens.py [models/testdata/families]
"""
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

SEED = 20
NUM_TOKENS = 48
LOGIT_ROWS = [0, 1, 17, 47]

SHAPE = dict(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-5,
    attn_implementation="eager")


def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


# name: (config class, changes to SHAPE, stored type, shards, GGUF tensor type or None)
MODELS = {
    "llama3_rope": (
        transformers.LlamaConfig,
        dict(tie_word_embeddings=False,
             **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                    original_max_position_embeddings=32)),
        torch.bfloat16, 2, gguf.GGMLQuantizationType.F16),
    "llama_linear": (
        transformers.LlamaConfig,
        dict(tie_word_embeddings=True, num_key_value_heads=1, num_hidden_layers=3, **rope("linear", factor=4.0)),
        torch.float32, 1, gguf.GGMLQuantizationType.F32),
    "llama_yarn": (
        transformers.LlamaConfig,
        dict(tie_word_embeddings=True, num_key_value_heads=4,
             **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
        torch.float16, 1, gguf.GGMLQuantizationType.F16),
    "mistral": (
        transformers.MistralConfig,
        dict(tie_word_embeddings=False, sliding_window=11, **rope("default")),
        torch.bfloat16, 1, gguf.GGMLQuantizationType.Q8_0),
    "qwen2": (
        transformers.Qwen2Config,
        dict(tie_word_embeddings=True, num_attention_heads=2, num_key_value_heads=1,
             rms_norm_eps=1e-6, **rope("default")),
        torch.float32, 1, gguf.GGMLQuantizationType.F16),
    "qwen3": (
        transformers.Qwen3Config,
        dict(tie_word_embeddings=True, head_dim=32, num_attention_heads=6, num_key_value_heads=2,
             rms_norm_eps=1e-6, **rope("default")),
        torch.bfloat16, 1, gguf.GGMLQuantizationType.Q8_0),
}


def random_model(config_class, changes, stored, generator):
    config = config_class(**{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "q_proj" in name or "k_proj" in name:
            value = noise * (2.0 / parameter.shape[-1] ** 0.5)  # attention that is far from uniform
        else:
            value = noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value.to(stored))
    return model


def run(model, tokens, keep_key, keep_value):
    """Logits [T, vocab]; keep_key and keep_value see, and may replace, every layer's states."""
    module = sys.modules[type(model).__module__]
    rotate = module.apply_rotary_pos_emb

    def rotate_and_keep(*arguments, **named):
        q, k = rotate(*arguments, **named)
        return q, keep_key(k)

    hooks = [layer.self_attn.v_proj.register_forward_hook(lambda _, __, value: keep_value(value))
             for layer in model.model.layers]
    module.apply_rotary_pos_emb = rotate_and_keep
    try:
        return model(torch.tensor([tokens]), use_cache=False).logits[0]
    finally:
        module.apply_rotary_pos_emb = rotate
        for hook in hooks:
            hook.remove()


def golden(model, tokens):
    """The expected values, in double."""
    model = model.double().eval()
    keys, values = [], []

    def keep(states):
        def append(x):
            x.retain_grad()
            states.append(x)
            return x
        return append

    logits = run(model, tokens, keep(keys), keep(values))
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    loss.backward()
    attention = [layer.self_attn for layer in model.model.layers]
    return {
        "tokens": tokens,
        "logit_rows": LOGIT_ROWS,
        "logits": [[float(f"{x:.8g}") for x in logits[row].tolist()] for row in LOGIT_ROWS],
        "top": logits.argmax(-1).tolist(),
        "loss": loss.item(),
        "key_projection_gradient": [a.k_proj.weight.grad.norm().item() for a in attention],
        "value_projection_gradient": [a.v_proj.weight.grad.norm().item() for a in attention],
        "key_state_gradient": [k.grad.norm().item() for k in keys],
        "value_state_gradient": [v.grad.norm().item() for v in values],
    }


def save_folder(model, stored, shards, folder):
    folder.mkdir(parents=True)
    tensors = {n: p.data.to(stored).contiguous() for n, p in model.named_parameters()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        names = sorted(tensors)
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            save_file({n: tensors[n] for n in names[i::shards]}, folder / file)
            weight_map.update({n: file for n in names[i::shards]})
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["torch_dtype"] = str(stored).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, part = name.split(".", 3)
    stem, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{kind}"


def interleave(weight, heads):
    """Rows from rotate-half to interleaved RoPE, as files of architecture llama have them."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(config):
    """What such files store for Llama 3's RoPE scaling: one divisor a pair."""
    p = config.rope_parameters
    frequency = p["rope_theta"] ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    turns = p["original_max_position_embeddings"] * frequency / (2 * np.pi)
    kept = np.clip((turns - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"]), 0, 1)
    return (1 / ((1 - kept) / p["factor"] + kept)).astype(np.float32)


def save_gguf(model, tensor_type, path):
    """Writes the file and puts what it stores back into the model."""
    config = model.config
    family = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    kind = config.rope_parameters["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        weight = parameter.data.float().numpy()
        kind = tensor_type if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(weight, kind)
        parameter.data = torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(weight.shape).copy())
        projection = next((p for p in heads if f".{p}." in name), None)
        if family == "llama" and projection:
            data = gguf.quants.quantize(interleave(weight, heads[projection]), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/testdata/families")
    shutil.rmtree(root, ignore_errors=True)
    torch.set_num_threads(1)
    for i, (name, (config_class, changes, stored, shards, tensor_type)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(SEED + i)
        model = random_model(config_class, changes, stored, generator)
        tokens = torch.randint(model.config.vocab_size, (NUM_TOKENS,), generator=generator).tolist()
        folder = root / name
        save_folder(model, stored, shards, folder)
        (folder / "golden.json").write_text(json.dumps(golden(model, tokens)) + "\n")
        model.zero_grad()
        folder = root / f"{name}_gguf"
        folder.mkdir()
        save_gguf(model.float(), tensor_type, folder / "model.gguf")
        (folder / "golden.json").write_text(json.dumps(golden(model, tokens)) + "\n")
        print(name)


if __name__ == "__main__":
    main()
