import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { EncodingRow } from "../../bench/encodings/encodings.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("the benchmark of page encodings", () => {
  it("compares every encoding with f32 on the same tokens, and counts the bytes of the page format", async () => {
    await withTempFolder(async (folder) => {
      const text = join(folder, "text.txt");
      const words = Array.from(
        { length: 600 },
        (_, index) => ["the", "red", "ship", "sails", "north"][(index * 7) % 5],
      );
      await writeFile(text, words.join(" "));
      const json = join(folder, "out.json");
      const flags = ["--model", "weights/house-0", "--threads", "1", "--text", text, "--json", json];
      const sizes = ["--context", "256", "--tokens", "40", "--documents", "1"];
      const { code, err } = await runBench(["encodings", ...flags, ...sizes]);
      expect(code, err).toBe(0);
      const { rows } = JSON.parse(await readFile(json, "utf8")) as { rows: EncodingRow[] };
      const config = JSON.parse(await readFile("weights/house-0/config.json", "utf8"));
      const { num_hidden_layers: L, num_key_value_heads: H, head_dim: D } = config;
      const [f32, f16, int8, int4] = rows as [EncodingRow, EncodingRow, EncodingRow, EncodingRow];
      const summaries = (L * H * (8 * D + 32)) / 64;
      const perToken = (blockBytes: number) => (L * blockBytes) / 64 + summaries;
      expect(rows.map((row) => [row.encoding, row.bytesPerToken])).toEqual([
        ["f32", perToken(8 * H * 64 * D)],
        ["f16", perToken(4 * H * 64 * D)],
        ["int8", perToken(H * (2 * 64 * D + 4 * D + 4 * 64))],
        ["int4", perToken(H * (64 * D + 6 * D + 6 * 64))],
      ]);
      expect(int4.shareOfF16).toBeCloseTo(int4.bytesPerToken / (4 * L * H * D), 9);
      expect(f32).toMatchObject({ divergence: 0, topAgreement: 1 });
      for (const row of [f16, int8]) {
        expect(row.divergence).toBeGreaterThan(0);
        expect(row.divergence).toBeLessThan(int4.divergence / 2);
      }
      expect(Math.abs(int4.loss - f32.loss)).toBeLessThan(0.5);
    });
  });

  it("wants a text", async () => {
    expect(await runBench(["encodings"])).toMatchObject({ code: 1, err: expect.stringContaining("--text") });
  });
});
