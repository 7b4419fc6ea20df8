/** RoPE as configurations spell it: theta and scaling beside each other, or together in `rope_parameters` (transformers 5). */
import { fail, flag, type Json, object, positive, show } from "./config-fields.ts";
import type { RopeScaling } from "./contract.ts";

const ORIGINAL = "original_max_position_embeddings";

/** What a configuration says of its rotary embedding. */
export interface RopeConfig {
  theta: number;
  /** Undefined: plain RoPE. */
  scaling: RopeScaling | undefined;
  /** Positions the scaling is made for, where that is more than `max_position_embeddings`; else undefined. */
  contextTokensMax: number | undefined;
}

/**
 * Reads `rope_theta`, `rope_scaling` (old) and `rope_parameters` (new); the type may be called `type` or `rope_type`.
 * Defaults and inferred values are those of HF's `modeling_rope_utils`.
 * @throws {QuireError} `invalid_request` naming the field and what is unsupported.
 */
export function parseRope(json: Json): RopeConfig {
  if ((json.partial_rotary_factor ?? 1) !== 1) fail("partial_rotary_factor", "only 1 is supported");
  refuseContradiction(json);
  const field = json.rope_parameters == null ? "rope_scaling" : "rope_parameters";
  const rope = json[field] == null ? {} : object(json[field], field);
  const nested = Object.keys(rope).find((key) => typeof rope[key] === "object" && rope[key] !== null);
  if (nested !== undefined) fail(field, `settings per layer type (${show(nested)}) are not supported`);
  if ((rope.partial_rotary_factor ?? 1) !== 1) fail(field, "a partial_rotary_factor other than 1 is not supported");
  const theta = rope.rope_theta == null ? positive(json, "rope_theta", 10_000) : positive(rope, "rope_theta");
  const type = rope.rope_type ?? rope.type ?? "default";
  switch (type) {
    case "default":
      return { theta, scaling: undefined, contextTokensMax: undefined };
    case "linear":
      return { theta, scaling: { type: "linear", factor: positive(rope, "factor") }, contextTokensMax: undefined };
    case "llama3":
      return { theta, scaling: llama3(rope), contextTokensMax: undefined };
    case "yarn": {
      const scaling = yarn(rope, json);
      return { theta, scaling, contextTokensMax: Math.floor(scaling.factor * scaling.originalContextTokens) };
    }
    default:
      return fail(field, `rope type ${show(type)} is not supported, only "default", "linear", "llama3" and "yarn"`);
  }
}

/** HF reads the older field where both are there: somebody added it to a newer file, and means it. */
function refuseContradiction(json: Json): void {
  if (json.rope_parameters == null || json.rope_scaling == null) return;
  const newer = object(json.rope_parameters, "rope_parameters");
  for (const [key, value] of Object.entries(object(json.rope_scaling, "rope_scaling"))) {
    const said = key === "type" || key === "rope_type" ? (newer.rope_type ?? newer.type ?? "default") : newer[key];
    if ((said ?? null) !== value)
      fail("rope_scaling", `says otherwise than rope_parameters of ${show(key)}; leave one of both`);
  }
}

function llama3(rope: Json): RopeScaling {
  const lowFreqFactor = positive(rope, "low_freq_factor");
  const highFreqFactor = positive(rope, "high_freq_factor");
  if (highFreqFactor <= lowFreqFactor) fail("high_freq_factor", `${highFreqFactor} is not above ${lowFreqFactor}`);
  return {
    type: "llama3",
    factor: positive(rope, "factor"),
    lowFreqFactor,
    highFreqFactor,
    originalContextTokens: positive(rope, ORIGINAL),
  };
}

function yarn(rope: Json, json: Json): Extract<RopeScaling, { type: "yarn" }> {
  const positions = positive(json, "max_position_embeddings", 2048);
  // DeepSeek-like configurations leave the factor to the ratio of the two contexts.
  const original = rope[ORIGINAL] ?? (rope.factor == null ? undefined : positions);
  const originalContextTokens = positive({ [ORIGINAL]: original }, ORIGINAL);
  const factor = positive(rope, "factor", positions / originalContextTokens);
  return {
    type: "yarn",
    factor,
    originalContextTokens,
    betaFast: positive(rope, "beta_fast", 32),
    betaSlow: positive(rope, "beta_slow", 1),
    attentionFactor: yarnAttentionFactor(rope, factor),
    truncate: flag(rope, "truncate", true),
  };
}

function yarnAttentionFactor(rope: Json, factor: number): number {
  if (rope.attention_factor != null) return positive(rope, "attention_factor");
  const scale = (mscale: number) => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  if (!rope.mscale || !rope.mscale_all_dim) return scale(1);
  return scale(positive(rope, "mscale")) / scale(positive(rope, "mscale_all_dim"));
}
