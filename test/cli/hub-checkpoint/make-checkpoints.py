"""Checkpoints as HF transformers saves them, and what it says with them; not needed to run the product.

    pip install torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
    python test/cli/hub-checkpoint/make-checkpoints.py        # writes fixtures/llama, qwen2 and expected.json

Tiny random models with vocabularies of their own: a Llama in the manner of SentencePiece (bf16, shards, llama3 scaling, `<s>` in front), and a
Qwen2 with byte-level BPE (f16, one file, NFC). Greedy replies to conversations and to a raw prompt, f32, eager attention. `gap` is the
smallest distance between the best and the second best logit on the way: far above what f32 rounds.
"""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"
TEMPLATES = HERE / "../../tokenizer/templates/jinja"
TEXT = [
    "The harbour was quiet that morning, and the boats lay still.",
    "Nobody knew where the captain had gone; the ship was the last one to leave.",
    "In the evening the wind came from the west, and the children ran home.",
] * 3
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENS_MAX = 24


def sentence_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=360, special_tokens=tokens, show_progress=False))
    made = json.loads(tokenizer.to_str())
    made["pre_tokenizer"] = None
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (TEMPLATES / "tinyllama.jinja").read_text(encoding="utf-8")
    return fast


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = (TEMPLATES / "qwen2.5.jinja").read_text(encoding="utf-8")
    return fast


def base(tokenizer: PreTrainedTokenizerFast, **more) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        **more,
    }


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PROMPT = "The captain's ship"
CONVERSATIONS = [
    [{"role": "user", "content": "Where was the harbour,  é e\u0301 漢字 42?\n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who ran home?"},
        {"role": "assistant", "content": "The children."},
        {"role": "user", "content": "The wind came from the west. " * 3 + "When?"},
    ],
]


def reply(model, ids: list[int]) -> tuple[list[int], float]:
    made: list[int] = []
    gap = float("inf")
    with torch.no_grad():
        while len(made) < TOKENS_MAX and model.config.eos_token_id not in made:
            best = model(torch.tensor([ids + made])).logits[0, -1].topk(2)
            gap = min(gap, float(best.values[0] - best.values[1]))
            made.append(int(best.indices[0]))
    return made, gap


def answer(model, tokenizer, ids: list[int]) -> dict:
    made, gap = reply(model, ids)
    return {"ids": ids, "reply": made, "text": tokenizer.decode(made, skip_special_tokens=True), "gap": round(gap, 3)}


def make(name: str, tokenizer, model_class, config, dtype: torch.dtype, shard_size: str) -> dict:
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(6)
    model = model_class(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.endswith("norm.weight"):
                parameter.copy_(torch.randn_like(parameter) * (0.25 if "proj" in key else 0.7))
        # Bytes that are no UTF-8 are one replacement character each in the reference, whatever they would be alone; so they never win.
        byte_ids = [id for token, id in tokenizer.get_vocab().items() if token.startswith("<0x")]
        if byte_ids:
            model.lm_head.weight[byte_ids] *= 0.1
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": [config.eos_token_id], "bos_token_id": config.bos_token_id}
    GenerationConfig(**ends, do_sample=False).save_pretrained(folder)
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    chats = []
    for messages in CONVERSATIONS:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        chats.append({"messages": messages, **answer(model, tokenizer, ids)})
    raw = tokenizer(PROMPT)["input_ids"]
    for file in folder.iterdir():
        file.chmod(0o644)
    return {"name": name, "chats": chats, "raw": {"text": PROMPT, "ids": raw}}


def main() -> None:
    torch.set_num_threads(1)
    words = sentence_piece()
    llama = LlamaConfig(**base(words, num_attention_heads=8, num_key_value_heads=2, head_dim=8, rope_parameters=LLAMA3))
    cases = [make("llama", words, LlamaForCausalLM, llama, torch.bfloat16, "24KB")]
    words = byte_level()
    qwen2 = Qwen2Config(**base(words, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True))
    cases.append(make("qwen2", words, Qwen2ForCausalLM, qwen2, torch.float16, "1GB"))
    (FIXTURES / "expected.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
