/** A model's words: tokenizer, chat template, stop tokens and defaults, from `models/<id>/` in the bucket. */
import { QuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ChatTemplate, Tokenizer } from "../tokenizer/contract.ts";
import { openTokenizer, TOKENIZER_TABLES_NAME, type TokenizerFiles } from "../tokenizer/open.ts";
import { within } from "./deadline.ts";
import { RecentMap } from "./recent-map.ts";

/** Everything the edge knows of a model. Immutable. */
export interface ModelAssets {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  /** Ids that end a reply. */
  readonly stopTokens: readonly number[];
  /** Put before a raw prompt that starts a log, where the model's tokenizer asks for it (by its configuration or template). */
  readonly bosToken: number | undefined;
  /** Sampling of requests that do not say: the model's generation_config.json over OpenAI's defaults. */
  readonly sampling: { temperature: number; topP: number; topK: number; repetitionPenalty: number };
}

/** Builds assets from the files, JSON ones parsed. @throws {QuireError} `internal` for a tokenizer that cannot be opened. */
export function buildModelAssets(files: TokenizerFiles & { config: unknown; generationConfig: unknown }): ModelAssets {
  const { tokenizer, template, frame } = openTokenizer(files);
  const config = recordOf(files.config);
  const generation = recordOf(files.generationConfig);
  const tokenizerConfig = recordOf(files.tokenizerConfig);
  const stopTokens = [...new Set([...idsOf(generation.eos_token_id), ...idsOf(config.eos_token_id)])];
  const addsBos = tokenizerConfig.add_bos_token;
  const [bosToken] = addsBos === true ? idsOf(config.bos_token_id) : addsBos === undefined ? frame.before : [];
  return {
    tokenizer,
    template,
    stopTokens,
    bosToken,
    sampling: {
      temperature: generation.do_sample === false ? 0 : numberOf(generation.temperature, 1),
      topP: generation.do_sample === false ? 1 : numberOf(generation.top_p, 1),
      topK: generation.do_sample === false ? 0 : numberOf(generation.top_k, 0),
      repetitionPenalty: numberOf(generation.repetition_penalty, 1),
    },
  };
}

/** How much a cache keeps, and how long before it looks again. */
export interface AssetCacheOptions {
  modelCountMax: number;
  ageMsMax: number;
  now: () => number;
}

/** What is read of the bucket that holds models' files; R2's is one. */
export interface AssetBucket {
  get(key: string): Promise<{ json(): Promise<unknown>; arrayBuffer(): Promise<ArrayBuffer> } | null>;
}

/**
 * Loaded models of one isolate. Only finished results are kept: a promise made for one request must not be awaited by
 * another in a Worker.
 */
export class ModelAssetCache {
  readonly #models: RecentMap<ModelAssets>;

  constructor({ modelCountMax, ageMsMax, now }: AssetCacheOptions) {
    this.#models = new RecentMap({ countMax: modelCountMax, ageMsMax, now });
  }

  /** The assets of a model that is loaded. */
  known(model: string): ModelAssets | undefined {
    return this.#models.get(model);
  }

  /**
   * The assets of a model.
   * @throws {QuireError} `internal` when a file is missing or broken: an engine serves a model whose files nobody uploaded.
   */
  async get(bucket: AssetBucket, model: string): Promise<ModelAssets> {
    const known = this.known(model);
    if (known) return known;
    const assets = await loadModelAssets(bucket, model);
    this.#models.put(model, assets);
    return assets;
  }
}

/**
 * One cache per isolate: Durable Objects of one isolate share nothing else, and a large vocabulary takes half a second to open.
 * What it holds is derived from immutable files, so sharing cannot be observed.
 */
export const isolateAssets = new ModelAssetCache({ modelCountMax: 4, ageMsMax: 600_000, now: () => Date.now() });

async function loadModelAssets(bucket: AssetBucket, model: string): Promise<ModelAssets> {
  const get = (name: string) => bucket.get(`models/${model}/${name}`);
  const read = async (name: string, required: boolean): Promise<unknown> => {
    const object = await get(name);
    if (object) return object.json();
    if (!required) return {};
    throw new QuireError("internal", `The server has no '${name}' for the model '${model}'.`);
  };
  const [tokenizer, tokenizerConfig, config, generationConfig] = await within(
    LIMITS.storeGetMsMax,
    Promise.all([
      readTokenizer(),
      read("tokenizer_config.json", true),
      read("config.json", true),
      read("generation_config.json", false),
    ]),
  );
  return buildModelAssets({ ...tokenizer, tokenizerConfig, config, generationConfig });

  /** Compiled tables need no parsing: the JSON is for what has no compiled form. */
  async function readTokenizer() {
    const tables = await get(TOKENIZER_TABLES_NAME);
    if (tables) return { tokenizerTables: await tables.arrayBuffer() };
    return { tokenizerJson: await read("tokenizer.json", true) };
  }
}

function recordOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

function idsOf(value: unknown): number[] {
  return (Array.isArray(value) ? value : [value]).filter((id) => Number.isSafeInteger(id));
}

function numberOf(value: unknown, fallback: number): number {
  return typeof value === "number" && Number.isFinite(value) ? value : fallback;
}
