/** `quire profile-heads MODEL`: measures which KV heads look back, by what they copy or by what is lost without them, and writes it beside the model. */
import { allotShares } from "../bench/eval/allot.ts";
import { evalFlags } from "../bench/eval/flags.ts";
import { type HeadDamage, measureHeads } from "../bench/eval/profile-damage.ts";
import { profileHeads } from "../bench/eval/profile-heads.ts";
import { type EvalSubject, openSubject } from "../bench/eval/subject.ts";
import { passagesOf } from "../bench/eval/tasks.ts";
import { describeMachine } from "../bench/machine.ts";
import { type CaseFile, documentsOfKind, kindsOf, readCases } from "../bench/recall/cases.ts";
import { renderTable } from "../bench/table.ts";
import { pathBeside } from "../engine/calibration.ts";
import { HEADS_FILE, type HeadProfile } from "../models/selection/head-profile.ts";
import { policyNamed } from "../models/selection/registry.ts";
import type { Command } from "./command.ts";
import {
  describeFlags,
  type FlagValues,
  parseBudget,
  parseChoice,
  parseInteger,
  parseNumber,
  parseSelectionFlag,
  parseWithOperand,
} from "./flags.ts";
import { assertWritable, writeOutput } from "./output-file.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

const { device, threads, weights, kv, seed, kinds, cases } = evalFlags;
const BLOCK = 64;
/** Of a budget, what a head may be given; the last is everything up to 16K with a budget of 512. */
const SHARES = [0, 0.5, 1, 2, 4, 8, 64] as const;

const profileFlags = {
  by: {
    help: "copying: the share of attention on what is copied, in a text of random tokens; damage: what dense replies to the questions of --case-file lose when the head streams, as KL of the next token in nats",
    placeholder: "MEASURE",
    fallback: "copying",
    parse: parseChoice(["copying", "damage"]),
  },
  tokens: {
    help: "by copying: random tokens that are read twice, a multiple of 64: copying from far away is what is looked for",
    placeholder: "COUNT",
    fallback: "512",
    parse: parseTokens,
  },
  seed: { ...seed, help: "of the random tokens" },
  "case-file": {
    ...evalFlags["case-file"],
    help: "file of sentences whose tokens are drawn; of documents whose questions are asked",
    fallback: "weights/house/dev-documents.jsonl.gz",
  },
  context: {
    help: "by damage: tokens of a document with its question, a multiple of 64",
    placeholder: "TOKENS",
    fallback: "8192",
    parse: parseTokens,
  },
  kinds: { ...kinds, help: "by damage: kinds of questions", fallback: "single,multi-key" },
  cases: { ...cases, help: "by damage: questions of each kind", fallback: "16" },
  selection: {
    help: "by damage: how a head chooses, with a budget of which a head that streams sees the first and last tokens",
    placeholder: "SELECTION",
    fallback: "quest",
    parse: parseSelectionFlag,
  },
  budget: {
    help: "by damage: tokens of that budget",
    placeholder: "TOKENS",
    fallback: "512",
    parse: parseBudget,
  },
  "bytes-max": {
    help: "by damage: also says which head-budgets save most under this share of dense's bytes; takes seven times as long",
    placeholder: "SHARE",
    parse: parseNumber({ max: 1 }),
  },
  ...{ device, threads, weights, kv },
} as const;

type ProfileValues = FlagValues<typeof profileFlags>;

/** The command. */
export const profileHeadsCommand: Command = {
  help: () =>
    `Usage: quire profile-heads MODEL [flags]\n\n  MODEL    HF model folder or GGUF file; ${HEADS_FILE} is written beside it\n\n${describeFlags(profileFlags)}\n`,
  async run(args) {
    const missing = "profile-heads needs a model folder or GGUF file";
    const { operand: model, values } = parseWithOperand(profileFlags, args, { env: process.env, missing });
    await profile(model, values);
    return 0;
  },
};

/** A profile's scores, what they were measured with, and what is to be said beside them. */
interface Measured {
  scores: number[][];
  measured: object;
  lines: string[];
}

