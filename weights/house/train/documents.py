#!/usr/bin/env python3
"""Makes documents for evaluation: many facts of a kind stand in one passage, and each is asked for, so that a passage is read once for many questions.

Usage: documents.py FOLDER CASES.jsonl.gz OUT.jsonl.gz [--questions 1000 | KIND=COUNT,... | 1000,KIND=COUNT,...] [--first 0] [--phrasings late]   (FOLDER as for cases.py)

--questions: of each kind of cases.py, of the kinds named only, or of both (`frequent` is asked where it is named). --first: another number makes other documents. --phrasings: those of the evaluation (held), of the looks at a training run (dev), or of
fresh_phrasings.py (fresh) or late_phrasings.py (late), which training has not seen. Sentences are those of CASES, in the same folder as OUT: line 1 is `{"sentencesOf": name}`. Every further line is a document:
as a case of cases.py, with `questions`, each a list of turns, in the place of `turns`. The last turn of a question counts. Where it has `choices`, the
answer is chosen: the likeliest of these words at its place in the answer, and `expect` is the right one.
"""
import argparse
import os

import numpy as np
from tokenizers import Tokenizer

import cases
import topics
import words
from books import Books
from fresh_phrasings import use_fresh_phrasings
from late_phrasings import use_late_phrasings
from prompts import read_cases

FACTS_PER_DOCUMENT = 16
# What the house model cannot do is asked less often where it is not named: enough to say so.
QUESTIONS_MAX = {"multi-value": 200, "quote": 200}
# Kinds of cases.py first: a document's seed has its kind's place in it.
KINDS = (*cases.KINDS, "frequent")
# How often each value of a name is told: as the word frequencies of a text, one over the rank.
FREQUENT_COUNTS, FREQUENT_NAMES = (6, 3, 2, 1), 12


def as_turn(question):
    turn = {"ask": question.ask, "answer": question.answer, "expect": question.expect}
    return turn if question.choices is None else {**turn, "choices": question.choices}


def code(random, names, _pairs):
    topic = topics.Topic()
    for _ in range(FACTS_PER_DOCUMENT):
        name, value = topics.spell(names.fresh()), topics.draw_value(random, "code")
        topic.items.append(f" The code of {name} is {value}.")
        topic.questions.append(topics.Question("code", f"What is the code of {name}?", f"The code of {name} is {value}.", [value]))
    return topic


def single(random, names, _pairs):
    return topics.single(random, names, FACTS_PER_DOCUMENT)


def multi_key(random, names, _pairs):
    return topics.multi_key(random, names, FACTS_PER_DOCUMENT, FACTS_PER_DOCUMENT)


def multi_value(random, names, _pairs):
    return joined(topics.multi_value(random, names, int(random.integers(2, 4))) for _ in range(6))


def table(random, names, _pairs):
    return joined(topics.table(random, names, 12, 8) for _ in range(2))


def variable(random, names, _pairs):
    """Chains of one to three steps; every variable that has its value from another one is asked for."""
    topic = topics.Topic()
    for hops in (1, 2, 3, 1, 2, 3, 1, 3):
        chain = topics.variable(random, names, hops)
        topic.items += chain.items
        [last] = chain.questions
        steps = last.answer.split(" The ")
        steps = [steps[0]] + [f"The {step}" for step in steps[1:]]
        for at in range(hops):
            name = steps[at].split(" ")[2]
            ask = names.phrase(topics.VARIABLE_ASKS, rough=False, n=name)
            topic.questions.append(topics.Question("variable", ask, " ".join(steps[at:]), last.expect))
    return topic


def quote(random, names, pairs):
    return joined(topics.quote(random, names, pair) for pair in pairs)


def absent(random, names, _pairs):
    """Look-alikes are there; those that are asked for are not."""
    topic = topics.multi_key(random, names, 8, 1)
    attribute = topic.questions.pop().answer.split(" of ")[0].removeprefix("The ")
    known = sorted(names.used)
    for _ in range(FACTS_PER_DOCUMENT):
        like = words.draw(random, known) if random.random() < 0.5 else None
        topic.questions.append(topics.lookup(names, "absent", attribute, names.fresh(like), None))
    return topic


