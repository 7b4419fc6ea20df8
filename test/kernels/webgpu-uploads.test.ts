/** What is written to the GPU device while a step runs: it gets there behind the step, without a submission of its own, and stalls nothing. */
import { describe, expect, it, vi } from "vitest";
import type { KvPoolSpec } from "../../kernels/contract.ts";
import { requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { counted, noCalls } from "./support/counted-adapter.ts";
import { poisoned, results, upload } from "./support/floats.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

/** Blocks of 2 heads of 64 in int8: 17,920 bytes each. */
const SPEC: KvPoolSpec = {
  ...{ layerCount: 2, kvHeadCount: 2, headDim: 64, encoding: "int8", summaryKinds: ["min-max"] },
  ...{ blockCount: 64, openSlotCount: 2, summarySlotCount: 8 },
};

describe.skipIf(!hasAdapter)("uploads to the GPU device", () => {
  it("of many blocks during a step reach the pool, after what the step reads, with the next submission", async () => {
    const calls = noCalls();
    const device = await openWebGpuDevice({ adapter: counted(await requestAdapter(), calls) });
    const pool = device.kvPool(SPEC);
    const [x, out] = [upload(device, "x", Float32Array.of(1, 2)), poisoned(device, "out", 2)];
    const copy = { out, outRow: 0, x, xRow: 0, rows: 1, width: 2 };
    const running = device.begin([]);
    running.copyRows(copy);
    calls.submit = 0;
    const done = running.submit();
    expect(calls.submit).toBe(1);
    // The step is on its way: it reads what was there when it was submitted.
    device.write(x, 0, new Uint8Array(Float32Array.of(3, 4).buffer));
    const blocks = Array.from({ length: 40 }, (_, id) => bytesOf(pool.blockBytes, id));
    for (const [id, bytes] of blocks.entries()) pool.writeBlock(id, bytes);
    pool.writeSummary(3, "min-max", bytesOf(pool.summaryBytes, 99));
    expect(calls.submit, "nothing is submitted for uploads alone").toBe(1);
    await done;
    expect([...(await results(device, out))]).toEqual([1, 2]);
    const next = device.begin([]);
    next.copyRows(copy);
    calls.submit = 0;
    await next.submit();
    expect(calls.submit, "uploads go with the next step").toBe(1);
    expect([...(await results(device, out))]).toEqual([3, 4]);
    for (const [id, bytes] of blocks.entries()) expect(await pool.readBlock(id), `block ${id}`).toEqual(bytes);
    expect(await pool.readSummary(3, "min-max")).toEqual(bytesOf(pool.summaryBytes, 99));
    await device.close();
  });

  it("wait for a submission only up to 64 MiB", async () => {
    const calls = noCalls();
    const device = await openWebGpuDevice({ adapter: counted(await requestAdapter(), calls) });
    const mebibyte = new Uint8Array(2 ** 20);
    const buffer = device.buffer("memory", mebibyte.length);
    calls.submit = 0;
    for (let count = 0; count < 63; count++) device.write(buffer, 0, mebibyte);
    expect(calls.submit).toBe(0);
    for (let count = 63; count < 130; count++) device.write(buffer, 0, mebibyte);
    expect(calls.submit).toBe(2);
    await device.close();
  });
});

/** Bytes that say which block they are. */
function bytesOf(length: number, id: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, at) => (at * 7 + id * 31) & 127);
}
