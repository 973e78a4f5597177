"""The embedded model in PyTorch: a plain Llama, its files, and fake quantization of its KV cache.

Shapes: B batch, T tokens, H query heads, D head_dim; one KV head. Weights of all layers are stacked, (L, out, in).
"""
import json
import struct
import subprocess

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(hidden_size=128, num_hidden_layers=12, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
              intermediate_size=352, rope_theta=100000.0, rms_norm_eps=1e-5, vocab_size=512,
              max_position_embeddings=4096)
BOS, EOS, FIRST_WORD = 256, 257, 258


class CausalAttention(torch.autograd.Function):
    """Attention of all heads over one KV head, in blocks of queries so that the upper triangle is not computed."""

    @staticmethod
    def forward(ctx, q, k, v, heads, block):
        """q (B, T, H*D), already scaled and rotated; k, v (B, T, D)."""
        batch, tokens, dim = k.shape
        q = q.reshape(batch, tokens * heads, dim)
        block = min(block, tokens)
        mask = torch.full((block, block), float("-inf")).triu_(1).repeat_interleave(heads, 0)
        probabilities, outputs = [], []
        for i in range(0, tokens, block):
            end = min(i + block, tokens)
            scores = torch.bmm(q[:, i * heads:end * heads], k[:, :end].transpose(1, 2))
            scores[:, :, i:end] += mask[:(end - i) * heads, :end - i]
            probabilities.append(torch.softmax(scores, -1))
            outputs.append(torch.bmm(probabilities[-1], v[:, :end]))
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.heads, ctx.block = heads, block
        return torch.cat(outputs, 1).view(batch, tokens, heads * dim)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *probabilities = ctx.saved_tensors
        heads, (batch, tokens, dim) = ctx.heads, k.shape
        grad = grad.reshape(batch, tokens * heads, dim)
        dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
        for p, i in zip(probabilities, range(0, tokens, ctx.block)):
            end = min(i + ctx.block, tokens)
            rows = slice(i * heads, end * heads)
            dv[:, :end] += torch.bmm(p.transpose(1, 2), grad[:, rows])
            ds = torch._softmax_backward_data(torch.bmm(grad[:, rows], v[:, :end].transpose(1, 2)), p, -1, p.dtype)
            dq.append(torch.bmm(ds, k[:, :end]))
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), q[:, rows])
        return torch.cat(dq, 1).view(batch, tokens, heads * dim), dk, dv, None, None


def rotary_table(positions, dim, theta):
    """Cosines and sines, each (..., D/2), of the rotate-half form."""
    angles = positions.float()[..., None] * theta ** (-torch.arange(0, dim, 2).float() / dim)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """x (B, T, heads, D); cos, sin broadcastable to (B, T, heads, D/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rms_norm(x, gain):
    """RMSNorm over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, True) + CONFIG["rms_norm_eps"]) * gain


