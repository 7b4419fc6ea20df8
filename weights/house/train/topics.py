"""The kinds of things that a conversation can hold and ask for.

A topic is one or more texts that go into a passage (in the order given, each between two sentences) and questions about them.
Every text begins with a space. Answers repeat what they are about before they give the value, so a model can find its way by them.
"""
from dataclasses import dataclass, field

from grammar import grow, pick
from phrasings import LIST_ENTRIES, LIST_GLUES, SENTENCE_GLUES
from words import (
    ASKS,
    FACTS,
    LISTS,
    QUOTE_ASKS,
    SEVERAL_ASKS,
    SEVERAL_FACTS,
    SYLLABLES,
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
    """`expect`: texts that a right answer holds, in this order; `choices`: words of which the answer is one, where it is to be chosen."""

    kind: str
    ask: str
    answer: str
    expect: list[str]
    choices: list[str] | None = None


@dataclass
class Topic:
    items: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


class Names:
    """Draws names that one conversation has not used yet. `lexicon`: words of books, for training."""

    def __init__(self, random, split, lexicon=()):
        self.random, self.split, self.lexicon, self.used = random, split, lexicon, set()

    def fresh(self, like=None):
        while True:
            name = draw_name(self.random, self.split) if like is None else draw_look_alike(self.random, like, self.split)
            if name not in self.used:
                self.used.add(name)
                return name

    @property
    def is_training(self):
        return bool(self.lexicon) and self.split == "train"

    def attribute(self):
        return draw_attribute(self.random, self.lexicon if self.is_training else ())

    def value(self, attribute):
        return draw_value(self.random, attribute, self.is_training)

    def phrase(self, phrases, rough=True, **words):
        """A phrasing with its words in it, beginning with a capital."""
        return fill(draw_phrase(self.random, phrases, self.split, self.lexicon, rough), **words)


def fill(phrase, **words):
    text = phrase.format(**words)
    return text[0].upper() + text[1:]


def fact(names, attribute, name, value):
    text = " " + names.phrase(FACTS, a=attribute, n=spell(name), v=value)
    # A stop at the end, as everywhere: what follows begins a sentence.
    text = text.rstrip(',;:- "')
    return text if text[-1] in ".?!" else text + "."


def tell(names, attribute, keys, values):
    """Facts about `keys`, one text each; in training some share a sentence or a list."""
    random = names.random
    if not names.is_training or random.random() < 0.7:
        return [fact(names, attribute, key, value) for key, value in zip(keys, values)]
    if random.random() < 0.4:
        return [listed(names, attribute, keys[at : at + 12], values[at : at + 12]) for at in range(0, len(keys), 12)]
    texts, at = [], 0
    while at < len(keys):
        count = int(random.integers(1, 4))
        told = [fact(names, attribute, key, value) for key, value in zip(keys[at : at + count], values[at : at + count])]
        texts.append(join_sentences(random, told))
        at += count
    return texts


def join_sentences(random, told):
    """Sentences as one: a capital that only begins a sentence goes."""
    text = told[0]
    for other in told[1:]:
        inner = other[1:]
        begins_with_name = all(inner[i : i + 2].lower() in SYLLABLES for i in (0, 2, 4)) and not inner[6:7].isalpha()
        text = text[:-1] + pick(random, SENTENCE_GLUES) + " " + (inner if begins_with_name else inner[0].lower() + inner[1:])
    return text


def listed(names, attribute, keys, values):
    """One sentence that lists several names with their values."""
    random = names.random
    head, entry, glue = names.phrase(LISTS, rough=False, a=attribute), pick(random, LIST_ENTRIES), pick(random, LIST_GLUES)
    entries = [grow(random, entry, ()).format(n=spell(key), v=value) for key, value in zip(keys, values)]
    return f" {head} " + f"{glue} ".join(entries) + "."


def lookup(names, kind, attribute, name, value, asks=ASKS):
    """A question for one value; `value` is None where the text does not give it."""
    ask = names.phrase(asks, a=attribute, n=spell(name))
    said = "not mentioned" if value is None else value
    return Question(kind, ask, f"The {attribute} of {spell(name)} is {said}.", [said])


def single(random, names, question_count=1):
    """Unlike names, each with an attribute of its own."""
    topic = Topic()
    for _ in range(question_count):
        attribute, name = names.attribute(), names.fresh()
        value = names.value(attribute)
        topic.items.append(fact(names, attribute, name, value))
        topic.questions.append(lookup(names, "single", attribute, name, value))
    return topic


def multi_key(random, names, key_count=6, question_count=2):
    """One attribute, names that differ in one syllable from the first."""
    topic, attribute = Topic(), names.attribute()
    first = names.fresh()
    keys = [first] + [names.fresh(like=first) for _ in range(key_count - 1)]
    values = [names.value(attribute) for _ in keys]
    order = random.permutation(key_count)
    topic.items = tell(names, attribute, [keys[i] for i in order], [values[i] for i in order])
    for i in random.permutation(key_count)[:question_count]:
        topic.questions.append(lookup(names, "multi-key", attribute, keys[i], values[i]))
    return topic


def absent(random, names, key_count=3):
    """Look-alikes are there; the one that is asked for is not."""
    topic = multi_key(random, names, key_count, 1)
    known = topic.questions.pop()
    attribute = known.answer.split(" of ")[0].removeprefix("The ")
    like = draw(random, sorted(names.used)) if random.random() < 0.5 else None
    name = names.fresh(like)
    topic.questions.append(lookup(names, "absent", attribute, name, None))
    return topic


def multi_value(random, names, value_count=2):
    """Several values of one key, at several places; the answer gives them in the order of the text."""
    attribute, name, topic = names.attribute(), names.fresh(), Topic()
    values = []
    while len(values) < value_count:
        value = names.value(attribute)
        if value not in values:
            values.append(value)
    for value in values:
        topic.items.append(" " + names.phrase(SEVERAL_FACTS, rough=False, a=attribute, n=spell(name), v=value))
    ask = names.phrase(SEVERAL_ASKS, rough=False, a=attribute, n=spell(name))
    told = f"{', '.join(values[:-1])} and {values[-1]}"
    topic.questions.append(Question("multi-value", ask, f"The {attribute}s of {spell(name)} are {told}.", values))
    return topic


def table(random, names, row_count=6, question_count=2):
    attribute = names.attribute()
    rows = [(names.fresh(), names.value(attribute)) for _ in range(row_count)]
    lines = [f" {names.phrase(TABLE_HEADS, rough=False)} It has two columns:\n", f"| name | {attribute} |\n"]
    lines += [f"| {spell(name)} | {value} |\n" for name, value in rows]
    # A full stop at the end, as everywhere: what follows begins a sentence.
    topic = Topic(["".join(lines) + " That was all."])
    for i in random.permutation(row_count)[:question_count]:
        topic.questions.append(lookup(names, "table", attribute, *rows[i], asks=TABLE_ASKS))
    return topic


def variable(random, names, hop_count=2):
    """A chain: one variable has a value, each further one equals the one before. The answer walks it."""
    chain = [names.fresh() for _ in range(hop_count + 1)]
    value = draw_value(random, "code")
    steps = [f"The variable {spell(chain[0])} is {value}."]
    steps += [f"The variable {spell(b)} equals the variable {spell(a)}." for a, b in zip(chain, chain[1:])]
    topic = Topic([" " + steps[i] for i in random.permutation(len(steps))])
    ask = names.phrase(VARIABLE_ASKS, rough=False, n=spell(chain[-1]))
    topic.questions.append(Question("variable", ask, " ".join(reversed(steps)), [value]))
    return topic


def quote(random, names, pair):
    """`pair`: two consecutive sentences, each beginning with a space."""
    ask = names.phrase(QUOTE_ASKS, rough=False, s=pair[0])
    return Topic([pair[0] + pair[1]], [Question("quote", ask, f"It goes on:{pair[1]}", [pair[1].strip()])])
