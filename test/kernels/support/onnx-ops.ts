/** What the contract's ops are in ONNX: standard operators, and those of onnxruntime that were made for such models. */
import { type OnnxNode, runOnnx } from "./onnx-graph.ts";

/** `x . w^T`; `x` `[rows, inWidth]`, `w` `[outWidth, inWidth]`. */
export async function onnxMatmul(
  x: Float32Array,
  w: Float32Array,
  { rows, inWidth, outWidth }: { rows: number; inWidth: number; outWidth: number },
): Promise<Float32Array> {
  const inputs = { x: { shape: [rows, inWidth], data: x }, w: { shape: [outWidth, inWidth], data: w } };
  const nodes = [{ op: "Gemm", inputs: ["x", "w"], outputs: ["y"], attributes: { transB: 1 } }];
  return take(await runOnnx({ inputs, nodes, outputs: ["y"] }), "y");
}

/**
 * The same with both sides rounded to 255 levels of their largest magnitude per row and block of 32 (`Round` is half to even), and
 * multiplied as f32. `inWidth` is a multiple of 32 and no block is all zeros.
 */
export async function onnxMatmulInt8(
  x: Float32Array,
  w: Float32Array,
  { rows, inWidth, outWidth }: { rows: number; inWidth: number; outWidth: number },
): Promise<Float32Array> {
  const inputs = {
    x: { shape: [rows, inWidth / 32, 32], data: x },
    w: { shape: [outWidth, inWidth / 32, 32], data: w },
    axes: { shape: [1], data: BigInt64Array.of(2n) },
    levels: { shape: [1], data: Float32Array.of(127) },
  };
  const rounded = (name: string): OnnxNode[] => [
    { op: "Abs", inputs: [name], outputs: [`${name} abs`] },
    { op: "ReduceMax", inputs: [`${name} abs`, "axes"], outputs: [`${name} max`] },
    { op: "Div", inputs: [`${name} max`, "levels"], outputs: [`${name} scale`] },
    { op: "Div", inputs: [name, `${name} scale`], outputs: [`${name} ratio`] },
    { op: "Round", inputs: [`${name} ratio`], outputs: [`${name} code`] },
    { op: "Mul", inputs: [`${name} code`, `${name} scale`], outputs: [`${name} value`] },
    { op: "Flatten", inputs: [`${name} value`], outputs: [`${name} rows`], attributes: { axis: 1 } },
  ];
  const product = { op: "Gemm", inputs: ["x rows", "w rows"], outputs: ["y"], attributes: { transB: 1 } };
  return take(await runOnnx({ inputs, nodes: [...rounded("x"), ...rounded("w"), product], outputs: ["y"] }), "y");
}

/** RMS norm; `x` `[rows, width]`. */
export async function onnxRmsNorm(
  x: Float32Array,
  weight: Float32Array,
  { rows, width, eps }: { rows: number; width: number; eps: number },
): Promise<Float32Array> {
  const inputs = { x: { shape: [rows, width], data: x }, weight: { shape: [width], data: weight } };
  const attributes = { axis: 1, epsilon: { float: eps } };
  const nodes = [{ op: "SimplifiedLayerNormalization", inputs: ["x", "weight"], outputs: ["y"], attributes }];
  return take(await runOnnx({ inputs, nodes, outputs: ["y"] }), "y");
}

/** `silu(gate) * up`, by exp: onnxruntime's Sigmoid is an approximation, coarser than ours. */
export async function onnxSiluMul(gate: Float32Array, up: Float32Array): Promise<Float32Array> {
  const shape = [gate.length];
  const inputs = {
    gate: { shape, data: gate },
    up: { shape, data: up },
    one: { shape: [1], data: Float32Array.of(1) },
  };
  const nodes = [
    { op: "Neg", inputs: ["gate"], outputs: ["negative"] },
    { op: "Exp", inputs: ["negative"], outputs: ["exp"] },
    { op: "Add", inputs: ["exp", "one"], outputs: ["divisor"] },
    { op: "Div", inputs: ["gate", "divisor"], outputs: ["silu"] },
    { op: "Mul", inputs: ["silu", "up"], outputs: ["y"] },
  ];
  return take(await runOnnx({ inputs, nodes, outputs: ["y"] }), "y");
}

/** Log probabilities of rows of logits `[rows, width]`. */
export async function onnxLogSoftmax(
  logits: Float32Array,
  { rows, width }: { rows: number; width: number },
): Promise<Float32Array> {
  const nodes = [{ op: "LogSoftmax", inputs: ["logits"], outputs: ["y"], attributes: { axis: 1 } }];
  return take(
    await runOnnx({ inputs: { logits: { shape: [rows, width], data: logits } }, nodes, outputs: ["y"] }),
    "y",
  );
}

/** Queries, keys and values of all rows, before RoPE. */
export interface OnnxAttentionInput {
  headCount: number;
  kvHeadCount: number;
  headDim: number;
  /** `[rows, headCount, headDim]`. */
  q: Float32Array;
  /** `[rows, kvHeadCount, headDim]`. */
  k: Float32Array;
  v: Float32Array;
  /** f32 `[positions, headDim / 2]`. */
  cos: Float32Array;
  sin: Float32Array;
  /** Attributes that make onnxruntime compute something else: for tests of the test. */
  changes?: OnnxNode["attributes"];
}

/** What attention gives, and what it left in the cache. */
export interface OnnxAttention {
  /** `[rows, headCount, headDim]`. */
  out: Float32Array;
  /** Keys after RoPE and values, `[kvHeadCount, rows, headDim]`. */
  keys: Float32Array;
  values: Float32Array;
}

/** Causal attention of grouped queries with half-split RoPE, over a sequence from position 0. `headDim` is a multiple of 16. */
export async function onnxAttention(input: OnnxAttentionInput): Promise<OnnxAttention> {
  const { headCount, kvHeadCount, headDim, q, k, v, cos, sin, changes = {} } = input;
  const rows = q.length / (headCount * headDim);
  const table = { shape: [cos.length / (headDim / 2), headDim / 2] };
  const inputs = {
    q: { shape: [1, rows, headCount * headDim], data: q },
    k: { shape: [1, rows, kvHeadCount * headDim], data: k },
    v: { shape: [1, rows, kvHeadCount * headDim], data: v },
    last: { shape: [1], data: Int32Array.of(rows - 1) },
    total: { shape: [1], data: Int32Array.of(rows) },
    cos: { ...table, data: cos },
    sin: { ...table, data: sin },
  };
  const node: OnnxNode = {
    op: "GroupQueryAttention",
    domain: "com.microsoft",
    inputs: ["q", "k", "v", "", "", "last", "total", "cos", "sin"],
    outputs: ["out", "keys", "values"],
    attributes: { num_heads: headCount, kv_num_heads: kvHeadCount, do_rotary: 1, rotary_interleaved: 0, ...changes },
  };
  const results = await runOnnx({ inputs, nodes: [node], outputs: ["out", "keys", "values"] });
  return { out: take(results, "out"), keys: take(results, "keys"), values: take(results, "values") };
}

function take(results: Record<string, Float32Array>, name: string): Float32Array {
  const values = results[name];
  if (values === undefined) throw new Error(`onnxruntime gave no ${name}`);
  return values;
}
