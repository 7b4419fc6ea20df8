/** The work of the instrument: windows of texts behind contexts, then questions, each piece once, noted as soon as it is done. */
import { createHash } from "node:crypto";
import { calibrationBeside } from "../../cli/calibration-beside.ts";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { readHeadProfile } from "../../engine/calibration.ts";
import type { SelectionPlan } from "../../kernels/contract.ts";
import { UNCALIBRATED_SELECTION } from "../../models/selection/calibration.ts";
import { resolveHeads } from "../../models/selection/head-profile.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { AUTO_SELECTION, type SelectionConfiguration } from "../../protocol/generate.ts";
import type { BenchContext } from "../bench.ts";
import { seededRandom } from "../random.ts";
import { type CaseFile, documentsOfKind, kindsOf, readCases } from "../recall/cases.ts";
import type { Baseline } from "./baseline-choices.ts";
import { continuationStarts, measureContinuation } from "./continuation.ts";
import type { PlacedContinuation } from "./continuation-figures.ts";
import type { ProbeOptions } from "./fidelity.ts";
import type { PlacedWindow } from "./figures.ts";
import type { EvalValues } from "./flags.ts";
import { type Candidate, candidatesOf, summaryKindsOf } from "./grid.ts";
import { Journal } from "./journal.ts";
import { Progress } from "./progress.ts";
import { meanOf } from "./statistics.ts";
import { documentsOf, type EvalSubject, openSubject, readText } from "./subject.ts";
import { measureDocument, passagesOf, type TaskResult } from "./tasks.ts";
import { measureWindow, type Window } from "./window.ts";

/** Streams of the seed from here on are those of long generations. */
const BASELINE_STREAM = 1_000_000;

/** What was measured, and on what. */
export interface EvalRun {
  candidates: readonly Candidate[];
  /** What `--policies` are on the model, in their order: `auto` and heads by name. */
  resolved: readonly string[];
  windows: PlacedWindow[];
  tasks: TaskResult[];
  continuations: PlacedContinuation[];
  model: { id: string; fingerprint: string; numericsId: string; device: string; parameters: string };
  /** Stopped before its end. */
  interrupted: boolean;
}

/** Runs what the journal of `folder` does not hold yet. */
export async function runEval(values: EvalValues, folder: string, context: BenchContext): Promise<EvalRun> {
  const files = await readCases(values["case-file"]);
  const policies = await namedPolicies(values);
  const subject = await openSubject(values, summaryKindsOf(policies));
  try {
    const { fingerprint, config } = subject.runner;
    const heads = await readHeadProfile((await openModelFolder(values.model)).path, {
      ...{ fingerprint, layerCount: config.layerCount, kvHeadCount: config.kvHeadCount },
      log: (event, fields) => context.progress(`${event}: ${fields?.problem}`),
    });
    const resolve = (name: SelectionConfiguration): string => resolveHeads(name, { ...config, heads });
    const resolved = policies.map(resolve);
    const candidates = candidatesOf(policies, values.budgets, resolve);
    const { numericsId, report } = subject.device;
    const { out: _, quick: __, threads: ___, ...settings } = values;
    const journal = await Journal.open(folder, {
      ...{ ...settings, fingerprint, numericsId, policies: resolved },
      versions: policies.map((name) => policyNamed(name).version),
    });
    const read = await contentsOf(values, files);
    if ((await journal.take("contents", async () => read)) !== read) {
      throw new UsageError(
        `--out: ${folder} holds results of other questions, texts or words of the model; take another`,
      );
    }
    const work: Work = { values, subject, candidates, files, journal, context };
    const measured = await measureAll(work);
    const shape = `${config.layerCount} layers, ${config.headCount} heads over ${config.kvHeadCount} KV heads of ${config.headDim}`;
    const model = { id: subject.modelId, fingerprint, numericsId, device: report.description, parameters: shape };
    return { candidates, resolved, ...measured, model, interrupted: context.signal.aborted };
  } finally {
    await subject.device.close();
  }
}

/** Digest of what the settings only name: questions, sentences, the text, and the model's words. */
async function contentsOf({ text, model }: EvalValues, files: CaseFile): Promise<string> {
  const { readEdgeFile } = await openModelFolder(model);
  const hash = createHash("sha256");
  hash.update(JSON.stringify([files.sentences, files.documents, text === undefined ? null : await readText(text)]));
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) hash.update(await readEdgeFile(name));
  return hash.digest("hex");
}

/** `--policies` with `auto` by its name. @throws {QuireError} for a calibration beside the model that is none. */
async function namedPolicies({ policies, model }: EvalValues): Promise<SelectionConfiguration[]> {
  const { path } = await openModelFolder(model);
  const auto = policies.includes(AUTO_SELECTION) ? await calibrationBeside(path) : undefined;
  return [
    ...new Set(policies.map((name) => (name === AUTO_SELECTION ? (auto?.selection ?? UNCALIBRATED_SELECTION) : name))),
  ];
}

interface Work {
  values: EvalValues;
  subject: EvalSubject;
  candidates: readonly Candidate[];
  files: CaseFile;
  journal: Journal;
  context: BenchContext;
}

async function measureAll(work: Work): Promise<Pick<EvalRun, "windows" | "tasks" | "continuations">> {
  const windows: PlacedWindow[] = [];
  const tasks: TaskResult[] = [];
  const continuations: PlacedContinuation[] = [];
  try {
    const texts = await textsOf(work);
    for await (const window of measureWindows(work, texts)) windows.push(window);
    for await (const results of measureTasks(work, windows)) tasks.push(...results);
    for await (const each of measureContinuations(work, texts, windows)) continuations.push(each);
  } catch (error) {
    if (!work.context.signal.aborted) throw error;
  }
  return { windows, tasks, continuations };
}

