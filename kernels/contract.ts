/**
 * The device contract: buffers are opaque handles, ops are recorded and submitted, results come back in one small readback per step. It is made
 * for a GPU; a CPU device runs ops when their results are looked at.
 *
 * Words: a *page* is 16 tokens of one layer and KV head (unit of selection), a *block* is 64 tokens of one layer, all KV heads (unit of residency
 * and I/O). Rows are queries; a *slice* is the rows of one sequence in a step.
 *
 * Numerics are invariant: a row's result depends on its sequence's tokens and selection plan only, never on the other slices, on where a slice
 * begins or ends, on threads, or on residency (in exact mode). See {@link SPLIT_TOKENS}.
 */

export const PAGE_TOKENS = 16;
/** Tokens of a block, the unit of allocation and I/O. */
export const BLOCK_TOKENS = 64;
/** Pages of a block. */
export const PAGES_PER_BLOCK = BLOCK_TOKENS / PAGE_TOKENS;
/**
 * Attention is reduced per split of this many absolute positions: tokens of a split in ascending order with one online
 * softmax per block, blocks merged in ascending order, then splits merged in ascending order. Part of the numerics. A GPU, where a selection
 * left blocks out, has splits of blocks that it left (wgsl/attend.ts): those, too, depend on position and plan only.
 */
export const SPLIT_TOKENS = 512;
/** Rows of a matrix are packed in groups of this many. */
export const MATRIX_ROW_GROUP = 8;
/** Entry of a block table whose block is not on the device. */
export const NOT_RESIDENT = -1;

/** What computes: the scalar oracle, the CPU, or a GPU. */
export type DeviceKind = "reference" | "wasm" | "webgpu";
/** How weight matrices lie in memory. */
export type MatrixEncoding = "f32" | "bf16" | "f16" | "int8" | "int4";
/** How sealed blocks lie in the pool; the open block is f32 always. */
export type KvEncoding = "f32" | "int8";
/** What sealed blocks are rounded to beyond their encoding, so that fewer bits can hold them: f32 to `f16`, int8 to `int4`. */
export type KvRounding = "f16" | "int4";
/**
 * What a page leaves behind for scoring: (max+min)/2 with (max-min)/2; mean with standard deviation; (max+min)/2 with the mean distance from
 * it; two of its keys; the signs of all of its keys; signs and lengths of keys less their block's mean. Their order is that of their numbers in wasm.
 */
export const SUMMARY_KINDS = [
  "min-max",
  "mean-deviation",
  "centre-deviation",
  "representatives",
  "sign-bits",
  "residual-signs",
] as const;
/** See {@link SUMMARY_KINDS}. */
export type SummaryKind = (typeof SUMMARY_KINDS)[number];

/** Opaque memory of a device. f32 unless an op says otherwise. What it holds before the first write is undefined. */
export interface DeviceBuffer {
  readonly label: string;
  readonly bytes: number;
}

/**
 * A weight matrix `[outWidth, inWidth]`, packed as the device likes. `bf16`, `f16`: weights rounded to nearest even (f16: a finite one to at most
 * 65504), products as in f32. `int8`, `int4`: rows are cut into blocks of 32 inputs (the last may be shorter), each with one f32 scale and codes rounded to nearest
 * even. int8: scale = max|w|/127, codes -127..127. int4: scale = m/-8 with m the weight of largest magnitude (the first of equals), codes
 * -8..7. Inputs are quantized per row and block of 32 as int8 as they enter; a product is sum over blocks, ascending, of
 * `f32(dot_i32) * (scaleW * scaleX)`, accumulated in f32.
 */
export interface Matrix {
  readonly label: string;
  readonly outWidth: number;
  readonly inWidth: number;
  readonly encoding: MatrixEncoding;
  /** Bytes of the packed form. */
  readonly packedBytes: number;
}

