import { decodeKeys } from "../../kernels/block-codec.ts";
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { summaryHeadAt } from "../../kernels/layout.ts";
import { summarizeKeys } from "../../kernels/summary-codec.ts";
import { assert } from "../../protocol/assert.ts";
import { poolFormOf, unpackBlock } from "../../storage/block-encoding.ts";
import type { KvGeometry } from "../../storage/geometry.ts";
import type { LogicalBlock } from "./logical-block.ts";

/** The stored bytes of a block that is on the device or in host memory, layer by layer; as they are at the moment of the call. */
export function readLayers(pool: KvPool, { deviceBlocks, host }: LogicalBlock): Promise<Uint8Array[]> {
  const read = async (id: number, layer: number): Promise<Uint8Array> => {
    const bytes = id === NOT_RESIDENT ? host?.layers[layer] : await pool.readBlock(id);
    assert(bytes, "the block is here");
    return bytes;
  };
  return Promise.all(Array.from(deviceBlocks, read));
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
