/** `npm run eval -- --trace`: its figures against a plain twin, and those of a trace of HF transformers against the engine's own of the same model and text. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { FidelityFigure } from "../../../../bench/eval/figures.ts";
import type { TraceNote } from "../../../../bench/eval/trace/run-traces.ts";
import { readCases } from "../../../../bench/recall/cases.ts";
import { withTempFolder } from "../../../cli/run-quire.ts";
import { type BenchRun, runBench } from "../../run-bench.ts";
import { twinFigures, twinOracle, twinQuest, twinStreaming } from "./trace-twin.ts";
import { madeTrace, type WrittenTrace, writeTrace } from "./write-trace.ts";

const CAPTURED = "test/bench/eval/trace/house-0.safetensors";
const SHAPE = { layers: 2, heads: 4, kvHeads: 2, headDim: 16, tokens: 420 };
const POSITIONS = [200, 201, 215, 400, 401, 410];
const SELECTIONS = ["--policies", "streaming,quest", "--budgets", "128", "--device", "wasm", "--threads", "1"];

interface Report {
  fidelity: FidelityFigure[];
  traces: TraceNote[];
  interrupted: boolean;
}

const evaluate = (folder: string, files: string, ...more: string[]): Promise<BenchRun> =>
  runBench(["eval", "--trace", files, ...SELECTIONS, "--out", folder, ...more]);

async function reportIn(folder: string): Promise<Report> {
  return JSON.parse(await readFile(join(folder, "figures.json"), "utf8"));
}

/** Judges a made trace. */
async function judge(written: WrittenTrace, ...more: string[]): Promise<Report> {
  return await withTempFolder(async (folder) => {
    const path = join(folder, "t.safetensors");
    await writeTrace(path, written);
    expect(await evaluate(folder, path, ...more)).toMatchObject({ code: 0 });
    return await reportIn(folder);
  });
}

const of = ({ fidelity }: Pick<Report, "fidelity">, name: string, contextTokens: number): FidelityFigure =>
  fidelity.find((row) => row.name === name && row.contextTokens === contextTokens) as FidelityFigure;

/** The largest difference of two tables of the same size. */
function apart(ours: number[][], theirs: number[][]): number {
  expect(ours.map((row) => row.length)).toEqual(theirs.map((row) => row.length));
  return Math.max(
    ...ours.flatMap((row, layer) => row.map((value, head) => Math.abs(value - (theirs[layer]?.[head] as number)))),
  );
}

/** The rows of a trace behind one context. */
function placeOf(written: ReturnType<typeof madeTrace>, from: number, to: number): ReturnType<typeof madeTrace> {
  const positions = (written.metadata.positions as string).split(",").map(Number);
  const rows = positions.flatMap((position, row) => (position >= from && position < to ? [row] : []));
  const tensors = Object.fromEntries(
    Object.entries(written.tensors).map(([name, { shape, data }]) => {
      if (!name.endsWith(".query")) return [name, { shape, data }];
      const width = data.length / positions.length;
      const own = rows.flatMap((row) => [...data.subarray(row * width, (row + 1) * width)]);
      return [name, { shape: [rows.length, ...shape.slice(1)], data: Float32Array.from(own) }];
    }),
  );
  return { tensors, metadata: { ...written.metadata, positions: rows.map((row) => positions[row]).join() } };
}

/** As many pages as Quest chooses have a key along their queries, so that the choice does not hang on the last bit of a summary in eight. */
function withStrongPages(written: ReturnType<typeof madeTrace>): ReturnType<typeof madeTrace> {
  const { heads, kvHeads, headDim } = SHAPE;
  for (let layer = 0; layer < SHAPE.layers; layer++) {
    const query = written.tensors[`layers.${layer}.query`]?.data as Float32Array;
    const key = written.tensors[`layers.${layer}.key`]?.data as Float32Array;
    for (let row = 0; row < POSITIONS.length; row++) {
      for (let head = 0; head < heads; head++)
        query[(row * heads + head) * headDim + Math.floor(head / (heads / kvHeads))] = 3;
    }
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      for (const [place, page] of [7, 2, 9, 4, 5].entries()) {
        key[((page * 16 + 5) * kvHeads + kvHead) * headDim + kvHead] = 4 + 2 * place + layer;
      }
    }
  }
  return written;
}

