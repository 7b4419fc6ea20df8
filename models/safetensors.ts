/**
 * The safetensors format: u64 little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the tensors'
 * bytes, row-major, little-endian, without holes. A file is somebody's download: everything in the header is checked before use.
 */
import type { FileHandle } from "node:fs/promises";
import { basename } from "node:path";
import { assert } from "../protocol/assert.ts";
import { QuireError } from "../protocol/errors.ts";
import { type RowRange, type TensorSource, tensorSizes } from "./tensor-source.ts";
import { convertBf16, convertF16, convertF32, failFile, openWeightsFile, readFully } from "./weights-file.ts";

/** The format's own limit, 100 MB. */
const HEADER_BYTES_MAX = 100_000_000;
const TENSOR_COUNT_MAX = 1_000_000;
const DTYPE_BYTES = { F32: 4, F16: 2, BF16: 2 } as const;
const CONVERT = { F32: convertF32, F16: convertF16, BF16: convertBf16 } as const;
type Dtype = keyof typeof DTYPE_BYTES;
/** Bytes read and converted at a time: one tensor is never held in two forms. */
const CHUNK_BYTES = 8 * 1024 * 1024;

interface TensorEntry {
  dtype: Dtype;
  shape: number[];
  /** From the start of the file. */
  offset: number;
  bytes: number;
}

/** A file's tensors, and what it says of itself. */
export interface SafetensorsSource extends TensorSource {
  /**
   * `__metadata__`; empty where there is none.
   * @throws {QuireError} `invalid_request` where it is not an object of texts: who only wants tensors need not care.
   */
  metadata(): ReadonlyMap<string, string>;
}

/**
 * Opens a file and checks its header: lengths inside the file, known dtypes, shapes that match their bytes, no overlap, no holes.
 * The caller closes it.
 * @throws {QuireError} `invalid_request`, one line with the file's name, when it is missing, truncated or malformed.
 */
export async function openSafetensors(path: string): Promise<SafetensorsSource> {
  const name = basename(path);
  const file = await openWeightsFile(path, name);
  try {
    const { size } = await file.stat();
    return new SafetensorsFile(name, file, parseHeader(name, await readHeader(name, file, size), size));
  } catch (thrown) {
    await file.close();
    throw thrown;
  }
}

interface Header {
  entries: ReadonlyMap<string, TensorEntry>;
  /** `__metadata__` as it stands there, unchecked. */
  metadata: unknown;
}

class SafetensorsFile implements SafetensorsSource {
  readonly #name: string;
  readonly #file: FileHandle;
  readonly #entries: ReadonlyMap<string, TensorEntry>;
  readonly #metadata: unknown;

  constructor(name: string, file: FileHandle, { entries, metadata }: Header) {
    this.#name = name;
    this.#file = file;
    this.#entries = entries;
    this.#metadata = metadata;
  }

