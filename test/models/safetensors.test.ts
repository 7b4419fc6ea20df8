import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openSafetensors } from "../../models/safetensors.ts";
import { QuireError } from "../../protocol/errors.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quire-safetensors-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

interface Entry {
  dtype: unknown;
  shape: unknown;
  data_offsets: unknown;
}

function encode(header: unknown, data: Uint8Array): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.byteLength + data.byteLength);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.byteLength), true);
  file.set(json, 8);
  file.set(data, 8 + json.byteLength);
  return file;
}

async function put(bytes: Uint8Array): Promise<string> {
  const path = join(folder, "model.safetensors");
  await writeFile(path, bytes);
  return path;
}

async function refusal(bytes: Uint8Array): Promise<QuireError> {
  const path = await put(bytes);
  try {
    await (await openSafetensors(path)).close();
  } catch (thrown) {
    if (thrown instanceof QuireError) return thrown;
    throw thrown;
  }
  throw new Error("was accepted");
}

const entry = (dtype: unknown, shape: unknown, begin: unknown, end: unknown): Entry => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

describe("safetensors", () => {
  it("gives the metadata that a file has; one that is malformed is refused when it is asked for", async () => {
    const metadataOf = async (header: unknown): Promise<unknown> => {
      const file = await openSafetensors(await put(encode(header, new Uint8Array(0))));
      try {
        return [...file.metadata()];
      } finally {
        await file.close();
      }
    };
    expect(await metadataOf({})).toEqual([]);
    expect(await metadataOf({ __metadata__: { format: "pt", model: "m" } })).toEqual([
      ["format", "pt"],
      ["model", "m"],
    ]);
    for (const wrong of ["text", ["a"], { format: 1 }]) {
      await expect(metadataOf({ __metadata__: wrong })).rejects.toThrow(
        "model.safetensors: __metadata__ is not an object of texts",
      );
    }
  });

  it("reads every dtype, values exact", async () => {
    const data = new Uint8Array(8 + 12 + 6);
    const view = new DataView(data.buffer);
    view.setFloat32(0, 1.5, true);
    view.setFloat32(4, -Math.PI, true);
    // binary16: 1, -2, 65504 (largest), 2^-24 (smallest subnormal), infinity, 0.333251953125
    [0x3c00, 0xc000, 0x7bff, 0x0001, 0x7c00, 0x3555].forEach((half, i) => {
      view.setUint16(8 + 2 * i, half, true);
    });
    // bfloat16: 1, -0.15625, 3.140625
    [0x3f80, 0xbe20, 0x4049].forEach((half, i) => {
      view.setUint16(20 + 2 * i, half, true);
    });
    const file = await openSafetensors(
      await put(
        encode(
          {
            __metadata__: { format: "pt" },
            a: entry("F32", [2], 0, 8),
            b: entry("F16", [3, 2], 8, 20),
            c: entry("BF16", [3], 20, 26),
          },
          data,
        ),
      ),
    );
    try {
      expect([...file.names].sort()).toEqual(["a", "b", "c"]);
      expect(file.shape("b")).toEqual([3, 2]);
      expect(file.shape("nothing")).toBeUndefined();
      expect([...(await file.read("a"))]).toEqual([1.5, Math.fround(-Math.PI)]);
      expect([...(await file.read("b"))]).toEqual([1, -2, 65504, 2 ** -24, Number.POSITIVE_INFINITY, 0.333251953125]);
      expect([...(await file.read("c"))]).toEqual([1, -0.15625, 3.140625]);
      await expect(file.read("nothing")).rejects.toMatchObject({ code: "invalid_request" });
    } finally {
      await file.close();
    }
  });

  it("reads a tensor longer than one chunk of the reader", async () => {
    const values = Uint16Array.from({ length: 5_000_000 }, (_, i) => (i * 7919) & 0x7f7f);
    const header = { big: entry("BF16", [values.length], 0, values.byteLength) };
    const file = await openSafetensors(await put(encode(header, new Uint8Array(values.buffer))));
    try {
      const words = new Uint32Array((await file.read("big")).buffer);
      expect(words.length).toBe(values.length);
      expect(words.findIndex((word, i) => word !== values[i]! * 65536)).toBe(-1);
    } finally {
      await file.close();
    }
  });

  const eight = new Uint8Array(8);
  const broken: [name: string, bytes: () => Uint8Array, message: RegExp][] = [
    ["an empty file", () => new Uint8Array(0), /truncated/],
    ["a header length beyond the limit", () => Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x7f), /over the limit/],
    ["a header length beyond the file", () => Uint8Array.of(100, 0, 0, 0, 0, 0, 0, 0, 123), /truncated/],
    ["a header that is not JSON", () => encode("{", eight), /not JSON/],
    ["a header that is not UTF-8", () => encode({}, eight).fill(0xff, 8), /not JSON/],
    ["a header that is a list", () => encode([], new Uint8Array(0)), /not a JSON object/],
    ["an entry that is no object", () => encode({ a: 1 }, eight), /object/],
    ["an unknown dtype", () => encode({ a: entry("I8", [8], 0, 8) }, eight), /I8/],
    ["a dtype of Object.prototype", () => encode({ a: entry("toString", [8], 0, 8) }, eight), /dtype/],
    ["a negative size", () => encode({ a: entry("F32", [-2], 0, 8) }, eight), /shape/],
    ["a fractional size", () => encode({ a: entry("F32", [0.5, 4], 0, 8) }, eight), /shape/],
    ["a shape of many dimensions", () => encode({ a: entry("F32", Array(9).fill(1), 0, 4) }, eight), /shape/],
    ["offsets in reverse", () => encode({ a: entry("F32", [2], 8, 0) }, eight), /data_offsets/],
    ["a missing offset", () => encode({ a: { dtype: "F32", shape: [2], data_offsets: [0] } }, eight), /data_offsets/],
    ["a shape that overflows", () => encode({ a: entry("F32", [2 ** 52, 2 ** 52, 2], 0, 8) }, eight), /shape needs/],
    ["a shape that needs more bytes", () => encode({ a: entry("F32", [3], 0, 8) }, eight), /shape needs/],
    ["a truncated file", () => encode({ a: entry("F32", [3], 0, 12) }, eight), /truncated/],
    [
      "overlapping tensors",
      () => encode({ a: entry("F32", [2], 0, 8), b: entry("F32", [1], 4, 8) }, eight),
      /overlaps/,
    ],
    ["a hole", () => encode({ a: entry("F32", [1], 4, 8) }, eight), /belong to no tensor/],
    ["bytes after the last tensor", () => encode({ a: entry("F32", [1], 0, 4) }, eight), /belong to no tensor/],
  ];
  it.each(broken)("refuses %s in one line", async (_, bytes, message) => {
    const error = await refusal(bytes());
    expect(error.code).toBe("invalid_request");
    expect(error.message).toMatch(/^model\.safetensors: /);
    expect(error.message).toMatch(message);
    expect(error.message).not.toContain("\n");
  });

  it("refuses a file that is not there", async () => {
    await expect(openSafetensors(join(folder, "absent.safetensors"))).rejects.toMatchObject({
      code: "invalid_request",
      message: "absent.safetensors: cannot be opened",
    });
  });
});
