/** `out = silu(gate) * up` over `count` elements; silu(g) = g / (1 + exp(-g)) in f64, rounded once. `out` may be `gate`. */
export function siluMul(out: Float32Array, gate: Float32Array, up: Float32Array, count: number): void {
  for (let index = 0; index < count; index++) {
    const value = gate[index] as number;
    out[index] = Math.fround(value / (1 + Math.exp(-value))) * (up[index] as number);
  }
}