/** Shape and capacity of a pool. */
export interface KvPoolSpec {
  layerCount: number;
  kvHeadCount: number;
  /** A multiple of 4 (8 in stories260K, 32 in house-0, 64-128 in larger models), at most 512, so that a score's integer sums fit 32 bits. */
  headDim: number;
  encoding: KvEncoding;
  /** See {@link KvPool}; absent: none. */
  rounding?: KvRounding;
  /** Which summaries are written when a block is sealed; a plan may only score by one of these. headDim is a multiple of 8 for sign-bits, of 16 for residual-signs. */
  summaryKinds: readonly SummaryKind[];
  /** Blocks shared by all layers. */
  blockCount: number;
  /** Each holds one logical block (64 tokens) of every layer, K and V in f32: the place where tokens are appended. */
  openSlotCount: number;
  /** Each holds the summaries of one logical block (4 pages) of every layer and KV head. */
  summarySlotCount: number;
}

/**
 * Paged KV memory. Byte layouts are fixed, so that stored bytes equal pool bytes (little-endian, no padding):
 *
 * block, f32:  K f32 `[kvHead][64][headDim]`, V f32 `[kvHead][64][headDim]`
 * block, int8: K i8 `[kvHead][64][headDim]`, K scales f32 `[kvHead][headDim]`, V i8 `[kvHead][64][headDim]`, V scales f32 `[kvHead][64]`
 *   (keys per channel within the block, values per token; scale = max|x|/127 in f32, code = round-half-even(x / scale), 0 where scale is 0)
 * rounding f16 (f32 pools): each sealed value is the nearest of binary16, halves to even, a finite one at most 65504
 * rounding int4 (int8 pools): after int8, in integers, over the codes of one scale: zero = least code, step = max(1, ceil((largest - zero) / 15)),
 *   code = min(127, zero + step * floor((code - zero) / step + 1/2)): 16 steps of the vector's own range, so that a sealed block is also zero,
 *   step and 4 bits a value, without loss. Summaries are of what is left
 * open slot:   K f32 `[layer][kvHead][64][headDim]`, then V the same; keys are post-RoPE
 * summary slot, of each kind: `[layer][kvHead]{ i8 codes [4 pages][2][headDim], f32 scales [4 pages][2] }`, entry 0 = centre c, 1 = radius r,
 *   each vector under one scale. Computed from the *sealed* (decoded) keys of the page, every operation rounded to f32, tokens ascending:
 *   min-max: c = (max+min)/2, r = (max-min)/2; mean-deviation: c = mean, r = population standard deviation (two passes);
 *   centre-deviation: c = (max+min)/2, r = mean of |key - c|. Then
 *   scale = max|c|/127, code = round-half-even(c / scale), 0 where the scale is 0; the radius likewise. But min-max: so that
 *   |k - code * scale| <= radius holds for every key of the page (but for f32 rounding), r' = r + |c - f32(code * scale)|,
 *   scale = max r'/127, code = min(127, ceil(r' / scale)). A vector with a value that is not finite has codes and a scale that make every
 *   score of the page NaN. A summary can so be rebuilt from a stored block, with the same bytes on every device.
 *   representatives: entries 0 and 1 are the two keys of the page that are most like all of it, the better one first, each encoded as c is.
 *   Chosen in integers: with key codes under one scale for the page (max|key|/127), weight(token) = sum over channels of
 *   code * (sum of the channel's codes over the page); larger first, ties to the lower token.
 *   sign-bits: in the place of the page's codes `[headDim/8][16 tokens]` bytes, bit i of byte (b, t) the sign bit of channel 8b + i of the key
 *   of token t; scales 1 and 0. Of both: a page with a key that is not finite has codes 0 and scales NaN.
 *   residual-signs: see residual-signs.ts. A slot may hold one kind and not yet the others; whoever owns the slots knows which.
 */
