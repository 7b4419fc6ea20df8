"""The kinds of things that a conversation can hold and ask for.

A topic is one or more texts that go into a passage (in the order given, each between two sentences) and questions about them.
Every text begins with a space. Answers repeat what they are about before they give the value, so a model can find its way by them.
"""
from dataclasses import dataclass, field

from words import (
    ASKS,
    FACTS,
    QUOTE_ASKS,
    SEVERAL_ASKS,
    SEVERAL_FACTS,
    TABLE_ASKS,
    TABLE_HEADS,
    VARIABLE_ASKS,
    draw,
    draw_attribute,
    draw_look_alike,
    draw_name,
    draw_phrase,
    draw_value,
    spell,
)


@dataclass
class Question:
    """`expect`: texts that a right answer holds, in this order."""

    kind: str
    ask: str
    answer: str
    expect: list[str]


@dataclass
class Topic:
    items: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


class Names:
    """Draws names that one conversation has not used yet."""

    def __init__(self, random, split):
        self.random, self.split, self.used = random, split, set()

    def fresh(self, like=None):
        while True:
            name = draw_name(self.random, self.split) if like is None else draw_look_alike(self.random, like, self.split)
            if name not in self.used:
                self.used.add(name)
                return name


def fill(phrase, **words):
    text = phrase.format(**words)
    return text[0].upper() + text[1:]


def fact(random, split, attribute, name, value):
    return " " + fill(draw_phrase(random, FACTS, split), a=attribute, n=spell(name), v=value)


def lookup(random, split, kind, attribute, name, value, asks=ASKS):
    """A question for one value; `value` is None where the text does not give it."""
    ask = fill(draw_phrase(random, asks, split), a=attribute, n=spell(name))
    said = "not mentioned" if value is None else value
    return Question(kind, ask, f"The {attribute} of {spell(name)} is {said}.", [said])


def single(random, names, question_count=1):
    """Unlike names, each with an attribute of its own."""
    topic = Topic()
    for _ in range(question_count):
        attribute, name = draw_attribute(random), names.fresh()
        value = draw_value(random, attribute)
        topic.items.append(fact(random, names.split, attribute, name, value))
        topic.questions.append(lookup(random, names.split, "single", attribute, name, value))
    return topic


def multi_key(random, names, key_count=6, question_count=2):
    """One attribute, names that differ in one syllable from the first."""
    topic, attribute = Topic(), draw_attribute(random)
    first = names.fresh()
    keys = [first] + [names.fresh(like=first) for _ in range(key_count - 1)]
    values = [draw_value(random, attribute) for _ in keys]
    for i in random.permutation(key_count):
        topic.items.append(fact(random, names.split, attribute, keys[i], values[i]))
    for i in random.permutation(key_count)[:question_count]:
        topic.questions.append(lookup(random, names.split, "multi-key", attribute, keys[i], values[i]))
    return topic


def absent(random, names, key_count=3):
    """Look-alikes are there; the one that is asked for is not."""
    topic = multi_key(random, names, key_count, 1)
    known = topic.questions.pop()
    attribute = known.answer.split(" of ")[0].removeprefix("The ")
    like = draw(random, sorted(names.used)) if random.random() < 0.5 else None
    name = names.fresh(like)
    topic.questions.append(lookup(random, names.split, "absent", attribute, name, None))
    return topic


def multi_value(random, names, value_count=2):
    """Several values of one key, at several places; the answer gives them in the order of the text."""
    attribute, name, topic = draw_attribute(random), names.fresh(), Topic()
    values = []
    while len(values) < value_count:
        value = draw_value(random, attribute)
        if value not in values:
            values.append(value)
    for value in values:
        topic.items.append(" " + fill(draw_phrase(random, SEVERAL_FACTS, names.split), a=attribute, n=spell(name), v=value))
    ask = fill(draw_phrase(random, SEVERAL_ASKS, names.split), a=attribute, n=spell(name))
    told = f"{', '.join(values[:-1])} and {values[-1]}"
    topic.questions.append(Question("multi-value", ask, f"The {attribute}s of {spell(name)} are {told}.", values))
    return topic


def table(random, names, row_count=6, question_count=2):
    attribute = draw_attribute(random)
    rows = [(names.fresh(), draw_value(random, attribute)) for _ in range(row_count)]
    lines = [f" {draw_phrase(random, TABLE_HEADS, names.split)} It has two columns:\n", f"| name | {attribute} |\n"]
    lines += [f"| {spell(name)} | {value} |\n" for name, value in rows]
    # A full stop at the end, as everywhere: what follows begins a sentence.
    topic = Topic(["".join(lines) + " That was all."])
    for i in random.permutation(row_count)[:question_count]:
        topic.questions.append(lookup(random, names.split, "table", attribute, *rows[i], asks=TABLE_ASKS))
    return topic


def variable(random, names, hop_count=2):
    """A chain: one variable has a value, each further one equals the one before. The answer walks it."""
    chain = [names.fresh() for _ in range(hop_count + 1)]
    value = draw_value(random, "code")
    steps = [f"The variable {spell(chain[0])} is {value}."]
    steps += [f"The variable {spell(b)} equals the variable {spell(a)}." for a, b in zip(chain, chain[1:])]
    topic = Topic([" " + steps[i] for i in random.permutation(len(steps))])
    ask = fill(draw_phrase(random, VARIABLE_ASKS, names.split), n=spell(chain[-1]))
    topic.questions.append(Question("variable", ask, " ".join(reversed(steps)), [value]))
    return topic


def quote(random, names, pair):
    """`pair`: two consecutive sentences, each beginning with a space."""
    ask = draw(random, QUOTE_ASKS[names.split]).format(s=pair[0])
    return Topic([pair[0] + pair[1]], [Question("quote", ask, f"It goes on:{pair[1]}", [pair[1].strip()])])
