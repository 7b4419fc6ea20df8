/** Runs the generations of one turn at engines and sends their words on. Touches no storage. */
import { QuireError, toQuireError } from "../../protocol/errors.ts";
import {
  type EngineUsage,
  type GenerateRequest,
  PROTOCOL_VERSION,
  type Span,
  type TokenLogprob,
} from "../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { PickedEngine } from "../fleet-table.ts";
import { logEngineFailure } from "../log.ts";
import type { ModelAssets } from "../model-assets.ts";
import type { TurnJob } from "../turn-job.ts";
import { brokenOff, type EngineCall, laterEvent, openEngineCall } from "./engine-call.ts";
import { EngineWatch } from "./engine-watch.ts";
import { Reply, type ReplyDelta } from "./reply.ts";
import type { TurnStream } from "./turn-stream.ts";

/** What is known of the engine that a turn needs now. */
export interface EngineForTurn {
  stickyEngineId: string | undefined;
  /** Engines that failed this turn. */
  excludeIds: string[];
  /** An engine has admitted it. */
  hasBegun: boolean;
}

/** What a runner is made of. */
export interface RunnerOptions {
  job: TurnJob;
  tokens: Uint32Array<ArrayBuffer>;
  /** Of a list of prompts, those behind the first: the choices are theirs in turn, as many of each. */
  otherPrompts: readonly Uint32Array<ArrayBuffer>[];
  turnStart: number;
  spans: Span[];
  parentId: string | undefined;
  /** When the session's log began, milliseconds since 1970. */
  bornMs: number;
  assets: ModelAssets;
  /** The engine that served this session last. */
  stickyEngineId: string | undefined;
  /** Remembered from the last turn: this one goes there without asking. */
  known: PickedEngine | undefined;
  pick: (wanted: EngineForTurn) => Promise<PickedEngine | undefined>;
  /** Whether the fleet still hears of an engine. */
  isAlive: (engineId: string) => Promise<boolean>;
  engineKey: string;
  fetch: typeof fetch;
  /** Called when a request to an engine has left; undefined where nobody has anything to do beside the engine. */
  beside: (() => void) | undefined;
  /** Called once, when what has come of the reply by then has left, or is long in coming. */
  onRunning: () => void;
  stream: TurnStream;
  /** Ids of the first choice that were generated before its object was lost. */
  done: readonly number[];
  /** Told of the first choice's ids as they come. */
  onProgress: (ids: readonly number[]) => void;
}

/** One choice at its end. */
export interface ChoiceResult {
  reply: Reply;
  reason: "stop" | "length";
  usage: EngineUsage | undefined;
  /** Spans behind `turnStart`, as the engine told; empty when it did not. */
  spans: Span[];
}

/** Generations of one turn that run at a time: an object has six connections, and one is for cancels. */
const LANE_COUNT = 4;
/** Engines of one choice that may fail before the turn does. */
const FAILURE_COUNT_MAX = 4;
/** Engine failures that another engine may not have. */
const RETRY_CODES: readonly string[] = ["engine_failed", "shutting_down"];

/**
 * Runs once: {@link start}, then {@link run}; or {@link dispose}. The number of an event of the first choice's text is how many tokens stand
 * behind its end, so that a turn that is run again in another object, with other borders between events, numbers the same text alike.
 */
