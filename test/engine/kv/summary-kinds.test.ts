/** Which kinds of summaries a turn reads, and that a block is never scored by one that it lacks. */
import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../../protocol/generate.ts";
import { loadManifest } from "../../../storage/manifest.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import {
  expectNothingHeld,
  openForTest,
  randomIds,
  type TestEngine,
  TestSession,
  type TurnResult,
  untilIdle,
} from "../harness.ts";

const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const MEAN: SelectionRequest = { policy: "mean-deviation", budgetTokens: 128, exact: true };
const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };
/** One token: what follows would stream in the blocks that nobody chose. */
const LOGPROBS = { topLogprobs: 0, maxTokens: 1 } as const;

/** Remembers which whole objects were asked for. */
class Watched extends MemoryStore {
  asked: string[] = [];
  override async get(...args: Parameters<MemoryStore["get"]>) {
    this.asked.push(args[0]);
    return await super.get(...args);
  }
  kinds(): string[] {
    return [...new Set(this.asked.flatMap((key) => /\/sum-([a-z-]+)\//.exec(key)?.[1] ?? []))];
  }
  async drop(pattern: RegExp): Promise<number> {
    const found = (await this.list("kv/")).keys.map(({ key }) => key).filter((key) => pattern.test(key));
    await this.delete(found);
    return found.length;
  }
}

async function open(store: MemoryStore): Promise<TestEngine> {
  return openForTest({ store }, expectNothingHeld);
}
/** A session is its log; each turn may select in its own way. */
function as(session: TestSession, selection: SelectionRequest): TestSession {
  const copy = new TestSession(session.id, selection);
  copy.ids = [...session.ids];
  copy.spans = [...session.spans];
  return copy;
}

/** Turns of one log, one after the other; each result. */
async function turns(of: { engine: TestEngine; selections: readonly SelectionRequest[]; flush: boolean }) {
  let session = new TestSession("s", DENSE);
  const results: TurnResult[] = [];
  for (const [index, selection] of of.selections.entries()) {
    session = as(session, selection);
    results.push(await session.turn(of.engine, randomIds(30 + index, index === 0 ? 700 : 100), LOGPROBS));
    if (!of.flush) continue;
    await untilIdle(of.engine);
    await of.engine.persister.flush();
  }
  return { session, results };
}

/** The last of these turns where all of them ran on one engine that never forgot anything. */
async function undisturbed(selections: readonly SelectionRequest[]): Promise<TurnResult> {
  const { results } = await turns({ engine: await open(new MemoryStore()), selections, flush: false });
  return results.at(-1)!;
}

describe("a resumed turn reads the summaries of one kind", () => {
  it.each([
    ["min-max", QUEST],
    ["mean-deviation", MEAN],
    ["min-max", DENSE],
    ["min-max", { policy: "streaming", budgetTokens: 128, exact: true } as const],
  ])("%s", async (kind, selection) => {
    const store = new Watched();
    const writer = await open(store);
    const { session } = await turns({ engine: writer, selections: [QUEST, MEAN], flush: true });
    store.asked = [];
    const found = await as(session, selection).turn(await open(store), randomIds(9, 40), LOGPROBS);
    expect(store.kinds()).toEqual([kind]);
    expect(found.usage.recomputedTokens).toBe(0);
    const expected = await as(session, selection).turn(writer, randomIds(9, 40), LOGPROBS);
    expect(found.logprobs).toEqual(expected.logprobs);
  });
});

describe("kinds that an engine keeps when it is told to", () => {
  const summaryKinds = ["centre-deviation", "representatives", "sign-bits", "residual-signs"] as const;
  // What residual signs need.
  const kept = { summaryKinds, headDim: 16 };

  it.each([
    ["arkvale", "centre-deviation"],
    ["infllm", "representatives"],
    ["sign-hash", "sign-bits"],
    ["residual-signs", "residual-signs"],
  ] as const)(
    "%s: a cold engine reads %s, goes on as if it had computed all, and they are the same bytes",
    async (policy, kind) => {
      const selection: SelectionRequest = { policy, budgetTokens: 128, exact: true };
      const store = new Watched();
      const first = await openForTest({ store, ...kept }, expectNothingHeld);
      const cold = await openForTest({ store, ...kept }, expectNothingHeld);
      const { session } = await turns({ engine: first, selections: [selection], flush: true });
      store.asked = [];
      const found = await as(session, selection).turn(cold, randomIds(9, 40), LOGPROBS);
      expect(store.kinds()).toEqual([kind]);
      expect(found.usage.recomputedTokens).toBe(0);
      expect(found.usage.pagesSelected).toBeLessThan(found.usage.pagesInContext);
      const expected = await as(session, selection).turn(first, randomIds(9, 40), LOGPROBS);
      expect(found.logprobs).toEqual(expected.logprobs);
      // Rebuilt from blocks where their objects are gone, they choose the same.
      await store.drop(new RegExp(`/sum-${kind}/`));
      const rebuilt = await openForTest({ store, ...kept }, expectNothingHeld);
      const again = await as(session, selection).turn(rebuilt, randomIds(9, 40), LOGPROBS);
      expect(again.logprobs).toEqual(expected.logprobs);
    },
  );

  it("refuses a policy whose kind it does not keep", async () => {
    const session = new TestSession("s", { policy: "sign-hash", budgetTokens: 128, exact: true });
    const turn = session.turn(await open(new MemoryStore()), randomIds(3, 700), LOGPROBS);
    await expect(turn).rejects.toThrow(/sign-hash needs sign-bits summaries, which this engine does not keep/);
  });
});

describe("a turn that scores another kind than the one that found the blocks", () => {
  /** Two turns on a first engine, the third by min-max on a second one: its blocks hold min-max only; then the fourth by the other. */
  async function fourth(damage: (store: Watched) => Promise<void>) {
    const store = new Watched();
    const { session } = await turns({ engine: await open(store), selections: [QUEST, QUEST], flush: true });
    const second = await open(store);
    const lazily = as(session, QUEST);
    await lazily.turn(second, randomIds(32, 100), LOGPROBS);
    await untilIdle(second);
    await second.persister.flush();
    await damage(store);
    store.asked = [];
    const found = await as(lazily, MEAN).turn(second, randomIds(33, 100), LOGPROBS);
    const expected = await undisturbed([QUEST, QUEST, QUEST, MEAN]);
    expect(found.ids).toEqual(expected.ids);
    expect(found.logprobs).toEqual(expected.logprobs);
    return { store, found, second };
  }

  it("reads them from the object of that kind", async () => {
    const { store, found } = await fourth(async () => {});
    expect(store.kinds()).toEqual(["mean-deviation"]);
    expect(found.usage.recomputedTokens).toBe(0);
  });

  it("makes them from the blocks where that object is gone, and puts them into the store again", async () => {
    const { store, found, second } = await fourth(async (store) => {
      expect(await store.drop(/\/sum-mean-deviation\//)).toBeGreaterThan(0);
    });
    expect(found.usage.recomputedTokens).toBe(0);
    expect(second.logged.map(({ event }) => event)).toContain("attach.summary-lost");
    await untilIdle(second);
    await second.persister.flush();
    const { key } = (await store.list("kv/")).keys.find((item) => item.key.includes("/session/"))!;
    const { manifest } = (await loadManifest(store, key))!;
    // Nobody asked for those of the blocks that the second engine had computed itself.
    const refs = manifest.summaries.filter(({ fromToken }) => fromToken < 640);
    expect(new Set(refs.map(({ kind }) => kind)).size).toBe(2);
    for (const ref of refs) expect(await store.get(ref.objectKey), ref.kind).toBeDefined();
  });

  it("computes the blocks again where nothing of them can be had", async () => {
    const { found } = await fourth(async (store) => {
      await store.drop(/\/sum-mean-deviation\//);
      await store.drop(/\/seg\//);
    });
    // The third turn chose some blocks in all layers, and they are on the device still.
    expect(found.usage.recomputedTokens).toBeGreaterThan(0);
    expect(found.usage.cachedTokens).toBeGreaterThan(0);
  });
});

describe("a lost span whose provenance scores another kind than the turn", () => {
  it("is replayed by that kind", async () => {
    const store = new Watched();
    const selections = [QUEST, MEAN, MEAN, QUEST];
    const { session } = await turns({ engine: await open(store), selections: selections.slice(0, 3), flush: true });
    const { key } = (await store.list("kv/")).keys.find((item) => item.key.includes("/session/"))!;
    const { manifest } = (await loadManifest(store, key))!;
    // Tokens of the second turn: attended by mean-deviation.
    const lost = manifest.segments.find(({ fromToken }) => fromToken >= 701)!;
    await store.delete([lost.objectKey]);
    store.asked = [];
    const engine = await open(store);
    const found = await as(session, QUEST).turn(engine, randomIds(33, 100), LOGPROBS);
    const expected = await undisturbed(selections);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.usage.recomputedTokens).toBeGreaterThan(0);
    expect(store.kinds()).toEqual(["min-max", "mean-deviation"]);
  });
});

describe("hot blocks", () => {
  it("are what the last turn chose, and come with the first burst", async () => {
    const store = new Watched();
    const { session } = await turns({ engine: await open(store), selections: [QUEST, QUEST], flush: true });
    const { key } = (await store.list("kv/")).keys.find((item) => item.key.includes("/session/"))!;
    const { manifest } = (await loadManifest(store, key))!;
    expect(manifest.hotBlocks).toHaveLength(2);
    for (const blocks of manifest.hotBlocks) {
      expect(blocks.length).toBeGreaterThan(1);
      expect(Math.max(...blocks)).toBeLessThan(Math.floor(session.ids.length / 64));
    }
    const patient = { policy: "quest", budgetTokens: 128, exact: false } as const;
    const resumed = await as(session, patient).turn(await open(store), randomIds(9, 40), { maxTokens: 1 });
    expect(resumed.usage.pagesMissed).toBe(0);
    expect(resumed.usage.pagesBeforeFirstToken).toBeGreaterThanOrEqual(4 * manifest.hotBlocks.flat().length - 40);
  });
});
