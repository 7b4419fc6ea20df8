/** Writes traces, and knows what is in them. */
import { writeFile } from "node:fs/promises";
import { seededRandom } from "../../../../bench/random.ts";

/** A tensor in memory, written as F32 unless it says otherwise. */
export interface WrittenTensor {
  shape: readonly number[];
  data: Float32Array;
  dtype?: string;
}

/** A file that is written as it stands, right or wrong. */
export interface WrittenTrace {
  metadata: unknown;
  tensors: Record<string, WrittenTensor>;
}

/** Widths of a made trace. */
export interface MadeShape {
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  tokens: number;
}

/** Writes a safetensors file. */
export async function writeTrace(path: string, { metadata, tensors }: WrittenTrace): Promise<void> {
  let offset = 0;
  const entries = Object.entries(tensors).map(([name, { shape, data, dtype = "F32" }]) => {
    const data_offsets = [offset, offset + data.byteLength];
    offset += data.byteLength;
    return [name, { dtype, shape, data_offsets }];
  });
  const header = { ...(metadata === undefined ? {} : { __metadata__: metadata }), ...Object.fromEntries(entries) };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const head = new Uint8Array(8);
  new DataView(head.buffer).setBigUint64(0, BigInt(json.byteLength), true);
  await writeFile(
    path,
    Buffer.concat([head, json, ...Object.values(tensors).map(({ data }) => new Uint8Array(data.buffer))]),
  );
}

/** Seeded noise at `positions`, each value within 1; `scale` as metadata says it. */
export function madeTrace(
  { layers, heads, kvHeads, headDim, tokens }: MadeShape,
  positions: readonly number[],
  { seed = 1, ...more }: { seed?: number } & Record<string, string | number> = {},
): WrittenTrace & { metadata: Record<string, string> } {
  const random = seededRandom(seed);
  const noise = (...shape: number[]): WrittenTensor => {
    const size = shape.reduce((a, b) => a * b);
    return { shape, data: Float32Array.from({ length: size }, () => random() * 2 - 1) };
  };
  const tensors: Record<string, WrittenTensor> = {};
  for (let layer = 0; layer < layers; layer++) {
    tensors[`layers.${layer}.query`] = noise(positions.length, heads, headDim);
    tensors[`layers.${layer}.key`] = noise(tokens, kvHeads, headDim);
    tensors[`layers.${layer}.value`] = noise(tokens, kvHeads, headDim);
  }
  const extra = Object.fromEntries(Object.entries(more).map(([name, value]) => [name, String(value)]));
  const metadata = { quire_trace: "1", model: "made", rope: "applied", positions: positions.join(), ...extra };
  return { metadata, tensors };
}
