/** How attention reads a block of the pool: texts that attend.ts puts together. */
import type { KvEncoding } from "../../contract.ts";

/** What fixes the code of attention. */
export interface AttendShape {
  encoding: KvEncoding;
  headDim: number;
  /** Buffers that hold the pool's blocks. */
  partCount: number;
  /** Rows of one tile: 1 in decoding. */
  rows: number;
}

/** Query heads of one KV head that a work group takes. */
export const TILE_HEADS = 4;
/** A score that no dot product of finite values reaches; exp of it is 0. */
export const NONE = "-3.0e38";
/** Parts of a score: see {@link isQuartered}. */
export const KEY_QUARTERS = 4;

/** Tokens of a block that a thread adds up for its four channels. */
export function tokensPerGroup(headDim: number): number {
  return Math.ceil(64 / Math.floor(64 / (headDim / 4)));
}

/**
 * Whether a score is the sum of four parts, ((0 + 1) + 2) + 3: part n has the runs of 16 channels n, n + 4, ... of a key, ascending. So four threads may share
 * a key; where one has it, it keeps to the same order.
 */
function isQuartered({ encoding, headDim }: AttendShape): boolean {
  return encoding === "int8" && headDim % 16 === 0 && tokensPerGroup(headDim) <= 32;
}

/** Whether it is done as attend-ahead.ts does it. Not with several rows, whose sums leave no room in registers. */
export function readsAhead(shape: AttendShape): boolean {
  return shape.rows === 1 && isQuartered(shape);
}

/** A statement for each buffer of the pool. */
function perPart(partCount: number, statement: (buffer: string) => string): string {
  if (partCount === 1) return statement("blocks0");
  const cases = Array.from({ length: partCount }, (_, part) => `    case ${part}u: { ${statement(`blocks${part}`)} }`);
  return `switch (part) {\n${cases.join("\n")}\n    default: {}\n  }`;
}

/** Functions that read the pool: 16 bytes, and a word. */
export function sources(shape: AttendShape): string {
  const { encoding, partCount } = shape;
  const wide = /* wgsl */ `
fn block4(part: u32, at: u32) -> vec4u {
  ${perPart(partCount, (buffer) => `return ${buffer}[at];`)}
${partCount === 1 ? "" : "  return vec4u(0u);"}
}`;
  if (encoding === "f32") {
    return `${wide}
fn sealed4(part: u32, base: u32, offset: u32) -> vec4f { return bitcast<vec4f>(block4(part, base + offset)); }
`;
  }
  const word = /* wgsl */ `
fn block_word(part: u32, at: u32) -> u32 {
  ${perPart(partCount, (buffer) => `return ${buffer}[at >> 2u][at & 3u];`)}
${partCount === 1 ? "" : "  return 0u;"}
}`;
  return `${wide}${word}
`;
}

/** A block's bit mask from token `first` on. */
export const MASK_FROM = /* wgsl */ `
fn mask_from(mask: vec2u, first: u32) -> u32 {
  if (first >= 32u) { return mask.y >> (first & 31u); }
  if (first == 0u) { return mask.x; }
  return (mask.x >> first) | (mask.y << (32u - first));
}
`;

/** The scale of the value of a thread's token. */
export function valueScale({ encoding }: AttendShape): string {
  if (encoding === "f32") return "      let value_scale = 1.0;";
  return /* wgsl */ `
      let values_at = base + p.kv_head_count * (16u * HEAD_DIM + HEAD_DIM);
      var value_scale = 1.0;
      if (is_sealed && is_chosen) {
        value_scale = bitcast<f32>(block_word(part, values_at + p.kv_head_count * 16u * HEAD_DIM + kv_head * 64u + token));
      }`;
}

/** The scales of an int8 block's keys go into the query. */
export const SCALE_QUERY_INT8 = /* wgsl */ `
        if (is_sealed) {
          let scales_at = base + p.kv_head_count * 16u * HEAD_DIM + kv_head * HEAD_DIM + (i % FOURS) * 4u;
          four *= bitcast<vec4f>(block4(part, scales_at >> 2u));
        }`;

const ADD_DOTS = "for (var j = 0u; j < QUERIES; j++) { dots[j] = add_dot(key, query[j * FOURS + four], dots[j]); }";

