/** Requests that leave the choice to the engine: what was chosen is in the usage and in the provenance. */
import { expect, it } from "vitest";
import type { SummaryKind } from "../../kernels/contract.ts";
import type { Calibration } from "../../models/selection/calibration.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { generate, openForTest, randomIds, request, type TestEngine } from "./harness.ts";

const CALIBRATION: Calibration = {
  format: 1,
  fingerprint: "not looked at here",
  selection: "quest+share(2)",
  denseBelowTokens: 300,
  budgets: [{ contextTokens: 400, budgetTokens: 128 }],
};

async function open(calibration?: Calibration, summaryKinds?: readonly SummaryKind[]): Promise<TestEngine> {
  const settings = calibration === undefined ? {} : { calibration };
  const kinds = summaryKinds === undefined ? {} : { summaryKinds };
  return openForTest({ settings, ...kinds });
}
const ask = (engine: TestEngine, tokenCount: number, policy: "auto" | "quest+share(2)" | "dense" = "auto") => {
  const tokens = idsToBytes(randomIds(7, tokenCount));
  const selection = { policy, budgetTokens: policy === "quest+share(2)" ? 128 : 0, exact: true };
  return generate(engine, request({ tokens, maxTokens: 8, selection, requestId: `${policy}-${tokenCount}` }));
};

it("is dense below the break-even and the calibrated selection from there", async () => {
  const engine = await open(CALIBRATION);
  const short = await ask(engine, 299);
  expect(short.usage).toMatchObject({ policy: "dense", pagesSelected: 0 });
  const long = await ask(engine, 350);
  expect(long.usage).toMatchObject({ policy: "quest+share(2)", budgetTokens: 128 });
  expect(long.usage.pagesSelected).toBeGreaterThan(0);
  expect(long.spans.at(-1)?.how).toBe("quest+share(2).1:128@1");
  expect(long.ids).toEqual((await ask(await open(), 350, "quest+share(2)")).ids);
});

it("is the engine's own choice at the usual budget where nobody has measured", async () => {
  const { usage } = await ask(await open(), 350);
  expect(usage).toMatchObject({ policy: "quest+radius(0.5)+combine(sum)", budgetTokens: 2048 });
});

it("is dense where the engine does not keep what the choice would be scored by", async () => {
  const engine = await open(CALIBRATION, ["sign-bits"]);
  const { usage, ids } = await ask(engine, 350);
  expect(usage).toMatchObject({ policy: "dense", pagesSelected: 0 });
  expect(ids).toEqual((await ask(engine, 350, "dense")).ids);
  await expect(ask(engine, 350, "quest+share(2)")).rejects.toThrow(/needs min-max summaries/);
});
