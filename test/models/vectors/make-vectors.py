"""Golden vectors of every family and RoPE scaling, made with HF transformers on the CPU; not needed to run the product.

    pip install torch==2.13.0 transformers==5.23.0 numpy==2.4.6
    python test/models/vectors/make-vectors.py        # writes fixtures/families.json and fixtures/sharded

Weights come from a seed that both languages know (see `tensor` here and seeded-tensors.ts), so only configurations and expected values
are stored. Each case: the configuration as a checkpoint's config.json would hold it, prompt ids, and at a few positions (beyond the
original context where RoPE is scaled) the input of every layer, the final norm's output, and the logits; f32, eager attention.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def uniform(seed: int, count: int) -> np.ndarray:
    """Mulberry32, `count` values in [0, 1), as f64."""
    with np.errstate(over="ignore"):
        state = np.uint32(seed) + np.arange(1, count + 1, dtype=np.uint32) * np.uint32(0x6D2B79F5)
        mixed = (state ^ (state >> np.uint32(15))) * (np.uint32(1) | state)
        mixed = (mixed + (mixed ^ (mixed >> np.uint32(7))) * (np.uint32(61) | mixed)) ^ mixed
        return (mixed ^ (mixed >> np.uint32(14))).astype(np.float64) / 2.0**32


def name_seed(name: str) -> int:
    """FNV-1a, 32 bits."""
    value = 2166136261
    for byte in name.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The seeded values of a tensor: norms around 1, biases and matrices around 0, q and k large enough that attention is not uniform."""
    values = uniform(name_seed(name), int(np.prod(shape)))
    if name.endswith("norm.weight"):
        scaled = 0.8 + 0.4 * values
    elif "q_proj" in name or "k_proj" in name:
        scaled = (values - 0.5) * 0.9
    else:
        scaled = (values - 0.5) * 0.5
    return scaled.astype(np.float32).reshape(shape)


def base(model_type: str, heads: int, kv_heads: int, **more) -> dict:
    return {
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 48}
# name, config.json, positions
CASES = [
    ("llama2: as many KV heads as heads", base("llama", 4, 4, rope_theta=10000.0), [0, 17, 80]),
    ("tinyllama: 8 heads to a KV head", base("llama", 8, 1, head_dim=8, rope_theta=10000.0), [0, 63, 64, 90]),
    (
        "smollm2: 3 heads to a KV head, tied",
        base("llama", 6, 2, rope_theta=100000.0, tie_word_embeddings=True, rope_scaling=None),
        [0, 31, 95],
    ),
    (
        "llama3.2: llama3 scaling, tied, older keys",
        base(
            "llama", 8, 2, head_dim=16, rope_theta=500000.0, tie_word_embeddings=True,
            rope_scaling={"rope_type": "llama3", **LLAMA3},
        ),
        [0, 40, 100, 290],
    ),
    (
        "llama3.1: llama3 scaling, untied, transformers 5 keys",
        base("llama", 8, 2, head_dim=16, rope_parameters={"rope_type": "llama3", "rope_theta": 20000.0, **LLAMA3}),
        [10, 290],
    ),
    (
        "llama: linear scaling, the oldest keys",
        base("llama", 4, 2, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0}),
        [0, 150, 260],
    ),
    (
        "mistral: head width of its own, no window",
        base("mistral", 8, 2, head_dim=12, rope_theta=1000000.0, sliding_window=None),
        [0, 70],
    ),
    ("mistral: a window as long as the context", base("mistral", 4, 2, rope_theta=1e4, sliding_window=512), [5, 99]),
    (
        "qwen2: biases, tied",
        base("qwen2", 6, 2, rope_theta=1000000.0, tie_word_embeddings=True, use_sliding_window=False, sliding_window=64,
             max_window_layers=1),
        [0, 20, 130],
    ),
    (
        "qwen2.5: biases, YaRN",
        base("qwen2", 4, 1, head_dim=16, rope_theta=10000.0, max_position_embeddings=64,
             rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        [0, 60, 250],
    ),
    (
        "qwen3: QK norm, head width of its own, tied",
        base("qwen3", 8, 2, head_dim=16, tie_word_embeddings=True, attention_bias=False,
             rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        [0, 33, 110],
    ),
    (
        "qwen3: QK norm, YaRN with every setting",
        base("qwen3", 6, 2, head_dim=32,
             rope_parameters={
                 "rope_type": "yarn", "rope_theta": 5000.0, "factor": 3.0, "original_max_position_embeddings": 100,
                 "beta_fast": 8.0, "beta_slow": 2.0, "mscale": 1.4, "mscale_all_dim": 0.7, "truncate": False,
             }),
        [0, 99, 280],
    ),
    (
        "llama: YaRN with its attention factor given",
        base("llama", 4, 2, head_dim=16, rope_theta=10000.0, max_position_embeddings=256,
             rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                           "attention_factor": 1.3}),
        [0, 200],
    ),
]


def rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.8g}") for value in values.tolist()]


def build(config_json: dict):
    config_class, model_class = FAMILIES[config_json["model_type"]]
    fields = json.loads(json.dumps({k: v for k, v in config_json.items() if k != "model_type"}))
    config = config_class(**fields)
    config._attn_implementation = "eager"
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensor(name, tuple(parameter.shape))))
    return model


def compute(name: str, config_json: dict, model, positions: list[int]) -> dict:
    """Seeded ids and what the model makes of them."""
    draws = uniform(name_seed(name), positions[-1] + 1)
    ids = [int(value * config_json["vocab_size"]) for value in draws]
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    return {
        "config": config_json,
        "ids": ids,
        "positions": positions,
        # [position][layer + 1][width]; the last of each is after the final norm
        "hidden": [[rounded(layer[0, position]) for layer in out.hidden_states] for position in positions],
        "logits": [rounded(out.logits[0, position]) for position in positions],
    }


def make(name: str, config_json: dict, positions: list[int]) -> dict:
    return {"name": name, **compute(name, config_json, build(config_json), positions)}


def make_sharded() -> None:
    """A folder as `save_pretrained` writes it: bf16, cut into shards, with the configuration keys of transformers 5."""
    config_json = base("qwen3", 4, 2, head_dim=8, hidden_size=32, intermediate_size=48, tie_word_embeddings=True)
    folder = HERE / "fixtures" / "sharded"
    build(config_json).to(torch.bfloat16).save_pretrained(folder, max_shard_size="16KB")
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    case = {"name": "sharded", **compute("sharded", config_json, model, [0, 70])}
    (HERE / "fixtures" / "sharded.json").write_text(json.dumps(case, separators=(",", ":")) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    make_sharded()
    made = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    cases = [make(*case) for case in CASES]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / "fixtures" / "families.json").write_text(f'{{"madeWith":{json.dumps(made)},"cases":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
