/** `npm run bench -- foretell`: what a pass with only what is there can know of the blocks that a resumed turn will choose. */
import { UsageError } from "../../cli/usage-error.ts";
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { defineBench } from "../bench.ts";
import { openBenchModel } from "../decode/bench-model.ts";
import { modelFlags } from "../decode/flags.ts";
import { type Column, renderTable } from "../table.ts";
import { contentOf, fillContext } from "./content.ts";
import { either, Foretelling, type Foretold, type InPlace, type Pass } from "./foretelling.ts";
import { contentFlags, countFlag, turnFlags } from "./turn-flags.ts";

const IN_PLACE: readonly InPlace[] = ["nothing", "page means"];
/** Of a turn's rows, and of its budget. */
const ROW_SHARES = [1, 1 / 2, 1 / 8] as const;
const BUDGET_SHARES = [1, 1.25, 1.5] as const;

const flags = {
  ...modelFlags,
  ...contentFlags,
  context: countFlag("tokens before the two turns", "32768", { min: 256, max: 1_048_576 }),
  ...turnFlags({ turns: "both turns", budget: "2048" }),
  prompt: countFlag("tokens of each turn's prompt", "64", { min: 8, max: 64 }),
  tokens: countFlag("tokens of the first turn's reply", "64", { min: 1, max: 4_096 }),
} as const;

/** One guess. */
interface GuessRow extends Foretold {
  guess: string;
  rows: number;
  budgetShare: number;
}

const percent = (share: number): string => (100 * share).toFixed(0);

const columns: readonly Column<GuessRow>[] = [
  { header: "guessed from", align: "left", cell: (row) => row.guess },
  { header: "rows", cell: (row) => String(row.rows) },
  { header: "budget", cell: (row) => row.budgetShare.toFixed(2) },
  { header: "named %", cell: (row) => percent(row.named) },
  { header: "in vain %", cell: (row) => percent(row.inVain) },
  { header: "there %", cell: (row) => percent(row.there) },
];

/** The benchmark as the registry names it. */
export const foretellBench = defineBench({
  summary:
    "Guesses the blocks that the rows of a turn will choose in every layer, from what is there when it is resumed: from what the turn before chose; from a pass\n" +
    "around what is missing; and from one in which page means of keys and values, which nothing stores, stand for it. Shares of what the turn chooses that were\n" +
    "named, and named beside it; and, of what a turn chooses that finds just what was named, what is there. No clock: the same on any machine.",
  flags,
  async run(values, { print, progress, signal }) {
    const { shape, model: path, seed, threads, context: contextTokens, policy, budget, prompt, tokens } = values;
    if (values.text !== undefined && path === undefined) throw new UsageError("--text: needs a --model that reads it");
    const { summary } = policyNamed(policy);
    if (summary === undefined) throw new UsageError("--policy: must be one that scores pages");
    if (contextTokens <= budget) throw new UsageError("--context: must be more than --budget");
    const tokensMax = contextTokens + 2 * (prompt + tokens);
    const content = await contentOf(values, tokensMax);
    const options = { shape, model: path, seed, threads, batch: 2, contextTokens: tokensMax } as const;
    const model = await openBenchModel({ ...options, summaryKinds: [summary], kvEncoding: "int8" });
    const selection = { policy, budgetTokens: budget };
    const rows: GuessRow[] = [];
    try {
      progress(`a context of ${contextTokens} tokens, a turn, and page means`);
      await fillContext(model, content, contextTokens, selection);
      const turns = { content, contextTokens, selection, promptTokens: prompt, replyTokens: tokens };
      const foretelling = await Foretelling.open({ model, ...turns });
      print(`${path ?? shape}, ${policy} ${budget} behind ${contextTokens} tokens: ${content.description}`);
      print(`the turn chooses ${foretelling.chosenCount} blocks of all layers`);
      for await (const row of guesses(foretelling, { prompt, budget })) {
        rows.push(row);
        if (signal.aborted) break;
      }
    } finally {
      await model.close();
    }
    for (const line of renderTable(columns, rows)) print(line);
    return { ok: true, data: { settings: values, rows } };
  },
});

/** Every guess, in the table's order. */
async function* guesses(
  foretelling: Foretelling,
  { prompt, budget }: { prompt: number; budget: number },
): AsyncGenerator<GuessRow> {
  for (const budgetShare of BUDGET_SHARES) {
    const found = await foretelling.judge(foretelling.hottest(budgetShare));
    yield { guess: "the turn before", rows: 0, budgetShare, ...found };
  }
  for (const inPlace of IN_PLACE) {
    for (const rowShare of ROW_SHARES) {
      for (const budgetShare of BUDGET_SHARES) {
        const rows = Math.max(1, Math.round(rowShare * prompt));
        const pass: Pass = { inPlace, rows, budgetTokens: wholePages(budgetShare * budget) };
        const first = await foretelling.pass(pass);
        yield { guess: `${inPlace} in place`, rows, budgetShare, ...(await foretelling.judge(first)) };
        if (rowShare < 1) continue;
        const second = either(first, await foretelling.pass({ ...pass, budgetTokens: budget, known: first }));
        yield { guess: "... and once more with these", rows, budgetShare, ...(await foretelling.judge(second)) };
      }
    }
  }
}

function wholePages(tokens: number): number {
  return Math.round(tokens / PAGE_TOKENS) * PAGE_TOKENS;
}