describe("the figures of a trace", { timeout: 60_000 }, () => {
  it.each([
    ["its own scale", { scale: "0.6" }, 0.6],
    ["the usual scale", {}, 1 / 4],
  ])("with %s are those of a plain twin", async (_, more, scale) => {
    const written = withStrongPages(madeTrace(SHAPE, POSITIONS, more));
    const report = await judge(written, "--kv", "f32");
    expect(report.fidelity.length).toBe(8);
    for (const [contextTokens, end] of [
      [200, 400],
      [400, 420],
    ] as const) {
      const place = placeOf(written, contextTokens, end);
      for (const [name, select] of [
        ["streaming", twinStreaming],
        ["oracle", twinOracle],
        ["quest", twinQuest],
      ] as const) {
        const twin = twinFigures(place, { select, budgetTokens: 128, scale });
        const { massByHead, errorByHead } = of(report, name, contextTokens);
        expect(apart(massByHead, twin.mass), `${name} at ${contextTokens}`).toBeLessThan(1e-6);
        expect(apart(errorByHead, twin.outputError), `${name} at ${contextTokens}`).toBeLessThan(1e-5);
      }
      // A twin that takes other pages is not met.
      const other = twinFigures(place, { select: (row) => twinOracle(row).slice(1), budgetTokens: 128, scale });
      expect(apart(of(report, "oracle", contextTokens).massByHead, other.mass)).toBeGreaterThan(1e-3);
      const [streaming, quest] = [of(report, "streaming", contextTokens), of(report, "quest", contextTokens)];
      expect([streaming.metadataBytes, quest.metadataBytes > 0]).toEqual([0, true]);
      expect(of(report, "random", contextTokens).mass.mean).toBeLessThan(of(report, "oracle", contextTokens).mass.mean);
    }
  });

  it("with the rotation to come are those of the same trace with it", async () => {
    const pending = madeTrace(SHAPE, POSITIONS, { rope: "pending", rope_magnitude: "1.1" });
    const half = SHAPE.headDim / 2;
    const frequencies = Float32Array.from({ length: half }, (_, i) => 100 ** (-i / half));
    const turned = (data: Float32Array, positionOf: (row: number) => number, heads: number): Float32Array => {
      const out = data.slice();
      for (let at = 0; at < data.length; at += SHAPE.headDim) {
        const position = positionOf(Math.floor(at / SHAPE.headDim / heads));
        for (let i = 0; i < half; i++) {
          const [x, y] = [data[at + i] as number, data[at + i + half] as number];
          const angle = position * (frequencies[i] as number);
          out[at + i] = 1.1 * (x * Math.cos(angle) - y * Math.sin(angle));
          out[at + i + half] = 1.1 * (y * Math.cos(angle) + x * Math.sin(angle));
        }
      }
      return out;
    };
    const applied = madeTrace(SHAPE, POSITIONS);
    for (const [name, tensor] of Object.entries(applied.tensors)) {
      if (name.endsWith("query")) tensor.data = turned(tensor.data, (row) => POSITIONS[row] as number, SHAPE.heads);
      if (name.endsWith("key")) tensor.data = turned(tensor.data, (row) => row, SHAPE.kvHeads);
    }
    pending.tensors["rope.inverse_frequencies"] = { shape: [half], data: frequencies };
    const [ours, theirs] = [await judge(pending, "--kv", "f32"), await judge(applied, "--kv", "f32")];
    for (const [index, row] of ours.fidelity.entries()) {
      const other = theirs.fidelity[index] as FidelityFigure;
      expect(apart(row.massByHead, other.massByHead)).toBeLessThan(1e-5);
      expect(apart(row.errorByHead, other.errorByHead)).toBeLessThan(1e-4);
    }
    const still = await judge(madeTrace(SHAPE, POSITIONS), "--kv", "f32");
    expect(apart(of(ours, "quest", 400).massByHead, of(still, "quest", 400).massByHead)).toBeGreaterThan(1e-2);
  });

  it("of HF transformers are those of the engine's own capture of the same model and text", async () => {
    await withTempFolder(async (folder) => {
      // house-0's tokens are bytes; transformers read the same 328 of them. The trace has layers 1 and 3 in f16.
      const { sentences } = await readCases("weights/house/eval-cases.jsonl.gz");
      await writeFile(join(folder, "text.txt"), sentences.join("").slice(0, 400));
      const [theirs, own] = [join(folder, "trace"), join(folder, "model")];
      const small = ["--documents", "1", "--tokens", "8", "--cases", "0", "--continuations", "0", "--contexts", "320"];
      const model = ["--model", "weights/house-0", "--weights", "f32", "--text", join(folder, "text.txt")];
      expect(await evaluate(theirs, CAPTURED, "--kv", "f32")).toMatchObject({ code: 0 });
      expect(await runBench(["eval", ...model, ...small, ...SELECTIONS, "--kv", "f32", "--out", own])).toMatchObject({
        code: 0,
      });
      const [trace, engine] = [await reportIn(theirs), await reportIn(own)];
      expect(trace.fidelity.length).toBe(engine.fidelity.length);
      // Random pages are drawn layer by layer: of two layers others than of four.
      for (const row of trace.fidelity.filter(({ name }) => name !== "random")) {
        const { massByHead, errorByHead } = of(engine, row.name, 320);
        expect(apart(row.massByHead, [massByHead[1], massByHead[3]] as number[][]), row.name).toBeLessThan(1e-3);
        expect(apart(row.errorByHead, [errorByHead[1], errorByHead[3]] as number[][]), row.name).toBeLessThan(2e-3);
      }
      expect(trace.traces).toMatchObject([{ file: "house-0.safetensors", tokenCount: 328, rowCount: 8 }]);
      // Sixteen bits of queries, keys and values.
      expect(trace.traces[0]?.outputDistance?.mean).toBeLessThan(1e-3);
      expect(trace.traces[0]?.outputDistance?.largest).toBeLessThan(3e-3);
    });
  });

  it("are refused where the file's own outputs say that they are another attention's", async () => {
    const written = madeTrace(SHAPE, POSITIONS, { scale: "2" });
    const positions = POSITIONS.length;
    for (let layer = 0; layer < SHAPE.layers; layer++) {
      const value = written.tensors[`layers.${layer}.value`]?.data as Float32Array;
      // What attention gives that sees nothing but the first token: not what these queries and keys make of it.
      const group = SHAPE.heads / SHAPE.kvHeads;
      const heads = Array.from({ length: SHAPE.heads }, (_, head) => Math.floor(head / group) * SHAPE.headDim);
      const row = heads.flatMap((at) => [...value.subarray(at, at + SHAPE.headDim)]);
      const data = Float32Array.from(Array.from({ length: positions }, () => row).flat());
      written.tensors[`layers.${layer}.output`] = { shape: [positions, SHAPE.heads, SHAPE.headDim], data };
    }
    await withTempFolder(async (folder) => {
      const path = join(folder, "t.safetensors");
      await writeTrace(path, written);
      const { code, err } = await evaluate(folder, path);
      expect([code, err]).toEqual([
        1,
        expect.stringMatching(/t.safetensors: layers.0.output: attention over the keys at position 200 is \d+ % away/),
      ]);
    });
  });
});

