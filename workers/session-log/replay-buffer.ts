/** The events of one turn as frames, numbered from 0, so that a listener can begin anywhere in what is still held. */

/** Holds frames `[first, end)`. Keeps the arrays that it is given. */
export class ReplayBuffer {
  #frames: Uint8Array[] = [];
  #first = 0;
  #bytes = 0;
  #saidBytes = 0;

  /** @param first number of the first frame that will be pushed */
  constructor(first = 0) {
    this.#first = first;
  }

  /** Number of the oldest frame that is held. */
  get first(): number {
    return this.#first;
  }

  /** Number that the next frame will have. */
  get end(): number {
    return this.#first + this.#frames.length;
  }

  /** Bytes of all frames held. */
  get bytes(): number {
    return this.#bytes;
  }

  push(frame: Uint8Array): void {
    this.#frames.push(frame);
    this.#bytes += frame.byteLength;
    this.#saidBytes += frame.byteLength;
  }

  /** Bytes of all frames ever pushed. */
  get saidBytes(): number {
    return this.#saidBytes;
  }

  /** The frames from number `from` on, at least {@link first}. */
  since(from: number): readonly Uint8Array[] {
    return this.#frames.slice(Math.max(0, from - this.#first));
  }

  /** Forgets every frame below `before`. */
  dropBefore(before: number): void {
    const count = Math.min(this.#frames.length, before - this.#first);
    if (count <= 0) return;
    for (const frame of this.#frames.splice(0, count)) this.#bytes -= frame.byteLength;
    this.#first += count;
  }

  /** Forgets the oldest frames until at most `bytesMax` and `countMax` are left, but none from `keepFrom` on. */
  trim(bytesMax: number, countMax: number, keepFrom: number): void {
    let before = this.#first;
    let bytes = this.#bytes;
    for (const frame of this.#frames) {
      if ((bytes <= bytesMax && this.end - before <= countMax) || before >= keepFrom) break;
      bytes -= frame.byteLength;
      before += 1;
    }
    this.dropBefore(before);
  }
}

/** The frames one after the other. */
export function concatFrames(frames: readonly Uint8Array[]): Uint8Array {
  const [only] = frames;
  if (frames.length === 1 && only) return only;
  const whole = new Uint8Array(frames.reduce((sum, frame) => sum + frame.byteLength, 0));
  let offset = 0;
  for (const frame of frames) {
    whole.set(frame, offset);
    offset += frame.byteLength;
  }
  return whole;
}
