/** Adds what happened to a request's usage. */
import { PAGES_PER_BLOCK, type SliceTraffic } from "../../kernels/contract.ts";
import type { SequenceResult } from "../../models/contract.ts";
import type { EngineUsage } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import type { BlockLayer, FetchTotals } from "../kv/block-fetcher.ts";
import type { Sequence } from "./sequence.ts";

/** What a step's attention read. */
export function countTraffic(usage: EngineUsage, traffic: SliceTraffic): void {
  usage.pagesSelected += traffic.pagesSelected;
  usage.pagesInContext += traffic.pagesInContext;
  usage.kvBytesRead += traffic.kvBytes;
  usage.metadataBytesRead += traffic.metadataBytes;
  if (traffic.pagesPassedOver > 0) usage.pagesPassedOver = (usage.pagesPassedOver ?? 0) + traffic.pagesPassedOver;
}

/** Which blocks a step's queries chose. One that is void goes on from its checkpoint's layer, and reports later layers then. */
export function countChoices({ heat, started }: Sequence, { chosenBlocks, checkpoint }: SequenceResult): void {
  if (chosenBlocks) heat.observe(chosenBlocks, { layerEnd: checkpoint?.layer, isPrompt: !started });
}

/**
 * The blocks that a step found missing: those that it must have to go on from its checkpoint, and those before that, or of a step that is over, that it has attended around.
 */
export function missedBlocks(
  { blocks }: Sequence,
  { misses, checkpoint }: SequenceResult,
): { wanted: BlockLayer[]; passedBy: BlockLayer[] } {
  const all = misses.flatMap(({ block: index, layer }): BlockLayer[] => {
    const block = blocks[index];
    return block ? [{ block, layer }] : [];
  });
  const isPassed = ({ layer }: BlockLayer) => checkpoint === undefined || layer < checkpoint.layer;
  return { wanted: all.filter((one) => !isPassed(one)), passedBy: all.filter(isPassed) };
}

/** The first layer of some, `otherwise` of none. In a loop: a long context in a large model misses more than a call takes arguments. */
export function firstLayer(missed: readonly BlockLayer[], otherwise: number): number {
  let first = missed[0]?.layer ?? otherwise;
  for (const { layer } of missed) if (layer < first) first = layer;
  return first;
}

/** Blocks that were selected, not resident and not waited for. */
export function countMisses(usage: EngineUsage, blockCount: number): void {
  usage.pagesMissed += blockCount * PAGES_PER_BLOCK;
}

/** Blocks that came from the store. */
export function countFetch(sequence: Sequence, totals: FetchTotals): void {
  countBytes(sequence, totals.bytes);
  sequence.usage.pagesFetched += totals.blocks * PAGES_PER_BLOCK;
  if (!sequence.started) sequence.usage.pagesBeforeFirstToken += totals.blocks * PAGES_PER_BLOCK;
}

/** A store for the other objects that are read for a request (manifest, summaries, tail): their bytes are counted. */
export function countedReads(store: PageStore, sequence: Sequence): PageStore {
  return {
    name: store.name,
    async get(key, options) {
      const object = await store.get(key, options);
      if (object) countBytes(sequence, object.bytes.byteLength);
      return object;
    },
    put: (key, bytes, options) => store.put(key, bytes, options),
    delete: (keys) => store.delete(keys),
    list: (prefix, options) => store.list(prefix, options),
    close: () => store.close(),
  };
}

function countBytes(sequence: Sequence, bytes: number): void {
  sequence.usage.bytesFetched += bytes;
  if (!sequence.started) sequence.usage.bytesBeforeFirstToken += bytes;
}
