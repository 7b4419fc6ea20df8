// int8 KV back to f32: f32(code * scale), the value that both attention and summaries see.

/** Four codes as f32: for the last channels, beyond which nothing may be read. */
// @ts-ignore: decorator
@inline
function fourCodes(at: usize): v128 {
  return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(at))));
}

/** Tokens [first, end) of `[64][headDim]` keys of one head, one scale per channel; `out` is the place of token 0. */
export function decodeKeys(out: usize, codes: usize, scales: usize, headDim: usize, first: usize, end: usize): void {
  for (let token = first; token < end; token++) {
    const from = codes + token * headDim;
    const to = out + token * headDim * 4;
    let channel: usize = 0;
    for (; channel + 8 <= headDim; channel += 8) {
      const codes8 = v128.load8x8_s(from + channel);
      const scale = scales + channel * 4;
      const low = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(codes8));
      const high = f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(codes8));
      v128.store(to + channel * 4, f32x4.mul(low, v128.load(scale)));
      v128.store(to + channel * 4, f32x4.mul(high, v128.load(scale, 16)), 16);
    }
    if (channel < headDim) v128.store(to + channel * 4, f32x4.mul(fourCodes(from + channel), v128.load(scales + channel * 4)));
  }
}
