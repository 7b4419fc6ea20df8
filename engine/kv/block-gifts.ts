/** What one logical block gives to another of the same key, whose bytes are the same. Only the block cache calls these. */
import { NOT_RESIDENT } from "../../kernels/contract.ts";
import type { LogicalBlock } from "./logical-block.ts";

/** The slot goes with what it holds; `to` has none. */
export function moveSummaries(from: LogicalBlock, to: LogicalBlock): void {
  to.summarySlot = from.summarySlot;
  to.summaries = from.summaries;
  from.summarySlot = NOT_RESIDENT;
  from.summaries = new Set();
  from.incoming = undefined;
}

/** Slots are swapped where the new one holds more. Between steps; a suspended one fills its tables again. */
export function donateSummaries(from: LogicalBlock, to: LogicalBlock): void {
  if (from.summaries.size <= to.summaries.size) return;
  for (const kind of to.summaries) if (!from.summaries.has(kind)) return;
  const { summarySlot, summaries } = to;
  to.summarySlot = from.summarySlot;
  to.summaries = from.summaries;
  from.summarySlot = summarySlot;
  from.summaries = summaries;
  from.incoming = undefined;
  to.incoming = undefined;
}

/** Device blocks of layers that `to` lacks; returns what was given. */
export function donateLayers(from: LogicalBlock, to: LogicalBlock): [layer: number, id: number][] {
  const given: [number, number][] = [];
  for (const [layer, id] of from.deviceBlocks.entries()) {
    if (id === NOT_RESIDENT || to.deviceBlocks[layer] !== NOT_RESIDENT) continue;
    to.deviceBlocks[layer] = id;
    to.residentLayerCount += 1;
    from.deviceBlocks[layer] = NOT_RESIDENT;
    from.residentLayerCount -= 1;
    given.push([layer, id]);
  }
  return given;
}
