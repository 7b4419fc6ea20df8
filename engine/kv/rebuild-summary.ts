import { decodeKeys } from "../../kernels/block-codec.ts";
import type { KvPool, SummaryKind } from "../../kernels/contract.ts";
import { summaryHeadAt } from "../../kernels/layout.ts";
import { summarizeKeys } from "../../kernels/summary-codec.ts";
import { poolFormOf, unpackBlock } from "../../storage/block-encoding.ts";
import type { KvGeometry } from "../../storage/geometry.ts";
import type { LogicalBlock } from "./block-cache.ts";

/** The stored bytes of a resident block, layer by layer. */
export function readLayers(pool: KvPool, { deviceBlocks }: LogicalBlock): Promise<Uint8Array[]> {
  return Promise.all(Array.from(deviceBlocks, (id) => pool.readBlock(id)));
}

/**
 * A summary slot of one kind from a block's own stored bytes, one array per layer, 4-byte aligned: the bytes that sealing would have written.
 * Tens of milliseconds for a large model; for what has no summaries otherwise.
 */
export function rebuildSummary(
  geometry: KvGeometry,
  kind: SummaryKind,
  layers: readonly Uint8Array[],
): Uint8Array<ArrayBuffer> {
  const slot = new Uint8Array(geometry.summaryBytes);
  const shape = { ...geometry, ...poolFormOf(geometry.encoding) };
  for (const [layer, stored] of layers.entries()) {
    const bytes = unpackBlock(geometry, stored);
    for (let head = 0; head < geometry.kvHeadCount; head++) {
      const summary = summarizeKeys(kind, decodeKeys(shape, bytes, head), geometry.headDim);
      slot.set(summary, summaryHeadAt(geometry, layer, head));
    }
  }
  return slot;
}
