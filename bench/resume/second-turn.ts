/** `npm run bench -- resume-answers`: whether answers of a second turn are as right on an engine that resumes lazily, in default mode, as on one that has everything. */
import { parseText } from "../../cli/flags.ts";
import { openModelFolder } from "../../cli/model-folder.ts";
import type { OpenedEngine } from "../../engine/open.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { GenerateRequest } from "../../protocol/generate.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { type BenchModel, openBenchModel } from "../decode/bench-model.ts";
import { threadsFlag } from "../decode/flags.ts";
import { REPLY_TOKENS_MAX, type Subject } from "../recall/ask.ts";
import {
  casesOf,
  documentsOfKind,
  isRight,
  passageOf,
  type RecallCase,
  type RecallDocument,
  readCases,
  userMessage,
} from "../recall/cases.ts";
import { type BenchTurn, percentileMs, startTurn } from "../schedule/bench-engine.ts";
import { DelayedStore, type Link } from "./delayed-store.ts";
import { withEngine } from "./measure-resume.ts";
import { countFlag, linkFlags, turnFlags } from "./turn-flags.ts";

const KIND = "second-turn";
/** Of a question, with both replies, in the pool beside its document. */
const QUESTION_TOKENS_MAX = 4 * REPLY_TOKENS_MAX;

const flags = {
  model: { help: "the folder of a model", placeholder: "PATH", fallback: "weights/house", parse: parseText },
  "case-file": {
    help: "documents with questions of the kind second-turn",
    placeholder: "FILE",
    fallback: "weights/house/eval-documents.jsonl.gz",
    parse: parseText,
  },
  cases: countFlag("questions", "208", { min: 1, max: 100_000 }),
  tokens: countFlag("tokens of a document with its conversation", "8192", { min: 512, max: 65_536 }),
  ...turnFlags({ turns: "both turns", budget: "1024" }),
  ...linkFlags,
  threads: threadsFlag,
} as const;

type Words = Pick<Subject, "tokenizer" | "template">;

/** What a session's two turns are. */
interface Setting {
  model: BenchModel;
  words: Words;
  selection: GenerateRequest["selection"];
  link: Link;
}

/** A question after its first turn, and what its second one answered where everything is there. */
interface Asked {
  question: RecallCase;
  second: Pick<GenerateRequest, "turnStart" | "spans"> & { tokens: number[]; sessionId: string };
  resident: BenchTurn;
}

/** One question, answered twice. */
interface AnswerRow {
  document: number;
  residentRight: boolean;
  lazyRight: boolean;
  isSame: boolean;
  /** Of the resumed turn. */
  ttftMs: number;
  pagesMissed: number;
  pagesBeforeFirstToken: number;
}

/** The benchmark as the registry names it. */
export const secondTurnBench = defineBench({
  summary:
    "Reads documents, answers a first question about each, and asks a second one twice: on the engine that has everything, and on one\n" +
    "that has just started over a store far away, in default mode (lazy). Answers right of both, and how many points apart they are.",
  flags,
  async run(values, context) {
    const { sentences, documents } = await readCases(values["case-file"]);
    const asked = documentsOfKind(documents, KIND, values.cases);
    const words = await openWords(values.model);
    const count = (text: string): number => words.tokenizer.encode(text).length;
    const sentenceTokens = sentences.map(count);
    const questionsMax = Math.max(...asked.map(({ questions }) => questions.length));
    const model = await openBenchModel({
      ...{ shape: "tiny", model: values.model, seed: 1, threads: values.threads, kvEncoding: "int8" },
      contextTokens: values.tokens + (questionsMax + 1) * QUESTION_TOKENS_MAX,
      summaryKinds: [policyNamed(values.policy).summary ?? "min-max"],
    });
    const selection = { policy: values.policy, budgetTokens: values.budget, exact: false };
    const setting = { model, words, selection, link: { rttMs: values.rtt, mbps: values.mbps } };
    const rows: AnswerRow[] = [];
    try {
      for (const [index, document] of asked.entries()) {
        if (context.signal.aborted) break;
        const passage = passageOf(document, sentences, { tokens: values.tokens, sentenceTokens, count });
        rows.push(...(await measureDocument(setting, document, passage, index)));
        context.progress(lineOf(rows));
      }
    } finally {
      await model.close();
    }
    return report(rows, values, context);
  },
});

async function openWords(folder: string): Promise<Words> {
  const { readEdgeFile } = await openModelFolder(folder);
  const readJson = async (name: string) => JSON.parse(new TextDecoder().decode(await readEdgeFile(name)));
  return openTokenizer({
    tokenizerJson: await readJson("tokenizer.json"),
    tokenizerConfig: await readJson("tokenizer_config.json"),
  });
}

