/**
 * Decoding over blocks of int8, as texts that attend.ts puts together: all that a thread needs of a block is on its way before anything is computed, as memory
 * far away wants it.
 *
 * Four threads share a key: thread `16 quarter + slot` has the vectors of 16 channels `quarter`, `quarter + 4`, ... of the tokens `slot`, `slot + 16`,
 * `slot + 32` and `slot + 48`, one of each page. So what it reads of a query in work group memory serves four tokens, and a page that is not chosen costs
 * nothing. Everything is a variable by name: arrays might end in memory.
 */
import { type AttendShape, KEY_QUARTERS, NONE, TILE_HEADS, tokensPerGroup } from "./attend-blocks.ts";

const PAGES = [0, 1, 2, 3];
const HEADS = Array.from({ length: TILE_HEADS }, (_, j) => j);

/** What a shape comes to. */
function dealt({ headDim }: Pick<AttendShape, "headDim">) {
  const vectors = headDim / 16;
  const fours = headDim / 4;
  const tokens = tokensPerGroup(headDim);
  return {
    vectors,
    fours,
    tokens,
    /** Of a key, of one thread. */
    steps: Array.from({ length: Math.ceil(vectors / KEY_QUARTERS) }, (_, n) => n),
    /** Vectors of four of all queries, of one thread. */
    staged: Array.from({ length: Math.ceil((TILE_HEADS * fours) / 64) }, (_, n) => n),
    /** Whether the last group of tokens ends with the block. */
    isEven: tokens * Math.floor(64 / fours) === 64,
    /** Whether a thread's part of every query has the same channels. */
    isAligned: 64 % fours === 0,
  };
}

const lines = (items: readonly number[], line: (item: number) => string): string => items.map(line).join("\n");
const upTo = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
/** Only threads that have this vector. */
const guarded = (vectors: number, n: number, text: string): string =>
  (n + 1) * KEY_QUARTERS <= vectors ? text : `if (quarter + ${n * KEY_QUARTERS}u < ${vectors}u) { ${text} }`;

/** Beside what all kernels of attention have. 4 KiB of work group memory. */
export const AHEAD_DECLARED = /* wgsl */ `
/** [quarter][token], a query each: parts of scores. Of an open block the first are whole. */
var<workgroup> partials: array<vec4f, ${KEY_QUARTERS * 64}>;
`;

/** Before the first block: a thread's part of the queries, and its place. */
export function aheadOnce(shape: AttendShape): string {
  const { staged } = dealt(shape);
  return /* wgsl */ `
  let quarter = lid / 16u;
  let slot = lid % 16u;
${lines(
  staged,
  (n) => `  var staged${n} = vec4f(0.0);
  if (lid + ${n * 64}u < QUERIES * FOURS && head_first + (lid + ${n * 64}u) / FOURS < head_end) {
    staged${n} = q[(tile.first_row * p.head_count + head_first + (lid + ${n * 64}u) / FOURS) * FOURS + (lid + ${n * 64}u) % FOURS];
  }`,
)}`;
}

/** Reads what the thread needs of a sealed block. */
export function aheadLoad(shape: AttendShape): string {
  const { vectors, steps, tokens, staged, isEven, isAligned } = dealt(shape);
  const scales = isAligned ? staged.slice(0, 1) : staged;
  const run = Math.min(16, tokens);
  const loads = (buffer: string): string => /* wgsl */ `
        if (is_chosen) { value_scale = bitcast<f32>(${buffer}[value_scale_at >> 2u][value_scale_at & 3u]); }
${lines(scales, (n) => `        key_scale${n} = bitcast<vec4f>(${buffer}[(key_scales_at >> 2u) + (lid + ${n * 64}u) % FOURS]);`)}
${lines(
  PAGES,
  (page) => `        if (has_page${page}) {
${lines(steps, (n) => `          ${guarded(vectors, n, `row${page}_${n} = ${buffer}[key_at + ${page * 16 * vectors + n * KEY_QUARTERS}u];`)}`)}
        }`,
)}
${lines(
  upTo(Math.ceil(tokens / run)),
  (each) => `        if ((word_bits & ${runMask(each, run, tokens)}u) != 0u) {
${lines(
  upTo(Math.min(run, tokens - each * run)).map((i) => each * run + i),
  (i) => {
    const load = `word${i} = ${buffer}[(value_at >> 2u) + ${i * vectors}u][value_at & 3u];`;
    return `          ${isEven ? load : `if (((word_bits >> ${i}u) & 1u) == 1u) { ${load} }`}`;
  },
)}
        }`,
)}`;
  const cases = upTo(shape.partCount).map((part) => `case ${part}u: {${loads(`blocks${part}`)}\n        }`);
  return /* wgsl */ `
      let key_scales_at = base + p.kv_head_count * 16u * HEAD_DIM + kv_head * HEAD_DIM;
      let values_at = base + p.kv_head_count * (16u * HEAD_DIM + HEAD_DIM);
      let value_scale_at = values_at + p.kv_head_count * 16u * HEAD_DIM + kv_head * 64u + token;
      let key_at = ((base + (kv_head * 64u + slot) * FOURS) >> 2u) + quarter;
      let value_at = values_at + (kv_head * 64u + token_first) * FOURS + four;
      let word_bits = select(0u, mask_from(info.xy, token_first) & WORD_BITS, token_group < TOKEN_GROUPS);
${lines(PAGES, (page) => `      let has_page${page} = (${page < 2 ? "info.x" : "info.y"} & ${page % 2 === 0 ? "0xffffu" : "0xffff0000u"}) != 0u;`)}
      var value_scale = 1.0;
${lines(scales, (n) => `      var key_scale${n} = vec4f(1.0);`)}
${lines(PAGES, (page) => lines(steps, (n) => `      var row${page}_${n} = vec4u(0u);`))}
${lines(upTo(tokens), (i) => `      var word${i} = 0u;`)}
      if (is_sealed) {
${shape.partCount === 1 ? loads("blocks0") : `        switch (part) {\n        ${cases.join("\n        ")}\n        default: {}\n        }`}
      }`;
}