async function profile(model: string, values: ProfileValues): Promise<void> {
  const path = await pathBeside(model, HEADS_FILE);
  await assertWritable(path);
  const files = await readCases(values["case-file"]);
  const stop = listenForStop(process, () => performance.now());
  const life = new AbortController();
  void stop.requested.then(() => life.abort());
  const isByDamage = values.by === "damage";
  const { summary } = policyNamed(values.selection);
  const lengths = isByDamage ? { contexts: [values.context], tokens: 1 } : { contexts: [values.tokens] };
  const subject = await openSubject(
    { ...values, model, ...lengths },
    isByDamage && summary !== undefined ? [summary] : [],
  );
  try {
    const measure = isByDamage ? byDamage : byCopying;
    const { scores, measured, lines } = await measure(subject, files, values, life.signal).catch((error: unknown) => {
      if (life.signal.aborted) throw new UsageError("stopped; nothing was written");
      throw error;
    });
    const heads: HeadProfile = { format: 1, fingerprint: subject.runner.fingerprint, scores };
    const how = { ...measured, numericsId: subject.device.numericsId, weights: values.weights };
    const notes = { model: subject.modelId, measured: how, machine: describeMachine() };
    await writeOutput(path, `${JSON.stringify({ ...heads, ...notes }, undefined, 2)}\n`);
    process.stdout.write(`${[...lines, "", `written: ${path}`].join("\n")}\n`);
  } finally {
    await subject.device.close();
  }
}

type Measure = (subject: EvalSubject, files: CaseFile, values: ProfileValues, signal: AbortSignal) => Promise<Measured>;

const byCopying: Measure = async (subject, { sentences }, { tokens: textTokens, seed: seedValue }, signal) => {
  const ids = subject.tokenizer.encode(sentences.join(""));
  const scores = await profileHeads(subject, { ids, textTokens, seed: seedValue, signal });
  const lines = table(scores, "%", (score) => (score * 100).toFixed(1));
  return { scores, measured: { by: "copying", textTokens, seed: seedValue }, lines };
};

const byDamage: Measure = async (subject, { sentences, documents }, values, signal) => {
  const { context, selection, budget: budgetTokens, cases: count, "bytes-max": bytesMax } = values;
  const asked = kindsOf(documents, values.kinds).flatMap((kind) => documentsOfKind(documents, kind, count));
  const sentenceTokens = sentences.map((sentence) => subject.tokenizer.encode(sentence).length);
  const texts = passagesOf(subject, asked, { sentences, sentenceTokens, lengthTokens: context });
  const passages = asked.map((document, index) => ({ document, passage: texts[index] as string }));
  let done = 0;
  const damage = await measureHeads(subject, passages, {
    ...{ selection, budgetTokens, shares: bytesMax === undefined ? [0] : SHARES, signal },
    onDocument: () => void process.stderr.write(`${++done} of ${asked.length} documents\n`),
  });
  const { kvHeadCount } = subject.runner.config;
  const flat = damage.heads.map(([streaming]) => streaming?.damage ?? 0);
  const scores = Array.from({ length: flat.length / kvHeadCount }, (_, layer) =>
    flat.slice(layer * kvHeadCount, (layer + 1) * kvHeadCount),
  );
  const lines = table(scores, "nats", (score) => score.toExponential(1));
  if (bytesMax !== undefined) lines.push("", proposal(damage, { selection, budgetTokens, bytesMax }));
  const measured = { by: "damage", contextTokens: context, selection, budgetTokens, kinds: values.kinds, cases: count };
  return { scores, measured, lines };
};

/** The selection that spends its bytes where they save most. */
function proposal(
  { heads, denseBytes }: HeadDamage,
  { selection, budgetTokens, bytesMax }: { selection: string; budgetTokens: number; bytesMax: number },
): string {
  const shares = allotShares(heads, bytesMax * denseBytes);
  const bytes = heads.reduce((sum, options, head) => {
    return sum + (options.find(({ share }) => share === shares[head])?.bytes ?? 0);
  }, 0);
  const read = `${((bytes / denseBytes) * 100).toFixed(1)} % of dense's bytes`;
  return `${selection}+head-budgets(${shares.join(",")}) with ${budgetTokens} tokens reads ${read}; ask it questions (npm run eval) before you rely on it`;
}

/** One figure per KV head, a line per layer. */
function table(scores: readonly (readonly number[])[], unit: string, cellOf: (score: number) => string): string[] {
  const heads = (scores[0] ?? []).map((_, head) => ({
    header: `KV head ${head}, ${unit}`,
    cell: ({ own }: { own: readonly number[] }) => cellOf(own[head] as number),
  }));
  return renderTable(
    [{ header: "layer", cell: ({ layer }: { layer: number; own: readonly number[] }) => String(layer) }, ...heads],
    scores.map((own, layer) => ({ layer, own })),
  );
}

function parseTokens(text: string): number {
  const value = parseInteger({ min: BLOCK, max: 65_536 })(text);
  if (value % BLOCK === 0) return value;
  throw new UsageError(`must be a multiple of ${BLOCK}`);
}
