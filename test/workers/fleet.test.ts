/** Which engine takes a turn: the cost, the table of engines, and the way from a prompt to both. */
import { describe, expect, it } from "vitest";
import { BlockChain } from "../../protocol/block-chain.ts";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { PrefixFilter, type PrefixKey, packPrefixKeys, prefixKeyOf } from "../../protocol/prefix-filter.ts";
import { type Candidate, cheapest, type EngineCost, loadBound, turnCostMs } from "../../workers/fleet/cost.ts";
import { fleetOf, fleetShards } from "../../workers/fleet.ts";
import { FleetTable, type RoutedPrompt } from "../../workers/fleet-table.ts";
import {
  ASSISTANT,
  BOS,
  edge,
  env,
  FakeEngine,
  heartbeatOf,
  ids,
  KEY_A,
  makeWorld,
  register,
  says,
  USER,
} from "./world.ts";

const calm: EngineCost = {
  waitMs: 0,
  runningCount: 0,
  prefillMsPerToken: 1,
  hostMsPerToken: 0.1,
  storeLatencyMs: 50,
  storeMsPerToken: 0.2,
};

describe("turnCostMs", () => {
  const place = { promptTokens: 1_000, deviceTokens: 0, hostTokens: 0, storedTokens: 0 };

  it("adds up waiting, fetching and computing", () => {
    expect(turnCostMs(calm, place)).toBe(1_000);
    expect(turnCostMs({ ...calm, waitMs: 300 }, place)).toBe(1_300);
    expect(turnCostMs(calm, { ...place, deviceTokens: 900 })).toBe(100);
    expect(turnCostMs(calm, { ...place, hostTokens: 900 })).toBeCloseTo(100 + 90);
    expect(turnCostMs(calm, { ...place, storedTokens: 900 })).toBeCloseTo(100 + 50 + 180);
    const mixed = { ...place, deviceTokens: 300, hostTokens: 500, storedTokens: 900 };
    expect(turnCostMs(calm, mixed)).toBeCloseTo(100 + 20 + 50 + 80);
  });

  it("computes at least the last token, and more slowly beside others", () => {
    expect(turnCostMs(calm, { ...place, deviceTokens: 1_000 })).toBe(1);
    expect(turnCostMs(calm, { ...place, deviceTokens: 5_000 })).toBe(1);
    expect(turnCostMs({ ...calm, runningCount: 24 }, place)).toBe(2_000);
  });
});

describe("cheapest", () => {
  const candidate = (engine: string, costMs: number, load: number): Candidate<string> => ({ engine, costMs, load });

  it("is the lowest cost, then the lower load, then the first", () => {
    expect(cheapest([], 0)).toBeUndefined();
    expect(cheapest([candidate("a", 3, 0), candidate("b", 2, 3)], 1)?.engine).toBe("b");
    expect(cheapest([candidate("a", 2, 3), candidate("b", 2, 1)], 1)?.engine).toBe("b");
    expect(cheapest([candidate("a", 2, 1), candidate("b", 2, 1)], 1)?.engine).toBe("a");
  });

  it("is never one that is far above the mean, while another is not", () => {
    const bound = loadBound(2);
    expect(cheapest([candidate("held", 1, bound), candidate("far", 9_999, 0)], 2)?.engine).toBe("held");
    expect(cheapest([candidate("held", 1, bound + 1), candidate("far", 9_999, 0)], 2)?.engine).toBe("far");
    expect(cheapest([candidate("held", 1, bound + 1)], 2)?.engine).toBe("held");
  });
});