describe("the report of traces", { timeout: 60_000 }, () => {
  it("has what a trace tells, says what it does not, and goes on where it was cut; the same files give the same numbers", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "t.safetensors");
      await writeTrace(path, madeTrace(SHAPE, POSITIONS));
      const out = join(folder, "out");
      const { code, out: printed } = await evaluate(out, path);
      expect(code).toBe(0);
      expect(printed).toMatch(/selection +tokens +budget +bytes % +mass % +oracle % +recall % +error %\n/);
      expect(printed).not.toMatch(/KL|ppl|top-1/);
      const report = await readFile(join(out, "figures.json"), "utf8");
      // Rows of one text: a bootstrap over three.
      const { mass } = of(JSON.parse(report), "quest", 200);
      expect(mass.count).toBe(3);
      expect(mass.low).toBeLessThan(mass.mean);
      expect(mass.high).toBeGreaterThan(mass.mean);
      const csv = (await readFile(join(out, "fidelity.csv"), "utf8")).trimEnd().split("\n");
      expect([csv.length, csv[0]]).toEqual([9, expect.not.stringMatching(/perplexity|step_ms/)]);
      expect(csv[0]).toContain("output_error_high");
      const page = await readFile(join(out, "index.html"), "utf8");
      expect(page).toContain("A trace holds no model.");
      expect(page).toContain("t.safetensors: 6 rows over 420 tokens; it does not say what attention gave there.");
      expect(page).not.toMatch(/NaN|undefined|Infinity|still answers questions/);
      expect(await readFile(join(out, "tables.md"), "utf8")).toContain("| `quest` | 128 |");

      const journal = await readFile(join(out, "journal.jsonl"), "utf8");
      await writeFile(join(out, "journal.jsonl"), journal.slice(0, -40));
      expect(await evaluate(out, path)).toMatchObject({ code: 0 });
      expect(await readFile(join(out, "journal.jsonl"), "utf8")).toBe(journal);
      const again = await readFile(join(out, "figures.json"), "utf8");
      const figures = (text: string) => JSON.parse(text).fidelity;
      expect(figures(again)).toEqual(figures(report));

      await writeTrace(path, madeTrace(SHAPE, POSITIONS, { seed: 2 }));
      const other = await evaluate(out, path);
      expect([other.code, other.err]).toEqual([1, expect.stringContaining("holds results of other settings")]);
    });
  });

  it("of several files has intervals over them, and refuses those of another model", async () => {
    await withTempFolder(async (folder) => {
      const paths = [1, 2, 3].map((seed) => join(folder, `${seed}.safetensors`));
      for (const [index, path] of paths.entries())
        await writeTrace(path, madeTrace(SHAPE, POSITIONS, { seed: index + 1 }));
      const out = join(folder, "out");
      expect(await evaluate(out, paths.join())).toMatchObject({ code: 0 });
      const report = await reportIn(out);
      expect(report.traces.map(({ file }) => file)).toEqual(["1.safetensors", "2.safetensors", "3.safetensors"]);
      expect(report.fidelity.map(({ mass }) => mass.count)).toEqual(Array(8).fill(3));
      await writeTrace(paths[1] as string, madeTrace({ ...SHAPE, heads: 2 }, POSITIONS));
      const { code, err } = await evaluate(join(folder, "two"), paths.join());
      expect([code, err]).toEqual([
        1,
        expect.stringContaining("1.safetensors has heads 4, 2.safetensors 2; judge them apart"),
      ]);
    });
  });

  it("tells where signs cannot be judged, and of flags that say nothing of a trace", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "t.safetensors");
      await writeTrace(path, madeTrace({ ...SHAPE, headDim: 12 }, POSITIONS));
      const refusal = async (...more: string[]) => (await evaluate(join(folder, "out"), path, ...more)).err;
      expect(await refusal("--policies", "sign-hash")).toContain("multiple of 8; t.safetensors has 12");
      const other = await evaluate(join(folder, "other"), path, "--policies", "residual-signs");
      expect(other.err).toContain("multiple of 16; t.safetensors has 12");
      expect(await refusal("--contexts", "256")).toContain("--contexts says nothing of a trace");
      expect(await refusal("--quick")).toContain("--quick says nothing of a trace");
      expect(await refusal("--model", "weights/house-1")).toContain("--model says nothing of a trace");
      expect(await refusal("--documents", "3")).toContain("--documents says nothing of a trace");
      expect((await evaluate("/dev/null/x", path)).err).toContain("--out: /dev/null/x cannot be used");
      expect((await evaluate(join(folder, "out"), join(folder, "none"))).err).toContain("none: cannot be opened");
      await writeTrace(
        path,
        madeTrace(
          SHAPE,
          Array.from({ length: 400 }, (_, position) => position),
        ),
      );
      expect(await evaluate(join(folder, "all"), path, "--budgets", "128")).toMatchObject({ code: 0 });
    });
  });
});
