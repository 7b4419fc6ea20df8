/** A first prompt that is read with selection: under its own budget, to the same bits however it is cut, and said in the spans. */
import { expect, it } from "vitest";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { generate, openForTest, randomIds, request, type TestEngine } from "./harness.ts";

async function open(rowsMax?: number): Promise<TestEngine> {
  return openForTest({ ...(rowsMax === undefined ? {} : { rowsMax }) });
}
async function ask(engine: TestEngine, policy: SelectionConfiguration, budgetTokens = 128) {
  const tokens = idsToBytes(randomIds(9, 900));
  const selection = { policy, budgetTokens, exact: true };
  return generate(engine, request({ tokens, maxTokens: 6, selection, topLogprobs: 0 }));
}

it("reads fewer pages than a dense prompt and says so in the provenance", async () => {
  const engine = await open();
  const dense = await ask(engine, "quest");
  const selected = await ask(engine, "quest+first-turn(256)");
  expect(dense.spans.map(({ how }) => how)).toEqual(["dense", "quest.1:128@1"]);
  expect(selected.spans.map(({ how }) => how)).toEqual([
    "quest+first-turn(256).1:256@16",
    "quest+first-turn(256).1:128@1",
  ]);
  // Blocks below the budget are dense and shared; what lies above was attended otherwise, and is not.
  expect(selected.usage.cachedTokens).toBe(256);
  // How many depends on where steps are cut: the last layer of a step that samples nothing selects nothing.
  expect(selected.usage.pagesSelected).toBeGreaterThan(5 * dense.usage.pagesSelected);
  expect(selected.usage.pagesSelected).toBeLessThan(0.6 * selected.usage.pagesInContext);
  expect(selected.logprobs).not.toEqual(dense.logprobs);
});

it("gives the same bits in small steps", async () => {
  const whole = await ask(await open(), "mean-deviation+first-turn(192)");
  const cut = await ask(await open(48), "mean-deviation+first-turn(192)");
  expect(cut.ids).toEqual(whole.ids);
  expect(cut.logprobs).toEqual(whole.logprobs);
});

it("is refused where its own budget is too small for what is always attended", async () => {
  const refused = { code: "invalid_request", param: "quire.selection.budget_tokens" };
  await expect(ask(await open(), "quest+first-turn(128)+sink(128)", 256)).rejects.toMatchObject(refused);
});