class Llama(nn.Module):
    """Llama with one KV head and tied embeddings."""

    def __init__(self):
        super().__init__()
        c = CONFIG
        d, layers, heads, dim, ff = (c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"],
                                     c["head_dim"], c["intermediate_size"])
        self.heads, self.dim, self.layers = heads, dim, layers

        def normal(*shape, std):
            return nn.Parameter(torch.randn(*shape) * std)

        inside, out = d ** -0.5, 0.5 * (2 * layers) ** -0.5
        self.embed = normal(c["vocab_size"], d, std=0.1)
        self.q = normal(layers, heads * dim, d, std=inside)
        self.k = normal(layers, dim, d, std=inside)
        self.v = normal(layers, dim, d, std=inside)
        self.o = normal(layers, d, heads * dim, std=out * (heads * dim) ** -0.5)
        self.gate = normal(layers, ff, d, std=inside)
        self.up = normal(layers, ff, d, std=inside)
        self.down = normal(layers, d, ff, std=out * ff ** -0.5)
        self.attention_norm = nn.Parameter(torch.ones(layers, d))
        self.mlp_norm = nn.Parameter(torch.ones(layers, d))
        self.final_norm = nn.Parameter(torch.ones(d))

    def matrices(self):
        """The stacked weight matrices of the layers."""
        return [self.q, self.k, self.v, self.o, self.gate, self.up, self.down]

    def _qkv(self, layer, h, cos, sin):
        """Rotated and scaled q (B, T, H*D), rotated k (B, T, D), v (B, T, D)."""
        batch, tokens, _ = h.shape
        heads, dim = self.heads, self.dim
        weight = torch.cat([self.q[layer] * dim ** -0.5, self.k[layer], self.v[layer]])
        y = F.linear(rms_norm(h, self.attention_norm[layer]), weight)
        qk = rotate(y[..., :(heads + 1) * dim].reshape(batch, tokens, heads + 1, dim), cos, sin)
        return qk[:, :, :heads].reshape(batch, tokens, heads * dim), qk[:, :, heads], y[..., (heads + 1) * dim:]

    def _mlp(self, layer, h):
        gate, up = F.linear(rms_norm(h, self.mlp_norm[layer]), torch.cat([self.gate[layer], self.up[layer]])).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down[layer])

    def forward(self, ids, positions=None):
        """Final hidden states (B, T, d) of whole sequences; positions (B, T) default to 0, 1, .."""
        if positions is None:
            positions = torch.arange(ids.shape[1])
        cos, sin = (t.unsqueeze(-2) for t in rotary_table(positions, self.dim, CONFIG["rope_theta"]))
        h = F.embedding(ids, self.embed)
        for layer in range(self.layers):
            q, k, v = self._qkv(layer, h, cos, sin)
            h = h + F.linear(CausalAttention.apply(q, k, v, self.heads, 256), self.o[layer])
            h = h + self._mlp(layer, h)
        return rms_norm(h, self.final_norm)

    @torch.no_grad()
    def extend(self, ids, cache):
        """Runs ids (B, T) after a cache of (k, v) per layer ([] is empty); returns hidden states and the new (k, v)."""
        batch, tokens = ids.shape
        past = cache[0][0].shape[1] if cache else 0
        cos, sin = (t.unsqueeze(-2) for t in
                    rotary_table(torch.arange(past, past + tokens), self.dim, CONFIG["rope_theta"]))
        mask = torch.full((tokens, tokens), float("-inf")).triu_(1).repeat_interleave(self.heads, 0)
        h, fresh = F.embedding(ids, self.embed), []
        for layer in range(self.layers):
            q, k, v = self._qkv(layer, h, cos, sin)
            fresh.append((k, v))
            if cache:
                k, v = (torch.cat([old.expand(batch, -1, -1), new], 1) for old, new in zip(cache[layer], (k, v)))
            scores = q.reshape(batch, tokens * self.heads, self.dim) @ k.transpose(1, 2)
            scores[:, :, past:] += mask
            attended = (torch.softmax(scores, -1) @ v).view(batch, tokens, self.heads * self.dim)
            h = h + F.linear(attended, self.o[layer])
            h = h + self._mlp(layer, h)
        return rms_norm(h, self.final_norm), fresh

    def logits(self, hidden):
        """Logits with the tied embedding."""
        return F.linear(hidden, self.embed)


def append_cache(cache, fresh):
    """The cache with the new tokens at its end."""
    if not cache:
        return fresh
    return [tuple(torch.cat([old, new], 1) for old, new in zip(*layer)) for layer in zip(cache, fresh)]


def fake_quantize(x, bits, axis, group):
    """Asymmetric min/max quantization in groups along an axis, and back. The axis length must divide into groups."""
    if x.numel() == 0:
        return x
    x = x.transpose(axis, -1)
    groups = x.reshape(*x.shape[:-1], -1, group)
    low, high = groups.amin(-1, True), groups.amax(-1, True)
    scale = ((high - low) / (2 ** bits - 1)).clamp_min(1e-8)
    return (((groups - low) / scale).round() * scale + low).reshape(x.shape).transpose(axis, -1)