/** Ids of the texts that windows and long generations are taken from, as long as the longest of both needs. */
async function textsOf({ values, subject, files }: Work): Promise<number[][]> {
  const { contexts, continued, continuations, documents } = values;
  const longest = Math.max(...contexts.map((each) => each + values.tokens), ...(continuations > 0 ? continued : []));
  const text = values.text === undefined ? files.sentences.join("") : await readText(values.text);
  return documentsOf(text, subject, { count: documents, tokens: longest + 1 });
}

/** A text is read once, up to its longest context; windows are measured on the way. */
async function* measureWindows(work: Work, texts: readonly number[][]): AsyncGenerator<PlacedWindow> {
  const { values, subject, journal, context, candidates } = work;
  const contexts = values.contexts.toSorted((a, b) => a - b);
  const progress = new Progress(context, "windows", texts.length * contexts.length);
  const { sequence } = subject;
  const probe = probeOf(subject);
  for (const [document, all] of texts.entries()) {
    sequence.rewind(0);
    for (const [place, contextTokens] of contexts.entries()) {
      const key = `window/${document}/${contextTokens}`;
      const window = await journal.take(key, async (): Promise<Window> => {
        await sequence.read(all.slice(sequence.length, contextTokens), context.signal);
        const ids = all.slice(contextTokens, contextTokens + values.tokens + 1);
        const random = seededRandom(values.seed, document * contexts.length + place);
        return measureWindow({ probe, sequence, ids, candidates, random, signal: context.signal });
      });
      progress.step();
      yield { ...window, document, contextTokens };
    }
  }
}

/** A text is read up to the last place of each context; the others lie before it. */
async function* measureContinuations(
  work: Work,
  texts: readonly number[][],
  windows: readonly PlacedWindow[],
): AsyncGenerator<PlacedContinuation> {
  const { values, subject, journal, context } = work;
  const { continuations: count, generated: tokenCount } = values;
  const { signal } = context;
  const perText = Math.ceil(count / texts.length);
  const places = values.continued.flatMap((contextTokens) => {
    const starts = continuationStarts(contextTokens, perText);
    const all = texts.flatMap((ids, document) => starts.map((start) => ({ ids, document, contextTokens, start })));
    return all.slice(0, count);
  });
  const progress = new Progress(context, "long generations", places.length);
  let lastRead: string | undefined;
  for (const { ids, document, contextTokens, start } of places) {
    const text = `${contextTokens}/${document}`;
    const result = await journal.take(`continuation/${text}/${start}`, async () => {
      const { sequence } = subject;
      // What was read for a later place of the same text is there up to this one.
      sequence.rewind(lastRead === text ? start : 0);
      await sequence.read(ids.slice(sequence.length, start), signal);
      lastRead = text;
      const candidates = judgedAt(work, windows, contextTokens);
      const firstId = ids[start] as number;
      // Baselines take a scan of all keys for every token: once for each text.
      const baselines = start === contextTokens ? baselinesOf(work, document) : {};
      return await measureContinuation(subject, { firstId, tokenCount, candidates, ...baselines, signal });
    });
    progress.step();
    yield { ...result, document, contextTokens };
  }
}

function baselinesOf({ subject, values, candidates }: Work, document: number) {
  const named = candidates.filter((candidate): candidate is Baseline => typeof candidate.plan === "string");
  const random = seededRandom(values.seed, BASELINE_STREAM + document);
  return { baselines: { candidates: named, probe: probeOf(subject), random } };
}

function probeOf({ device, capture, runner }: EvalSubject): ProbeOptions {
  return { device, capture, pool: runner.pool, headCount: runner.config.headCount };
}

/** Candidates that generate, but those that read too many of dense's bytes behind a context, as its windows found. */
function judgedAt({ candidates, values }: Work, windows: readonly PlacedWindow[], contextTokens: number) {
  const here = windows.filter((window) => window.contextTokens === contextTokens);
  return candidates.filter((candidate, index): candidate is Candidate & { plan: SelectionPlan } => {
    const bytesOf = ({ results }: PlacedWindow): number => {
      const { kvBytes = 0, metadataBytes = 0 } = results[index] ?? {};
      return kvBytes + metadataBytes;
    };
    const share = meanOf(here.map(bytesOf)) / meanOf(here.map(({ denseBytes }) => denseBytes));
    return typeof candidate.plan === "object" && !(share > values["bytes-max"]);
  });
}

/** A document is read once at each length; its questions are one piece of work. */
async function* measureTasks(work: Work, windows: readonly PlacedWindow[]): AsyncGenerator<TaskResult[]> {
  const { values, subject, files, journal, context } = work;
  if (values.cases === 0) return;
  const { sentences, documents } = files;
  const sentenceTokens = sentences.map((sentence) => subject.tokenizer.encode(sentence).length);
  const asked = kindsOf(documents, values.kinds).map((kind) => documentsOfKind(documents, kind, values.cases));
  const progress = new Progress(context, "documents", asked.flat().length * values.lengths.length);
  for (const lengthTokens of values.lengths) {
    const candidates = judgedAt(work, windows, lengthTokens);
    for (const ofKind of asked) {
      const passages = passagesOf(subject, ofKind, { sentences, sentenceTokens, lengthTokens });
      for (const [index, document] of ofKind.entries()) {
        const passage = passages[index] as string;
        const id = `${document.kind}/${index}`;
        const options = { document, id, passage, lengthTokens, candidates, signal: context.signal };
        const results = await journal.take(`task/${lengthTokens}/${id}`, () => measureDocument(subject, options));
        progress.step();
        yield results;
      }
    }
  }
}
