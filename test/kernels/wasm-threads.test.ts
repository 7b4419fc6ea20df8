import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { describe, expect, it, vi } from "vitest";
import type { Device, SelectionPlan } from "../../kernels/contract.ts";
import { DeviceLostError } from "../../kernels/device-lost.ts";
import { Arena, WasmHeap } from "../../kernels/wasm/heap.ts";
import type { Machine } from "../../kernels/wasm/machine.ts";
import { WasmBuffer } from "../../kernels/wasm/memory.ts";
import { loadKernels, openWasmDevice } from "../../kernels/wasm/open-wasm.ts";
import { OP } from "../../kernels/wasm/ops.ts";
import { WasmRecorder } from "../../kernels/wasm/recorder.ts";
import { ThreadPool } from "../../kernels/wasm/thread-pool.ts";
import { markExercised } from "../exercised.ts";
import { expectSameBits } from "./support/compare.ts";
import { upload } from "./support/floats.ts";
import { Random, SEED } from "./support/random.ts";
import { makeSequence, Stage, type StageShape } from "./support/stage.ts";

const MEMORY_BYTES = 64 * 1024 * 1024;
/** Where the threads find their scratch, as assembly/control.ts has it. */
const SCRATCH = 1024;

async function openMachine(threads: number, stallMsMax = 5_000): Promise<Machine> {
  const heap = new WasmHeap(MEMORY_BYTES);
  const pool = await ThreadPool.start({ heap, module: await loadKernels(), threads, stallMsMax, sharedWorkMin: 0 });
  return { heap, threads: pool, opArena: new Arena(heap) };
}

