/** A long prompt beside running decodes: nobody's next word waits for long, and the prompt gets on. */
import { describe, expect, it } from "vitest";
import type { Ticket } from "../../../engine/engine.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds } from "../harness.ts";
import {
  gaps,
  HOUSE_COST,
  percentile,
  SIMULATION_TIMEOUT,
  type StepCost,
  simulateEngine,
  simulateTurn,
} from "./simulation.ts";

const SLOW: StepCost = { fixedMs: 8, rowMs: 4, attendedMsPer1024: 1.5 };

async function decodesBesidePrompt(cost: StepCost, promptTokens: number) {
  const simulated = simulateEngine({ cost });
  const { clock } = simulated;
  const tickets: Ticket[] = [];
  // Decoding under a budget, so that a token costs the same however long the run lasts.
  const selection = { policy: "streaming", budgetTokens: 512, exact: true } as const;
  const decodes = [1, 2, 3, 4].map((seed) =>
    simulateTurn(simulated, { tokens: idsToBytes(randomIds(seed, 600)), maxTokens: 20_000, selection }, (ticket) =>
      tickets.push(ticket),
    ),
  );
  const scenario = (async () => {
    await clock.sleep(40_000);
    const fromMs = clock.nowMs();
    const prompt = await simulateTurn(simulated, { tokens: idsToBytes(randomIds(9, promptTokens)), maxTokens: 1 });
    return { fromMs, toMs: clock.nowMs(), prompt };
  })();
  const { fromMs, toMs, prompt } = await simulated.run(scenario);
  for (const ticket of tickets) ticket.cancel();
  const tokensMs = (await simulated.run(Promise.all(decodes))).map((turn) => turn.tokensMs);
  const between = (from: number, to: number) =>
    tokensMs.flatMap((times) => gaps(times.filter((ms) => ms >= from && ms < to)));
  return { without: percentile(between(20_000, fromMs), 95), during: percentile(between(fromMs, toMs), 95), prompt };
}

describe("between tokens of running decodes while a long prompt is prefilled", SIMULATION_TIMEOUT, () => {
  it("p95 stays below twice what it is without, on a slow device", async () => {
    const { without, during, prompt } = await decodesBesidePrompt(SLOW, 8_000);
    expect(prompt.reason).toBe("length");
    expect(during).toBeLessThanOrEqual(2 * without);
    // Decodes leave the prompt a fair part of the time: it takes less than four times what it would take alone.
    const aloneMs = 8_000 * (4 + (1.5 * 4_000) / 1024);
    expect(prompt.endMs - prompt.submittedMs).toBeLessThan(4 * aloneMs);
  });

  it("p95 stays below 20 ms on a fast one", async () => {
    const { during, without, prompt } = await decodesBesidePrompt(HOUSE_COST, 16_000);
    expect(prompt.reason).toBe("length");
    expect(during).toBeLessThanOrEqual(Math.max(2 * without, 20));
  });
});

describe("without decodes", () => {
  it("prefill takes long steps, and none longer than planned once the cost is known", async () => {
    const simulated = simulateEngine({ cost: SLOW });
    const turn = simulateTurn(simulated, { tokens: idsToBytes(randomIds(3, 8_000)), maxTokens: 1 });
    await simulated.run(turn);
    const known = simulated.stepsMs.slice(6, -1);
    expect(percentile(known, 50)).toBeGreaterThan(110);
    expect(Math.max(...known)).toBeLessThanOrEqual(250);
  });
});
