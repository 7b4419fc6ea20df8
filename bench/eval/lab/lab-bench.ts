/** A model twice: on a fast device, which reads passages densely, and on the laboratory's, which reads questions and answers them under rules. */
import { openModelFolder } from "../../../cli/model-folder.ts";
import { BLOCK_TOKENS, type Device } from "../../../kernels/contract.ts";
import { openModel } from "../../../models/open.ts";
import { converse, REPLY_TOKENS_MAX, type SplitPrompt, splitPrompt } from "../../recall/ask.ts";
import type { RecallCase } from "../../recall/cases.ts";
import { poolCounts, Sequence } from "../../recall/sequence.ts";
import type { EvalSubject } from "../subject.ts";
import { Lab, type RowMeasure } from "./lab-device.ts";
import type { RowRule } from "./rule.ts";

const DENSE = { kind: "dense" } as const;

/** A question whose passage has been read. */
export interface ReadQuestion extends SplitPrompt {
  question: RecallCase;
  passage: string;
}

/** What was said in a turn. */
export interface Reply {
  /** The end token included if it came. */
  ids: number[];
  /** Without the end token. */
  text: string;
  /** What each id came from, raw. */
  logits: Float32Array[];
}

/** See the head of this file. */
export class LabBench {
  readonly #subject: EvalSubject;
  readonly #own: EvalSubject;
  readonly #lab: Lab;

  private constructor(subject: EvalSubject, own: EvalSubject, lab: Lab) {
    this.#subject = subject;
    this.#own = own;
    this.#lab = lab;
  }

  /** `subject`: with f32 KV; `model`: what it was opened from; `reference`: a reference device. The caller closes both devices. */
  static async open(
    subject: EvalSubject,
    { model, reference, contextTokens }: { model: string; reference: Device; contextTokens: number },
  ): Promise<LabBench> {
    const { path: folder } = await openModelFolder(model);
    const lab = new Lab(reference);
    const { layerCount } = subject.runner.config;
    const counts = poolCounts({ layerCount, contextTokens: subject.sequence.capacityTokens, rowsMax: 1 });
    const kv = { encoding: "f32", summaryKinds: [], ...counts } as const;
    let logits = new Float32Array(0);
    const runner = await openModel({
      ...{ folder, device: lab.wrap(), encoding: "f32", kv, rowsMax: 1 },
      observe: ({ stage, values }) => {
        if (stage === "logits") logits = values.slice();
      },
    });
    const sequence = new Sequence(runner, subject.sequence.capacityTokens);
    if (contextTokens > subject.sequence.capacityTokens) throw new RangeError("the sequence holds its context");
    return new LabBench(subject, { ...subject, runner, sequence, logits: () => logits }, lab);
  }

  /** What rows since the last `answer` or `reply` began came to, where its rule chose. */
  get measures(): readonly RowMeasure[] {
    return this.#lab.measures;
  }

  /** Tokens of a text by itself. */
  countTokens(text: string): number {
    return this.#own.tokenizer.encode(text).length;
  }

  /** Reads the passage of a question, densely and in the place of the one before. */
  async read(question: RecallCase, passage: string, signal: AbortSignal): Promise<ReadQuestion> {
    const prompt = splitPrompt(this.#subject, question, passage);
    this.#subject.sequence.rewind(0);
    await this.#subject.sequence.read(prompt.kept, signal);
    await this.#copyBlocks(prompt.kept.length);
    this.#lab.forget(0);
    return { ...prompt, question, passage };
  }

  /** Reads the question under a rule (undefined: densely) and answers it; the reply to its last turn. */
  async answer({ question, passage, kept, rest }: ReadQuestion, rule: RowRule | undefined, signal: AbortSignal) {
    this.#begin(kept.length, rule);
    return await converse(this.#own, { question, passage, plan: DENSE, rest, signal });
  }

  /** As {@link answer}, of the first turn. `given`: a reply to be read in the place of its own. */
  async reply(
    { kept, rest }: ReadQuestion,
    { rule, given }: { rule?: RowRule | undefined; given?: readonly number[] },
    signal: AbortSignal,
  ): Promise<Reply> {
    const { sequence, runner, tokenizer } = this.#own;
    const { eosTokenIds } = runner.config;
    this.#begin(kept.length, rule);
    const isEnd = (id: number | undefined): boolean => eosTokenIds.includes(id as number);
    const [first] = await sequence.answer(rest, { plan: DENSE, tokensMax: 1, endIds: [], signal });
    const ids = [given?.[0] ?? (first as number)];
    const logits = [this.#own.logits()];
    while (given === undefined ? ids.length < REPLY_TOKENS_MAX && !isEnd(ids.at(-1)) : ids.length < given.length) {
      signal.throwIfAborted();
      const next = await sequence.advance(ids.at(-1) as number, DENSE);
      logits.push(this.#own.logits());
      ids.push(given?.[ids.length] ?? next);
    }
    return { ids, text: tokenizer.decode(isEnd(ids.at(-1)) ? ids.slice(0, -1) : ids), logits };
  }

  #begin(tokenCount: number, rule: RowRule | undefined): void {
    this.#own.sequence.adopt(tokenCount);
    this.#lab.forget(tokenCount / BLOCK_TOKENS);
    this.#lab.start(rule);
  }

  async #copyBlocks(tokenCount: number): Promise<void> {
    const { blockIds, blockCapacity } = this.#subject.sequence.slice(0, 1, DENSE);
    for (let layer = 0; layer < this.#own.runner.config.layerCount; layer++) {
      for (let block = 0; block < tokenCount / BLOCK_TOKENS; block++) {
        const id = blockIds[layer * blockCapacity + block] as number;
        this.#own.runner.pool.writeBlock(id, await this.#subject.runner.pool.readBlock(id));
      }
    }
  }
}
