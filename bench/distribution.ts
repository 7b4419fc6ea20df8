/** Distributions of the next token, from logits. */

/** KL(theirs, ours) of log probabilities, in nats; rounding never makes it negative. `probabilities`: theirs, for who compares often. */
export function divergenceOf(
  theirs: Float64Array,
  ours: Float64Array,
  probabilities: Float64Array = theirs.map(Math.exp),
): number {
  let divergence = 0;
  for (let id = 0; id < theirs.length; id++) {
    divergence += (probabilities[id] as number) * ((theirs[id] as number) - (ours[id] as number));
  }
  return Math.max(0, divergence);
}

/** Log probabilities of raw logits. */
export function logSoftmax(logits: Float32Array): Float64Array {
  let max = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) max = Math.max(max, logits[id] as number);
  let sum = 0;
  for (let id = 0; id < logits.length; id++) sum += Math.exp((logits[id] as number) - max);
  const shift = max + Math.log(sum);
  const logs = new Float64Array(logits.length);
  for (let id = 0; id < logits.length; id++) logs[id] = (logits[id] as number) - shift;
  return logs;
}

/** Index of the largest value, the first of equals. */
export function best(values: Float64Array): number {
  let top = 0;
  for (let id = 1; id < values.length; id++) if ((values[id] as number) > (values[top] as number)) top = id;
  return top;
}
