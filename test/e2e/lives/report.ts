/** What lives have seen, together. */

/** Counts of one life, or of several. */
export interface LifeReport {
  /** Requests for a turn, and how they ended. */
  turns: number;
  done: number;
  refused: number;
  failed: number;
  left: number;
  lost: number;
  /** Choices whose text is the twin's. */
  compared: number;
  logprobs: number;
  /** Sessions whose counts and messages were asked for. */
  looks: number;
  takenOver: number;
  cachedTokens: number;
  storeTokens: number;
  recomputedTokens: number;
  forks: number;
  deletions: number;
  /** Requests that were sent twice under one Idempotency-Key, and streams that were cut and taken up again. */
  repeated: number;
  cuts: number;
  /** Streams that were taken up behind an event in their middle. */
  takenUp: number;
  /** Turns that no context holds. */
  tooLong: number;
  /** Turns that were ended by their names. */
  stopped: number;
  /** Keys that were refused when their time was over. */
  keysRevoked: number;
  /** From the first try to the answer, refusals and pauses between tries with it. */
  longestWaitMs: number;
  enginesKilled: number;
  enginesDrained: number;
  edgesKilled: number;
  /** Engines and edges that stood still for seconds, and went on. */
  frozen: number;
  storesDisturbed: number;
  /** By the operator: sessions verified and repaired, removed, carried out of the store, and put in the place of one. */
  verified: number;
  removed: number;
  exported: number;
  imported: number;
  /** Keys that took another's place while turns ran. */
  keysRotated: number;
  /** Sessions whose stored objects were all there in the end. */
  storedWhole: number;
  /** Tokens that were durable, and found by an engine that had nothing. */
  durableTokens: number;
  collected: number;
}

/** A life that has seen nothing. */
export function newReport(): LifeReport {
  return {
    ...{ turns: 0, done: 0, refused: 0, failed: 0, left: 0, lost: 0, compared: 0, logprobs: 0, looks: 0, takenOver: 0 },
    ...{
      cachedTokens: 0,
      storeTokens: 0,
      recomputedTokens: 0,
      forks: 0,
      deletions: 0,
      repeated: 0,
      cuts: 0,
      takenUp: 0,
      tooLong: 0,
      stopped: 0,
    },
    ...{
      keysRevoked: 0,
      longestWaitMs: 0,
      enginesKilled: 0,
      enginesDrained: 0,
      edgesKilled: 0,
      frozen: 0,
      storesDisturbed: 0,
      verified: 0,
      removed: 0,
      exported: 0,
      imported: 0,
      keysRotated: 0,
      storedWhole: 0,
      durableTokens: 0,
      collected: 0,
    },
  };
}

/** Adds a report to the sum. */
export function addReport(sum: LifeReport, { ...counts }: LifeReport): void {
  const { longestWaitMs } = sum;
  for (const key of Object.keys(counts) as (keyof LifeReport)[]) sum[key] += counts[key];
  sum.longestWaitMs = Math.max(longestWaitMs, counts.longestWaitMs);
}
