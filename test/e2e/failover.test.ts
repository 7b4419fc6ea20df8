/** Engines are killed with SIGKILL while they speak: every client reads what it would have read if nobody had been killed. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Stage } from "../../cli/demo-stage.ts";
import { type FailoverAudience, type Killed, playFailover } from "../../cli/failover-scenario.ts";

const isFull = process.env.QUIRE_TEST_FULL === "1";
const killCount = isFull ? 200 : 10;
const runMsMax = isFull ? 50 * 60_000 : 180_000;
const answer = "The code of Badoru is 4821.";

const life = new AbortController();
let stage: Stage;
beforeAll(async () => {
  stage = await Stage.open(life.signal);
});
afterAll(async () => {
  life.abort();
  await stage?.close();
});

describe(`${killCount} kills at random moments of a stream`, () => {
  let killed: Killed[];
  const undisturbed: string[] = [];
  beforeAll(async () => {
    const silent: FailoverAudience = {
      undisturbed: (_, { text }) => undisturbed.push(text),
      speaks: () => undefined,
      kills: () => undefined,
      over: () => undefined,
      missed: () => undefined,
    };
    try {
      killed = await playFailover({ stage, killCount, random: Math.random, audience: silent });
    } catch (cause) {
      throw new Error(`the plot broke off; edge and engines warned:\n${stage.warnings.join("\n")}`, { cause });
    }
  }, runMsMax);

  it("leave every text as it would have been, greedy and sampled, dense and selected", () => {
    expect(undisturbed).toHaveLength(3);
    expect(new Set(undisturbed).size).toBeGreaterThan(1);
    for (const text of undisturbed) expect(text.startsWith(answer)).toBe(true);
    const wrong = killed.filter(({ identical }) => !identical);
    expect(wrong).toEqual([]);
    expect(killed).toHaveLength(killCount);
  });

  it("are of the engine that served, at many places, and another one went on", () => {
    for (const { engines } of killed) expect(new Set(engines).size).toBeGreaterThan(1);
    const lengths = new Set(killed.map(({ length }) => length));
    expect(lengths.size).toBeGreaterThan(killCount / 3);
  });
});
