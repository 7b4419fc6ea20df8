#!/usr/bin/env python3
"""Evaluation cases in phrasings that nobody knew who trained the model: written after the last step, before anything was asked in them.

Usage: fresh_phrasings.py FOLDER OUT.jsonl.gz [--count 200]   (as cases.py; other names, values and passages than there, too)
"""
import cases
import words

SEED_OFFSET = 10_000

FACTS = [
    "There the {a} of {n} stood as {v}.",
    "Of {n} it is told that the {a} was {v}.",
    "{n} got {v} for a {a}.",
    "Nobody forgot that {n} carries the {a} {v}.",
    "The {a} of {n} came out as {v}.",
]
ASKS = [
    "What {a} is {n} said to have?",
    "I forgot the {a} of {n}. What is it?",
    "How does the text give the {a} of {n}?",
    "Remind me: what is the {a} of {n}?",
    "{n} has a {a}. Which?",
]
TALK = [("That helps.", "I am glad."), ("One more thing.", "Go on.")]
INTROS = ["What follows is from a book.", "Consider these pages."]


def use_fresh_phrasings():
    """From now on these are the held-out phrasings."""
    for phrases, fresh in ((words.FACTS, FACTS), (words.ASKS, ASKS), (words.TALK, TALK), (words.INTROS, INTROS)):
        phrases["held"][:] = fresh


def main():
    use_fresh_phrasings()
    known = cases.make_case
    cases.make_case = lambda seed, *rest: known(seed + SEED_OFFSET, *rest)
    cases.KINDS = ("single", "multi-key", "second-turn")
    cases.main()


if __name__ == "__main__":
    main()
