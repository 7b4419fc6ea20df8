/**
 * One request in the engine: its tokens, their provenance, and the KV that exists for them. KV is a list of sealed logical blocks,
 * any of which may be absent (a gap: never computed, or lost), and open blocks that are partly filled. Computing always goes on at the
 * first token without KV, so a lost span is filled by the same code that prefills a prompt.
 */
import { randomBytes } from "node:crypto";
import { BLOCK_TOKENS, NOT_RESIDENT } from "../../kernels/contract.ts";
import type { Checkpoint } from "../../models/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { detached } from "../../protocol/detached.ts";
import type {
  EngineUsage,
  FinishReason,
  GenerateRequest,
  ReuseSource,
  SelectionConfiguration,
  Span,
  TokenLogprob,
} from "../../protocol/generate.ts";
import { bytesToIds } from "../../protocol/ids.ts";
import type { BlockCache } from "../kv/block-cache.ts";
import type { BlockLayer } from "../kv/block-fetcher.ts";
import { ANYBODY, own } from "../kv/block-owners.ts";
import { CHAIN_ROOT, extendChain } from "../kv/chain.ts";
import type { LogicalBlock } from "../kv/logical-block.ts";
import type { OpenBlock, OpenBlocks } from "../kv/open-blocks.ts";
import { DENSE, formatHow, SpanList } from "../kv/provenance.ts";
import type { WorkingSet } from "../kv/reservations.ts";
import { type Way, Ways } from "../kv/way.ts";
import type { ReserveMode } from "../settings.ts";
import { BlockHeat } from "./block-heat.ts";
import type { PlannedSlice, RunChoice } from "./planned-slice.ts";

/** Receives what a request produces. Calls come in order; exactly one of `done` and `failed` ends them. */
export interface SequenceSink {
  token(id: number, logprob: TokenLogprob | undefined): void;
  /** `spans`: how the tokens from the turn's start on were computed. */
  done(reason: FinishReason, usage: EngineUsage, spans: Span[]): void;
  failed(error: unknown): void;
}

/**
 * queued -> attaching (finding KV) -> running <-> waiting (for blocks) -> settling (persisting what the turn left) -> ended; running ->
 * preempted (its memory is others') -> waiting. Any of them can go to ended by an abort.
 */
export type Phase = "queued" | "attaching" | "running" | "waiting" | "preempted" | "settling" | "ended";

/** An open block of a suspended sequence: its slot is others'. */
export interface SavedOpen {
  tokenCount: number;
  /** Charged to the host pool. */
  hostBytes: number;
  /** As `KvPool.readOpen` gave them; undefined where that failed. */
  bytes: Uint8Array | undefined;
  isPending: boolean;
}

/** A step that was recorded and found blocks missing: it goes on from the checkpoint, or is dropped. */
export interface SuspendedStep {
  planned: PlannedSlice;
  checkpoint: Checkpoint;
  /** The last layer of which is known what it misses; infinite once that of later ones was guessed (look-ahead.ts). */
  guessedLayer: number;
}

/** What a request needs of selection, resolved by the engine. */
export interface ResolvedSelection {
  policy: SelectionConfiguration;
  version: number;
  groupTokens: number;
  /** Of the prompt of a session's first turn; absent: it is read densely. */
  firstTurnBudgetTokens?: number;
  budgetTokens: number;
  /** What the request asked for, where a busy engine gives less. */
  budgetTokensAsked?: number;
  exact: boolean;
}

/** A checked request and who hears of it. */
export interface SequenceOptions {
  request: GenerateRequest;
  selection: ResolvedSelection;
  sink: SequenceSink;
  layerCount: number;
  nowMs: number;
  /** The same moment in milliseconds since 1970. Default 0. */
  wallMs?: number;
  /** Blocks that are set aside when it is admitted: for all that it can come to need (default), or for its prompt. */
  reserve?: ReserveMode;
}

