/** Finds stop strings in a stream of text, wherever the borders between its pieces fall. */

/** What a piece of text sets free. */
export interface ScannedText {
  /** Text that cannot be part of a stop string any more. */
  released: string;
  /** A stop string was completed: `released` ends where it began, and nothing comes after. */
  stopped: boolean;
}

/** Holds back the shortest end of the text that could still become a stop string, and nothing else. */
export class StopScanner {
  readonly #stops: readonly string[];
  readonly #lengthMax: number;
  #held = "";

  constructor(stops: readonly string[]) {
    this.#stops = stops;
    this.#lengthMax = Math.max(0, ...stops.map((stop) => stop.length));
  }

  /** Takes the next piece of text. */
  push(text: string): ScannedText {
    if (this.#stops.length === 0) return { released: text, stopped: false };
    const buffer = this.#held + text;
    const at = this.#earliest(buffer);
    if (at !== undefined) {
      this.#held = "";
      return { released: buffer.slice(0, at), stopped: true };
    }
    const heldLength = this.#heldLength(buffer);
    this.#held = buffer.slice(buffer.length - heldLength);
    return { released: buffer.slice(0, buffer.length - heldLength), stopped: false };
  }

  /** The end of the text: what was held back is free. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  #earliest(buffer: string): number | undefined {
    const found = this.#stops.map((stop) => buffer.indexOf(stop)).filter((index) => index >= 0);
    return found.length === 0 ? undefined : Math.min(...found);
  }

  #heldLength(buffer: string): number {
    for (let length = Math.min(this.#lengthMax - 1, buffer.length); length > 0; length--) {
      const end = buffer.slice(buffer.length - length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
