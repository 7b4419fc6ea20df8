/** house-0, its vectors (made with HF transformers) and its chat format, spelled out here rather than taken from our tokenizer. */
import { readFile } from "node:fs/promises";
import type { Device, KvEncoding, MatrixEncoding, SummaryKind } from "../../kernels/contract.ts";
import type { ModelRunner } from "../../models/contract.ts";
import type { Observe } from "../../models/observer.ts";
import { openModel } from "../../models/open.ts";
import { poolCounts } from "./conversation.ts";

/** From the repository root. */
export const HOUSE_FOLDER = "weights/house-0";
/** Id of `<|end|>`. */
export const HOUSE_END = 259;
const [BOS, USER, ASSISTANT] = [256, 257, 258];

interface Turn {
  greedy: number[];
  text: string;
  prompt_tokens: number;
  last_logits: number[];
  ids?: number[];
  logits_at?: Record<string, number[]>;
}

/** Three questions about one passage, as `vectors.json` holds them. */
export interface HouseCase {
  messages: { role: "user" | "assistant"; content: string }[];
  turns: Turn[];
}

/** The cases in ascending length: about 500, 1,700 and 6,200 tokens. */
export async function houseCases(): Promise<HouseCase[]> {
  return JSON.parse(await readFile(`${HOUSE_FOLDER}/vectors.json`, "utf8")).cases;
}

/** What turn `turn` adds to the log before the model answers; the answer's ids follow as the model gave them. */
export function promptIds(house: HouseCase, turn: number): number[] {
  const { content } = house.messages[2 * turn]!;
  return [...(turn === 0 ? [BOS] : []), USER, ...new TextEncoder().encode(content), ASSISTANT];
}

/** Text of ids, special ones left out. */
export function textOf(ids: readonly number[]): string {
  return new TextDecoder().decode(Uint8Array.from(ids.filter((id) => id < 256)));
}

/** Absent: f32 throughout, both summary kinds, steps of up to 256 rows, a pool for one conversation. */
export interface OpenHouseOptions {
  device: Device;
  contextTokens: number;
  encoding?: MatrixEncoding;
  kvEncoding?: KvEncoding;
  summaryKinds?: readonly SummaryKind[];
  rowsMax?: number;
  sequences?: number;
  observe?: Observe;
}

/** house-0 on a device, with a pool for `sequences` conversations of `contextTokens`. */
export function openHouse(options: OpenHouseOptions): Promise<ModelRunner> {
  const { device, contextTokens, rowsMax = 256, sequences = 1, observe } = options;
  return openModel({
    folder: HOUSE_FOLDER,
    device,
    encoding: options.encoding ?? "f32",
    kv: {
      encoding: options.kvEncoding ?? "f32",
      summaryKinds: options.summaryKinds ?? ["min-max", "mean-deviation"],
      ...poolCounts({ layerCount: 4, contextTokens, rowsMax, sequences }),
    },
    rowsMax,
    ...(observe === undefined ? {} : { observe }),
  });
}
