"""Names, values and phrasings of generated conversations. What evaluation uses is in no training text: other names, other phrasings.

Names and values are written with a space in front wherever they stand, so that each has one spelling in tokens.
"""

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

# The first of each list is the plainest and is drawn more often.
FACTS = {
    "train": [
        "The {a} of {n} is {v}.",
        "The {a} for {n} is {v}.",
        "{n} has the {a} {v}.",
        "For {n}, the {a} is {v}.",
        "Remember that the {a} of {n} is {v}.",
        "Note that {n} was given the {a} {v}.",
        "Everyone knew that the {a} of {n} was {v}.",
        "The {a} which belongs to {n} is {v}.",
        "It was written that {n} had the {a} {v}.",
        "As for {n}, its {a} is {v}.",
        "The {a} they gave to {n} was {v}.",
        "To {n} belongs the {a} {v}.",
        "The {a} that {n} had was {v}.",
        "He said that the {a} of {n} is {v}.",
        "Then {n} was given the {a} {v}.",
        "By then the {a} of {n} was {v}.",
        "The {a} of {n}, as we know, is {v}.",
        "The {a} given to {n} is {v}.",
        "She wrote down that the {a} for {n} was {v}.",
    ],
    "held": [
        "They say that the {a} of {n} is {v}.",
        "The {a} belonging to {n} is {v}.",
        "It was known that {n} had the {a} {v}.",
        "In the end the {a} for {n} was {v}.",
    ],
}
ASKS = {
    "train": [
        "What is the {a} of {n}?",
        "Which {a} has {n}?",
        "Tell me the {a} of {n}.",
        "What {a} was given to {n}?",
        "Please give me the {a} of {n}.",
        "I need the {a} for {n}.",
        "Do you remember the {a} of {n}?",
        "What is the {a} for {n}?",
        "Look up the {a} of {n}.",
        "What {a} does {n} have?",
        "And the {a} of {n}?",
        "Which {a} belongs to {n}?",
        "Say which {a} {n} has.",
        "Name the {a} that {n} has.",
        "Find the {a} which {n} was given.",
        "I want to know the {a} of {n}.",
        "Could you say what the {a} of {n} is?",
        "Give me the {a} for {n}.",
        "Repeat the {a} of {n}, please.",
        "In what you have read, what is the {a} of {n}?",
        "From the text, tell me the {a} that was given to {n}.",
        "What had {n} as its {a}?",
    ],
    "held": [
        "What was the {a} of {n}?",
        "Can you tell me the {a} of {n}?",
        "Give me the {a} that belongs to {n}.",
        "According to the text, which {a} does {n} have?",
    ],
}
SEVERAL_FACTS = {
    "train": ["One {a} of {n} is {v}.", "A {a} of {n} is {v}.", "Another {a} of {n} is {v}.", "Also {n} has the {a} {v}."],
    "held": ["One {a} for {n} is {v}.", "It was found that another {a} of {n} is {v}."],
}
SEVERAL_ASKS = {
    "train": ["What are all the {a}s of {n}?", "List every {a} of {n}.", "Which {a}s has {n}?", "Tell me all the {a}s of {n}.", "Give me all the {a}s of {n}.", "Name every {a} that {n} has.", "What are the {a}s which belong to {n}?"],
    "held": ["Can you list all the {a}s of {n}?", "Give me every {a} that belongs to {n}."],
}
TABLE_HEADS = {
    "train": ["Here is a table.", "The list was as follows.", "This stood on the page."],
    "held": ["The following table was found."],
}
TABLE_ASKS = {
    "train": ["In the table, what is the {a} of {n}?", "Which {a} does the table give for {n}?", "Read me the {a} of {n} from the table."],
    "held": ["What does the table say is the {a} of {n}?", "According to the table, what is the {a} of {n}?"],
}
VARIABLE_ASKS = {
    "train": ["What is the value of the variable {n}?", "Which value has the variable {n}?", "Tell me the value of the variable {n}."],
    "held": ["Can you work out the value of the variable {n}?", "What does the variable {n} hold?"],
}
QUOTE_ASKS = {
    "train": ["What comes right after this sentence:{s}", "Quote the sentence that follows this one:{s}", "Which sentence comes next after:{s}", "Go on from here:{s}"],
    "held": ["Can you quote the sentence after this one:{s}", "Find this sentence and tell me the next:{s}"],
}
INTROS = {
    "train": ["", "Here is a text.", "Read this.", "Please read the following text.", "I will ask you about this text."],
    "held": ["Here is something to read."],
}
TALK = {
    "train": [
        ("Thank you.", "You are welcome."),
        ("Good.", "I am glad."),
        ("Wait a moment.", "Take your time."),
        ("Have you read it?", "Yes, I have read it."),
        ("Let us go on.", "Go on."),
    ],
    "held": [("Thanks a lot.", "You are welcome."), ("Shall we go on?", "Go on.")],
}
SYSTEMS = ["You are a helpful assistant.", "Answer from the text.", "Be brief."]
CONTINUED = "Here is more."


def draw(random, items):
    return items[int(random.integers(0, len(items)))]


def draw_phrase(random, phrases, split):
    """One phrasing; in training the plainest of the list gets two fifths, and `plain` is that one only."""
    if split == "plain":
        return phrases["train"][0]
    choices = phrases[split]
    return choices[0] if split == "train" and random.random() < 0.4 else draw(random, choices)


def is_held_out_name(syllables):
    a, b, c = syllables
    return (a + 3 * b + 7 * c) % HELD_OUT_NAMES == 0


def draw_name(random, split):
    """Three syllables, as indices: of the names that belong to `split`."""
    while True:
        syllables = tuple(int(i) for i in random.integers(0, len(SYLLABLES), 3))
        if is_held_out_name(syllables) == (split == "held"):
            return syllables


def draw_look_alike(random, syllables, split):
    """A name that differs in one syllable."""
    while True:
        other = list(syllables)
        other[int(random.integers(0, 3))] = int(random.integers(0, len(SYLLABLES)))
        if tuple(other) != syllables and is_held_out_name(other) == (split == "held"):
            return tuple(other)


def spell(syllables):
    return "".join(SYLLABLES[i] for i in syllables).capitalize()


def draw_attribute(random):
    return draw(random, DIGIT_ATTRIBUTES if random.random() < 0.6 else WORD_ATTRIBUTES)


def draw_value(random, attribute):
    if attribute in VALUES:
        return draw(random, VALUES[attribute])
    return "".join(str(int(digit)) for digit in random.integers(0, 10, 4))
