/** `npm run bench -- router`: what the prompt router saves at equal answers, on prompts that it was not trained on, and what asking it takes. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InferenceSession, env as ortEnv, Tensor } from "onnxruntime-web";
import { type FlagValues, parseInteger, parseText } from "../../cli/flags.ts";
import { assert } from "../../protocol/assert.ts";
import { expectedBytes, type PricedChoice } from "../../workers/prompt-router/decide.ts";
import { charsOf } from "../../workers/prompt-router/features.ts";
import { type BenchContext, type BenchResult, defineBench, unlessStopped } from "../bench.ts";
import { quantile } from "../quantile.ts";
import { ANSWERS_FILE, type RoutedExample, readDataset } from "./dataset.ts";
import { choicesAt, type Forecast } from "./judge.ts";
import { cheapestKept, type Judged, kindLines, routerLines, routerRows } from "./report.ts";
import { bundleRouter, startRouter } from "./router-workerd.ts";

const flags = {
  answers: { help: "measurements of router-data", placeholder: "FILE", fallback: ANSWERS_FILE, parse: parseText },
  classifier: {
    help: "folder of classifier.onnx and classifier.json",
    placeholder: "DIR",
    fallback: "workers/prompt-router",
    parse: parseText,
  },
  requests: {
    help: "requests to a bare workerd for the latency; 0 for none",
    placeholder: "COUNT",
    fallback: "300",
    parse: parseInteger({ min: 0, max: 1_000_000 }),
  },
} as const;

/** The benchmark. */
export const routerBench = defineBench({
  summary:
    "Judges the prompt router on held-out prompts (other phrasings, names and passages than it was trained on): answers kept and bytes of\n" +
    "KV and summaries read per token, against every fixed choice and against chance. A choice keeps an answer that is dense attention's\n" +
    "word for word, or right where dense's is. Then what features and classifier take in a bare workerd.",
  flags,
  run: runRouter,
});

interface Settings {
  price: number;
  choices: PricedChoice[];
}

async function runRouter(values: FlagValues<typeof flags>, context: BenchContext): Promise<BenchResult> {
  const settings = JSON.parse(await readFile(join(values.classifier, "classifier.json"), "utf8")) as Settings;
  const chances = await openChances(await readFile(join(values.classifier, "classifier.onnx")));
  const { train, validation, test } = await readDataset(values.answers);
  const judge = async (examples: readonly RoutedExample[]): Promise<Judged> => {
    const forecasts: Forecast[] = [];
    for (const { features } of examples) {
      forecasts.push({
        chances: await chances(features),
        bytes: expectedBytes(settings.choices, charsOf(features)),
      });
    }
    return { outcomes: examples.map(({ outcome }) => outcome), forecasts };
  };
  const judged = await judge(test);
  const rows = routerRows(await judge(validation), judged, settings.price);
  context.print(`prompts: ${train.length} trained on, ${validation.length} for prices, ${test.length} held out\n`);
  for (const line of routerLines(rows)) context.print(line);
  context.print("\nas shipped, by kind; the last columns count prompts by choice");
  for (const line of kindLines(judged, settings.price)) context.print(line);
  const accuracy = accuracyOf(judged, settings.price);
  context.print(
    `\n${percent(accuracy.chances)} of single forecasts right (always the likelier outcome: ${percent(accuracy.base)});`,
  );
  context.print(`${percent(accuracy.cheapest)} of prompts get the very cheapest choice that keeps the answer`);
  const latency = values.requests === 0 ? undefined : await measureLatency(values.requests, test, context);
  const prompts = { trained: train.length, priced: validation.length, heldOut: test.length };
  return { ok: true, data: { prompts, rows, accuracy, latency } };
}

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

/** An ONNX model of the router in onnxruntime: chances `[choices]` for features `[inputs]`. @throws {Error} onnxruntime's own, for bytes that are none. */
export async function openChances(model: Uint8Array): Promise<(features: Float32Array) => Promise<Float32Array>> {
  ortEnv.wasm.numThreads = 1;
  const session = await InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  return async (features) => {
    const { kept } = await session.run({ features: new Tensor("float32", features, [1, features.length]) });
    assert(kept?.data instanceof Float32Array, "the classifier answers with f32");
    return kept.data.slice();
  };
}

/** Of all forecasts of single choices but dense, and of whole prompts. */
function accuracyOf({ outcomes, forecasts }: Judged, price: number) {
  const singles = outcomes.flatMap(({ kept }, at) =>
    kept.slice(0, -1).map((isKept, choice) => ({ isKept, choice, chance: forecasts[at]?.chances[choice] as number })),
  );
  const share = (values: readonly boolean[]): number => values.filter(Boolean).length / Math.max(1, values.length);
  const likelier = (outcomes[0]?.kept ?? []).map(
    (_, choice) => share(outcomes.map(({ kept }) => kept[choice] === true)) >= 0.5,
  );
  const choices = choicesAt(forecasts, price);
  return {
    chances: share(singles.map(({ isKept, chance }) => chance >= 0.5 === isKept)),
    base: share(singles.map(({ isKept, choice }) => likelier[choice] === isKept)),
    cheapest: share(outcomes.map((outcome, at) => choices[at] === cheapestKept(outcome))),
  };
}

/** Round trips in a bare workerd, in ms: without the router, with features alone, and asking it, in turns. */
async function measureLatency(count: number, test: readonly RoutedExample[], context: BenchContext) {
  const workerd = await startRouter(await bundleRouter());
  try {
    const lengths = [...new Set(test.map(({ outcome }) => outcome.lengthTokens))].sort((a, b) => a - b);
    const rows: { lengthTokens: number; part: string; p50Ms: number; p95Ms: number }[] = [];
    for (const lengthTokens of lengths) {
      const content = "The room of Badoru is 4821. ".repeat(Math.ceil(lengthTokens / 10));
      const body = JSON.stringify({
        model: "auto",
        messages: [{ role: "user", content: `${content}What is the room of Badoru?` }],
      });
      const times: Record<string, number[]> = { "/body": [], "/features": [], "/choose": [] };
      for (let request = 0; request < count && !context.signal.aborted; request++) {
        for (const [path, each] of Object.entries(times)) {
          const startMs = performance.now();
          const asked = fetch(`${workerd.url}${path}`, { method: "POST", body }).then((response) => response.text());
          if ((await unlessStopped(asked, context.signal)) === undefined) break;
          if (request >= count / 10) each.push(performance.now() - startMs);
        }
      }
      for (const [part, each] of Object.entries(times)) {
        rows.push({ lengthTokens, part, p50Ms: quantile(each, 0.5), p95Ms: quantile(each, 0.95) });
      }
      const [plain, features, choose] = rows.slice(-3).map(({ p50Ms }) => p50Ms) as [number, number, number];
      const added = `${(features - plain).toFixed(2)} ms for features, ${(choose - plain).toFixed(2)} ms with the router's answer`;
      context.print(`workerd ${workerd.version}, ${lengthTokens} tokens: adds ${added} (p50 of ${count})`);
    }
    return rows;
  } finally {
    await workerd.close();
  }
}