  metadata(): ReadonlyMap<string, string> {
    const found = this.#metadata ?? {};
    if (!isObject(found) || !Object.values(found).every((value) => typeof value === "string")) {
      failFile(this.#name, "__metadata__ is not an object of texts");
    }
    return new Map(Object.entries(found as Record<string, string>));
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  shape(name: string): readonly number[] | undefined {
    return this.#entries.get(name)?.shape;
  }

  async read(name: string): Promise<Float32Array> {
    const { rowCount } = tensorSizes(this.#entry(name).shape);
    return this.readRows(name, { first: 0, count: rowCount });
  }

  async readRows(name: string, rows: RowRange): Promise<Float32Array> {
    const entry = this.#entry(name);
    const valueBytes = DTYPE_BYTES[entry.dtype];
    const { rowCount, rowValues } = tensorSizes(entry.shape);
    assert(rows.first >= 0 && rows.first + rows.count <= rowCount, `rows beyond tensor ${name}`);
    const out = new Float32Array(rows.count * rowValues);
    const bytes = out.length * valueBytes;
    const offset = entry.offset + rows.first * rowValues * valueBytes;
    const chunk = new Uint8Array(Math.min(CHUNK_BYTES, bytes));
    for (let done = 0; done < bytes; done += chunk.byteLength) {
      const part = chunk.subarray(0, Math.min(chunk.byteLength, bytes - done));
      await readFully(this.#name, this.#file, part, offset + done);
      CONVERT[entry.dtype](part, out.subarray(done / valueBytes));
    }
    return out;
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #entry(name: string): TensorEntry {
    return this.#entries.get(name) ?? failFile(this.#name, `tensor ${name} is missing`);
  }
}

async function readHeader(name: string, file: FileHandle, fileBytes: number): Promise<Uint8Array> {
  if (fileBytes < 8) failFile(name, `is truncated: ${fileBytes} bytes are too few for a header`);
  const prefix = new Uint8Array(8);
  await readFully(name, file, prefix, 0);
  const headerBytes = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  if (headerBytes > HEADER_BYTES_MAX)
    failFile(name, `header of ${headerBytes} bytes is over the limit of ${HEADER_BYTES_MAX}`);
  if (8 + headerBytes > fileBytes) failFile(name, "is truncated: the header does not fit into the file");
  const header = new Uint8Array(headerBytes);
  await readFully(name, file, header, 8);
  return header;
}

function parseHeader(name: string, header: Uint8Array, fileBytes: number): Header {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(header));
  } catch (cause) {
    throw new QuireError("invalid_request", `${name}: header is not JSON`, { cause });
  }
  if (!isObject(json)) failFile(name, "header is not a JSON object");
  const dataOffset = 8 + header.byteLength;
  const entries = new Map<string, TensorEntry>();
  for (const [tensor, value] of Object.entries(json)) {
    if (tensor === "__metadata__") continue;
    if (entries.size === TENSOR_COUNT_MAX) failFile(name, `has more than ${TENSOR_COUNT_MAX} tensors`);
    entries.set(tensor, parseEntry(name, tensor, value, { dataOffset, dataBytes: fileBytes - dataOffset }));
  }
  checkCoverage(name, entries, { dataOffset, fileBytes });
  return { entries, metadata: json.__metadata__ };
}

function parseEntry(
  name: string,
  tensor: string,
  value: unknown,
  data: { dataOffset: number; dataBytes: number },
): TensorEntry {
  const label = `tensor ${tensor.slice(0, 120)}`;
  if (!isObject(value)) failFile(name, `${label} is not described by an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    failFile(
      name,
      `${label} has dtype ${JSON.stringify(dtype)}, only ${Object.keys(DTYPE_BYTES).join(", ")} are supported`,
    );
  }
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every(isCount)) failFile(name, `${label} has no valid shape`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    failFile(name, `${label} has no valid data_offsets`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) failFile(name, `${label} has no valid data_offsets`);
  if (end > data.dataBytes) failFile(name, `is truncated: ${label} ends beyond the file`);
  const bytes = (shape as number[]).reduce((a, b) => a * b, DTYPE_BYTES[dtype as Dtype]);
  if (bytes !== end - begin) failFile(name, `${label} has ${end - begin} bytes, its shape needs ${bytes}`);
  return { dtype: dtype as Dtype, shape: shape as number[], offset: data.dataOffset + begin, bytes };
}

/** The format forbids overlap and holes: either would let two readers see different things in one file. */
function checkCoverage(
  name: string,
  entries: ReadonlyMap<string, TensorEntry>,
  file: { dataOffset: number; fileBytes: number },
): void {
  const ordered = [...entries].sort(([, a], [, b]) => a.offset - b.offset || a.bytes - b.bytes);
  let next = file.dataOffset;
  for (const [tensor, entry] of ordered) {
    if (entry.offset < next) failFile(name, `tensor ${tensor.slice(0, 120)} overlaps another`);
    if (entry.offset > next) failFile(name, `has ${entry.offset - next} bytes that belong to no tensor`);
    next = entry.offset + entry.bytes;
  }
  if (next !== file.fileBytes) failFile(name, `has ${file.fileBytes - next} bytes that belong to no tensor`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