/** Adds the dots of a thread's token of the open block to `dots`. */
export const OPEN_KEYS = /* wgsl */ `
        let open_at = base + (kv_head * 64u + token) * FOURS;
        for (var four = 0u; four < FOURS; four++) {
          let key = open[open_at + four];
          ${ADD_DOTS}
        }`;

/** Adds the dot products of a thread's token with every query to `dots`, channels ascending. */
export function addDots(shape: AttendShape): string {
  const { encoding, headDim } = shape;
  if (encoding === "f32") {
    return /* wgsl */ `
        let keys_at = (kv_head * 64u + token) * FOURS;
        for (var four = 0u; four < FOURS; four++) {
          var key: vec4f;
          if (is_sealed) { key = sealed4(part, base, keys_at + four); } else { key = open[base + keys_at + four]; }
          ${ADD_DOTS}
        }`;
  }
  const words = /* wgsl */ `
        let words_at = base + (kv_head * 64u + token) * FOURS;
        for (var four = 0u; four < FOURS; four++) {
          let key = signed_bytes(block_word(part, words_at + four));
          ${ADD_DOTS}
        }`;
  const wide = /* wgsl */ `
        let words_at = base + (kv_head * 64u + token) * FOURS;
        for (var four = 0u; four < FOURS; four += 4u) { add_key(&dots, block4(part, (words_at + four) >> 2u), four); }`;
  const quarters = Array.from({ length: KEY_QUARTERS }, (_, quarter) => {
    const sums = quarter === 0 ? "dots" : "part_dots";
    const add = `for (var j = 0u; j < QUERIES; j++) { dots[j] += part_dots[j]; }`;
    return /* wgsl */ `
        ${quarter === 0 ? "" : "for (var j = 0u; j < QUERIES; j++) { part_dots[j] = 0.0; }"}
        for (var four = ${quarter * 4}u; four < FOURS; four += ${KEY_QUARTERS * 4}u) { add_key(&${sums}, block4(part, (words_at + four) >> 2u), four); }
        ${quarter === 0 ? "" : add}`;
  });
  const quartered = /* wgsl */ `
        let words_at = base + (kv_head * 64u + token) * FOURS;
        var part_dots: array<f32, QUERIES>;${quarters.join("")}`;
  const sealed = isQuartered(shape) ? quartered : headDim % 16 === 0 ? wide : words;
  return /* wgsl */ `
        if (is_sealed) {
${sealed}
        } else {
${OPEN_KEYS}
        }`;
}

/** `add_key(dots, words, four)`: 16 channels of a key from `four` on. */
export const ADD_KEY = /* wgsl */ `
fn add_key(dots: ptr<function, array<f32, QUERIES>>, words: vec4u, four: u32) {
  for (var i = 0u; i < 4u; i++) {
    let key = signed_bytes(words[i]);
    for (var j = 0u; j < QUERIES; j++) { (*dots)[j] = add_dot(key, query[j * FOURS + four + i], (*dots)[j]); }
  }
}
`;

/** `add_value(sums, value, token)`: a token's value times its weights. */
export const ADD_VALUE = /* wgsl */ `
fn add_value(sums: ptr<function, array<vec4f, QUERIES>>, value: vec4f, token: u32) {
  for (var j = 0u; j < QUERIES; j++) { (*sums)[j] = fma(vec4f(weights[token * QUERIES + j]), value, (*sums)[j]); }
}
`;

/** Adds the weighted values of a thread's tokens to `acc`, ascending. Values of int8 are codes: their scales are in the weights. */
export function addValues(shape: AttendShape): string {
  const value =
    shape.encoding === "int8"
      ? /* wgsl */ `
        if (is_sealed) {
          value = signed_bytes(block_word(part, values_at + (kv_head * 64u + token) * FOURS + four));
        } else {
          value = open[base + ((p.kv_head_count + kv_head) * 64u + token) * FOURS + four];
        }`
      : /* wgsl */ `
        let offset = ((p.kv_head_count + kv_head) * 64u + token) * FOURS + four;
        if (is_sealed) { value = sealed4(part, base, offset); } else { value = open[base + offset]; }`;
  return /* wgsl */ `
      let token_end = select(0u, min(last_token + 1u, token_first + TOKENS_PER_GROUP), token_group < TOKEN_GROUPS);
      for (var token = token_first; token < token_end; token++) {
        if (((select(info.x, info.y, token >= 32u) >> (token & 31u)) & 1u) == 0u) { continue; }
        var value: vec4f;
${value}
        add_value(&acc, value, token);
      }`;
}