async function measureDocument(
  setting: Setting,
  document: RecallDocument,
  passage: string,
  index: number,
): Promise<AnswerRow[]> {
  const { model, words, selection, link } = setting;
  const store = new MemoryStore();
  const asked = await withEngine(model, store, async (opened) => {
    const all: Asked[] = [];
    for (const question of casesOf(document))
      all.push(await askFirst(opened, setting, { question, passage, sessionId: `question-${all.length}` }));
    return all;
  });
  const rows: AnswerRow[] = [];
  for (const { question, second, resident } of asked) {
    const { sessionId, ...rest } = second;
    const lazy = await withEngine(model, new DelayedStore(store, link), (opened) =>
      answer(opened, model, { ...rest, selection, session: { id: sessionId }, resume: "lazy" }),
    );
    const { expect } = question.turns[1] ?? { expect: [] };
    const isCorrect = (turn: BenchTurn) => isRight(textOf(words, model, turn.ids), expect);
    rows.push({
      document: index,
      residentRight: isCorrect(resident),
      lazyRight: isCorrect(lazy),
      isSame: lazy.ids.join() === resident.ids.join(),
      ttftMs: (lazy.tokensMs[0] as number) - lazy.submittedMs,
      pagesMissed: lazy.usage.pagesMissed,
      pagesBeforeFirstToken: lazy.usage.pagesBeforeFirstToken,
    });
  }
  return rows;
}

/** The first turn, which the store then has, and the second one under another session's name: the first session stays as it is. */
async function askFirst(
  opened: OpenedEngine,
  { model, words, selection }: Setting,
  { question, passage, sessionId }: { question: RecallCase; passage: string; sessionId: string },
): Promise<Asked> {
  const messages: ChatMessage[] = [userMessage(question, 0, passage)];
  const prompt = encode(words, messages);
  const first = await answer(opened, model, { tokens: prompt, selection, session: { id: sessionId } });
  const reply = textOf(words, model, first.ids);
  const said = words.template.render(messages, { addGenerationPrompt: true }) + reply;
  messages.push({ role: "assistant", content: reply }, userMessage(question, 1, passage));
  const following = words.tokenizer.encode(
    words.template.render(messages, { addGenerationPrompt: true }).slice(said.length),
    { special: true },
  );
  const log = [...prompt, ...first.ids];
  // The end token of a reply is what the template writes next.
  const hasEnd = model.config.eosTokenIds.includes(log.at(-1) as number) && following[0] === log.at(-1);
  const tokens = [...log, ...following.slice(hasEnd ? 1 : 0)];
  const turn = { tokens, turnStart: log.length, spans: first.spans };
  const resident = await answer(opened, model, { ...turn, selection, session: { id: `${sessionId}-resident` } });
  return { question, second: { ...turn, sessionId }, resident };
}

function answer(
  opened: OpenedEngine,
  model: BenchModel,
  what: Pick<Parameters<typeof startTurn>[1], "tokens" | "selection"> & Partial<Omit<GenerateRequest, "tokens">>,
): Promise<BenchTurn> {
  return startTurn(opened, { ...what, maxTokens: REPLY_TOKENS_MAX, stopTokens: model.config.eosTokenIds }).ended;
}

function textOf({ tokenizer }: Words, { config }: BenchModel, ids: readonly number[]): string {
  return tokenizer.decode(ids.filter((id) => !config.eosTokenIds.includes(id)));
}

function encode({ tokenizer, template }: Words, messages: readonly ChatMessage[]): number[] {
  return tokenizer.encode(template.render(messages, { addGenerationPrompt: true }), { special: true });
}

const sharePercent = (rows: readonly AnswerRow[], holds: (row: AnswerRow) => boolean): number =>
  (100 * rows.filter(holds).length) / rows.length;

function lineOf(rows: readonly AnswerRow[]): string {
  const resident = sharePercent(rows, (row) => row.residentRight).toFixed(1);
  const lazy = sharePercent(rows, (row) => row.lazyRight).toFixed(1);
  return `${rows.length} questions: right ${resident} % resident, ${lazy} % resumed`;
}

function report(rows: readonly AnswerRow[], settings: object, { print }: Pick<BenchContext, "print">) {
  const residentPercent = sharePercent(rows, (row) => row.residentRight);
  const lazyPercent = sharePercent(rows, (row) => row.lazyRight);
  const points = lazyPercent - residentPercent;
  const samePercent = sharePercent(rows, (row) => row.isSame);
  const missingPercent = sharePercent(rows, (row) => row.pagesMissed > 0);
  const ttftMs = percentileMs(
    rows.map((row) => row.ttftMs),
    50,
  );
  print(lineOf(rows));
  print(`points apart: ${points.toFixed(1)} (bar: 1); the same words: ${samePercent.toFixed(1)} %`);
  print(
    `turns that went on without some page: ${missingPercent.toFixed(1)} %; first token, median: ${ttftMs.toFixed(0)} ms`,
  );
  const figures = { questions: rows.length, residentPercent, lazyPercent, points, samePercent, missingPercent, ttftMs };
  return { ok: Math.abs(points) <= 1, data: { settings, ...figures, rows } };
}
