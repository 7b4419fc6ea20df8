/** Where the bytes of a run of blocks are (or are about to be) in the page store. */
import type { SummaryObjectKind } from "../../storage/geometry.ts";
import type { SummaryRef } from "../../storage/manifest.ts";

/** One segment; every logical block in it points here. */
export interface StoredSegment {
  /** Chain (hex) after its last token. */
  readonly chain: string;
  readonly fromToken: number;
  readonly tokenCount: number;
  readonly objectKey: string;
  readonly objectOffset: number;
  readonly objectBytes: number;
  /** CRC-32 of each block, `[layer][block]`. */
  readonly checksums: Uint32Array;
  /** The objects that hold its summaries, one of each kind; replaced when they are compacted. */
  readonly summaries: Map<SummaryObjectKind, SummaryRef>;
  /** Summary slots of the kinds whose object is not written yet. */
  readonly slots: Map<SummaryObjectKind, Uint8Array>;
  /** Its summaries cannot be had from the store any more: it has to be put again. */
  damaged: boolean;
  /** Settles when the object is in the store (true) or could not be put (false). */
  readonly written: Promise<boolean>;
  /** It is in the store. */
  isWritten: boolean;
  /** When it was put, named by a manifest that was read, or looked for and found; by the engine's clock. */
  seenMs: number;
}
