/** Kernels of the GPU's selection that do the work of several: the same bits in memory as these, and the choice that the keys say. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { BLOCK_TOKENS, PAGE_TOKENS } from "../../kernels/contract.ts";
import { openAdapter, requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { CommandList, StepBuffers } from "../../kernels/webgpu/command-list.ts";
import { Gpu } from "../../kernels/webgpu/gpu.ts";
import type { UnitRecord } from "../../kernels/webgpu/units.ts";
import { CHOOSE_BLOCKS, LIST_BLOCKS_OF_UNITS } from "../../kernels/webgpu/wgsl/masks.ts";
import { COMBINE, TOP_K } from "../../kernels/webgpu/wgsl/rank.ts";
import { turnedWords } from "../../kernels/webgpu/wgsl/residual-signs.ts";
import { SCORE_HEADS, scoreBlocks, scorePages } from "../../kernels/webgpu/wgsl/score.ts";
import { pagesOfGroup, scorePagesWide, scoresWide } from "../../kernels/webgpu/wgsl/score-pages.ts";
import { NOWHERE, RANKING_FIELDS, UNIT_FIELDS } from "../../kernels/webgpu/wgsl/unit.ts";
import { Addresses, Words } from "../../kernels/webgpu/words.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { Random, SEED } from "./support/random.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;
const PAGES_PER_BLOCK = BLOCK_TOKENS / PAGE_TOKENS;

/** A unit of the test: pages 2.. are candidates, all but the last four. */
interface Case {
  name: string;
  pageEnd: number;
  take: number;
  /** How many different keys there are. */
  values: number;
  handsOn?: boolean;
}

const CASES: readonly Case[] = [
  { name: "different keys", pageEnd: 3001, take: 128, values: 1 << 30 },
  { name: "keys shared by many", pageEnd: 2200, take: 131, values: 40 },
  { name: "one key", pageEnd: 700, take: 33, values: 1 },
  { name: "all", pageEnd: 50, take: 1000, values: 1 << 20 },
  { name: "none", pageEnd: 90, take: 0, values: 9 },
  { name: "taken over", pageEnd: 1025, take: 64, values: 1 << 30, handsOn: true },
  { name: "taken over, keys shared", pageEnd: 1030, take: 64, values: 7, handsOn: true },
];

/** The tables and the memory of units that choose by their keys, behind one that keeps everything it has. */
function unitsOf(cases: readonly Case[]) {
  const random = new Random(SEED);
  const [tables, scratch, outcome] = [new Words(), new Addresses(), new Addresses()];
  const values: { at: number; words: Uint32Array }[] = [];
  const units = [{ name: "no ranking", pageEnd: 77, take: 0, values: 1 }, ...cases].map((each, index) => {
    const { pageEnd, take } = each;
    const blockCount = Math.ceil(pageEnd / PAGES_PER_BLOCK);
    const [pageFirst, pageCount] = [2, pageEnd - 6];
    const keys = Uint32Array.from({ length: pageCount }, () => 0x80000000 + random.integer(each.values));
    const [keysAt, flagsAt] = [scratch.take(pageCount), scratch.take(pageCount)];
    values.push({ at: keysAt, words: keys });
    const ids = Uint32Array.from({ length: blockCount }, (_, block) => (random.next() < 0.2 ? NOWHERE : block * 7));
    const ranking = {
      ...{ raw_at: NOWHERE, raw_stride: pageCount, query_count: 1, size: pageCount, size_at: NOWHERE },
      ...{ stats_at: NOWHERE, keys_at: keysAt, flags_at: flagsAt, take, mass_share: 0, rule: 0 },
    };
    const record = Object.fromEntries(UNIT_FIELDS.map((field) => [field, NOWHERE])) as UnitRecord;
    Object.assign(record, {
      ...{ kv_count: 1, page_first: pageFirst, page_count: pageCount, page_end: pageEnd, last_block: blockCount - 1 },
      ...{ block_ids_at: tables.push(ids), block_ids_stride: blockCount, counters_at: outcome.take(5) },
      ...{ misses_at: outcome.take(64), misses_stride: 64, chosen_at: outcome.take(64), chosen_stride: 64 },
      ...{ report_at: outcome.take(512), choice_stride: 512, blocks_at: scratch.take(1 + blockCount * 4) },
      ...{ keeps: index === 0 ? 1 : 2, flags_at: flagsAt, hands_on: each.handsOn === true ? 1 : 0 },
    });
    return { ...each, pageFirst, pageCount, keys, flagsAt, ranking, record };
  });
  const ranked = units.slice(1);
  const rankingsAt = tables.length;
  for (const { ranking, record } of ranked) record.ranking_at = tables.record(RANKING_FIELDS, ranking);
  const unitsAt = tables.length;
  for (const { record } of units) tables.record(UNIT_FIELDS, record);
  return { units, ranked, tables, rankingsAt, unitsAt, values, scratchWords: scratch.end, outcomeWords: outcome.end };
}

