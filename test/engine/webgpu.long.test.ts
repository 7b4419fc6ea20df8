/// <reference types="@webgpu/types" />
/** The engine on the GPU device: what house-0 answers greedily, and what a second engine resumes, is what the CPU device gives. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type EngineServer, type EngineServerOptions, startEngineServer } from "../../engine/server.ts";
import { DeviceLostError } from "../../kernels/device-lost.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { markExercised } from "../exercised.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { generate, request, type TestEngine, type TurnResult } from "./harness.ts";

const [BOS, USER, ASSISTANT, END] = [256, 257, 258, 259];
const PASSAGE =
  "The code of Kelino is 7350. The river was cold that year and the boats stayed in the harbour. " +
  "The code of Mogari is 6072. Nobody came to the market but the old man with his dog. ";
const FIRST = [BOS, USER, ...Buffer.from(`${PASSAGE}What is the code of Kelino?`), ASSISTANT] as number[];
const SECOND = [USER, ...Buffer.from("What is the code of Mogari?"), ASSISTANT] as number[];

const hasAdapter = (await adapterForTests()) !== undefined;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quire-webgpu-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function open(device: "wasm" | "webgpu", onDeviceLost?: EngineServerOptions["onDeviceLost"]): Promise<EngineServer> {
  return startEngineServer({
    onDeviceLost,
    ...{ host: "127.0.0.1", port: 0, modelFolder: "weights/house-0", storeUrl: `fs:${join(folder, device)}`, env: {} },
    ...{ device, weightEncoding: "int8", kvEncoding: "int8", summaryKinds: ["min-max", "mean-deviation"] },
    ...{ poolBytes: 16 * 1024 * 1024, contextTokensMax: 1024, settings: { manifestCommitMs: 0, segmentTokens: 64 } },
    log: () => {},
  });
}

/** Two turns of one session, each on an engine of its own over one store; the second selects within 128 tokens. */
async function twoTurns(device: "wasm" | "webgpu"): Promise<TurnResult[]> {
  const base = { model: "house-0", stopTokens: [END], maxTokens: 28, session: { id: "s" } };
  const one = await open(device);
  const first = await generate(one.opened as TestEngine, request({ ...base, tokens: idsToBytes(FIRST) }));
  await one.stop(20_000);
  const log = [...FIRST, ...first.ids, ...SECOND];
  const two = await open(device);
  const second = await generate(
    two.opened as TestEngine,
    request({
      ...{ ...base, tokens: idsToBytes(log), turnStart: FIRST.length + first.ids.length, spans: first.spans },
      selection: { policy: "quest", budgetTokens: 128, exact: true },
    }),
  );
  await two.stop(20_000);
  return [first, second];
}

describe.skipIf(!hasAdapter)("house-0 through the engine on the GPU device", () => {
  markExercised("device", "webgpu, in an engine");

  it("answers as on the CPU, and resumes from the store with selection", async () => {
    const [cpu, gpu] = [await twoTurns("wasm"), await twoTurns("webgpu")];
    expect(Buffer.from(gpu[0]!.ids.filter((id) => id < 256)).toString()).toContain("7350");
    expect(gpu.map(({ ids }) => ids)).toEqual(cpu.map(({ ids }) => ids));
    const [cpuUsage, usage] = [cpu[1]!.usage, gpu[1]!.usage];
    expect(usage.cachedTokens).toBe(cpuUsage.cachedTokens);
    expect(usage.cachedTokens).toBeGreaterThan(128);
    expect(usage.pagesFetched).toBeGreaterThan(0);
    expect(usage.pagesSelected).toBeGreaterThan(0);
    expect(usage.pagesSelected).toBeLessThan(usage.pagesInContext);
    // Bytes are not compared: the engine cuts prompts by the time a step takes, and a GPU finishes a step that a miss voids.
    expect(usage.kvBytesRead).toBeGreaterThan(0);
    expect(usage.metadataBytesRead).toBeGreaterThan(0);
    expect(usage.pagesMissed).toBe(0);
  }, 600_000);

  it("a GPU that is lost in mid-turn ends its engine; another engine gives the rest of the same text", async () => {
    const asked = { model: "house-0", stopTokens: [END], maxTokens: 28 };
    const gpu = await lostGpu();
    const losses: Error[] = [];
    const one = await open("webgpu", (error) => void losses.push(error));
    const received: number[] = [];
    const ends: unknown[] = [];
    one.opened.engine.submit(request({ ...asked, tokens: idsToBytes(FIRST) }), {
      token(id) {
        received.push(id);
        if (received.length === 5) gpu.lose();
      },
      done: (reason) => void ends.push(reason),
      failed: (error) => void ends.push(error),
    });
    await expect.poll(() => losses.length, { timeout: 200_000 }).toBe(1);
    expect(losses[0]).toBeInstanceOf(DeviceLostError);
    expect(ends).toEqual([]);
    gpu.restore();
    await one.stop(0);
    const two = await open("webgpu");
    const tokens = idsToBytes([...FIRST, ...received]);
    const rest = await generate(
      two.opened as TestEngine,
      request({ ...asked, tokens, maxTokens: 28 - received.length, replyStart: FIRST.length }),
    );
    const whole = await generate(two.opened as TestEngine, request({ ...asked, tokens: idsToBytes(FIRST) }));
    await two.stop(20_000);
    expect([...received, ...rest.ids]).toEqual(whole.ids);
    expect(Buffer.from(whole.ids.filter((id) => id < 256)).toString()).toContain("7350");
  }, 600_000);
});

/** Devices that are opened from now on are lost when told so. */
async function lostGpu(): Promise<{ lose(): void; restore(): void }> {
  const gpu = (globalThis as unknown as Record<symbol, GPU>)[Symbol.for("quire.webgpu")] as GPU;
  const requestAdapter = gpu.requestAdapter.bind(gpu);
  const opened: GPUDevice[] = [];
  gpu.requestAdapter = async (options) => {
    const adapter = await requestAdapter(options);
    const requestDevice = adapter?.requestDevice.bind(adapter);
    if (adapter && requestDevice)
      adapter.requestDevice = async (descriptor) => {
        const device = await requestDevice(descriptor);
        opened.push(device);
        return device;
      };
    return adapter;
  };
  return {
    lose: () => {
      for (const device of opened) device.destroy();
    },
    restore: () => {
      gpu.requestAdapter = requestAdapter;
    },
  };
}
