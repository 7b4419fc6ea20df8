/** Turns that need an engine when none is there: one call of the hook, and a wait that ends. */
import { describe, expect, it } from "vitest";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { Env } from "../../workers/env.ts";
import { Waker } from "../../workers/fleet/wake.ts";
import { holdMsMax } from "../../workers/fleet.ts";
import { FleetTable, type PickedEngine } from "../../workers/fleet-table.ts";
import { pickEngine } from "../../workers/session-log/pick-engine.ts";
import { env, FakeEngine, heartbeatOf, until } from "./world.ts";

function openWaker(answer: (model: string) => Promise<void> = async () => undefined) {
  const calls: string[] = [];
  const failures: string[] = [];
  const clock = { nowMs: 1_000 };
  const waker = new Waker({
    call: (model) => {
      calls.push(model);
      return answer(model);
    },
    onFailure: (model) => failures.push(model),
    now: () => clock.nowMs,
  });
  return { waker, calls, failures, clock };
}

describe("Waker", () => {
  it("calls once per model, however many ask, until an engine was there or nothing came of it", () => {
    const { waker, calls, clock } = openWaker();
    for (let count = 0; count < 5; count++) expect(waker.wake("a")).toBe(true);
    waker.wake("b");
    expect(calls).toEqual(["a", "b"]);
    clock.nowMs += LIMITS.wakeAgainMs - 1;
    waker.wake("a");
    expect(calls).toHaveLength(2);
    clock.nowMs += 1;
    waker.wake("a");
    expect(calls).toEqual(["a", "b", "a"]);
    waker.arrived("a");
    waker.wake("a");
    expect(calls).toHaveLength(4);
  });

  it("says that there is nothing to wait for when the hook refuses, and calls again a little later", async () => {
    const { waker, calls, failures, clock } = openWaker(() => Promise.reject(new Error("no")));
    expect(waker.wake("a")).toBe(true);
    await until(() => failures.length === 1);
    expect(waker.wake("a")).toBe(false);
    expect(calls).toHaveLength(1);
    clock.nowMs += LIMITS.wakeRetryMs;
    expect(waker.wake("a")).toBe(true);
    expect(calls).toHaveLength(2);
  });

  it("wakes those who wait when an engine registers or the hook fails, and after their time", async () => {
    const { waker, failures } = openWaker(() => Promise.reject(new Error("no")));
    const start = Date.now();
    await waker.arrival(30);
    expect(Date.now() - start).toBeGreaterThanOrEqual(25);
    const both = Promise.all([waker.arrival(60_000), waker.arrival(60_000)]);
    waker.arrived("a");
    await both;
    const failed = waker.arrival(60_000);
    waker.wake("a");
    await failed;
    expect(failures).toEqual(["a"]);
  });

  it("lets a bounded number wait", async () => {
    const { waker } = openWaker();
    const waiting = Array.from({ length: LIMITS.heldTurnCountMax }, () => waker.arrival(60_000));
    expect(waker.hasRoom).toBe(false);
    waker.arrived("a");
    await Promise.all(waiting);
    expect(waker.hasRoom).toBe(true);
  });
});

