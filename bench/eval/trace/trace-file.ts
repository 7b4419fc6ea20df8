/** A trace: queries, keys and values that another system's attention saw, in a safetensors file. The format is `docs/traces.md`. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { basename } from "node:path";
import type { RopeFrequencies } from "../../../models/rope-frequencies.ts";
import { openSafetensors, type SafetensorsSource } from "../../../models/safetensors.ts";
import type { RowRange } from "../../../models/tensor-source.ts";
import { failFile } from "../../../models/weights-file.ts";
import { TraceFields } from "./trace-fields.ts";

/** What a trace may hold at most; far beyond what is captured, so that a hostile file fails here. */
export const TRACE_LIMITS = {
  layers: 512,
  heads: 1_024,
  headDim: 512,
  tokens: 1_048_576,
  rows: 16_384,
  /** The largest value of binary16: what is larger overflows on some way. */
  value: 65_504,
  scale: { min: 1e-6, max: 1e3 },
} as const;

const FORMAT = "1";
const FREQUENCIES = "rope.inverse_frequencies";
const PARTS = ["query", "key", "value", "output"] as const;
type Part = (typeof PARTS)[number];

/** Widths of a trace's attention. */
export interface TraceShape {
  layerCount: number;
  headCount: number;
  kvHeadCount: number;
  headDim: number;
}

/** A trace whose header was checked; values are checked as they are read. Layers are counted as in {@link layers}. */
export class TraceFile {
  /** Without its folder. */
  readonly name: string;
  /** Of the whole file, hex. */
  readonly sha256: string;
  readonly shape: TraceShape;
  /** Positions with keys and values. */
  readonly tokenCount: number;
  /** Of the query rows, ascending. */
  readonly positions: readonly number[];
  /** The model's own numbers of the layers, ascending. */
  readonly layers: readonly number[];
  /** Of the model that was captured. */
  readonly model: string;
  /** What it was captured with. */
  readonly source: string | undefined;
  /** The rotation that queries and keys still need; without a turn where they have had it. */
  readonly rope: RopeFrequencies;
  /** Whether the file has what attention gave there. */
  readonly hasOutputs: boolean;
  readonly #tensors: SafetensorsSource;
  /** Brings the file's scale to 1 / sqrt(headDim), which is the device's. */
  readonly #queryFactor: number;

  private constructor(tensors: SafetensorsSource, read: ReadHeader & { sha256: string; name: string }) {
    this.#tensors = tensors;
    this.name = read.name;
    this.sha256 = read.sha256;
    this.shape = read.shape;
    this.tokenCount = read.tokenCount;
    this.positions = read.positions;
    this.layers = read.layers;
    this.model = read.model;
    this.source = read.source;
    this.rope = read.rope;
    this.hasOutputs = read.hasOutputs;
    this.#queryFactor = read.scale * Math.sqrt(read.shape.headDim);
  }

  /**
   * Opens and checks a file; the caller closes it.
   * @throws {QuireError} `invalid_request`, one line: the file, the field, and what it may be.
   */
  static async open(path: string): Promise<TraceFile> {
    const name = basename(path);
    const tensors = await openSafetensors(path);
    try {
      const header = await readHeader(name, tensors);
      return new TraceFile(tensors, { ...header, name, sha256: await digestOf(path) });
    } catch (thrown) {
      await tensors.close();
      throw thrown;
    }
  }

  /** f32 `[headCount, headDim]`, so scaled that 1 / sqrt(headDim) is what is left to do. @throws {QuireError} for a value out of range. */
  async query(layer: number, row: number): Promise<Float32Array> {
    const values = await this.#rows(layer, "query", { first: row, count: 1 });
    return this.#queryFactor === 1 ? values : values.map((value) => value * this.#queryFactor);
  }

  /** f32 `[count, kvHeadCount, headDim]`. @throws {QuireError} for a value out of range. */
  keys(layer: number, range: RowRange): Promise<Float32Array> {
    return this.#rows(layer, "key", range);
  }

  /** As {@link keys}. */
  values(layer: number, range: RowRange): Promise<Float32Array> {
    return this.#rows(layer, "value", range);
  }

  /** What attention gave, f32 `[headCount, headDim]`; only with {@link hasOutputs}. @throws {QuireError} for a value out of range. */
  output(layer: number, row: number): Promise<Float32Array> {
    return this.#rows(layer, "output", { first: row, count: 1 });
  }

  /** Closes the file. */
  close(): Promise<void> {
    return this.#tensors.close();
  }

  async #rows(layer: number, part: Part, range: RowRange): Promise<Float32Array> {
    const tensor = tensorName(this.layers[layer] as number, part);
    const values = await this.#tensors.readRows(tensor, range);
    const bad = values.findIndex((value) => !(Math.abs(value) <= TRACE_LIMITS.value));
    if (bad < 0) return values;
    const row = range.first + Math.floor(bad / (values.length / range.count));
    failFile(this.name, `${tensor}: row ${row} has ${values[bad]}; values are finite, at most ${TRACE_LIMITS.value}`);
  }
}

interface ReadHeader {
  shape: TraceShape;
  tokenCount: number;
  positions: number[];
  layers: number[];
  model: string;
  source: string | undefined;
  rope: RopeFrequencies;
  hasOutputs: boolean;
  scale: number;
}

