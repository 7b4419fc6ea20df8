#!/usr/bin/env python3
"""Checks what the training scripts rest on, in half a minute.   Usage: check.py FOLDER   (tokenizer.json, train.npy, held.npy)

1. Ids of generated sequences are those of the whole text: joints between sentences merge with nothing.
2. A right answer stands in the text of every question whose answer is not "not mentioned", and graded tokens are answers only.
3. No name of the evaluation is in training sequences, and no phrasing of it or of the looks at a run.
4. Equal seeds and steps give equal batches.
5. Our forward pass with kept keys and values gives the same logits as without, and attention in chunks the same as whole.
6. A model that begins with retrieval heads has them: they look back by 1, 2 and 3 tokens, and one finds where the token stood before.
"""
import argparse
import os
import re

import numpy as np
import torch
from tokenizers import Tokenizer

import words
from books import Books
from data import Codec, Stage, batch
from heads import begin_with_retrieval_heads
from model import SHAPES, Llama, Shape, attend_in_chunks, rotate

SEQUENCES = 200


def check_sequences(codec, books):
    tokenizer = codec.tokenizer
    reserved = [text for phrases in (words.FACTS, words.ASKS) for split in ("held", "dev") for text in phrases[split]]
    name = "(?:[bdfgklmnprstvz][aeiou]){3}"
    patterns = [re.escape(text.rstrip(".?")).replace(r"\{n\}", name) for text in reserved]
    phrases = "|".join(re.sub(r"\\{.\\}", r"\\w+", pattern) for pattern in patterns)
    held_phrase = re.compile(phrases, re.IGNORECASE)
    assert held_phrase.search("They say that the pin of Badoru is 1234.")
    assert held_phrase.search("Under which colour do we find Badoru?")
    for step, tokens in enumerate((256, 512, 1024, 2048)):
        stage = Stage(tokens, SEQUENCES // 4, 0.0, drills=0.2, plain=0.5)
        ids, graded, positions = batch(7, step, stage, codec, books, 32_768)
        assert ids.shape == graded.shape == (SEQUENCES // 4, tokens + 1) and positions.shape == (SEQUENCES // 4, tokens)
        assert (np.diff(positions) >= 0).all() and positions.max() < 32_768
        for row, mask in zip(ids, graded):
            ends = np.flatnonzero(row == books.end_of_text)
            talk = row[: ends[0]] if len(ends) else row
            text = tokenizer.decode(talk.tolist(), skip_special_tokens=False)
            assert tokenizer.encode(text, add_special_tokens=False).ids == talk.tolist()
            for answer in tokenizer.decode(row[mask].tolist(), skip_special_tokens=False).split("<|im_end|>")[:-1]:
                check_answer(text, answer)
            found = held_phrase.search(text)
            assert not found, f"a phrasing of the evaluation: {found}"
    again = batch(7, step, stage, codec, books, 32_768)
    assert all((a == b).all() for a, b in zip(again, (ids, graded, positions)))


def check_answer(text, answer):
    """The last word of a lookup's answer stands in the text once more than in the answers."""
    before = text[: text.rfind(answer)]
    if " is " in answer and not answer.endswith("not mentioned.") and answer.startswith("The "):
        value = answer.rstrip(".").split(" is ")[-1]
        # In other letters: a value may begin the sentence.
        assert value.lower() in before.lower(), answer
    for word in answer.replace(".", " ").split():
        syllables = [word[i : i + 2].lower() for i in (0, 2, 4)]
        if len(word) == 6 and word[0].isupper() and all(s in words.SYLLABLES for s in syllables):
            name = tuple(words.SYLLABLES.index(s) for s in syllables)
            assert answer.startswith("It goes on:") or not words.is_held_out_name(name), word


def check_kept_keys():
    torch.manual_seed(0)
    shape = Shape(vocabulary=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_width=48, positions_max=64)
    model = Llama(shape).eval()
    ids, positions = torch.randint(0, 50, (1, 20)), torch.arange(20)[None]
    with torch.no_grad():
        whole, _ = model(ids, positions)
        _, past = model(ids[:, :19], positions[:, :19])
        last, _ = model(ids[:, 19:], positions[:, 19:], past)
    assert torch.allclose(whole[0, -1], last[0, 0], atol=1e-5)


def check_chunks():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 8) for heads in (4, 2, 2))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(attend_in_chunks(q, k, v), whole, atol=1e-5)


def check_heads():
    """The same 12 tokens stand at 10 and at 40 of 64: where do the heads look from place 50?"""
    torch.manual_seed(0)
    model, at = Llama(SHAPES["small"]), 50
    begin_with_retrieval_heads(model)
    ids, positions = torch.randint(3, model.shape.vocabulary, (1, 64)), torch.arange(64)[None]
    ids[0, 40:52] = ids[0, 10:22]
    angles = (positions[..., None].float() * model.frequencies)[:, None]
    cos, sin = angles.cos(), angles.sin()
    looks = []
    with torch.no_grad():
        x = model.embeddings(ids)
        for block in model.blocks[:2]:
            y = block.input_norm(x)
            q, k = (rotate(w(y).view(1, 64, -1, model.shape.head_dim).transpose(1, 2), cos, sin) for w in (block.q, block.k))
            scores = torch.einsum("hd,htd->ht", q[0, :, at], k[0].repeat_interleave(2, 0)[:, : at + 1])
            looks.append(scores.argmax(-1).tolist())
            x, _ = block(x, cos, sin)
    assert looks[0][:3] == [at - 1, at - 2, at - 3] and at - 29 in looks[1][:2], looks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(os.path.join(args.folder, "tokenizer.json"))
    codec = Codec(tokenizer)
    for name in ("train", "held"):
        books = Books(np.load(os.path.join(args.folder, f"{name}.npy")), tokenizer)
        check_sequences(codec, books)
    check_kept_keys()
    check_chunks()
    check_heads()
    print("all checks passed")


if __name__ == "__main__":
    main()
