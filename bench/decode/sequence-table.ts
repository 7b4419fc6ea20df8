import type { StepSlice } from "../../kernels/contract.ts";

/** Where the KV of one of several sequences is; each has blocks and summaries of its own. */
export function sequenceTable({
  sequence,
  layerCount,
  blockCapacity,
}: {
  sequence: number;
  layerCount: number;
  blockCapacity: number;
}): Pick<StepSlice, "blockIds" | "blockCapacity" | "summarySlots"> {
  const blocks = layerCount * blockCapacity;
  return {
    blockIds: Int32Array.from({ length: blocks }, (_, i) => sequence * blocks + i),
    blockCapacity,
    summarySlots: Int32Array.from({ length: blockCapacity }, (_, i) => sequence * blockCapacity + i),
  };
}
