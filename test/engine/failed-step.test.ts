/** A step that fails ends nobody but the sequence that fails by itself: the others go on, with the same tokens. */
import { setImmediate } from "node:timers/promises";
import { queryObjects } from "node:v8";
import { expect, it } from "vitest";
import { Sequence } from "../../engine/sequence/sequence.ts";
import { systemClock } from "../../engine/settings.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  expectNothingHeld,
  generate,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  TestSession,
  untilIdle,
} from "./harness.ts";

const PROMPTS = [30, 64, 75, 100].map((length, seed) => randomIds(seed + 1, length));
const REPLY_TOKENS = 40;
/** The longest prompt's reply comes here, no other's. */
const FATAL_POSITION = 125;
const BROKEN = new Error("a kernel refused its arguments");

const turnOf = (engine: TestEngine, ids: readonly number[]) =>
  generate(engine, request({ tokens: idsToBytes([...ids]), maxTokens: REPLY_TOKENS }));

async function undisturbed(): Promise<number[][]> {
  const twin = await openForTest();
  const replies: number[][] = [];
  for (const ids of PROMPTS) replies.push((await turnOf(twin, ids)).ids);
  return replies;
}

/** Steps for which `isBroken` fail when the device has computed them: what they wrote must not be taken for anything. */
function breakSteps(engine: TestEngine, isBroken: (positions: readonly number[]) => boolean): { failedCount: number } {
  const step = engine.runner.step.bind(engine.runner);
  const seen = { failedCount: 0 };
  engine.runner.step = async (sequences) => {
    const results = await step(sequences);
    if (!isBroken(sequences.map(({ slice }) => slice.position + slice.rowCount - 1))) return results;
    seen.failedCount += 1;
    throw BROKEN;
  };
  return seen;
}

it("who fails by itself ends with the error, the others as if it had not been there", async () => {
  const whole = await undisturbed();
  const engine = await openForTest({}, expectNothingHeld);
  breakSteps(engine, (positions) => positions.some((position) => position >= FATAL_POSITION));
  const ends = await Promise.allSettled(PROMPTS.map((ids) => turnOf(engine, ids)));
  expect(ends.map((end) => (end.status === "fulfilled" ? end.value.ids : end.reason))).toEqual([
    ...whole.slice(0, 3),
    BROKEN,
  ]);
  const events = engine.logged.map(({ event, fields }) => [event, fields.sequenceCount]);
  expect(events).toEqual([
    ["step.failed", 4],
    ["step.failed", 1],
    ["sequence.failed", undefined],
  ]);
});

it("nothing is kept of who failed, nor of who left before its turn to be tried", async () => {
  const before = queryObjects(Sequence) as number;
  const engine = await openForTest({}, expectNothingHeld);
  breakSteps(engine, (positions) => positions.some((position) => position >= FATAL_POSITION));
  for (let round = 0; round < 3; round++) {
    const beside = PROMPTS.slice(0, 3).map((ids) => {
      const asked = request({ tokens: idsToBytes([...ids]), maxTokens: REPLY_TOKENS });
      return generate(engine, asked, (ticket) => void setTimeout(() => ticket.cancel(), 40));
    });
    await Promise.allSettled([turnOf(engine, PROMPTS[3]!), ...beside]);
  }
  await turnOf(engine, PROMPTS[0]!);
  await untilIdle(engine);
  expect((queryObjects(Sequence) as number) - before).toBe(0);
});

it("where only steps of several fail, as for want of memory, everybody comes to the end", async () => {
  const whole = await undisturbed();
  const engine = await openForTest({}, expectNothingHeld);
  const seen = breakSteps(engine, (positions) => positions.length > 2);
  const ends = await Promise.all(PROMPTS.map((ids) => turnOf(engine, ids)));
  expect(ends.map(({ ids }) => ids)).toEqual(whole);
  expect(seen.failedCount).toBeGreaterThan(3);
});

it("a fault that passes costs nobody a token", async () => {
  const whole = await undisturbed();
  const engine = await openForTest({}, expectNothingHeld);
  let stepCount = 0;
  const seen = breakSteps(engine, () => ++stepCount % 7 === 5);
  const prompts = PROMPTS.slice(0, 3);
  const ends = await Promise.allSettled(prompts.map((ids) => turnOf(engine, ids)));
  // A step of one sequence is not tried twice, so some may end; nobody gets another text.
  for (const [index, end] of ends.entries())
    if (end.status === "fulfilled") expect(end.value.ids).toEqual(whole[index]);
    else expect(end.reason).toBe(BROKEN);
  expect(seen.failedCount).toBeGreaterThan(1);
});

it.each(["a step that goes on with blocks from the store", "a guess"] as const)(
  "%s fails its own sequence alone",
  async (what) => {
    const [whole] = await undisturbed();
    const store = new MemoryStore();
    const sessions = ["one", "other"].map(
      (id) => new TestSession(id, { policy: "quest", budgetTokens: 128, exact: true }),
    );
    const writer = await openForTest({ store });
    for (const [seed, session] of sessions.entries()) await session.turn(writer, randomIds(20 + seed, 600));
    await untilIdle(writer);
    await writer.persister.flush();
    const prompts = [randomIds(30, 40), randomIds(31, 40)];
    const expected: number[][] = [];
    for (const [index, session] of sessions.entries())
      expected.push((await session.fork(`resident ${index}`).turn(writer, prompts[index]!)).ids);
    const get = store.get.bind(store);
    // A store that takes 100 ms for each answer, and a device that takes no time: there is time for a guess, and what a layer misses comes behind it.
    let nowMs = 0;
    let [hasMissed, isBroken] = [false, false];
    store.get = async (key, options) => {
      nowMs += 100;
      while (what === "a guess" && hasMissed && !isBroken && key.includes("/seg/")) await setImmediate();
      return await get(key, options);
    };
    const engine = await openForTest({ store, clock: { ...systemClock, nowMs: () => nowMs } }, expectNothingHeld);
    const step = engine.runner.step.bind(engine.runner);
    engine.runner.step = async (sequences) => {
      const [first] = sequences;
      const isGuess = first?.guessLayer !== undefined;
      if (isBroken || first?.resumeFrom === undefined || isGuess !== (what === "a guess")) {
        const results = await step(sequences);
        hasMissed ||= results.some(({ checkpoint }) => checkpoint !== undefined);
        return results;
      }
      isBroken = true;
      throw BROKEN;
    };
    const resumed = sessions.map((session, index) => session.turn(engine, prompts[index]!));
    const beside = turnOf(engine, PROMPTS[0]!);
    const ends = (await Promise.allSettled(resumed)).map((end) =>
      end.status === "fulfilled" ? end.value.ids : end.reason,
    );
    const failed = ends.indexOf(BROKEN);
    expect(ends).toEqual(expected.map((ids, index) => (index === failed ? BROKEN : ids)));
    expect(isBroken).toBe(true);
    expect((await beside).ids).toEqual(whole);
  },
);
