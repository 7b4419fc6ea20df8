/**
 * How often the queries of a sequence chose each block of each layer, recent choices counting more. At the end of a turn the hottest blocks
 * are written down, and a resumed turn reads them with its first burst.
 */

/** A choice counts half as much after this many slices. */
const HALF_LIFE_SLICES = 32;
/**
 * Hot blocks are written down only where they foretell what a prompt chooses: of those that are hottest at a turn's end, its own prompt chose at
 * least this share. Else what a resumed turn would read of them is mostly in vain: keys without a theme (seeded ones: 3 of 10) against texts.
 */
const TRUSTED_SHARE_MIN = 0.4;
/** Counts are scaled down before they leave the range of f32. */
const WEIGHT_MAX = 1e30;

/** Memory: one f32 per layer and block that was ever chosen or lies before one. */
export class BlockHeat {
  readonly #layers: Float32Array[];
  /** What the turn's prompt chose, by layer. */
  readonly #asked: Set<number>[];
  #weight = 1;

  constructor(layerCount: number) {
    this.#layers = Array.from({ length: layerCount }, () => new Float32Array(0));
    this.#asked = this.#layers.map(() => new Set());
  }

  /** Starts from what an earlier turn wrote down: per layer, hottest first; any choice of this turn soon counts more. */
  seed(hotBlocks: readonly (readonly number[])[]): void {
    for (const [layer, blocks] of hotBlocks.entries()) {
      if (layer >= this.#layers.length) return;
      for (const [rank, block] of blocks.entries()) this.#of(layer, block + 1)[block]! += 1 - rank / blocks.length;
    }
  }

  /** Counts the blocks of a bitmap as `StepReadback.chosenBlocks` has it, of layers before `layerEnd`; `isPrompt`: rows of the turn's prompt chose them. */
  observe(
    bitmap: Uint32Array,
    { layerEnd = this.#layers.length, isPrompt = false }: { layerEnd?: number | undefined; isPrompt?: boolean } = {},
  ): void {
    const wordCount = bitmap.length / this.#layers.length;
    for (let layer = 0; layer < layerEnd; layer++) {
      for (let word = 0; word < wordCount; word++) {
        const bits = bitmap[layer * wordCount + word] as number;
        if (bits === 0) continue;
        const heat = this.#of(layer, (word + 1) * 32);
        for (let bit = 0; bit < 32; bit++) {
          if (((bits >>> bit) & 1) === 0) continue;
          heat[word * 32 + bit]! += this.#weight;
          if (isPrompt) this.#asked[layer]?.add(word * 32 + bit);
        }
      }
    }
  }

  /** A slice is done: what follows counts a little more. */
  tick(): void {
    this.#weight *= 2 ** (1 / HALF_LIFE_SLICES);
    if (this.#weight < WEIGHT_MAX) return;
    for (const heat of this.#layers) for (let block = 0; block < heat.length; block++) heat[block]! /= this.#weight;
    this.#weight = 1;
  }

  /**
   * Per layer the hottest blocks below `blockEnd`, hottest first, at most `countMax`; `[]` where nothing was ever chosen, or the turn's prompt chose
   * other blocks than its reply.
   */
  hottest(countMax: number, blockEnd: number): number[][] {
    const layers = this.#layers.map((heat) => {
      const chosen = Array.from(heat.subarray(0, blockEnd).keys()).filter((block) => (heat[block] as number) > 0);
      chosen.sort((a, b) => (heat[b] as number) - (heat[a] as number) || a - b);
      return chosen.slice(0, countMax);
    });
    const count = layers.reduce((sum, blocks) => sum + blocks.length, 0);
    return count > 0 && this.#askedShare(layers, count) >= TRUSTED_SHARE_MIN ? layers : [];
  }

  /** What the prompt chose of some blocks; 1 where it chose nothing, having been read densely. */
  #askedShare(layers: readonly (readonly number[])[], count: number): number {
    if (this.#asked.every(({ size }) => size === 0)) return 1;
    const asked = layers.map((blocks, layer) => blocks.filter((block) => this.#asked[layer]?.has(block)).length);
    return asked.reduce((sum, each) => sum + each, 0) / count;
  }

  /** How often a block was chosen of late, in the layer that chose it most: a choice of this slice counts 1. */
  of(block: number): number {
    return this.#layers.reduce((most, heat) => Math.max(most, heat[block] ?? 0), 0) / this.#weight;
  }

  #of(layer: number, length: number): Float32Array {
    const heat = this.#layers[layer] as Float32Array;
    if (heat.length >= length) return heat;
    const longer = new Float32Array(Math.max(length, 2 * heat.length));
    longer.set(heat);
    this.#layers[layer] = longer;
    return longer;
  }
}
