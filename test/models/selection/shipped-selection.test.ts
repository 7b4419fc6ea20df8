/** What `auto` is on the model that ships, and that it costs nothing where nothing is left out. */
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { readCalibration } from "../../../engine/calibration.ts";
import { resolveSelection } from "../../../engine/http/request-check.ts";
import type { Device, SummaryKind } from "../../../kernels/contract.ts";
import { openDevice } from "../../../kernels/open.ts";
import type { ModelRunner } from "../../../models/contract.ts";
import { openModel } from "../../../models/open.ts";
import type { Calibration } from "../../../models/selection/calibration.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import { Conversation, DENSE, poolCounts } from "../conversation.ts";

vi.setConfig({ testTimeout: 240_000, hookTimeout: 240_000 });

const FOLDER = "weights/house";
const CONTEXT_TOKENS = 1024;
const SHIPPED = "quest+sink(16)+group(32)+head-budgets(1,1,8,0,1,0)";
/** What an engine keeps that was told nothing. */
const KINDS: readonly SummaryKind[] = ["min-max", "mean-deviation"];

let device: Device;
let runner: ModelRunner;
let calibration: Calibration | undefined;
beforeAll(async () => {
  device = await openDevice({ kind: "wasm", threads: 1 });
  const counts = poolCounts({ layerCount: 4, contextTokens: CONTEXT_TOKENS, rowsMax: 128, sequences: 2 });
  const kv = { encoding: "int8", summaryKinds: KINDS, ...counts } as const;
  runner = await openModel({ folder: FOLDER, device, encoding: "int8", kv, rowsMax: 128 });
  const log = (event: string, fields?: object) => expect.fail(`${event} ${JSON.stringify(fields)}`);
  calibration = await readCalibration(FOLDER, { fingerprint: runner.fingerprint, kinds: KINDS, log });
});
afterAll(() => device?.close());

it.each([
  [4095, "dense", 2048],
  [4096, SHIPPED, 512],
  [8192, SHIPPED, 512],
  [12288, SHIPPED, 768],
  [16384, SHIPPED, 1024],
  [32704, SHIPPED, 2048],
])("at %i tokens it is %s, budget %i", (contextTokens, policy, budgetTokens) => {
  expect(calibration).toBeDefined();
  const { layerCount, kvHeadCount } = runner.config;
  const basis = { layerCount, kvHeadCount, summaryKinds: KINDS, ...(calibration === undefined ? {} : { calibration }) };
  const selection = { policy: "auto", budgetTokens: 0, exact: false } as const;
  const resolved = resolveSelection({ selection, tokens: new Uint8Array(4 * contextTokens) }, basis);
  expect(resolved).toMatchObject({ policy, budgetTokens, groupTokens: policy === SHIPPED ? 32 : 16 });
});

it("is dense, bit for bit, while the context fits the budget, and reads less behind it", async () => {
  const ids = Array.from({ length: 700 }, (_, index) => 300 + ((index * 7919) % 3_000));
  const options = (index: number) => ({ contextTokens: CONTEXT_TOKENS, index });
  const dense = new Conversation(runner, { ...options(0), plan: DENSE });
  const selected = new Conversation(runner, { ...options(1), plan: policyNamed(SHIPPED).plan(512) });
  for (const conversation of [dense, selected]) await conversation.prefill(ids.slice(0, 500));
  // Logprobs of one more step are a function of every bit of the cache that it reads.
  const expected = await dense.probe([1]);
  expect(expected?.top?.length).toBe(20);
  expect(await selected.probe([1])).toEqual(expected);
  for (const conversation of [dense, selected]) await conversation.prefill(ids.slice(500));
  expect(await selected.probe([1])).not.toEqual(await dense.probe([1]));
  const [theirs, ours] = [dense, selected].map(({ results }) => results.at(-1)?.traffic);
  expect(theirs?.metadataBytes).toBe(0);
  expect(ours?.metadataBytes).toBeGreaterThan(0);
  expect(ours?.kvBytes).toBeLessThan(0.75 * (theirs?.kvBytes ?? 0));
});
