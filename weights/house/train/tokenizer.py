#!/usr/bin/env python3
"""Trains the byte-level BPE of the house model and writes it in Hugging Face's tokenizer.json format.

Usage: tokenizer.py BOOKS.txt OUT_FOLDER [--vocabulary 4096]

Words are split as Qwen2 does, so every digit is a token of its own and a word carries the space in front of it. Ids 0 to 2 are
`<|endoftext|>`, `<|im_start|>`, `<|im_end|>`; the other ids follow in the order of the merges.
"""
import argparse
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, IM_START, IM_END]
BOOK_SEPARATOR = "\x1e"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_books(path):
    """The books of a file in which a line with U+001E stands between two of them."""
    with open(path, encoding="utf8") as file:
        return [book.strip("\n") for book in file.read().split(BOOK_SEPARATOR)]


def train_tokenizer(texts, vocabulary):
    """A tokenizer with `vocabulary` entries, special tokens included."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("books")
    parser.add_argument("out")
    parser.add_argument("--vocabulary", type=int, default=4096)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    # A quarter of the text gives the same merges but for the rarest ones.
    tokenizer = train_tokenizer(read_books(args.books)[::4], args.vocabulary)
    tokenizer.save(os.path.join(args.out, "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()