def fake_quantize_cache(cache, bits, group=32):
    """K per channel in groups of tokens, V per token in groups of channels; an incomplete last K group stays as it is."""
    def quantize(k, v):
        whole = k.shape[1] // group * group
        k = torch.cat([fake_quantize(k[:, :whole], bits, 1, group), k[:, whole:]], 1)
        v = torch.cat([fake_quantize(v[:, :whole], bits, 2, group), v[:, whole:]], 1)
        return k, v
    return [quantize(k, v) for k, v in cache]


# ------------------------------------------------------------------------------------------------------------ files

def hugging_face_tensors(model):
    """Name to fp32 tensor, in Hugging Face's Llama naming."""
    tensors = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.final_norm}
    names = {"self_attn.q_proj": model.q, "self_attn.k_proj": model.k, "self_attn.v_proj": model.v,
             "self_attn.o_proj": model.o, "mlp.gate_proj": model.gate, "mlp.up_proj": model.up,
             "mlp.down_proj": model.down, "input_layernorm": model.attention_norm,
             "post_attention_layernorm": model.mlp_norm}
    for layer in range(model.layers):
        for name, stacked in names.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = stacked[layer]
    return {name: tensor.detach() for name, tensor in tensors.items()}


def save_safetensors(tensors, path):
    """Writes tensors as bf16 in the safetensors format."""
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in sorted(tensors.items()):
        blob = tensor.bfloat16().contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load_safetensors(path):
    """Name to fp32 tensor from a bf16 safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), bytearray(file.read())
    header.pop("__metadata__", None)
    values = torch.frombuffer(data, dtype=torch.bfloat16).float()
    return {name: values[entry["data_offsets"][0] // 2:entry["data_offsets"][1] // 2].view(entry["shape"])
            for name, entry in header.items()}


@torch.no_grad()
def load_model(path):
    """The model with the weights of a safetensors file, fp32."""
    model, tensors = Llama(), load_safetensors(path)
    for name, target in hugging_face_tensors(model).items():
        target.copy_(tensors[name])
    return model


def config_json():
    """config.json in Hugging Face's form."""
    return dict(architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, attention_dropout=0.0,
                bos_token_id=BOS, eos_token_id=EOS, hidden_act="silu", initializer_range=0.02, mlp_bias=False,
                tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True, **CONFIG)


def byte_symbols():
    """The printable character that byte-level BPE uses for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {byte: chr(byte) for byte in plain}, 256
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(extra)
            extra += 1
    return symbols


def tokenizer_json(words):
    """tokenizer.json: 256 bytes, two special tokens, and whole words, which ignore_merges finds without merges."""
    symbols = byte_symbols()
    vocab = {symbols[byte]: byte for byte in range(256)}
    special = {"<s>": BOS, "</s>": EOS}
    vocab.update(special)
    for i, word in enumerate(words):
        vocab["".join(symbols[byte] for byte in word.encode())] = FIRST_WORD + i
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return dict(
        version="1.0", truncation=None, padding=None,
        added_tokens=[dict(id=i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False,
                           special=True) for text, i in special.items()],
        normalizer=None, pre_tokenizer=byte_level,
        post_processor=dict(type="TemplateProcessing",
                            single=[start, {"Sequence": {"id": "A", "type_id": 0}}],
                            pair=[start, {"Sequence": {"id": "A", "type_id": 0}},
                                  {"SpecialToken": {"id": "<s>", "type_id": 1}},
                                  {"Sequence": {"id": "B", "type_id": 1}}],
                            special_tokens={"<s>": dict(id="<s>", ids=[BOS], tokens=["<s>"])}),
        decoder=byte_level,
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=False, byte_fallback=False, ignore_merges=True, vocab=vocab, merges=[]))


def export(model, generator, folder):
    """Writes the model as a Hugging Face folder."""
    words = subprocess.run([generator, "--format=vocabulary"], check=True, capture_output=True, text=True).stdout
    save_safetensors(hugging_face_tensors(model), f"{folder}/model.safetensors")
    contents = {"config.json": config_json(), "tokenizer.json": tokenizer_json(words.splitlines()),
                "tokenizer_config.json": dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>",
                                              eos_token="</s>", model_max_length=CONFIG["max_position_embeddings"])}
    for name, content in contents.items():
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