/** State only; the engine drives it. */
export class Sequence {
  readonly request: GenerateRequest;
  readonly selection: ResolvedSelection;
  readonly sink: SequenceSink;
  readonly queuedAtMs: number;
  /** When its session began, milliseconds since 1970; of a request that does not say so, when it came. */
  readonly sinceMs: number;
  /** Tokens of the request: those behind it were generated here. */
  readonly promptEnd: number;
  /** Where the reply begins: at `promptEnd`, or before it when an engine that was lost had begun it. */
  readonly replyStart: number;
  readonly spans: SpanList;
  readonly #ways = new Ways();
  /** Sealed blocks by index; undefined: a gap. */
  readonly blocks: (LogicalBlock | undefined)[] = [];
  /** Partly filled blocks by index. */
  readonly opens = new Map<number, OpenBlock>();
  readonly usage: EngineUsage;
  phase: Phase = "queued";
  suspended: SuspendedStep | undefined;
  finishReason: FinishReason | undefined;
  tokenCount: number;
  generatedCount = 0;
  /** Logical blocks to be reserved when it is admitted, and those reserved in the cache now. */
  startBlocks: number;
  reservedCount = 0;
  /** Set where its context is larger than the pool: it holds its blocks loosely, and has this reserved in the place of them. */
  workingSet: WorkingSet | undefined;
  /** What its suspended step will attend to: it does not leave the device. */
  readonly #pins = new Map<number, Set<LogicalBlock>>();
  /** The how-many-th that was admitted. */
  admittedOrder = 0;
  /** How often it was suspended; while it is, its references are parked and its open blocks saved. */
  preemptedCount = 0;
  isParked = false;
  readonly savedOpens = new Map<number, SavedOpen>();
  /** True once the first token was sampled. */
  started = false;
  /** Default mode: until then, the prompt's steps wait for missing pages. */
  missWaitUntilMs = 0;
  /** They wait longer where everything that they select, and then the first token, is to be expected by then. */
  wholeWaitUntilMs = 0;
  /** When its last token was sampled: whose is longest ago is first where decodes take turns. */
  lastTokenMs = 0;
  abortRequested = false;
  /** Its terminal event has been sent. */
  concluded = false;
  /** Blocks that were found rather than computed, by index, and where: what `usage.cachedTokens` and `usage.source` count. */
  readonly reused = new Map<number, keyof ReuseSource>();
  /** What the run that was computed last attends to, for its further rows. */
  choice: RunChoice | undefined;
  /** Which blocks its queries choose. */
  readonly heat: BlockHeat;
  /** Per layer the blocks that the session's last turn chose most; read with the first burst. */
  hotBlocks: readonly (readonly number[])[] = [];
  /** Ends reads that were begun before anybody asked for them; each tells how many bytes were read in vain. */
  readonly readAhead: (() => number)[] = [];
  readonly abort = new AbortController();
  /** Reads of this sequence's blocks for the store that are under way: its memory is not released before they end. */
  readonly copying = new Set<Promise<unknown>>();
  error: unknown;
  readonly #ids: Uint32Array;
  readonly #chains: string[] = [];
  readonly #nonce = randomBytes(8).toString("hex");

  constructor(options: SequenceOptions) {
    const { request, selection } = options;
    this.request = request;
    this.selection = selection;
    this.sink = options.sink;
    this.queuedAtMs = options.nowMs;
    this.sinceMs = request.session?.bornMs ?? options.wallMs ?? 0;
    this.heat = new BlockHeat(options.layerCount);
    const prompt = bytesToIds(request.tokens);
    this.promptEnd = prompt.length;
    this.replyStart = request.replyStart ?? prompt.length;
    this.startBlocks = startBlocksOf(request, options.reserve ?? "full");
    this.tokenCount = prompt.length;
    this.#ids = new Uint32Array(prompt.length + request.maxTokens);
    this.#ids.set(prompt);
    this.spans = new SpanList(request.spans);
    const promptHow = request.turnStart === 0 ? this.#firstPromptHow() : this.#how(selection.groupTokens);
    const replyHow = this.#how(1);
    this.spans.append(promptHow === replyHow ? prompt.length : this.replyStart, promptHow);
    this.spans.append(prompt.length, replyHow);
    this.usage = emptyUsage(selection, prompt.length);
  }

  /** Higher goes first, among requests of one tenant. */
  get priority(): number {
    return this.request.priority ?? 0;
  }

  /** After that, a first token is of no use to the client. */
  get firstTokenDueMs(): number {
    return this.queuedAtMs + (this.request.firstTokenMsMax ?? Number.POSITIVE_INFINITY);
  }

  get namespace(): string {
    return this.request.namespace;
  }

  /** Names the session within the engine; undefined without one. */
  get sessionKey(): string | undefined {
    const { session, namespace } = this.request;
    return session && `${namespace}/${session.id}`;
  }

  /** Spans of this turn's tokens, prompt and reply. */
  turnSpans(): Span[] {
    return this.spans.since(this.request.turnStart);
  }

  /** Most logical blocks this request can come to hold. */
  get blocksMax(): number {
    return blocksOf(this.request);
  }

  /** Blocks that its tokens fill and that are not reserved: without them it cannot be in a step. */
  get shortBlocks(): number {
    if (this.workingSet) return 0;
    return Math.floor(this.tokenCount / BLOCK_TOKENS) - this.reservedCount;
  }

  /** The ids so far, prompt and reply; a view. */
  get ids(): Uint32Array {
    return this.#ids.subarray(0, this.tokenCount);
  }

