/** Judges a step: against the naive oracle, from the device's own pool bytes, and against the reference device. */
import { expect } from "vitest";
import type { SelectionPlan, SelectionView } from "../../../kernels/contract.ts";
import { expectClose, magnitude } from "./compare.ts";
import type { Lane, Tolerances } from "./lane.ts";
import {
  attendPlainly,
  Memory,
  type PlainQuery,
  type PlainRange,
  plainRange,
  scorePagesPlainly,
  scoreTokensPlainly,
  seesToken,
} from "./oracle.ts";
import { type Part, type Sequence, Stage, type StageResult, type StageShape } from "./stage.ts";

/** The same sequences on the device under test and on the reference. */
export class Twin {
  readonly stage: Stage;
  readonly #reference: Stage;
  readonly #tolerances: Tolerances;

  constructor(lane: Lane, shape: StageShape, options: { blockCapacity: number; seed?: number }) {
    this.stage = new Stage(lane.device(), shape, options);
    this.#reference = new Stage(lane.reference(), shape, options);
    this.#tolerances = lane.tolerances;
  }

  async fill(sequence: Sequence, end: number): Promise<void> {
    await this.stage.fill(sequence, end);
    await this.#reference.fill(sequence, end);
  }

  /** Runs a step on both and checks it; returns what the device under test gave. */
  async run(parts: readonly Part[]): Promise<StageResult> {
    const result = await this.stage.run(parts);
    const expected = await this.#reference.run(parts);
    expect(result.readback.misses, "misses").toEqual(expected.readback.misses);
    expect(result.readback.traffic, "traffic").toEqual(expected.readback.traffic);
    if (this.stage.device.debugSelection !== undefined) expect(result.views, "selections").toEqual(expected.views);
    parts.forEach((part, index) => {
      for (let layer = 0; layer < this.stage.shape.layerCount; layer++) {
        const what = `part ${index} layer ${layer}`;
        const bound = { relative: 0, absolute: this.#tolerances.rotation * magnitude(expected.q[index]![layer]!) };
        expectClose(result.q[index]![layer]!, expected.q[index]![layer]!, bound, `${what} q against the reference`);
        const absolute = attentionBound(this.#tolerances, part, layer);
        const [out, reference] = [result.out[index]![layer]!, expected.out[index]![layer]!];
        expectClose(out, reference, { relative: 0, absolute }, `${what} attention against the reference`);
      }
    });
    await checkStep(this.stage, parts, { ...result, views: expected.views }, this.#tolerances);
    return result;
  }
}

function attentionBound({ attention }: Tolerances, part: Part, layer: number): number {
  return attention * magnitude(part.sequence.layers[layer]!.v);
}

/** Checks selections and attention of a step against the oracle. Every query group and KV head must have a view. */
export async function checkStep(
  stage: Stage,
  parts: readonly Part[],
  result: StageResult,
  tolerances: Tolerances,
): Promise<void> {
  for (const [sliceIndex, part] of parts.entries()) {
    for (let layer = 0; layer < stage.shape.layerCount; layer++) {
      const memory = await Memory.of(stage, part, layer);
      const q = result.q[sliceIndex]![layer]!;
      const out = result.out[sliceIndex]![layer]!;
      const views = result.views[layer]!.filter((view) => view.sliceIndex === sliceIndex);
      const groupCount = part.groupStarts?.length ?? 1;
      expect(views.length, "views").toBe(groupCount * stage.shape.kvHeadCount);
      for (const view of views) {
        const where: GroupAt = { memory, part, view, q, rows: groupRows(part, view.group) };
        checkSelection(where, tolerances);
        const bound = attentionBound(tolerances, part, layer);
        checkAttention(where, out, bound, `part ${sliceIndex} layer ${layer} group ${view.group}`);
      }
    }
  }
}

/** One query group and KV head of a part. */
interface GroupAt {
  memory: Memory;
  part: Part;
  view: SelectionView;
  /** Post-RoPE rows of the part. */
  q: Float32Array;
  /** Rows of the group within the part. */
  rows: number[];
}

function groupRows(part: Part, group: number): number[] {
  const starts = part.groupStarts ?? [0];
  const start = starts[group]!;
  return Array.from({ length: (starts[group + 1] ?? part.rowCount) - start }, (_, index) => start + index);
}

function queriesOf({ memory, q, rows }: GroupAt, kvHeads: readonly number[]): PlainQuery[] {
  const { headCount, kvHeadCount, headDim } = memory.shape;
  return rows.flatMap((row) =>
    Array.from({ length: headCount }, (_, head) => ({
      vector: q.slice((row * headCount + head) * headDim, (row * headCount + head + 1) * headDim),
      kvHead: Math.floor(head / (headCount / kvHeadCount)),
    })).filter(({ kvHead }) => kvHeads.includes(kvHead)),
  );
}

function checkAttention(at: GroupAt, out: Float32Array, absolute: number, what: string): void {
  const { headCount, kvHeadCount, headDim } = at.memory.shape;
  const heads = headCount / kvHeadCount;
  queriesOf(at, [at.view.kvHead]).forEach(({ vector, kvHead }, index) => {
    const row = at.rows[Math.floor(index / heads)]!;
    const head = kvHead * heads + (index % heads);
    const position = at.part.position + row;
    const sees = (token: number): boolean => seesToken(at.view, token);
    const expected = attendPlainly(at.memory, { query: vector, kvHead, position }, sees);
    const actual = out.slice((row * headCount + head) * headDim, (row * headCount + head + 1) * headDim);
    expectClose(actual, expected, { relative: 0, absolute }, `${what} position ${position} head ${head}`);
  });
}

/** Forced pages must be there, the rest must be the best candidates; scores within the tolerance may swap. */
export function checkSelection(at: GroupAt, { score: tolerance }: Tolerances): void {
  const plan: SelectionPlan = at.part.plan ?? { kind: "dense" };
  const [p0, p1] = [at.part.position + at.rows[0]!, at.part.position + at.rows.at(-1)!];
  const range = plainRange(plan, p0, p1);
  if (plan.kind === "dense" || range === undefined) {
    expect(at.view.pages).toBeUndefined();
    return;
  }
  const pages = at.view.pages!;
  expect(pages, "ascending, each once").toEqual([...new Set(pages)].sort((a, b) => a - b));
  expect(pages).toEqual(expect.arrayContaining(range.forced));
  const chosen = pages.filter((page) => !range.forced.includes(page));
  expect(range.candidates).toEqual(expect.arrayContaining(chosen));
  if (plan.kind === "tokens") {
    checkTokens(at, plan, range, tolerance);
    return;
  }
  expect(chosen.length, "pages taken").toBe(range.take);
  if (plan.scorer === undefined || range.take === 0 || range.take === range.candidates.length) return;
  const everyHead = Array.from({ length: at.memory.shape.kvHeadCount }, (_, head) => head);
  const queries = queriesOf(at, plan.scope === "layer" ? everyHead : [at.view.kvHead]);
  const rule = { scorer: plan.scorer, combine: plan.combine };
  expectBest(scorePagesPlainly(at.memory, queries, range.candidates, rule), range.candidates, chosen, tolerance);
}

function checkTokens(
  at: GroupAt,
  plan: Extract<SelectionPlan, { kind: "tokens" }>,
  range: PlainRange,
  tolerance: number,
): void {
  const { candidates, take } = range;
  const queries = queriesOf(
    at,
    Array.from({ length: at.memory.shape.kvHeadCount }, (_, head) => head),
  );
  const keepCount = take === 0 || take === candidates.length ? take : Math.min(plan.candidatePages, candidates.length);
  const scores =
    keepCount < candidates.length && keepCount > 0
      ? scorePagesPlainly(at.memory, queries, candidates, { scorer: plan.scorer, combine: "softmax-sum" })
      : candidates.map(() => 0);
  const threshold = [...scores].sort((a, b) => b - a)[keepCount - 1] ?? Number.POSITIVE_INFINITY;
  const kept = candidates.filter((_, index) => keepCount > 0 && scores[index]! >= threshold);
  const present = kept.filter((page) => at.memory.isResident(Math.floor(page / 4)));
  const tokens = present.flatMap((page) => Array.from({ length: 16 }, (_, token) => page * 16 + token));
  const chosen = tokens.filter((token) => seesToken(at.view, token));
  const all = at.view.pages!.flatMap((page) => Array.from({ length: 16 }, (_, token) => page * 16 + token));
  const allChosen = all.filter((token) => candidates.includes(Math.floor(token / 16)) && seesToken(at.view, token));
  expect(allChosen, "tokens come from kept pages that are there").toEqual(chosen);
  expect(chosen.length, "tokens taken").toBe(Math.min(take * 16, tokens.length));
  for (const page of range.forced) {
    const whole = Array.from({ length: 16 }, (_, token) => seesToken(at.view, page * 16 + token));
    expect(whole, "a forced page is attended whole").not.toContain(false);
  }
  if (chosen.length > 0 && chosen.length < tokens.length) {
    expectBest(scoreTokensPlainly(at.memory, queries, present), tokens, chosen, tolerance);
  }
}

function expectBest(scores: number[], ids: readonly number[], chosen: readonly number[], tolerance: number): void {
  const margin = tolerance * magnitude(scores);
  const worstChosen = Math.min(...ids.flatMap((id, index) => (chosen.includes(id) ? [scores[index]!] : [])));
  const bestLeft = Math.max(...ids.flatMap((id, index) => (chosen.includes(id) ? [] : [scores[index]!])));
  expect(worstChosen, "every chosen one scores at least as high as every one left out").toBeGreaterThanOrEqual(
    bestLeft - margin,
  );
}
