/** Flags of the engine that `quire start` and `quire serve` share; start hands them on. */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { SUMMARY_KINDS, type SummaryKind } from "../kernels/contract.ts";
import { RESUME_MODES } from "../protocol/generate.ts";
import { type PoolForm, storedFormsOf } from "../storage/block-encoding.ts";
import { type StoredEncoding, SUMMARY_KIND_COUNT_MAX } from "../storage/geometry.ts";
import { parseBudget, parseBytes, parseChoice, parseInteger, parseText } from "./flags.ts";
import { UsageError } from "./usage-error.ts";

const SHIPPED_MODEL = "weights/house";

/** A path; the model that ships is found from any folder. */
function parseModel(text: string): string {
  const path = parseText(text);
  if (path !== SHIPPED_MODEL || existsSync(path)) return path;
  return fileURLToPath(new URL(`../${SHIPPED_MODEL}`, import.meta.url));
}

/** Device, numerics and memory of one engine. */
export const engineFlags = {
  model: {
    help: "HF model folder or GGUF file; its name is the model's id",
    placeholder: "FOLDER",
    env: "QUIRE_MODEL",
    fallback: SHIPPED_MODEL,
    parse: parseModel,
  },
  device: {
    help: "auto (a hardware GPU that passes a check, else the CPU), wasm (CPU, SIMD and threads), webgpu (a GPU; see quire devices) or reference (scalar, for checks)",
    placeholder: "KIND",
    env: "QUIRE_DEVICE",
    fallback: "auto",
    parse: parseChoice(["auto", "wasm", "webgpu", "reference"]),
  },
  threads: {
    help: "threads of the CPU device; without it one per core, at most 8",
    placeholder: "COUNT",
    env: "QUIRE_THREADS",
    parse: parseInteger({ min: 1, max: 256 }),
  },
  weights: {
    help: "weights in memory: int8, int4 (embeddings int8), bf16, f16 or f32",
    placeholder: "ENCODING",
    env: "QUIRE_WEIGHTS",
    fallback: "int8",
    parse: parseChoice(["int8", "int4", "bf16", "f16", "f32"]),
  },
  kv: {
    help: "KV pages in memory: int8 or f32",
    placeholder: "ENCODING",
    env: "QUIRE_KV",
    fallback: "int8",
    parse: parseChoice(["int8", "f32"]),
  },
  "page-encoding": {
    help: "KV pages in the store, and what sealed ones in memory are rounded to: int8 or int4 (of int8 pages), f32 or f16 (of f32 pages); without it as in memory",
    placeholder: "ENCODING",
    env: "QUIRE_PAGE_ENCODING",
    parse: parseChoice(["int8", "int4", "f32", "f16"]),
  },
  summaries: {
    help: `kinds of page summaries to keep, which are the policies that can be asked for (docs/selection.md): ${SUMMARY_KINDS.join(", ")}`,
    placeholder: "KINDS",
    env: "QUIRE_SUMMARIES",
    fallback: "min-max,mean-deviation",
    parse: parseSummaryKinds,
  },
  "pool-bytes": {
    help: "memory of the page pool",
    placeholder: "BYTES",
    env: "QUIRE_POOL_BYTES",
    fallback: "512M",
    parse: parseBytes,
  },
  "host-pool-mib": {
    help: "host memory in MiB for pages that left the pool: found there before the store is asked; 0 for none",
    placeholder: "MIB",
    env: "QUIRE_HOST_POOL_MIB",
    fallback: "256",
    parse: parseInteger({ min: 0, max: 1_048_576 }),
  },
  "disk-cache": {
    help: "folder on a local disk for pages that were read from or written to the store; without it none. Engines of one machine may share it",
    placeholder: "FOLDER",
    env: "QUIRE_DISK_CACHE",
    parse: parseText,
  },
  "disk-bytes": {
    help: "what the pages in --disk-cache may take",
    placeholder: "BYTES",
    env: "QUIRE_DISK_BYTES",
    fallback: "4G",
    parse: parseBytes,
  },
  reserve: {
    help: "what is set aside of the pool for a request: full (for the longest reply it allows) or prompt (more as it grows; a sequence may be suspended to host memory meanwhile)",
    placeholder: "MODE",
    env: "QUIRE_RESERVE",
    fallback: "prompt",
    parse: parseChoice(["full", "prompt"]),
  },
  context: {
    help: "longest context in tokens, at most what the model was made for; without it that, or what half of the pool holds",
    placeholder: "TOKENS",
    env: "QUIRE_CONTEXT",
    parse: parseInteger({ min: 64, max: 16_777_216 }),
  },
  "degraded-budget": {
    help: "selection budget of turns that come while the engine is busy, where they ask for more (their usage says so); without it: what they ask",
    placeholder: "TOKENS",
    env: "QUIRE_DEGRADED_BUDGET",
    parse: parseBudget,
  },
  pace: {
    help: "tokens per second that people read: while prompts wait, streams that are two seconds of reading ahead give way; without it none does",
    placeholder: "COUNT",
    env: "QUIRE_PACE",
    parse: parseInteger({ min: 1, max: 1_000 }),
  },
  resume: {
    help: "how sessions come back from the store, for requests that do not say: lazy, full, recompute or auto (the quickest, as measured)",
    placeholder: "MODE",
    env: "QUIRE_RESUME",
    fallback: "lazy",
    parse: parseChoice(RESUME_MODES),
  },
  "fill-bytes": {
    help: "bytes a second that streaming in behind a resumed turn may take of the store",
    placeholder: "BYTES",
    env: "QUIRE_FILL_BYTES",
    fallback: "64M",
    parse: parseBytes,
  },
} as const;

/** A list with commas. What a policy scores by is written as blocks are sealed: it cannot be had from KV that is gone. */
function parseSummaryKinds(text: string): SummaryKind[] {
  const kinds = text.split(",").map(parseChoice(SUMMARY_KINDS));
  if (new Set(kinds).size < kinds.length) throw new UsageError("must name each kind once");
  if (kinds.length <= SUMMARY_KIND_COUNT_MAX) return kinds;
  throw new UsageError(`must name at most ${SUMMARY_KIND_COUNT_MAX} kinds`);
}

/**
 * Refuses flags that are possible each by itself and not together, before anything is started or loaded.
 * @throws {UsageError} naming the flags.
 */
export function checkTogether(values: { kv: PoolForm["encoding"]; "page-encoding": StoredEncoding | undefined }): void {
  const { kv, "page-encoding": stored } = values;
  const forms = storedFormsOf(kv);
  if (stored === undefined || forms.includes(stored)) return;
  throw new UsageError(`--page-encoding ${stored}: pages of --kv ${kv} are stored as ${forms.join(" or ")}`);
}

/** Names of the shared flags. */
export type EngineFlagName = keyof typeof engineFlags;
