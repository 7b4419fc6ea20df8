/**
 * The file of a compiled tokenizer, `docs/tokenizer-format.md`: little-endian words and bytes that are used where they lie.
 * Reading checks everything that a look-up relies on; it copies and parses nothing but the settings.
 */
import { QuireError } from "../protocol/errors.ts";
import { type BpeTables, checkTables, VOCABULARY_SIZE_MAX } from "./bpe-tables.ts";
import { asObject } from "./json.ts";
import { murmur3 } from "./murmur3.ts";

/** "QTOK" in the file. */
const MAGIC = 0x4b4f5451;
/** Version of the format. */
const VERSION = 1;
const KINDS = ["bytes", "characters"] as const;
const SECTIONS = [
  "settings",
  "byteIds",
  "charSlots",
  "mergeSlots",
  "tokenSlots",
  "textOffsets",
  "texts",
  "contentOffsets",
  "contents",
] as const;
const SECTION_TABLE_AT = 6;
const HEADER_WORDS = SECTION_TABLE_AT + SECTIONS.length * 2;
/** The checksum covers the file from here. */
const CHECKED_FROM_BYTES = 16;
const ALIGNMENT_BYTES = 8;

type SectionName = (typeof SECTIONS)[number];

/** Writes compiled tables. Equal tables give equal bytes. */
export function writeTables(tables: BpeTables): Uint8Array<ArrayBuffer> {
  const isShared = tables.contents === tables.texts;
  const parts: Record<SectionName, Uint8Array> = {
    settings: new TextEncoder().encode(JSON.stringify(tables.settings)),
    byteIds: bytesOf(tables.byteIds),
    charSlots: bytesOf(tables.charSlots),
    mergeSlots: bytesOf(tables.mergeSlots),
    tokenSlots: bytesOf(tables.tokenSlots),
    textOffsets: bytesOf(tables.texts.offsets),
    texts: tables.texts.bytes,
    contentOffsets: isShared ? new Uint8Array(0) : bytesOf(tables.contents.offsets),
    contents: isShared ? new Uint8Array(0) : tables.contents.bytes,
  };
  let length = align(HEADER_WORDS * 4);
  const places = SECTIONS.map((name) => {
    const place = { name, offset: length, length: parts[name].length };
    length = align(length + place.length);
    return place;
  });
  const file = new Uint8Array(length);
  const head = new DataView(file.buffer);
  const words = [MAGIC, VERSION, length, 0, KINDS.indexOf(tables.kind), tables.vocabularySize];
  for (const place of places) words.push(place.offset, place.length);
  for (const [index, word] of words.entries()) head.setUint32(index * 4, word, true);
  for (const { name, offset } of places) file.set(parts[name], offset);
  head.setUint32(12, murmur3(file.subarray(CHECKED_FROM_BYTES)), true);
  return file;
}

/**
 * Tables as views of `file`, which is kept and must not change. Works on little-endian machines, which are all that run this.
 * @throws {QuireError} `internal`, in one line, for a file that is cut off, damaged, of another version, or not sound.
 */
export function readTables(file: ArrayBuffer): BpeTables {
  if (file.byteLength < HEADER_WORDS * 4 || file.byteLength % 4 !== 0) throw broken("it is cut off");
  const words = new Uint32Array(file);
  const word = (index: number): number => words[index] as number;
  if (word(0) !== MAGIC) throw broken("it is something else");
  if (word(1) !== VERSION) throw broken(`it is of version ${word(1)}, not ${VERSION}: compile the tokenizer again`);
  if (word(2) !== file.byteLength) throw broken("it is cut off");
  if (word(3) !== murmur3(new Uint8Array(file, CHECKED_FROM_BYTES))) throw broken("its checksum does not match");
  const kind = KINDS[word(4)];
  const vocabularySize = word(5);
  if (kind === undefined || vocabularySize > VOCABULARY_SIZE_MAX) throw broken("its header makes no sense");

  const section = (name: SectionName): Uint8Array => {
    const at = SECTION_TABLE_AT + SECTIONS.indexOf(name) * 2;
    const offset = word(at);
    const length = word(at + 1);
    if (offset % ALIGNMENT_BYTES !== 0 || offset < HEADER_WORDS * 4 || offset + length > file.byteLength) {
      throw broken(`its section ${name} is outside of it`);
    }
    return new Uint8Array(file, offset, length);
  };
  const int32 = (name: SectionName): Int32Array => {
    const { byteOffset, byteLength } = section(name);
    if (byteLength % 4 !== 0) throw broken(`its section ${name} is not of whole words`);
    return new Int32Array(file, byteOffset, byteLength / 4);
  };
  const strings = (offsets: SectionName, bytes: SectionName) => {
    const view = int32(offsets);
    return { offsets: new Uint32Array(file, view.byteOffset, view.length), bytes: section(bytes) };
  };
  const texts = strings("textOffsets", "texts");
  const tables: BpeTables = {
    kind,
    vocabularySize,
    byteIds: int32("byteIds"),
    charSlots: int32("charSlots"),
    mergeSlots: int32("mergeSlots"),
    tokenSlots: int32("tokenSlots"),
    texts,
    contents: kind === "bytes" ? texts : strings("contentOffsets", "contents"),
    settings: readSettings(section("settings")),
  };
  checkTables(tables);
  return tables;
}

function readSettings(bytes: Uint8Array): BpeTables["settings"] {
  try {
    return asObject(JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)), "settings");
  } catch (cause) {
    throw broken("its settings are not a JSON object", cause);
  }
}

function bytesOf(words: Int32Array | Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
}

function broken(what: string, cause?: unknown): QuireError {
  return new QuireError("internal", `The compiled tokenizer cannot be used: ${what}.`, { cause });
}
