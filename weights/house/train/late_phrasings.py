"""Phrasings written before a selection was chosen by damage, and used to judge that choice only: neither training nor any earlier choice or judgement
has seen them. `documents.py --phrasings late`.
"""
import words

FACTS = [
    "For {n} the clerk wrote down the {a} {v}.",
    "{n} went by the {a} {v} in those days.",
    "Whoever spoke of {n} spoke of the {a} {v}.",
    "The {a} that {n} kept all along was {v}.",
    "About {n} this much is certain: the {a} is {v}.",
    "It is {n} to whom they gave the {a} {v}.",
]
ASKS = [
    "Which {a} was given to {n}?",
    "Look up {n} and name the {a}.",
    "I would like to hear the {a} of {n}.",
    "Do you recall what {a} {n} has?",
    "Say what the {a} of {n} is.",
    "As to {n}: what was the {a}?",
]
TALK = [("Fine so far.", "Good."), ("Let me think.", "Take your time.")]
INTROS = ["Some leaves of an old volume.", "Keep this text in mind."]
TABLE_HEADS = ["On the next leaf there was this table."]
TABLE_ASKS = ["Going through the table, which {a} stands beside {n}?", "Read me the {a} of {n} off the table."]
VARIABLE_ASKS = ["What does the variable {n} amount to?", "Tell me what the variable {n} stands at."]


def use_late_phrasings():
    """From now on these are the held-out phrasings."""
    for phrases, late in (
        (words.FACTS, FACTS),
        (words.ASKS, ASKS),
        (words.TALK, TALK),
        (words.INTROS, INTROS),
        (words.TABLE_HEADS, TABLE_HEADS),
        (words.TABLE_ASKS, TABLE_ASKS),
        (words.VARIABLE_ASKS, VARIABLE_ASKS),
    ):
        phrases["held"][:] = late
