import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { LoadResult } from "../../bench/load/report.ts";
import { engineRest } from "../../bench/load/rest.ts";
import { type EngineServer, startEngineServer } from "../../engine/server.ts";
import { runBench } from "./run-bench.ts";

const key = "engine-key-for-tests";
let server: EngineServer;
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quire-bench-test-"));
  server = await startEngineServer({
    host: "127.0.0.1",
    port: 0,
    modelFolder: "weights/house-0",
    storeUrl: "memory:",
    env: {},
    device: "wasm",
    threads: 1,
    weightEncoding: "int8",
    kvEncoding: "int8",
    summaryKinds: ["min-max", "mean-deviation"],
    poolBytes: 128 * 1024 * 1024,
    contextTokensMax: 8192,
    engineKey: key,
    log: () => {},
  });
});

afterAll(async () => {
  await server.stop(1_000);
  await rm(folder, { recursive: true, force: true });
});

describe("a load test of an engine without an edge", () => {
  it("holds conversations in token ids: answers are right, and later turns find what the earlier ones left", async () => {
    const path = join(folder, "load.json");
    const flags = ["--rate=4", "--duration=2", "--turns=3", "--think=0.05", "--mix=100,0,0", "--seed=2"];
    const target = ["--target=engine", "--model=weights/house-0", `--url=${server.url}`, `--key=${key}`];
    const run = await runBench(["load", ...target, ...flags, `--json=${path}`]);
    expect(run).toMatchObject({ code: 0 });
    const { totals, turns } = JSON.parse(await readFile(path, "utf8")) as LoadResult;
    expect(totals.turns.completed).toBeGreaterThan(8);
    expect(totals.turns.failed).toBe(0);
    expect(totals.cleanupFailures).toBe(0);
    // house-0 misses one now and then; a broken log or template would miss nearly all.
    expect(totals.answers.right / totals.turns.completed).toBeGreaterThan(0.7);
    const [first, later] = turns;
    expect(first?.cachedShare).toBe(0);
    expect(later?.turns.completed).toBeGreaterThan(3);
    // Not all: a later turn's own question is new, and some bring more text.
    expect(later?.cachedShare).toBeGreaterThan(0.5);
    const { device = 0, host = 0, store = 0 } = later?.cachedShareBySource ?? {};
    expect(device + host + store).toBeCloseTo(later?.cachedShare ?? 0, 5);
  });

  it("leaves nothing in the engine, and what it holds meanwhile is seen", async () => {
    const address = { name: "engine 1", url: server.url };
    const rest = { name: "engine 1", busy: 0, leakedBlocks: 0, leakedSlots: 0 };
    expect(await engineRest([address], new AbortController().signal)).toEqual([rest]);
    const load = ["load", "--target=engine", "--model=weights/house-0", `--url=${server.url}`, `--key=${key}`];
    const run = runBench([...load, "--users=4", "--duration=2", "--mix=100,0,0", "--verify=0"]);
    let busiest = rest;
    const least = () => Math.min(busiest.busy, busiest.leakedBlocks, busiest.leakedSlots);
    let isOver = false;
    const over = (): void => {
      isOver = true;
    };
    void run.then(over, over);
    while (least() === 0 && !isOver) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      // A user's stop does not wait for rest.
      busiest = (await engineRest([address], AbortSignal.abort()))[0]!;
    }
    expect(least()).toBeGreaterThan(0);
    expect((await run).code).toBe(0);
    expect(await engineRest([address], new AbortController().signal)).toEqual([rest]);
  });

  it("says so when the key is wrong", async () => {
    const run = await runBench(["load", "--target=engine", `--url=${server.url}`, "--key=wrong-key-of-16-or-more"]);
    expect(run).toMatchObject({ code: 1 });
    expect(run.err).toMatch(/^bench: the warm-up failed: /);
  });
});
