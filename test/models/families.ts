/** The cases of vectors/make-vectors.py, and a runner's hidden states and logits at their positions. */
import type { Device, MatrixEncoding } from "../../kernels/contract.ts";
import { parseConfig } from "../../models/config.ts";
import type { ModelConfig } from "../../models/contract.ts";
import type { Observation } from "../../models/observer.ts";
import { openRunner } from "../../models/open.ts";
import type { TensorSource } from "../../models/tensor-source.ts";
import { Conversation, poolCounts } from "./conversation.ts";
import { relativeError } from "./measures.ts";
import { seededTensors } from "./seeded-tensors.ts";

/** One checkpoint, as HF computes it. */
export interface FamilyCase {
  name: string;
  /** As `config.json` holds it. */
  config: Record<string, unknown>;
  ids: number[];
  positions: number[];
  /** `[position][layer]`: inputs of the layers, then the final norm's output. */
  hidden: number[][][];
  /** `[position]` */
  logits: number[][];
}

/** What a forward pass gave at a case's positions; shapes as in {@link FamilyCase}. */
export type Computed = Pick<FamilyCase, "positions"> & { hidden: Float32Array[][]; logits: Float32Array[] };

/** Runs a case's ids through the model; chunks end at the positions asked for. */
export async function compute(
  device: Device,
  family: Pick<FamilyCase, "ids" | "positions">,
  model: { config: ModelConfig; source: TensorSource; encoding?: MatrixEncoding },
): Promise<Computed> {
  const { config, source, encoding = "f32" } = model;
  const { ids, positions } = family;
  const contextTokens = Math.ceil(ids.length / 64) * 64;
  const rowsMax = contextTokens;
  const observed: Observation[] = [];
  const runner = await openRunner({
    device,
    config,
    source,
    encoding,
    kv: {
      encoding: "f32",
      summaryKinds: [],
      ...poolCounts({ layerCount: config.layerCount, contextTokens, rowsMax }),
    },
    rowsMax,
    observe: (observation) => observed.push(observation),
  });
  const cuts = positions.map((position, i) => position - (positions[i - 1] ?? -1));
  await new Conversation(runner, { contextTokens }).prefill(ids, cuts);
  const logits = observed.filter(({ stage }) => stage === "logits").map(({ values }) => values);
  const hidden = positions.map((_, i) =>
    observed
      .filter(({ stage }) => stage === "hidden")
      .slice(i * (config.layerCount + 1), (i + 1) * (config.layerCount + 1))
      .map(({ rows, width, values }) => values.subarray((rows - 1) * width)),
  );
  return { positions, hidden, logits };
}

/** A case's configuration and its seeded tensors. */
export function familyModel(family: FamilyCase): { config: ModelConfig; source: TensorSource } {
  const config = parseConfig(family.config);
  return { config, source: seededTensors(config) };
}

/** How far a forward pass is from HF's at worst, over all positions, layers and logits. */
export function worstError(computed: Computed, expected: Pick<FamilyCase, "hidden" | "logits">): number {
  const hidden = expected.hidden.flatMap((layers, i) =>
    layers.map((values, layer) => relativeError(computed.hidden[i]?.[layer] ?? [], values)),
  );
  const logits = expected.logits.map((values, i) => relativeError(computed.logits[i] ?? [], values));
  return Math.max(...hidden, ...logits);
}
