/** `npm run bench -- tokenizer`: tokens per second, in workerd and in Node, against @huggingface/tokenizers. */
import { parseInteger } from "../../cli/flags.ts";
import { loadSharedModel, SHARED_MODELS } from "../../test/tokenizer/shared-data.ts";
import { compileTokenizer } from "../../tokenizer/open.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { renderTable } from "../table.ts";
import { nodeRuntime, type Runtime, workerdRuntime } from "./runtime.ts";
import type { Implementation } from "./session.ts";
import { makeTexts } from "./texts.ts";

/** Text 0 warms the runtime's compiler up, the others are measured. */
const TEXT_COUNT = 4;
const CHARS_PER_TOKEN = 3.4;
/** What the project promises on new texts in workerd, in tokens per second. */
const BAR_TOKENS_PER_S: Readonly<Record<string, number>> = { "GPT-2": 1.5e6, Qwen2: 1.5e6, "Phi-3": 0.5e6 };
const flags = {
  tokens: {
    help: "length of the measured texts in tokens, about",
    placeholder: "COUNT",
    fallback: "120000",
    parse: parseInteger({ min: 1_000, max: 1_000_000 }),
  },
  rounds: {
    help: "rounds; the best counts, as a busy machine only ever makes it slower",
    placeholder: "COUNT",
    fallback: "6",
    parse: parseInteger({ min: 1, max: 100 }),
  },
  "library-rounds": {
    help: "rounds of @huggingface/tokenizers; 0 leaves it out",
    placeholder: "COUNT",
    fallback: "2",
    parse: parseInteger({ min: 0, max: 100 }),
  },
} as const;

interface Row {
  model: string;
  runtime: string;
  implementation: Implementation;
  tokens: number;
  /** From the file's bytes to the first call. */
  openMs: number;
  /** A text that was never seen, empty caches, warm compiler. */
  newTextMs: number;
  /** The same text once more. */
  againMs: number;
}

/** The benchmark. */
export const tokenizerBench = defineBench({
  summary:
    "Encodes texts of prose, code and other scripts with the vocabularies of ../shared/data/tokenizers, in workerd (a bare one:\n" +
    "wrangler's, timed from outside) and in Node, with Quire's compiled tables and with @huggingface/tokenizers. Every round\n" +
    "opens the tokenizer anew: 'new text' has empty caches, 'again' is the same text a second time. Best of the rounds.\n" +
    "Exit code 1 when a vocabulary gives other ids in workerd than in Node, or than the library.",
  flags,
  run: async (values, context) => {
    const options = { tokens: values.tokens, rounds: values.rounds, libraryRounds: values["library-rounds"] };
    return runBench(options, context);
  },
});

interface Options {
  tokens: number;
  rounds: number;
  libraryRounds: number;
}

async function runBench(options: Options, context: BenchContext): Promise<BenchResult> {
  const charCount = Math.ceil(options.tokens * CHARS_PER_TOKEN);
  const { texts, made } = makeTexts({ count: TEXT_COUNT, charCount, seed: 1 });
  context.print(`texts: ${charCount} characters each, of ${made}`);
  const rows: Row[] = [];
  const skipped: string[] = [];
  const different: string[] = [];
  const runtimes = [await workerdRuntime(), nodeRuntime()];
  try {
    for (const runtime of runtimes) await runtime.setTexts(texts);
    for (const model of SHARED_MODELS) {
      const shared = loadSharedModel(model);
      if (typeof shared === "string") {
        skipped.push(`${model}: ${shared}`);
        continue;
      }
      const sums = new Set<number>();
      for (const runtime of runtimes) {
        for (const [implementation, rounds] of [
          ["quire", options.rounds],
          ["library", options.libraryRounds],
        ] as const) {
          if (rounds === 0 || context.signal.aborted) continue;
          context.progress(`${model}, ${runtime.name}, ${implementation}`);
          const file = fileOf(implementation, shared.tokenizerJson);
          const { sum, ...row } = await measure(runtime, { implementation, file, rounds, signal: context.signal });
          rows.push({ model, runtime: runtime.name, implementation, ...row });
          sums.add(sum);
        }
      }
      if (sums.size > 1) different.push(model);
    }
  } finally {
    await Promise.all(runtimes.map((runtime) => runtime.close()));
  }
  const bars = rows.filter(isPromised).map((row) => {
    const barTokensPerS = BAR_TOKENS_PER_S[row.model] ?? 0;
    return { model: row.model, barTokensPerS, isMet: rates(row).newTextTokensPerS >= barTokensPerS };
  });
  for (const line of [...reportLines(rows), ...skipped]) context.print(line);
  for (const { model, barTokensPerS, isMet } of bars) {
    context.print(
      `${model} in workerd: ${isMet ? "at least" : "LESS than"} ${barTokensPerS / 1e6} Mtok/s on a new text`,
    );
  }
  for (const model of different) context.print(`${model}: NOT the same ids everywhere`);
  const data = { options, texts: made, rows: rows.map((row) => ({ ...row, ...rates(row) })), bars, skipped, different };
  return { ok: different.length === 0, data };
}