describe("pickEngine", () => {
  const engine: PickedEngine = { engineId: "e", url: "http://e", contextTokensMax: 1 };
  /** An environment whose fleet answers as told, after waiting as long as it is asked to. */
  function world(
    answers: (count: number) => { engine?: PickedEngine; waking: boolean },
    holdMs: number,
    lost?: { hasBegun: boolean },
  ) {
    const waits: number[] = [];
    const fleet = {
      pick: async (_: unknown, waitMs: number) => {
        waits.push(waitMs);
        const answer = answers(waits.length);
        if (!answer.engine && answer.waking) await new Promise((resolve) => setTimeout(resolve, waitMs));
        return answer;
      },
    };
    const held: number[] = [];
    const gone = new AbortController();
    const start = Date.now();
    let stubCount = 0;
    const get = () => {
      stubCount += 1;
      return fleet;
    };
    const fake = { idFromName: () => "id", get } as unknown as Env["FLEET"];
    const picked = pickEngine({
      env: { ...env, FLEET: fake, QUIRE_WAKE_WAIT_MS: String(holdMs) },
      namespace: "0123456789abcdef",
      request: { model: "m", excludeIds: lost ? ["gone"] : [] },
      hasBegun: lost?.hasBegun ?? false,
      gone: gone.signal,
      onHeld: () => held.push(Date.now() - start),
    });
    return { picked, waits, held, gone, start, stubs: () => stubCount };
  }

  it("takes what is there, and does not wait where nothing is started", async () => {
    expect(await world(() => ({ engine, waking: false }), 9_000).picked).toBe(engine);
    const none = world(() => ({ waking: false }), 9_000);
    expect(await none.picked).toBeUndefined();
    expect(none.waits).toHaveLength(1);
  });

  it("waits for an engine in the place of one that was lost, also where nothing is started", async () => {
    const back = world((count) => (count > 1 ? { engine, waking: false } : { waking: false }), 60_000, {
      hasBegun: true,
    });
    expect(await back.picked).toBe(engine);
    expect(back.waits).toHaveLength(2);
    // One that no engine has admitted is told so before its headers are due.
    const early = world(() => ({ waking: false }), 60_000, { hasBegun: false });
    expect(await early.picked).toBeUndefined();
    // However slow the machine, it does not look more often than that.
    expect(early.waits.length).toBeLessThanOrEqual(1 + LIMITS.holdHeadersMs / 2 / 250);
    const never = world(() => ({ waking: false }), 0, { hasBegun: true });
    expect(await never.picked).toBeUndefined();
    expect(never.waits).toHaveLength(1);
  });

  it("ends that wait, too, when nobody listens any more", async () => {
    const { picked, gone, start } = world(() => ({ waking: false }), 60_000, { hasBegun: true });
    gone.abort();
    expect(await picked).toBeUndefined();
    expect(Date.now() - start).toBeLessThan(LIMITS.lostEngineHoldMs);
  });

  it("lets the headers out after two seconds and takes the engine when it comes", async () => {
    const { picked, held, waits } = world(
      (count) => (count > 4 ? { engine, waking: false } : { waking: true }),
      30_000,
    );
    expect(await picked).toBe(engine);
    expect(held[0]).toBeGreaterThanOrEqual(LIMITS.holdHeadersMs - 20);
    // On time, however slow the machine: what was asked of the fleet until then is no longer than that.
    expect(waits).toHaveLength(5);
    expect(waits[0]! + waits[1]!).toBeLessThanOrEqual(LIMITS.holdHeadersMs);
  });

  it("gives up after its time, before the headers where that is sooner", async () => {
    const { picked, held, start, waits } = world(() => ({ waking: true }), 300);
    expect(await picked).toBeUndefined();
    expect(Date.now() - start).toBeGreaterThanOrEqual(280);
    for (const waitMs of waits) expect(waitMs).toBeLessThanOrEqual(300);
    expect(held).toEqual([]);
  });

  it("ends when nobody listens any more", async () => {
    const { picked, gone, waits } = world(() => ({ waking: true }), 60_000);
    gone.abort();
    expect(await picked).toBeUndefined();
    expect(waits).toHaveLength(1);
  });

  it("goes on waiting where the fleet is lost meanwhile, with the next one; and not without end", async () => {
    const lost = (count: number) => {
      if (count % 2 === 0) throw new Error("Durable Object reset because its code was updated.");
      return count > 4 ? { engine, waking: false } : { waking: true };
    };
    const { picked, stubs } = world(lost, 30_000);
    expect(await picked).toBe(engine);
    // A stub stays with an object that was lost.
    expect(stubs()).toBe(5);
    const broken = world(() => {
      throw new Error("overloaded");
    }, 30_000);
    await expect(broken.picked).rejects.toThrow("overloaded");
    expect(broken.waits).toHaveLength(2);
  });

  it("is never more patient than the limit", () => {
    expect(holdMsMax({ ...env, QUIRE_WAKE_WAIT_MS: "999999999" })).toBe(LIMITS.holdMsMax);
    expect(holdMsMax({ ...env, QUIRE_WAKE_WAIT_MS: "-1" })).toBe(LIMITS.holdMsMax);
    expect(holdMsMax({ ...env, QUIRE_WAKE_WAIT_MS: "" })).toBe(LIMITS.holdMsMax);
    expect(holdMsMax({ ...env, QUIRE_WAKE_WAIT_MS: "0" })).toBe(0);
  });
});

describe("an engine that has nothing to do", () => {
  const beat = (changes: object = {}): EngineHeartbeat =>
    heartbeatOf(new FakeEngine(), "m", changes) as EngineHeartbeat;

  it("has been idle since its last turn, and is sent no more once it is let go", () => {
    const table = new FleetTable();
    const engine = beat();
    const { engineId } = engine;
    const pick = (nowMs: number) => table.pick({ model: "m", excludeIds: [] }, nowMs)?.engineId;
    table.heartbeat(engine, 0);
    table.heartbeat(engine, 1_000);
    expect(table.idleMs(engineId, 1_500)).toBe(1_500);
    expect(pick(1_600)).toBe(engineId);
    expect(table.idleMs(engineId, 1_700)).toBe(0);
    // The heartbeat that crosses the turn on its way does not make it idle.
    table.heartbeat(engine, 2_000);
    expect(table.idleMs(engineId, 2_000)).toBe(0);
    table.heartbeat({ ...engine, runningCount: 1 }, 3_000);
    expect(table.idleMs(engineId, 3_000)).toBe(0);
    table.heartbeat(engine, 4_000);
    table.heartbeat(engine, 5_000);
    expect(table.idleMs(engineId, 5_000)).toBe(1_000);
    table.release(engineId);
    expect(pick(5_000)).toBeUndefined();
    table.heartbeat(engine, 6_000);
    expect(pick(6_000)).toBeUndefined();
    expect(table.idleMs("unknown", 6_000)).toBe(0);
  });
});
