/** The plot of `demo:cold`: one engine reads a document and is killed; another one, which has nothing, is asked about it. */
import { randomUUID } from "node:crypto";
import type { RequestTrace } from "../protocol/generate.ts";
import { demoPassage, demoQuestions } from "./demo-passage.ts";
import type { Persisted, Stage } from "./demo-stage.ts";
import { fetchTrace } from "./trace.ts";

/** What a step attends to: a small part of the document. */
const SELECTION = { policy: "quest+scope(layer)+group(64)", budget_tokens: 512, exact: true };
const ANSWER_TOKENS_MAX = 24;

/** A turn as the client saw it. */
export interface ColdDemoTurn {
  question: string;
  text: string;
  usage: {
    promptTokens: number;
    completionTokens: number;
    cachedTokens: number;
    recomputedTokens: number;
    bytesBeforeFirstToken: number;
    /** In the engine. */
    firstTokenMs: number;
  };
  latencyMs: number;
}

/** Everything that the run showed. */
export interface ColdOutcome {
  first: ColdDemoTurn;
  second: ColdDemoTurn;
  persisted: Persisted;
  storedBytes: number;
  /** The engine that read the document, and the one that answered about it. */
  engines: { readerId: string; coldId: string };
  /** Of the second turn, from the second engine. */
  trace: RequestTrace;
  /** What was expected of the second turn. */
  answer: string;
}

/** Told what is going on. */
export interface ColdAudience {
  step(text: string): void;
  turn(turn: ColdDemoTurn): void;
}

/** The passage, with pages of the same story that hold no fact before and behind it. */
export function coldDocument(fillers: number): string {
  const filler = demoPassage.replaceAll(/ The code of \w+ is \d{4}\./g, "");
  const before = Math.ceil(fillers / 2);
  return filler.repeat(before) + demoPassage + filler.repeat(fillers - before);
}

/** Plays it; `fillers` passages of 700 tokens make the document longer. Leaves the stage without an engine. */
export async function playCold(stage: Stage, fillers: number, audience: ColdAudience): Promise<ColdOutcome> {
  const session = `cold-${randomUUID().slice(0, 8)}`;
  const [firstQuestion, , secondQuestion] = demoQuestions;
  if (!firstQuestion || !secondQuestion) throw new Error("the demonstration has three questions");
  audience.step("The first engine reads the document and answers a question");
  const reader = await stage.addEngine();
  const first = await ask(stage, { session, document: coldDocument(fillers), question: firstQuestion.question });
  audience.turn(first);
  const persisted = await stage.untilPersisted(session, first.usage.promptTokens + first.usage.completionTokens);
  const storedBytes = await stage.storedBytes();
  await reader.kill();
  audience.step(`kill -9 ${reader.pid}: only the bucket has what it read. A second engine starts`);
  const cold = await stage.addEngine();
  const requestId = `cold-${randomUUID()}`;
  const second = await ask(stage, { session, document: "", question: secondQuestion.question, requestId });
  audience.turn(second);
  const trace = await fetchTrace(requestId, { engine: cold.url, "engine-key": stage.engineKey, data: "" });
  await cold.kill();
  const engines = { readerId: reader.id, coldId: cold.id };
  return { first, second, persisted, storedBytes, engines, trace, answer: secondQuestion.answer };
}

async function ask(
  stage: Stage,
  {
    session,
    document,
    question,
    requestId,
  }: { session: string; document: string; question: string; requestId?: string },
): Promise<ColdDemoTurn> {
  const startMs = performance.now();
  const response = await fetch(`${stage.edgeUrl}/v1/chat/completions`, {
    method: "POST",
    headers: {
      ...{ authorization: `Bearer ${stage.apiKey}`, "content-type": "application/json" },
      ...(requestId === undefined ? {} : { "x-request-id": requestId }),
    },
    body: JSON.stringify({
      model: "default",
      messages: [{ role: "user", content: document + question }],
      ...{ temperature: 0, max_tokens: ANSWER_TOKENS_MAX },
      quire: { session_id: session, selection: SELECTION, resume: "lazy" },
    }),
  });
  const body = (await response.json()) as AnswerBody;
  const content = body.choices?.[0]?.message.content;
  if (content === undefined) throw new Error(`the edge answered ${response.status}: ${body.error?.message}`);
  const { prompt_tokens, completion_tokens, prompt_tokens_details, quire } = body.usage as AnswerUsage;
  const usage = {
    ...{ promptTokens: prompt_tokens, completionTokens: completion_tokens },
    cachedTokens: prompt_tokens_details.cached_tokens,
    bytesBeforeFirstToken: quire.bytes_before_first_token,
    recomputedTokens: quire.recomputed_tokens,
    firstTokenMs: quire.first_token_ms,
  };
  return { question, text: content.trim(), usage, latencyMs: performance.now() - startMs };
}

interface AnswerUsage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  quire: { bytes_before_first_token: number; recomputed_tokens: number; first_token_ms: number };
}

interface AnswerBody {
  choices?: { message: { content: string } }[];
  usage?: AnswerUsage;
  error?: { message: string };
}
