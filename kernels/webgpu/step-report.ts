/** Misses, chosen blocks and traffic of a step: what the host knows before, and what the device counted. */

import { StepChoices } from "../choice.ts";
import { coarsePass, passedOverCount } from "../coarse.ts";
import {
  BLOCK_TOKENS,
  type Miss,
  NOT_RESIDENT,
  PAGE_TOKENS,
  type SliceTraffic,
  type StepReadback,
  type StepSlice,
} from "../contract.ts";
import { choiceRange, layerRole, needsPageScores, takesUnevenly } from "../page-range.ts";
import {
  ChosenBlocks,
  emptyTraffic,
  MissSet,
  openKvBytes,
  scoringBytes,
  sealedKeyBytes,
  sealedKvBytes,
} from "../traffic.ts";
import type { GroupLayout, StepLayout } from "./step-layout.ts";
import { COUNTERS } from "./wgsl/masks.ts";

/** Gathers as ops are recorded; {@link read} adds the device's part. */
export class StepReport {
  readonly #slices: readonly StepSlice[];
  readonly #traffic: SliceTraffic[];
  readonly #misses = new MissSet();
  readonly #layouts = new Set<StepLayout>();

  constructor(slices: readonly StepSlice[]) {
    this.#slices = slices;
    this.#traffic = slices.map(emptyTraffic);
  }

  /** What a `select` of this layer will read and want, as far as no score decides it. */
  noteSelect(layout: StepLayout, layer: number): void {
    this.#layouts.add(layout);
    const { kvHeadCount, headDim } = layout.pool.spec;
    for (const each of layout.groups) {
      const { slice, sliceIndex, range, given } = each;
      if (isEverything(each, layer)) {
        if (residentCount(each, layer) < ownBlock(each)) this.#noteDenseMisses(each, layer);
        continue;
      }
      const traffic = this.#traffic[sliceIndex] as SliceTraffic;
      traffic.pagesInContext += kvHeadCount * range.pageEnd;
      const takesOver = given !== undefined || layerRole(slice.plan, layer) !== "chooses";
      if (takesOver) continue;
      // Where heads take alike, one stands for all: a step does this for every layer.
      const alike = takesUnevenly(slice.plan) ? 1 : kvHeadCount;
      for (let kvHead = 0; kvHead < kvHeadCount; kvHead += alike) {
        const own = choiceRange(slice.plan, range, { layer, kvHead, kvHeadCount });
        if (!needsPageScores(slice.plan, own)) continue;
        const pass = coarsePass(slice.plan, own);
        traffic.metadataBytes += alike * scoringBytes(headDim, own, pass);
        if (pass !== undefined) traffic.pagesPassedOver += alike * passedOverCount(pass);
      }
    }
  }

  /** What an `attend` of this layer reads: all of it for groups that read everything, else the open part. */
  noteAttend(layout: StepLayout, layer: number): void {
    const { spec } = layout.pool;
    for (const each of layout.groups) {
      const { sliceIndex, group } = each;
      // As `groupKvBytes` says for all pages; counted by block, because a step does this for every layer.
      const blocks = isEverything(each, layer) ? residentCount(each, layer) : 0;
      const bytes = sealedKvBytes(spec, blocks, blocks * BLOCK_TOKENS) + openKvBytes(spec, group);
      (this.#traffic[sliceIndex] as SliceTraffic).kvBytes += bytes * spec.kvHeadCount;
    }
  }

  /** The report, with what the device wrote into the outcome. */
  read(outcome: Uint32Array): Omit<StepReadback, "samples"> {
    for (const layout of this.#layouts) this.#addCounters(layout, outcome);
    const chosenBlocks = new ChosenBlocks(this.#slices);
    for (const layout of this.#layouts) {
      const { layerCount } = layout.pool.spec;
      for (const { sliceIndex, at, stride } of layout.misses) {
        eachBit(outcome.subarray(at, at + layerCount * stride), stride, ({ layer, block }) => {
          this.#misses.add({ sliceIndex, layer, block });
        });
      }
      for (const { sliceIndex, at, stride } of layout.chosen) {
        chosenBlocks.merge(sliceIndex, outcome.subarray(at, at + layerCount * stride));
      }
    }
    return {
      ...{ misses: this.#misses.list(), traffic: this.#traffic },
      ...chosenBlocks.list(),
      ...this.#choices(outcome),
    };
  }

  /** What the slices that asked attend to. */
  #choices(outcome: Uint32Array): Pick<StepReadback, "choices"> {
    const choices = new StepChoices(this.#slices);
    for (const layout of this.#layouts) {
      const { spec } = layout.pool;
      choices.begin(spec);
      for (const { sliceIndex, units } of layout.choices) {
        for (const [index, { at, stride, blockCount }] of units.entries()) {
          for (let layer = 0; layer < spec.layerCount; layer++) {
            const words = outcome.slice(at + layer * stride, at + (layer + 1) * stride);
            choices.row(sliceIndex, layer, index).set(new Uint8Array(words.buffer, 0, blockCount));
          }
        }
      }
    }
    return choices.list();
  }

  #noteDenseMisses(group: GroupLayout, layer: number): void {
    const { slice, sliceIndex } = group;
    for (let block = 0; block < ownBlock(group); block++) {
      if (!isHere(slice, layer, block)) this.#misses.add({ sliceIndex, layer, block });
    }
  }

  #addCounters({ pool, countersAt }: StepLayout, outcome: Uint32Array): void {
    countersAt.forEach((at, sliceIndex) => {
      const [sealedTokens, sealedBlocks, pagesSelected, keyPages, keyBlocks] = outcome.subarray(
        at,
        at + COUNTERS.length,
      ) as unknown as [number, number, number, number, number];
      const traffic = this.#traffic[sliceIndex] as SliceTraffic;
      traffic.pagesSelected += pagesSelected;
      traffic.kvBytes += sealedKvBytes(pool.spec, sealedBlocks, sealedTokens);
      traffic.metadataBytes += sealedKeyBytes(pool.spec, keyBlocks, keyPages * PAGE_TOKENS);
    });
  }
}

/** Whether a group attends to all that is resident in this layer. */
function isEverything({ slice, range }: GroupLayout, layer: number): boolean {
  return range.everything || layerRole(slice.plan, layer) === "everything";
}

/** The block that the group's last row is in. */
function ownBlock({ group }: GroupLayout): number {
  return Math.floor(group.positionLast / BLOCK_TOKENS);
}

/** Blocks before {@link ownBlock} that are on the device in this layer. */
function residentCount(group: GroupLayout, layer: number): number {
  const { blockIds, blockCapacity } = group.slice;
  const reach = Math.min(blockCapacity, ownBlock(group));
  if (group.isResident) return reach;
  const start = layer * blockCapacity;
  const end = start + reach;
  let count = 0;
  for (let at = start; at < end; at++) if (blockIds[at] !== NOT_RESIDENT) count++;
  return count;
}

function isHere(slice: StepSlice, layer: number, block: number): boolean {
  const id = slice.blockIds[layer * slice.blockCapacity + block];
  return id !== undefined && id !== NOT_RESIDENT;
}

/** Calls for every bit that is set in a bitmap `[layer][stride]`. */
function eachBit(words: Uint32Array, stride: number, visit: (at: Pick<Miss, "layer" | "block">) => void): void {
  words.forEach((word, index) => {
    for (let bit = 0; bit < 32 && word >>> bit !== 0; bit++) {
      if ((word >>> bit) & 1) visit({ layer: Math.floor(index / stride), block: (index % stride) * 32 + bit });
    }
  });
}
