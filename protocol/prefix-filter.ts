/**
 * Which prefixes an engine holds, in bounded bytes: a Bloom filter over the chains at every 256th token. It never misses what was added;
 * with ten bits an entry it takes one stranger in a hundred for an entry, which costs a detour and nothing else.
 */

/** A routing point is the chain behind each 256th token: what a prompt and an engine have in common is found to this grain. */
export const ROUTE_STRIDE_TOKENS = 256;

const HASH_COUNT = 7;
const BITS_PER_ENTRY = 10;

/** A prefix as routing knows it: 64 bits of its chain, mixed with its tenant's. */
export interface PrefixKey {
  high: number;
  low: number;
}

/**
 * The key of a chain (its first two big-endian words) in a namespace (hex, at least 8 digits): tenants that send the same words do not meet in a
 * filter either.
 */
export function prefixKeyOf(namespace: string, high: number, low: number): PrefixKey {
  const word = (at: number): number => Number.parseInt(namespace.slice(at, at + 8).padEnd(8, "0"), 16);
  return { high: mix(high ^ word(0)), low: mix(low ^ word(8)) };
}

/** Spreads 32 bits over all of them (the finalizer of MurmurHash3). */
function mix(value: number): number {
  let bits = Math.imul(value ^ (value >>> 16), 0x85eb_ca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2_ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}

/** Keys as they cross the wire: high and low words in turn. */
export function packPrefixKeys(keys: readonly PrefixKey[]): Uint32Array<ArrayBuffer> {
  return Uint32Array.from(keys.flatMap(({ high, low }) => [high, low]));
}

/** A set of keys that may hold strangers. */
export class PrefixFilter {
  readonly #bits: Uint8Array;

  private constructor(bits: Uint8Array) {
    this.#bits = bits;
  }

  /** The filter of `keys`, as small as it can be and at most `bytesMax` (a power of two): beyond that it takes more strangers. */
  static of(keys: readonly PrefixKey[], bytesMax: number): PrefixFilter {
    let byteCount = 16;
    while (byteCount < bytesMax && byteCount * 8 < keys.length * BITS_PER_ENTRY) byteCount *= 2;
    const filter = new PrefixFilter(new Uint8Array(byteCount));
    for (const key of keys)
      filter.#visit(key, (index, mask) => {
        filter.#bits[index] = (filter.#bits[index] as number) | mask;
        return true;
      });
    return filter;
  }

  /** Reads what {@link encode} wrote; undefined for anything else, or more than `bytesMax`. */
  static decode(text: string, bytesMax: number): PrefixFilter | undefined {
    if (text.length > Math.ceil(bytesMax / 3) * 4 || !/^[A-Za-z0-9+/]+={0,2}$/.test(text)) return undefined;
    let bytes: Uint8Array;
    try {
      bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    } catch {
      return undefined;
    }
    const isPower = bytes.length >= 16 && (bytes.length & (bytes.length - 1)) === 0;
    return isPower && bytes.length <= bytesMax ? new PrefixFilter(bytes) : undefined;
  }

  /** Base64. */
  encode(): string {
    return btoa(String.fromCharCode(...this.#bits));
  }

  /** True for every key that was added, and for few others. */
  has(high: number, low: number): boolean {
    return this.#visit({ high, low }, (index, mask) => ((this.#bits[index] as number) & mask) !== 0);
  }

  /** How many of the leading `keys` (packed) are in: those of one prompt, each a prefix of the next. Binary search: prefixes are closed downwards. */
  prefixCount(keys: Uint32Array): number {
    let low = 0;
    let high = keys.length / 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.has(keys[2 * middle - 2] as number, keys[2 * middle - 1] as number)) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Goes over the bits of a key (enhanced double hashing, Dillinger and Manolios) while `see` says so; true when it came to the end. */
  #visit(key: PrefixKey, see: (index: number, mask: number) => boolean): boolean {
    const bitMask = this.#bits.length * 8 - 1;
    let step = key.high | 1;
    let at = key.low;
    for (let hash = 0; hash < HASH_COUNT; hash++) {
      const bit = (at >>> 3) & bitMask;
      if (!see(bit >> 3, 1 << (bit & 7))) return false;
      at = (at + step) >>> 0;
      step = (step + hash) >>> 0;
    }
    return true;
  }
}
