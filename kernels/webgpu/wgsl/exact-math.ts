/**
 * Arithmetic that every GPU must do to the bit. WGSL lets a division be off by 2.5 units of the last place and a multiply-add be fused or
 * not; codes and scales of sealed blocks must not depend on that.
 */

/**
 * `divide(a, b)`: a / b rounded to nearest even, for finite a and normal b > 0; results below the normal range become 0. By integers: the
 * mantissas' quotient has 24 bits, seven at a time.
 * `nearest(x, scale)`: the integer nearest to x / scale, halves to even, 0 where the scale (not negative) is 0; `int8_code`: -127..127. The GPU's own quotient decides where it lies off the middle between two
 * integers by more than it can be wrong (2.5 units of the last place of at most 1000: 2e-4).
 */
export const EXACT_DIVIDE = /* wgsl */ `
fn divide(a: f32, b: f32) -> f32 {
  let bits = bitcast<u32>(a);
  let sign = bits & 0x80000000u;
  let exponent_a = (bits >> 23u) & 0xffu;
  let divisor = bitcast<u32>(b);
  let exponent_b = (divisor >> 23u) & 0xffu;
  if (exponent_a == 0u || exponent_b == 0u || exponent_b == 255u) { return 0.0; }
  if (exponent_a == 255u) { return a; }
  var mantissa = (bits & 0x7fffffu) | 0x800000u;
  let by = (divisor & 0x7fffffu) | 0x800000u;
  var exponent = i32(exponent_a) - i32(exponent_b) + 127;
  if (mantissa < by) {
    mantissa <<= 1u;
    exponent -= 1;
  }
  var quotient = 1u;
  var rest = mantissa - by;
  for (var digit = 0u; digit < 3u; digit++) {
    rest <<= 7u;
    let step = rest / by;
    quotient = (quotient << 7u) | step;
    rest -= step * by;
  }
  rest <<= 2u;
  let last = rest / by;
  quotient = (quotient << 2u) | last;
  rest -= last * by;
  let twice = rest << 1u;
  if (twice > by || (twice == by && (quotient & 1u) == 1u)) { quotient += 1u; }
  if (exponent <= 0) { return 0.0; }
  return bitcast<f32>(sign | ((u32(exponent) << 23u) + (quotient - 0x800000u)));
}
fn nearest(x: f32, scale: f32) -> f32 {
  if (scale == 0.0) { return 0.0; }
  let quick = x / scale;
  let size = abs(quick);
  let exponent = (bitcast<u32>(scale) >> 23u) & 0xffu;
  if (exponent - 3u < 248u && size < 1000.0 && abs(fract(size) - 0.5) > 0.001) { return round(quick); }
  return round(divide(x, scale));
}
fn int8_code(x: f32, scale: f32) -> i32 { return i32(clamp(nearest(x, scale), -127.0, 127.0)); }
`;

/** `rounded(x)`: x, but the compiler cannot see through it, so that a product is rounded before it is added. */
export const ROUNDED = /* wgsl */ `
fn rounded(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ p.zero); }
`;

/** `is_nan(x)`, `is_finite(x)`: by bits, because compilers may assume that there are neither NaN nor infinity. */
export const FLOAT_BITS = /* wgsl */ `
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn is_finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }
`;

/**
 * `sortable(x)`: a u32 that orders as x does; NaN as -Infinity, -0 as 0. `unsorted(key)`: back. The least key of a number is that of
 * -Infinity, 0x007fffff.
 */
export const SORTABLE = /* wgsl */ `
fn sortable(x: f32) -> u32 {
  var bits = bitcast<u32>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) { bits = 0xff800000u; }
  if (bits == 0x80000000u) { bits = 0u; }
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}
fn unsorted(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}
`;

/**
 * `signed_codes(word)`, `signed_bytes(word)`: four int8 codes, as i32 and as f32; `pack_bytes`: back. To f32 without a conversion, of which a GPU may do few at
 * a time: a code + 128 is put into the mantissa of 2^23 or, a byte higher, of 2^15, and what is too much is taken off. Exact.
 */
export const SIGNED_BYTES = /* wgsl */ `
fn signed_codes(word: u32) -> vec4i {
  return vec4i(vec4u(word << 24u, word << 16u, word << 8u, word)) >> vec4u(24u);
}
fn signed_bytes(word: u32) -> vec4f {
  let both = vec2u(word, word >> 16u);
  let low = bitcast<vec2f>((both & vec2u(0xffu)) ^ vec2u(0x4b000080u)) - vec2f(8388736.0);
  let high = bitcast<vec2f>((both & vec2u(0xff00u)) ^ vec2u(0x47008000u)) - vec2f(32896.0);
  return vec4f(low.x, high.x, low.y, high.y);
}
fn pack_bytes(codes: vec4i) -> u32 {
  let b = vec4u(codes) & vec4u(0xffu);
  return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}
`;
