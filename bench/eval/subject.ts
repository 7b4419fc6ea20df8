/** Opens a model with everything that the instrument needs around it. */
import { readFile } from "node:fs/promises";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { Device, SummaryKind } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { readModelConfig } from "../../models/model-files.ts";
import { openModel } from "../../models/open.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { REPLY_TOKENS_MAX, type Subject } from "../recall/ask.ts";
import { poolCounts, Sequence } from "../recall/sequence.ts";
import { Capture } from "./capture.ts";
import type { EvalValues } from "./flags.ts";

const ROWS_MAX = 256;
/** Turns of the longest conversation among the cases, whose replies may be longer than the answers that a passage left room for. */
const TURNS_MAX = 4;

/** A model, a sequence over the whole of its pool, and what looks into its steps. */
export interface EvalSubject extends Subject {
  device: Device;
  capture: Capture;
  /** How the model is called. */
  modelId: string;
}

/**
 * Opens the model; the caller closes the device.
 * @throws {UsageError} for a context that the model does not reach, or a device that cannot be looked into.
 */
export async function openSubject(
  values: Pick<EvalValues, "model" | "contexts" | "tokens" | "device" | "threads" | "weights" | "kv"> &
    Partial<Pick<EvalValues, "lengths" | "continued" | "generated">>,
  summaryKinds: readonly SummaryKind[],
): Promise<EvalSubject> {
  const { path: folder, modelId, readEdgeFile } = await openModelFolder(values.model);
  const config = await readModelConfig(folder);
  const { contexts, tokens, lengths = [], continued = [], generated = 0 } = values;
  const read = [...contexts.map((each) => each + tokens), ...lengths, ...continued.map((each) => each + generated)];
  const longest = Math.max(...read);
  if (longest > config.contextTokensMax) {
    const message = `--contexts: ${longest} tokens with the window are more than the model's context of`;
    throw new UsageError(`${message} ${config.contextTokensMax}`);
  }
  const readJson = async (name: string) => JSON.parse(new TextDecoder().decode(await readEdgeFile(name)));
  const words = openTokenizer({
    tokenizerJson: await readJson("tokenizer.json"),
    tokenizerConfig: await readJson("tokenizer_config.json"),
  });
  const { threads } = values;
  const device = await openDevice({ kind: values.device, ...(threads === undefined ? {} : { threads }) });
  const capture = new Capture(device, config);
  const contextTokens = Math.min(longest + TURNS_MAX * REPLY_TOKENS_MAX, config.contextTokensMax);
  const runner = await openModel({
    folder,
    device: capture.wrap(device),
    encoding: values.weights,
    kv: {
      encoding: values.kv,
      summaryKinds,
      ...poolCounts({ layerCount: config.layerCount, contextTokens, rowsMax: ROWS_MAX }),
    },
    rowsMax: ROWS_MAX,
    observe: capture.observe,
  });
  const sequence = new Sequence(runner, contextTokens);
  return { device, capture, modelId, runner, sequence, logits: () => capture.logits, ...words };
}

/**
 * Ids of `count` pieces of a text, evenly spread over it, `tokens` each.
 * @throws {UsageError} when the text is too short for them not to overlap.
 */
export function documentsOf(
  text: string,
  { tokenizer }: Pick<Subject, "tokenizer">,
  { count, tokens, flag = "--text" }: { count: number; tokens: number; flag?: string },
): number[][] {
  const share = Math.floor(text.length / count);
  return Array.from({ length: count }, (_, index) => {
    // A token has one character or more in every text worth reading; what is cut off behind is not encoded for nothing.
    const from = startOf(text, index * share, share);
    let characters = tokens * 2;
    let ids = tokenizer.encode(text.slice(from, Math.min(from + characters, (index + 1) * share)));
    while (ids.length < tokens && from + characters < (index + 1) * share) {
      characters *= 2;
      ids = tokenizer.encode(text.slice(from, Math.min(from + characters, (index + 1) * share)));
    }
    if (ids.length < tokens) {
      const wanted = count === 1 ? `a text of ${tokens} tokens is` : `${count} texts of ${tokens} tokens are`;
      const way = count === 1 ? "a longer text" : "fewer --documents or a longer text";
      throw new UsageError(`${flag}: ${wanted} more than there is; ${way}`);
    }
    return ids.slice(0, tokens);
  });
}

/** The first word of a piece of a text; where words have no spaces, the first character. */
function startOf(text: string, at: number, length: number): number {
  const space = text.indexOf(" ", at);
  if (space >= 0 && space < at + length) return space;
  return (text.charCodeAt(at) & 0xfc00) === 0xdc00 ? at + 1 : at;
}

/** Reads the text file that a flag names. @throws {UsageError} */
export async function readText(path: string, flag = "--text"): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw new UsageError(`${flag}: ${path} cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
}
