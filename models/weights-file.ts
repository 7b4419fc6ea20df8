/** What readers of weights files share: reads that are whole or fail, errors that name the file, 16-bit floats. */
import { type FileHandle, open } from "node:fs/promises";
import { QuireError } from "../protocol/errors.ts";

/** @throws {QuireError} `invalid_request`, one line that names the file. */
export async function openWeightsFile(path: string, name: string): Promise<FileHandle> {
  try {
    return await open(path, "r");
  } catch (cause) {
    throw new QuireError("invalid_request", `${name}: cannot be opened`, { cause });
  }
}

/** Fills `out` from `position` on. @throws {QuireError} `invalid_request` when the file is shorter. */
export async function readFully(name: string, file: FileHandle, out: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < out.byteLength; ) {
    const { bytesRead } = await file.read(out, done, out.byteLength - done, position + done);
    if (bytesRead === 0) failFile(name, "is truncated: it became shorter while it was read");
    done += bytesRead;
  }
}

/** @throws {QuireError} `invalid_request`: the file and what is wrong with it. */
export function failFile(file: string, problem: string): never {
  throw new QuireError("invalid_request", `${file}: ${problem}`);
}

/** IEEE 754 binary16 as a number, subnormals, infinities and NaN included. */
export function halfToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Little-endian f32 to f32. */
export function convertF32(bytes: Uint8Array, out: Float32Array): void {
  new Uint8Array(out.buffer, out.byteOffset, bytes.byteLength).set(bytes);
}

/** Little-endian bf16 to f32; `bytes` begins at an even offset. */
export function convertBf16(bytes: Uint8Array, out: Float32Array): void {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  const words = new Uint32Array(out.buffer, out.byteOffset, halves.length);
  for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16;
}

/** Little-endian f16 to f32; `bytes` begins at an even offset. */
export function convertF16(bytes: Uint8Array, out: Float32Array): void {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  const words = new Uint32Array(out.buffer, out.byteOffset, halves.length);
  for (let i = 0; i < halves.length; i++) {
    const half = halves[i]!;
    const exponent = half & 0x7c00;
    // Normal numbers move their bits; the rest are rare.
    if (exponent !== 0 && exponent !== 0x7c00)
      words[i] = ((half & 0x8000) << 16) | (((half & 0x7fff) << 13) + 0x3800_0000);
    else out[i] = halfToNumber(half);
  }
}
