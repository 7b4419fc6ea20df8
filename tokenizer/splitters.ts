/** How a text is cut into pieces: splitters work on ranges of one text and write down where pieces end. */

/** A text both ways: patterns need the string, scanners and tables the units. */
export interface Text {
  string: string;
  /** UTF-16 code units of `string`; longer where the buffer is used again. */
  units: Uint16Array;
  length: number;
}

/** Ends of pieces in order. Grows as needed. */
export class Bounds {
  ends = new Int32Array(1024);
  count = 0;

  /** Appends an end; one that makes an empty piece is left out. */
  push(end: number): void {
    if (end === (this.count === 0 ? 0 : this.ends[this.count - 1])) return;
    if (this.count === this.ends.length) {
      const grown = new Int32Array(this.count * 2);
      grown.set(this.ends);
      this.ends = grown;
    }
    this.ends[this.count++] = end;
  }
}

/** One step of a pre-tokenizer. */
export interface Splitter {
  /** Appends the ends of the pieces of a non-empty range; the last one is `range.end`. Pieces cover the range. */
  split(text: Text, range: { from: number; end: number }, out: Bounds): void;
}

/** Runs every step within the pieces of the step before it. Without steps a text is one piece. */
export function splitInSteps(steps: readonly Splitter[], text: Text): Bounds {
  let bounds = new Bounds();
  bounds.push(text.length);
  for (const step of steps) {
    const finer = new Bounds();
    let from = 0;
    for (let index = 0; index < bounds.count; index++) {
      const end = bounds.ends[index] as number;
      step.split(text, { from, end }, finer);
      from = end;
    }
    bounds = finer;
  }
  return bounds;
}

/** What becomes of the matches of a pattern. */
export type SplitBehavior = "Isolated" | "Contiguous" | "MergedWithPrevious" | "MergedWithNext";

/** Cuts at the matches of a regular expression (flags `gu`). Each range is matched as if it were the whole text. */
export class PatternSplitter implements Splitter {
  readonly #pattern: RegExp;
  readonly #behavior: SplitBehavior;
  readonly #invert: boolean;

  constructor(pattern: RegExp, options: { behavior: SplitBehavior; invert: boolean }) {
    this.#pattern = pattern;
    this.#behavior = options.behavior;
    this.#invert = options.invert;
  }

  split(text: Text, { from, end }: { from: number; end: number }, out: Bounds): void {
    const whole = from === 0 && end === text.string.length;
    const string = whole ? text.string : text.string.slice(from, end);
    let copied = 0;
    let wasMatch: boolean | undefined;
    /** Decides about the border between the part before and a part that begins here. */
    const border = (at: number, isMatch: boolean): void => {
      if (wasMatch !== undefined && this.#cuts(wasMatch, isMatch)) out.push(from + at);
      wasMatch = isMatch;
    };
    for (const match of string.matchAll(this.#pattern)) {
      if (match.index > copied) border(copied, this.#invert);
      border(match.index, !this.#invert);
      copied = match.index + match[0].length;
    }
    if (copied < string.length) border(copied, this.#invert);
    out.push(end);
  }

  #cuts(before: boolean, after: boolean): boolean {
    switch (this.#behavior) {
      case "Isolated":
        return true;
      case "Contiguous":
        return before !== after;
      case "MergedWithPrevious":
        return before || !after;
      case "MergedWithNext":
        return !before || after;
    }
  }
}

/** Cuts before one character: before each, or (`runs`) before the first of a run only. */
export class BorderSplitter implements Splitter {
  readonly #unit: number;
  readonly #runs: boolean;

  constructor(char: string, options: { runs: boolean }) {
    this.#unit = char.charCodeAt(0);
    this.#runs = options.runs;
  }

  split({ units }: Text, { from, end }: { from: number; end: number }, out: Bounds): void {
    for (let at = from + 1; at < end; at++) {
      if (units[at] === this.#unit && !(this.#runs && units[at - 1] === this.#unit)) out.push(at);
    }
    out.push(end);
  }
}
