/** Heads for shapes whose weights nobody trained: no profile says which of them retrieve, so the seed does. */
import type { ModelConfig } from "../../models/contract.ts";
import { resolveHeads } from "../../models/selection/head-profile.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { parseSelection } from "../../protocol/selection.ts";
import { seededRandom } from "../random.ts";

const HEADS_STREAM = 3;

/** A selection whose heads(SHARE), if it has one, names heads drawn by the seed; the same seed and shape give the same heads. */
export function withSeededHeads(
  selection: SelectionConfiguration,
  { layerCount, kvHeadCount }: Pick<ModelConfig, "layerCount" | "kvHeadCount">,
  seed: number,
): SelectionConfiguration {
  const random = seededRandom(seed, HEADS_STREAM);
  const scores = Array.from({ length: layerCount }, () => Array.from({ length: kvHeadCount }, () => random()));
  const heads = { format: 1, fingerprint: "seeded", scores } as const;
  return parseSelection(resolveHeads(selection, { layerCount, kvHeadCount, heads })).canonical;
}
