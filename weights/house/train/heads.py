"""Weights with which attention begins as what it has to become: heads that look back by a few tokens, and heads that find where the
same words stood.

From random weights the small model had learned the form of the answers and to copy names after 10 million tokens, and every digit was
still a guess. From these it gives nine digits of ten after a quarter of a million. All of them are trained on.

Residual stream at the beginning: channel 0 is constant, `token` channels hold the token, and behind them every head of layer 0 writes
the code of the token (or tokens) that it looks back to.
"""
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

CODE_WIDTH = 24
# Of each channel of an embedding. Whatever a layer adds at random begins well below it.
EMBEDDING_STD = 0.03
CONSTANT = 0.15
QUIET = 0.05
# Of queries and keys that are compared: equal codes then stand about 8 above others before the softmax.
MATCH_STRENGTH = 1.6


@dataclass(frozen=True)
class LookBack:
    """A head whose attention peaks `tokens` back, by RoPE frequencies `first` to `last` with `strength` each; `gain`: of what it writes."""

    tokens: float
    first: int
    last: int
    strength: float
    gain: float


# Fast and strong is sharp. The last one takes in eight tokens, which together are to be as strong as one.
LOOK_BACKS = (LookBack(1, 0, 5, 7.0, 1.0), LookBack(2, 0, 5, 7.0, 1.0), LookBack(3, 0, 5, 7.0, 1.0), LookBack(4.5, 2, 7, 2.5, 2.8))


def orthogonal(generator, rows, columns):
    """A random matrix with orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T


@torch.no_grad()
def begin_with_retrieval_heads(model, seed=1):
    """Sets the embeddings and the attention of layers 0 to 2 of a model with four heads, two KV heads and at least 192 channels."""
    shape, generator = model.shape, torch.Generator().manual_seed(seed)
    width = shape.head_dim
    token = slice(1, shape.width - shape.heads * CODE_WIDTH)
    written = [slice(token.stop + head * CODE_WIDTH, token.stop + (head + 1) * CODE_WIDTH) for head in range(shape.heads)]
    token_width = token.stop - token.start
    directions = normalize(torch.randn(shape.vocabulary, token_width, generator=generator), dim=1)
    # Equal lengths: the norm then leaves the constant the same at every token.
    model.embeddings.weight.zero_()
    model.embeddings.weight[:, token] = directions * token_width**0.5 * EMBEDDING_STD
    model.embeddings.weight[:, 0] = CONSTANT
    # The constant behind the first norm.
    constant = CONSTANT / ((token_width * EMBEDDING_STD**2 + CONSTANT**2) / shape.width) ** 0.5
    codes = orthogonal(generator, CODE_WIDTH, token_width)
    for block in model.blocks:
        block.o.weight.mul_(QUIET)
        block.down.weight.mul_(QUIET)
    look_back(model, constant, codes, token, written)
    for block in model.blocks[1:3]:
        find_same_words(block, codes, token, written, width, generator)


def look_back(model, constant, codes, token, written):
    """Layer 0: keys are the same at every token, so that RoPE alone decides; values are the token's code."""
    shape, block = model.shape, model.blocks[0]
    width, half = shape.head_dim, shape.head_dim // 2
    block.q.weight.mul_(0.1)
    block.k.weight.mul_(0.01)
    block.v.weight.mul_(0.1)
    block.o.weight.mul_(0.1)
    for start in range(0, shape.kv_heads * width, width):
        block.k.weight[start : start + half, 0] = 1 / constant
        block.v.weight[start : start + CODE_WIDTH, token] = codes
    for head, back in enumerate(LOOK_BACKS):
        start, size = head * width, back.strength * width**0.5 / constant
        for i in range(back.first, back.last + 1):
            # The key turned by so many tokens: their product is greatest there.
            angle = -back.tokens * model.frequencies[i]
            block.q.weight[start + i, 0] = size * angle.cos()
            block.q.weight[start + half + i, 0] = size * angle.sin()
        block.o.weight[written[head], start : start + CODE_WIDTH] = torch.eye(CODE_WIDTH) * EMBEDDING_STD * back.gain


def find_same_words(block, codes, token, written, width, generator):
    """Heads 0 and 1: there the token before is the one that is here, and the words around are the same. Heads 2 and 3: the words around
    there are those around here, or hold the one here. All copy the token they find. Compared are the channels of the slowest RoPE
    frequencies, whose angles hardly differ over the whole context."""
    half, part = width // 2, CODE_WIDTH // 2
    steady = torch.tensor([*range(half - part, half), *range(width - part, width)])
    same, before, around = torch.eye(CODE_WIDTH) * MATCH_STRENGTH, written[0], written[3]
    for matrix in (block.q, block.k, block.v):
        matrix.weight.mul_(0.3)
    q, k = block.q.weight, block.k.weight
    for head in (0, 1):
        q[head * width + steady[:part], token] = codes[:part] * MATCH_STRENGTH
        q[head * width + steady[part:], around] = same[part:]
    k[steady[:part], before] = same[:part]
    k[steady[part:], around] = same[part:]
    k[width + steady, around] = same
    q[2 * width + steady, around] = same
    q[3 * width + steady, token] = codes * MATCH_STRENGTH
    for group in (0, 1):
        copy = orthogonal(generator, width, token.stop - token.start)
        block.v.weight[group * width : (group + 1) * width, token] += copy
        for head in (2 * group, 2 * group + 1):
            block.o.weight[token, head * width : (head + 1) * width] += copy.T * EMBEDDING_STD
