#!/usr/bin/env python3
"""Asks a trained checkpoint the evaluation cases.

Usage: evaluate.py OUT/checkpoint.pt TOKENIZER.json CASES.jsonl.gz [--lengths 512,2048] [--count 50] [--kinds single,absent] [--json FILE]

`exact`: the share of answers that greedy decoding gives word for word (read from one pass over prompt and answer: greedy decoding
takes the same tokens as long as it is right). `right`: the share of free-running replies that hold what was asked for.
"""
import argparse
import json

import torch
from tokenizers import Tokenizer

from data import Codec
from model import SHAPES, Llama
from prompts import is_right, messages, passage, read_cases

REPLY_TOKENS_MAX = 64


def conversation_ids(codec, turns):
    """Ids of messages in ChatML, the header of the next reply included."""
    ids = []
    for message in turns:
        ids += [codec.im_start, *codec(f"{message['role']}\n{message['content']}"), codec.im_end, *codec.newline]
    return ids + [codec.im_start, *codec.assistant]


@torch.no_grad()
def ask(model, codec, prompt, answer):
    """(whether greedy decoding gives exactly `answer`, the text of the free-running reply)."""
    wanted = [*codec(answer), codec.im_end]
    device = model.norm.weight.device
    ids = torch.tensor([prompt + wanted], device=device)
    positions = torch.arange(ids.shape[1], device=device)[None]
    hidden, kept = model(ids[:, :-1], positions[:, :-1])
    greedy = model.logits(hidden[0, len(prompt) - 1 :]).argmax(-1).tolist()
    if greedy == wanted:
        return True, answer
    past = [(k[:, :, : len(prompt)], v[:, :, : len(prompt)]) for k, v in kept]
    reply = [greedy[0]]
    while reply[-1] != codec.im_end and len(reply) < REPLY_TOKENS_MAX:
        position = torch.tensor([[len(prompt) + len(reply) - 1]], device=device)
        hidden, past = model(torch.tensor([[reply[-1]]], device=device), position, past)
        reply.append(int(model.logits(hidden[0, -1]).argmax()))
    return False, codec.tokenizer.decode(reply)


def evaluate(model, codec, sentences, cases, *, lengths, count, kinds=None):
    """Rows of kind, length, cases, exact and right shares; `print`s each as it is done."""
    sentence_tokens = [len(encoding.ids) for encoding in codec.tokenizer.encode_batch(sentences)]
    rows = []
    for length in lengths:
        for kind in kinds or dict.fromkeys(case["kind"] for case in cases):
            asked = [case for case in cases if case["kind"] == kind][:count]
            exact = right = 0
            for case in asked:
                text = passage(
                    case, sentences, tokens=length, sentence_tokens=sentence_tokens, count=lambda s: len(codec(s))
                )
                turns, answer = messages(case, text)
                is_exact, reply = ask(model, codec, conversation_ids(codec, turns), answer)
                exact += is_exact
                right += is_right(reply, case["turns"][-1]["expect"])
            rows.append({"kind": kind, "length": length, "cases": len(asked), "exact": exact, "right": right})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def open_model(path):
    """A checkpoint's model in bf16, as it will be shipped, computing in f32."""
    whole = torch.load(path, map_location="cpu")
    model = Llama(SHAPES[whole["size"]])
    model.load_state_dict({name: weight.bfloat16().float() for name, weight in whole["model"].items()})
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokenizer")
    parser.add_argument("cases")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,16384,32768")
    parser.add_argument("--count", type=int, default=50, help="cases of each kind and length")
    parser.add_argument("--kinds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_model(args.checkpoint).to(device)
    codec = Codec(Tokenizer.from_file(args.tokenizer))
    sentences, cases = read_cases(args.cases)
    lengths = [int(length) for length in args.lengths.split(",")]
    kinds = args.kinds.split(",") if args.kinds else None
    # On a GPU in bf16, as in training; on a CPU in f32.
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        rows = evaluate(model, codec, sentences, cases, lengths=lengths, count=args.count, kinds=kinds)
    if args.json:
        with open(args.json, "w", encoding="utf8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