def frequent(random, names, _pairs):
    """Names with several values, one told most often. Told and asked as plainly as codes are: what is asked for is the counting."""
    topic = topics.Topic()
    for _ in range(FREQUENT_NAMES):
        attribute, name = words.draw(random, words.WORD_ATTRIBUTES), topics.spell(names.fresh())
        values = [words.VALUES[attribute][i] for i in random.permutation(len(words.VALUES[attribute]))[: len(FREQUENT_COUNTS)]]
        topic.items += [f" The {attribute} of {name} is {value}." for value, count in zip(values, FREQUENT_COUNTS) for _ in range(count)]
        ask, answer = f"What is the {attribute} of {name} most often?", f"The {attribute} of {name} is {values[0]}."
        topic.questions.append(topics.Question("frequent", ask, answer, values[:1], [values[i] for i in random.permutation(len(values))]))
    return topic


def joined(parts):
    topic = topics.Topic()
    for part in parts:
        topic.items += part.items
        topic.questions += part.questions
    return topic


TOPICS = {"code": code, "single": single, "multi-key": multi_key, "multi-value": multi_value, "table": table, "variable": variable, "quote": quote,
          "absent": absent, "second-turn": single, "frequent": frequent}


def conversation(random, kind, questions, index):
    """The turns that end with question `index`. `second-turn`: another question, talk, and one more come first."""
    if kind != "second-turn":
        return [as_turn(questions[index])]
    others = [i for i in random.permutation(len(questions)) if i != index][:2]
    said, reply = words.draw(random, words.TALK["held"])
    turns = [as_turn(questions[i]) for i in (*others, index)]
    turns.insert(1, {"ask": said, "answer": reply, "expect": []})
    return turns


def make_document(seed, kind, books, decode, sentence_count, split):
    # The last number keeps documents apart from cases of the same seed.
    random = np.random.default_rng([seed, KINDS.index(kind), 1])
    names = topics.Names(random, split)
    pairs = [[decode(ids) for ids in books.sentence_pair(random)] for _ in range(6)]
    topic = TOPICS[kind](random, names, pairs)
    # Facts of a topic come in any order, of a chain too; table rows are one text.
    places = np.sort(random.random(len(topic.items)))
    items = [topic.items[i] for i in random.permutation(len(topic.items))]
    return {
        "kind": kind,
        "intro": words.draw(random, words.INTROS["held"]),
        "start": int(random.integers(0, sentence_count)),
        "items": [{"at": round(float(at), 4), "text": item} for at, item in zip(places, items)],
        "questions": [conversation(random, kind, topic.questions, index) for index in range(len(topic.questions))],
    }


def make_documents(kind, first, questions, *rest):
    """Documents until they hold so many questions."""
    made = 0
    while made < questions:
        document = make_document(first, kind, *rest)
        made, first = made + len(document["questions"]), first + 1
        yield document


def question_counts(text):
    """`1000`: of every kind of cases.py; `single=2000,table=320`: of these; `1000,frequent=200`: both."""
    counts = {}
    for part in text.split(","):
        kind, _, count = part.rpartition("=")
        counts |= {kind: int(count)} if kind else {each: min(int(count), QUESTIONS_MAX.get(each, int(count))) for each in cases.KINDS}
    if not set(counts) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"kinds are {', '.join(KINDS)}")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("cases")
    parser.add_argument("out")
    parser.add_argument("--questions", type=question_counts, default="1000", help="of each kind, or KIND=COUNT,...: at least so many")
    parser.add_argument("--first", type=int, default=0, help="seed of the first document")
    parser.add_argument("--phrasings", choices=("held", "dev", "fresh", "late"), default="held")
    args = parser.parse_args()
    if args.phrasings == "fresh":
        use_fresh_phrasings()
    if args.phrasings == "late":
        use_late_phrasings()
    split = "dev" if args.phrasings == "dev" else "held"
    tokenizer = Tokenizer.from_file(os.path.join(args.folder, "tokenizer.json"))
    books = Books(np.load(os.path.join(args.folder, "held.npy")), tokenizer)

    def decode(ids):
        return tokenizer.decode([int(i) for i in ids])

    sentences, _ = read_cases(args.cases)
    lines = [{"sentencesOf": os.path.basename(args.cases)}]
    for kind, questions in args.questions.items():
        lines += make_documents(kind, args.first, questions, books, decode, len(sentences), split)
    cases.write_lines(args.out, lines)
    print(f"{len(lines) - 1} documents, {os.path.getsize(args.out)} bytes")


if __name__ == "__main__":
    main()
