/** Sequences that grow beyond what the pool holds at once: who is suspended, that all end, and that their text is the same. */
import { describe, expect, it } from "vitest";
import type { Ticket } from "../../engine/engine.ts";
import type { GenerateRequest, SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import {
  generate,
  NAMESPACE,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  type TestEngineOptions,
  untilIdle,
} from "./harness.ts";

const SELECTIONS: Record<string, SelectionRequest> = {
  dense: { policy: "dense", budgetTokens: 0, exact: true },
  "quest, default mode": { policy: "quest", budgetTokens: 128, exact: false },
};
/** One request of four blocks fits to its end, or three by their prompts. */
const POOL_BLOCKS = 2 * 6;
const PROMPT_TOKENS = 70;
const REPLY_TOKENS = 130;
const NUMBERS = [1, 2, 3];

async function open(options: Partial<TestEngineOptions> = {}): Promise<TestEngine> {
  return openForTest({ blockCount: POOL_BLOCKS, ...options });
}
function longReply(number: number, selection: SelectionRequest, fields: Partial<GenerateRequest> = {}) {
  return request({
    tokens: idsToBytes(randomIds(number, PROMPT_TOKENS)),
    maxTokens: REPLY_TOKENS,
    requestId: `request-${number}`,
    session: { id: `s${number}` },
    selection,
    topLogprobs: 0,
    ...fields,
  });
}

function timesPreempted(engine: TestEngine, requestId: string): number {
  const events = engine.engine.traces.find(requestId)?.events ?? [];
  return events.filter(({ name }) => name === "preempted").length;
}

function rowsComputed(engine: TestEngine): number {
  const counts = engine.engine.metrics.expose().matchAll(/^quire_step_rows_total\{kind="\w+"\} (\d+)$/gm);
  return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
}

async function expectNothingHeld(engine: TestEngine): Promise<void> {
  await untilIdle(engine);
  engine.evictIdle();
  const { status } = engine.engine;
  expect(status).toMatchObject({ heldBlockCount: 0, heldSlotCount: 0, preemptedCount: 0, hostPool: { bytes: 0 } });
  expect(status.freeBlockCount).toBe(status.blockCount);
}

describe.each(Object.entries(SELECTIONS))("replies that outgrow the pool together: %s", (_name, selection) => {
  it("are suspended to host memory and go on bit for bit, computing nothing again", async () => {
    const engine = await open();
    const results = await Promise.all(NUMBERS.map((number) => generate(engine, longReply(number, selection))));
    const large = await open({ blockCount: 2 * 20 });
    let preemptions = 0;
    for (const [at, { ids, logprobs, reason, usage }] of results.entries()) {
      const expected = await generate(large, longReply(at + 1, selection));
      expect([reason, ids.length]).toEqual(["length", REPLY_TOKENS]);
      expect([ids, logprobs]).toEqual([expected.ids, expected.logprobs]);
      expect(usage.pagesMissed).toBe(0);
      const times = timesPreempted(engine, `request-${at + 1}`);
      expect(times).toBeLessThanOrEqual(4);
      preemptions += times;
    }
    expect(preemptions).toBeGreaterThan(0);
    expect(rowsComputed(engine), "no token is computed twice").toBe(NUMBERS.length * (PROMPT_TOKENS + REPLY_TOKENS));
    expect(engine.engine.metrics.expose()).toContain(`quire_preemptions_total ${preemptions}`);
    await expectNothingHeld(engine);
  });
});

describe("who is suspended", () => {
  const dense = SELECTIONS.dense as SelectionRequest;

  it("is the one of lowest priority, then the one that came last; nobody where all is set aside at once", async () => {
    const engine = await open();
    const priorities = [0, 2, 1];
    await Promise.all(priorities.map((priority, at) => generate(engine, longReply(at + 1, dense, { priority }))));
    const times = priorities.map((_, at) => timesPreempted(engine, `request-${at + 1}`));
    expect(times[0]).toBeGreaterThan(0);
    expect(times[1]).toBe(0);
    const full = await open({ settings: { reserve: "full" } });
    await Promise.all(NUMBERS.map((number) => generate(full, longReply(number, dense))));
    expect(NUMBERS.map((number) => timesPreempted(full, `request-${number}`))).toEqual([0, 0, 0]);
    await expectNothingHeld(full);
  });

  it("may be aborted while it waits, and leaves nothing behind", async () => {
    const engine = await open();
    const tickets: Ticket[] = [];
    const results = NUMBERS.map((number) =>
      generate(engine, longReply(number, dense), (ticket) => tickets.push(ticket)),
    );
    while (engine.engine.status.preemptedCount === 0) await new Promise((resolve) => setImmediate(resolve));
    tickets[2]?.cancel();
    const reasons = (await Promise.all(results)).map(({ reason }) => reason);
    expect(reasons).toEqual(["length", "length", "cancelled"]);
    await expectNothingHeld(engine);
  });

  it("computes again what host memory had no room for, bit for bit", async () => {
    // Two blocks of two layers and their summaries, and a few open tokens.
    const engine = await open({ settings: { hostPoolBytes: 12_000 } });
    const results = await Promise.all(NUMBERS.map((number) => generate(engine, longReply(number, dense))));
    const large = await open({ blockCount: 2 * 20 });
    for (const [at, { ids, logprobs }] of results.entries()) {
      const expected = await generate(large, longReply(at + 1, dense));
      expect([ids, logprobs]).toEqual([expected.ids, expected.logprobs]);
    }
    await expectNothingHeld(engine);
  });

  it("is one of those that have said their last where all have, and each lacks the block that its last token fills", async () => {
    const engine = await open({ blockCount: 2 * 2 });
    const prompt = 10;
    const turn = (number: number) =>
      generate(
        engine,
        longReply(number, dense, { tokens: idsToBytes(randomIds(number, prompt)), maxTokens: 128 - prompt }),
      );
    // In step from the first row to the last.
    const results = await Promise.all([turn(1), turn(2)]);
    expect(results.map(({ reason }) => reason)).toEqual(["length", "length"]);
    await expectNothingHeld(engine);
    for (const number of [1, 2])
      expect(engine.persister.status(`${NAMESPACE}/s${number}`)).toMatchObject({ persistedTokens: 128 });
  });
});
