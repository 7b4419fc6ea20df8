"""Names and values of generated conversations, and how one phrasing is drawn. What evaluation uses is in no training text: other names,
other phrasings.
"""
from functools import lru_cache

from grammar import draw_grown
from phrasings import (
    ASKS,
    FACTS,
    INTROS,
    LISTS,
    QUOTE_ASKS,
    SEVERAL_ASKS,
    SEVERAL_FACTS,
    TABLE_ASKS,
    TABLE_HEADS,
    TALK,
    VARIABLE_ASKS,
)

# Every list of phrasings, for whoever needs all of them.
PHRASINGS = (FACTS, ASKS, SEVERAL_FACTS, SEVERAL_ASKS, TABLE_HEADS, TABLE_ASKS, VARIABLE_ASKS, QUOTE_ASKS, INTROS, LISTS)

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
# One name of ten is for evaluation only.
HELD_OUT_NAMES = 10

DIGIT_ATTRIBUTES = ["code", "number", "room", "price", "weight", "pin"]
WORD_ATTRIBUTES = ["colour", "animal", "tree", "metal", "fruit", "tool"]
VALUES = {
    "colour": "red blue green yellow black white brown grey purple orange pink golden silver violet".split(),
    "animal": "dog cat horse wolf bear fox lion tiger mouse rabbit eagle raven goat sheep pig cow".split(),
    "tree": "oak pine elm birch willow ash maple cedar palm beech fir poplar".split(),
    "metal": "iron copper tin lead gold silver brass steel bronze nickel zinc platinum".split(),
    "fruit": "apple pear plum grape lemon cherry fig orange melon peach date berry".split(),
    "tool": "hammer saw axe spade rake knife needle hook drill file plough rope".split(),
}

SYSTEMS = ["You are a helpful assistant.", "Answer from the text.", "Be brief."]
CONTINUED = "Here is more."
PLAIN_SHARE = 0.06
# In training: attributes that are any word of the books, and values of another number of digits than four.
ODD_ATTRIBUTES, ODD_DIGITS = 0.08, 0.05


def draw(random, items):
    return items[int(random.integers(0, len(items)))]


@lru_cache(maxsize=1)
def reserved_phrasings():
    """What no training text may hold: the phrasings of the evaluation and of the looks at a run, without capitals and stops."""
    facts_and_asks = [phrase for phrases in PHRASINGS for split in ("held", "dev") for phrase in phrases.get(split, [])]
    return tuple(phrase.lower().rstrip(".?! ") for phrase in facts_and_asks)


def draw_phrase(random, phrases, split, lexicon=(), rough=True):
    """One phrasing. In training it is grown from the templates, now and then the plainest; `plain` draws from the plain ones only."""
    if split == "plain":
        return draw(random, phrases.get("plain") or phrases["train"][:1])
    if split != "train":
        return draw(random, phrases.get(split) or phrases["held"])
    if random.random() < PLAIN_SHARE:
        return phrases["train"][0]
    return draw_grown(random, phrases["train"], lexicon, reserved_phrasings(), rough)


def is_held_out_name(syllables):
    a, b, c = syllables
    return (a + 3 * b + 7 * c) % HELD_OUT_NAMES == 0


def draw_name(random, split):
    """Three syllables, as indices: of the names that belong to `split`."""
    while True:
        syllables = tuple(int(i) for i in random.integers(0, len(SYLLABLES), 3))
        if is_held_out_name(syllables) == (split in ("held", "dev")):
            return syllables


def draw_look_alike(random, syllables, split):
    """A name that differs in one syllable."""
    while True:
        other = list(syllables)
        other[int(random.integers(0, 3))] = int(random.integers(0, len(SYLLABLES)))
        if tuple(other) != syllables and is_held_out_name(other) == (split in ("held", "dev")):
            return tuple(other)


def spell(syllables):
    return "".join(SYLLABLES[i] for i in syllables).capitalize()


def draw_attribute(random, lexicon=()):
    """With a `lexicon`, in training: now and then a word of it."""
    if lexicon and random.random() < ODD_ATTRIBUTES:
        return draw(random, lexicon)
    return draw(random, DIGIT_ATTRIBUTES if random.random() < 0.6 else WORD_ATTRIBUTES)


def draw_value(random, attribute, odd=False):
    """A word where the attribute has words for values, else four digits; if `odd`, now and then fewer or more."""
    if attribute in VALUES:
        return draw(random, VALUES[attribute])
    count = int(random.integers(2, 7)) if odd and random.random() < ODD_DIGITS else 4
    return "".join(str(int(digit)) for digit in random.integers(0, 10, count))