/** The pages that the order of `topIndices` takes. */
function bestPages(keys: Uint32Array, take: number): Set<number> {
  const order = Array.from(keys.keys()).sort((a, b) => keys[b]! - keys[a]! || a - b);
  return new Set(order.slice(0, take));
}

describe.skipIf(!hasAdapter)(`what is chosen and listed at once (seed ${SEED})`, () => {
  let gpu: Gpu;
  beforeAll(async () => {
    gpu = new Gpu(await openAdapter(await requestAdapter()));
  });
  afterAll(() => gpu.close());

  it("is what is chosen and then listed: flags only where a later layer or equal keys ask for them", async () => {
    const made = unitsOf(CASES);
    const { units, ranked, rankingsAt, unitsAt, scratchWords, outcomeWords } = made;
    const run = async (isTogether: boolean) => {
      const buffers = new StepBuffers();
      const list = new CommandList(gpu, buffers);
      const scratch = gpu.storage("scratch", scratchWords * 4);
      for (const { at, words } of made.values) gpu.device.queue.writeBuffer(scratch, at * 4, words);
      const params = { layer: 0, units_at: unitsAt };
      const memory = [buffers.tables, scratch, buffers.outcome];
      if (isTogether) {
        list.dispatch(CHOOSE_BLOCKS, params, memory, [units.length]);
      } else {
        list.dispatch(TOP_K, { rankings_at: rankingsAt }, [buffers.tables, scratch], [ranked.length]);
        list.dispatch(LIST_BLOCKS_OF_UNITS, params, memory, [units.length]);
      }
      const outcome = new Uint32Array((await list.submit(made.tables, outcomeWords * 4)).buffer);
      const words = new Uint32Array((await gpu.read(scratch, 0, scratchWords * 4)).buffer);
      gpu.destroy(scratch);
      return { outcome, words };
    };
    const [apart, together] = [await run(false), await run(true)];
    expect(together.outcome).toEqual(apart.outcome);
    for (const { name, record, pageFirst, pageCount, keys, flagsAt, take, handsOn } of units) {
      const listOf = (words: Uint32Array) =>
        words.subarray(record.blocks_at, record.blocks_at + 1 + words[record.blocks_at]! * 4);
      expect(listOf(together.words), name).toEqual(listOf(apart.words));
      const kept = name === "no ranking" ? new Set(keys.keys()) : bestPages(keys, take);
      const attended = listOf(together.words);
      for (let at = 1; at < attended.length; at += 4) {
        for (let i = 0; i < PAGES_PER_BLOCK; i++) {
          const candidate = attended[at]! * PAGES_PER_BLOCK + i - pageFirst;
          if (candidate < 0 || candidate >= pageCount) continue;
          const mask = (attended[at + 1 + (i >> 1)]! >>> (i % 2 === 0 ? 0 : 16)) & 0xffff;
          expect(mask, `${name}, candidate ${candidate}`).toBe(kept.has(candidate) ? 0xffff : 0);
        }
      }
      if (handsOn !== true) continue;
      const flags = together.words.subarray(flagsAt, flagsAt + pageCount);
      expect(flags, `flags, ${name}`).toEqual(apart.words.subarray(flagsAt, flagsAt + pageCount));
      expect(flags.reduce((sum, flag) => sum + flag, 0)).toBe(take);
    }
  });
});

