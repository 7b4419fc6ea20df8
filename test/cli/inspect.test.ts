import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openSafetensors } from "../../models/safetensors.ts";
import { runQuire, withTempFolder } from "./run-quire.ts";

describe("quire inspect", () => {
  it("says what house-0 is and costs, as JSON", async () => {
    const { code, stdout, stderr } = await runQuire(["inspect", "weights/house-0", "--json", "--memory=64M"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const report = JSON.parse(stdout);
    const file = await openSafetensors("weights/house-0/model.safetensors");
    const counts = file.names.map((name) => file.shape(name)!.reduce((a, b) => a * b, 1));
    await file.close();
    expect(report.parameterCount).toBe(counts.reduce((a, b) => a + b));
    expect(report.auto).toBe("quest+radius(0.5)+combine(sum), budget 2048: nobody has calibrated it");
    expect(report).toMatchObject({ format: "safetensors", weights: "int8", kv: "int8" });
    // 4 layers, 2 KV heads of 32.
    expect(report.kvTokenBytes).toBe(4 * 2 * (32 + 32 + 2 + 4));
    expect(report.summaryTokenBytes).toBe((2 * 4 * 2 * 2 * (32 + 4)) / 16);
    // Its default.
    expect(report.hostPoolBytes).toBe(256 * 2 ** 20);
    expect(report.hostPoolTokens).toBe(Math.floor((256 * 2 ** 20) / (4 * 2 * (32 + 32 + 2 + 4) + 72)));
    expect(report.segmentBytes).toBeGreaterThan(256 * report.kvTokenBytes);
    expect(report.segmentBytes).toBeLessThan(256 * report.kvTokenBytes + 1024);
    expect(report.cpuContextTokensMax).toBe(32768);
    expect(report.fits).toEqual([{ memoryBytes: 2 ** 26, contextTokensMax: 32768 }]);
  });

  it("counts pages in the store and in host memory as --page-encoding has them", async () => {
    const { stdout } = await runQuire(["inspect", "weights/house-0", "--json", "--page-encoding=int4"]);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ kv: "int8", pages: "int4", kvTokenBytes: 4 * 2 * (32 + 32 + 2 + 4) });
    const storedTokenBytes = 4 * 2 * (32 + 3 + 6);
    expect(report.hostPoolTokens).toBe(Math.floor((256 * 2 ** 20) / (storedTokenBytes + 72)));
    expect(report.segmentBytes - 256 * storedTokenBytes).toBeGreaterThan(0);
    expect(report.segmentBytes - 256 * storedTokenBytes).toBeLessThan(1024);
    const refused = await runQuire(["inspect", "weights/house-0", "--kv=f32", "--page-encoding=int4"]);
    expect(refused.code).not.toBe(0);
    expect(refused.stderr).toContain("pages of an f32 pool are stored as f32 or f16, not int4");
  });

  it("says it in words, also of a GGUF file", async () => {
    const { code, stdout } = await runQuire(["inspect", "--kv", "f32", "test/models/vectors/fixtures/qwen2-f16.gguf"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/architecture +qwen2: .*4 query heads per KV head; biases of Q, K and V; .*yarn by 4/);
    expect(stdout).toMatch(/context +256 tokens/);
    expect(stdout).toMatch(/a token's KV +128 B in f32/);
    expect(stdout).toMatch(/host memory +\d+ tokens behind the pool in 256 MiB/);
  });

  it("says what auto chooses, by what lies beside the model", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const inspectWith = async (fields: object) => {
        await writeFile(join(model, "selection.json"), JSON.stringify({ format: 1, fingerprint: "f", ...fields }));
        return (await runQuire(["inspect", model])).stdout.split("\n").find((line) => line.startsWith("auto "));
      };
      const budgets = [
        { contextTokens: 4096, budgetTokens: 512 },
        { contextTokens: 8192, budgetTokens: 512 },
        { contextTokens: 16384, budgetTokens: 1024 },
      ];
      expect(await inspectWith({ selection: "quest+sink(16)", denseBelowTokens: 4096, budgets })).toMatch(
        /^auto +dense below 4096 tokens; from there quest\+sink\(16\), budget 512 up to 8192, 1024 up to 16384, beyond/,
      );
      expect(await inspectWith({ selection: "quest", budgets: [] })).toMatch(/^auto +dense at every context/);
      // A file that is none is what the engine ignores, too.
      expect(await inspectWith({ selection: "magic", budgets: [] })).toMatch(
        /^auto +quest\+radius.*selection\.json: selection is none in canonical form/,
      );
    });
  });

  it.each([
    [["inspect"], /needs one model/],
    [["inspect", "a", "b"], /needs one model/],
    [["inspect", "nowhere"], /nowhere: is not there/],
    [["inspect", "test/models"], /has no model\.safetensors/],
    [["inspect", "weights/house-0", "--kv=int2"], /--kv: must be one of/],
  ])("%j ends in one line", async (args, message) => {
    const { code, stdout, stderr } = await runQuire(args);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(message);
    expect(stderr.trim()).not.toContain("\n");
  });
});
