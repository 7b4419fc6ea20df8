import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { StoredEncoding } from "../../storage/geometry.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openForTest, randomIds, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const PROMPTS = [randomIds(1, 1100), randomIds(2, 90), randomIds(3, 75)];
const SELECTIONS: Record<string, SelectionRequest> = {
  "quest exact": { policy: "quest", budgetTokens: 128, exact: true },
  "mean-deviation exact": { policy: "mean-deviation", budgetTokens: 128, exact: true },
  "tokenselect exact": { policy: "tokenselect", budgetTokens: 128, exact: true },
  "a choice for two layers": { policy: "quest+share(2)", budgetTokens: 128, exact: true },
  "a choice for eight tokens": { policy: "quest+share(2)+reuse(8)", budgetTokens: 128, exact: true },
  "from the first turn on": { policy: "quest+first-turn(256)", budgetTokens: 128, exact: true },
  "as much as it takes": { policy: "mean-deviation+top-p(0.5)", budgetTokens: 192, exact: true },
  "a choice for 64 rows of a prompt": { policy: "quest+group(64)", budgetTokens: 144, exact: true },
  "one for 32 rows and all heads": { policy: "mean-deviation+scope(layer)+group(32)", budgetTokens: 128, exact: true },
  "a dense layer": { policy: "mean-deviation+dense-layers(1)", budgetTokens: 128, exact: true },
  streaming: { policy: "streaming", budgetTokens: 128, exact: true },
  dense: { policy: "dense", budgetTokens: 0, exact: true },
};

async function open(store: MemoryStore, pages: StoredEncoding): Promise<TestEngine> {
  return openForTest({ store, pages });
}
/** Three turns on one engine that is never stopped. */
async function undisturbed(selection: SelectionRequest, pages: StoredEncoding): Promise<number[][]> {
  const engine = await open(new MemoryStore(), pages);
  const session = new TestSession("s", selection);
  const replies: number[][] = [];
  for (const prompt of PROMPTS) replies.push((await session.turn(engine, prompt)).ids);
  await untilIdle(engine);
  return replies;
}

/** What a policy reads is the same in every encoding: of the packed ones, a policy of each way of reading is enough. */
const PACKED_TOO = ["quest exact", "tokenselect exact", "dense"];

describe.each(Object.entries(SELECTIONS))("resume on a fresh engine: %s", (name, selection) => {
  it.each<StoredEncoding>(["int8", "f32", ...(PACKED_TOO.includes(name) ? (["int4", "f16"] as const) : [])])(
    "continues bit for bit with %s pages and reads them from the store",
    async (pages) => {
      const expected = await undisturbed(selection, pages);
      const store = new MemoryStore();
      const first = await open(store, pages);
      const session = new TestSession("s", selection);
      expect((await session.turn(first, PROMPTS[0]!)).ids).toEqual(expected[0]);
      const second = await session.turn(first, PROMPTS[1]!);
      expect(second.ids).toEqual(expected[1]);
      expect(second.usage.cachedTokens).toBe(1100 + 16);
      expect(second.usage.source.device).toBe(1100 + 16);
      await untilIdle(first);
      await first.persister.flush();
      const logged = session.ids.length;

      const fresh = await open(store, pages);
      const third = await session.turn(fresh, PROMPTS[2]!);
      expect(third.ids).toEqual(expected[2]);
      expect(third.usage.cachedTokens).toBe(logged);
      expect(third.usage.source.store).toBe(logged);
      expect(third.usage.recomputedTokens).toBe(0);
      expect(third.usage.bytesBeforeFirstToken).toBeGreaterThan(0);
      expect(third.usage.pagesBeforeFirstToken).toBeGreaterThan(0);
      if (selection.policy !== "dense") {
        expect(third.usage.pagesSelected).toBeGreaterThan(0);
        const share = selection.policy === "tokenselect" ? 0.8 : 0.25;
        expect(third.usage.pagesSelected).toBeLessThan(third.usage.pagesInContext * share);
      }
      await untilIdle(fresh);
      fresh.evictIdle();
      expect(fresh.engine.status.heldBlockCount).toBe(0);
      expect(fresh.engine.status.heldSlotCount).toBe(0);
      expect(fresh.logged.filter(({ event }) => event !== "fetch.lost")).toEqual([]);
    },
  );
});
