/** A logical block: 64 sealed tokens of all layers, and where each of its parts is. Who may hold it, and what leaves, is the block cache's. */
import { NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import type { HostCopy } from "./host-pool.ts";
import type { LayeredSummaries } from "./layered-summaries.ts";
import type { StoredSegment } from "./stored-segment.ts";

/** 64 sealed tokens of one sequence position; shared by every sequence whose chain runs through it. Fields are the cache's to change. */
export class LogicalBlock {
  /** `namespace:chain`, set when it is published. */
  key: string | undefined;
  /** Logical block index: tokens `[64 index, 64 index + 64)`. */
  readonly index: number;
  /** Device block of each layer, or NOT_RESIDENT. */
  readonly deviceBlocks: Int32Array;
  summarySlot: number = NOT_RESIDENT;
  /** Kinds that its summary slot holds; it is never scored by another. */
  summaries: Set<SummaryKind> = new Set();
  /** What comes into its summary slot layer by layer: the first layer is there. */
  incoming: LayeredSummaries | undefined;
  residentLayerCount = 0;
  refCount = 1;
  /** Of these, references of sequences whose context is larger than the pool: its layers may leave the device one by one. */
  looseCount = 0;
  /** References of sequences that are suspended: they need its bytes somewhere, not on the device. */
  parkCount = 0;
  published = false;
  host: HostCopy | undefined;
  /** Of the sequences that released it: the highest priority, and how often the last one's queries chose it of late. */
  priority = Number.NEGATIVE_INFINITY;
  heat = 0;
  /** Who has used it (block-owners.ts). */
  readonly owners: string[] = [];
  /** Set once its segment is (being) stored. */
  stored: StoredSegment | undefined;
  /** Its stored bytes cannot be trusted or are gone: whoever holds it must compute it again, into a fresh block. */
  lost = false;

  constructor(index: number, layerCount: number) {
    this.index = index;
    this.deviceBlocks = new Int32Array(layerCount).fill(NOT_RESIDENT);
  }

  /** Every layer is on the device. */
  get resident(): boolean {
    return this.residentLayerCount === this.deviceBlocks.length;
  }

  /** Every layer is on the device or in host memory: nothing of it need be read from the store. */
  get isHere(): boolean {
    if (this.resident) return true;
    const { host } = this;
    if (!host?.isReady) return false;
    return this.deviceBlocks.every((id, layer) => id !== NOT_RESIDENT || host.layers[layer] !== undefined);
  }

  /** All of its bytes can be had from the store. */
  get isStored(): boolean {
    return this.stored?.isWritten === true;
  }

  /** Only sequences hold it that ask for what they need of it whenever they need it. */
  get isLoose(): boolean {
    return this.looseCount > 0 && this.looseCount === this.refCount;
  }

  /** Every layer can be had from somewhere. */
  get isWhole(): boolean {
    if (this.resident || this.isStored) return true;
    return this.deviceBlocks.every((id, layer) => id !== NOT_RESIDENT || this.host?.has(layer) === true);
  }
}

/** A block's summary slot holds this kind, or the first layers of it, and the others are on their way. */
export function isScoredBy({ summaries, incoming }: LogicalBlock, kind: SummaryKind): boolean {
  return summaries.has(kind) || incoming?.kind === kind;
}
