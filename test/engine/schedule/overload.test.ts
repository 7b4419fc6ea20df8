/** More comes than can be served: who is refused knows when to come back, and is then let in; what is served stays as much as before. */
import { describe, expect, it } from "vitest";
import { QuireError } from "../../../protocol/errors.ts";
import type { GenerateRequest } from "../../../protocol/generate.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds } from "../harness.ts";
import { uniform } from "../tiny-model.ts";
import {
  SIMULATION_TIMEOUT,
  type SimulatedEngine,
  type SimulatedTurn,
  simulateEngine,
  simulateTurn,
} from "./simulation.ts";

interface Outcome {
  turns: SimulatedTurn[];
  /** Requests that were refused once or more; of those that came back as told, how many were taken in the first time. */
  refused: number;
  cameBack: number;
  admitted: number;
}

/** Poisson arrivals of some tenants; whoever is refused comes back after Retry-After in whole seconds, as HTTP says it. */
async function overload(
  simulated: SimulatedEngine,
  load: { perS: number; seconds: number; tenants: readonly string[]; patience: number },
): Promise<Outcome> {
  const { clock } = simulated;
  const next = uniform(7);
  const outcome: Outcome = { turns: [], refused: 0, cameBack: 0, admitted: 0 };
  const client = async (fields: Partial<GenerateRequest> & { tokens: Uint8Array }) => {
    for (let visit = 0; visit < load.patience; visit++) {
      const turn = await simulateTurn(simulated, fields);
      const isRefusal = turn.error instanceof QuireError && turn.error.status === 429;
      if (visit === 1) {
        outcome.cameBack += 1;
        if (!isRefusal) outcome.admitted += 1;
      }
      if (!isRefusal) return void outcome.turns.push(turn);
      if (visit === 0) outcome.refused += 1;
      const { retryAfterMs } = turn.error as QuireError;
      expect(retryAfterMs).toBeGreaterThan(0);
      await clock.sleep(Math.ceil(retryAfterMs! / 1000) * 1000 + 100 * next());
    }
  };
  const clients: Promise<void>[] = [];
  let count = 0;
  for (let atMs = 0; atMs < load.seconds * 1000; atMs += (-Math.log(1 - next()) * 1000) / load.perS) {
    await clock.sleep(atMs - clock.nowMs());
    count += 1;
    const namespace = load.tenants[Math.floor(next() * load.tenants.length)]!;
    clients.push(
      client({ tokens: idsToBytes(randomIds(count, 100 + Math.floor(600 * next()))), maxTokens: 48, namespace }),
    );
  }
  await Promise.all(clients);
  return outcome;
}

async function run(perS: number, tenants: readonly string[], patience = 20): Promise<Outcome> {
  const simulated = simulateEngine({ settings: { runningMax: 16, queueMax: 24 } });
  const all = overload(simulated, { perS, seconds: 60, tenants, patience });
  await simulated.run(all);
  expect(simulated.status()).toMatchObject({ runningCount: 0, queuedCount: 0, heldBlockCount: 0 });
  return all;
}

const goodput = (turns: readonly SimulatedTurn[]) =>
  turns.filter(({ reason, endMs }) => reason === "length" && endMs < 60_000).length;

describe("Retry-After", SIMULATION_TIMEOUT, () => {
  for (const [name, tenants] of [
    ["one tenant", ["aaaaaaaa"]],
    ["three tenants", ["aaaaaaaa", "bbbbbbbb", "cccccccc"]],
  ] as const) {
    it(`lets in at least nine of ten who obey it, at twice the load that can be served: ${name}`, async () => {
      const { refused, cameBack, admitted } = await run(7, tenants);
      expect(refused).toBeGreaterThan(50);
      expect(admitted / cameBack).toBeGreaterThanOrEqual(0.9);
    });
  }

  it("is not kept for those who never come back: newcomers fill the engine", async () => {
    const { turns, refused } = await run(7, ["aaaaaaaa"], 1);
    const sustainable = await run(4, ["aaaaaaaa"], 20);
    expect(refused).toBeGreaterThan(50);
    expect(goodput(turns)).toBeGreaterThan(0.9 * goodput(sustainable.turns));
  });
});

