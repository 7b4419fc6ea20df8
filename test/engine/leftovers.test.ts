/** What an engine keeps of sessions that are over, counted object by object: as many after 45 sessions as after 15. */
import { queryObjects } from "node:v8";
import { expect, it } from "vitest";
import { HostCopy } from "../../engine/kv/host-pool.ts";
import { LogicalBlock } from "../../engine/kv/logical-block.ts";
import { SpanList } from "../../engine/kv/provenance.ts";
import { BlockHeat } from "../../engine/sequence/block-heat.ts";
import { Sequence } from "../../engine/sequence/sequence.ts";
import { generate, openForTest, randomIds, request, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const OPEN_SLOTS = 8;
const BLOCKS = 10;
const LAYERS = 2;

const classes = { Sequence, SpanList, BlockHeat, LogicalBlock, HostCopy, AbortController };

/** Live objects of each class; `queryObjects` collects garbage first. */
const counts = () =>
  Object.fromEntries(Object.entries(classes).map(([name, one]) => [name, queryObjects(one) as number]));

/** Sessions of two turns, other ones for every seed: a third is left in the middle of its reply, a third names no session. */
async function play(engine: TestEngine, seeds: { from: number; to: number }): Promise<void> {
  for (let seed = seeds.from; seed < seeds.to; seed++) {
    const tokens = randomIds(seed, 66 + (seed % 16));
    if (seed % 3 === 0) {
      await generate(engine, request({ tokens: new Uint8Array(Uint32Array.from(tokens).buffer), maxTokens: 4 }));
      continue;
    }
    const session = new TestSession(`s${seed}`, { policy: "quest", budgetTokens: 128, exact: seed % 2 === 0 });
    await session.turn(engine, tokens, { maxTokens: 6 });
    if (seed % 3 === 1) await session.turn(engine, randomIds(-seed, 9), { maxTokens: 6 });
    else {
      const isLeft = { tokens: new Uint8Array(Uint32Array.from(tokens).buffer), session: { id: `l${seed}` } };
      await generate(engine, request({ ...isLeft, maxTokens: 24 }), (ticket) => setTimeout(() => ticket.cancel(), 3));
    }
  }
  await untilIdle(engine);
  await engine.persister.flush();
}

it("is bounded by its pools, however many there were", { timeout: 180_000 }, async () => {
  const settings = { hostPoolBytes: 24 * 1024 };
  const before = counts();
  const engine = await openForTest({ blockCount: LAYERS * BLOCKS, openSlotCount: OPEN_SLOTS, settings });
  await play(engine, { from: 1, to: 16 });
  const [few, hits] = [counts(), engine.engine.status.hostPool.counts.evictions];
  await play(engine, { from: 16, to: 46 });
  const many = counts();
  const of = (name: keyof typeof classes) => many[name]! - before[name]!;
  expect({ sequences: of("Sequence"), heats: of("BlockHeat") }).toEqual({ sequences: 0, heats: 0 });
  // An idle tail keeps its spans, to tell whose it is.
  expect(of("SpanList")).toBeLessThanOrEqual(OPEN_SLOTS);
  expect(of("AbortController")).toBeLessThanOrEqual(few.AbortController! - before.AbortController!);
  const hostCopies = Math.floor(settings.hostPoolBytes / engine.runner.pool.blockBytes);
  expect(of("HostCopy")).toBeLessThanOrEqual(hostCopies);
  expect(of("LogicalBlock")).toBeLessThanOrEqual(BLOCKS + hostCopies);
  // The pools were full and turned over, or this would show nothing.
  expect(hits).toBeGreaterThan(0);
  expect(engine.engine.status.hostPool.counts.evictions).toBeGreaterThan(hits);
});
