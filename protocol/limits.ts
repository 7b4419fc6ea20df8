/** Every limit of the system in one place; units are in the names. Settings may lower them, never raise them. */
export const LIMITS = {
  /** Largest HTTP body the edge reads, before it parses anything. */
  requestBytesMax: 16 * 1024 * 1024,
  /** A body that comes slowly: between two pieces of it, and all of it. */
  requestIdleMsMax: 10_000,
  requestMsMax: 60_000,
  /** Deepest JSON nesting accepted. */
  jsonDepthMax: 32,
  /** Objects and arrays of one body, and values of any kind: parsed, small ones take a hundred times their text. */
  jsonContainerCountMax: 65_536,
  jsonValueCountMax: 1_048_576,
  messageCountMax: 4096,
  stopStringCountMax: 16,
  stopStringBytesMax: 512,
  topLogprobsMax: 20,
  choiceCountMax: 8,
  /** Of a list of prompts, their choices together. */
  listedChoiceCountMax: 64,
  logitBiasCountMax: 1024,
  /** A selection configuration such as `quest+scope(layer)`; it is part of what names stored bytes. */
  selectionCharsMax: 640,
  /** `budget_tokens` of a selection: sinks, the block being written (4 pages) and at least three chosen pages; and more than any context. */
  budgetTokensMin: 128,
  budgetTokensMax: 1 << 20,
  /** And of whole pages. */
  budgetTokensStep: 16,
  /** `max_tokens` when the request names none (bounded by what the context leaves). */
  completionTokensDefault: 1024,
  /** Tokens of one prompt, more than any context: what a body may hold is twelve times as many. */
  promptTokensMax: 1 << 20,
  sessionIdBytesMax: 128,
  /** One frame of the edge-to-engine protocol. */
  frameBytesMax: 16 * 1024 * 1024,
  /** Token ids of one log row in the session log's SQLite. */
  logRowIdsMax: 65_536,
  /** A log that a session keeps in memory between two turns. */
  logMemoryBytesMax: 256 * 1024,
  /** What an isolate keeps of sessions whose turns ran in it, logs and rendered texts together. */
  sessionMemoryBytesMax: 16 * 1024 * 1024,
  /** A log that goes to the Worker in which its next turn runs; turns of a longer one run in the session's object. */
  logImageBytesMax: 16 * 1024 * 1024,
  /** Rendered text that a session keeps in memory between two turns. */
  renderMemoryCharsMax: 256 * 1024,
  /** Requests waiting in one engine before it answers 429. */
  engineQueueMax: 64,
  /** A client that is refused is told to come back within this, and at most so many of one tenant, and of all, have a place kept for them. */
  retryAfterMsMax: 600_000,
  retryPromisesMax: 4_096,
  retryPromisesOfAllMax: 16_384,
  /** A request that would have to wait longer before its prompt is begun is refused. */
  waitMsMax: 300_000,
  /** Tokens that are guessed and checked in one step of a sequence (speculation). */
  draftTokensMax: 16,
  /**
   * Sessions whose last commit an engine remembers, and how many of their summary objects together (some 0.4 KB each, one of each kind for 4,096 tokens): more
   * than have KV in its memory. A forgotten one is read again from the store.
   */
  commitStatesMax: 512,
  commitSummariesMax: 4_096,
  /** Traces that an engine remembers, and events of one. */
  traceCountMax: 256,
  traceEventCountMax: 512,
  /** Sequences that decode together. */
  engineRunningMax: 32,
  /** Rows (tokens) of one engine step. */
  stepRowsMax: 512,
  /** Of a sequence whose context is larger than the pool: one block is sealed at a time. */
  looseRowsMax: 64,
  /** Of such a sequence: tokens of earlier turns are computed again so many times over, all together, before it is given up. */
  recomputesMax: 8,
  /** No engine step is planned to take longer. */
  stepMsMax: 250,
  /** Tokens are coalesced this long before they are sent to the edge. */
  coalesceMs: 4,
  /**
   * SSE comment heartbeat while a stream is silent. A closed connection shows at the second write after it, and an engine ends work
   * between two steps: both together stay below a second.
   */
  heartbeatMs: 150,
  /** What an engine tells of the prefixes that it holds: 6,500 of them at 1 % of strangers, 1.7 million tokens. */
  prefixFilterBytesMax: 8 * 1024,
  /** Blocks of a prompt that are named for routing: 128K tokens. */
  routedBlockCountMax: 2_048,
  /** Without an engine a turn waits this long before its headers go out, and in all; so many wait at one Fleet object. */
  holdHeadersMs: 2_000,
  holdMsMax: 120_000,
  heldTurnCountMax: 1_000,
  /** A turn that has lost its engine waits so long for one, also where nothing starts engines: as long as a machine that is too busy to beat is thought gone, twice. */
  lostEngineHoldMs: 10_000,
  /** The wake hook: one call, called again when no engine came of it, and sooner when it failed. */
  wakeCallMsMax: 30_000,
  wakeAgainMs: 60_000,
  wakeRetryMs: 5_000,
  /** Names of models that an isolate remembers, and how old that may be. */
  modelNameCountMax: 64,
  modelNameMsMax: 2_000,
  /** The prompt router is no reason to wait: nobody does so for longer, and after so many failures in a row it is left alone for a while. */
  promptRouterMsMax: 20,
  promptRouterFailureCountMax: 3,
  promptRouterRestMs: 5_000,
  engineHeartbeatMs: 1_000,
  /** How long a session's next turn goes to the engine of its last one without asking the fleet: no longer than what the fleet knows is old. */
  placementMsMax: 1_000,
  fleetShardCountMax: 64,
  engineExpiryMs: 5_000,
  /** Rows of one tenant's transcript index; the least recently used go first. */
  indexRowCountMax: 100_000,
  /** A session that nobody used for this long is deleted, with its index rows, within a day. */
  sessionIdleMsMax: 30 * 24 * 3_600_000,
  /**
   * Engines are told of a deleted session at once, so many calls at a time, and for so long behind it; what no engine has heard of is kept for as long as a session.
   * One that had no answer of its edge for longer than the next drops what idles in its memory before it asks for turns again.
   */
  deletionCallsMax: 16,
  deletionKeepMs: 600_000,
  deletionCountMax: 32_768,
  engineAwayMsMax: 300_000,
  /** So many sessions of a tenant are asked at once whether it is time to go, the next ones after a pause, and one that did not answer later. */
  expiryBatchMax: 32,
  expiryPauseMs: 1_000,
  expiryRetryMs: 3_600_000,
  /** Events of a turn that may wait for a slow client before reading from the engine pauses. */
  turnBufferBytesMax: 4 * 1024 * 1024,
  /** What all turns of an isolate may so hold together, of its 128 MiB, and what each may while it is more. */
  streamMemoryBytesMax: 24 * 1024 * 1024,
  turnBufferTightBytes: 64 * 1024,
  /** Events that are written to a client at once. */
  streamWriteBytesMax: 16 * 1024,
  /** A resumable turn runs on without a listener for this long, and only while all it said fits into the next two limits. */
  resumableMsMax: 60_000,
  /** What of a resumable turn is kept for clients that come back. */
  replayBytesMax: 4 * 1024 * 1024,
  replayEventCountMax: 65_536,
  /** How long a finished turn can still be asked for. */
  replayKeepMs: 300_000,
  /**
   * A resumable turn is written down when it has run for a moment, and then its ids so often. An object that was lost is asked for it by its client or, without one, by an
   * alarm; a turn that is lost again and again is given up.
   */
  runningNoteMs: 250,
  runningSaveTokens: 32,
  runningSaveMs: 1_000,
  runningAlarmMs: 15_000,
  runningAttemptCountMax: 4,
  /** A turn that was ended before it came does not run for so long (its body comes within `requestMsMax`); so many are remembered of a session. */
  stoppedTurnMsMax: 60_000,
  stoppedTurnCountMax: 64,
  /** Connections that follow one resumable turn; one more ends the oldest. */
  streamListenerCountMax: 4,
  /** Keys in the secret table, and in the key ring. */
  keyTableCountMax: 256,
  keyRingCountMax: 1_000_000,
  /** What an isolate remembers of the key ring: how long a revoked key may still work elsewhere. */
  keyCacheCountMax: 4_096,
  keyCacheMsMax: 10_000,
  /** The same while the key ring does not answer. */
  keyStaleMsMax: 300_000,
  keyLabelLengthMax: 128,
  keyRequestBytesMax: 4 * 1024,
  /** Keys in one page of a list. */
  keyPageCountMax: 1_000,
  keyRingMsMax: 2_000,
  /** What a tenant may ask for where nobody says otherwise, and what can be said at most. */
  requestsPerMinuteDefault: 600,
  requestsPerMinuteMax: 10_000_000,
  tokensPerMinuteDefault: 2_000_000,
  tokensPerMinuteMax: 10_000_000_000,
  turnsConcurrentDefault: 32,
  turnsConcurrentMax: 10_000,
  /** How long a turn's place is kept before anybody says that the turn runs (its body comes within `requestMsMax`), and then each time somebody does. */
  leaseUnheldMsMax: 90_000,
  leaseHeldMsMax: 60_000,
  /** What a tenant has used is written at most once in this time. */
  budgetSaveMs: 1_000,
  limiterMsMax: 1_000,
  /** A turn that runs in a Worker asks its session's object for the session, and has its log written there. */
  sessionMsMax: 10_000,
  /** And asks that object whether the turn is to end, again and again: so long at most a session stays with a Worker that is gone. */
  holdAskedMsMax: 5_000,
  /** A place that was reserved for a session's next turn is given back when none has come; more than `placementMsMax`, in which it is taken. */
  placeReservedMsMax: 2_000,
  /** How old the limiter's last word on a key may be, for a turn to go on while it is asked again. */
  placeCreditMsMax: 60_000,
  /** Signed requests between edge and engines: how far clocks may differ, and how many nonces one peer remembers. */
  signatureSkewMsMax: 30_000,
  nonceCountMax: 65_536,
  engineKeyLengthMin: 16,
  /** How long the edge waits for the end of a generation that it cancelled before it closes the connection. */
  cancelMsMax: 1_000,
  /** Deadlines of remote calls. */
  /** The transcript index is a hint: nobody waits for it longer than this. */
  indexMsMax: 1_000,
  /** Asking an engine what it stored of a session: the caller has the rest of the answer already. */
  statusMsMax: 2_000,
  admissionMsMax: 10_000,
  turnMsMax: 600_000,
  /** A commit that could not be made for so long behind its turn is given up: a tombstone stands for longer than a turn and this together. */
  commitAgeMsMax: 300_000,
  storeGetMsMax: 5_000,
  storePutMsMax: 10_000,
  /** Calls of one store at once: at 30 ms each and pieces of 70 KB, 96 fill 220 MB/s. */
  storeConcurrency: 96,
  /** Disk cache: how long a read and a write may take, how long a disk that failed is left alone, reads at once, bytes that wait to be written. */
  diskReadMsMax: 1_000,
  diskWriteMsMax: 5_000,
  diskRestMs: 30_000,
  diskReadsMax: 64,
  diskWriteBytesMax: 64 * 1024 * 1024,
  /** Bytes that may wait to be persisted before the oldest unsealed work is dropped. */
  writeBehindBytesMax: 256 * 1024 * 1024,
  /** Most used blocks of a layer that a manifest records, and how many bytes of them a resumed turn reads before it starts. */
  hotBlocksPerLayerMax: 64,
  hotBurstBytesMax: 64 * 1024 * 1024,
  /** At most one manifest commit per session in this time. */
  manifestCommitMs: 1_000,
} as const;