/** Queries into work group memory, times the scales of the block's keys. */
export function aheadStage(shape: AttendShape): string {
  const { staged, isAligned } = dealt(shape);
  return lines(
    staged,
    (n) =>
      `      if (lid + ${n * 64}u < QUERIES * FOURS) { query[lid + ${n * 64}u] = staged${n} * key_scale${isAligned ? 0 : n}; }`,
  );
}

/** Parts of scores into `partials`. `openKeys`: adds the dots of a token of the open block to `dots`. */
export function aheadDots(shape: AttendShape, openKeys: string): string {
  const { vectors, steps } = dealt(shape);
  const dots = (pages: readonly number[]): string =>
    lines(steps, (n) => {
      const words = lines(
        upTo(4),
        (w) => `{
          let at = (quarter + ${n * KEY_QUARTERS}u) * 4u + ${w}u;
${lines(pages, (page) => `          let key${page} = signed_bytes(row${page}_${n}[${w}]);`)}
${lines(
  HEADS,
  (j) => `          let query${j} = query[${j}u * FOURS + at];
${lines(pages, (page) => `          dots${page}.${"xyzw"[j]} = add_dot(key${page}, query${j}, dots${page}.${"xyzw"[j]});`)}`,
)}
          }`,
      );
      return guarded(vectors, n, words);
    });
  return /* wgsl */ `
      if (is_sealed) {
${lines(PAGES, (page) => `        var dots${page} = vec4f(0.0);`)}
        if (has_page0 && has_page1 && has_page2 && has_page3) {
${dots(PAGES)}
        } else {
${lines(PAGES, (page) => `          if (has_page${page}) {\n${dots([page])}\n          }`)}
        }
${lines(PAGES, (page) => `        partials[quarter * 64u + slot + ${page * 16}u] = dots${page};`)}
      } else if (is_chosen && token <= last_token) {
        var dots: array<f32, QUERIES>;
        for (var j = 0u; j < QUERIES; j++) { dots[j] = 0.0; }
${openKeys}
        partials[token] = vec4f(dots[0], dots[1], dots[2], dots[3]);
      }`;
}

/** Scores of the thread's query and tokens `my_lane + 16 i`, from the parts, rounded as those that go through memory; `block_max` is the largest. */
export const AHEAD_SCORES = /* wgsl */ `
${lines(
  PAGES,
  (page) => `      var score${page} = ${NONE};
      {
        let token = my_lane + ${page * 16}u;
        if (((${page < 2 ? "info.x" : "info.y"} >> (token & 31u)) & 1u) == 1u) {
          if (is_sealed) {
            let first = partials[token][my_query] + partials[64u + token][my_query];
            score${page} = rounded((first + partials[128u + token][my_query] + partials[192u + token][my_query]) * p.scale);
          } else if (token <= tile.position % 64u) {
            score${page} = rounded(partials[token][my_query] * p.scale);
          }
        }
      }`,
)}
      var block_max = max(max(score0, score1), max(score2, score3));`;

/** Adds the weighted values of a thread's tokens to `acc`, ascending. */
export function aheadValues(shape: AttendShape, openValues: string): string {
  const { tokens } = dealt(shape);
  const run = Math.min(16, tokens);
  const runs = lines(
    upTo(Math.ceil(tokens / run)),
    (each) => `        if ((word_bits & ${runMask(each, run, tokens)}u) != 0u) {
${lines(
  upTo(Math.min(run, tokens - each * run)).map((i) => each * run + i),
  (i) => `          add_value(&acc, signed_bytes(word${i}), min(token_first + ${i}u, 63u));`,
)}
        }`,
  );
  return /* wgsl */ `
      if (is_sealed) {
${runs}
      } else {
${openValues}
      }`;
}

/** The bits of a run of tokens in the mask of a thread's tokens. */
function runMask(each: number, run: number, tokens: number): number {
  return (2 ** Math.min(run, tokens - each * run) - 1) * 2 ** (each * run);
}
