"""Evaluation cases as prompts of a given length. `bench/recall` builds the same texts."""
import gzip
import json
import math

# Tokens that a turn's markers take, with some to spare.
TURN_TOKENS = 16


def read_cases(path):
    """(sentences, cases) of a file that cases.py wrote."""
    with gzip.open(path, "rt", encoding="utf8") as file:
        head, *cases = map(json.loads, file)
    return head["sentences"], cases


def passage(case, sentences, *, tokens, sentence_tokens, count):
    """The text in which a case's items stand, so long that the whole conversation takes at most `tokens`.

    `sentence_tokens[i]` is the length of sentence i in tokens, `count(text)` that of any text.
    """
    room = tokens - count(case["intro"]) - sum(count(item["text"]) for item in case["items"])
    room -= sum(count(turn["ask"]) + count(turn["answer"]) + TURN_TOKENS for turn in case["turns"])
    taken = []
    while len(taken) < len(sentences):
        i = (case["start"] + len(taken)) % len(sentences)
        room -= sentence_tokens[i]
        if room < 0:
            break
        taken.append(sentences[i])
    parts = [[] for _ in range(len(taken) + 1)]
    for item in case["items"]:
        parts[math.floor(item["at"] * len(parts))].append(item["text"])
    text = case["intro"]
    for i, items in enumerate(parts):
        text += "".join(items) + (taken[i] if i < len(taken) else "")
    return text


def messages(case, text):
    """The conversation up to the answer that counts, and that answer."""
    out = []
    for i, turn in enumerate(case["turns"]):
        out.append({"role": "user", "content": f"{text} {turn['ask']}" if i == 0 else turn["ask"]})
        out.append({"role": "assistant", "content": turn["answer"]})
    return out[:-1], out[-1]["content"]


def is_right(reply, expect):
    """True if `reply` holds every text of `expect`, one behind the other."""
    at = 0
    for wanted in expect:
        found = reply.find(wanted, at)
        if found < 0:
            return False
        at = found + len(wanted)
    return True
