/** What one KV head's part is worth, on house-0. */
import { describe, expect, it } from "vitest";
import { measureHeads } from "../../../bench/eval/profile-damage.ts";
import { openSubject } from "../../../bench/eval/subject.ts";
import { passagesOf } from "../../../bench/eval/tasks.ts";
import { documentsOfKind, readCases } from "../../../bench/recall/cases.ts";

const EVERYTHING = 64;

describe("measureHeads", () => {
  it("a head that takes every page is dense to the bit and to the byte, one that takes none reads least", async () => {
    const { sentences, documents } = await readCases("weights/house/dev-documents.jsonl.gz");
    const how = { device: "wasm", threads: 1, weights: "int8", kv: "int8" } as const;
    const subject = await openSubject({ ...how, model: "weights/house-0", contexts: [512], tokens: 1 }, ["min-max"]);
    try {
      const [document] = documentsOfKind(documents, "code", 2);
      const sentenceTokens = sentences.map((sentence) => subject.tokenizer.encode(sentence).length);
      const [passage] = passagesOf(subject, [document!], { sentences, sentenceTokens, lengthTokens: 512 });
      const { heads, denseBytes } = await measureHeads(subject, [{ document: document!, passage: passage! }], {
        ...{ selection: "quest", budgetTokens: 128, shares: [0, 1, EVERYTHING] },
        signal: new AbortController().signal,
      });
      expect(heads).toHaveLength(8);
      for (const [none, some, all] of heads) {
        expect(all).toEqual({ share: EVERYTHING, damage: 0, bytes: denseBytes / 8 });
        expect(none!.damage).toBeGreaterThan(0);
        expect(none!.bytes).toBeLessThan(some!.bytes);
        expect(some!.bytes).toBeLessThan(all!.bytes);
      }
    } finally {
      await subject.device.close();
    }
  }, 60_000);
});
