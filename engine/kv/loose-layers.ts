/**
 * What of the device is held loosely: layers of blocks whose holders have a context larger than the pool, and ask for what a step chose. They leave one
 * by one, used longest ago first; what a suspended step will attend to when it goes on is pinned until it has.
 */
import type { LogicalBlock } from "./logical-block.ts";

/** One layer of one logical block. */
export interface LooseLayer {
  block: LogicalBlock;
  layer: number;
}

/** Layers by device block, in order of use. Only the block cache speaks to it. */
export class LooseLayers {
  readonly #byId = new Map<number, LooseLayer>();
  readonly #pins = new Map<LogicalBlock, Map<number, number>>();

  add(id: number, layer: LooseLayer): void {
    this.#byId.set(id, layer);
  }

  /** Does nothing for what is not in it. */
  remove(id: number): void {
    this.#byId.delete(id);
  }

  /** It is the last to leave. */
  touch(id: number): void {
    const known = this.#byId.get(id);
    if (known === undefined) return;
    this.#byId.delete(id);
    this.#byId.set(id, known);
  }

  pin({ block, layer }: LooseLayer): void {
    const layers = this.#pins.get(block) ?? new Map<number, number>();
    this.#pins.set(block, layers);
    layers.set(layer, (layers.get(layer) ?? 0) + 1);
  }

  unpin({ block, layer }: LooseLayer): void {
    const layers = this.#pins.get(block);
    const count = (layers?.get(layer) ?? 0) - 1;
    if (count > 0) layers?.set(layer, count);
    else layers?.delete(layer);
    if (layers?.size === 0) this.#pins.delete(block);
  }

  /** What may leave, used longest ago first: nobody holds it otherwise, and nobody has pinned it. One may be removed while they are looked at. */
  *candidates(): Iterable<LooseLayer> {
    for (const known of this.#byId.values())
      if (known.block.isLoose && this.#pins.get(known.block)?.has(known.layer) !== true) yield known;
  }
}
