/**
 * The GGUF format (versions 2 and 3, little-endian): "GGUF", version, tensor and metadata counts, typed key-value pairs, tensor entries
 * (name, dimensions innermost first, GGML type, offset), then the tensors' bytes from the next multiple of `general.alignment` on.
 * A file is somebody's download: every length is checked against the file before it is used.
 */
import type { FileHandle } from "node:fs/promises";
import { basename } from "node:path";
import { assert } from "../protocol/assert.ts";
import { GGUF_ENCODINGS, type GgufEncoding, ggufTypeName } from "./gguf-blocks.ts";
import { GgufCursor, type GgufValue } from "./gguf-cursor.ts";
import type { RowRange } from "./tensor-source.ts";
import { failFile, openWeightsFile, readFully } from "./weights-file.ts";

const MAGIC = 0x46554747;
const DIMENSIONS_MAX = 4;
/** Bytes read and decoded at a time, about. */
const CHUNK_BYTES = 4 * 1024 * 1024;

/** Where a tensor lies, and how. */
export interface GgufTensor {
  /** Outermost first, as everywhere else here. */
  shape: readonly number[];
  encoding: GgufEncoding;
  /** From the start of the file. */
  offset: number;
  bytes: number;
}

/** An open file; the caller closes it. */
export interface GgufFile {
  /** For messages. */
  readonly name: string;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /** Rows of a tensor, decoded; a fresh array. @throws {QuireError} `invalid_request` when the file became shorter. */
  readRows(tensor: GgufTensor, rows: RowRange): Promise<Float32Array>;
  close(): Promise<void>;
}

/**
 * Opens a file and checks everything in front of the tensors, and that each tensor lies inside the file without overlap.
 * @throws {QuireError} `invalid_request`, one line with the file's name: missing, truncated, malformed, or a tensor encoding that is unsupported.
 */
export async function openGguf(path: string): Promise<GgufFile> {
  const name = basename(path);
  const file = await openWeightsFile(path, name);
  try {
    const { size } = await file.stat();
    const { metadata, tensors } = readHeader(new GgufCursor({ name, descriptor: file.fd, fileBytes: size }), name);
    return {
      name,
      metadata,
      tensors,
      readRows: (tensor, rows) => readRows(name, file, tensor, rows),
      close: () => file.close(),
    };
  } catch (thrown) {
    await file.close();
    throw thrown;
  }
}

function readHeader(cursor: GgufCursor, name: string) {
  if (cursor.u32() !== MAGIC) failFile(name, "is not a GGUF file");
  const version = cursor.u32();
  if (version !== 2 && version !== 3) failFile(name, `GGUF version ${version} is not supported, only 2 and 3`);
  const tensorCount = cursor.count("tensor", 24);
  const metadataCount = cursor.count("metadata", 13);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < metadataCount; i++) {
    const key = cursor.string();
    if (metadata.has(key)) failFile(name, `key ${key.slice(0, 80)} occurs twice`);
    metadata.set(key, cursor.value(cursor.u32()));
  }
  const parts = metadata.get("split.count");
  if (typeof parts === "number" && parts > 1)
    failFile(name, `is one of ${parts} parts: join them (gguf-split --merge)`);
  const entries = Array.from({ length: tensorCount }, () => readEntry(cursor, name));
  return { metadata, tensors: placeTensors(entries, { name, cursor, alignment: alignmentOf(metadata, name) }) };
}

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, name: string): number {
  const alignment = metadata.get("general.alignment") ?? 32;
  const isPower = typeof alignment === "number" && alignment >= 8 && Number.isInteger(Math.log2(alignment));
  if (!isPower || alignment > 2 ** 20) failFile(name, `general.alignment ${String(alignment)} is not a power of two`);
  return alignment;
}

interface Entry {
  tensor: string;
  shape: number[];
  encoding: GgufEncoding;
  /** From the start of the data. */
  start: number;
}

function readEntry(cursor: GgufCursor, name: string): Entry {
  const tensor = cursor.string();
  const label = `tensor ${tensor.slice(0, 120)}`;
  const dimensionCount = cursor.u32();
  if (dimensionCount < 1 || dimensionCount > DIMENSIONS_MAX)
    failFile(name, `${label} has ${dimensionCount} dimensions`);
  const shape = Array.from({ length: dimensionCount }, () => cursor.u64()).reverse();
  const type = cursor.u32();
  const start = cursor.u64();
  const encoding = GGUF_ENCODINGS[type];
  if (encoding === undefined) {
    const known = Object.values(GGUF_ENCODINGS).map((each) => each.name);
    failFile(name, `${label} is ${ggufTypeName(type)}, only ${known.join(", ")} are supported`);
  }
  if (shape.at(-1)! % encoding.blockValues !== 0) {
    failFile(name, `${label} has rows of ${shape.at(-1)} values, not a multiple of ${encoding.blockValues}`);
  }
  return { tensor, shape, encoding, start };
}

function placeTensors(
  entries: readonly Entry[],
  { name, cursor, alignment }: { name: string; cursor: GgufCursor; alignment: number },
): Map<string, GgufTensor> {
  const dataOffset = Math.ceil(cursor.position / alignment) * alignment;
  const tensors = new Map<string, GgufTensor>();
  let end = dataOffset;
  for (const { tensor, shape, encoding, start } of entries.toSorted((a, b) => a.start - b.start)) {
    const label = `tensor ${tensor.slice(0, 120)}`;
    if (tensors.has(tensor)) failFile(name, `${label} occurs twice`);
    if (start % alignment !== 0) failFile(name, `${label} is not aligned`);
    const offset = dataOffset + start;
    const bytes = shape.reduce((a, b) => a * b, encoding.blockBytes / encoding.blockValues);
    if (offset < end) failFile(name, `${label} overlaps another`);
    end = offset + bytes;
    if (!(end <= cursor.fileBytes)) failFile(name, `is truncated: ${label} ends beyond the file`);
    tensors.set(tensor, { shape, encoding, offset, bytes });
  }
  return tensors;
}

async function readRows(
  name: string,
  file: FileHandle,
  tensor: GgufTensor,
  { first, count }: RowRange,
): Promise<Float32Array> {
  const { shape, encoding, offset, bytes } = tensor;
  const rowCount = shape.length === 1 ? 1 : shape[0]!;
  assert(first >= 0 && first + count <= rowCount, `rows beyond a tensor of ${rowCount}`);
  const rowBytes = bytes / rowCount;
  const rowValues = (rowBytes / encoding.blockBytes) * encoding.blockValues;
  const out = new Float32Array(count * rowValues);
  const chunkRows = Math.max(1, Math.floor(CHUNK_BYTES / rowBytes));
  const chunk = new Uint8Array(Math.min(chunkRows, count) * rowBytes);
  for (let row = 0; row < count; row += chunkRows) {
    const part = chunk.subarray(0, Math.min(chunkRows, count - row) * rowBytes);
    await readFully(name, file, part, offset + (first + row) * rowBytes);
    encoding.decode(part, out.subarray(row * rowValues));
  }
  return out;
}
