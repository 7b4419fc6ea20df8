/** The router's classifier and how it learns: one hidden layer, one output per choice, Adam, all from one seed. */
import { drawInteger, drawOne, type Random, seededRandom } from "../random.ts";

/** Sizes of a network. */
export interface NetworkShape {
  inputs: number;
  hidden: number;
  outputs: number;
}

/** `outputs = sigmoid(b2 + W2 relu(b1 + W1 x))`. */
export interface Network extends NetworkShape {
  /** `[inputs, hidden]`, row-major, and `[hidden]`. */
  weights1: Float64Array;
  bias1: Float64Array;
  /** `[hidden, outputs]`, row-major, and `[outputs]`. */
  weights2: Float64Array;
  bias2: Float64Array;
}

/** One prompt: its features `[inputs]` in several words, and for each choice whether it kept the answer, 1 or 0 `[outputs]`. */
export interface Example {
  /** One of them is drawn every time the example is seen. */
  variants: readonly ArrayLike<number>[];
  kept: ArrayLike<number>;
}

interface Seen {
  features: ArrayLike<number>;
  kept: ArrayLike<number>;
}

/** How long and how fast is learnt. */
export interface TrainingOptions {
  hidden: number;
  epochs: number;
  batch: number;
  learningRate: number;
  /** Decay of the weights per step, as a share of the rate. */
  decay: number;
  /** Share of the inputs that an example loses in an epoch, so that none of them decides alone: of the first `plainInputs`, and of the others. */
  dropout: { plain: number; others: number };
  plainInputs: number;
  seed: number;
}

/** The network's outputs `[outputs]` for features `[inputs]`. */
export function predict(network: Network, features: ArrayLike<number>): Float64Array {
  return outputsOf(network, hiddenOf(network, features));
}

/** Learns from examples, all of one size; equal arguments give equal weights. */
export function train(examples: readonly Example[], options: TrainingOptions): Network {
  const random = seededRandom(options.seed);
  const inputs = examples[0]?.variants[0]?.length ?? 0;
  const outputs = examples[0]?.kept.length ?? 0;
  const standard = standardOf(
    examples.flatMap(({ variants }) => variants),
    inputs,
  );
  const order = [...examples];
  const network = seededNetwork({ inputs, hidden: options.hidden, outputs }, random);
  const optimizer = new Adam(network, options);
  for (let epoch = 0; epoch < options.epochs; epoch++) {
    // The last steps are small ones: what comes out does not hang on the order of the last batches.
    optimizer.rateShare = 0.5 * (1 + Math.cos((Math.PI * epoch) / options.epochs));
    shuffle(order, random);
    for (let start = 0; start < order.length; start += options.batch) {
      const gradient = emptyLike(network);
      const batch = order.slice(start, start + options.batch);
      for (const example of batch) addGradient(network, drawnFrom(example, { standard, options, random }), gradient);
      optimizer.step(gradient, batch.length);
    }
  }
  return unstandardized(network, standard);
}

/** In place (Fisher and Yates). */
function shuffle<T>(items: T[], random: Random): void {
  for (let last = items.length - 1; last > 0; last--) {
    const at = drawInteger(random, { min: 0, max: last });
    [items[at], items[last]] = [items[last] as T, items[at] as T];
  }
}

/** One network whose logits are the mean of those of several with equal inputs and outputs: what one of them learnt by chance weighs less. */
export function merged(networks: readonly Network[]): Network {
  const [first] = networks;
  if (first === undefined) throw new RangeError("there is nothing to merge");
  const { inputs, outputs } = first;
  const rows = (network: Network, row: number) =>
    network.weights1.subarray(row * network.hidden, (row + 1) * network.hidden);
  const mean = (values: readonly Float64Array[]) =>
    values[0]?.map((_, at) => values.reduce((sum, each) => sum + (each[at] as number), 0) / values.length);
  return {
    inputs,
    hidden: networks.reduce((sum, { hidden }) => sum + hidden, 0),
    outputs,
    weights1: Float64Array.from(
      Array.from({ length: inputs }, (_, row) => networks.flatMap((network) => [...rows(network, row)])).flat(),
    ),
    bias1: Float64Array.from(networks.flatMap(({ bias1 }) => [...bias1])),
    weights2: Float64Array.from(
      networks.flatMap(({ weights2 }) => [...weights2].map((each) => each / networks.length)),
    ),
    bias2: mean(networks.map(({ bias2 }) => bias2)) ?? new Float64Array(outputs),
  };
}

/** Per input: what is subtracted from it, and what the rest is multiplied by. */
interface Standard {
  mean: Float64Array;
  scale: Float64Array;
}

/** Inputs that vary get mean 0 and deviation 1. */
function standardOf(rows: readonly ArrayLike<number>[], inputs: number): Standard {
  const mean = new Float64Array(inputs);
  const square = new Float64Array(inputs);
  for (const row of rows) {
    for (let at = 0; at < inputs; at++) {
      mean[at]! += (row[at] as number) / rows.length;
      square[at]! += (row[at] as number) ** 2 / rows.length;
    }
  }
  // A word that few prompts have would be magnified without bounds.
  const scale = mean.map((value, at) => 1 / Math.max(0.2, Math.sqrt(Math.max(0, (square[at] as number) - value ** 2))));
  return { mean, scale };
}

