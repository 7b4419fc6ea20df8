/** `npm run bench -- routing`: the fleet's choice of engines against others', on a thousand simulated ones. */
import { parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { seedFlag } from "../make-shape/make-shape.ts";
import { type Column, renderTable } from "../table.ts";
import { ROUTERS } from "./routers.ts";
import { ENGINE } from "./sim-engines.ts";
import { type SimulationResult, simulate } from "./simulate.ts";

const flags = {
  engines: { help: "engines", placeholder: "COUNT", fallback: "1000", parse: parseInteger({ min: 2, max: 10_000 }) },
  sessions: {
    help: "sessions in all",
    placeholder: "COUNT",
    fallback: "1000000",
    parse: parseInteger({ min: 100, max: 100_000_000 }),
  },
  rate: {
    help: "new sessions a second, per engine",
    placeholder: "NUMBER",
    fallback: "1",
    parse: (text: string): number => {
      const rate = Number(text);
      if (text.trim() === "" || !(rate > 0 && rate <= 100))
        throw new UsageError("must be a number above 0, at most 100");
      return rate;
    },
  },
  seed: seedFlag,
} as const;

/** Against least-loaded. */
const HIT_RATIO_MIN = 1.5;
const FIRST_TOKEN_RATIO_MAX = 0.6;

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const ms = (value: number | undefined): string => (value === undefined ? "" : value.toFixed(0));

const columns: readonly Column<SimulationResult>[] = [
  { header: "router", cell: ({ router }) => router, align: "left" },
  { header: "held", cell: ({ hitShare }) => percent(hitShare) },
  { header: "first token p50 ms", cell: ({ firstTokenMs }) => ms(firstTokenMs.p50) },
  { header: "p90", cell: ({ firstTokenMs }) => ms(firstTokenMs.p90) },
  { header: "p99", cell: ({ firstTokenMs }) => ms(firstTokenMs.p99) },
  { header: "busy with prompts", cell: ({ prefillShare }) => percent(prefillShare) },
  { header: "busiest / mean", cell: ({ imbalance }) => imbalance.toFixed(2) },
];

/** The benchmark as the registry names it. */
export const routingBench = defineBench({
  summary:
    "A seeded simulation: sessions of 2,000 tenants with shared beginnings, engines with bounded memory behind one page store; who holds a prompt's\n" +
    "pages when it comes (share of its tokens), and how long its first token takes. Quire's router is the fleet's own cost function.\n" +
    `Bars against least-loaded: held >= ${HIT_RATIO_MIN}x, first token p50 <= ${FIRST_TOKEN_RATIO_MAX}x.`,
  flags,
  async run({ engines, sessions, rate, seed }, context) {
    const settings = { engines, sessions, rate, seed };
    const results: SimulationResult[] = [];
    for (const router of Object.keys(ROUTERS)) {
      context.progress(`${router}...`);
      const common = { router, engineCount: engines, sessionCount: sessions, sessionsPerSecond: rate, seed };
      const result = simulate({ ...common, signal: context.signal });
      if (!result) break;
      results.push(result);
      // Lets a Ctrl-C be heard.
      await new Promise((resolve) => setImmediate(resolve));
    }
    const ratios = ratiosOf(results);
    print(context, settings, results, ratios);
    const isMet = ratios !== undefined && ratios.hit >= HIT_RATIO_MIN && ratios.firstToken <= FIRST_TOKEN_RATIO_MAX;
    const interrupted = context.signal.aborted;
    return { ok: isMet || interrupted, data: { settings, engine: ENGINE, interrupted, results, ratios, isMet } };
  },
});

function ratiosOf(results: readonly SimulationResult[]): { hit: number; firstToken: number } | undefined {
  const least = results.find(({ router }) => router === "least-loaded");
  const quire = results.find(({ router }) => router === "quire");
  if (!least || !quire) return undefined;
  return {
    hit: quire.hitShare / least.hitShare,
    firstToken: (quire.firstTokenMs.p50 ?? 0) / (least.firstTokenMs.p50 ?? 1),
  };
}

function print(
  context: BenchContext,
  settings: { engines: number; sessions: number; rate: number; seed: number },
  results: readonly SimulationResult[],
  ratios: { hit: number; firstToken: number } | undefined,
): void {
  const { engines, sessions, rate, seed } = settings;
  context.print(`${engines} engines, ${sessions} sessions, ${rate} new ones a second and engine, seed ${seed}`);
  for (const line of renderTable(columns, results)) context.print(line);
  if (!ratios) return;
  const { hit, firstToken } = ratios;
  context.print(`quire against least-loaded: held ${hit.toFixed(2)}x, first token p50 ${firstToken.toFixed(2)}x`);
}
