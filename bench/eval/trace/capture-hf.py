#!/usr/bin/env python3
"""Captures what attention sees in a model of Hugging Face transformers, as a trace that `npm run eval -- --trace` judges (docs/traces.md).

Usage: capture-hf.py MODEL TEXT OUT.safetensors [--contexts 2048,4096] [--rows 32] [--layers 0,5] [--dtype auto] [--store float16] [--device cpu]

The text is read once. Queries are kept of --rows positions behind each of --contexts, keys and values of every position up to the last of
them, after the rotation and as attention multiplies them. Layers whose window is shorter than that are left out. Needs torch,
transformers (from 4.53 on) and safetensors.
"""
import argparse

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("model", "text", "out"):
    parser.add_argument(name)
parser.add_argument("--contexts", default="2048", help="tokens before each run of rows")
parser.add_argument("--rows", type=int, default=32, help="rows behind each context")
parser.add_argument("--layers", help="layers to keep; without it all")
parser.add_argument("--dtype", default="auto", help="arithmetic of the model: auto (as its weights), float32, bfloat16, float16")
parser.add_argument("--store", choices=("float32", "bfloat16", "float16"), help="dtype of the trace; without it that of the model")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

contexts = sorted({int(each) for each in args.contexts.split(",")})
rows = sorted({start + row for start in contexts for row in range(args.rows)})
wanted = None if args.layers is None else {int(each) for each in args.layers.split(",")}
attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
tensors, scales, skipped = {}, set(), []


def capture(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention as it is, which leaves its input and output behind: `[batch, heads, tokens, head_dim]` in, `[batch, tokens, heads, head_dim]` out."""
    for name in ("s_aux", "softcap", "position_bias"):
        if kwargs.get(name) is not None:
            raise SystemExit(f"attention with {name} is not a plain softmax: a trace cannot hold it")
    output, weights = attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    layer, window = module.layer_idx, kwargs.get("sliding_window")
    if window is not None and window < key.shape[2]:
        skipped.append(layer)
    elif wanted is None or layer in wanted:
        kind = query.dtype if args.store is None else getattr(torch, args.store)
        keep = lambda x: x.to("cpu", kind).contiguous().clone()
        tensors[f"layers.{layer}.query"] = keep(query[0].transpose(0, 1)[rows])
        tensors[f"layers.{layer}.key"] = keep(key[0].transpose(0, 1))
        tensors[f"layers.{layer}.value"] = keep(value[0].transpose(0, 1))
        tensors[f"layers.{layer}.output"] = keep(output[0][rows])
        scales.add(query.shape[-1] ** -0.5 if scaling is None else float(scaling))
    return output, weights


ALL_ATTENTION_FUNCTIONS.register("capture", capture)
ALL_MASK_ATTENTION_FUNCTIONS.register("capture", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, attn_implementation="capture")
model = model.to(args.device).eval()
with open(args.text, encoding="utf8") as file:
    ids = tokenizer(file.read(), return_tensors="pt").input_ids[:, : rows[-1] + 1]
if ids.shape[1] <= rows[-1]:
    raise SystemExit(f"{args.text}: {ids.shape[1]} tokens, {rows[-1] + 1} are needed")
with torch.no_grad():
    model(ids.to(args.device), use_cache=False, logits_to_keep=1)

layers = sorted({int(name.split(".")[1]) for name in tensors})
if not layers:
    raise SystemExit("no layer with full attention among those that were asked for")
if len(scales) > 1:
    raise SystemExit(f"layers have different scales ({scales}): capture them apart with --layers")
metadata = {
    "quire_trace": "1",
    "model": args.model.rstrip("/").split("/")[-1],
    "source": f"transformers {transformers.__version__}, torch {torch.__version__}, {model.dtype}".replace("torch.", ""),
    "rope": "applied",
    "scale": repr(scales.pop()),
    "layers": ",".join(map(str, layers)),
    "positions": ",".join(map(str, rows)),
}
save_file(tensors, args.out, metadata)
print(f"{args.out}: {len(layers)} layers, {rows[-1] + 1} tokens, {len(rows)} rows" + (f"; windows: layers {skipped} left out" if skipped else ""))