describe("FleetTable", () => {
  const key = (index: number): PrefixKey => prefixKeyOf("0123456789abcdef", index * 7_919, index * 104_729);
  const prompt = (points: number, more: Partial<RoutedPrompt> = {}): RoutedPrompt => ({
    tokenCount: points * 256 + 40,
    loggedTokens: 0,
    prefixKeys: packPrefixKeys(Array.from({ length: points }, (_, index) => key(index))),
    ...more,
  });
  const holding = (points: number): object => ({
    residentPrefixes: PrefixFilter.of(
      Array.from({ length: points }, (_, index) => key(index)),
      8_192,
    ).encode(),
    prefillMsPerToken: 1,
  });
  const beat = (changes: object = {}): EngineHeartbeat =>
    heartbeatOf(new FakeEngine(), "m", changes) as EngineHeartbeat;
  const pick = (table: FleetTable, routed: RoutedPrompt, nowMs = 0, stickyEngineId?: string) =>
    table.pick({ model: "m", excludeIds: [], stickyEngineId, prompt: routed }, nowMs)?.engineId;

  it("sends a prompt to where the longest beginning of it is", () => {
    const table = new FleetTable();
    const [none, some, most] = [beat(holding(0)), beat(holding(3)), beat(holding(8))];
    for (const engine of [none, some, most]) table.heartbeat(engine, 0);
    expect(pick(table, prompt(10))).toBe(most.engineId);
    expect(pick(table, prompt(3))).toBe(some.engineId);
  });

  it("sends it elsewhere when waiting costs more than computing, by the engines' own speed", () => {
    const choose = (queuedCount: number, prefillMsPerToken: number): string | undefined => {
      const table = new FleetTable();
      const holder = beat({ ...holding(4), queuedCount, prefillMsPerToken });
      const free = beat({ ...holding(0), prefillMsPerToken });
      table.heartbeat(holder, 0);
      table.heartbeat(free, 0);
      return pick(table, prompt(4)) === holder.engineId ? "holder" : "free";
    };
    expect(choose(0, 1)).toBe("holder");
    expect(choose(2, 1)).toBe("holder");
    expect(choose(5, 1)).toBe("free");
    // Where computing is nearly free, every wait is too long.
    expect(choose(2, 0.001)).toBe("free");
  });

  it("stays with a session's engine: what its last turns left is believed before a heartbeat tells", () => {
    const table = new FleetTable();
    const [home, other] = [beat(holding(0)), beat(holding(0))];
    table.heartbeat(home, 0);
    table.heartbeat(other, 0);
    const fresh = prompt(8, { loggedTokens: 2_000, turnAgeMs: 500 });
    for (const at of [home, other]) expect(pick(table, fresh, 0, at.engineId)).toBe(at.engineId);
    // Long ago, and the filter knows nothing of it: it was evicted, and any engine reads it from the store as well.
    table.heartbeat(beat({ ...holding(0), runningCount: 0 }), 0);
    table.heartbeat({ ...home, runningCount: 3 }, 0);
    expect(pick(table, { ...fresh, turnAgeMs: 60_000 }, 0, home.engineId)).not.toBe(home.engineId);
  });

  it("takes an engine that has measured nothing yet to be as fast as the others", () => {
    const table = new FleetTable();
    const home = beat({ ...holding(8), prefillMsPerToken: 8 });
    const fresh = beat({ residentPrefixes: PrefixFilter.of([], 8_192).encode() });
    table.heartbeat(home, 0);
    table.heartbeat(fresh, 0);
    // 40 new tokens take 320 ms here, and there as well, behind what has to be fetched.
    expect(pick(table, prompt(8, { loggedTokens: 8 * 256 }), 0, home.engineId)).toBe(home.engineId);
  });

  it("is sticky within a bound", () => {
    const table = new FleetTable();
    const home = beat({ ...holding(8), runningCount: 20 });
    const idle = [beat(holding(0)), beat(holding(0)), beat(holding(0))];
    for (const engine of [home, ...idle]) table.heartbeat(engine, 0);
    expect(pick(table, prompt(8, { loggedTokens: 2_000 }), 0, home.engineId)).not.toBe(home.engineId);
  });

  it("counts what it has sent until a heartbeat tells what the engine still has to compute", () => {
    const table = new FleetTable();
    const engines = [beat(holding(0)), beat(holding(0))] as const;
    for (const engine of engines) table.heartbeat(engine, 0);
    const long = prompt(0, { tokenCount: 5_000 });
    const short = prompt(0, { tokenCount: 50 });
    const first = pick(table, long);
    const picks = (): (string | undefined)[] => Array.from({ length: 4 }, () => pick(table, short, 10));
    expect(picks()).not.toContain(first);
    for (const engine of engines) {
      table.heartbeat({ ...engine, runningCount: 1, waitingTokens: engine.engineId === first ? 4_000 : 0 }, 10);
    }
    expect(picks()).not.toContain(first);
    for (const engine of engines) table.heartbeat({ ...engine, runningCount: 1, waitingTokens: 0 }, 20);
    expect(new Set(picks()).size).toBe(2);
  });

  it("drains, removes and takes back", () => {
    const table = new FleetTable();
    const engine = beat(holding(8));
    const other = beat(holding(0));
    const ask = (nowMs: number) => pick(table, prompt(8), nowMs);
    table.heartbeat(engine, 0);
    table.heartbeat(other, 0);
    expect(ask(0)).toBe(engine.engineId);
    table.heartbeat({ ...engine, draining: true }, 100);
    expect(ask(100)).toBe(other.engineId);
    table.heartbeat(engine, 200);
    expect(ask(200)).toBe(engine.engineId);
    table.heartbeat(other, 5_000);
    expect(ask(LIMITS.engineExpiryMs + 201)).toBe(other.engineId);
    table.heartbeat(engine, 6_000);
    expect(ask(6_000)).toBe(engine.engineId);
  });

  it("takes an engine that tells nonsense for one that holds nothing", () => {
    const table = new FleetTable();
    table.heartbeat(beat({ residentPrefixes: "not a filter" }), 0);
    const good = beat(holding(4));
    table.heartbeat(good, 0);
    expect(pick(table, prompt(4))).toBe(good.engineId);
  });

  it("chooses among a thousand engines in a few milliseconds", () => {
    const table = new FleetTable();
    for (let index = 0; index < 1_000; index++) table.heartbeat(beat(holding(index % 7)), 0);
    // The fastest: what else runs on this machine only ever adds.
    let fastestMs = Number.POSITIVE_INFINITY;
    for (let index = 0; index < 20; index++) {
      const start = performance.now();
      expect(pick(table, prompt(500))).toBeDefined();
      fastestMs = Math.min(fastestMs, performance.now() - start);
    }
    expect(fastestMs).toBeLessThan(50);
  });
});

