/**
 * Fills a pool with the KV of a long context that nobody read: seeded normal keys and values go through the device's own `append`, so that
 * blocks, scales and summaries are what a prefill would leave, in seconds instead of minutes.
 */
import { BLOCK_TOKENS, type DeviceBuffer } from "../../kernels/contract.ts";
import { RopePositions } from "../../models/rope-table.ts";
import { assert } from "../../protocol/assert.ts";
import { type Random, seededRandom } from "../random.ts";
import { type BenchModel, CHUNK_ROWS, FILL_ROW_SETS, openSlotsFor } from "./bench-model.ts";

/** What is filled: a pool, the device it is on, and one sequence's places in it. */
export interface Fillable extends Pick<BenchModel, "config" | "device" | "capacityTokens" | "blockTable"> {
  runner: Pick<BenchModel["runner"], "pool">;
}

/** Fills positions 0 to `tokenCount` (rounded up to whole blocks), every layer. The same seed gives the same bytes. */
export async function fillRandom(model: Fillable, seed: number, tokenCount: number): Promise<void> {
  const { config, device, runner } = model;
  const end = Math.ceil(tokenCount / BLOCK_TOKENS) * BLOCK_TOKENS;
  assert(end <= model.capacityTokens, `the pool holds ${model.capacityTokens} tokens, not ${end}`);
  if (end === 0) return;
  const rope = new RopePositions(device, { ...config, contextTokensMax: end });
  rope.ensure(0, end - 1);
  const random = seededRandom(seed, 1);
  const keyBytes = CHUNK_ROWS * config.kvHeadCount * config.headDim * 4;
  const queryBytes = CHUNK_ROWS * config.headCount * config.headDim * 4;
  const q = device.buffer("fill.q", queryBytes);
  const rows = Array.from({ length: FILL_ROW_SETS }, (_, i) => normalBuffer(model, `fill.${i}`, keyBytes, random));
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
        const [k, v] = [rows[(position / CHUNK_ROWS + layer) % FILL_ROW_SETS]!, rows[(layer + 3) % FILL_ROW_SETS]!];
        recorder.append({ pool: runner.pool, layer, headCount: config.headCount, q, k, v, rope: rope.table });
      }
      await recorder.submit();
    }
  } finally {
    for (const buffer of [q, ...rows, rope.table.cos, rope.table.sin]) device.release(buffer);
  }
}

function normalBuffer({ device }: Fillable, label: string, bytes: number, random: Random): DeviceBuffer {
  const values = Float32Array.from({ length: bytes / 4 }, () => drawNormal(random));
  const buffer = device.buffer(label, bytes);
  device.write(buffer, 0, new Uint8Array(values.buffer));
  return buffer;
}

/** Standard normal (Box-Muller). */
export function drawNormal(random: Random): number {
  return Math.sqrt(-2 * Math.log1p(-random())) * Math.cos(2 * Math.PI * random());
}
