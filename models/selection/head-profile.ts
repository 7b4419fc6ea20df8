/**
 * Which KV heads of a model look back for what they copy, and which see the first and last tokens only (DuoAttention, RazorAttention): measured by
 * `quire profile-heads`, kept as `heads.json` beside the model. A selection names a share of the heads (`quest+heads(0.5)`); before anything is
 * computed the share becomes the heads themselves (`quest+heads(xb0)`), which is what provenance says. So KV can be computed again without the
 * profile, and two profiles are never confused.
 */
import { QuireError } from "../../protocol/errors.ts";
import { parseSelection, selectionRefusal } from "../../protocol/selection.ts";

/** Name of the file, in the model's folder, or behind a GGUF file's name and a dot. */
export const HEADS_FILE = "heads.json";

/** The contents of the file; whatever else it holds is for people. */
export interface HeadProfile {
  format: 1;
  /** Of the model that was measured. */
  fingerprint: string;
  /** `[layer][kvHead]`: the larger, the more it retrieves. */
  scores: readonly (readonly number[])[];
}

/** What {@link resolveHeads} must know of a model. */
export interface ProfiledModel {
  layerCount: number;
  kvHeadCount: number;
  /** Undefined: nobody has measured it. */
  heads?: HeadProfile | undefined;
}

/**
 * A selection in canonical form with its heads named; others as they are.
 * @throws {QuireError} `invalid_request` for a share on a model without a profile, and for named heads that are not this model's.
 */
export function resolveHeads(selection: string, { layerCount, kvHeadCount, heads }: ProfiledModel): string {
  const value = headsOf(selection);
  if (typeof value === "number") {
    if (heads === undefined) {
      throw selectionRefusal(
        `heads(${value}) needs a profile of this model, and there is none: run quire profile-heads`,
      );
    }
    const named = nameHeads(heads.scores.flat(), value);
    return selection.replace(`+heads(${value})`, `+heads(${named})`);
  }
  if (namesHeadsOf(selection, { layerCount, kvHeadCount })) return selection;
  throw selectionRefusal(`heads(${value}) is not of a model of ${layerCount} layers of ${kvHeadCount} KV heads`);
}

/** Whether the heads that a selection names, if it does, can be those of a model. */
export function namesHeadsOf(
  selection: string,
  { layerCount, kvHeadCount }: Pick<ProfiledModel, "layerCount" | "kvHeadCount">,
): boolean {
  const value = headsOf(selection);
  return typeof value !== "string" || value.length === 1 + Math.ceil((layerCount * kvHeadCount) / 4);
}

function headsOf(selection: string): number | string | undefined {
  return parseSelection(selection).modifiers.find(({ name }) => name === "heads")?.value;
}

/** The best `share` of the heads, rounded to the nearest count, at least one; ties to the first. */
function nameHeads(scores: readonly number[], share: number): string {
  const count = Math.max(1, Math.round(scores.length * share));
  const order = [...scores.keys()].sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
  const digits = new Array<number>(Math.ceil(scores.length / 4)).fill(0);
  for (const head of order.slice(0, count)) {
    const at = Math.floor(head / 4);
    digits[at] = (digits[at] as number) | (8 >> (head % 4));
  }
  return `x${digits.map((digit) => digit.toString(16)).join("")}`;
}

/** Reads a profile. @throws {QuireError} `invalid_request`, one line that names the field, for a file that is none or is of another model. */
export function parseHeadProfile(
  text: string,
  { fingerprint, layerCount, kvHeadCount }: { fingerprint: string; layerCount: number; kvHeadCount: number },
): HeadProfile {
  let fields: Partial<Record<keyof HeadProfile, unknown>>;
  try {
    fields = Object(JSON.parse(text));
  } catch {
    return ignore("it is not JSON");
  }
  if (fields.format !== 1) ignore("format is not 1");
  if (fields.fingerprint !== fingerprint) ignore("it is of another model or weight encoding; profile again");
  const { scores } = fields;
  const isLayer = (layer: unknown): boolean =>
    Array.isArray(layer) && layer.length === kvHeadCount && layer.every((score) => Number.isFinite(score));
  if (!Array.isArray(scores) || scores.length !== layerCount || !scores.every(isLayer)) {
    ignore(`scores are not ${layerCount} layers of ${kvHeadCount} KV heads`);
  }
  return { format: 1, fingerprint, scores };
}

function ignore(problem: string): never {
  throw new QuireError("invalid_request", `${HEADS_FILE}: ${problem}`);
}
