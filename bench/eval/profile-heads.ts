/**
 * Which KV heads look back for what they copy. A text of random tokens is read twice; nothing but the first reading tells what comes next in the
 * second. A head that copies looks, from a token of the second reading, at the same token of the first (RazorAttention's echo) or at the one behind
 * it (induction). Its score is the share of its attention that lies there: no training, no gradient, one dense pass.
 */
import { setImmediate } from "node:timers/promises";
import { BLOCK_TOKENS, type DeviceBuffer } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { drawOne, seededRandom } from "../random.ts";
import { ExactAttention } from "./exact-attention.ts";
import type { EvalSubject } from "./subject.ts";

/** Rows of the second reading between two that are looked at. */
const STRIDE = 4;

/** `values[index]`; whoever calls knows that it is there. */
function at(values: ArrayLike<number>, index: number): number {
  return values[index] as number;
}

/** Of one row's weights, the share on the two tokens that a head which copies looks at; `textTokens`: how far back the first reading is. */
export function copyingShare(weights: ArrayLike<number>, textTokens: number): number {
  const echo = weights.length - 1 - textTokens;
  return at(weights, echo) + at(weights, echo + 1);
}

/**
 * Scores `[layer][kvHead]`, 0 to 1: the mean share over the rows, of the best query head of the group. `ids`: to draw the text from, each at most
 * once in a text where there are enough; `textTokens`: whole blocks.
 * @throws {DOMException} `AbortError` when the signal fires.
 */
export async function profileHeads(
  { runner, device, capture, sequence }: EvalSubject,
  { ids, textTokens, seed, signal }: { ids: readonly number[]; textTokens: number; seed: number; signal: AbortSignal },
): Promise<number[][]> {
  assert(textTokens % BLOCK_TOKENS === 0, "a text is whole blocks");
  const { layerCount, headCount, kvHeadCount } = runner.config;
  const text = drawText(ids, textTokens, seed);
  sequence.rewind(0);
  await sequence.read(text, signal);
  const exact = new ExactAttention(runner.pool);
  const sums = Array.from({ length: layerCount }, () => new Float64Array(headCount));
  let rowCount = 0;
  // The last token's successor is not in the first reading.
  for (const [index, id] of text.slice(0, -1).entries()) {
    await setImmediate();
    signal.throwIfAborted();
    const isLookedAt = index % STRIDE === STRIDE - 1;
    capture.isOn = isLookedAt;
    await sequence.advance(id, { kind: "dense" });
    capture.isOn = false;
    if (!isLookedAt) continue;
    await exact.moveTo(sequence.slice(sequence.length - 1, 1, { kind: "dense" }));
    for (const [layer, sum] of sums.entries()) {
      const { weights } = exact.attend(layer, await floats(device, capture.queries[layer] as DeviceBuffer));
      for (const [head, row] of weights.entries()) sum[head] = at(sum, head) + copyingShare(row, textTokens);
    }
    rowCount += 1;
  }
  const group = headCount / kvHeadCount;
  return sums.map((sum) =>
    Array.from({ length: kvHeadCount }, (_, kvHead) => {
      return Math.max(...sum.subarray(kvHead * group, (kvHead + 1) * group)) / rowCount;
    }),
  );
}

/** Random tokens, none of which comes twice while there are others. */
function drawText(ids: readonly number[], count: number, seed: number): number[] {
  const random = seededRandom(seed);
  let rest: number[] = [];
  return Array.from({ length: count }, () => {
    if (rest.length === 0) rest = [...new Set(ids)];
    const id = drawOne(random, rest);
    rest[rest.indexOf(id)] = rest.at(-1) as number;
    rest.pop();
    return id;
  });
}

async function floats(device: EvalSubject["device"], buffer: DeviceBuffer): Promise<Float32Array> {
  const bytes = await device.read(buffer, 0, buffer.bytes);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}
