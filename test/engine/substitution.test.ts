/** Objects that are intact but not the ones that were meant: every one must be a miss, and the answer stays what it was, to the last bit. */
import { beforeEach, describe, expect, it } from "vitest";
import type { GenerateRequest, SelectionRequest } from "../../protocol/generate.ts";
import { decodeManifest, encodeManifest, type Manifest } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  decodeSummaryObject,
  encodeSummaryObject,
  type SummaryObject,
  summaryDigest,
} from "../../storage/summary-object.ts";
import { decodeTail, encodeTail } from "../../storage/tail.ts";
import { openForTest, randomIds, type TestEngine, TestSession, type TurnResult, untilIdle } from "./harness.ts";

const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const PROMPT = randomIds(3, 40);
const LOGPROBS: Partial<GenerateRequest> = { topLogprobs: 0 };

let store: MemoryStore;
let session: TestSession;
let expected: TurnResult;
let manifestKey: string;

async function open(of: MemoryStore): Promise<TestEngine> {
  return openForTest({ store: of });
}

beforeEach(async () => {
  store = new MemoryStore();
  const engine = await open(store);
  session = new TestSession("s", QUEST);
  await session.turn(engine, randomIds(1, 500));
  await session.turn(engine, randomIds(2, 60));
  await untilIdle(engine);
  await engine.persister.flush();
  expected = await session.fork("other").turn(engine, PROMPT, LOGPROBS);
  await untilIdle(engine);
  await engine.persister.flush();
  for (const { key } of (await store.list("kv/")).keys) {
    if (key.includes("/session/") && (await manifestAt(key)).sessionId === "s") manifestKey = key;
  }
});
async function manifestAt(key: string): Promise<Manifest> {
  return decodeManifest((await store.get(key))!.bytes);
}

async function expectMiss(tokens: number, event = "attach"): Promise<void> {
  const engine = await open(store);
  const found = await session.turn(engine, PROMPT, LOGPROBS);
  if (tokens === 0) expect(engine.logged.map((line) => line.event)).toContain(event);
  expect(found.ids).toEqual(expected.ids);
  expect(found.logprobs).toEqual(expected.logprobs);
  expect(found.usage.recomputedTokens).toBeGreaterThanOrEqual(tokens);
}

/** Puts another summary object in the place of the first; `name` makes the manifest name it. */
async function replaceSummary(change: (object: SummaryObject) => void, name: boolean): Promise<void> {
  const manifest = await manifestAt(manifestKey);
  const ref = manifest.summaries[0]!;
  const object = decodeSummaryObject((await store.get(ref.objectKey))!.bytes);
  change(object);
  const bytes = encodeSummaryObject(object);
  await store.put(ref.objectKey, bytes);
  if (!name) return;
  manifest.summaries[0] = { ...ref, sha256: summaryDigest(bytes) };
  await store.put(manifestKey, encodeManifest(manifest));
}

/** Summaries that make other pages look good. */
function scrambleSlots({ segments }: SummaryObject): void {
  for (const segment of segments) {
    segment.slots = segment.slots.map((value, index) => (index % 3 === 0 ? 256 - value : value));
  }
}

describe("an intact object in the place of another", () => {
  it("nothing is replaced: nothing is recomputed", async () => {
    const found = await session.turn(await open(store), PROMPT, LOGPROBS);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.usage.recomputedTokens).toBe(0);
  });

  it("summaries of the right segments with other numbers, under the right key: made anew from the blocks", async () => {
    await replaceSummary(scrambleSlots, false);
    await expectMiss(0, "attach.summary-lost");
  });

  it("summaries of another kind under the right key", async () => {
    const { summaries } = await manifestAt(manifestKey);
    const other = summaries.find(({ kind, fromToken }) => kind !== summaries[0]!.kind && fromToken === 0)!;
    await store.put(summaries[0]!.objectKey, (await store.get(other.objectKey))!.bytes);
    await expectMiss(0, "attach.summary-lost");
  });

  it("summaries of another chain, named by the manifest", async () => {
    await replaceSummary((object) => {
      scrambleSlots(object);
      for (const segment of object.segments) segment.chain = segment.chain.split("").reverse().join("");
    }, true);
    await expectMiss(64);
  });

  it("a tail of the right tokens with other KV, under the right key", async () => {
    const ref = (await manifestAt(manifestKey)).tail!;
    const tail = decodeTail((await store.get(ref.objectKey))!.bytes);
    const open = tail.open.slice();
    for (let at = 2; at < open.length; at += 4) open[at] = open[at]! ^ 0x40;
    await store.put(ref.objectKey, encodeTail({ ...tail, open }));
    await expectMiss(ref.tokenCount);
  });

  it("a segment of other tokens", async () => {
    const { segments } = await manifestAt(manifestKey);
    const strange = segments[2]!;
    await store.put(segments[1]!.objectKey, (await store.get(strange.objectKey))!.bytes);
    // Dense reads every block, so it must notice.
    const dense = new TestSession("s", { policy: "dense", budgetTokens: 0, exact: true });
    dense.ids = [...session.ids];
    dense.spans = [...session.spans];
    const cold = await openForTest();
    const right = await dense.fork("cold").turn(cold, PROMPT, LOGPROBS);
    const found = await dense.turn(await open(store), PROMPT, LOGPROBS);
    expect(found.logprobs).toEqual(right.logprobs);
    expect(found.usage.recomputedTokens).toBe(64);
  });

  it("the manifest of another session, moved to this one's key", async () => {
    const other = new TestSession("s", QUEST);
    const elsewhere = new MemoryStore();
    const engine = await open(elsewhere);
    await other.turn(engine, randomIds(7, 600));
    await untilIdle(engine);
    await engine.persister.flush();
    for (const { key } of (await elsewhere.list("kv/")).keys) await store.put(key, (await elsewhere.get(key))!.bytes);
    await expectMiss(session.ids.length);
  });
});
