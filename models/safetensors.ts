/**
 * The safetensors format: u64 little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the tensors'
 * bytes, row-major, little-endian, without holes. A file is somebody's download: everything in the header is checked before use.
 */
import { type FileHandle, open } from "node:fs/promises";
import { basename } from "node:path";
import { QuireError } from "../protocol/errors.ts";
import type { TensorSource } from "./tensor-source.ts";

/** The format's own limit, 100 MB. */
const HEADER_BYTES_MAX = 100_000_000;
const TENSOR_COUNT_MAX = 1_000_000;
const DTYPE_BYTES = { F32: 4, F16: 2, BF16: 2 } as const;
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

/**
 * Opens a file and checks its header: lengths inside the file, known dtypes, shapes that match their bytes, no overlap, no holes.
 * The caller closes it.
 * @throws {QuireError} `invalid_request`, one line with the file's name, when it is missing, truncated or malformed.
 */
export async function openSafetensors(path: string): Promise<TensorSource> {
  const name = basename(path);
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (cause) {
    throw new QuireError("invalid_request", `${name}: cannot be opened`, { cause });
  }
  try {
    const { size } = await file.stat();
    return new SafetensorsFile(name, file, parseHeader(name, await readHeader(name, file, size), size));
  } catch (thrown) {
    await file.close();
    throw thrown;
  }
}

class SafetensorsFile implements TensorSource {
  readonly #name: string;
  readonly #file: FileHandle;
  readonly #entries: ReadonlyMap<string, TensorEntry>;

  constructor(name: string, file: FileHandle, entries: ReadonlyMap<string, TensorEntry>) {
    this.#name = name;
    this.#file = file;
    this.#entries = entries;
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  shape(name: string): readonly number[] | undefined {
    return this.#entries.get(name)?.shape;
  }

  async read(name: string): Promise<Float32Array> {
    const entry = this.#entries.get(name);
    if (entry === undefined) fail(this.#name, `tensor ${name} is missing`);
    const out = new Float32Array(entry.shape.reduce((a, b) => a * b, 1));
    const valueBytes = DTYPE_BYTES[entry.dtype];
    const chunk = new Uint8Array(Math.min(CHUNK_BYTES, entry.bytes));
    for (let done = 0; done < entry.bytes; done += chunk.byteLength) {
      const part = chunk.subarray(0, Math.min(chunk.byteLength, entry.bytes - done));
      await readFully(this.#name, this.#file, part, entry.offset + done);
      convert(entry.dtype, part, out.subarray(done / valueBytes));
    }
    return out;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

async function readHeader(name: string, file: FileHandle, fileBytes: number): Promise<Uint8Array> {
  if (fileBytes < 8) fail(name, `is truncated: ${fileBytes} bytes are too few for a header`);
  const prefix = new Uint8Array(8);
  await readFully(name, file, prefix, 0);
  const headerBytes = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  if (headerBytes > HEADER_BYTES_MAX)
    fail(name, `header of ${headerBytes} bytes is over the limit of ${HEADER_BYTES_MAX}`);
  if (8 + headerBytes > fileBytes) fail(name, "is truncated: the header does not fit into the file");
  const header = new Uint8Array(headerBytes);
  await readFully(name, file, header, 8);
  return header;
}

function parseHeader(name: string, header: Uint8Array, fileBytes: number): Map<string, TensorEntry> {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(header));
  } catch (cause) {
    throw new QuireError("invalid_request", `${name}: header is not JSON`, { cause });
  }
  if (!isObject(json)) fail(name, "header is not a JSON object");
  const dataOffset = 8 + header.byteLength;
  const entries = new Map<string, TensorEntry>();
  for (const [tensor, value] of Object.entries(json)) {
    if (tensor === "__metadata__") continue;
    if (entries.size === TENSOR_COUNT_MAX) fail(name, `has more than ${TENSOR_COUNT_MAX} tensors`);
    entries.set(tensor, parseEntry(name, tensor, value, { dataOffset, dataBytes: fileBytes - dataOffset }));
  }
  checkCoverage(name, entries, { dataOffset, fileBytes });
  return entries;
}

function parseEntry(
  name: string,
  tensor: string,
  value: unknown,
  data: { dataOffset: number; dataBytes: number },
): TensorEntry {
  const label = `tensor ${tensor.slice(0, 120)}`;
  if (!isObject(value)) fail(name, `${label} is not described by an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    fail(
      name,
      `${label} has dtype ${JSON.stringify(dtype)}, only ${Object.keys(DTYPE_BYTES).join(", ")} are supported`,
    );
  }
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every(isCount)) fail(name, `${label} has no valid shape`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    fail(name, `${label} has no valid data_offsets`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) fail(name, `${label} has no valid data_offsets`);
  if (end > data.dataBytes) fail(name, `is truncated: ${label} ends beyond the file`);
  const bytes = (shape as number[]).reduce((a, b) => a * b, DTYPE_BYTES[dtype as Dtype]);
  if (bytes !== end - begin) fail(name, `${label} has ${end - begin} bytes, its shape needs ${bytes}`);
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
    if (entry.offset < next) fail(name, `tensor ${tensor.slice(0, 120)} overlaps another`);
    if (entry.offset > next) fail(name, `has ${entry.offset - next} bytes that belong to no tensor`);
    next = entry.offset + entry.bytes;
  }
  if (next !== file.fileBytes) fail(name, `has ${file.fileBytes - next} bytes that belong to no tensor`);
}

async function readFully(name: string, file: FileHandle, out: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < out.byteLength; ) {
    const { bytesRead } = await file.read(out, done, out.byteLength - done, position + done);
    if (bytesRead === 0) fail(name, "is truncated: it became shorter while it was read");
    done += bytesRead;
  }
}

/** Converts the whole values of `bytes` to the start of `out`. */
function convert(dtype: Dtype, bytes: Uint8Array, out: Float32Array): void {
  if (dtype === "F32") {
    new Uint8Array(out.buffer, out.byteOffset, bytes.byteLength).set(bytes);
    return;
  }
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  if (dtype === "BF16") {
    const words = new Uint32Array(out.buffer, out.byteOffset, halves.length);
    for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16;
  } else {
    for (let i = 0; i < halves.length; i++) out[i] = halfToNumber(halves[i]!);
  }
}

/** IEEE 754 binary16, subnormals, infinities and NaN included. */
function halfToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function fail(file: string, problem: string): never {
  throw new QuireError("invalid_request", `${file}: ${problem}`);
}