  /** Position of the first token without KV, or undefined when all have it. */
  get nextPosition(): number | undefined {
    const wholeBlocks = Math.floor(this.tokenCount / BLOCK_TOKENS);
    for (let index = 0; index <= wholeBlocks; index++) {
      if (this.blocks[index]) continue;
      const position = index * BLOCK_TOKENS + (this.opens.get(index)?.tokenCount ?? 0);
      if (position < this.tokenCount) return position;
    }
    return undefined;
  }

  /** Tokens from 0 on that have KV without a gap. */
  get computedCount(): number {
    return this.nextPosition ?? this.tokenCount;
  }

  /** Chain after block `index`, whose 64 tokens must be known. */
  chain(index: number): string {
    while (this.#chains.length <= index) {
      const from = this.#chains.length * BLOCK_TOKENS;
      assert(from + BLOCK_TOKENS <= this.tokenCount, "a chain covers known tokens");
      this.#chains.push(this.#extend(from, from + BLOCK_TOKENS));
    }
    return index < 0 ? CHAIN_ROOT : (this.#chains[index] as string);
  }

  /** Chain after any token count, unsealed tail included. */
  chainAt(tokenCount: number): string {
    const whole = Math.floor(tokenCount / BLOCK_TOKENS);
    return tokenCount % BLOCK_TOKENS === 0 ? this.chain(whole - 1) : this.#extend(whole * BLOCK_TOKENS, tokenCount);
  }

  /** How the token at a position is computed; undefined for dense. */
  wayAt(position: number): Way | undefined {
    return this.#ways.of(this.spans.at(position).how);
  }

  blockKey(index: number): string {
    return `${this.namespace}:${this.chain(index)}`;
  }

  /** Takes a sampled token. */
  accept(id: number): void {
    this.#ids[this.tokenCount] = id;
    this.tokenCount += 1;
    this.generatedCount += 1;
    this.spans.extend(this.#how(1));
  }

  /** Tokens `[from, to)` were attended while selected pages were missing: their KV is this session's only. */
  markApproximate(from: number, to: number): void {
    this.spans.markApproximate(from, to, this.#nonce);
    this.#chains.length = Math.min(this.#chains.length, Math.floor(from / BLOCK_TOKENS));
  }

  /** Its context is larger than the pool: this is set aside for it in the place of its blocks. Before it holds any. */
  confine(workingSet: WorkingSet, layerCount: number): void {
    this.workingSet = workingSet;
    this.startBlocks = Math.ceil(workingSet.deviceBlocks / layerCount);
  }

  /** Takes a reference over: the block is the sequence's. */
  hold(cache: BlockCache, block: LogicalBlock): void {
    assert(!this.blocks[block.index], "a block is taken into a gap");
    this.blocks[block.index] = block;
    if (this.workingSet) cache.loosen(block);
  }

  /** What a suspended step will attend to stays on the device until {@link unpin}, beside what was pinned for the same layers before. */
  pin(cache: BlockCache, layers: readonly BlockLayer[], layerFirst: number): void {
    this.unpin(cache, layerFirst);
    for (const { block, layer } of layers) {
      const pinned = this.#pins.get(layer) ?? new Set();
      this.#pins.set(layer, pinned);
      if (pinned.has(block)) continue;
      pinned.add(block);
      cache.pin(block, layer);
    }
  }

  /** Of layers before `layerEnd`. */
  unpin(cache: BlockCache, layerEnd = Number.POSITIVE_INFINITY): void {
    for (const [layer, pinned] of this.#pins) {
      if (layer >= layerEnd) continue;
      for (const block of pinned) cache.unpin(block, layer);
      this.#pins.delete(layer);
    }
  }

  /** Lets go of blocks that cannot be used, such as lost ones; they are gaps from now on, and not reused. Returns how many. */
  drop(cache: BlockCache, isUnusable: (block: LogicalBlock) => boolean): number {
    let count = 0;
    for (const [index, block] of this.blocks.entries()) {
      if (!block || !isUnusable(block)) continue;
      this.blocks[index] = undefined;
      this.#release(cache, block);
      count += 1;
      this.#uncountReused(index);
    }
    return count;
  }

  #uncountReused(index: number): void {
    const source = this.reused.get(index);
    if (source === undefined) return;
    this.reused.delete(index);
    this.usage.cachedTokens -= BLOCK_TOKENS;
    this.usage.source[source] -= BLOCK_TOKENS;
  }

  /** An open block, or more of one, where the sequence has nothing as good; the slot it replaces is given back. */
  adoptOpen(index: number, open: OpenBlock, opens: OpenBlocks): void {
    this.dropOpen(index, opens);
    this.opens.set(index, open);
  }

  /** Gives an open block back: its tokens are sealed elsewhere. */
  dropOpen(index: number, opens: OpenBlocks): void {
    const open = this.opens.get(index);
    if (!open) return;
    this.opens.delete(index);
    opens.give(open.slot);
  }

  /** The one release path of a sequence's memory: blocks deepest first, so that the least useful are evicted first. */
  releaseAll(cache: BlockCache, opens: OpenBlocks): void {
    const owner = detached(this.sessionKey ?? ANYBODY);
    for (let index = this.blocks.length - 1; index >= 0; index--) {
      const block = this.blocks[index];
      if (block) own(block, owner);
      if (block && this.isParked) cache.dropParked(block);
      else if (block) this.#letGo(cache, block);
    }
    this.blocks.length = 0;
    for (const open of this.opens.values()) opens.give(open.slot);
    this.opens.clear();
    this.forgetSaved(cache);
    this.unpin(cache);
    if (this.workingSet === undefined) cache.reservations.unreserve(this.reservedCount);
    else if (this.reservedCount > 0) cache.reservations.unreserveParts(this.workingSet);
    this.reservedCount = 0;
  }

  /** Its blocks may leave the device, deepest first. */
  park(cache: BlockCache): void {
    for (const block of this.blocks.toReversed()) {
      if (!block) continue;
      this.#noteWorth(block);
      cache.park(block);
    }
    this.isParked = true;
  }

  /** Takes its blocks up again, those on the device first, so that none of them makes room for another; lost ones are gaps. */
  unpark(cache: BlockCache): void {
    this.isParked = false;
    const isOnDevice = (block: LogicalBlock) => block.summarySlot !== NOT_RESIDENT;
    const held = this.blocks.filter((block) => block !== undefined);
    for (const block of [...held.filter(isOnDevice), ...held.filter((block) => !isOnDevice(block))]) {
      if (cache.unpark(block)) continue;
      this.blocks[block.index] = undefined;
      this.#uncountReused(block.index);
    }
  }

  /** Gives back what its saved open blocks take. */
  forgetSaved(cache: BlockCache): void {
    for (const { hostBytes } of this.savedOpens.values()) cache.unchargeHost(hostBytes);
    this.savedOpens.clear();
  }

  #letGo(cache: BlockCache, block: LogicalBlock): void {
    this.#noteWorth(block);
    this.#release(cache, block);
  }

  #release(cache: BlockCache, block: LogicalBlock): void {
    if (this.workingSet) cache.tighten(block);
    cache.release(block);
  }

