import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { seededRandom } from "../../bench/random.ts";
import { EventQueue } from "../../bench/routing/event-queue.ts";
import { ROUTERS } from "../../bench/routing/routers.ts";
import { ENGINE, fetchMs, SimEngines } from "../../bench/routing/sim-engines.ts";
import { type SimulationResult, simulate } from "../../bench/routing/simulate.ts";
import { type SimSession, Workload } from "../../bench/routing/workload.ts";
import { runBench } from "./run-bench.ts";

const small = { engineCount: 150, sessionCount: 10_000, sessionsPerSecond: 1, seed: 3 };

describe("EventQueue", () => {
  it("gives back in the order of time, and of one time in the order of coming", () => {
    const queue = new EventQueue();
    const random = seededRandom(1);
    const all = Array.from({ length: 2_000 }, (_, id) => ({ id, timeMs: Math.floor(random() * 300) }));
    for (const { id, timeMs } of all) queue.push(timeMs, id);
    const expected = [...all].sort((a, b) => a.timeMs - b.timeMs || a.id - b.id);
    for (const { id, timeMs } of expected) {
      expect(queue.nextMs).toBe(timeMs);
      expect(queue.pop()).toBe(id);
    }
    expect([queue.size, queue.nextMs]).toEqual([0, Number.POSITIVE_INFINITY]);
  });
});

describe("SimEngines", () => {
  const session = (id: number, prefixTokens: number): SimSession => ({
    id,
    prefixId: 7,
    prefixTokens,
    turnsLeft: 9,
    loggedTokens: 0,
    engine: -1,
    endedMs: 0,
    random: Math.random,
  });
  const turn = { newTokens: 100, replyTokens: 10 };

  it("computes what is missing, after what waits, and holds it for the next", () => {
    const engines = new SimEngines(2);
    const first = engines.serve(0, session(1, 1_000), turn, 0);
    expect(first).toMatchObject({ promptTokens: 1_100, heldTokens: 0 });
    expect(first.firstTokenMs).toBeCloseTo(1_100 * ENGINE.prefillMsPerToken + ENGINE.decodeMsPerToken);
    const second = engines.serve(0, session(2, 1_000), turn, 0);
    expect(second.heldTokens).toBe(1_000);
    expect(second.firstTokenMs).toBeCloseTo(1_200 * ENGINE.prefillMsPerToken + ENGINE.decodeMsPerToken);
    expect(engines.serve(1, session(3, 1_000), turn, 0).heldTokens).toBe(0);
    expect([...engines.holdersOf(session(4, 1_000))]).toEqual([0, 1]);
  });

  it("reads a session's log from the store where it is not, and finds it where it is", () => {
    const engines = new SimEngines(2);
    const one = session(1, 1_000);
    engines.serve(0, one, turn, 0);
    one.loggedTokens = 1_110;
    const home = engines.serve(0, { ...one }, turn, 60_000);
    expect(home).toMatchObject({ promptTokens: 1_210, heldTokens: 1_110 });
    const away = engines.serve(1, { ...one }, turn, 60_000);
    expect(away.heldTokens).toBe(0);
    expect(away.firstTokenMs - home.firstTokenMs).toBeCloseTo(fetchMs(1_110));
  });

  it("never holds more than its pool, and forgets what was used least recently", () => {
    const engines = new SimEngines(1);
    const big = Math.floor(ENGINE.poolTokens / 3);
    const sessions = [1, 2, 3, 4].map((id) => ({ ...session(id, big - 200), prefixId: id }));
    for (const one of sessions.slice(0, 3)) engines.serve(0, one, turn, 0);
    engines.heldTokens(0, sessions[0] as SimSession);
    engines.serve(0, { ...sessions[0], id: 50 } as SimSession, turn, 0);
    engines.serve(0, sessions[3] as SimSession, turn, 0);
    expect(sessions.map((one) => engines.heldTokens(0, one) > 0)).toEqual([true, false, true, true]);
    expect([...engines.holdersOf(sessions[1] as SimSession)]).toEqual([]);
  });

  it("tells what it holds with the next heartbeat", () => {
    const engines = new SimEngines(1);
    engines.advance(5_000);
    engines.serve(0, session(1, 1_000), turn, 5_100);
    expect(engines.toldTokens(0, session(2, 1_000))).toBe(0);
    engines.advance(5_900);
    expect(engines.toldTokens(0, session(2, 1_000))).toBe(0);
    engines.advance(6_000);
    expect(engines.toldTokens(0, session(2, 1_000))).toBe(768);
  });
});

describe("a small simulation", () => {
  const results = new Map(
    Object.keys(ROUTERS).map((router) => [router, simulate({ ...small, router }) as SimulationResult]),
  );
  const of = (router: string): SimulationResult => results.get(router) as SimulationResult;

  it("gives every router the same sessions, and the same figures for the same seed", () => {
    expect(new Set([...results.values()].map(({ turnCount }) => turnCount)).size).toBe(1);
    expect(new Set([...results.values()].map(({ promptTokens }) => promptTokens)).size).toBe(1);
    expect(simulate({ ...small, router: "quire" })).toEqual(of("quire"));
    expect(simulate({ ...small, router: "quire", seed: 4 })).not.toEqual(of("quire"));
  });

  it("keeps the bars of the large one: held >= 1.5x and first token <= 0.6x of least-loaded", () => {
    expect(of("quire").hitShare).toBeGreaterThanOrEqual(1.5 * of("least-loaded").hitShare);
    const p50 = (router: string): number => of(router).firstTokenMs.p50 as number;
    expect(p50("quire")).toBeLessThanOrEqual(0.6 * p50("least-loaded"));
    expect(of("quire").imbalance).toBeLessThan(2.5);
    expect(of("round-robin").imbalance).toBeCloseTo(1, 1);
  });

  it("is all one with one engine", () => {
    const alone = Object.keys(ROUTERS).map((router) =>
      simulate({ ...small, engineCount: 1, sessionCount: 300, router }),
    );
    for (const result of alone) expect(result).toEqual({ ...alone[0], router: result?.router });
  });

  it("stops when it is told to", () => {
    expect(simulate({ ...small, router: "quire", signal: AbortSignal.abort() })).toBeUndefined();
  });
});

describe("the workload", () => {
  it("draws a session the same however many were drawn before", () => {
    const [a, b] = [new Workload(5), new Workload(5)];
    for (let id = 0; id < 50; id++) a.session(id);
    const [one, other] = [a.session(50), b.session(50)];
    expect({ ...one, random: 0 }).toEqual({ ...other, random: 0 });
    expect(a.turn(one)).toEqual(b.turn(other));
  });
});

describe("npm run bench -- routing", () => {
  it("prints the table and writes the figures", async () => {
    const folder = await mkdtemp(join(tmpdir(), "quire-routing-"));
    try {
      const json = join(folder, "routing.json");
      const { code, out } = await runBench([
        "routing",
        "--engines=150",
        "--sessions=8000",
        "--seed=2",
        `--json=${json}`,
      ]);
      expect(out).toContain("quire against least-loaded: held");
      expect(code).toBe(0);
      const { results, ratios, isMet } = JSON.parse(await readFile(json, "utf8"));
      expect(results.map(({ router }: SimulationResult) => router)).toEqual(Object.keys(ROUTERS));
      expect(isMet).toBe(ratios.hit >= 1.5 && ratios.firstToken <= 0.6);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
