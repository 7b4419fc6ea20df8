/** `npm run bench -- coldstart`: from no engine at all to the first token of a resumed session, in parts. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { demoPassage } from "../../cli/demo-passage.ts";
import { Stage, type StageEngine } from "../../cli/demo-stage.ts";
import { parseInteger } from "../../cli/flags.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { type BenchContext, defineBench, unlessStopped } from "../bench.ts";
import { quantile } from "../quantile.ts";
import { renderTable } from "../table.ts";
import { type ColdTurn, coldTurn, WakeHook } from "./cold-turn.ts";

const flags = {
  rounds: { help: "cold turns", placeholder: "COUNT", fallback: "5", parse: parseInteger({ min: 1, max: 1_000 }) },
} as const;

const partNames = ["wakeMs", "registerMs", "manifestMs", "summariesMs", "firstTokenMs", "totalMs"] as const;
type PartName = (typeof partNames)[number];

const captions: Record<PartName, string> = {
  wakeMs: "the hook is called",
  registerMs: "an engine starts, loads, registers and is given the turn",
  manifestMs: "the manifest is read",
  summariesMs: "summaries, tail and hot pages are read",
  firstTokenMs: "the new prompt is computed: first token",
  totalMs: "in all",
};

/** The benchmark as the registry names it. */
export const coldstartBench = defineBench({
  summary:
    "An edge (wrangler dev, local R2) without an engine and a wake hook that starts one as a process: a session of about 2,900 tokens is asked again, and the\n" +
    "time to its first token is split: hook, process and registration, manifest, summaries and pages, prompt. house-0, int8 KV. The engine of the\n" +
    "round before is killed when the session is stored.",
  flags,
  async run({ rounds }, context) {
    const life = new AbortController();
    context.signal.addEventListener("abort", () => life.abort());
    const hook = new WakeHook();
    await hook.open();
    const stage = await Stage.open(life.signal, { QUIRE_WAKE_URL: hook.url });
    hook.stage = stage;
    const turns: ColdTurn[] = [];
    try {
      await unlessStopped(measure(stage, hook, { rounds, turns }, context), context.signal);
      for (const line of report(turns)) context.print(line);
      const interrupted = context.signal.aborted;
      return {
        ok: interrupted || turns.length === rounds,
        data: { settings: { rounds }, interrupted, turns, median: medianOf(turns) },
      };
    } finally {
      await stage.close();
      await hook.close();
    }
  },
});

/** Adds a turn to `turns` for each round. */
async function measure(
  stage: Stage,
  hook: WakeHook,
  { rounds, turns }: { rounds: number; turns: ColdTurn[] },
  context: BenchContext,
): Promise<void> {
  let engine: StageEngine = await stage.addEngine();
  for (let round = 0; round < rounds && !context.signal.aborted; round++) {
    context.progress(`round ${round + 1} of ${rounds}...`);
    const session = `cold-${randomUUID()}`;
    const selection = { policy: "quest" as const, budgetTokens: 256, exact: true };
    const first = stage.client.session({ id: session, temperature: 0, selection });
    const { promptTokens, completionTokens } = await first.send(`${demoPassage}What is the code of Kelino?`).usage;
    await stage.untilPersisted(session, promptTokens + completionTokens);
    await engine.kill();
    // Until the edge has noticed that nobody is there.
    await sleep(LIMITS.engineExpiryMs + LIMITS.engineHeartbeatMs);
    const question = {
      session,
      text: "What is the code of Badoru?",
      requestId: `cold-${round}-${randomUUID().slice(0, 8)}`,
    };
    const cold = await coldTurn(stage, hook, question);
    turns.push(cold.turn);
    engine = cold.engine;
  }
}

function medianOf(turns: readonly ColdTurn[]): Record<PartName, number> {
  const median = (name: PartName): number =>
    quantile(
      turns.map((turn) => turn[name]),
      0.5,
    );
  return Object.fromEntries(partNames.map((name) => [name, median(name)])) as Record<PartName, number>;
}

function report(turns: readonly ColdTurn[]): string[] {
  const [first] = turns;
  if (!first) return ["no turn was measured"];
  const medians = medianOf(turns);
  const ms = (value: number): string => value.toFixed(1);
  const columns = [
    { header: "until", cell: (name: PartName) => captions[name], align: "left" as const },
    { header: "median ms", cell: (name: PartName) => ms(medians[name]) },
    { header: "least", cell: (name: PartName) => ms(Math.min(...turns.map((turn) => turn[name]))) },
    { header: "most", cell: (name: PartName) => ms(Math.max(...turns.map((turn) => turn[name]))) },
  ];
  const head = `${turns.length} cold turns; ${first.cachedTokens} of ${first.promptTokens} prompt tokens from the page store`;
  return [head, ...renderTable(columns, partNames)];
}
