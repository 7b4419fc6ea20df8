/**
 * What sequences set aside of the engine's memory before they need it: a reference within a reservation never fails to find room, because
 * whatever else is in the room is idle, or loose and not pinned, and leaves. Only counts: the block cache hands the memory itself out.
 */
import { assert } from "../../protocol/assert.ts";
import type { FreeList } from "./free-list.ts";
import type { HostTier } from "./host-pool.ts";

/** What a block cache hands out; nobody else takes from these lists. */
export interface BlockMemory {
  layerCount: number;
  deviceBlocks: FreeList;
  summarySlots: FreeList;
  /** Where blocks go that leave the device; absent: they are gone. */
  host?: HostTier;
}

/** An amount of each kind of memory. */
export interface Reservation {
  /** Of one layer each. */
  deviceBlocks: number;
  summarySlots: number;
  /** For what must leave the device before the store has it. */
  hostBytes: number;
}

/** What a sequence sets aside whose context is larger than the pool, and the steps that this is enough for. */
export interface WorkingSet extends Reservation {
  /** Query groups of one step at most, and its rows `LIMITS.looseRowsMax`. */
  groupsMax: number;
}

/** Reservations of one block cache. */
export class Reservations {
  readonly #memory: BlockMemory;
  #deviceBlocks = 0;
  #summarySlots = 0;

  constructor(memory: BlockMemory) {
    this.#memory = memory;
  }

  /** Logical blocks that can still be reserved. */
  get unreservedCount(): number {
    const { deviceBlocks, layerCount, summarySlots } = this.#memory;
    const byBlocks = Math.floor((deviceBlocks.count - this.#deviceBlocks) / layerCount);
    return Math.min(byBlocks, summarySlots.count - this.#summarySlots);
  }

  /** Logical blocks that the pool holds when empty. */
  get capacity(): number {
    const { deviceBlocks, layerCount, summarySlots } = this.#memory;
    return Math.min(Math.floor(deviceBlocks.count / layerCount), summarySlots.count);
  }

  /** What {@link reserveParts} could set aside in an empty engine; and what a layer of a block takes in host memory. */
  get capacityParts(): Reservation & { hostBlockBytes: number } {
    const { deviceBlocks, summarySlots, host } = this.#memory;
    return {
      ...{ deviceBlocks: deviceBlocks.count, summarySlots: summarySlots.count },
      ...{ hostBytes: host?.copies.bytesMax ?? 0, hostBlockBytes: host?.pool.blockBytes ?? 0 },
    };
  }

  /** Sets room for `count` logical blocks aside. False when there is not enough. */
  reserve(count: number): boolean {
    return this.reserveParts(this.partsOf(count));
  }

  /** Gives up room for `count` logical blocks. */
  unreserve(count: number): void {
    this.unreserveParts(this.partsOf(count));
  }

  /** Whether {@link reserveParts} would find enough of each. */
  hasRoomFor({ deviceBlocks, summarySlots, hostBytes }: Reservation): boolean {
    const { host } = this.#memory;
    if (deviceBlocks > this.#memory.deviceBlocks.count - this.#deviceBlocks) return false;
    if (summarySlots > this.#memory.summarySlots.count - this.#summarySlots) return false;
    return hostBytes === 0 || host?.copies.hasRoomFor(hostBytes) === true;
  }

  /** As {@link reserve}, in its parts; host memory too. False when there is not enough of one of them: nothing is set aside then. */
  reserveParts({ deviceBlocks, summarySlots, hostBytes }: Reservation): boolean {
    if (!this.hasRoomFor({ deviceBlocks, summarySlots, hostBytes })) return false;
    if (hostBytes > 0) this.#memory.host?.copies.reserve(hostBytes);
    this.#deviceBlocks += deviceBlocks;
    this.#summarySlots += summarySlots;
    return true;
  }

  /** Gives up what {@link reserveParts} set aside. */
  unreserveParts({ deviceBlocks, summarySlots, hostBytes }: Reservation): void {
    this.#deviceBlocks -= deviceBlocks;
    this.#summarySlots -= summarySlots;
    assert(this.#deviceBlocks >= 0 && this.#summarySlots >= 0, "unreserved more than was reserved");
    if (hostBytes > 0) this.#memory.host?.copies.unreserve(hostBytes);
  }

  /** What `count` logical blocks take. */
  partsOf(count: number): Reservation {
    return { deviceBlocks: count * this.#memory.layerCount, summarySlots: count, hostBytes: 0 };
  }
}