  /** What eviction goes by. */
  #noteWorth(block: LogicalBlock): void {
    block.priority = Math.max(block.priority, this.priority);
    block.heat = this.heat.of(block.index);
  }

  #firstPromptHow(): string {
    const { firstTurnBudgetTokens, groupTokens } = this.selection;
    return firstTurnBudgetTokens === undefined ? DENSE : this.#how(groupTokens, firstTurnBudgetTokens);
  }

  #how(groupTokens: number, budgetTokens = this.selection.budgetTokens): string {
    const { policy, version } = this.selection;
    return policy === DENSE ? DENSE : formatHow({ policy, version, budgetTokens, groupTokens });
  }

  #extend(from: number, to: number): string {
    const previous = this.chain(Math.floor(from / BLOCK_TOKENS) - 1);
    return extendChain(previous, this.#ids.subarray(from, to), this.spans.describe(from, to));
  }
}

/** Blocks that are set aside when a request is admitted: in mode `prompt` those of its prompt and the next one. */
function startBlocksOf(request: GenerateRequest, reserve: ReserveMode): number {
  const blocksMax = blocksOf(request);
  const promptBlocks = Math.floor(request.tokens.byteLength / 4 / BLOCK_TOKENS);
  return reserve === "full" ? blocksMax : Math.min(blocksMax, promptBlocks + 1);
}

/** Most logical blocks that a request can come to hold. */
export function blocksOf({ tokens, maxTokens }: GenerateRequest): number {
  return Math.ceil((tokens.byteLength / 4 + maxTokens) / BLOCK_TOKENS);
}

function emptyUsage(selection: ResolvedSelection, promptTokens: number): EngineUsage {
  return {
    promptTokens,
    completionTokens: 0,
    cachedTokens: 0,
    source: { device: 0, host: 0, store: 0 },
    recomputedTokens: 0,
    bytesBeforeFirstToken: 0,
    bytesFetched: 0,
    pagesBeforeFirstToken: 0,
    pagesFetched: 0,
    policy: selection.policy,
    budgetTokens: selection.budgetTokens,
    ...(selection.budgetTokensAsked === undefined ? {} : { budgetTokensAsked: selection.budgetTokensAsked }),
    exact: selection.exact,
    pagesSelected: 0,
    pagesInContext: 0,
    pagesMissed: 0,
    kvBytesRead: 0,
    metadataBytesRead: 0,
    queueMs: 0,
    firstTokenMs: 0,
    totalMs: 0,
  };
}
