#!/usr/bin/env python3
"""Makes the evaluation cases: held-out books, names and phrasings. The file is committed; every tool that measures recall reads it.

Usage: cases.py FOLDER OUT.jsonl.gz [--count 200] [--split dev --first 1000]   (FOLDER holds tokenizer.json and held.npy)

--split dev and another --first make other cases in other phrasings, for looks at a run that goes on.

Line 1 is `{"sentences": [...]}`: consecutive sentences of held-out books, each with what stands in front of it. Every further line is a
case: `kind`; `start`, its first sentence; `items`, texts with the place `at` (0 to 1 of the passage) where they go; `turns` of `ask`,
`answer` and `expect`. A case has no length of its own. For a prompt of L tokens (see `passage` in prompts.py) it takes as many
sentences, the first following the last, as fit.
"""
import argparse
import gzip
import json
import os

import numpy as np
from tokenizers import Tokenizer

import topics
from books import Books
from words import INTROS, TALK, draw

SENTENCES_BYTES_MAX = 1_500_000
# Verse and tables have few full stops; such runs are left out, so that a prompt comes close to the length asked for.
SENTENCE_CHARS_MAX = 800
KINDS = ("code", "single", "multi-key", "multi-value", "table", "variable", "quote", "absent", "second-turn")


def code_topic(random, names):
    """What house-0 was trained on: facts of one form, other facts of the same form around them."""
    topic = topics.Topic()
    pairs = [(topics.spell(names.fresh()), topics.draw_value(random, "code")) for _ in range(16)]
    topic.items = [f" The code of {name} is {value}." for name, value in pairs]
    for i in random.permutation(len(pairs))[:1]:
        name, value = pairs[i]
        topic.questions.append(topics.Question("code", f"What is the code of {name}?", f"The code of {name} is {value}.", [value]))
    return topic


def draw_topic(random, kind, names, pair):
    match kind:
        case "code":
            return code_topic(random, names)
        case "single":
            return topics.single(random, names)
        case "multi-key":
            return topics.multi_key(random, names, 16, 1)
        case "multi-value":
            return topics.multi_value(random, names, int(random.integers(2, 4)))
        case "table":
            return topics.table(random, names, 12, 1)
        case "variable":
            return topics.variable(random, names, int(random.integers(1, 4)))
        case "quote":
            return topics.quote(random, names, pair)
        case "absent":
            return topics.absent(random, names, 8)
        case _:
            return topics.single(random, names, 3)


def make_case(seed, kind, books, decode, sentence_count, split="held"):
    """Case `seed` of a kind. `second-turn`: three facts, talk and another question come before the one that counts."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    names = topics.Names(random, split)
    topic = draw_topic(random, kind, names, [decode(ids) for ids in books.sentence_pair(random)])
    places = np.sort(random.random(len(topic.items)))
    turns = [{"ask": q.ask, "answer": q.answer, "expect": q.expect} for q in topic.questions]
    if kind == "second-turn":
        said, reply = draw(random, TALK[split])
        turns.insert(1, {"ask": said, "answer": reply, "expect": []})
    return {
        "kind": kind,
        "intro": draw(random, INTROS[split]),
        "start": int(random.integers(0, sentence_count)),
        "items": [{"at": round(float(at), 4), "text": item} for at, item in zip(places, topic.items)],
        "turns": turns,
    }


def cut_sentences(books, decode):
    """Sentences of all held-out books in turn, up to the byte limit, an equal share of each."""
    borders = np.flatnonzero(books.ids == books.end_of_text)
    out, start = [], 0
    for end in borders:
        joints = books.joints[(books.joints > start) & (books.joints < end)]
        taken = 0
        for a, b in zip(joints, joints[1:]):
            text = decode(books.ids[a:b])
            if len(text) > SENTENCE_CHARS_MAX:
                continue
            taken += len(text.encode())
            if taken > SENTENCES_BYTES_MAX / len(borders):
                break
            out.append(text)
        start = end
    return out


def write_lines(path, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # No time stamp: equal inputs give equal bytes.
    with open(path, "wb") as file:
        file.write(gzip.compress(text.encode(), 9, mtime=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=200, help="cases of each kind")
    parser.add_argument("--split", choices=("held", "dev"), default="held", help="whose phrasings")
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(args.folder, "tokenizer.json"))
    books = Books(np.load(os.path.join(args.folder, "held.npy")), tokenizer)

    def decode(ids):
        return tokenizer.decode([int(i) for i in ids])

    sentences = cut_sentences(books, decode)
    lines = [{"sentences": sentences}]
    for kind in KINDS:
        lines += [make_case(seed, kind, books, decode, len(sentences), args.split) for seed in range(args.first, args.first + args.count)]
    write_lines(args.out, lines)
    print(f"{len(sentences)} sentences, {len(lines) - 1} cases, {os.path.getsize(args.out)} bytes")


if __name__ == "__main__":
    main()
