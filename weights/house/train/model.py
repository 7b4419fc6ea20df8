"""The Llama architecture as Hugging Face defines it: RMSNorm, grouped-query attention, half-split RoPE, SwiGLU, tied embeddings.

RoPE is applied in f32, whatever autocast says: at position 30,000 a bf16 angle is off by whole turns.
"""
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    positions_max: int
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5


SHAPES = {
    "small": Shape(vocabulary=4096, width=192, layers=4, heads=4, kv_heads=2, head_dim=64, ffn_width=256, positions_max=32_768, rope_theta=5_000_000.0),
    "base": Shape(vocabulary=8192, width=512, layers=8, heads=8, kv_heads=2, head_dim=64, ffn_width=1344, positions_max=131_072),
}


def rotate(x, cos, sin):
    """RoPE on `x` [batch, heads, tokens, head_dim] in f32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend_in_chunks(q, k, v):
    """Causal attention of `q` [batch, heads, tokens, head_dim] to `k`, `v` [batch, kv_heads, tokens, head_dim], in chunks of queries.

    For training on a CPU: the fused kernel takes 1.3 to 2 times as long there, most of it in the backward pass.
    """
    batch, heads, tokens, head_dim = q.shape
    kv_heads = k.shape[1]
    group, chunk = heads // kv_heads, 128 if tokens < 2048 else 256
    q = (q * head_dim**-0.5).view(batch, kv_heads, group, tokens, head_dim)
    outs = []
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        scores = q[:, :, :, start:end].reshape(batch, kv_heads, -1, head_dim) @ k[:, :, :end].transpose(-1, -2)
        scores = scores.view(batch, kv_heads, group, end - start, end)
        hidden = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out = shares.view(batch, kv_heads, -1, end) @ v[:, :, :end]
        outs.append(out.view(batch, kv_heads, group, end - start, head_dim))
    return torch.cat(outs, 3).view(batch, heads, tokens, head_dim)


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.input_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.q = nn.Linear(shape.width, q_width, bias=False)
        self.k = nn.Linear(shape.width, kv_width, bias=False)
        self.v = nn.Linear(shape.width, kv_width, bias=False)
        self.o = nn.Linear(q_width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.gate = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.up = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.down = nn.Linear(shape.ffn_width, shape.width, bias=False)

    def forward(self, x, cos, sin, past=None):
        """`past`: keys and values of earlier tokens; then `x` is one token per row. Returns the output and all keys and values."""
        batch, tokens, _ = x.shape
        y = self.input_norm(x)
        q, k, v = (w(y).view(batch, tokens, -1, self.shape.head_dim).transpose(1, 2) for w in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        if self.training and x.device.type == "cpu":
            attended = attend_in_chunks(q, k, v)
        else:
            group = self.shape.heads // self.shape.kv_heads
            keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            attended = F.scaled_dot_product_attention(q, keys, values, is_causal=past is None)
        x = x + self.o(attended.transpose(1, 2).reshape(batch, tokens, -1))
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), (k, v)


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        self.register_buffer("frequencies", shape.rope_theta**-exponents, persistent=False)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        for block in self.blocks:
            for matrix in (block.q, block.k, block.v, block.gate, block.up):
                nn.init.normal_(matrix.weight, std=shape.width**-0.5)
            # What adds to the residual stream begins small.
            for matrix in (block.o, block.down):
                nn.init.normal_(matrix.weight, std=(2 * shape.layers * matrix.in_features) ** -0.5)

    def forward(self, ids, positions, past=None):
        """Normed last hidden states [batch, tokens, width] of `ids` [batch, tokens] at `positions`, and every block's keys and values."""
        angles = (positions[..., None].float() * self.frequencies)[:, None]
        cos, sin = angles.cos(), angles.sin()
        x, kept = self.embeddings(ids), []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, cos, sin, None if past is None else past[i])
            kept.append(kv)
        return self.norm(x), kept

    def logits(self, hidden):
        return hidden @ self.embeddings.weight.T

    def parameter_count(self):
        return sum(parameter.numel() for parameter in self.parameters())
