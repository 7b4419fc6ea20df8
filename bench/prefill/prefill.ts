/** `npm run bench -- prefill`: what new tokens cost, by context, policy and budget. */
import { setImmediate } from "node:timers/promises";
import { parseInteger } from "../../cli/flags.ts";
import { defineBench } from "../bench.ts";
import { openBenchModel } from "../decode/bench-model.ts";
import { summaryKindsOf } from "../decode/decode.ts";
import { fillRandom } from "../decode/fill-random.ts";
import { budgetFlag, contextsFlag, deviceFlags, modelFlags, policiesFlag } from "../decode/flags.ts";
import { listCases } from "../decode/measure-decode.ts";
import { type Column, renderTable } from "../table.ts";
import { measurePrefill, type PrefillRow } from "./measure-prefill.ts";

const columns: readonly Column<PrefillRow>[] = [
  { header: "context", cell: (row) => String(row.contextTokens) },
  { header: "policy", align: "left", cell: (row) => row.policy },
  { header: "budget", cell: (row) => String(row.budgetTokens ?? "-") },
  { header: "tokens", cell: (row) => String(row.tokenCount) },
  { header: "ms", cell: (row) => row.ms.toFixed(0) },
  { header: "tokens/s", cell: (row) => row.tokensPerS.toFixed(1) },
];

const prefillFlags = {
  ...modelFlags,
  ...deviceFlags,
  contexts: contextsFlag("0"),
  policies: policiesFlag("dense"),
  budget: budgetFlag("2048"),
  tokens: {
    help: "new tokens per case, in chunks of 512",
    placeholder: "COUNT",
    fallback: "2048",
    parse: parseInteger({ min: 1, max: 131_072 }),
  },
} as const;

/** The benchmark as the registry names it. */
export const prefillBench = defineBench({
  summary: "Prefills new tokens of one sequence behind contexts filled with seeded KV (int8).",
  flags: prefillFlags,
  async run(values, context) {
    const { contexts, policies, budget, tokens, ...rest } = values;
    const contextTokens = Math.max(...contexts) + tokens;
    const model = await openBenchModel({
      ...rest,
      ...{ contextTokens, summaryKinds: summaryKindsOf(policies), kvEncoding: "int8" },
    });
    try {
      const rows: PrefillRow[] = [];
      for (const item of listCases(contexts, policies, budget)) {
        // As between steps of decoding.
        await setImmediate();
        if (context.signal.aborted) break;
        // Filled anew each time: the case before has written its tokens behind a shorter context.
        await fillRandom(model, rest.seed, item.contextTokens);
        rows.push(await measurePrefill(model, item, { tokenCount: tokens, seed: rest.seed }));
        context.progress(renderTable(columns, rows.slice(-1))[1]!);
        await context.save({ settings: values, device: model.device.report.description, rows });
      }
      const device = model.device.report.description;
      context.print(`${values.model ?? values.shape}, ${device}, ${values.weights} weights, int8 KV, one sequence`);
      for (const line of renderTable(columns, rows)) context.print(line);
      return { ok: true, data: { settings: values, device, rows } };
    } finally {
      await model.close();
    }
  },
});
