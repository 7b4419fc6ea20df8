import type { Lane } from "../kernel.ts";

/** `half_pair(word)`: the two f16 of a word as f32, exactly; by f16 in the shader where the lane has it, else unpacked. */
export function halfPair({ hasF16 }: Lane): string {
  const value = hasF16 ? "vec2f(bitcast<vec2<f16>>(word))" : "unpack2x16float(word)";
  return `fn half_pair(word: u32) -> vec2f { return ${value}; }\n`;
}
