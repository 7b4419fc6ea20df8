/** Times prefill of one sequence, chunk by chunk as the engine does it. */
import { type BenchModel, CHUNK_ROWS } from "../decode/bench-model.ts";
import { type DecodeCase, planOf } from "../decode/measure-decode.ts";
import { seededRandom } from "../random.ts";

/** One row of the result. */
export interface PrefillRow extends DecodeCase {
  /** New tokens behind the context. */
  tokenCount: number;
  ms: number;
  tokensPerS: number;
  /** Of the last chunk, as the device counts them: K and V once per query group and KV head. */
  kvBytesLastChunk: number;
  metadataBytesLastChunk: number;
}

/** Rows that warm up before the clock counts. */
const WARM_ROWS = 64;

/** Prefills `tokenCount` seeded tokens behind a context that the pool holds, and samples one token at the end. */
export async function measurePrefill(
  model: BenchModel,
  item: DecodeCase,
  { tokenCount, seed }: { tokenCount: number; seed: number },
): Promise<PrefillRow> {
  const { plan, groupTokens } = planOf(item);
  const random = seededRandom(seed, 2);
  const tokens = Uint32Array.from({ length: tokenCount }, () => Math.floor(random() * model.config.vocabularySize));
  const chunk = (from: number, rowCount: number) =>
    model.step({
      position: item.contextTokens + from,
      tokens: tokens.subarray(from, from + rowCount),
      plan,
      groupTokens,
      samples: from + rowCount === tokenCount,
    });
  await chunk(0, Math.min(WARM_ROWS, tokenCount));
  const startMs = performance.now();
  let kvBytesLastChunk = 0;
  let metadataBytesLastChunk = 0;
  for (let from = 0; from < tokenCount; from += CHUNK_ROWS) {
    const { traffic } = await chunk(from, Math.min(CHUNK_ROWS, tokenCount - from));
    kvBytesLastChunk = traffic.kvBytes;
    metadataBytesLastChunk = traffic.metadataBytes;
  }
  const ms = performance.now() - startMs;
  return { ...item, tokenCount, ms, tokensPerS: (tokenCount / ms) * 1000, kvBytesLastChunk, metadataBytesLastChunk };
}