describe("wasm thread pool", () => {
  markExercised("device", "wasm, thread pool");

  it.each([2, 3])("10,000 tiny ops on %i threads, every task once and before the op returns", async (threads) => {
    const { heap, threads: pool } = await openMachine(threads);
    const count = 12;
    const from = heap.allocate(count * 4);
    const to = heap.allocate(count * 4);
    const order = heap.allocate(count * 4);
    heap.words.set(
      Array.from({ length: count }, (_, index) => count - 1 - index),
      order / 4,
    );
    for (let step = 0; step < 10_000; step++) {
      const values = Array.from({ length: count }, (_, index) => step * count + index);
      heap.words.set(values, from / 4);
      heap.words.fill(-1, to / 4, to / 4 + count);
      pool.run(OP.gatherRows, { taskCount: count, work: count, args: [to, from, order, count, 1, count] });
      const got = heap.words.subarray(to / 4, to / 4 + count);
      for (let index = 0; index < count; index++) {
        if (got[index] !== values[count - 1 - index]) expect.fail(`step ${step}, element ${index}: ${got[index]}`);
      }
    }
    await pool.close();
  });

  it("an op after a pause finds workers that have gone to sleep", async () => {
    const { heap, threads: pool } = await openMachine(3);
    const at = heap.allocate(64);
    for (let round = 0; round < 5; round++) {
      await new Promise((resolve) => setTimeout(resolve, 30));
      heap.floats.fill(round, at / 4, at / 4 + 16);
      pool.run(OP.siluMul, { taskCount: 4, work: 1, args: [at, at, at, 16, 4] });
      expect(heap.floats[at / 4 + 15]).toBeCloseTo((round * round) / (1 + Math.exp(-round)), 4);
    }
    await pool.close();
  });

  it("a trap is an error at once, and of every later op", async () => {
    const { threads: pool } = await openMachine(2);
    expect(() => pool.run(9999, { taskCount: 8, work: 1, args: [] })).toThrow(/trapped/);
    expect(() => pool.run(OP.siluMul, { taskCount: 1, work: 1, args: [] })).toThrow(/trapped/);
    expect(pool.failure).toBeInstanceOf(DeviceLostError);
    await pool.close();
  });

  it.each([
    ["dies in a task and says so", 20_000, /trapped in a worker/],
    ["vanishes in a task", 400, /stopped answering/],
  ])("a thread that %s makes the step reject, not hang", async (_, stallMsMax, message) => {
    const machine = await openMachine(2, stallMsMax);
    const thief = stealOneTask(machine.heap, stallMsMax > 400);
    await once(thief, "message");
    const width = 4096;
    const rows = 512;
    const x = new WasmBuffer(machine.heap, "x", rows * width * 4);
    const out = new WasmBuffer(machine.heap, "out", rows * width * 4);
    const weight = new WasmBuffer(machine.heap, "weight", width * 4);
    let ended = 0;
    const arenas = { step: new Arena(machine.heap), selection: new Arena(machine.heap) };
    const step = new WasmRecorder(machine, arenas, [], () => {
      ended++;
    });
    // The thief needs one task of many: ops go on until it has had its turn.
    for (let op = 0; op < 2_000 && machine.threads.failure === undefined; op++) {
      step.rmsNorm({ out, x, weight, rows, width, eps: 1e-5 });
    }
    step.rmsNorm({ out, x, weight, rows, width, eps: 1e-5 });
    await expect(step.submit()).rejects.toThrow(message);
    await expect(step.submit()).rejects.toThrow("the step was submitted");
    expect(ended).toBe(1);
    expect(machine.threads.failure?.code).toBe("engine_failed");
    await thief.terminate();
    await machine.threads.close();
  });

  it("a thread that dies between two ops fails the next step", async () => {
    const started: Worker[] = [];
    const note = (worker: Worker): void => void started.push(worker);
    process.on("worker", note);
    const device = await openWasmDevice({ threads: 2, sharedWorkMin: 0 });
    process.off("worker", note);
    expect(started.length).toBe(1);
    await started[0]!.terminate();
    const step = device.begin([]);
    const buffer = device.buffer("x", 64);
    step.siluMul({ out: buffer, gate: buffer, up: device.buffer("up", 64), rows: 1, width: 16 });
    const failed = step.submit();
    await expect(failed).rejects.toThrow("A worker thread died.");
    // Nothing on the device works again: an engine that stayed would fail every turn it is sent.
    await expect(failed).rejects.toBeInstanceOf(DeviceLostError);
    await expect(device.begin([]).submit()).rejects.toThrow("A worker thread died.");
    await device.close();
  });

  it("scratch that is not to be had leaves what there was", async () => {
    const heap = new WasmHeap(1024 * 1024);
    const pool = await ThreadPool.start({
      ...{ heap, module: await loadKernels(), threads: 2, stallMsMax: 5_000, sharedWorkMin: 0 },
    });
    const scratch = () => ({ at: heap.words[SCRATCH / 4]! >>> 0, bytes: heap.words[SCRATCH / 4 + 1]! });
    pool.ensureScratch(8_192);
    const before = scratch();
    expect(before.bytes).toBe(8_192);
    expect(() => pool.ensureScratch(2 ** 20)).toThrow("no memory left");
    expect(scratch()).toEqual(before);
    // Nobody else is given it, and the next op that needs as much is refused again.
    const others = Array.from({ length: 8 }, () => heap.allocate(8_192));
    expect(others.filter((at) => at < before.at + 2 * before.bytes && at + 8_192 > before.at)).toEqual([]);
    expect(() => pool.ensureScratch(2 ** 20)).toThrow("no memory left");
    pool.ensureScratch(16_384);
    expect(scratch().bytes).toBe(16_384);
    await pool.close();
  });

  it("a device left open does not keep the process, a closed one ends its threads", { timeout: 20_000 }, async () => {
    const module = new URL("../../kernels/wasm/open-wasm.ts", import.meta.url).href;
    const source = (end: string): string => `
      import { openWasmDevice } from ${JSON.stringify(module)};
      const device = await openWasmDevice({ threads: 3, sharedWorkMin: 0 });
      const buffer = device.buffer("x", 4096);
      const step = device.begin([]);
      step.siluMul({ out: device.buffer("y", 4096), gate: buffer, up: buffer, rows: 1, width: 1024 });
      await step.submit();
      ${end}`;
    for (const end of ["console.log('open');", "await device.close(); console.log('closed');"]) {
      const child = spawn(process.execPath, ["--input-type=module", "-e", source(end)], {
        cwd: fileURLToPath(new URL("../..", import.meta.url)),
        stdio: ["ignore", "pipe", "inherit"],
      });
      let output = "";
      child.stdout.on("data", (chunk: Buffer) => {
        output += chunk.toString();
      });
      const timer = setTimeout(() => child.kill("SIGKILL"), 8_000);
      const [code, signal] = await once(child, "close");
      clearTimeout(timer);
      expect({ code, signal, output }).toEqual({ code: 0, signal: null, output: `${end.match(/'(\w+)'/)?.[1]}\n` });
    }
  });
});

