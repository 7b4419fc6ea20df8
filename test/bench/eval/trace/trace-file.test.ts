/** What a trace may be, and the one line that says what is wrong with one that is not. */
import { appendFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { TraceFile } from "../../../../bench/eval/trace/trace-file.ts";
import { placesOf } from "../../../../bench/eval/trace/trace-places.ts";
import { QuireError } from "../../../../protocol/errors.ts";
import { withTempFolder } from "../../../cli/run-quire.ts";
import { madeTrace, type WrittenTrace, writeTrace } from "./write-trace.ts";

const SHAPE = { layers: 2, heads: 4, kvHeads: 2, headDim: 8, tokens: 20 };
const made = (more: Record<string, string> = {}) => madeTrace(SHAPE, [17, 19], more);

/** Opens a file, reads all of it, and gives what was thrown. */
async function refusalOf(written: WrittenTrace, spoil?: (path: string) => Promise<void>): Promise<string> {
  return await withTempFolder(async (folder) => {
    const path = join(folder, "t.safetensors");
    await writeTrace(path, written);
    await spoil?.(path);
    try {
      const trace = await TraceFile.open(path);
      try {
        for (let layer = 0; layer < trace.shape.layerCount; layer++) {
          for (const row of trace.positions.keys()) await trace.query(layer, row);
          await trace.keys(layer, { first: 0, count: trace.tokenCount });
          await trace.values(layer, { first: 0, count: trace.tokenCount });
          if (trace.hasOutputs) await trace.output(layer, 0);
        }
      } finally {
        await trace.close();
      }
    } catch (error) {
      if (error instanceof QuireError && error.code === "invalid_request") return error.message;
      throw error;
    }
    return "was accepted";
  });
}

const numbers = (count: number, value = 0) => new Float32Array(count).fill(value);
const withTensor = (name: string, shape: number[], value = 0): WrittenTrace => {
  const { metadata, tensors } = made();
  const data = numbers(
    shape.reduce((a, b) => a * b, 1),
    value,
  );
  return { metadata, tensors: { ...tensors, [name]: { shape, data } } };
};
const without = (name: string): WrittenTrace => {
  const { metadata, tensors } = made();
  const { [name]: _, ...rest } = tensors;
  return { metadata, tensors: rest };
};
const saying = (metadata: unknown): WrittenTrace => ({ ...made(), metadata });
const sayingOf = (name: string, value: string | undefined): WrittenTrace => {
  const { [name]: _, ...rest } = made().metadata;
  return saying(value === undefined ? rest : { ...rest, [name]: value });
};
const spoiled = (name: string, index: number, value: number): WrittenTrace => {
  const trace = made();
  (trace.tensors[name] as { data: Float32Array }).data[index] = value;
  return trace;
};

describe("a trace", () => {
  it("is opened with its shape, positions, layers and digest; queries have the device's scale", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "t.safetensors");
      const { tensors, metadata } = made({ scale: "0.5", layers: "0, 1", source: "by hand" });
      await writeTrace(path, { metadata, tensors });
      const trace = await TraceFile.open(path);
      try {
        const { shape, tokenCount, positions, layers, model, source, hasOutputs, rope } = trace;
        expect({ shape, tokenCount, positions, layers, model, source, hasOutputs }).toEqual({
          shape: { layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 8 },
          ...{
            tokenCount: 20,
            positions: [17, 19],
            layers: [0, 1],
            model: "made",
            source: "by hand",
            hasOutputs: false,
          },
        });
        expect(trace.sha256).toMatch(/^[0-9a-f]{64}$/);
        expect(rope).toEqual({ inverse: numbers(4), magnitude: 1 });
        const query = tensors["layers.1.query"]?.data.subarray(32, 64) as Float32Array;
        expect(await trace.query(1, 1)).toEqual(query.map((value) => value * 0.5 * Math.sqrt(8)));
        expect(await trace.keys(1, { first: 3, count: 2 })).toEqual(tensors["layers.1.key"]?.data.slice(48, 80));
      } finally {
        await trace.close();
      }
    });
  });

  it.each<[string, WrittenTrace]>([
    ["__metadata__.quire_trace is missing", saying(undefined)],
    ["__metadata__ is not an object of texts", saying([1])],
    ["__metadata__ is not an object of texts", saying({ ...made().metadata, scale: 1 })],
    [`__metadata__.quire_trace is "2"; it is "1"`, sayingOf("quire_trace", "2")],
    ["__metadata__.model is missing", sayingOf("model", undefined)],
    ["__metadata__.model is no line of 1 to 200 printable", sayingOf("model", "a\nb")],
    ["__metadata__.model is no line of 1 to 200 printable", sayingOf("model", "a".repeat(201))],
    ["__metadata__.source is no line of 1 to 200 printable", sayingOf("source", "\u001b[2J")],
    [`__metadata__.rope is missing; it is "applied" or "pending"`, sayingOf("rope", undefined)],
    [`__metadata__.rope is "half"; it is`, sayingOf("rope", "half")],
    ["tensor rope.inverse_frequencies is missing", sayingOf("rope", "pending")],
    ["__metadata__.rope_magnitude has no use", sayingOf("rope_magnitude", "1")],
    ["__metadata__.positions is missing", sayingOf("positions", undefined)],
    [`__metadata__.positions has ""; it is of whole numbers`, sayingOf("positions", "")],
    [`__metadata__.positions has "17"; it is of whole numbers`, sayingOf("positions", "19,17")],
    [`__metadata__.positions has "17"; it is of whole numbers`, sayingOf("positions", "17,17")],
    [`__metadata__.positions has "-1"; it is of whole numbers`, sayingOf("positions", "-1,17")],
    ["__metadata__.positions: 20 is beyond the 20 tokens of layers.0.key", sayingOf("positions", "17,20")],
    ["__metadata__.positions names more than 16384", sayingOf("positions", "1,".repeat(20_000))],
    ["tensor layers.0.query has shape [2, 4, 8], not [1, 4, 8]", sayingOf("positions", "17")],
    [`__metadata__.scale is "0", not a number from 0.000001 to 1000`, sayingOf("scale", "0")],
    [`__metadata__.scale is "NaN", not a number`, sayingOf("scale", "NaN")],
    [`__metadata__.scale is "-0.1", not a number`, sayingOf("scale", "-0.1")],
    ["tensor layers.5.key is missing", sayingOf("layers", "5")],
    ["tensor layers.1.query is none of a trace, or of a layer that is not named", sayingOf("layers", "0")],
    [`__metadata__.layers has "0"; it is of whole numbers`, sayingOf("layers", "1,0")],
    ["has no tensor layers.0.key", { ...made(), tensors: {} }],
    ["tensor layers.0.query is missing", without("layers.0.query")],
    ["tensor layers.1.value is missing", without("layers.1.value")],
    ["tensor layers.1.query is none of a trace", without("layers.1.key")],
    ["tensor layer.0.keys is none of a trace", withTensor("layer.0.keys", [1])],
    ["tensor layers.1.key has shape [20, 2, 4], not [20, 2, 8]", withTensor("layers.1.key", [20, 2, 4])],
    ["tensor layers.0.value has shape [20, 16], not [20, 2, 8]", withTensor("layers.0.value", [20, 16])],
    ["tensor layers.0.key has shape [20, 2]; at most [1048576, 1024, 512]", withTensor("layers.0.key", [20, 2])],
    ["tensor layers.0.key has shape [0, 2, 8]; at most", withTensor("layers.0.key", [0, 2, 8])],
    ["tensor layers.0.key has shape [20, 1, 516]; at most", withTensor("layers.0.key", [20, 1, 516])],
    ["head_dim 6 is no multiple of 4", withTensor("layers.0.key", [20, 2, 6])],
    ["4 heads are no multiple of 3 KV heads", withTensor("layers.0.key", [20, 3, 8])],
    ["tensor layers.1.output is missing", withTensor("layers.0.output", [2, 4, 8])],
    [
      'tensor layers.0.query has dtype "F64"',
      { ...made(), tensors: { "layers.0.query": { shape: [1], data: numbers(2), dtype: "F64" } } },
    ],
    ["layers.1.key: row 2 has NaN; values are finite, at most 65504", spoiled("layers.1.key", 33, Number.NaN)],
    ["layers.0.value: row 19 has -Infinity", spoiled("layers.0.value", 319, Number.NEGATIVE_INFINITY)],
    ["layers.1.query: row 1 has 70000", spoiled("layers.1.query", 63, 70_000)],
  ])("is refused: %s", async (message, written) => {
    expect(await refusalOf(written)).toContain(`t.safetensors: ${message}`);
  });

  it("with a rotation to come has its frequencies, within bounds", async () => {
    const frequencies = (shape: number[], value: number): WrittenTrace => {
      const { tensors } = withTensor("rope.inverse_frequencies", shape, value);
      return { tensors, metadata: made({ rope: "pending" }).metadata };
    };
    expect(await refusalOf(frequencies([4], 0.5))).toBe("was accepted");
    expect(await refusalOf(frequencies([3], 0.5))).toContain("has shape [3], not [4]");
    for (const value of [Number.NaN, -1, 11]) {
      expect(await refusalOf(frequencies([4], value))).toContain("is not within 0 to 10");
    }
    expect(await refusalOf(withTensor("rope.inverse_frequencies", [4]))).toContain("has no use");
  });

  it("that is cut short or longer than it says is refused", async () => {
    expect(await refusalOf(made(), (path) => truncate(path, 2_000))).toContain("is truncated");
    expect(await refusalOf(made(), (path) => truncate(path, 5))).toContain("is truncated");
    expect(await refusalOf(made(), (path) => appendFile(path, "more"))).toContain("belong to no tensor");
  });
});

describe("places", () => {
  it("are of rows whose contexts are nearly the same", () => {
    const starts = (positions: number[]) =>
      placesOf(positions).map(({ contextTokens, positions: of }) => [contextTokens, of.length]);
    expect(starts([1024, 1025, 1055, 2048, 2049])).toEqual([
      [1024, 3],
      [2048, 2],
    ]);
    expect(starts([0, 63, 64, 127, 128])).toEqual([
      [0, 2],
      [64, 2],
      [128, 1],
    ]);
    expect(starts([4096, 5119, 5120])).toEqual([
      [4096, 2],
      [5120, 1],
    ]);
  });
});
