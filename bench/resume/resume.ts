/** `npm run bench -- resume`: the first token of a turn on an engine that has just started, over a store far away. */
import { parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { defineBench } from "../bench.ts";
import { openBenchModel } from "../decode/bench-model.ts";
import { fillRandom } from "../decode/fill-random.ts";
import { contextsFlag, modelFlags, parseList } from "../decode/flags.ts";
import { randomTokens } from "../schedule/bench-engine.ts";
import { type Column, renderTable } from "../table.ts";
import { type ResumeCase, type ResumeMode, type ResumeRow, Resumer, resumeRow } from "./measure-resume.ts";
import { storeFilledSession } from "./stored-session.ts";

const modes = ["recompute", "full", "lazy", "lazy-default"] as const;

function parseMode(text: string): ResumeMode {
  const mode = modes.find((known) => known === text);
  if (mode === undefined) throw new UsageError(`must be some of ${modes.join(",")}`);
  return mode;
}

const integer = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

const flags = {
  ...modelFlags,
  contexts: contextsFlag("2048,8192,32768"),
  modes: {
    help: `how the context comes back: ${modes.join(",")}`,
    placeholder: "LIST",
    fallback: "full,lazy,lazy-default",
    parse: parseList(parseMode),
  },
  budget: integer("tokens that a step attends to (quest)", "2048", { min: 128, max: 65_536 }),
  prompt: integer("tokens of the turn", "64", { min: 1, max: 4_096 }),
  tokens: integer("tokens of the reply", "64", { min: 1, max: 4_096 }),
  rtt: integer("milliseconds that a call of the store takes", "30", { min: 0, max: 10_000 }),
  mbps: integer("megabits a second from the store, all calls together", "200", { min: 1, max: 1_000_000 }),
} as const;

const columns: readonly Column<ResumeRow>[] = [
  { header: "context", cell: (row) => String(row.context) },
  { header: "mode", align: "left", cell: (row) => row.mode },
  { header: "first token ms", cell: (row) => row.ttftMs.toFixed(0) },
  { header: "MB before it", cell: (row) => (row.bytesBeforeFirstToken / 1e6).toFixed(2) },
  { header: "of session %", cell: (row) => (100 * row.bytesShare).toFixed(1) },
  { header: "pages before", cell: (row) => String(row.pagesBeforeFirstToken) },
  { header: "missed", cell: (row) => String(row.pagesMissed) },
  { header: "ms/token after", cell: (row) => row.msPerToken.toFixed(2) },
  { header: "identical", align: "left", cell: (row) => (row.identical === undefined ? "-" : String(row.identical)) },
];

/** Lines of the table of some rows. */
export function resumeTable(rows: readonly ResumeRow[]): string[] {
  return renderTable(columns, rows);
}

/** The benchmark as the registry names it. */
export const resumeBench = defineBench({
  summary:
    "Stores a session with seeded KV, then runs its next turn on an engine that has nothing, over a store with a latency and a bandwidth.\n" +
    "Seeded keys are alike everywhere, so queries choose all over the context: the worst case of a selection.",
  flags,
  async run(values, context) {
    const { contexts, prompt, tokens: replyTokens, rtt, mbps, ...rest } = values;
    if (contexts.some((count) => count === 0 || count % 256 !== 0))
      throw new UsageError("--contexts: must be multiples of 256 (whole segments)");
    const contextTokens = Math.max(...contexts) + prompt + replyTokens;
    const summaryKinds = ["min-max", "mean-deviation"] as const;
    const model = await openBenchModel({ ...rest, contextTokens, summaryKinds, kvEncoding: "int8" });
    const rows: ResumeRow[] = [];
    try {
      for (const count of contexts) {
        if (context.signal.aborted) break;
        context.progress(`storing a session of ${count} tokens`);
        await fillRandom(model, rest.seed, count);
        const store = new MemoryStore();
        const tokens = randomTokens(model.config, rest.seed, count + prompt);
        const name = { namespace: "00000000000be4c4", sessionId: `resumed-${count}` };
        const { bytes } = await storeFilledSession({ model, store, tokens: tokens.slice(0, count), ...name });
        const resumer = new Resumer(model, store, { rttMs: rtt, mbps });
        const of = (mode: ResumeMode): ResumeCase => ({
          ...{ mode, tokens, contextTokens: count, replyTokens, ...name },
          selection: selectionOf(mode, values.budget),
        });
        const reference = values.modes.includes("lazy") ? await resumer.resident(of("lazy")) : undefined;
        for (const mode of values.modes) {
          if (context.signal.aborted) break;
          const what = of(mode);
          const turn = await resumer.cold(what, mode === "recompute" ? new MemoryStore() : undefined);
          const ids = mode === "lazy" ? reference?.ids : undefined;
          rows.push(resumeRow(what, turn, { bytesSession: bytes, ids }));
          context.progress(resumeTable(rows.slice(-1))[1] as string);
        }
        if (reference) context.progress(`resident: ${(reference.tokensMs[0]! - reference.submittedMs).toFixed(0)} ms`);
      }
      const device = model.device.report.description;
      context.print(
        `${values.model ?? values.shape}, ${device}, quest ${values.budget}, ${rtt} ms and ${mbps} Mbit/s to the store`,
      );
      for (const line of resumeTable(rows)) context.print(line);
      const ok = rows.every(({ identical }) => identical !== false);
      return { ok, data: { settings: values, device, rows } };
    } finally {
      await model.close();
    }
  },
});

function selectionOf(mode: ResumeMode, budgetTokens: number): SelectionRequest {
  if (mode === "full") return { policy: "dense", budgetTokens: 0, exact: true };
  return { policy: "quest", budgetTokens, exact: mode !== "lazy-default" };
}
