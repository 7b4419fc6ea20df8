/**
 * Remembers the ids of recent pieces, in two generations: when the young one is full it becomes the old one and the old one
 * goes. At most `2 * countMax` entries are held, whatever the texts are.
 */
export class PieceCache {
  readonly #countMax: number;
  #young = new Map<string, readonly number[]>();
  #old = new Map<string, readonly number[]>();

  constructor(countMax: number) {
    this.#countMax = countMax;
  }

  get(piece: string): readonly number[] | undefined {
    const young = this.#young.get(piece);
    if (young !== undefined) return young;
    const old = this.#old.get(piece);
    if (old !== undefined) this.set(piece, old);
    return old;
  }

  set(piece: string, ids: readonly number[]): void {
    if (this.#young.size >= this.#countMax) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    this.#young.set(piece, ids);
  }
}
