/** `rows` rows of `width` elements; `eps` is added to the mean square. */
export interface RmsNormShape {
  rows: number;
  width: number;
  eps: number;
}

/** `out = x / sqrt(mean(x^2) + eps) * weight` per row; every operation rounded to f32, channels ascending. */
export function rmsNorm(out: Float32Array, x: Float32Array, weight: Float32Array, shape: RmsNormShape): void {
  const { rows, width, eps } = shape;
  for (let row = 0; row < rows; row++) {
    const start = row * width;
    let squares = 0;
    for (let channel = 0; channel < width; channel++) {
      const value = x[start + channel] as number;
      squares = Math.fround(squares + Math.fround(value * value));
    }
    const mean = Math.fround(squares / width);
    const root = Math.fround(Math.sqrt(Math.fround(mean + Math.fround(eps))));
    for (let channel = 0; channel < width; channel++) {
      const normal = Math.fround((x[start + channel] as number) / root);
      out[start + channel] = normal * (weight[channel] as number);
    }
  }
}
