/** A second engine, with nothing but the bucket, answers about what only the first has read, and its trace says where the time went. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ColdOutcome, playCold } from "../../cli/cold-scenario.ts";
import { timelineRows } from "../../cli/cold-timeline.ts";
import { Stage } from "../../cli/demo-stage.ts";

const life = new AbortController();
let stage: Stage;
let outcome: ColdOutcome;
beforeAll(async () => {
  stage = await Stage.open(life.signal, undefined, "house");
  outcome = await playCold(stage, 2, { step: () => undefined, turn: () => undefined });
});
afterAll(async () => {
  life.abort();
  await stage?.close();
});

describe("demo:cold", () => {
  it("answers right, on another engine, from stored pages and without computing the document again", () => {
    expect(outcome.first.text).toBe("The code of Kelino is 7350.");
    expect(outcome.second.text).toBe("The code of Badoru is 4821.");
    expect(outcome.engines.coldId).not.toBe(outcome.engines.readerId);
    const { cachedTokens, recomputedTokens, bytesBeforeFirstToken } = outcome.second.usage;
    expect(cachedTokens).toBe(outcome.persisted.tokenCount);
    expect(recomputedTokens).toBe(0);
    expect(bytesBeforeFirstToken).toBeGreaterThan(0);
    expect(bytesBeforeFirstToken).toBeLessThan(outcome.storedBytes);
  });

  it("shows manifest, summaries, pages by layer and the first token, in this order", () => {
    const rows = timelineRows(outcome.trace);
    const labels = rows.map(({ label }) => label);
    const order = ["manifest", "summaries, tail", "first burst", "prompt", "first token"].map((label) =>
      labels.indexOf(label),
    );
    expect(order).not.toContain(-1);
    expect(order).toEqual([...order].sort((a, b) => a - b));
    expect(labels.some((label) => /^pages, layer \d$/.test(label))).toBe(true);
  });
});