/** How pages are scored: by kind and head; heads of a KV head from 1 to three chunks of queries. */
const SCORINGS = [
  { kind: "min-max", headDim: 16, heads: 4 },
  { kind: "min-max", headDim: 80, heads: 7 },
  { kind: "representatives", headDim: 32, heads: 9 },
  { kind: "min-max", headDim: 20, heads: 6 },
  { kind: "representatives", headDim: 20, heads: 2 },
  { kind: "sign-bits", headDim: 64, heads: 5 },
  { kind: "residual-signs", headDim: 64, heads: 4 },
  { kind: "residual-signs", headDim: 64, heads: 7 },
  { kind: "blocks", headDim: 64, heads: 4 },
  { kind: "blocks", headDim: 20, heads: 11 },
] as const;
const KV_HEADS = 2;
const SLOTS = 60;

/** Units of one row and one KV head, of which the second scores what a coarse pass left only; random codes, scales and summaries. */
function scoringOf({ kind, headDim, heads }: (typeof SCORINGS)[number]) {
  const random = new Random(SEED + headDim * heads);
  const isBlocks = kind === "blocks";
  const [tables, scratch] = [new Words(), new Addresses()];
  const queryCount = 2 * KV_HEADS * heads;
  const codesAt = scratch.take(queryCount * headDim);
  const scalesAt = scratch.take(queryCount);
  const turnedAt = scratch.take(queryCount * headDim);
  const flagsAt = scratch.take(SLOTS);
  const ready = scratch.end;
  const words = Uint32Array.from({ length: ready }, () => random.integer(2 ** 32));
  const floats = new Float32Array(words.buffer);
  for (let query = 0; query < queryCount; query++) floats[scalesAt + query] = random.next() / 1000;
  // One score of each page of the last unit is no number, whatever the others are.
  floats[scalesAt + queryCount - 1] = Number.NaN;
  if (kind === "residual-signs") {
    const stride = turnedWords(headDim);
    for (let query = 1; query <= queryCount; query++) floats[turnedAt + query * stride - 1] = random.next() / 1000;
  }
  for (let flag = 0; flag < SLOTS; flag++) words[flagsAt + flag] = random.integer(2);
  const headWords = isBlocks ? headDim / 4 + 1 : headDim * 2 + 8;
  const summaries = Uint32Array.from({ length: SLOTS * KV_HEADS * headWords }, () => random.integer(2 ** 32));
  const scales = new Float32Array(summaries.buffer);
  for (let head = 0; head < SLOTS * KV_HEADS; head++) {
    const first = head * headWords + (isBlocks ? headDim / 4 : headDim * 2);
    for (let at = first; at < (head + 1) * headWords; at++)
      scales[at] = random.next() < 0.03 ? Number.NaN : random.next();
  }
  const slotsAt = tables.push(Uint32Array.from({ length: SLOTS }, (_, block) => (block * 7) % SLOTS));
  const units = Array.from({ length: 4 }, (_, index) => {
    const pageCount = isBlocks ? SLOTS - 7 : SLOTS * PAGES_PER_BLOCK - 9;
    const record = Object.fromEntries(UNIT_FIELDS.map((field) => [field, NOWHERE])) as UnitRecord;
    const raw = scratch.take(heads * pageCount);
    Object.assign(record, {
      ...{ first_row: index >> 1, row_count: 1, kv_first: index % KV_HEADS, kv_count: 1, radius_weight: 0x3f400000 },
      ...{ page_first: 3, page_count: pageCount, summary_slots_at: slotsAt, raw_at: raw, raw_stride: pageCount },
      ...{ block_first: 5, block_count: isBlocks ? pageCount : 20, block_raw_at: raw },
      block_flags_at: index === 1 && !isBlocks ? flagsAt : NOWHERE,
    });
    const keysAt = scratch.take(pageCount);
    const ranking = {
      ...{ raw_at: raw, raw_stride: pageCount, query_count: heads, size: pageCount, size_at: NOWHERE },
      ...{ stats_at: NOWHERE, keys_at: keysAt, flags_at: NOWHERE, take: 1, mass_share: 0, rule: 0 },
    };
    return { record, ranking };
  });
  const rankingsAt = tables.length;
  for (const { record, ranking } of units) record.ranking_at = tables.record(RANKING_FIELDS, ranking);
  const params = {
    ...{ head_count: heads * KV_HEADS, kv_head_count: KV_HEADS, head_dim: headDim, units_at: tables.length },
    ...{ codes_at: codesAt, scales_at: scalesAt, turned_at: turnedAt },
  };
  for (const { record } of units) tables.record(UNIT_FIELDS, record);
  return { units, tables, words, summaries, params, rankingsAt, scratchWords: scratch.end };
}

