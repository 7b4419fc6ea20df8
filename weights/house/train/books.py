#!/usr/bin/env python3
"""Books as one run of token ids, with the places where a sentence can be put between two others.

Usage: books.py BOOKS.txt FOLDER   (FOLDER holds tokenizer.json; writes FOLDER/train.npy, FOLDER/held.npy, uint16)
"""
import argparse
import os

import numpy as np
from tokenizers import Tokenizer

from grammar import make_lexicon
from tokenizer import END_OF_TEXT, read_books

# Every 49th book is for evaluation only.
HELD_OUT_EVERY, HELD_OUT_AT = 49, 24
# The lexicon is made of so many tokens.
LEXICON_TOKENS = 2_000_000


def is_held_out(book_index):
    return book_index % HELD_OUT_EVERY == HELD_OUT_AT


class Books:
    """Token ids of books, and `joints`: ascending indices i such that a sentence ends with token i-1 and another begins at i.

    Ids of a text put in between, if it begins with a space and ends with a full stop, are those of the whole text: nothing merges
    across a joint. No two neighbouring joints have the end of a book between them. `lexicon`: words that occur in the books.
    """

    def __init__(self, ids, tokenizer):
        self.ids = ids
        pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        ends = np.array([piece in (".", "!", "?") for piece in pieces])
        is_word = np.array([piece.strip("Ġ").isalpha() and piece.isascii() or piece.startswith("Ġ") and piece[1:].isalpha() for piece in pieces])
        begins = np.array([len(piece) > 1 and piece[0] == "Ġ" and piece[1].isascii() and piece[1].isupper() for piece in pieces])
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        # A word before the stop: in "..." the last stop is part of a longer piece.
        clean = is_word[ids[:-2]] & ends[ids[1:-1]] & begins[ids[2:]]
        self.joints = np.flatnonzero(clean) + 2
        self.lexicon = make_lexicon(tokenizer.decode(ids[:LEXICON_TOKENS].tolist()))

    def passage(self, random, tokens_max, tries=64):
        """Joints (first, ..., last) of consecutive sentences that take at most `tokens_max` tokens and cross no book's end."""
        for _ in range(tries):
            first = int(random.integers(0, len(self.joints) - 2))
            start = self.joints[first]
            last = int(np.searchsorted(self.joints, start + tokens_max, side="right")) - 1
            if last > first and not (self.ids[start : self.joints[last]] == self.end_of_text).any():
                # A page without joints (verse, a table of contents) makes a passage much shorter than asked for.
                if self.joints[last] - start >= tokens_max * 0.6:
                    return self.joints[first : last + 1]
        raise ValueError(f"no passage of {tokens_max} tokens in {tries} tries")

    def sentence_pair(self, random, shortest=6, longest=24):
        """Ids of two consecutive sentences of `shortest` to `longest` tokens each, both ending in a full stop."""
        while True:
            i = int(random.integers(0, len(self.joints) - 3))
            a, b, c = self.joints[i : i + 3]
            if shortest <= b - a <= longest and shortest <= c - b <= longest:
                pair = self.ids[a:b], self.ids[b:c]
                if pair[0][-1] == pair[1][-1] and not (self.ids[a:c] == self.end_of_text).any():
                    return pair


def encode_books(tokenizer, books):
    """uint16 ids of `books`, each followed by the end of text."""
    end = np.array([tokenizer.token_to_id(END_OF_TEXT)], np.uint16)
    parts = []
    for book in books:
        parts += [np.array(tokenizer.encode(book, add_special_tokens=False).ids, np.uint16), end]
    return np.concatenate(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("books")
    parser.add_argument("folder")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(args.folder, "tokenizer.json"))
    books = read_books(args.books)
    for name, held_out in (("train", False), ("held", True)):
        ids = encode_books(tokenizer, [book for i, book in enumerate(books) if is_held_out(i) == held_out])
        np.save(os.path.join(args.folder, f"{name}.npy"), ids)
        print(f"{name}: {len(ids)} tokens, {len(Books(ids, tokenizer).joints)} joints")


if __name__ == "__main__":
    main()