function isPromised({ runtime, implementation }: Row): boolean {
  return runtime.startsWith("workerd") && implementation === "quire";
}

function fileOf(implementation: Implementation, tokenizerJson: unknown): ArrayBuffer {
  if (implementation === "library") return new TextEncoder().encode(JSON.stringify(tokenizerJson)).buffer;
  return (compileTokenizer(tokenizerJson) as Uint8Array<ArrayBuffer>).buffer;
}

interface MeasureOptions {
  implementation: Implementation;
  file: ArrayBuffer;
  rounds: number;
  signal: AbortSignal;
}

/** Ids are compared by the sums of text 1. */
async function measure(runtime: Runtime, { implementation, file, rounds, signal }: MeasureOptions) {
  const best = { tokens: 0, openMs: Infinity, newTextMs: Infinity, againMs: Infinity, sum: 0 };
  for (let round = 0; round < rounds && !signal.aborted; round++) {
    best.openMs = Math.min(best.openMs, (await timed(() => runtime.open(implementation, file))).ms);
    if (round === 0) {
      // The compiler warms up on another text; then the caches are emptied.
      await runtime.encode(0, implementation === "quire" ? 4 : 1);
      await runtime.open(implementation, file);
    }
    const index = 1 + (round % (TEXT_COUNT - 1));
    const first = await timed(() => runtime.encode(index, 1));
    const again = await timed(() => runtime.encode(index, 1));
    // Texts differ a little in length: rates of the first text's length.
    if (index === 1) {
      best.tokens = first.value.tokens;
      best.sum = first.value.sum;
    }
    const scale = best.tokens / first.value.tokens;
    best.newTextMs = Math.min(best.newTextMs, first.ms * scale);
    best.againMs = Math.min(best.againMs, again.ms * scale);
  }
  return best;
}

async function timed<T>(call: () => Promise<T>): Promise<{ value: T; ms: number }> {
  const beganMs = performance.now();
  const value = await call();
  return { value, ms: performance.now() - beganMs };
}

function rates({ tokens, newTextMs, againMs }: Row) {
  return {
    newTextTokensPerS: Math.round((tokens / newTextMs) * 1000),
    againTokensPerS: Math.round((tokens / againMs) * 1000),
  };
}

function reportLines(rows: readonly Row[]): string[] {
  const million = (perS: number): string => (perS / 1e6).toFixed(3);
  const ratio = (row: Row): string => {
    const other = rows.find(
      ({ model, runtime, implementation }) =>
        model === row.model && runtime === row.runtime && implementation === "library",
    );
    return other === undefined || other === row ? "" : `${(other.newTextMs / row.newTextMs).toFixed(1)}x`;
  };
  return renderTable<Row>(
    [
      { header: "vocabulary", cell: (row) => row.model, align: "left" },
      { header: "runtime", cell: (row) => row.runtime, align: "left" },
      { header: "code", cell: (row) => row.implementation, align: "left" },
      { header: "tokens", cell: (row) => String(row.tokens) },
      { header: "open ms", cell: (row) => row.openMs.toFixed(0) },
      { header: "new text Mtok/s", cell: (row) => million(rates(row).newTextTokensPerS) },
      { header: "again Mtok/s", cell: (row) => million(rates(row).againTokensPerS) },
      { header: "new text, to library", cell: ratio },
    ],
    rows,
  );
}
