#!/usr/bin/env python3
"""Draws the loss curves of a run.   Usage: plot.py OUT/log.jsonl CURVE.svg

The picture is written by hand: no plotting library is needed.
"""
import json
import math
import sys

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 380, 56, 40
CURVES = (("language", "#4878a8", "book text"), ("retrieval", "#c05030", "answers"))
LOSS_MIN = 0.003


def smooth(values, weight=0.9):
    out = []
    for value in values:
        out.append(value if not out else weight * out[-1] + (1 - weight) * value)
    return out


def draw(lines):
    """An SVG of losses (logarithmic) over tokens, with the places where sequences grew longer."""
    tokens_max = lines[-1]["tokens"]
    loss_max = max(line[name] for line in lines for name, _, _ in CURVES)
    tall = HEIGHT - BOTTOM - 16

    def x(tokens):
        return LEFT + (WIDTH - LEFT - 16) * tokens / tokens_max

    def y(loss):
        share = math.log(max(loss, LOSS_MIN) / LOSS_MIN) / math.log(loss_max / LOSS_MIN)
        return HEIGHT - BOTTOM - tall * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for loss in (0.01, 0.03, 0.1, 0.3, 1, 3, 10):
        if LOSS_MIN < loss < loss_max:
            parts.append(f'<path d="M{LEFT} {y(loss):.1f}H{WIDTH - 16}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss}</text>')
    for before, line in zip([{"length": 0}, *lines], lines):
        if line["length"] != before["length"]:
            at = x(line["tokens"])
            parts.append(f'<path d="M{at:.1f} 16V{HEIGHT - BOTTOM}" stroke="#bbb" stroke-dasharray="3 3"/>')
            parts.append(f'<text x="{at + 4:.1f}" y="28" fill="#666">{line["length"]}</text>')
    for number, (name, colour, label) in enumerate(CURVES):
        losses = smooth([line[name] for line in lines])
        points = " ".join(f"{x(line['tokens']):.1f},{y(loss):.1f}" for line, loss in zip(lines, losses))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - 90}" y="{48 + 16 * number}" fill="{colour}">{label}</text>')
    caption = f"tokens, up to {tokens_max / 1e6:.1f} million; loss in nats per token; dashed: tokens per sequence"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}" fill="#444">{caption}</text></svg>')
    return "\n".join(parts) + "\n"


def main():
    log, out = sys.argv[1:]
    with open(log, encoding="utf8") as file:
        lines = [json.loads(line) for line in file]
    with open(out, "w", encoding="utf8") as file:
        file.write(draw(lines))


if __name__ == "__main__":
    main()
