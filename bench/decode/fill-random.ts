/**
 * Fills a pool with the KV of a long context that nobody read: seeded normal keys and values go through the device's own `append`, so that
 * blocks, scales and summaries are what a prefill would leave, in seconds instead of minutes.
 */
import { BLOCK_TOKENS, type DeviceBuffer } from "../../kernels/contract.ts";
import { ropeFrequencies } from "../../models/rope-frequencies.ts";
import { RopePositions } from "../../models/rope-table.ts";
import { assert } from "../../protocol/assert.ts";
import { type Random, seededRandom } from "../random.ts";
import { type BenchModel, CHUNK_ROWS, FILL_ROW_SETS, openSlotsFor } from "./bench-model.ts";

/** What is filled: a pool, the device it is on, and one sequence's places in it. */
export interface Fillable extends Pick<BenchModel, "config" | "device" | "capacityTokens" | "blockTable"> {
  runner: Pick<BenchModel["runner"], "pool">;
}

/**
 * `random`: every key is drawn alone. `drift`: what keys of a text have in common is there too: a part that stays for some hundred tokens (a walk
 * that forgets with {@link DRIFT_TOKENS}), a part that a KV head's keys all have, and the rest drawn alone.
 */
export type FilledKeys = "random" | "drift";

/** Tokens after which a walk has forgotten where it was. */
const DRIFT_TOKENS = 256;
/** Variances of the three parts of a drifting key. */
const DRIFT_SHARES = { walk: 0.5, common: 0.25, own: 0.25 };
/** A walk of its own for so many sets of rows: less would bring the same place back too often. */
const DRIFT_ROW_SETS = 31;

/** Fills positions 0 to `tokenCount` (rounded up to whole blocks), every layer. The same seed gives the same bytes. */
export async function fillRandom(
  model: Fillable,
  seed: number,
  tokenCount: number,
  keys: FilledKeys = "random",
): Promise<void> {
  const { config, device, runner } = model;
  const end = Math.ceil(tokenCount / BLOCK_TOKENS) * BLOCK_TOKENS;
  assert(end <= model.capacityTokens, `the pool holds ${model.capacityTokens} tokens, not ${end}`);
  if (end === 0) return;
  const rope = new RopePositions(device, { ...ropeFrequencies(config), positionCount: end });
  rope.ensure(0, end - 1);
  const random = seededRandom(seed, 1);
  const keyBytes = CHUNK_ROWS * config.kvHeadCount * config.headDim * 4;
  const queryBytes = CHUNK_ROWS * config.headCount * config.headDim * 4;
  const q = device.buffer("fill.q", queryBytes);
  const setCount = keys === "random" ? FILL_ROW_SETS : DRIFT_ROW_SETS;
  const make = keys === "random" ? normalBuffer : driftBuffer;
  const rows = Array.from({ length: setCount }, (_, i) => make(model, `fill.${i}`, keyBytes, random));
  try {
    for (let position = 0; position < end; position += CHUNK_ROWS) {
      const rowCount = Math.min(CHUNK_ROWS, end - position);
      const recorder = device.begin([
        {
          ...model.blockTable(),
          ...{ position, rowCount, openSlots: openSlotsFor(position, rowCount) },
          ...{ groupStarts: Int32Array.of(0), plan: { kind: "dense" } },
        },
      ]);
      for (let layer = 0; layer < config.layerCount; layer++) {
        const [k, v] = [rows[(position / CHUNK_ROWS + layer) % setCount]!, rows[(layer + 3) % setCount]!];
        recorder.append({ pool: runner.pool, layer, headCount: config.headCount, q, k, v, rope: rope.table });
      }
      await recorder.submit();
    }
  } finally {
    for (const buffer of [q, ...rows, rope.table.cos, rope.table.sin]) device.release(buffer);
  }
}

function normalBuffer({ device }: Fillable, label: string, bytes: number, random: Random): DeviceBuffer {
  const values = new Float32Array(bytes / 4);
  for (let i = 0; i < values.length; i++) values[i] = drawNormal(random);
  const buffer = device.buffer(label, bytes);
  device.write(buffer, 0, new Uint8Array(values.buffer));
  return buffer;
}

function driftBuffer({ device, config }: Fillable, label: string, bytes: number, random: Random): DeviceBuffer {
  const width = config.kvHeadCount * config.headDim;
  // The same for every buffer: the width's own seed.
  const commonRandom = seededRandom(width, 2);
  const common = Float64Array.from({ length: width }, () => drawNormal(commonRandom));
  const walk = Float64Array.from({ length: width }, () => drawNormal(random));
  const stay = Math.exp(-1 / DRIFT_TOKENS);
  const go = Math.sqrt(1 - stay ** 2);
  const [walkScale, commonScale, ownScale] = Object.values(DRIFT_SHARES).map(Math.sqrt) as [number, number, number];
  const values = Float32Array.from({ length: bytes / 4 }, (_, i) => {
    const channel = i % width;
    walk[channel] = stay * walk[channel]! + go * drawNormal(random);
    return walkScale * walk[channel]! + commonScale * common[channel]! + ownScale * drawNormal(random);
  });
  const buffer = device.buffer(label, bytes);
  device.write(buffer, 0, new Uint8Array(values.buffer));
  return buffer;
}

/** Standard normal (Box-Muller). */
export function drawNormal(random: Random): number {
  return Math.sqrt(-2 * Math.log1p(-random())) * Math.cos(2 * Math.PI * random());
}
