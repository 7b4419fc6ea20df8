/** f32 data into and out of a device. Output buffers are poisoned with NaN and guarded, so that an op that leaves a gap or overruns is seen. */
import type { Device, DeviceBuffer } from "../../../kernels/contract.ts";
import { expectFinite, expectSameBits } from "./compare.ts";

const GUARD_ELEMENTS = 32;

/** The memory of some f32 values as bytes, not a copy. */
export function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** A copy of bytes as f32 values; the bytes need no alignment. */
export function floatsOf(bytes: Uint8Array): Float32Array<ArrayBuffer> {
  return new Float32Array(bytes.slice().buffer);
}

/** A buffer that holds `values`. */
export function upload(device: Device, label: string, values: Float32Array): DeviceBuffer {
  const buffer = device.buffer(label, values.byteLength);
  device.write(buffer, 0, bytesOf(values));
  return buffer;
}

/** A buffer for `elements` results and a guard behind them, all NaN. */
export function poisoned(device: Device, label: string, elements: number): DeviceBuffer {
  return upload(device, label, new Float32Array(elements + GUARD_ELEMENTS).fill(Number.NaN));
}

/** The results of a poisoned buffer: all written, and the guard untouched. */
export async function results(device: Device, buffer: DeviceBuffer): Promise<Float32Array<ArrayBuffer>> {
  const all = floatsOf(await device.read(buffer, 0, buffer.bytes));
  const values = all.slice(0, all.length - GUARD_ELEMENTS);
  expectFinite(values, buffer.label);
  expectSameBits(
    all.slice(values.length),
    new Float32Array(GUARD_ELEMENTS).fill(Number.NaN),
    `what lies behind ${buffer.label}`,
  );
  return values;
}
