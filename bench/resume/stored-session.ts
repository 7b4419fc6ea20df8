/** A session in a store as an engine would have left it, without anybody having read its context. */
import { CHAIN_ROOT, extendChain } from "../../engine/kv/chain.ts";
import { DENSE, SpanList } from "../../engine/kv/provenance.ts";
import { SessionKeys } from "../../engine/persist/session-keys.ts";
import { BLOCK_TOKENS, type SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import type { PageStore } from "../../storage/contract.ts";
import { type KvGeometry, kvGeometry } from "../../storage/geometry.ts";
import { LAYOUT_VERSION } from "../../storage/keys.ts";
import { commitManifest, type Manifest, type SummaryRef } from "../../storage/manifest.ts";
import { manifestVersionOf } from "../../storage/manifest-check.ts";
import { decodeSegmentHeader, encodeSegment } from "../../storage/segment.ts";
import { encodeSummaryObject, type SegmentSummary, summaryDigest } from "../../storage/summary-object.ts";
import type { BenchModel } from "../decode/bench-model.ts";

/** As engines compact them. */
const SUMMARY_RUN_TOKENS = 4096;
const SEGMENT_TOKENS = 256;

/** What to store. */
export interface StoredSessionOptions {
  model: BenchModel;
  store: PageStore;
  namespace: string;
  sessionId: string;
  /** A multiple of 256: everything is sealed, there is no tail. */
  tokens: readonly number[];
}

/**
 * Stores the KV that the model's pool holds (`fillRandom`) as the dense KV of these tokens: segments, summaries of every kind, manifest
 * (no hot blocks: nobody chose any).
 */
export async function storeFilledSession(options: StoredSessionOptions): Promise<void> {
  const { model, store, tokens, sessionId } = options;
  assert(tokens.length > 0 && tokens.length % SEGMENT_TOKENS === 0, "a stored session has whole segments");
  const { spec } = model.runner.pool;
  const geometry = kvGeometry({ ...spec, segmentTokens: SEGMENT_TOKENS });
  const names = { modelFingerprint: model.runner.fingerprint, numericsId: model.device.numericsId };
  const keys = new SessionKeys({ ...names, geometry }).of(options.namespace);
  const chains = blockChains(tokens);
  const segments: Manifest["segments"] = [];
  const perKind = new Map<SummaryKind, SegmentSummary[]>(spec.summaryKinds.map((kind) => [kind, []]));
  for (let fromToken = 0; fromToken < tokens.length; fromToken += SEGMENT_TOKENS) {
    const chain = chains[(fromToken + SEGMENT_TOKENS) / BLOCK_TOKENS - 1] as string;
    const { bytes, slots } = await segmentOf(model, geometry, { fromToken, chain });
    await store.put(keys.segment(chain), bytes);
    const { checksums } = decodeSegmentHeader(bytes);
    for (const [kind, list] of perKind) list.push({ chain, checksums, slots: slots.get(kind) as Uint8Array });
    segments.push({
      ...{ chain, fromToken, tokenCount: SEGMENT_TOKENS, objectKey: keys.segment(chain) },
      ...{ objectOffset: 0, objectBytes: bytes.byteLength },
    });
  }
  const summaries: SummaryRef[] = [];
  for (const [kind, list] of perKind) {
    for (let fromToken = 0; fromToken < tokens.length; fromToken += SUMMARY_RUN_TOKENS) {
      const run = list.slice(fromToken / SEGMENT_TOKENS, (fromToken + SUMMARY_RUN_TOKENS) / SEGMENT_TOKENS);
      const bytes = encodeSummaryObject({ geometry, kind, fromToken, segments: run });
      const tokenCount = run.length * SEGMENT_TOKENS;
      const objectKey = keys.summary(kind, run.at(-1)?.chain as string, tokenCount);
      await store.put(objectKey, bytes);
      const sha256 = summaryDigest(bytes);
      summaries.push({ kind, objectKey, objectBytes: bytes.byteLength, sha256, fromToken, tokenCount });
    }
  }
  const manifest: Manifest = {
    ...{ formatVersion: manifestVersionOf(geometry), layoutVersion: LAYOUT_VERSION, sessionId, ...names, geometry },
    ...{ generation: 1, tokenCount: tokens.length, chain: chains.at(-1) as string },
    ...{ spans: [{ end: tokens.length, how: DENSE }], segments, summaries, hotBlocks: [], updatedMs: 0 },
  };
  await commitManifest(store, keys.session(sessionId), manifest, undefined);
}

/** Chain after each block of densely attended tokens. */
function blockChains(tokens: readonly number[]): string[] {
  const spans = new SpanList([{ end: tokens.length, how: DENSE }]);
  const chains: string[] = [];
  for (let from = 0; from < tokens.length; from += BLOCK_TOKENS) {
    const ids = Uint32Array.from(tokens.slice(from, from + BLOCK_TOKENS));
    chains.push(extendChain(chains.at(-1) ?? CHAIN_ROOT, ids, spans.describe(from, from + BLOCK_TOKENS)));
  }
  return chains;
}

async function segmentOf(
  model: BenchModel,
  geometry: KvGeometry,
  place: { fromToken: number; chain: string },
): Promise<{ bytes: Uint8Array; slots: Map<SummaryKind, Uint8Array> }> {
  const { pool } = model.runner;
  const { blockIds, blockCapacity, summarySlots } = model.blockTable();
  const first = place.fromToken / BLOCK_TOKENS;
  const indices = Array.from({ length: SEGMENT_TOKENS / BLOCK_TOKENS }, (_, index) => first + index);
  const layers = await Promise.all(
    Array.from({ length: geometry.layerCount }, (_, layer) =>
      Promise.all(indices.map((index) => pool.readBlock(blockIds[layer * blockCapacity + index] as number))),
    ),
  );
  const slots = new Map<SummaryKind, Uint8Array>();
  for (const kind of geometry.summaryKinds) {
    const parts = indices.map((index) => pool.readSummary(summarySlots[index] as number, kind));
    slots.set(kind, Buffer.concat(await Promise.all(parts)));
  }
  const block = (layer: number, index: number) => layers[layer]?.[index] as Uint8Array;
  return { bytes: encodeSegment({ geometry, ...place, block }), slots };
}
