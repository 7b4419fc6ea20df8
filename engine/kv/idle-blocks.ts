/** Logical blocks on the device that nothing references but suspended sequences, in order of release, and which of them leaves first. */
import type { LogicalBlock } from "./logical-block.ts";

/** Of so many blocks that were released longest ago, the one of least priority and heat leaves the device. */
const EVICTION_WINDOW = 8;

/** Only the block cache speaks to it. */
export class IdleBlocks {
  readonly #blocks = new Set<LogicalBlock>();

  get size(): number {
    return this.#blocks.size;
  }

  /** Device blocks that they hold together. */
  get deviceBlockCount(): number {
    let count = 0;
    for (const block of this.#blocks) count += block.residentLayerCount;
    return count;
  }

  /** In order of release; to be copied by whoever changes it meanwhile. */
  [Symbol.iterator](): Iterator<LogicalBlock> {
    return this.#blocks.values();
  }

  /** The one released last. */
  add(block: LogicalBlock): void {
    this.#blocks.add(block);
  }

  /** False where it was not idle. */
  delete(block: LogicalBlock): boolean {
    return this.#blocks.delete(block);
  }

  /** Of those released longest ago, the one of least priority, then least heat, then released first; undefined where nothing is idle. */
  leastWorth(): LogicalBlock | undefined {
    let chosen: LogicalBlock | undefined;
    let seen = 0;
    for (const block of this.#blocks) {
      if (chosen === undefined || block.priority < chosen.priority) chosen = block;
      else if (block.priority === chosen.priority && block.heat < chosen.heat) chosen = block;
      if (++seen === EVICTION_WINDOW) break;
    }
    return chosen;
  }
}
