/** Plain files in a tar (ustar): what any tool can list and unpack. */
import { assert } from "../../protocol/assert.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { UsageError } from "../usage-error.ts";

const BLOCK_BYTES = 512;
const NAME_BYTES = 100;
const PREFIX_BYTES = 155;
/** No engine writes a larger object: it would not fit into what may wait to be written. */
const FILE_BYTES_MAX = LIMITS.writeBehindBytesMax;

/** One file. */
export interface TarFile {
  name: string;
  bytes: Uint8Array;
}

/** A file's header and content, padded; after the last comes {@link TAR_END}. Names are ASCII; those over 100 characters are split at a slash. */
export function tarEntry(file: TarFile): Uint8Array {
  const cut = file.name.length <= NAME_BYTES ? -1 : file.name.indexOf("/", file.name.length - NAME_BYTES - 1);
  const [prefix, name] = cut === -1 ? ["", file.name] : [file.name.slice(0, cut), file.name.slice(cut + 1)];
  assert(name.length <= NAME_BYTES && prefix.length <= PREFIX_BYTES, "tar: a name that does not fit");
  const size = file.bytes.byteLength;
  const entry = Buffer.alloc(BLOCK_BYTES + Math.ceil(size / BLOCK_BYTES) * BLOCK_BYTES);
  entry.write(name, 0, "latin1");
  entry.write("0000600\0", 100, "latin1");
  entry.write("0000000\0", 108, "latin1");
  entry.write("0000000\0", 116, "latin1");
  entry.write(`${size.toString(8).padStart(11, "0")}\0`, 124, "latin1");
  entry.write(`${"0".repeat(11)}\0`, 136, "latin1");
  entry.write("0", 156, "latin1");
  entry.write("ustar\x0000", 257, "latin1");
  entry.write(prefix, 345, "latin1");
  entry.write(`${checksum(entry).toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  entry.set(file.bytes, BLOCK_BYTES);
  return entry;
}

/** What ends an archive. */
export const TAR_END: Uint8Array = new Uint8Array(2 * BLOCK_BYTES);

/**
 * The files of an archive as its bytes arrive; other entries than files are passed over.
 * @throws {UsageError} for what is no archive, is cut, or holds a file larger than any object of a store.
 */
export async function* readTar(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<TarFile> {
  const input = new Input(chunks);
  for (;;) {
    const header = await input.take(BLOCK_BYTES);
    if (header.every((byte) => byte === 0)) return;
    const isArchive =
      field(header, 257, 5) === "ustar" && Number.parseInt(field(header, 148, 8), 8) === checksum(header);
    const size = Number.parseInt(field(header, 124, 12), 8);
    if (!isArchive || !Number.isSafeInteger(size) || size < 0)
      throw new UsageError("this is not a session archive (tar)");
    if (size > FILE_BYTES_MAX)
      throw new UsageError(`the archive holds a file of ${size} bytes; at most ${FILE_BYTES_MAX} are taken`);
    const prefix = field(header, 345, PREFIX_BYTES);
    const name = (prefix === "" ? "" : `${prefix}/`) + field(header, 0, NAME_BYTES);
    const bytes = (await input.take(Math.ceil(size / BLOCK_BYTES) * BLOCK_BYTES)).slice(0, size);
    const type = header[156];
    if (type === 0 || type === 0x30) yield { name, bytes };
  }
}

function field(header: Uint8Array, offset: number, bytes: number): string {
  const text = Buffer.from(header.subarray(offset, offset + bytes)).toString("latin1");
  const end = text.indexOf("\0");
  return (end === -1 ? text : text.slice(0, end)).trim();
}

/** Sum of the header's bytes with its own field as spaces. */
function checksum(header: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < BLOCK_BYTES; at++) sum += at >= 148 && at < 156 ? 0x20 : (header[at] as number);
  return sum;
}

class Input {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #held = new Uint8Array(0);

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  async take(bytes: number): Promise<Uint8Array> {
    const parts = [this.#held];
    let held = this.#held.byteLength;
    while (held < bytes) {
      const { done, value } = await this.#chunks.next();
      if (done === true) throw new UsageError("the archive is cut short");
      parts.push(new Uint8Array(value));
      held += value.byteLength;
    }
    const all = new Uint8Array(Buffer.concat(parts));
    this.#held = all.slice(bytes);
    return all.subarray(0, bytes);
  }
}
