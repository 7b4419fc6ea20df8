"""Phrasings without number: templates with choices in them, and words out of books in place of theirs.

In a template `[x|y]` stands for one of the texts between the bars and `<rule>` for one of that rule's templates; `<w>` is a word out of
the books, or nothing where there are none to draw from, `<W>` the same with a capital, `<d>` a number. `{a}`, `{n}`, `{v}` stay as they are.
"""
import re
from functools import lru_cache

from phrasings import RULES

# Shares of phrasings in which some or most of the words that carry nothing are others, or missing.
LIGHT, HEAVY = 0.2, 0.08
# A value in front of its name is not learned by the small model; fewer such facts leave more for what is.
VALUE_FIRST_REDRAWN = 0.6
# Of each word: replaced, left out, and a word put in front of it.
RATES = {"light": (0.2, 0.05, 0.08), "heavy": (0.6, 0.12, 0.1)}


@lru_cache(maxsize=None)
def parse(template):
    """A template as a tuple of texts, ("one", alternatives) and ("rule", name)."""
    parts, at = [], 0
    while at < len(template):
        if template[at] == "[":
            depth, end, cuts = 1, at + 1, [at]
            while depth:
                depth += {"[": 1, "]": -1}.get(template[end], 0)
                if depth == 1 and template[end] == "|":
                    cuts.append(end)
                end += 1
            cuts.append(end - 1)
            parts.append(("one", tuple(template[a + 1 : b] for a, b in zip(cuts, cuts[1:]))))
        elif template[at] == "<":
            end = template.index(">", at) + 1
            parts.append(("rule", template[at + 1 : end - 1]))
        else:
            found = re.search(r"[\[<]", template[at:])
            end = at + found.start() if found else len(template)
            parts.append(template[at:end])
        at = end
    return tuple(parts)


def pick(random, items):
    return items[int(random.random() * len(items))]


def grow(random, template, lexicon):
    """One text that `template` stands for."""
    out = []
    for part in parse(template):
        if isinstance(part, str):
            out.append(part)
        elif part[0] == "one":
            out.append(grow(random, pick(random, part[1]), lexicon))
        elif part[1] in "wW":
            word = pick(random, lexicon) if lexicon else ""
            out.append(word if part[1] == "w" else word.capitalize())
        elif part[1] == "d":
            out.append(str(int(10 ** random.uniform(0, 3.4))))
        else:
            out.append(grow(random, pick(random, RULES[part[1]]), lexicon))
    return "".join(out)


def tidy(text):
    """One space between words, none before a stop, a small letter where a sentence's beginning has moved into it."""
    text = re.sub(r"\s+([,.;:?!)])", r"\1", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"([,;:])[,;:]+", r"\1", re.sub(r"[,;:]+([.?!])", r"\1", text))
    return text.lstrip(",;: ")


def scramble(random, phrase, lexicon, degree):
    """`phrase` with some of the words that carry nothing replaced, left out or joined by others; marks behind words stay."""
    replaced, dropped, added = RATES[degree]
    words = []
    for word in phrase.split(" "):
        if random.random() < added:
            words.append(pick(random, lexicon))
        if "{" in word:
            words.append(word)
            continue
        mark = re.search(r"[^\w]*$", word).group()
        chance = random.random()
        if chance < replaced:
            words.append(pick(random, lexicon) + mark)
        elif chance < replaced + dropped:
            words.append(mark)
        else:
            words.append(word)
    return " ".join(words)


def draw_grown(random, templates, lexicon, reserved, rough=True):
    """A phrasing for training that holds none of `reserved`; without `rough` its words stay as the templates have them."""
    while True:
        phrase = grow(random, pick(random, templates), lexicon)
        chance = random.random()
        if rough and lexicon and chance < LIGHT + HEAVY:
            phrase = scramble(random, phrase, lexicon, "heavy" if chance < HEAVY else "light")
        phrase = tidy(phrase)
        plain = phrase.lower()
        if "{n}" in plain and -1 < plain.find("{v}") < plain.find("{n}") and random.random() < VALUE_FIRST_REDRAWN:
            continue
        if phrase and not any(other in plain for other in reserved):
            return phrase


def make_lexicon(text, count_min=3):
    """Words of `text` in small letters, three to ten of them, each as often as its rank allows: frequent ones once, like rare ones."""
    counts = {}
    for word in re.findall(r"(?<= )[a-z]{3,10}(?=[ ,.])", text):
        counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count >= count_min)
