import { describe, expect, it } from "vitest";
import { passagePrompts } from "../../bench/schedule/passages.ts";

describe("prompts of copy-heavy work", () => {
  it("are passages with their beginning behind them, each another one", async () => {
    const prompts = await passagePrompts("weights/house", { tokenCount: 200, count: 3 });
    expect(prompts).toHaveLength(3);
    for (const tokens of prompts!) {
      expect(tokens).toHaveLength(200);
      expect(tokens.slice(180)).toEqual(tokens.slice(0, 20));
    }
    expect(new Set(prompts!.map((tokens) => tokens.join())).size).toBe(3);
  });

  it("are not there for a model that no evaluation cases came with", async () => {
    expect(await passagePrompts(undefined, { tokenCount: 200, count: 3 })).toBeUndefined();
  });
});