function seededNetwork({ inputs, hidden, outputs }: NetworkShape, random: Random): Network {
  const layer = (from: number, to: number) =>
    Float64Array.from({ length: from * to }, () => (random() * 2 - 1) * Math.sqrt(3 / from));
  return {
    inputs,
    hidden,
    outputs,
    weights1: layer(inputs, hidden),
    bias1: new Float64Array(hidden),
    weights2: layer(hidden, outputs),
    bias2: new Float64Array(outputs),
  };
}

function emptyLike(network: Network): Network {
  const { weights1, bias1, weights2, bias2 } = network;
  return {
    ...network,
    weights1: new Float64Array(weights1.length),
    bias1: new Float64Array(bias1.length),
    weights2: new Float64Array(weights2.length),
    bias2: new Float64Array(bias2.length),
  };
}

/** An example as it is seen once: one of its variants, standardized, without some of its inputs. */
function drawnFrom(
  { variants, kept }: Example,
  { standard, options, random }: { standard: Standard; options: TrainingOptions; random: Random },
): Seen {
  const { plain, others } = options.dropout;
  const features = Float64Array.from(drawOne(random, variants));
  for (let at = 0; at < features.length; at++) {
    const share = at < options.plainInputs ? plain : others;
    const value = ((features[at] as number) - (standard.mean[at] as number)) * (standard.scale[at] as number);
    features[at] = random() < share ? 0 : value / (1 - share);
  }
  return { features, kept };
}

function hiddenOf({ inputs, hidden, weights1, bias1 }: Network, features: ArrayLike<number>): Float64Array {
  const sums = bias1.slice();
  for (let at = 0; at < inputs; at++) {
    const value = features[at] as number;
    if (value === 0) continue;
    for (let unit = 0; unit < hidden; unit++) sums[unit]! += value * (weights1[at * hidden + unit] as number);
  }
  return sums.map((sum) => Math.max(0, sum));
}

function outputsOf({ hidden, outputs, weights2, bias2 }: Network, active: Float64Array): Float64Array {
  const sums = bias2.slice();
  for (let unit = 0; unit < hidden; unit++) {
    const value = active[unit] as number;
    if (value === 0) continue;
    for (let at = 0; at < outputs; at++) sums[at]! += value * (weights2[unit * outputs + at] as number);
  }
  return sums.map((sum) => 1 / (1 + Math.exp(-sum)));
}

/** Adds the gradient of the sum of cross entropies of one example. */
function addGradient(network: Network, { features, kept }: Seen, gradient: Network): void {
  const { inputs, hidden, outputs, weights2 } = network;
  const active = hiddenOf(network, features);
  const errors = outputsOf(network, active).map((output, at) => output - (kept[at] as number));
  const back = new Float64Array(hidden);
  for (let at = 0; at < outputs; at++) gradient.bias2[at]! += errors[at] as number;
  for (let unit = 0; unit < hidden; unit++) {
    if (active[unit] === 0) continue;
    for (let at = 0; at < outputs; at++) {
      const place = unit * outputs + at;
      gradient.weights2[place]! += (active[unit] as number) * (errors[at] as number);
      back[unit]! += (weights2[place] as number) * (errors[at] as number);
    }
    gradient.bias1[unit]! += back[unit] as number;
  }
  for (let at = 0; at < inputs; at++) {
    const value = features[at] as number;
    if (value === 0) continue;
    for (let unit = 0; unit < hidden; unit++) gradient.weights1[at * hidden + unit]! += value * (back[unit] as number);
  }
}

const PARTS = ["weights1", "bias1", "weights2", "bias2"] as const;

/** Adam with decoupled decay (arXiv 1711.05101). */
class Adam {
  readonly #network: Network;
  readonly #options: TrainingOptions;
  readonly #first: Network;
  readonly #second: Network;
  #steps = 0;
  /** Of the learning rate. */
  rateShare = 1;

  constructor(network: Network, options: TrainingOptions) {
    this.#network = network;
    this.#options = options;
    this.#first = emptyLike(network);
    this.#second = emptyLike(network);
  }

  /** One step along the mean of `count` examples' gradients. */
  step(gradient: Network, count: number): void {
    const [keep1, keep2] = [0.9, 0.999];
    this.#steps += 1;
    const rate = this.#options.learningRate * this.rateShare;
    for (const part of PARTS) {
      const weights = this.#network[part];
      const decay = part.startsWith("weights") ? rate * this.#options.decay : 0;
      for (let at = 0; at < weights.length; at++) {
        const slope = (gradient[part][at] as number) / count;
        const first = keep1 * (this.#first[part][at] as number) + (1 - keep1) * slope;
        const second = keep2 * (this.#second[part][at] as number) + (1 - keep2) * slope * slope;
        this.#first[part][at] = first;
        this.#second[part][at] = second;
        const step = first / (1 - keep1 ** this.#steps) / (Math.sqrt(second / (1 - keep2 ** this.#steps)) + 1e-8);
        weights[at]! -= rate * step + decay * (weights[at] as number);
      }
    }
  }
}

/** The same function of inputs as they are. */
function unstandardized(network: Network, { mean, scale }: { mean: Float64Array; scale: Float64Array }): Network {
  const { inputs, hidden } = network;
  const weights1 = network.weights1.map((weight, place) => weight * (scale[Math.floor(place / hidden)] as number));
  const bias1 = network.bias1.slice();
  for (let at = 0; at < inputs; at++) {
    for (let unit = 0; unit < hidden; unit++)
      bias1[unit]! -= (mean[at] as number) * (weights1[at * hidden + unit] as number);
  }
  return { ...network, weights1, bias1 };
}
