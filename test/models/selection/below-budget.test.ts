/** Whatever the selection, the model's shape, the batch and the chunks: below its budget it is dense, bit for bit. */
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { BLOCK_TOKENS, type Device, SUMMARY_KINDS } from "../../../kernels/contract.ts";
import { openDevice } from "../../../kernels/open.ts";
import type { ModelConfig, ModelRunner } from "../../../models/contract.ts";
import { openRunner } from "../../../models/open.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import { QuireError } from "../../../protocol/errors.ts";
import { SELECTION_POLICIES } from "../../../protocol/selection.ts";
import { selectionParts } from "../../protocol/arbitrary-selection.ts";
import { Conversation, DENSE, poolCounts } from "../conversation.ts";
import { seededTensors } from "../seeded-tensors.ts";

// The scalar reference takes seconds a run, and many times that on a busy machine.
vi.setConfig({ testTimeout: 240_000 });

const BUDGET_TOKENS = 256;
const SEQUENCES = 3;
const VOCABULARY = 64;

function tinyConfig(headCount: number, kvHeadCount: number): ModelConfig {
  return {
    modelType: "llama",
    vocabularySize: VOCABULARY,
    width: 32,
    ffnWidth: 48,
    layerCount: 3,
    headCount,
    kvHeadCount,
    headDim: 16,
    contextTokensMax: 512,
    normEps: 1e-5,
    ropeTheta: 10_000,
    tiedEmbeddings: true,
    eosTokenIds: [],
  };
}

async function open(device: Device, heads: readonly [number, number], encoding: "f32" | "int8"): Promise<ModelRunner> {
  const config = tinyConfig(...heads);
  const rowsMax = SEQUENCES * BUDGET_TOKENS;
  const counts = { layerCount: 3, contextTokens: 2 * BUDGET_TOKENS, rowsMax, sequences: SEQUENCES };
  return openRunner({
    device,
    config,
    source: seededTensors(config),
    encoding: "f32",
    kv: { encoding, summaryKinds: SUMMARY_KINDS, ...poolCounts(counts) },
    rowsMax,
  });
}

/** What a prompt under a selection leaves: logprobs of the token behind it, and every sealed block. */
async function traces(runner: ModelRunner, conversation: Conversation): Promise<unknown> {
  const sealed = Math.floor(conversation.tokens.length / BLOCK_TOKENS);
  const blocks: Uint8Array[] = [];
  for (let layer = 0; layer < 3; layer++) {
    for (let block = 0; block < sealed; block++) {
      blocks.push(await runner.pool.readBlock(conversation.blockIds[layer * conversation.blockCapacity + block]!));
    }
  }
  return { sample: await conversation.probe([1]), blocks };
}

const selection = selectionParts(SELECTION_POLICIES.filter((name) => name !== "dense"))
  .map((parts) => parts.flat().join("+"))
  .filter((text) => {
    try {
      policyNamed(text).plan(BUDGET_TOKENS);
      return true;
    } catch (error) {
      if (error instanceof QuireError) return false;
      throw error;
    }
  });
const sequence = fc.record({
  selection,
  // With the probe's token the context is the whole budget at most.
  length: fc.integer({ min: 2, max: BUDGET_TOKENS - 1 }),
  cuts: fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 6 }),
});

describe.each([
  ["wasm", "int8", 12],
  ["wasm", "f32", 6],
  ["reference", "int8", 3],
] as const)("on the %s device with KV in %s", (kind, encoding, runs) => {
  it.each([
    [4, 4],
    [4, 2],
    [4, 1],
  ] as const)("%d heads over %d KV heads", async (...heads) => {
    const device = await openDevice({ kind, ...(kind === "wasm" ? { threads: 1 } : {}) });
    try {
      const runner = await open(device, heads, encoding);
      const options = (index: number) => ({ contextTokens: 2 * BUDGET_TOKENS, chunkTokens: BUDGET_TOKENS, index });
      const property = fc.asyncProperty(
        fc.array(sequence, { minLength: SEQUENCES, maxLength: SEQUENCES }),
        async (all) => {
          const ids = all.map(({ length }, index) =>
            Array.from({ length }, (_, i) => (i * 7 + index * 13) % VOCABULARY),
          );
          const dense: unknown[] = [];
          for (const index of all.keys()) {
            const conversation = new Conversation(runner, { ...options(index), plan: DENSE });
            await conversation.prefill(ids[index]!);
            dense.push(await traces(runner, conversation));
          }
          // The selections run with cut prompts, all but the last token; those go through one batch.
          const mixed = all.map(({ selection: text }, index) => {
            const plan = policyNamed(text).plan(BUDGET_TOKENS);
            return new Conversation(runner, { ...options(index), plan });
          });
          for (const [index, conversation] of mixed.entries()) {
            await conversation.prefill(ids[index]!.slice(0, -1), all[index]!.cuts);
          }
          const steps = mixed.map((conversation, index) => conversation.step(ids[index]!.slice(-1), { sample: true }));
          const results = await runner.step(steps);
          for (const [index, conversation] of mixed.entries()) {
            conversation.accept(ids[index]!.slice(-1), results[index]!);
            expect(results[index]!.traffic).toMatchObject({ pagesSelected: 0, metadataBytes: 0 });
            expect(await traces(runner, conversation), all[index]!.selection).toEqual(dense[index]);
          }
        },
      );
      await fc.assert(property, { numRuns: runs, seed: 11 });
    } finally {
      await device.close();
    }
  });
});
