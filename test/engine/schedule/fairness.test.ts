/** Tenants that share an engine: whoever asks for little hardly notices who asks for much. */
import { describe, expect, it } from "vitest";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds } from "../harness.ts";
import { uniform } from "../tiny-model.ts";
import { percentile, SIMULATION_TIMEOUT, type SimulatedTurn, simulateEngine, simulateTurn } from "./simulation.ts";

const MODEST = ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"];
const GREEDY = "eeeeeeee";
const SECONDS = 160;

/** Poisson arrivals of one tenant; prompts of 200 to 1000 tokens, replies of 32. */
function* arrivals(seed: number, meanMs: number): Generator<{ atMs: number; promptTokens: number }> {
  const next = uniform(seed);
  for (let atMs = -Math.log(1 - next()) * meanMs; atMs < SECONDS * 1000; atMs += -Math.log(1 - next()) * meanMs)
    yield { atMs, promptTokens: 200 + Math.floor(800 * next()) };
}

async function run(withGreedy: boolean): Promise<{ modest: SimulatedTurn[]; greedy: SimulatedTurn[] }> {
  const simulated = simulateEngine({ blockCount: 2048 });
  const { clock } = simulated;
  const modest: SimulatedTurn[] = [];
  const greedy: SimulatedTurn[] = [];
  const play = async (namespace: string, seed: number, meanMs: number, into: SimulatedTurn[]) => {
    const running: Promise<void>[] = [];
    let index = 0;
    for (const { atMs, promptTokens } of arrivals(seed, meanMs)) {
      await clock.sleep(atMs - clock.nowMs());
      index += 1;
      const tokens = idsToBytes(randomIds(1000 * seed + index, promptTokens));
      running.push(simulateTurn(simulated, { namespace, tokens, maxTokens: 32 }).then((turn) => void into.push(turn)));
    }
    await Promise.all(running);
  };
  const all = MODEST.map((namespace, index) => play(namespace, index + 1, 8_000, modest));
  // 20 times the load of each of them.
  if (withGreedy) all.push(play(GREEDY, 99, 8_000 / 20, greedy));
  await simulated.run(Promise.all(all));
  return { modest, greedy };
}

const firstTokenMs = (turns: readonly SimulatedTurn[]) =>
  turns.filter(({ reason }) => reason === "length").map(({ tokensMs, submittedMs }) => tokensMs[0]! - submittedMs);

describe("a tenant that sends 20 times what each of the others sends", SIMULATION_TIMEOUT, () => {
  it("leaves their p95 time to first token within 1.5 times of what it is without it, and gets the rest", async () => {
    const alone = await run(false);
    const beside = await run(true);
    expect(beside.modest).toHaveLength(alone.modest.length);
    expect(beside.modest.every(({ reason }) => reason === "length")).toBe(true);
    const ratio = percentile(firstTokenMs(beside.modest), 95) / percentile(firstTokenMs(alone.modest), 95);
    expect(ratio).toBeLessThanOrEqual(1.5);
    // The engine is never idle for the sake of fairness.
    expect(firstTokenMs(beside.greedy).length).toBeGreaterThan(beside.modest.length);
  });
});
