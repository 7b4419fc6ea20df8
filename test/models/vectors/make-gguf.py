"""Tiny GGUF files and what HF transformers computes with the values they hold; not needed to run the product.

    pip install torch==2.13.0 transformers==5.23.0 numpy==2.4.6 gguf==0.19.0
    python test/models/vectors/make-gguf.py           # writes fixtures/*.gguf and fixtures/gguf.json

The `gguf` package (llama.cpp's own) writes the files, quantizes, and says what each block decodes to. It has no quantizer for Q4_K, Q5_K
and Q6_K: those tensors are random blocks with sensible scales. Weights otherwise are the seeded ones of make-vectors.py.
"""

import base64
import importlib
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

vectors = importlib.import_module("make-vectors")
FIXTURES = Path(__file__).parent / "fixtures"

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}


def gguf_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def random_blocks(name: str, count: int, kind: Type) -> np.ndarray:
    """Blocks of Q4_K or Q6_K whose values are around 0 and below 0.5 or so."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = (vectors.uniform(vectors.name_seed(name), count * size) * 256).astype(np.uint8).reshape(count, size)
    half = lambda value: np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
    if kind == Type.Q4_K:
        raw[:, 0:2] = half(0.0004)
        raw[:, 2:4] = half(0.003)
    else:
        raw[:, 208:210] = half(0.0001)
    return raw


def encode(name: str, values: np.ndarray, kind: Type) -> np.ndarray:
    if kind in (Type.Q4_K, Type.Q6_K):
        rows, width = values.shape
        return random_blocks(name, rows * width // 256, kind).reshape(rows, -1)
    return gguf.quants.quantize(values, kind)


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to rows of Q and K of the llama architecture."""
    return (weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2)
            .reshape(weights.shape))


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for bytes, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """264 tokens: bytes, two merges, controls."""
    tokens = [*byte_alphabet(), "Ġt", "he", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<tool>"]
    types = [1] * 258 + [3] * 5 + [4]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    writer.add_eot_token_id(262)
    writer.add_chat_template(
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def make(case: dict) -> dict:
    config_json, arch = case["config"], case["config"]["model_type"]
    model = vectors.build(config_json)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(FIXTURES / case["file"], arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config_json["max_position_embeddings"])
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    case.get("metadata", lambda _: None)(writer)
    plain = vectors.build({**config_json, "rope_scaling": None})
    if case.get("factors"):
        # llama.cpp stores what plain frequencies are divided by.
        factors = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
        writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.numpy()
            kind = case["type"](name) if values.ndim > 1 else Type.F32
            encoded = encode(name, values, kind)
            decoded = gguf.quants.dequantize(encoded, kind).reshape(values.shape)
            parameter.copy_(torch.from_numpy(decoded.copy()))
            if arch == "llama" and ("q_proj.weight" in name or "k_proj.weight" in name):
                heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
                encoded = permute(encoded, heads)
            writer.add_tensor(gguf_name(name), encoded, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"file": case["file"], **vectors.compute(case["file"], config_json, model, case["positions"])}


def mixed(name: str) -> Type:
    """Another encoding for every part of a layer."""
    for part, kind in {"embed": Type.F16, "q_proj": Type.Q8_0, "k_proj": Type.Q4_0, "v_proj": Type.BF16,
                       "o_proj": Type.F32, "gate": Type.Q4_0, "up_proj": Type.Q8_0, "down": Type.Q4_0,
                       "lm_head": Type.Q8_0}.items():
        if part in name:
            return kind
    raise ValueError(name)


def k_quants(name: str) -> Type:
    """As llama.cpp mixes them; rows that are no multiple of 256 fall back to Q8_0."""
    if "o_proj" in name:
        return Type.Q8_0
    return Type.Q6_K if "embed" in name or "down" in name or "v_proj" in name else Type.Q4_K


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


CASES = [
    {
        "file": "llama-mixed.gguf",
        "config": vectors.base("llama", 4, 2, vocab_size=264, hidden_size=64, intermediate_size=96, head_dim=16,
                               bos_token_id=258, eos_token_id=[259, 262], rope_theta=500000.0,
                               rope_scaling={"rope_type": "llama3", **vectors.LLAMA3}),
        "type": mixed,
        "factors": True,
        "metadata": add_tokenizer,
        "positions": [0, 63, 150],
    },
    {
        "file": "qwen2-f16.gguf",
        "config": vectors.base("qwen2", 4, 1, hidden_size=32, intermediate_size=48, head_dim=8, rope_theta=10000.0,
                               max_position_embeddings=64,
                               rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        "type": lambda name: Type.F16,
        "metadata": yarn,
        "positions": [0, 150],
    },
    {
        "file": "qwen3-k-quants.gguf",
        "config": vectors.base("qwen3", 2, 1, hidden_size=256, intermediate_size=256, head_dim=32,
                               num_hidden_layers=1, rope_theta=1000000.0, tie_word_embeddings=True),
        "type": k_quants,
        "positions": [0, 40],
    },
]


def block_vectors() -> dict:
    """Two blocks of every encoding, extreme scales included, and the f32 values they decode to; base64."""
    made = {}
    for kind in [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = 2 if values > 1 else 64
        raw = (vectors.uniform(vectors.name_seed(kind.name), count * size) * 256).astype(np.uint8).reshape(count, size)
        if kind == Type.F32:
            raw = np.frombuffer(vectors.tensor("f32", (64,)).tobytes(), dtype=np.uint8).reshape(64, 4)
        # No NaN or infinity among the scales: clear the top exponent bit of every f16 and bf16.
        scales = {Type.F16: [1], Type.BF16: [1], Type.Q4_0: [1], Type.Q4_1: [1, 3], Type.Q5_0: [1], Type.Q5_1: [1, 3], Type.Q8_0: [1],
                  Type.Q4_K: [1, 3], Type.Q5_K: [1, 3], Type.Q6_K: [209]}
        for at in scales.get(kind, []):
            raw = raw.copy()
            raw[:, at] &= 0xBF
        decoded = gguf.quants.dequantize(raw.reshape(1, -1), kind).astype(np.float32)
        encoded = {"bytes": raw.tobytes(), "values": decoded.tobytes()}
        made[kind.name] = {key: base64.b64encode(data).decode() for key, data in encoded.items()}
    return made


def main() -> None:
    torch.set_num_threads(1)
    document = {"madeWith": {"gguf": "0.19.0"}, "blocks": block_vectors(), "cases": [make(case) for case in CASES]}
    (FIXTURES / "gguf.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