export class TurnRunner {
  readonly #options: RunnerOptions;
  readonly #stop = new AbortController();
  readonly #failedIds: string[] = [];
  readonly #servedIds: string[] = [];
  /** Admitted and not over. */
  readonly #calls = new Set<EngineCall>();
  /** Length of what was sent of each choice that has begun. */
  readonly #sentLengths = new Map<number, number>();
  #engine: PickedEngine | undefined;
  /** Another engine is being picked: one for all choices, which fail together. */
  #replacing: Promise<boolean> | undefined;
  #firstCall: EngineCall | undefined;
  readonly #first: ChoiceResult;
  /** What {@link sayFirst} came to. */
  #firstSaid: { isOver: boolean } | { thrown: unknown } | undefined;
  readonly #prompts: readonly Uint32Array<ArrayBuffer>[];
  /** Of a choice of each prompt. */
  #maxTokens: number[] = [];
  /** Callers choose their request ids: two that chose the same must not meet at an engine, where an id is how a call is cancelled. */
  readonly #callPrefix: string;
  #callCount = 0;
  #deadline: ReturnType<typeof setTimeout> | undefined;
  #late = false;

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#callPrefix = `${options.job.requestId}.${crypto.randomUUID()}`;
    this.#prompts = [options.tokens, ...options.otherPrompts];
    this.#first = newResult(this.#newReply());
  }

  /** The engines that admitted a generation of this turn, in order: one, unless it was lost. */
  get engineIds(): readonly string[] {
    return this.#servedIds;
  }

  /** The engine that serves this turn (the last one, when one failed). */
  get engine(): PickedEngine | undefined {
    return this.#engine;
  }

  /**
   * Gets the first choice admitted.
   * @returns the engine's numerics id; undefined when the reply was complete before its object was lost
   * @throws {QuireError} whatever the client has to hear instead of a stream.
   */
  async start(): Promise<string | undefined> {
    this.#engine = this.#options.known;
    const engine = this.#engine ?? (await this.#nextEngine());
    this.#maxTokens = this.#prompts.map(({ length }) => this.#boundTokens(length, engine.contextTokensMax));
    const { done } = this.#options;
    if (done.length > 0) this.#sayAgain(done);
    const { reply } = this.#first;
    if (this.#isComplete(0, reply)) return undefined;
    this.#firstCall = await this.#open(0, reply.ids);
    return this.#firstCall.numericsId;
  }

  /** Before {@link run}, which is still to be called: says what came of the first choice with its admission, so that it leaves in the first write. */
  sayFirst(): void {
    this.#begin(0);
    if (!this.#firstCall) return;
    try {
      this.#firstSaid = { isOver: this.#takeBatch(this.#firstCall.first, 0, this.#first) };
    } catch (thrown) {
      this.#firstSaid = { thrown };
    }
  }

  /**
   * Runs all choices to their end; the first one's first token starts the others, so that they find its prompt in the engine's cache (of a list
   * of prompts they start at once).
   * When the reader goes away, the work is cancelled and what was let out so far is returned, with the engine's accounts of it.
   * @throws {QuireError} when a choice fails.
   */
  async run(): Promise<ChoiceResult[]> {
    try {
      return this.#options.job.choiceCount === 1 ? [await this.#runChoice(0, () => undefined)] : await this.#runAll();
    } catch (thrown) {
      this.#end();
      throw this.#late ? new QuireError("deadline_exceeded", "The turn took too long.", { cause: thrown }) : thrown;
    } finally {
      if (this.#deadline !== undefined) clearTimeout(this.#deadline);
    }
  }

  async #runAll(): Promise<ChoiceResult[]> {
    const results: ChoiceResult[] = [];
    const waiting = Array.from({ length: this.#options.job.choiceCount - 1 }, (_, index) => index + 1);
    const begun = Promise.withResolvers<void>();
    const first = this.#runChoice(0, begun.resolve).then((result) => {
      results[0] = result;
    });
    const lane = async () => {
      for (let index = waiting.shift(); index !== undefined; index = waiting.shift()) {
        results[index] = await this.#runChoice(index, () => undefined);
      }
    };
    if (this.#prompts.length === 1) await Promise.race([begun.promise, first]);
    await Promise.all([first, ...Array.from({ length: Math.min(LANE_COUNT - 1, waiting.length) }, lane)]);
    return results;
  }

  /** Bounds the turn, and ends its calls when nobody listens any more. A first token that comes at once does not wait for this. */
  #attend(): void {
    if (this.#deadline !== undefined || this.#stop.signal.aborted) return;
    this.#options.onRunning();
    this.#deadline = setTimeout(() => {
      this.#late = true;
      this.#end();
    }, LIMITS.turnMsMax);
    // Not closed: only a generation that ends by itself tells how its tokens were computed, and the log needs that to use them again.
    const { gone } = this.#options.stream;
    const cancel = () => {
      for (const call of this.#calls) void call.cancel();
    };
    gone.addEventListener("abort", cancel);
    if (gone.aborted) cancel();
  }

  /** Ends everything, for a turn that was refused before it ran. */
  dispose(): void {
    if (this.#deadline !== undefined) clearTimeout(this.#deadline);
    this.#end();
  }

  /** Ends everything now. */
  #end(): void {
    this.#stop.abort();
    for (const call of this.#calls) call.drop();
  }

  async #runChoice(index: number, onBegun: () => void): Promise<ChoiceResult> {
    const result = index === 0 ? this.#first : newResult(this.#newReply());
    const { reply } = result;
    if (index === 0) this.#begin(index);
    // Its words may be complete by now, and their accounts are not.
    const isOpen = index === 0 && this.#firstCall !== undefined;
    for (let attempt = 0; (attempt === 0 && isOpen) || !this.#isComplete(index, reply); attempt++) {
      let call: EngineCall | undefined;
      try {
        call = (attempt === 0 && index === 0 && this.#firstCall) || (await this.#open(index, reply.ids));
        await this.#follow(call, index, result, onBegun);
        break;
      } catch (thrown) {
        if (this.#options.stream.gone.aborted) break;
        // The words are complete; only their accounts are lost.
        if (this.#isComplete(index, reply)) break;
        if (call === undefined || this.#stop.signal.aborted) throw thrown;
        logEngineFailure(this.#options.job.requestId, call, thrown);
        if (attempt + 1 >= FAILURE_COUNT_MAX) throw thrown;
        if (!this.#mayGoOn(thrown) || !(await this.#replaceEngine(call.engineId))) throw thrown;
      } finally {
        if (call) this.#calls.delete(call);
      }
    }
    // What a client that is gone was not given is no part of the reply.
    if (!this.#options.stream.gone.aborted) this.#send(index, reply.finish(), reply.generatedCount + 1);
    this.#begin(index);
    if (reply.ended === "stop-string" || reply.ended === "end-token") result.reason = "stop";
    return result;
  }

  async #follow(call: EngineCall, index: number, result: ChoiceResult, onBegun: () => void): Promise<void> {
    const { stream } = this.#options;
    let watch: EngineWatch | undefined;
    try {
      if (this.#takeFirst(call, index, result)) return;
      if (result.reply.generatedCount > 0) onBegun();
      this.#attend();
      watch = this.#watch(call);
      if (result.reply.ended === "stop-string") await call.cancel();
      for (let batch = await call.next(); batch; batch = await call.next()) {
        watch.heard();
        if (this.#takeBatch(batch, index, result)) return;
        if (result.reply.generatedCount > 0) onBegun();
        if (result.reply.ended === "stop-string") await call.cancel();
        if (stream.isFull) await stream.ready(AbortSignal.any([this.#stop.signal, stream.gone]));
      }
      throw brokenOff();
    } finally {
      watch?.stop();
      await call.close();
    }
  }

  #watch(call: EngineCall): EngineWatch {
    return new EngineWatch({
      silentMsMax: LIMITS.engineExpiryMs,
      intervalMs: LIMITS.engineHeartbeatMs,
      isAlive: () => this.#options.isAlive(call.engineId),
      onDead: () => call.drop(),
    });
  }

  /** What came with the admission, unless it is said. @returns whether the generation is over */
  #takeFirst(call: EngineCall, index: number, result: ChoiceResult): boolean {
    const said = call === this.#firstCall ? this.#firstSaid : undefined;
    if (!said) return this.#takeBatch(call.first, index, result);
    if ("thrown" in said) throw said.thrown;
    return said.isOver;
  }

  /** @returns whether the generation is over */
  #takeBatch(batch: readonly unknown[], index: number, result: ChoiceResult): boolean {
    const { stream } = this.#options;
    const { reply } = result;
    for (const value of batch) {
      const event = laterEvent(value);
      if (event.type === "done") {
        if (event.reason === "cancelled" && reply.ended !== "stop-string" && !stream.gone.aborted) {
          throw new QuireError("shutting_down", "The engine stopped before the reply was complete.");
        }
        result.usage = event.usage;
        result.spans = event.spans;
        if (event.reason === "stop") result.reason = "stop";
        return true;
      }
      if (reply.ended !== undefined || stream.gone.aborted) continue;
      this.#push(index, reply, bytesToIds(event.ids), event.logprobs);
    }
    return false;
  }

  #push(index: number, reply: Reply, ids: Uint32Array, logprobs: readonly TokenLogprob[] | undefined): void {
    if (this.#options.stream.revived) this.#pushSingly(reply, ids);
    else this.#send(index, reply.push(ids, logprobs), index === 0 ? reply.generatedCount : undefined);
    if (index === 0) this.#options.onProgress(reply.ids);
  }

  /** The borders of the lost events are not known: with one event for each token every one of them is a border. */
  #pushSingly(reply: Reply, ids: ArrayLike<number>): void {
    for (let at = 0; at < ids.length; at++) this.#send(0, reply.push([ids[at] as number]), reply.generatedCount);
  }

  #sayAgain(done: readonly number[]): void {
    this.#begin(0);
    this.#pushSingly(this.#first.reply, done);
  }

  #isComplete(index: number, reply: Reply): boolean {
    return reply.ended !== undefined || reply.ids.length >= (this.#maxTokens[this.#place(index).prompt] as number);
  }

  /** Which prompt a choice is of, and which of its choices it is. */
  #place(index: number): { prompt: number; choice: number } {
    const each = this.#options.job.choiceCount / this.#prompts.length;
    return { prompt: Math.floor(index / each), choice: index % each };
  }

  #newReply(): Reply {
    const { assets, job } = this.#options;
    return new Reply({ tokenizer: assets.tokenizer, stopTokens: assets.stopTokens, stopStrings: job.stopStrings });
  }

  #send(choice: number, delta: ReplyDelta, number?: number): void {
    if (delta.text === "" && delta.logprobs.length === 0) return;
    this.#begin(choice);
    const logprobs = this.#options.job.topLogprobs === undefined ? undefined : delta.logprobs;
    const offset = this.#sentLengths.get(choice) ?? 0;
    this.#sentLengths.set(choice, offset + delta.text.length);
    this.#options.stream.send({ type: "text", choice, text: delta.text, offset, logprobs }, number);
  }

  /** Says once that a choice has begun; the older interface has no word for it. */
  #begin(choice: number): void {
    if (this.#options.job.head.kind !== "chat" || this.#sentLengths.has(choice)) return;
    this.#sentLengths.set(choice, 0);
    this.#options.stream.send({ type: "begin", choice });
  }

  /** Whether another engine can go on from the ids so far. */
  #mayGoOn(thrown: unknown): boolean {
    return RETRY_CODES.includes(toQuireError(thrown).code);
  }

  /** Several engines may be gone without the fleet knowing it yet, so more than one is tried. */
  async #open(index: number, done: readonly number[]): Promise<EngineCall> {
    for (let failureCount = 1; ; failureCount++) {
      const asked = this.#engine;
      const { engineId, isRemembered = false } = asked ?? {};
      try {
        const call = await this.#call(index, done);
        this.#calls.add(call);
        if (!this.#servedIds.includes(call.engineId)) this.#servedIds.push(call.engineId);
        if (this.#options.stream.gone.aborted) void call.cancel();
        return call;
      } catch (thrown) {
        const { code } = toQuireError(thrown);
        const isRetried = RETRY_CODES.includes(code) || code === "deadline_exceeded";
        const isOver = this.#stop.signal.aborted || this.#options.stream.gone.aborted;
        if (!isOver) logEngineFailure(this.#options.job.requestId, asked, thrown);
        if (isRemembered && code === "queue_full" && !isOver) {
          // Another may have room.
          await this.#nextEngine();
          continue;
        }
        const isTried = failureCount < FAILURE_COUNT_MAX && !isOver && isRetried;
        if (!isTried || !(await this.#replaceEngine(engineId))) throw thrown;
      }
    }
  }

  /** Takes another engine than those that failed, or the one that another choice has taken already or is taking; false when there is none. */
  async #replaceEngine(failedId: string | undefined): Promise<boolean> {
    if (failedId !== undefined) this.#failedIds.push(failedId);
    if (this.#engine && !this.#failedIds.includes(this.#engine.engineId)) return true;
    this.#replacing ??= this.#takeOther().finally(() => {
      this.#replacing = undefined;
    });
    return this.#replacing;
  }

  async #takeOther(): Promise<boolean> {
    const other = await this.#pick(undefined);
    if (other) this.#engine = other;
    return other !== undefined;
  }

  #pick(stickyEngineId: string | undefined): Promise<PickedEngine | undefined> {
    const hasBegun = this.#servedIds.length > 0 || this.#options.done.length > 0;
    return this.#options.pick({ stickyEngineId, excludeIds: this.#failedIds, hasBegun });
  }

  async #nextEngine(): Promise<PickedEngine> {
    this.#engine = await this.#pick(this.#options.stickyEngineId);
    if (this.#engine) return this.#engine;
    throw new QuireError("no_engine", `No engine serves the model '${this.#options.job.model}' now.`, {
      retryAfterMs: LIMITS.wakeRetryMs,
    });
  }

  #call(index: number, done: readonly number[]): Promise<EngineCall> {
    const { engineKey, fetch, stream, beside } = this.#options;
    const engine = this.#engine;
    if (!engine) throw new QuireError("no_engine", "No engine was picked.");
    const opening = openEngineCall({
      engine,
      request: this.#request(index, done),
      engineKey,
      signal: this.#stop.signal,
      admission: stream.gone,
      fetch,
      onSlow: () => this.#attend(),
    });
    // When the request has left: what is done in this turn of the event loop is done before that.
    if (beside) setTimeout(beside, 0);
    return opening;
  }

  #request(index: number, done: readonly number[]): GenerateRequest {
    const { job, turnStart, spans, parentId, bornMs, assets } = this.#options;
    const { prompt, choice } = this.#place(index);
    const tokens = this.#prompts[prompt] as Uint32Array<ArrayBuffer>;
    const all = new Uint32Array(tokens.length + done.length);
    all.set(tokens);
    all.set(done, tokens.length);
    const isLogged = index === 0 && job.session !== undefined;
    const { sampling } = job;
    const topP = sampling.topP ?? assets.sampling.topP;
    this.#callCount += 1;
    return {
      version: PROTOCOL_VERSION,
      // Unique per call, so that a cancel never meets another attempt of the same request.
      requestId: `${this.#callPrefix}.${this.#callCount}`,
      model: job.model,
      namespace: job.namespace,
      session: isLogged && job.session ? sessionOf(job.session.id, parentId, bornMs) : undefined,
      tokens: idsToBytes(all),
      turnStart,
      spans,
      ...(done.length === 0 ? {} : { replyStart: tokens.length }),
      maxTokens: (this.#maxTokens[prompt] as number) - done.length,
      stopTokens: [...assets.stopTokens],
      sampling: {
        temperature: sampling.temperature ?? assets.sampling.temperature,
        // A nucleus of nothing is the best token alone.
        topP: topP === 0 ? 1 : topP,
        topK: topP === 0 ? 1 : Math.min(sampling.topK ?? assets.sampling.topK, assets.tokenizer.vocabularySize),
        minP: sampling.minP ?? 0,
        seed: (sampling.seed + choice) % 2 ** 32,
        frequencyPenalty: sampling.frequencyPenalty ?? 0,
        presencePenalty: sampling.presencePenalty ?? 0,
        repetitionPenalty: sampling.repetitionPenalty ?? assets.sampling.repetitionPenalty,
        logitBias: sampling.logitBias,
      },
      selection: job.selection,
      ...(job.speculation ? { speculation: true } : {}),
      ...(job.resume ? { resume: job.resume } : {}),
      topLogprobs: job.topLogprobs,
    };
  }

  #boundTokens(promptTokens: number, contextTokensMax: number): number {
    const { job } = this.#options;
    const room = contextTokensMax - promptTokens;
    const wanted = job.maxTokens ?? Math.min(job.maxTokensDefault, room);
    if (room >= 1 && wanted <= room) return wanted;
    const field = job.input.kind === "chat" ? "messages" : "prompt";
    throw new QuireError(
      "context_length_exceeded",
      `This model's maximum context length is ${contextTokensMax} tokens. However, you requested ${promptTokens + Math.max(1, wanted)} ` +
        `tokens (${promptTokens} in the ${field}, ${Math.max(1, wanted)} in the completion). Please reduce the length of either one.`,
      { param: room < 1 ? field : job.maxTokensParam },
    );
  }
}

function newResult(reply: Reply): ChoiceResult {
  return { reply, reason: "length", usage: undefined, spans: [] };
}

function sessionOf(id: string, parentId: string | undefined, bornMs: number): NonNullable<GenerateRequest["session"]> {
  return parentId === undefined ? { id, bornMs } : { id, parentId, bornMs };
}
