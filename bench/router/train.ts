/** `npm run bench -- router-train`: learns the prompt router from measured answers and writes what its Worker is made of. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type FlagValues, parseInteger, parseText } from "../../cli/flags.ts";
import { expectedBytes, type PricedChoice } from "../../workers/prompt-router/decide.ts";
import { charsOf, PLAIN_FEATURE_COUNT } from "../../workers/prompt-router/features.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { ROUTER_CHOICES } from "./choices.ts";
import { ANSWERS_FILE, type RoutedExample, readDataset } from "./dataset.ts";
import { choicesAt, type Forecast, priceFor, scoreOf } from "./judge.ts";
import { merged, type Network, predict, train } from "./network.ts";
import { onnxModel } from "./onnx-model.ts";

/** Share of dense attention's answers that the shipped price keeps on the validation prompts. */
const KEPT_LEAST = 0.98;
const NETWORK_COUNT = 3;
const TRAINING = {
  hidden: 24,
  epochs: 120,
  batch: 16,
  learningRate: 0.003,
  decay: 2,
  dropout: { plain: 0.1, others: 0.7 },
  plainInputs: PLAIN_FEATURE_COUNT,
} as const;

const flags = {
  answers: { help: "measurements of router-data", placeholder: "FILE", fallback: ANSWERS_FILE, parse: parseText },
  out: {
    help: "folder for classifier.onnx and classifier.json",
    placeholder: "DIR",
    fallback: "workers/prompt-router",
    parse: parseText,
  },
  seed: {
    help: "of the first network",
    placeholder: "N",
    fallback: "1",
    parse: parseInteger({ min: 0, max: 2 ** 31 }),
  },
} as const;

/** The benchmark. */
export const routerTrainBench = defineBench({
  summary:
    "Trains the prompt router's classifier on the train prompts and sets its price on the validation prompts; the test prompts are not\n" +
    "looked at. Equal measurements and seeds give equal files.",
  flags,
  run: trainRouter,
});

/** What a prompt's choices are expected to keep and to cost. */
export function forecastOf(network: Network, choices: readonly PricedChoice[], features: Float32Array): Forecast {
  return { chances: predict(network, features), bytes: expectedBytes(choices, charsOf(features)) };
}

/** Choices with a straight line each through what they read, by least squares over the examples. */
export function pricedChoices(examples: readonly RoutedExample[]): PricedChoice[] {
  const chars = examples.map(({ features }) => charsOf(features));
  const mean = (values: readonly number[]): number => values.reduce((sum, each) => sum + each, 0) / values.length;
  const middle = mean(chars);
  const spread = mean(chars.map((each) => (each - middle) ** 2));
  return ROUTER_CHOICES.map(({ policy, budgetTokens }, choice) => {
    const bytes = examples.map(({ outcome }) => outcome.bytesPerToken[choice] as number);
    const together = mean(chars.map((each, at) => (each - middle) * (bytes[at] as number)));
    const bytesPerChar = together / spread;
    // Whole bytes and a few digits: what is committed should not differ by the machine's last bit.
    const rounded = Number(bytesPerChar.toPrecision(6));
    return { policy, budgetTokens, bytes: Math.round(mean(bytes) - rounded * middle), bytesPerChar: rounded };
  });
}

async function trainRouter(values: FlagValues<typeof flags>, context: BenchContext): Promise<BenchResult> {
  const { train: examples, validation } = await readDataset(values.answers);
  const asExamples = examples.map(({ features, variants, outcome }) => ({
    variants: [features, ...variants],
    kept: outcome.kept.map(Number),
  }));
  const networks: Network[] = [];
  for (let index = 0; index < NETWORK_COUNT && !context.signal.aborted; index++) {
    networks.push(train(asExamples, { ...TRAINING, seed: values.seed + index }));
    context.progress(`network ${index + 1} of ${NETWORK_COUNT}`);
  }
  if (context.signal.aborted) return { ok: false, data: { interrupted: true } };
  const network = merged(networks);
  const choices = pricedChoices(examples);
  const outcomes = validation.map(({ outcome }) => outcome);
  const forecasts = validation.map(({ features }) => forecastOf(network, choices, features));
  const price = priceFor(outcomes, forecasts, { value: ({ kept }) => kept, least: KEPT_LEAST });
  const score = scoreOf(outcomes, choicesAt(forecasts, price));
  const settings = { model: "house", price: Number(price.toPrecision(6)), choices };
  await writeFile(join(values.out, "classifier.onnx"), onnxModel(network));
  await writeFile(join(values.out, "classifier.json"), `${JSON.stringify(settings, undefined, 2)}\n`);
  const megabytes = (score.bytesPerToken / 1e6).toFixed(3);
  context.print(`${examples.length} prompts trained on, ${validation.length} for the price of ${settings.price}`);
  context.print(`validation: ${(score.kept * 100).toFixed(1)} % of the answers kept at ${megabytes} MB a token`);
  return { ok: true, data: { trained: examples.length, validated: validation.length, settings, validation: score } };
}
