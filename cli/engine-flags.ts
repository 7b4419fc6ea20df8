/** Flags of the engine that `quire start` and `quire serve` share; start hands them on. */
import { parseBytes, parseChoice, parseInteger, parseText } from "./flags.ts";

/** Device, numerics and memory of one engine. */
export const engineFlags = {
  model: {
    help: "HF model folder or GGUF file; its name is the model's id",
    placeholder: "FOLDER",
    env: "QUIRE_MODEL",
    fallback: "weights/house-0",
    parse: parseText,
  },
  device: {
    help: "wasm (CPU, SIMD and threads) or reference (scalar, for checks)",
    placeholder: "KIND",
    env: "QUIRE_DEVICE",
    fallback: "wasm",
    parse: parseChoice(["wasm", "reference"]),
  },
  threads: {
    help: "threads of the CPU device; without it one per core, at most 8",
    placeholder: "COUNT",
    env: "QUIRE_THREADS",
    parse: parseInteger({ min: 1, max: 256 }),
  },
  weights: {
    help: "weights in memory: int8, int4 (embeddings int8), bf16 or f32",
    placeholder: "ENCODING",
    env: "QUIRE_WEIGHTS",
    fallback: "int8",
    parse: parseChoice(["int8", "int4", "bf16", "f32"]),
  },
  kv: {
    help: "KV pages in memory and in the store: int8 or f32",
    placeholder: "ENCODING",
    env: "QUIRE_KV",
    fallback: "int8",
    parse: parseChoice(["int8", "f32"]),
  },
  "pool-bytes": {
    help: "memory of the page pool",
    placeholder: "BYTES",
    env: "QUIRE_POOL_BYTES",
    fallback: "512M",
    parse: parseBytes,
  },
  context: {
    help: "longest context in tokens; without it what the model was made for, or what half of the pool holds",
    placeholder: "TOKENS",
    env: "QUIRE_CONTEXT",
    parse: parseInteger({ min: 64, max: 16_777_216 }),
  },
} as const;

/** Names of the shared flags. */
export type EngineFlagName = keyof typeof engineFlags;