/** The kernel of a case, and how many pages or blocks a work group has. */
function scoringKernel({ kind, headDim, heads }: (typeof SCORINGS)[number], isKeys: boolean) {
  const result = isKeys ? "keys" : "raw";
  if (kind === "blocks") return { kernel: scoreBlocks(result), perGroup: 64 };
  if (!scoresWide(kind, headDim)) return { kernel: scorePages(kind, result), perGroup: 64 };
  const wide = isKeys && heads > SCORE_HEADS ? "keys of chunks" : result;
  return { kernel: scorePagesWide(kind, headDim, wide), perGroup: pagesOfGroup(headDim) };
}

describe.skipIf(!hasAdapter)(`keys that scoring makes (seed ${SEED})`, () => {
  let gpu: Gpu;
  beforeAll(async () => {
    gpu = new Gpu(await openAdapter(await requestAdapter()));
  });
  afterAll(() => gpu.close());

  it.each(SCORINGS)("are those of raw scores: $kind, $heads heads of $headDim", async (scoring) => {
    const made = scoringOf(scoring);
    const { units, params, rankingsAt, scratchWords } = made;
    const candidates = units[0]!.ranking.size;
    const run = async (isKeys: boolean) => {
      const buffers = new StepBuffers();
      const list = new CommandList(gpu, buffers);
      const scratch = gpu.storage("scratch", scratchWords * 4);
      const summaries = gpu.storage("summaries", made.summaries.byteLength);
      gpu.device.queue.writeBuffer(scratch, 0, made.words);
      gpu.device.queue.writeBuffer(summaries, 0, made.summaries);
      const { kernel, perGroup } = scoringKernel(scoring, isKeys);
      const chunks = isKeys ? 1 : Math.ceil(scoring.heads / SCORE_HEADS);
      const grid = [Math.ceil(candidates / perGroup), chunks, units.length] as const;
      list.dispatch(kernel, params, [summaries, buffers.tables, scratch], grid);
      const combining = { rankings_at: rankingsAt, scale: 1 };
      const combined = [Math.ceil(candidates / 64), units.length] as const;
      if (!isKeys) list.dispatch(COMBINE, combining, [buffers.tables, scratch], combined);
      await list.submit(made.tables, 0);
      const words = new Uint32Array((await gpu.read(scratch, 0, scratchWords * 4)).buffer);
      for (const buffer of [scratch, summaries]) gpu.destroy(buffer);
      return units.map(({ ranking }) => words.slice(ranking.keys_at, ranking.keys_at + candidates));
    };
    const [apart, together] = [await run(false), await run(true)];
    expect(together).toEqual(apart);
    const keys = apart.map((each) => new Set(each));
    // Many different ones, those of pages with a score that is no number, and of pages that a coarse pass left out.
    const different = scoring.kind === "sign-bits" ? 10 : candidates / 4;
    for (const each of keys.slice(0, 3)) expect(each.size).toBeGreaterThan(different);
    expect(keys.some((each) => each.has(0x007fffff))).toBe(true);
    expect(keys.map((each) => each.has(0))).toEqual([false, scoring.kind !== "blocks", false, false]);
  });
});
