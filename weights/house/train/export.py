#!/usr/bin/env python3
"""Checkpoint -> Hugging Face folder, and vectors made from it with HF transformers.

Usage: export.py OUT/checkpoint.pt TOKENIZER.json CASES.jsonl.gz FOLDER

Writes config.json, generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json and vectors.json, which
holds conversations with prompts, greedy ids and logits in f32 arithmetic on the bf16 weights. Refuses a folder over 60 MB.
"""
import argparse
import json
import os
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from model import SHAPES
from prompts import passage, read_cases
from tokenizer import END_OF_TEXT, IM_END, IM_START

FOLDER_BYTES_MAX = 60_000_000
REPLY_TOKENS_MAX = 48
# Positions of the first prompt whose logits are kept beside the last one's.
LOGITS_AT = (0, 60, 150)
CASES = (("second-turn", 400), ("multi-key", 1500), ("quote", 3000))
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LAYER_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "input_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hugging_face_weights(weights):
    """Our tensors under the names that LlamaForCausalLM gives them, bf16."""
    out = {"model.embed_tokens.weight": weights["embeddings.weight"], "model.norm.weight": weights["norm.weight"]}
    for name, weight in weights.items():
        if name.startswith("blocks."):
            _, layer, part, _ = name.split(".")
            out[f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"] = weight
    return {name: weight.to(torch.bfloat16).contiguous() for name, weight in out.items()}


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def write_model(checkpoint, tokenizer_path, folder):
    whole = torch.load(checkpoint, map_location="cpu")
    shape = SHAPES[whole["size"]]
    os.makedirs(folder, exist_ok=True)
    save_file(hugging_face_weights(whole["model"]), os.path.join(folder, "model.safetensors"), {"format": "pt"})
    target = os.path.join(folder, "tokenizer.json")
    if os.path.realpath(tokenizer_path) != os.path.realpath(target):
        shutil.copyfile(tokenizer_path, target)
    ids = {token: Tokenizer.from_file(tokenizer_path).token_to_id(token) for token in (END_OF_TEXT, IM_START, IM_END)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions_max,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[IM_END],
        "torch_dtype": "bfloat16",
    }
    write_json(folder, "config.json", config)
    eos = [ids[IM_END], ids[END_OF_TEXT]]
    write_json(folder, "generation_config.json", {"bos_token_id": ids[END_OF_TEXT], "eos_token_id": eos, "do_sample": False})
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": IM_END,
        "model_max_length": shape.positions_max,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    write_json(folder, "tokenizer_config.json", tokenizer_config)


def rounded(logits):
    return [round(value, 4) for value in logits.tolist()]


@torch.no_grad()
def answer_turn(model, tokenizer, turns, keep_ids):
    """One reply of the model to `turns`: what vectors.json holds of it."""
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids, greedy, end = torch.tensor([prompt]), [], tokenizer.convert_tokens_to_ids(IM_END)
    logits = model(ids).logits[0]
    out = {"prompt_tokens": len(prompt), "last_logits": rounded(logits[-1])}
    if keep_ids:
        out |= {"ids": prompt, "logits_at": {str(at): rounded(logits[at]) for at in LOGITS_AT}}
    following = int(logits[-1].argmax())
    while True:
        greedy.append(following)
        if following == end or len(greedy) == REPLY_TOKENS_MAX:
            break
        following = int(model(torch.tensor([prompt + greedy])).logits[0, -1].argmax())
    return out | {"greedy": greedy, "text": tokenizer.decode(greedy, skip_special_tokens=True)}


def write_vectors(cases_path, folder):
    """Conversations in which the replies are the model's own."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    sentences, cases = read_cases(cases_path)

    def count(text):
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    sentence_tokens = [count(sentence) for sentence in sentences]
    made = f"transformers {transformers.__version__}, torch {torch.__version__}, float32 arithmetic on the bfloat16 weights"
    vectors = {"made_with": made, "cases": []}
    for number, (kind, tokens) in enumerate(CASES):
        case = next(case for case in cases if case["kind"] == kind)
        text = passage(case, sentences, tokens=tokens, sentence_tokens=sentence_tokens, count=count)
        messages, turns = [], []
        for i, turn in enumerate(case["turns"]):
            messages.append({"role": "user", "content": f"{text} {turn['ask']}" if i == 0 else turn["ask"]})
            turns.append(answer_turn(model, tokenizer, messages, keep_ids=number == 0 and i == 0))
            messages.append({"role": "assistant", "content": turns[-1]["text"]})
        vectors["cases"].append({"messages": messages, "turns": turns})
    with open(os.path.join(folder, "vectors.json"), "w", encoding="utf8") as file:
        json.dump(vectors, file, ensure_ascii=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("checkpoint", "tokenizer", "cases", "folder"):
        parser.add_argument(name)
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_model(args.checkpoint, args.tokenizer, args.folder)
    written = sum(entry.stat().st_size for entry in os.scandir(args.folder) if entry.is_file())
    if written > FOLDER_BYTES_MAX:
        os.remove(os.path.join(args.folder, "model.safetensors"))
        sys.exit(f"{args.folder} would take {written} bytes, more than {FOLDER_BYTES_MAX}: the weights were not kept")
    write_vectors(args.cases, args.folder)
    print(f"{args.folder}: {written} bytes without vectors.json")


if __name__ == "__main__":
    main()