describe("routing of a real turn", () => {
  it("goes to the engine that holds the beginning of a new session's prompt", async () => {
    const { model, engine } = await makeWorld();
    const holder = new FakeEngine();
    const text = "a long text that many sessions begin with. ".repeat(20);
    const tokens = Uint32Array.from([BOS, USER, ...ids(text), ASSISTANT]);
    await register(engine, model);
    await register(holder, model);
    const ask = (content: string) =>
      edge("/v1/chat/completions", {
        method: "POST",
        headers: { authorization: `Bearer ${KEY_A}` },
        body: JSON.stringify({
          model,
          messages: [{ role: "user", content }],
          n: 1,
          quire: { session_id: `r-${crypto.randomUUID()}` },
        }),
      });
    await engine.script(...says("x"));
    await (await ask(text)).text();
    const [first] = [...(await engine.calls()), ...(await holder.calls())];
    const namespace = first?.request.namespace ?? "";
    const chains = new BlockChain().of(tokens, [{ end: tokens.length, how: "dense" }], 100);
    const keys = chains
      .filter((_, index) => (index + 1) % 4 === 0)
      .map((chain) => {
        const words = new DataView(chain.buffer, chain.byteOffset);
        return prefixKeyOf(namespace, words.getUint32(0), words.getUint32(4));
      });
    expect(keys.length).toBe(3);
    const residentPrefixes = PrefixFilter.of(keys, 8_192).encode();
    const before = (await holder.calls()).length;
    for (let round = 0; round < 3; round++) {
      await register(engine, model, { freeBlockCount: 100 });
      await register(holder, model, { residentPrefixes, freeBlockCount: 1, runningCount: 1 });
      await (await ask(text)).text();
    }
    expect((await holder.calls()).length).toBe(before + 3);
  });

  it("has one Fleet object, or as many as are configured, by tenant", () => {
    expect(fleetShards(env)).toHaveLength(1);
    const sharded = { ...env, QUIRE_FLEET_SHARDS: "3" };
    const names = new Set(fleetShards(sharded).map(({ id }) => String(id)));
    expect(names.size).toBe(3);
    const used = ["00000000aa", "00000001aa", "00000002aa", "fffffffeaa"].map((name) =>
      String(fleetOf(sharded, name).id),
    );
    expect(new Set(used)).toEqual(names);
    expect(String(fleetOf(sharded, "00000001aa").id)).toBe(used[1]);
    expect(fleetShards({ ...env, QUIRE_FLEET_SHARDS: "nonsense" })).toHaveLength(1);
  });
});