describe("a smaller budget in times of need", () => {
  it("is taken only where the engine is told to, only when it is busy, and said in the usage", async () => {
    for (const degradedBudgetTokens of [undefined, 256]) {
      const settings = { runningMax: 1, degradeWaitMs: 100, ...(degradedBudgetTokens ? { degradedBudgetTokens } : {}) };
      const simulated = simulateEngine({ settings });
      const selection = { policy: "streaming", budgetTokens: 512, exact: true } as const;
      const turns = Promise.all(
        [1, 2, 3].map((seed) =>
          simulateTurn(simulated, { tokens: idsToBytes(randomIds(seed, 800)), selection, maxTokens: 4 }),
        ),
      );
      await simulated.run(turns);
      const usages = (await turns).map(({ usage }) => [usage?.budgetTokens, usage?.budgetTokensAsked]);
      const busy = degradedBudgetTokens ? [256, 512] : [512, undefined];
      expect(usages).toEqual([[512, undefined], busy, busy]);
    }
  });

  it("is not taken for a selection that it is too small for", async () => {
    const simulated = simulateEngine({ settings: { runningMax: 1, degradeWaitMs: 100, degradedBudgetTokens: 256 } });
    const selection = { policy: "streaming+sink(256)", budgetTokens: 512, exact: true } as const;
    const turns = Promise.all(
      [1, 2].map((seed) =>
        simulateTurn(simulated, { tokens: idsToBytes(randomIds(seed, 800)), selection, maxTokens: 4 }),
      ),
    );
    await simulated.run(turns);
    const ends = (await turns).map(({ usage, error }) => [error, usage?.budgetTokens, usage?.budgetTokensAsked]);
    const own = [undefined, 512, undefined];
    expect(ends).toEqual([own, own]);
  });
});

describe("a context larger than the pool", () => {
  /** 126 blocks of a pool of 100; its working set, one layer of them, is 64. */
  const long = {
    ...{ tokens: idsToBytes(randomIds(1, 8_000)), maxTokens: 16 },
    selection: { policy: "streaming", budgetTokens: 256, exact: true },
  } as const;
  const settings = { waitMsMax: 500, degradeWaitMs: 100, degradedBudgetTokens: 128, reserve: "full" } as const;

  /** What becomes of it while a request runs that has set so many blocks aside. */
  async function besideBlocks(blockCount: number): Promise<SimulatedTurn> {
    const simulated = simulateEngine({ blockCount: 100, summarySlotCount: 400, settings });
    const scenario = async () => {
      const tokens = idsToBytes(randomIds(2, 64));
      const other = simulateTurn(simulated, { tokens, maxTokens: blockCount * 64 - 64 });
      await simulated.clock.sleep(2_000);
      const turn = await simulateTurn(simulated, long);
      await other;
      return turn;
    };
    return await simulated.run(scenario());
  }

  it("begins at once, under its own budget, where there is room for its working set", async () => {
    const { error, usage } = await besideBlocks(20);
    expect(error).toBeUndefined();
    expect(usage?.queueMs).toBeLessThan(50);
    expect([usage?.budgetTokens, usage?.budgetTokensAsked]).toEqual([256, undefined]);
  });

  it("is told to come back where there is not", async () => {
    const { error } = await besideBlocks(99);
    expect(error).toMatchObject({ code: "queue_full", retryAfterMs: expect.any(Number) });
    expect(String(error)).toContain("would begin after about 1 s");
  });
});

describe("a deadline for the first token", () => {
  it("refuses what cannot make it, and ends what did not", async () => {
    const simulated = simulateEngine({ settings: { runningMax: 1 } });
    const { clock } = simulated;
    const tokens = (seed: number) => idsToBytes(randomIds(seed, 2_000));
    const first = simulateTurn(simulated, { tokens: tokens(1), maxTokens: 200 });
    await simulated.run(first);
    const scenario = async () => {
      const running = simulateTurn(simulated, { tokens: tokens(2), maxTokens: 3_000 });
      await clock.sleep(500);
      const impossible = await simulateTurn(simulated, { tokens: tokens(3), firstTokenMsMax: 10 });
      expect(impossible.error).toMatchObject({ code: "queue_full", retryAfterMs: expect.any(Number) });
      const late = await simulateTurn(simulated, { tokens: tokens(4), firstTokenMsMax: 5_000 });
      return { late, running: await running };
    };
    const played = scenario();
    const { late, running } = await simulated.run(played);
    expect(late.error).toMatchObject({ code: "deadline_exceeded" });
    expect(late.endMs - late.submittedMs).toBeLessThan(5_300);
    expect(running.reason).toBe("length");
    expect(running.endMs).toBeGreaterThan(late.endMs);
  });
});
