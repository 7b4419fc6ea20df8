/** What is known of the next layers' blocks where a choice serves several layers (`share`): those of the choice, before any of them runs. */
import { NOT_RESIDENT } from "../../kernels/contract.ts";
import { choosingLayer } from "../../kernels/page-range.ts";
import type { BlockLayer } from "../kv/block-fetcher.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { Sequence } from "./sequence.ts";

/**
 * Blocks that the layers behind `layer` which take over its choice will attend to and that are not on the device there, layer by layer.
 * @param chosenBlocks - what the step chose, as `SequenceResult.chosenBlocks`: a bit for every block, `ceil(blockCapacity / 32)` words a layer
 */
export function missedByFollowers(
  { blocks }: Pick<Sequence, "blocks">,
  { slice }: Pick<PlannedSlice, "slice">,
  layer: number,
  chosenBlocks: Uint32Array,
): BlockLayer[] {
  const { plan, blockIds, blockCapacity } = slice;
  const chooser = choosingLayer(plan, layer);
  if (chooser === undefined) return [];
  const words = Math.ceil(blockCapacity / 32);
  const layerCount = blockIds.length / blockCapacity;
  const missed: BlockLayer[] = [];
  for (let next = layer + 1; next < layerCount && choosingLayer(plan, next) === chooser; next++) {
    for (let index = 0; index < blockCapacity; index++) {
      const isChosen = (((chosenBlocks[layer * words + (index >>> 5)] as number) >>> (index & 31)) & 1) === 1;
      const block = isChosen ? blocks[index] : undefined;
      if (block && block.deviceBlocks[next] === NOT_RESIDENT) missed.push({ block, layer: next });
    }
  }
  return missed;
}
