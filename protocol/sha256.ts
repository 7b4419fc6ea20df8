/**
 * SHA-256 (FIPS 180-4) at once and without a promise, for runtimes whose own digest is asynchronous: naming the blocks of a prompt takes thousands of
 * small digests in a row. Not for secrets: its time may depend on the data.
 */

const ROUND_CONSTANTS = roundConstants();

/** Digests messages one after the other; one instance holds its working memory and may be used again and again. */
export class Sha256 {
  readonly #state = new Uint32Array(8);
  readonly #words = new Uint32Array(64);
  #padded = new Uint8Array(64 * 8);

  /** The 32 bytes of the digest of `parts`, one after the other. */
  digest(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
    let byteCount = 0;
    for (const part of parts) byteCount += part.byteLength;
    const paddedCount = (((byteCount + 8) >> 6) + 1) << 6;
    if (this.#padded.byteLength < paddedCount) this.#padded = new Uint8Array(paddedCount);
    const padded = this.#padded.fill(0, byteCount, paddedCount);
    let offset = 0;
    for (const part of parts) {
      padded.set(part, offset);
      offset += part.byteLength;
    }
    padded[byteCount] = 0x80;
    const view = new DataView(padded.buffer);
    view.setUint32(paddedCount - 8, Math.floor(byteCount / 2 ** 29));
    view.setUint32(paddedCount - 4, (byteCount << 3) >>> 0);
    this.#state.set(INITIAL_STATE);
    for (let at = 0; at < paddedCount; at += 64) this.#compress(view, at);
    const digest = new Uint8Array(32);
    const out = new DataView(digest.buffer);
    for (let index = 0; index < 8; index++) out.setUint32(4 * index, this.#state[index] as number);
    return digest;
  }

  #compress(view: DataView, at: number): void {
    const w = this.#words;
    for (let t = 0; t < 16; t++) w[t] = view.getUint32(at + 4 * t);
    for (let t = 16; t < 64; t++) {
      const x = w[t - 15] as number;
      const y = w[t - 2] as number;
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[t] = ((w[t - 16] as number) + s0 + (w[t - 7] as number) + s1) | 0;
    }
    const state = this.#state;
    let a = state[0] as number;
    let b = state[1] as number;
    let c = state[2] as number;
    let d = state[3] as number;
    let e = state[4] as number;
    let f = state[5] as number;
    let g = state[6] as number;
    let h = state[7] as number;
    for (let t = 0; t < 64; t++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + (ROUND_CONSTANTS[t] as number) + (w[t] as number)) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    state[0] = (state[0] as number) + a;
    state[1] = (state[1] as number) + b;
    state[2] = (state[2] as number) + c;
    state[3] = (state[3] as number) + d;
    state[4] = (state[4] as number) + e;
    state[5] = (state[5] as number) + f;
    state[6] = (state[6] as number) + g;
    state[7] = (state[7] as number) + h;
  }
}

const INITIAL_STATE = Uint32Array.of(
  0x6a09e667,
  0xbb67ae85,
  0x3c6ef372,
  0xa54ff53a,
  0x510e527f,
  0x9b05688c,
  0x1f83d9ab,
  0x5be0cd19,
);

/** First 32 bits of the fractional parts of the cube roots of the first 64 primes. */
function roundConstants(): Uint32Array {
  const constants: number[] = [];
  for (let candidate = 2; constants.length < 64; candidate++) {
    let isPrime = true;
    for (let divisor = 2; divisor * divisor <= candidate; divisor++) isPrime &&= candidate % divisor !== 0;
    if (isPrime) constants.push(fractionOfCubeRoot(candidate));
  }
  return Uint32Array.from(constants);
}

/** floor(cbrt(n) * 2^32) mod 2^32, exactly: a double has too few bits. */
function fractionOfCubeRoot(n: number): number {
  const target = BigInt(n) << 96n;
  let root = BigInt(Math.floor(Math.cbrt(n) * 2 ** 32));
  while (root ** 3n > target) root -= 1n;
  while ((root + 1n) ** 3n <= target) root += 1n;
  return Number(root & 0xffff_ffffn);
}