describe("wasm results do not depend on the thread count", () => {
  markExercised("device", "wasm, 1-4 threads");

  it(`a step of prefill and decode, f32 and int8, to the bit (seed ${SEED})`, async () => {
    const [first, ...others] = await Promise.all(
      [1, 2, 3, 4].map(async (threads) => {
        const device = await openWasmDevice({ threads, sharedWorkMin: 0 });
        const bytes = [...(await attentionBytes(device)), ...(await productBytes(device))];
        await device.close();
        return bytes;
      }),
    );
    expect(first!.length).toBe(16);
    for (const [index, other] of others.entries()) {
      other.forEach((bytes, part) => {
        expectSameBits(bytes, first![part]!, `${index + 2} threads, part ${part}`);
      });
    }
  });
});

describe("wasm threads share a layer in which few KV heads choose", () => {
  markExercised("device", "wasm, heads cut into runs");
  const plan: SelectionPlan = {
    ...{ kind: "pages", budgetPages: 40, sinkPages: 1, recentPages: 2, scope: "kv-head", combine: "max" },
    scorer: { summary: "min-max", radiusWeight: 1 },
    // The second layer's heads are alike.
    retrievalHeads: [true, false, true, false, false, false, false, false],
  };

  it.each(["f32", "int8"] as const)(`%s, to the bit as by whole heads (seed ${SEED})`, async (encoding) => {
    const queue = vi.spyOn(ThreadPool.prototype, "queue");
    const shape: StageShape = {
      layerCount: 2,
      headCount: 8,
      kvHeadCount: 4,
      headDim: 12,
      encoding,
      summaryKinds: ["min-max"],
    };
    const sequence = makeSequence(shape, 2700, SEED);
    const absent = [{ block: 9 }, { block: 30, layer: 0 }];
    const results = [];
    for (const threads of [1, 2, 3]) {
      const device = await openWasmDevice({ threads, sharedWorkMin: 0 });
      const stage = new Stage(device, shape, { blockCapacity: 43 });
      await stage.fill(sequence, 2699);
      queue.mockClear();
      const { out, readback } = await stage.run([{ sequence, position: 2699, rowCount: 1, plan, absent }]);
      const taskCounts = queue.mock.calls.flatMap(([op, { taskCount }]) => (op === OP.attend ? [taskCount] : []));
      results.push({ out: out[0]!, misses: readback.misses, taskCounts });
      await device.close();
    }
    queue.mockRestore();
    const [whole, ...cut] = results as [(typeof results)[0], ...typeof results];
    // Six splits: the first layer's heads have 40, 3, 40 and 3 pages, cut for two threads into runs of two splits, for three of one.
    expect(results.map(({ taskCounts }) => taskCounts)).toEqual([
      [4, 4],
      [4 * 3, 4],
      [4 * 6, 4],
    ]);
    for (const { out, misses } of cut) {
      expect(misses).toEqual(whole.misses);
      for (const layer of [0, 1]) expectSameBits(out[layer]!, whole.out[layer]!, `layer ${layer}`);
    }
  });
});

