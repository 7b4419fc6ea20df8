/** Bytes of any length under a name in an object's key-value storage, which takes values up to 2 MB. */

const PART_BYTES = 1024 * 1024;

/** The bytes by key, as they are to be put: all of them at once, or a reader may find half of them. */
export function partsOf(name: string, bytes: Uint8Array): Record<string, Uint8Array> {
  const parts: Record<string, Uint8Array> = {};
  for (let start = 0; start === 0 || start < bytes.byteLength; start += PART_BYTES) {
    parts[partKey(name, start / PART_BYTES)] = bytes.slice(start, start + PART_BYTES);
  }
  return parts;
}

/** What was put; undefined when there is nothing. */
export function readParts(storage: DurableObjectStorage, name: string): Uint8Array | undefined {
  const parts: Uint8Array[] = [];
  for (let part = storage.kv.get<Uint8Array>(partKey(name, 0)); part !== undefined; ) {
    parts.push(part);
    part = storage.kv.get<Uint8Array>(partKey(name, parts.length));
  }
  const [only] = parts;
  return parts.length > 1 ? concatBytes(parts) : only;
}

/** Forgets what was put; true when there was anything. */
export function dropParts(storage: DurableObjectStorage, name: string): boolean {
  let index = 0;
  while (storage.kv.get(partKey(name, index)) !== undefined) storage.kv.delete(partKey(name, index++));
  return index > 0;
}

/** One after the other; the only one as it is. */
export function concatBytes(parts: readonly Uint8Array[]): Uint8Array {
  const [only] = parts;
  if (parts.length === 1 && only) return only;
  const whole = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.byteLength;
  }
  return whole;
}

function partKey(name: string, index: number): string {
  return `${name}/${String(index).padStart(4, "0")}`;
}
