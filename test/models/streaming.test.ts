/** Loading in pieces: how large they are, that all of them arrive, and what is said on the way. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { parseConfig } from "../../models/config.ts";
import type { LoadProgress } from "../../models/llama-weights.ts";
import type { Observation } from "../../models/observer.ts";
import { openRunner } from "../../models/open.ts";
import { parameterCount } from "../../models/plan-memory.ts";
import type { RowRange, TensorSource } from "../../models/tensor-source.ts";
import { Conversation, poolCounts } from "./conversation.ts";
import { seededTensors } from "./seeded-tensors.ts";

/** The embeddings have 5.1 million values, more than one piece. */
const config = parseConfig({
  model_type: "llama",
  vocab_size: 40_003,
  hidden_size: 128,
  intermediate_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  num_key_value_heads: 1,
  tie_word_embeddings: true,
});
const PIECE_VALUES_MAX = 4 * 1024 * 1024;

describe("loading in pieces", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind: "wasm" });
  });
  afterAll(() => device?.close());

  it("never asks for a large tensor whole, packs every row, and says how far it is", async () => {
    const whole = seededTensors(config);
    const pieces: { name: string; rows: RowRange }[] = [];
    const source: TensorSource = {
      names: whole.names,
      shape: (name) => whole.shape(name),
      read: () => Promise.reject(new Error("asked for a whole tensor")),
      readRows: (name, rows) => {
        pieces.push({ name, rows });
        return whole.readRows(name, rows);
      },
      close: () => whole.close(),
    };
    const progress: LoadProgress[] = [];
    const observed: Observation[] = [];
    const runner = await openRunner({
      device,
      config,
      source,
      encoding: "f32",
      kv: {
        encoding: "f32",
        summaryKinds: [],
        ...poolCounts({ layerCount: 1, contextTokens: 64, rowsMax: 8 }),
      },
      rowsMax: 8,
      onProgress: (each) => progress.push(each),
      observe: (observation) => observed.push(observation),
    });
    const embeddings = pieces.filter(({ name }) => name === "model.embed_tokens.weight");
    expect(embeddings.length).toBe(2);
    for (const { name, rows } of pieces) {
      const rowValues = whole
        .shape(name)!
        .slice(1)
        .reduce((a, b) => a * b, 1);
      expect(rows.count * rowValues).toBeLessThanOrEqual(PIECE_VALUES_MAX);
    }
    expect(progress.length).toBe(pieces.length);
    expect(progress.at(-1)).toMatchObject({ loadedCount: parameterCount(config), totalCount: parameterCount(config) });

    // The embeddings of the first and last id of each piece.
    const ids = embeddings.flatMap(({ rows }) => [rows.first, rows.first + rows.count - 1]);
    expect(ids.at(-1)).toBe(40_002);
    await new Conversation(runner, { contextTokens: 64 }).prefill(ids);
    const { values } = observed.find(({ stage, layer }) => stage === "hidden" && layer === 0)!;
    const table = await whole.read("model.embed_tokens.weight");
    expect([...values]).toEqual(ids.flatMap((id) => [...table.subarray(id * 128, (id + 1) * 128)]));
  });
});