describe("wasm results do not depend on where memory lies", () => {
  markExercised("device", "wasm, beyond 2 GiB");

  it(`beyond 2 GiB, where an address is a negative 32-bit number, to the bit (seed ${SEED})`, async () => {
    const [low, high] = await Promise.all(
      [0, 2 ** 31].map(async (offset) => {
        const device = await openWasmDevice({ threads: 2, sharedWorkMin: 0 });
        // Never written, so it takes address space and no memory.
        device.buffer("below", offset);
        const bytes = [...(await attentionBytes(device)), ...(await productBytes(device))];
        await device.close();
        return bytes;
      }),
    );
    high!.forEach((bytes, part) => {
      expectSameBits(bytes, low![part]!, `part ${part}`);
    });
  });
});

/** Outputs of a mixed batch (long decode, prefill, selections of every kind) in both encodings. */
async function attentionBytes(device: Device): Promise<Uint8Array[]> {
  const found: Uint8Array[] = [];
  const pages = { kind: "pages", budgetPages: 12, sinkPages: 1, recentPages: 2 } as const;
  const scorer = { summary: "min-max", radiusWeight: 1 } as const;
  for (const encoding of ["f32", "int8"] as const) {
    const shape: StageShape = {
      ...{ layerCount: 1, headCount: 6, kvHeadCount: 2, headDim: 20, encoding },
      summaryKinds: ["min-max", "mean-deviation"],
    };
    const stage = new Stage(device, shape, { blockCapacity: 70 });
    const sequences = [1000, 700, 900, 650].map((length, index) => makeSequence(shape, length, SEED + index));
    const starts = [999, 600, 898, 560];
    for (const [index, sequence] of sequences.entries()) await stage.fill(sequence, starts[index]!);
    const { out } = await stage.run([
      { sequence: sequences[0]!, position: 999, rowCount: 1 },
      {
        ...{ sequence: sequences[1]!, position: 600, rowCount: 100, groupStarts: [0, 30, 60] },
        plan: { ...pages, scorer, scope: "kv-head", combine: "softmax-sum" },
      },
      {
        ...{ sequence: sequences[2]!, position: 898, rowCount: 2 },
        plan: { ...pages, scorer, scope: "layer", combine: "max" },
      },
      {
        ...{ sequence: sequences[3]!, position: 560, rowCount: 90, groupStarts: [0, 45] },
        plan: { ...pages, kind: "tokens", candidatePages: 20, scorer },
      },
    ]);
    found.push(...out.map((layers) => new Uint8Array(layers[0]!.buffer)));
  }
  return found;
}

async function productBytes(device: Device): Promise<Uint8Array[]> {
  const random = new Random(SEED);
  const found: Uint8Array[] = [];
  const shape = { outWidth: 333, inWidth: 210 };
  const weights = random.normals(shape.outWidth * shape.inWidth);
  for (const rows of [1, 70]) {
    const x = upload(device, "x", random.normals(rows * shape.inWidth));
    for (const encoding of ["f32", "bf16", "int8", "int4"] as const) {
      const matrix = device.matrix("matrix", encoding, shape, weights);
      const out = device.buffer("out", rows * shape.outWidth * 4);
      const step = device.begin([]);
      step.matmul({ out, x, matrix, rows });
      await step.submit();
      found.push(await device.read(out, 0, out.bytes));
    }
  }
  return found;
}

/** A thread that claims one task as a worker would, and never finishes it. Offsets are those of assembly/control.ts. */
function stealOneTask(heap: WasmHeap, saysSo: boolean): Worker {
  const source = `
    const { parentPort, workerData } = require("node:worker_threads");
    const words = new Int32Array(workerData.memory.buffer, 0, 1024);
    parentPort.postMessage("ready");
    for (;;) {
      if (Atomics.load(words, 16) <= 0) continue;
      if (Atomics.sub(words, 16, 1) > 0) break;
    }
    if (workerData.saysSo) { Atomics.store(words, 112, 1); Atomics.notify(words, 32); }
    setInterval(() => {}, 1000);`;
  return new Worker(source, { eval: true, workerData: { memory: heap.memory, saysSo } });
}