async function readHeader(file: string, tensors: SafetensorsSource): Promise<ReadHeader> {
  const fields = new TraceFields(file, tensors.metadata());
  fields.choice("quire_trace", [FORMAT]);
  const model = fields.text("model") ?? failFile(file, "__metadata__.model is missing: the name of what was captured");
  const source = fields.text("source");
  const positions = fields.numbers("positions", { countMax: TRACE_LIMITS.rows, max: TRACE_LIMITS.tokens - 1 });
  if (positions === undefined) failFile(file, "__metadata__.positions is missing: the position of each query row");
  const layers = fields.numbers("layers", { countMax: TRACE_LIMITS.layers, max: 9_999 }) ?? layersIn(tensors);
  const hasOutputs = tensors.names.some((name) => name.endsWith(".output"));
  const { shape, tokenCount } = checkTensors(file, tensors, { layers, positions, hasOutputs });
  const scale = fields.number("scale", TRACE_LIMITS.scale) ?? 1 / Math.sqrt(shape.headDim);
  const rope = await readRope(file, tensors, fields, shape.headDim);
  return { shape, tokenCount, positions, layers, model, source, rope, hasOutputs, scale };
}

/** Counted from 0, as long as there are keys. */
function layersIn(tensors: SafetensorsSource): number[] {
  const layers: number[] = [];
  while (tensors.shape(tensorName(layers.length, "key")) !== undefined) layers.push(layers.length);
  return layers;
}

function checkTensors(
  file: string,
  tensors: SafetensorsSource,
  expected: { layers: readonly number[]; positions: readonly number[]; hasOutputs: boolean },
): { shape: TraceShape; tokenCount: number } {
  const { layers, positions, hasOutputs } = expected;
  const [first] = layers;
  if (first === undefined) failFile(file, `has no tensor ${tensorName(0, "key")}, and __metadata__.layers names none`);
  if (layers.length > TRACE_LIMITS.layers) failFile(file, `has more than ${TRACE_LIMITS.layers} layers`);
  const [tokenCount, kvHeadCount, headDim] = sized(file, tensors, tensorName(first, "key"), [
    TRACE_LIMITS.tokens,
    TRACE_LIMITS.heads,
    TRACE_LIMITS.headDim,
  ]);
  const query = tensorName(first, "query");
  const [, headCount] = sized(file, tensors, query, [TRACE_LIMITS.rows, TRACE_LIMITS.heads, TRACE_LIMITS.headDim]);
  if (headDim % 4 !== 0) failFile(file, `head_dim ${headDim} is no multiple of 4`);
  if (headCount % kvHeadCount !== 0) failFile(file, `${headCount} heads are no multiple of ${kvHeadCount} KV heads`);
  const last = positions.at(-1) as number;
  if (last >= tokenCount) {
    failFile(file, `__metadata__.positions: ${last} is beyond the ${tokenCount} tokens of ${tensorName(first, "key")}`);
  }
  const kv = [tokenCount, kvHeadCount, headDim];
  const rows = [positions.length, headCount, headDim];
  const parts = PARTS.filter((part) => part !== "output" || hasOutputs);
  const wanted = new Map(
    layers.flatMap((layer) =>
      parts.map((part) => [tensorName(layer, part), part === "key" || part === "value" ? kv : rows] as const),
    ),
  );
  for (const [tensor, shape] of wanted) {
    const found = tensors.shape(tensor);
    if (found === undefined) failFile(file, `tensor ${tensor} is missing`);
    if (found.join() !== shape.join()) {
      failFile(file, `tensor ${tensor} has shape [${found.join(", ")}], not [${shape.join(", ")}]`);
    }
  }
  const stray = tensors.names.find((name) => !wanted.has(name) && name !== FREQUENCIES);
  if (stray !== undefined) {
    failFile(file, `tensor ${stray.slice(0, 120)} is none of a trace, or of a layer that is not named`);
  }
  return { shape: { layerCount: layers.length, headCount, kvHeadCount, headDim }, tokenCount };
}

/** The three sizes of a tensor, each from 1 to its largest. */
function sized(
  file: string,
  tensors: SafetensorsSource,
  tensor: string,
  largest: readonly [number, number, number],
): [number, number, number] {
  const shape = tensors.shape(tensor);
  if (shape === undefined) failFile(file, `tensor ${tensor} is missing`);
  if (shape.length !== 3 || shape.some((size, axis) => size < 1 || size > (largest[axis] as number))) {
    failFile(
      file,
      `tensor ${tensor} has shape [${shape.join(", ")}]; at most [${largest.join(", ")}], at least 1 each`,
    );
  }
  return shape as readonly number[] as [number, number, number];
}

async function readRope(
  file: string,
  tensors: SafetensorsSource,
  fields: TraceFields,
  headDim: number,
): Promise<RopeFrequencies> {
  const isPending = fields.choice("rope", ["applied", "pending"]) === "pending";
  const magnitude = fields.number("rope_magnitude", { min: 1e-3, max: 1e3 });
  const shape = tensors.shape(FREQUENCIES);
  if (!isPending) {
    const stray = shape === undefined ? undefined : `tensor ${FREQUENCIES}`;
    const unused = magnitude === undefined ? stray : "__metadata__.rope_magnitude";
    if (unused !== undefined) failFile(file, `${unused} has no use where __metadata__.rope is "applied"`);
    return { inverse: new Float32Array(headDim / 2), magnitude: 1 };
  }
  if (shape === undefined) failFile(file, `tensor ${FREQUENCIES} is missing: __metadata__.rope is "pending"`);
  if (shape.join() !== String(headDim / 2)) {
    failFile(file, `tensor ${FREQUENCIES} has shape [${shape.join(", ")}], not [${headDim / 2}]`);
  }
  const inverse = await tensors.read(FREQUENCIES);
  // A radian a token is the fastest there is; a little more would do no harm.
  if (!inverse.every((value) => value >= 0 && value <= 10))
    failFile(file, `tensor ${FREQUENCIES} is not within 0 to 10`);
  return { inverse, magnitude: magnitude ?? 1 };
}

function tensorName(layer: number, part: Part): string {
  return `layers.${layer}.${part}`;
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}
