import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { nodeRuntime, workerdRuntime } from "../../bench/tokenizer/runtime.ts";
import { makeTexts } from "../../bench/tokenizer/texts.ts";
import { compileTokenizer } from "../../tokenizer/open.ts";

const house = readFileSync(new URL("../../weights/house-0/tokenizer.json", import.meta.url));

describe("what the tokenizer benchmark runs", () => {
  it("gives the same ids in workerd and in Node, by tables and by the library", { timeout: 60_000 }, async () => {
    const { texts } = makeTexts({ count: 2, charCount: 3_000, seed: 2 });
    expect(texts.map((text) => text.length)).toEqual([expect.any(Number), expect.any(Number)]);
    expect(texts[0]).not.toBe(texts[1]);
    const tables = (compileTokenizer(JSON.parse(house.toString("utf8"))) as Uint8Array<ArrayBuffer>).buffer;
    const json = new Uint8Array(house).buffer;
    const results: { tokens: number; sum: number }[] = [];
    for (const runtime of [await workerdRuntime(), nodeRuntime()]) {
      try {
        await runtime.setTexts(texts);
        await runtime.open("quire", tables);
        results.push(await runtime.encode(1, 2));
        await runtime.open("library", json);
        results.push(await runtime.encode(1, 1));
      } finally {
        await runtime.close();
      }
    }
    expect(results[0]?.tokens).toBe(Buffer.byteLength(texts[1] as string));
    for (const result of results) expect(result).toEqual(results[0]);
  });
});
