/**
 * GPT-2's printable alphabet for bytes, in which byte-level vocabularies are written: printable Latin-1 stands for itself,
 * the other 68 bytes for U+0100 onwards, in order.
 */
const PRINTABLE: readonly (readonly [number, number])[] = [
  [0x21, 0x7e],
  [0xa1, 0xac],
  [0xae, 0xff],
];

const isPrintable = (byte: number): boolean => PRINTABLE.some(([first, last]) => byte >= first && byte <= last);

/** The character (one UTF-16 unit, below U+0144) of each byte. */
export const BYTE_TO_CHAR: readonly string[] = buildByteToChar();

const CHAR_TO_BYTE: ReadonlyMap<string, number> = new Map(BYTE_TO_CHAR.map((char, byte) => [char, byte]));

function buildByteToChar(): string[] {
  let spare = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : spare++));
}

/** The bytes that a token of a byte-level vocabulary stands for, or undefined when it is not written in the alphabet. */
export function tokenToBytes(token: string): Uint8Array | undefined {
  const bytes = new Uint8Array(token.length);
  for (let index = 0; index < token.length; index++) {
    const byte = CHAR_TO_BYTE.get(token.charAt(index));
    if (byte === undefined) return undefined;
    bytes[index] = byte;
  }
  return bytes;
}
