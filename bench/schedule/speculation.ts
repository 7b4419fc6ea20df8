/** `npm run bench -- speculation`: tokens per second without and with guessed tokens, in turns, and whether the text is the same. */
import { parseInteger } from "../../cli/flags.ts";
import { defineBench } from "../bench.ts";
import { modelFlags } from "../decode/flags.ts";
import { atLeast, atMost, barLines } from "../load/bars.ts";
import { type Column, renderTable } from "../table.ts";
import { type BenchEngine, openBenchEngine, percentileMs, randomTokens, startTurn } from "./bench-engine.ts";
import { passagePrompts } from "./passages.ts";

const integer = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

const flags = {
  ...modelFlags,
  prompt: integer("tokens of a prompt", "512", { min: 32, max: 16_384 }),
  tokens: integer("most tokens of a reply", "256", { min: 16, max: 4_096 }),
  passages: integer("prompts of a round, for a model with evaluation cases", "4", { min: 1, max: 100 }),
  rounds: integer("times that both are measured", "5", { min: 1, max: 100 }),
} as const;

/** Where passages are copied: tokens per second with guesses over those without. */
const RATIO_MIN = 1.5;

interface SpeculationRow {
  round: number;
  plainTokensPerS: number;
  guessedTokensPerS: number;
  ratio: number;
  /** The same in CPU time of the process, which other work on the machine disturbs less; of one thread, since idle threads spin. */
  cpuRatio: number;
  drafted: number;
  right: number;
}

const columns: readonly Column<SpeculationRow>[] = [
  { header: "round", cell: (row) => String(row.round) },
  { header: "tokens/s", cell: (row) => row.plainTokensPerS.toFixed(1) },
  { header: "guessing", cell: (row) => row.guessedTokensPerS.toFixed(1) },
  { header: "ratio", cell: (row) => row.ratio.toFixed(2) },
  { header: "CPU ratio", cell: (row) => row.cpuRatio.toFixed(2) },
  { header: "guessed", cell: (row) => String(row.drafted) },
  { header: "right", cell: (row) => String(row.right) },
];

/** The benchmark as the registry names it. */
export const speculationBench = defineBench({
  summary:
    "Greedy decoding of one sequence, plain and with guesses from the context, in turns. A model that evaluation cases came with (weights/house)\n" +
    "gets passages of books and their beginning again; another one a passage of random tokens, said twice. Their texts go on with the passage, or soon\n" +
    "repeat themselves. Bars: the same texts; with passages 1.5 times the tokens per second (median of the rounds).",
  flags,
  async run(values, context) {
    const { model, prompt, passages: count } = values;
    const passages = await passagePrompts(model, { tokenCount: prompt, count });
    const poolTokens = (2 + (passages?.length ?? 0)) * (prompt + values.tokens) + 128;
    const bench = await openBenchEngine({ ...values, poolTokens });
    try {
      const prompts = passages ?? [saidTwice(bench, values)];
      const rows: SpeculationRow[] = [];
      let isSame = true;
      for (let round = 0; round <= values.rounds && !context.signal.aborted; round++) {
        const [plain, guessed] = [
          await decodeAll(bench, prompts, values.tokens, false),
          await decodeAll(bench, prompts, values.tokens, true),
        ];
        isSame &&= plain.texts === guessed.texts;
        // The first round warms up and teaches the engine what steps cost.
        if (round > 0) rows.push(rowOf(round, plain, guessed));
      }
      const device = bench.device.report.description;
      const what = passages === undefined ? "random tokens, said twice" : `${count} passages and their beginning again`;
      context.print(`${model ?? values.shape}, ${device}, ${what}: ${prompt} tokens, replies of ${values.tokens}`);
      for (const line of renderTable(columns, rows)) context.print(line);
      const median = (of: "ratio" | "cpuRatio") =>
        percentileMs(
          rows.map((row) => row[of]),
          50,
        );
      const [ratio, cpuRatio] = [median("ratio"), median("cpuRatio")];
      const bars = [
        atMost("texts that differ", isSame ? 0 : 1, 0),
        ...(passages === undefined ? [] : [atLeast("tokens per second with guesses over without", ratio, RATIO_MIN)]),
      ];
      context.print(
        `median ratio ${ratio.toFixed(2)}, by CPU time ${cpuRatio.toFixed(2)}; texts ${isSame ? "identical" : "DIFFER"}`,
      );
      for (const line of barLines(bars)) context.print(line);
      const ok = bars.every(({ isMet }) => isMet);
      return { ok, data: { settings: values, device, what, rows, ratio, cpuRatio, isSame, bars } };
    } finally {
      await bench.close();
    }
  },
});

function saidTwice({ config }: BenchEngine, { prompt, seed }: { prompt: number; seed: number }): number[] {
  const passage = randomTokens(config, seed, Math.floor(prompt / 2));
  return [...passage, ...passage];
}

/** Replies to all prompts, one after the other. */
async function decodeAll(
  bench: BenchEngine,
  prompts: readonly number[][],
  maxTokens: number,
  speculation: boolean,
): Promise<Measured> {
  const sum: Measured = { texts: "", tokenCount: 0, ms: 0, cpuMs: 0, drafted: 0, right: 0 };
  const selection = { policy: "dense", budgetTokens: 0, exact: true } as const;
  for (const tokens of prompts) {
    const running = startTurn(bench, { tokens, maxTokens, selection, speculation });
    while (running.tokensMs.length === 0) await new Promise((resolve) => setImmediate(resolve));
    const before = process.cpuUsage();
    const { ids, tokensMs, usage } = await running.ended;
    const { user, system } = process.cpuUsage(before);
    sum.texts += `${ids.join()};`;
    sum.cpuMs += (user + system) / 1000;
    // Behind the first token.
    sum.tokenCount += tokensMs.length - 1;
    sum.ms += tokensMs.at(-1)! - tokensMs[0]!;
    sum.drafted += usage.draftedTokens ?? 0;
    sum.right += usage.draftedTokensRight ?? 0;
  }
  return sum;
}

/** Replies of one kind in one round. */
interface Measured {
  texts: string;
  tokenCount: number;
  ms: number;
  cpuMs: number;
  drafted: number;
  right: number;
}

function rowOf(round: number, plain: Measured, guessed: Measured): SpeculationRow {
  const [plainTokensPerS, guessedTokensPerS] = [plain, guessed].map(({ tokenCount, ms }) => (1000 * tokenCount) / ms);
  return {
    round,
    plainTokensPerS: plainTokensPerS!,
    guessedTokensPerS: guessedTokensPerS!,
    ratio: guessedTokensPerS! / plainTokensPerS!,
    cpuRatio: plain.cpuMs / guessed.cpuMs,
    drafted: guessed.drafted,
    right: guessed.right,
  };
}
