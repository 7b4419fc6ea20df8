/** What a peer is to the comparison: an engine on the same machine that can be told to prefill and to decode. */

/** What is asked of either side. */
export interface PeerCase {
  kind: "prefill" | "decode";
  /** Tokens of context before the first measured one. */
  contextTokens: number;
  tokenCount: number;
}

/** One measurement of a side. */
export interface PeerRow extends PeerCase {
  /** Median of the measurement. */
  tokensPerS: number;
  /** Its fastest token, or its fastest repetition. */
  tokensPerSBest: number;
  /** How it was run, such as flash attention on or off: of several, the fastest counts. */
  variant: string;
}

/** A peer; measuring leaves nothing behind. */
export interface Peer {
  readonly name: string;
  /** One row per variant. @throws {UsageError} one line, when the peer does not run. */
  measure(item: PeerCase, signal: AbortSignal): Promise<PeerRow[]>;
}
