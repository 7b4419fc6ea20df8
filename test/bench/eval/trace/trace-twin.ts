/** Attention over a trace and what selections keep of it, once more and as plainly as can be: nothing here is the instrument's or the device's. */
import type { WrittenTrace } from "./write-trace.ts";

const PAGE = 16;

/** Which pages a KV head attends to at a row; ascending or not. */
export type TwinSelection = (row: TwinRow) => number[];

/** What a selection may look at. */
export interface TwinRow {
  position: number;
  budgetTokens: number;
  /** Of the query heads of one KV head, scaled. */
  queries: Float64Array[];
  /** `[token]` */
  keys: Float64Array[];
  /** Mean weight of the heads per page. */
  pageMass: number[];
}

/** Means over rows, `[layer][head]`. */
export interface TwinFigures {
  mass: number[][];
  outputError: number[][];
}

/** Judges a selection. `scale`: what dot products are multiplied with. */
export function twinFigures(
  { metadata, tensors }: WrittenTrace & { metadata: Record<string, string> },
  { select, budgetTokens, scale }: { select: TwinSelection; budgetTokens: number; scale: number },
): TwinFigures {
  const positions = (metadata.positions as string).split(",").map(Number);
  const mass: number[][] = [];
  const outputError: number[][] = [];
  for (let layer = 0; tensors[`layers.${layer}.key`] !== undefined; layer++) {
    const part = (name: string) => {
      const { shape, data } = tensors[`layers.${layer}.${name}`] as WrittenTrace["tensors"][string];
      const [, heads, width] = shape as [number, number, number];
      return {
        heads,
        at: (row: number, head: number) =>
          Float64Array.from(data.subarray((row * heads + head) * width, (row * heads + head + 1) * width)),
      };
    };
    const [query, key, value] = [part("query"), part("key"), part("value")];
    const group = query.heads / key.heads;
    const layerMass = Array<number>(query.heads).fill(0);
    const layerError = Array<number>(query.heads).fill(0);
    for (const [row, position] of positions.entries()) {
      for (let kvHead = 0; kvHead < key.heads; kvHead++) {
        const tokens = Array.from({ length: position + 1 }, (_, token) => token);
        const keys = tokens.map((token) => key.at(token, kvHead));
        const values = tokens.map((token) => value.at(token, kvHead));
        const heads = Array.from({ length: group }, (_, index) => kvHead * group + index);
        const queries = heads.map((head) => query.at(row, head).map((each) => each * scale));
        const weights = queries.map((q) => softmax(keys.map((k) => dot(q, k))));
        const pageMass = Array<number>(Math.floor(position / PAGE) + 1).fill(0);
        for (const each of weights)
          for (const [token, weight] of each.entries()) pageMass[Math.floor(token / PAGE)]! += weight / group;
        const pages = new Set(select({ position, budgetTokens, queries, keys, pageMass }));
        const chosen = tokens.filter((token) => pages.has(Math.floor(token / PAGE)));
        for (const [index, head] of heads.entries()) {
          const own = weights[index] as number[];
          const kept = chosen.reduce((sum, token) => sum + (own[token] as number), 0);
          const [ours, exact] = [mixed(values, own, chosen, kept), mixed(values, own, tokens, 1)];
          layerMass[head]! += kept / positions.length;
          const distance = Math.hypot(...ours.map((each, channel) => each - (exact[channel] as number)));
          layerError[head]! += distance / Math.hypot(...exact) / positions.length;
        }
      }
    }
    mass.push(layerMass);
    outputError.push(layerError);
  }
  return { mass, outputError };
}

/** The first pages and those up to the row's own, at least all of its block of 64. */
function forced(position: number, { sinks, recent }: { sinks: number; recent: number }): number[] {
  const page = Math.floor(position / PAGE);
  const from = Math.max(0, Math.min(page - recent + 1, Math.floor(position / 64) * 4));
  return Array.from({ length: page + 1 }, (_, each) => each).filter((each) => each < sinks || each >= from);
}

/** A sixteenth of the budget from the front, the rest from the end. */
export const twinStreaming: TwinSelection = ({ position, budgetTokens }) => {
  const sinks = Math.max(1, Math.floor(budgetTokens / PAGE / 16));
  return forced(position, { sinks, recent: budgetTokens / PAGE - sinks });
};

/** The pages with most of the weights. */
export const twinOracle: TwinSelection = ({ pageMass, budgetTokens }) =>
  [...pageMass.keys()].sort((a, b) => (pageMass[b] as number) - (pageMass[a] as number)).slice(0, budgetTokens / PAGE);

/** Quest, from the keys themselves: a bound of every product by the extremes of each channel, the largest over heads. */
export const twinQuest: TwinSelection = ({ position, budgetTokens, queries, keys }) => {
  const budget = budgetTokens / PAGE;
  const kept = forced(position, {
    sinks: Math.max(1, Math.floor(budget / 16)),
    recent: Math.max(2, Math.floor(budget / 8)),
  });
  const candidates = Array.from({ length: Math.floor(position / PAGE) }, (_, page) => page).filter(
    (page) => !kept.includes(page),
  );
  const bound = (page: number): number => {
    const own = keys.slice(page * PAGE, (page + 1) * PAGE);
    const sums = queries.map((query) =>
      query.reduce((sum, q, channel) => sum + Math.max(...own.map((k) => q * (k[channel] as number))), 0),
    );
    return Math.max(...sums);
  };
  const scores = new Map(candidates.map((page) => [page, bound(page)]));
  candidates.sort((a, b) => (scores.get(b) as number) - (scores.get(a) as number));
  return [...kept, ...candidates.slice(0, Math.max(0, budget - kept.length))];
};

function dot(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, value, index) => sum + value * (b[index] as number), 0);
}

function softmax(scores: number[]): number[] {
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

function mixed(values: Float64Array[], weights: number[], tokens: number[], total: number): number[] {
  const width = (values[0] as Float64Array).length;
  return Array.from(
    { length: width },
    (_, channel) =>
      tokens.reduce((sum, token) => sum + (weights[token] as number) * (values[token]?.[channel] as number), 0) / total,
  );
}
