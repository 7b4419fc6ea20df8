/** A few ops of a device against the reference: enough to see a driver that computes nonsense before anything is believed of it. */
import type { Device, DeviceBuffer, KvEncoding, MatrixEncoding, SelectionPlan, StepRecorder } from "./contract.ts";

/** How far an op is from the reference, relative to the largest value, and how far it may be. */
export interface DeviceCheck {
  name: string;
  error: number;
  allowed: number;
  ok: boolean;
}

/** Products are sums of hundreds of f32; attention has an exponential, which a GPU may round coarsely. */
const ALLOWED = { product: 5e-6, attention: 1e-4 } as const;
const HEADS = { headCount: 8, kvHeadCount: 2, headDim: 64 } as const;
const CONTEXT_TOKENS = 700;

/** `all` encodings and plans; `few`: int8 products, and attention over int8 pages that are scored and chosen, which a GPU compiles in a moment. */
export type CheckExtent = "all" | "few";

const ENCODINGS = { all: ["f32", "bf16", "int8", "int4"], few: ["int8"] } as const;
const KV_ENCODINGS = { all: ["f32", "int8"], few: ["int8"] } as const;

/** Runs every case on both devices; the caller closes them. */
export async function checkDevice(
  device: Device,
  reference: Device,
  { seed, extent }: { seed: number; extent: CheckExtent },
): Promise<DeviceCheck[]> {
  const rows: DeviceCheck[] = [];
  const compare = async (name: string, allowed: number, run: (device: Device) => Promise<Float32Array>) => {
    const [actual, expected] = [await run(device), await run(reference)];
    const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 1e-30);
    const off = actual.reduce((max, value, at) => Math.max(max, Math.abs(value - (expected[at] as number))), 0);
    const error = actual.every(Number.isFinite) ? off / largest : Number.POSITIVE_INFINITY;
    rows.push({ name, error, allowed, ok: error <= allowed });
  };
  for (const encoding of ENCODINGS[extent]) {
    for (const count of [1, 40]) {
      await compare(`${encoding} product, ${count} rows`, ALLOWED.product, (on) => product(on, encoding, count, seed));
    }
  }
  const budget = { budgetPages: 16, sinkPages: 1, recentPages: 2 };
  const scorer = { summary: "min-max", radiusWeight: 1 } as const;
  const plans: Record<string, SelectionPlan> = {
    dense: { kind: "dense" },
    quest: { kind: "pages", ...budget, scorer, scope: "kv-head", combine: "max" },
    tokens: { kind: "tokens", ...budget, candidatePages: 24, scorer },
  };
  for (const encoding of KV_ENCODINGS[extent]) {
    for (const [name, plan] of Object.entries(plans)) {
      if (extent === "few" && name !== "quest") continue;
      await compare(`${encoding} attention, ${name}`, ALLOWED.attention, (on) => attention(on, encoding, plan, seed));
    }
  }
  return rows;
}

function noise(count: number, seed: number): Float32Array<ArrayBuffer> {
  // A linear congruential generator (Numerical Recipes) is random enough for sums to be compared.
  let state = seed >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

function upload(device: Device, values: Float32Array<ArrayBuffer>): DeviceBuffer {
  const buffer = device.buffer("values", values.byteLength);
  device.write(buffer, 0, new Uint8Array(values.buffer));
  return buffer;
}

async function download(device: Device, buffer: DeviceBuffer): Promise<Float32Array> {
  return new Float32Array((await device.read(buffer, 0, buffer.bytes)).buffer);
}

async function product(device: Device, encoding: MatrixEncoding, rows: number, seed: number): Promise<Float32Array> {
  const shape = { outWidth: 200, inWidth: 300 };
  const matrix = device.matrix("weights", encoding, shape, noise(shape.outWidth * shape.inWidth, seed));
  const x = upload(device, noise(rows * shape.inWidth, seed + 1));
  const out = device.buffer("out", rows * shape.outWidth * 4);
  const recorder = device.begin([]);
  recorder.matmul({ out, x, matrix, rows });
  await recorder.submit();
  return download(device, out);
}

/** The last two rows behind a context that is filled in the step before. */
async function attention(
  device: Device,
  encoding: KvEncoding,
  plan: SelectionPlan,
  seed: number,
): Promise<Float32Array> {
  const { headCount, kvHeadCount, headDim } = HEADS;
  const blockCapacity = Math.ceil(CONTEXT_TOKENS / 64);
  const pool = device.kvPool({
    ...{ layerCount: 1, kvHeadCount, headDim, encoding, summaryKinds: ["min-max"] },
    ...{ blockCount: blockCapacity, openSlotCount: blockCapacity, summarySlotCount: blockCapacity },
  });
  const angles = (CONTEXT_TOKENS * headDim) / 2;
  const rope = {
    cos: upload(device, noise(angles, seed + 2)),
    sin: upload(device, noise(angles, seed + 3)),
    positionCount: CONTEXT_TOKENS,
  };
  const ids = Int32Array.from({ length: blockCapacity }, (_, block) => block);
  const step = async (position: number, rowCount: number, use: (ops: Ops) => void): Promise<void> => {
    const openSlots = ids.slice(Math.floor(position / 64), Math.floor((position + rowCount - 1) / 64) + 1);
    const place = { blockIds: ids, blockCapacity, summarySlots: ids, openSlots, groupStarts: Int32Array.of(0) };
    const [q, k, v] = [headCount, kvHeadCount, kvHeadCount].map((heads, index) =>
      upload(device, noise(rowCount * heads * headDim, seed + position + index)),
    );
    const recorder = device.begin([{ ...place, position, rowCount, plan }]);
    const common = { pool, layer: 0, headCount, q: q! };
    recorder.append({ ...common, k: k!, v: v!, rope });
    use({ recorder, common });
    await recorder.submit();
  };
  await step(0, CONTEXT_TOKENS - 2, () => {});
  const out = device.buffer("attended", 2 * headCount * headDim * 4);
  await step(CONTEXT_TOKENS - 2, 2, ({ recorder, common }) => {
    recorder.select(common);
    recorder.attend({ ...common, out });
  });
  return download(device, out);
}

interface Ops {
  recorder: StepRecorder;
  common: Parameters<StepRecorder["select"]>[0];
}