export interface KvPool {
  readonly spec: Readonly<KvPoolSpec>;
  /** Bytes of one block of one layer. */
  readonly blockBytes: number;
  /** Bytes of one open slot (all layers). */
  readonly openSlotBytes: number;
  /** Bytes of one kind of one summary slot (all layers). */
  readonly summaryBytes: number;
  /** Reads give the bytes of the moment of the call, whatever is written or recorded before they arrive. */
  readBlock(blockId: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Copies `bytes`; visible to every op recorded afterwards. */
  writeBlock(blockId: number, bytes: Uint8Array): void;
  /** @throws {AssertionError} (as `writeSummary`) when the pool does not keep that kind. */
  readSummary(slot: number, kind: SummaryKind): Promise<Uint8Array<ArrayBuffer>>;
  /** Leaves the slot's other kinds as they were; with a `layer`, whose share of the slot `bytes` then are, its other layers too. */
  writeSummary(slot: number, kind: SummaryKind, bytes: Uint8Array, layer?: number): void;
  /** The first `tokenCount` tokens: K f32 `[layer][kvHead][tokenCount][headDim]`, then V. */
  readOpen(slot: number, tokenCount: number): Promise<Uint8Array<ArrayBuffer>>;
  writeOpen(slot: number, tokenCount: number, bytes: Uint8Array): void;
}

/**
 * Scores a page for a query: `q.c + radiusWeight * |q|.r`. Quest: min-max, 1. Of representatives: `q.first + radiusWeight * q.second`. Exact in integers, so every device gives the same bits:
 * qScale = f32(max|q| / 32767); qCode = round-half-even(f32(q / qScale)), within +-32767, 0 where qScale is 0 or the quotient NaN;
 * dotC = sum of qCode * codeC, dotR = sum of |qCode| * codeR (representatives: qCode * codeR) over the channels, both exact; then, each
 * operation rounded to f32, score = ((qScale * scaleC) * f32(dotC)) + (((qScale * scaleR) * radiusWeight) * f32(dotR)), radiusWeight as f32.
 * Of sign-bits, without radiusWeight: score = scale 0 * f32(headDim - least), least the smallest over the page's tokens of min(255, channels in
 * which qCode < 0 and the key's sign bit differ). Of residual-signs: see residual-signs.ts.
 */
export interface PageScorer {
  summary: SummaryKind;
  radiusWeight: number;
}

/**
 * How the scores of several queries become one per page. The queries combined are all rows of a query group times the
 * query heads of one KV head (scope `kv-head`) or of all KV heads (scope `layer`: one selection serves every head).
 * `max`: the largest raw score. `softmax-sum`: each query's scores / sqrt(headDim) go through a softmax over the candidates,
 * then they are added, queries ascending by (row, head); a query all of whose scores are -Infinity has no vote.
 */
export type CombineRule = "max" | "softmax-sum";
/** Whether every KV head chooses its own pages, or one choice per layer serves all of them. */
export type SelectionScope = "kv-head" | "layer";

/**
 * Which layers choose; absent fields: each for itself. Layers below `denseLayers` attend to everything, those behind them and below `ownLayers`
 * choose each for itself. Of the layers behind these every `layersPerChoice`-th chooses, and those between take over what it chose for the same
 * group and KV head (pages and tokens), whatever of it is resident in their own layer. So a step must go through these layers one by one,
 * beginning at one that chooses.
 */
export interface LayerRule {
  denseLayers?: number;
  ownLayers?: number;
  layersPerChoice?: number;
}

/**
 * Which pages a query group attends to (worked out in page-range.ts). With p0, p1 the first and last absolute position of the group,
 * page(p) = floor(p/16):
 * - identity: if page(p1) + 1 <= budgetPages, everything up to the query: bit-identical to dense;
 * - forced: the first `sinkPages`; and from recentStart = max(0, min(page(p0) - recentPages + 1, first page of the block of p0)) to page(p1);
 * - candidates: the pages between. With forcedCount = sinkPages + (page(p0) - recentStart + 1), the best
 *   K = max(0, budgetPages - forcedCount) are taken, by score descending, ties to the lower page; then ascending order. (Forced pages after
 *   page(p0), the group's own, are not charged. Where sinks reach recentStart there are no candidates.)
 * Every candidate lies in a sealed block, so it has a summary. Without `scorer` no candidate is taken (streaming). Where K takes all
 * candidates or none, nothing is scored and no summary is needed. A NaN score ranks below every other.
 * `massShare` (0 < s <= 1), where pages are scored: of these K only the first n, the smallest n at which their weights reach s times the weight
 * of all candidates (K where they never do; at least 1). A candidate's weight is its combined score under `softmax-sum`, and
 * exp((score - best score) / sqrt(headDim)) under `max`; what is not above 0 weighs nothing. In doubles, candidates ascending.
 * `rowsPerChoice` (a divisor of 16; 1 if absent): in decode so many rows, from one multiple of it to the next, share the choice of the first. What that
 * means for the slices of a step is said there (`voters`, `choice`); a device does not look at it, and in a prompt it means nothing.
 * `layerShares`: of layer l, K is floor(K * layerShares[l]) instead, at most all candidates; the last entry stands for the layers behind it, too. Infinity:
 * all candidates, with a scorer or without. Where a layer takes over a choice, the entry of the layer that chose counts.
 * `retrievalHeads` `[layerCount][kvHeadCount]`, in scope `kv-head`, where every layer chooses: the others take no candidate (K = 0). Entries behind the last head are not read.
 * `headShares`, in scope `kv-head`, where every layer chooses: of KV head h of layer l, K is floor(K * headShares[l * kvHeadCount + h]) instead, at most all
 * candidates; the last entry stands for the heads behind it, too. Not beside `layerShares` or `retrievalHeads`.
 * `coarseFactor` F (a whole number, at least 2; summaries with a centre only), where pages are scored: blocks are scored first. Of the blocks all of whose
 * pages are candidates the best n = ceil(F * max(budgetPages, K) / 4) stay, ties to the lower block, NaN below every other; where there are no more
 * than n of them nothing changes. Pages of the others are passed over: the rest of the candidates are scored and combined as if there were no more.
 * A block's centre is the mean of its four pages' centres f32(code * scale) (added pages ascending, times 0.25, each operation rounded to f32), encoded
 * as c is in a summary; its score for a query is (qScale * scale) * f32(dot), as the first part of a page's, and queries are combined as for pages.
 * `tokens`: with K > 0 and fewer than all candidates, pages are scored by `scorer` (combined by `softmax-sum` over all heads) and the best
 * `candidatePages` kept (all, unscored, if there are no more); kept pages that are not resident are misses and drop out; then single tokens of the
 * rest are scored by q.k/sqrt(headDim) against the decoded keys, softmax over them per query, added over queries by (row, head) (soft vote), and
 * the best K * 16 tokens are taken, ties to the lower position (all, unscored, if there are no more). One choice serves every head of the layer.
 */
export type SelectionPlan =
  | { kind: "dense" }
  | (LayerRule & {
      kind: "pages";
      budgetPages: number;
      sinkPages: number;
      recentPages: number;
      scorer?: PageScorer;
      scope: SelectionScope;
      combine: CombineRule;
      massShare?: number;
      rowsPerChoice?: number;
      coarseFactor?: number;
      layerShares?: readonly number[];
      retrievalHeads?: readonly boolean[];
      headShares?: readonly number[];
    })
  | (LayerRule & {
      kind: "tokens";
      budgetPages: number;
      sinkPages: number;
      recentPages: number;
      candidatePages: number;
      scorer: PageScorer;
    });

/** The rows of one sequence in a step, and where its KV is. The arrays are read while ops are recorded. */
export interface StepSlice {
  /** Absolute position of the first row. */
  position: number;
  rowCount: number;
  /** `[layerCount][blockCapacity]`: device block of each logical block, or {@link NOT_RESIDENT}. Blocks that this step seals must be given. */
  blockIds: Int32Array;
  blockCapacity: number;
  /**
   * `[blockCapacity]`: summary slot of each logical block, or {@link NOT_RESIDENT}. Needed for every block with a candidate that will be
   * scored; a block that is sealed without one leaves no summary.
   */
  summarySlots: Int32Array;
  /** One slot for each logical block the rows touch, from floor(position/64) on; no slot serves two slices of a step. */
  openSlots: Int32Array;
  /** First row of each query group, ascending, starting with 0. Rows of a group share a selection. Decode: [0]. */
  groupStarts: Int32Array;
  plan: SelectionPlan;
  /**
   * Which rows of a group choose for it: all of them together, or only the first. With `first` (page plans only; a group then lies in one page)
   * a group may be computed row by row in several steps, with the same bits as in one: its first row needs none of the others, and these
   * follow by {@link choice}. Absent: `all`.
   */
  voters?: "all" | "first";
  /**
   * With `voters: "first"`: the first group's first row was computed in an earlier step, and this is what `StepReadback.choices` gave for it then.
   * The group takes it over and scores nothing. Every row of a page has the same forced pages, so the choice is whole. Not kept.
   */
  choice?: Uint8Array;
  /** With `voters: "first"`: ask for {@link StepReadback.choices} of this slice. */
  reportChoice?: boolean;
  /** Ask for {@link StepReadback.chosenBlocks} of this slice. */
  reportBlocks?: boolean;
}

/** Rotary embedding, tabulated by absolute position. */
export interface RopeTable {
  /** f32 `[positionCount][headDim/2]` each. */
  readonly cos: DeviceBuffer;
  readonly sin: DeviceBuffer;
  readonly positionCount: number;
}

/**
 * Sampling of one row; the definition is sample-row.ts. Order: bias, repetition penalty (every seen id), frequency and presence penalties
 * (generated ids), then temperature, top-k, top-p, min-p, then Gumbel noise and argmax. Temperature 0: argmax after the penalties.
 */
export interface SampleRow {
  /** Row of the logits buffer. */
  row: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  frequencyPenalty: number;
  presencePenalty: number;
  repetitionPenalty: number;
  /** Distinct ids seen in prompt or reply, and how often each was generated (0: prompt only). Same length. */
  seenIds: Uint32Array;
  seenCounts: Uint32Array;
  biasIds: Uint32Array;
  biasValues: Float32Array;
  seed: number;
  /** Position of the token being sampled: with the seed it fixes the noise. */
  position: number;
  /** Undefined: no logprobs; else how many alternatives. Logprobs are of the raw logits' softmax. */
  topLogprobs?: number;
}

/** A sampled token. */
export interface Sample {
  tokenId: number;
  logprob?: number;
  /** Best first; ties to the lower id. */
  top?: [tokenId: number, logprob: number][];
}

/** A selected block that was not on the device when a slice attended; attention went on without it. */
export interface Miss {
  sliceIndex: number;
  layer: number;
  /** Logical block index. */
  block: number;
}

/** What a slice read, summed over the recorded layers: the proof that selection ran. */
export interface SliceTraffic {
  /**
   * Pages chosen (forced ones too, resident or not; in token plans those with at least one token) and pages in context, per
   * (query group, layer, KV head), where the plan (or its layer) was not dense or identity.
   */
  pagesSelected: number;
  pagesInContext: number;
  /** Bytes of K and V that attention read, once per query group and KV head; `groupKvBytes` in traffic.ts is the definition. */
  kvBytes: number;
  /** Bytes of summaries, and of keys read for token scoring, per query group and KV head (`summaryReadBytes`, `keyReadBytes`). */
  metadataBytes: number;
  /** Candidates that a coarse pass left unscored, per (query group, layer, KV head). */
  pagesPassedOver: number;
}

/** What one step gives back to the host, read once. */
export interface StepReadback {
  samples: Sample[];
  /** Ascending by slice, layer, block; each once. */
  misses: Miss[];
  /** One per slice. */
  traffic: SliceTraffic[];
  /**
   * One per slice, undefined for a slice that did not ask (`reportBlocks`); absent when none asked. A bitmap
   * `[layerCount][ceil(blockCapacity / 32)]`, bit b % 32 of word floor(b / 32): logical block b of that layer holds a candidate page that
   * some query group and KV head chose, resident or not; forced pages, dense and identity set nothing. In token plans: a page with a chosen
   * token, or a kept page that missed. For the hot set, prefetch and eviction.
   */
  chosenBlocks?: (Uint32Array | undefined)[];
  /**
   * One per slice, undefined for a slice that did not ask (`reportChoice`) or where no layer selected; absent where all are. What the slice's last
   * group attends to before its own block, forced pages and chosen ones, resident or not: bytes `[layerCount][choiceCount][blockCount]`, bit i of byte b: page i of
   * logical block b; blockCount = floor(position of the last row / 64), choiceCount 1 where one choice serves all KV heads, else
   * kvHeadCount (`choiceShape` in choice.ts). 0 for layers that attend to everything or did not select, and where the budget reaches.
   */
  choices?: (Uint8Array | undefined)[];
}

/**
 * Records the ops of one step in order. Rows are numbered through all slices in order; `rows` are counted from row 0 of each buffer; widths are in elements.
 * Ops do not alias their output with an input unless they say so.
 */
export interface StepRecorder {
  /** `out[r] = table[tokens[r]]`; `out` f32 `[rows, width]`. */
  embed(args: { out: DeviceBuffer; table: Matrix; tokens: Uint32Array }): void;
  /** `out = x / sqrt(mean(x^2) + eps) * weight`, per row; the sum of squares in f32. */
  rmsNorm(args: {
    out: DeviceBuffer;
    x: DeviceBuffer;
    weight: DeviceBuffer;
    rows: number;
    width: number;
    eps: number;
  }): void;
  /**
   * `out = x . matrix^T` (or `out += ...` with `accumulate`: the finished f32 product is added); `x` f32 `[rows, inWidth]`, `out`
   * `[rows, outWidth]`.
   */
  matmul(args: { out: DeviceBuffer; x: DeviceBuffer; matrix: Matrix; rows: number; accumulate?: boolean }): void;
  /** `out = silu(gate) * up`; `out` may be `gate`. */
  siluMul(args: { out: DeviceBuffer; gate: DeviceBuffer; up: DeviceBuffer; rows: number; width: number }): void;
  /** Copies rows; the buffers may be the same where the ranges do not overlap. */
  copyRows(args: {
    out: DeviceBuffer;
    outRow: number;
    x: DeviceBuffer;
    xRow: number;
    rows: number;
    width: number;
  }): void;
  /** `out[i] = x[indices[i]]`. */
  gatherRows(args: { out: DeviceBuffer; x: DeviceBuffer; indices: Uint32Array; width: number }): void;
  /**
   * RoPE (half-split: channel i pairs with i + headDim/2) on `q` `[rows, headCount, headDim]` in place and on `k` `[rows, kvHeadCount, headDim]`
   * on its way into the open slots with `v`; where a slice completes a block: encode it into its device block and write its summaries.
   * Idempotent: recording the same rows again writes the same bytes.
   */
  append(args: {
    pool: KvPool;
    layer: number;
    headCount: number;
    q: DeviceBuffer;
    k: DeviceBuffer;
    v: DeviceBuffer;
    rope: RopeTable;
  }): void;
  /**
   * Chooses pages for every query group of slices whose plan is not dense, and notes misses (selected or, for dense, needed blocks that are
   * not resident). `q` is post-RoPE. Result is held by the recorder until the next `select`.
   */
  select(args: { pool: KvPool; layer: number; headCount: number; q: DeviceBuffer }): void;
  /**
   * Causal attention over the last `select`'s pages: a row at position p reads its own block floor(p/64) from the open slot (f32), earlier ones from
   * sealed blocks, skipping those not resident; scale 1/sqrt(headDim); query head h uses KV head floor(h / (headCount/kvHeadCount)). `out` `[rows, headCount, headDim]`.
   * Over an int8 block a device may round, per query and block, `q * key scales` and `weights * value scales` to 16 bits (1/65534 of the
   * largest, where the codes themselves are rounded by 1/254 of theirs) and then compute exactly; the reference rounds neither.
   */
  attend(args: { pool: KvPool; layer: number; headCount: number; q: DeviceBuffer; out: DeviceBuffer }): void;
  /** Samples rows of `logits` `[*, width]`; the samples come back from `submit` in this order. */
  sample(args: { logits: DeviceBuffer; width: number; rows: readonly SampleRow[] }): void;
  /**
   * On a device that can look before the step ends: whether this slice has missed a block so far. On others: undefined.
   * Lets a CPU stop a step early; nothing may depend on it.
   */
  hasMissed(sliceIndex: number): boolean | undefined;
  /**
   * Where {@link hasMissed} tells: what `submit` would give now, and the step goes on; nothing of what was given changes with it. Such a device's `submit` has
   * ended the step when it returns. On others: undefined.
   */
  report(): StepReadback | undefined;
  /**
   * Where {@link report} tells: the slices' `blockIds` have changed, because blocks have come (others may have left, but none that the last `select` chose; and none at all if the step began with every block), or their `summarySlots`. What the last `select` chose stands, unless
   * it depends on which blocks were there: not with token plans. What it misses is noted anew, and ops recorded from now on see what has come.
   */
  recheck(): void;
  /** Ends the step. One small readback. */
  submit(): Promise<StepReadback>;
}

/** One selection of one query group, as `debugSelection` shows it to tests and tools. */
export interface SelectionView {
  sliceIndex: number;
  group: number;
  kvHead: number;
  /** Ascending page ids; undefined: everything up to the query (dense or identity). */
  pages?: number[];
  /** Per page, bit t set: token t of the page is attended. */
  tokenMasks?: number[];
}

/** What a device says of itself, for logs. */
export interface DeviceReport {
  kind: DeviceKind;
  /** Human-readable: threads, SIMD level, adapter. */
  description: string;
  threadCount: number;
  memoryBytesMax: number;
}

/** One device: memory, matrices, pools and steps. Everything it made is freed with it. */
export interface Device {
  readonly kind: DeviceKind;
  /** Device kind, kernel version, fused or not: part of what names stored bytes. Same id, same bits. */
  readonly numericsId: string;
  readonly report: DeviceReport;
  /** Names how this device packs matrices: what {@link readPacked} gave may be written to an equal matrix of a device with the same id. */
  readonly packingId: string;
  buffer(label: string, bytes: number): DeviceBuffer;
  release(buffer: DeviceBuffer): void;
  /** Copies `data` to `byteOffset`; ordered with recorded ops. */
  write(buffer: DeviceBuffer, byteOffset: number, data: Uint8Array): void;
  /** Reads after everything submitted before. For tests, checkpoints and tools, not for the decode loop. */
  read(buffer: DeviceBuffer, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Packs a matrix; `data` is f32 `[outWidth, inWidth]`, row-major, not kept. */
  matrix(
    label: string,
    encoding: MatrixEncoding,
    shape: { outWidth: number; inWidth: number },
    data: Float32Array,
  ): Matrix;
  /** A matrix whose rows {@link writeRows} is still to write: a large one need never be held whole in f32. Undefined content until then. */
  emptyMatrix(label: string, encoding: MatrixEncoding, shape: { outWidth: number; inWidth: number }): Matrix;
  /**
   * Packs rows from `firstRow` on; `data` is f32 `[rows, inWidth]`, not kept. `firstRow` is a multiple of {@link MATRIX_ROW_GROUP}, and so is
   * the count unless the rows are the last. The bits are those of {@link matrix}, however rows are cut. Not while a step is recorded.
   */
  writeRows(matrix: Matrix, firstRow: number, data: Float32Array): void;
  /** Bytes of the packed form, a copy. For caches of weights, not for the decode loop. */
  readPacked(matrix: Matrix, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Writes bytes of the packed form; `data` is not kept. Not while a step is recorded. */
  writePacked(matrix: Matrix, byteOffset: number, data: Uint8Array): void;
  /** @throws {AssertionError} on an impossible spec; memory that does not suffice is the caller's to check against `report`. */
  kvPool(spec: KvPoolSpec): KvPool;
  /**
   * Where memory is given later than it is asked for (GPUs): resolves when all that was asked for so far is there. Before a device serves.
   * @throws {QuireError} invalid_request, naming what there was no memory for and its bytes
   */
  allocated?(): Promise<void>;
  /** Begins a step. One at a time per device. */
  begin(slices: readonly StepSlice[]): StepRecorder;
  /** What the last recorded `select` of the running step chose (tests and tools; CPU devices only). */
  debugSelection?(recorder: StepRecorder): SelectionView[];
  /** Ends worker threads and frees memory; the device is unusable afterwards. */
  close(): Promise<void>;
}
