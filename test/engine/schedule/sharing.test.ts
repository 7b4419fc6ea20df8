/** An engine that tenants share: steps are short enough for who comes next, and what one was promised is not taken from another. */
import { describe, expect, it } from "vitest";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds } from "../harness.ts";
import {
  gaps,
  percentile,
  SIMULATION_TIMEOUT,
  type SimulatedTurn,
  simulateEngine,
  simulateTurn,
} from "./simulation.ts";

const GREEDY = "eeeeeeee";
const MODEST = "aaaaaaaa";

describe("steps while tenants share the engine", SIMULATION_TIMEOUT, () => {
  it("are short while another tenant has been here lately, and as long as pays when it is gone", async () => {
    // 24 decodes together take 50 ms.
    const simulated = simulateEngine({ cost: { fixedMs: 2, rowMs: 2, attendedMsPer1024: 0 } });
    const { clock, stepsMs } = simulated;
    const tokens = (seed: number) => idsToBytes(randomIds(seed, 40));
    const scenario = async () => {
      const greedy = Array.from({ length: 24 }, (_, seed) =>
        simulateTurn(simulated, { namespace: GREEDY, tokens: tokens(seed), maxTokens: 900 }),
      );
      await clock.sleep(5_000);
      const alone = stepsMs.slice(-20);
      await simulateTurn(simulated, { namespace: MODEST, tokens: tokens(99), maxTokens: 2 });
      await clock.sleep(5_000);
      const shared = stepsMs.slice(-100);
      await clock.sleep(10_000);
      const later = stepsMs.slice(-20);
      return { alone, shared, later, turns: await Promise.all(greedy) };
    };
    const played = scenario();
    await simulated.run(played);
    const { alone, shared, later, turns } = await played;
    expect(percentile(alone, 50)).toBeGreaterThan(45);
    expect(Math.max(...shared)).toBeLessThan(25);
    expect(percentile(later, 50)).toBeGreaterThan(45);
    // They take turns, and nobody is forgotten.
    expect(turns.map(({ tokensMs }) => tokensMs.length)).toEqual(Array.from({ length: 24 }, () => 900));
    expect(Math.max(...turns.flatMap(({ tokensMs }) => gaps(tokensMs)))).toBeLessThan(250);
  });
});

describe("promises to a tenant that never comes back", SIMULATION_TIMEOUT, () => {
  it("do not take the places of another", async () => {
    const simulated = simulateEngine({ settings: { runningMax: 1, queueMax: 16 } });
    const { clock } = simulated;
    const tokens = (seed: number) => idsToBytes(randomIds(seed, 40));
    const isRefused = ({ error }: SimulatedTurn) => error !== undefined;
    const scenario = async () => {
      const modest = [simulateTurn(simulated, { namespace: MODEST, tokens: tokens(1), maxTokens: 2 })];
      const greedy = [simulateTurn(simulated, { namespace: GREEDY, tokens: tokens(2), maxTokens: 6_000 })];
      await clock.sleep(100);
      for (let seed = 10; seed < 50; seed++)
        greedy.push(simulateTurn(simulated, { namespace: GREEDY, tokens: tokens(seed), maxTokens: 2 }));
      // Three quarters of the queue is theirs; the others were told times from 6 s on, which come closer.
      await clock.sleep(5_500);
      for (let seed = 60; seed < 64; seed++)
        modest.push(simulateTurn(simulated, { namespace: MODEST, tokens: tokens(seed), maxTokens: 2 }));
      return { modest: await Promise.all(modest), greedy: await Promise.all(greedy) };
    };
    const played = scenario();
    await simulated.run(played);
    const { modest, greedy } = await played;
    expect(greedy.filter(isRefused).length).toBeGreaterThan(20);
    expect(modest.filter(isRefused)).toEqual([]);
  });
});
