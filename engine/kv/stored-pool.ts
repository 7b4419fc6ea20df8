import type { KvPool } from "../../kernels/contract.ts";
import { isPacked, packBlock, unpackBlock } from "../../storage/block-encoding.ts";
import type { KvGeometry } from "../../storage/geometry.ts";

/**
 * The pool as everything sees it that moves blocks: bytes of blocks are the stored ones. A pool whose blocks are stored as they are is given
 * back itself; else blocks are packed as they are read and unpacked as they are written, so that host memory too holds the fewer bytes.
 */
export function storedPool(pool: KvPool, geometry: KvGeometry): KvPool {
  if (!isPacked(geometry)) return pool;
  return {
    spec: pool.spec,
    blockBytes: geometry.blockBytes,
    openSlotBytes: pool.openSlotBytes,
    summaryBytes: pool.summaryBytes,
    readBlock: async (blockId) => packBlock(geometry, await pool.readBlock(blockId)),
    writeBlock: (blockId, bytes) => pool.writeBlock(blockId, unpackBlock(geometry, bytes)),
    readSummary: (slot, kind) => pool.readSummary(slot, kind),
    writeSummary: (slot, kind, bytes, layer) => pool.writeSummary(slot, kind, bytes, layer),
    readOpen: (slot, tokenCount) => pool.readOpen(slot, tokenCount),
    writeOpen: (slot, tokenCount, bytes) => pool.writeOpen(slot, tokenCount, bytes),
  };
}
