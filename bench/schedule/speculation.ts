/** `npm run bench -- speculation`: tokens per second without and with guessed tokens, in turns, and whether the text is the same. */
import { parseInteger } from "../../cli/flags.ts";
import { defineBench } from "../bench.ts";
import { modelFlags } from "../decode/flags.ts";
import { type Column, renderTable } from "../table.ts";
import {
  type BenchEngine,
  type BenchTurn,
  openBenchEngine,
  percentileMs,
  randomTokens,
  startTurn,
} from "./bench-engine.ts";

const integer = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

const flags = {
  ...modelFlags,
  prompt: integer("tokens of the prompt: one passage, said twice", "512", { min: 32, max: 16_384 }),
  tokens: integer("tokens of the reply", "256", { min: 16, max: 4_096 }),
  rounds: integer("times that both are measured", "5", { min: 1, max: 100 }),
} as const;

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
    "Greedy decoding of one sequence, plain and with guesses from the context, in turns. Seeded weights soon repeat themselves, which is\n" +
    "copying at its easiest: the figure is what guessing can give on this device. Exit code 1 when a text differs.",
  flags,
  async run(values, context) {
    const bench = await openBenchEngine({ ...values, poolTokens: 2 * (values.prompt + values.tokens) + 128 });
    try {
      const rows: SpeculationRow[] = [];
      let isSame = true;
      for (let round = 0; round <= values.rounds && !context.signal.aborted; round++) {
        const plain = await decode(bench, values, false);
        const guessed = await decode(bench, values, true);
        isSame &&= plain.ids.join() === guessed.ids.join();
        // The first round warms up and teaches the engine what steps cost.
        if (round > 0) rows.push(rowOf(round, plain, guessed));
      }
      const device = bench.device.report.description;
      context.print(`${values.model ?? values.shape}, ${device}, replies of ${values.tokens} tokens`);
      for (const line of renderTable(columns, rows)) context.print(line);
      const ratio = percentileMs(
        rows.map((row) => row.ratio),
        50,
      );
      const cpuRatio = percentileMs(
        rows.map((row) => row.cpuRatio),
        50,
      );
      context.print(
        `median ratio ${ratio.toFixed(2)}, by CPU time ${cpuRatio.toFixed(2)}; texts ${isSame ? "identical" : "DIFFER"}`,
      );
      return { ok: isSame, data: { settings: values, device, rows, ratio, cpuRatio, isSame } };
    } finally {
      await bench.close();
    }
  },
});

async function decode(
  bench: BenchEngine,
  values: { prompt: number; tokens: number; seed: number },
  speculation: boolean,
): Promise<Measured> {
  const passage = randomTokens(bench.config, values.seed, Math.floor(values.prompt / 2));
  const tokens = [...passage, ...passage];
  const selection = { policy: "dense", budgetTokens: 0, exact: true } as const;
  const running = startTurn(bench, { tokens, maxTokens: values.tokens, selection, speculation });
  while (running.tokensMs.length === 0) await new Promise((resolve) => setImmediate(resolve));
  const before = process.cpuUsage();
  const turn = await running.ended;
  const { user, system } = process.cpuUsage(before);
  return { ...turn, cpuMs: (user + system) / 1000 };
}

/** A turn, and the CPU time that its decoding took. */
interface Measured extends BenchTurn {
  cpuMs: number;
}

function rowOf(round: number, plain: Measured, guessed: Measured): SpeculationRow {
  const [plainTokensPerS, guessedTokensPerS] = [plain, guessed].map(tokensPerS) as [number, number];
  const { draftedTokens = 0, draftedTokensRight = 0 } = guessed.usage;
  const ratio = guessedTokensPerS / plainTokensPerS;
  const cpuRatio = plain.cpuMs / guessed.cpuMs;
  return {
    round,
    plainTokensPerS,
    guessedTokensPerS,
    ratio,
    cpuRatio,
    drafted: draftedTokens,
    right: draftedTokensRight,
  };
}

/** Behind the first token. */
function tokensPerS({ tokensMs }: BenchTurn): number {
  return (1000 * (tokensMs.length - 1)) / (tokensMs.at(-1)! - tokensMs[0]!);
}
