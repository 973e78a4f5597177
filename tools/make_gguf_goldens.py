#!/usr/bin/env python3
"""Writes models/testdata/: files made by other programs than ours, to read ours against.

  every_type.gguf          one tensor of each element type, metadata of each value type (gguf package)
  every_type.safetensors   the same tensors dequantized by the gguf package, F32
  tiny_llama/              a random LlamaForCausalLM as transformers saves it (config.json, safetensors)
  tiny_llama.gguf          the same model, query and key rows permuted as GGUF converters do

Run from the repository root:  pip install gguf safetensors torch transformers
                               python3 tools/make_gguf_goldens.py
"""

import pathlib

import gguf
import numpy as np
import safetensors.numpy
import torch
import transformers
from gguf import GGMLQuantizationType as T

OUT = pathlib.Path("models/testdata")
ROWS, COLUMNS = 3, 512
QUANTIZED_BY_PACKAGE = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
# Byte offsets of the half-precision fields; the package dequantizes these types but does not make them.
RANDOM_BLOCKS = {T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def random_blocks(rng, element_type):
    """Random bytes, with finite scales that include a negative, a zero and a subnormal half."""
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[element_type]
    count = ROWS * COLUMNS // block_elements
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for offset in RANDOM_BLOCKS[element_type]:
        scales = rng.uniform(0.001, 0.1, count).astype(np.float16)
        scales[0], scales[1], scales[2] = -scales[0], 0, np.float16(3e-7)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(ROWS, -1)


def write_every_type():
    rng = np.random.default_rng(17)
    writer = gguf.GGUFWriter(OUT / "every_type.gguf", "types")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4000000000)
    writer.add_int32("i32", -2000000000)
    writer.add_uint64("u64", 1 << 40)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "Grüße")
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.5])
    writer.add_array("strings", ["", "a", "Ġthe"])

    expected = {}
    for element_type in QUANTIZED_BY_PACKAGE:
        values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        values[0, :32] = 0
        data = gguf.quantize(values, element_type)
        raw = data.view(np.uint8) if element_type not in (T.F32, T.F16) else data
        writer.add_tensor(element_type.name, raw, raw_dtype=element_type)
        expected[element_type.name] = gguf.dequantize(data, element_type).reshape(ROWS, COLUMNS)
    for element_type in RANDOM_BLOCKS:
        data = random_blocks(rng, element_type)
        writer.add_tensor(element_type.name, data, raw_dtype=element_type)
        expected[element_type.name] = gguf.dequantize(data, element_type).reshape(ROWS, COLUMNS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.numpy.save_file(expected, OUT / "every_type.safetensors")


def interleave(weight, heads):
    """Rotate-half rows to the interleaved order of GGUF's llama architecture."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def write_tiny_llama():
    torch.manual_seed(17)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0})
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # norms too, or swapped ones would go unseen
    model.save_pretrained(OUT / "tiny_llama")

    writer = gguf.GGUFWriter(OUT / "tiny_llama.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        if "q_proj" in name:
            weight = interleave(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = interleave(weight, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write_every_type()
    write_tiny_llama()
