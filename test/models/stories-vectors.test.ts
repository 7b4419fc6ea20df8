/** stories260K against HF transformers: hidden states of every layer, logits and greedy text. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { Observation } from "../../models/observer.ts";
import { openRunner } from "../../models/open.ts";
import { Conversation, poolCounts } from "./conversation.ts";
import { relativeError } from "./measures.ts";
import { readStories, STORIES_ABSENT, type StoriesCase, storiesCases } from "./stories.ts";

const ERROR_MAX = 1e-4;
const skipped = STORIES_ABSENT === undefined ? "" : ` (skipped: ${STORIES_ABSENT})`;

describe.skipIf(STORIES_ABSENT !== undefined).each(["reference", "wasm"] as const)(
  `stories260K in f32 on the %s device${skipped}`,
  (kind) => {
    let device: Device;
    let cases: StoriesCase[];
    beforeAll(async () => {
      device = await openDevice({ kind });
      cases = await storiesCases();
    });
    afterAll(() => device?.close());

    it("equals the vectors: three prompts, every layer, logits at up to three positions, greedy ids", async () => {
      expect(cases.map(({ name }) => name)).toEqual(["bos", "once", "long"]);
      const observed: Observation[] = [];
      const model = await readStories();
      const contextTokens = 384;
      const rowsMax = 160;
      const runner = await openRunner({
        device,
        ...model,
        encoding: "f32",
        kv: { encoding: "f32", summaryKinds: [], ...poolCounts({ layerCount: 5, contextTokens, rowsMax }) },
        rowsMax,
        observe: (observation) => observed.push(observation),
      });
      for (const vectors of cases) {
        const conversation = new Conversation(runner, { contextTokens });
        observed.length = 0;
        const cuts = vectors.positions.map((position, i) => position - (vectors.positions[i - 1] ?? -1));
        const first = await conversation.prefill(vectors.ids, cuts);
        const logits = observed.filter(({ stage }) => stage === "logits").map(({ values }) => values);
        expect(logits.length).toBe(vectors.positions.length);
        logits.forEach((values, i) => {
          expect(relativeError(values, vectors.logits[i]!)).toBeLessThan(ERROR_MAX);
        });
        const hidden = observed.slice(observed.findLastIndex(({ layer }) => layer === 0)).slice(0, -1);
        expect(hidden.map(({ layer }) => layer)).toEqual([0, 1, 2, 3, 4, 5]);
        hidden.forEach(({ rows, width, values }, layer) => {
          const last = values.subarray((rows - 1) * width);
          expect(relativeError(last, vectors.hidden_last_position[layer]!)).toBeLessThan(ERROR_MAX);
        });
        expect(await conversation.generate(first, { tokensMax: vectors.greedy.length })).toEqual(vectors.greedy);
      }
    });
  },
);
