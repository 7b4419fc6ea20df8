/** What one life saw. */
export interface SimReport {
  turns: number;
  /** Compared with the twin, to the bit. */
  compared: number;
  /** Of default mode, after a page was missing: nothing to compare with. */
  approximate: number;
  aborted: number;
  kills: number;
  /** Turns that another engine took over. */
  failovers: number;
  duplicates: number;
  collections: number;
  /** Sessions that a collection took, for their age, and turns of which may run. */
  expired: number;
  /** Sessions that were deleted, and of those the ones that began anew under their id. */
  ended: number;
  begunAnew: number;
  storeTokens: number;
  hostTokens: number;
  /** Reads that the machine's disk answered. */
  diskHits: number;
  preemptions: number;
  /** Layers of blocks that left an engine's pool while a context larger than it was computed. */
  leftLayers: number;
  recomputedTokens: number;
  faults: number;
  /** Simulated. */
  totalMs: number;
}

/** A violated invariant; the message ends with how to see it again. */
export class SimFailure extends Error {
  override readonly name = "SimFailure";
}
