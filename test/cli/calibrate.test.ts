/** `quire calibrate` on house-0: what it writes is what an engine reads. */
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { calibrateCommand } from "../../cli/calibrate.ts";
import { main } from "../../cli/main.ts";
import { profileHeadsCommand } from "../../cli/profile-heads.ts";
import { readCalibration } from "../../engine/calibration.ts";
import { UNCALIBRATED_SELECTION } from "../../models/selection/calibration.ts";
import { captured } from "./captured.ts";
import { withTempFolder } from "./run-quire.ts";

const SMALL = ["--contexts", "512,1024", "--budgets", "128,256", "--documents", "2", "--tokens", "4", "--threads", "1"];

describe("quire calibrate", () => {
  it("writes a decision beside the model that an engine of that model takes, and no other", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const out = await captured(process.stdout, () => calibrateCommand.run([model, ...SMALL]));
      expect(out).toContain(`written: ${join(model, "selection.json")}`);
      expect(out).toMatch(/auto: dense (below|at every)/);
      const written = JSON.parse(await readFile(join(model, "selection.json"), "utf8"));
      expect(written).toMatchObject({ format: 1, selection: UNCALIBRATED_SELECTION, promise: { divergenceMax: 0.01 } });
      expect(written.measured.map((row: { contextTokens: number }) => row.contextTokens)).toEqual([512, 1024]);
      const logged: string[] = [];
      const log = (event: string) => void logged.push(event);
      const kinds = ["min-max"] as const;
      const read = await readCalibration(model, { fingerprint: written.fingerprint, kinds, log });
      expect(read).toMatchObject({ selection: UNCALIBRATED_SELECTION, budgets: written.budgets });
      expect(logged).toEqual([]);
      expect(await readCalibration(model, { fingerprint: "0".repeat(64), kinds, log })).toBeUndefined();
      expect(logged).toEqual(["calibration.ignored"]);
      // An engine that does not keep what the selection scores by.
      const other = { fingerprint: written.fingerprint, kinds: ["sign-bits"] as const, log };
      expect(await readCalibration(model, other)).toBeUndefined();
      expect(logged).toEqual(["calibration.ignored", "calibration.ignored"]);
      expect(
        await readCalibration("weights/house-0", { fingerprint: written.fingerprint, kinds, log }),
      ).toBeUndefined();
    });
  }, 120_000);

  it("writes a share of the heads by name, as the model's profile has them, and refuses it without one", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const few = ["--contexts", "512", "--budgets", "128", "--documents", "1", "--tokens", "2", "--threads", "1"];
      const calibrate = () => calibrateCommand.run([model, "--selection", "quest+heads(0.5)", ...few]);
      await expect(calibrate()).rejects.toThrow(/heads\(0\.5\) needs a profile of this model/);
      await captured(process.stdout, () => profileHeadsCommand.run([model, "--tokens", "64", "--threads", "1"]));
      const { fingerprint } = JSON.parse(await readFile(join(model, "heads.json"), "utf8"));
      const scores = [0, 1, 2, 3].map((layer) => [layer, 9 - layer]);
      await writeFile(join(model, "heads.json"), JSON.stringify({ format: 1, fingerprint, scores }));
      await captured(process.stdout, calibrate);
      const log = () => expect.fail("it is of use");
      const read = await readCalibration(model, { fingerprint, kinds: ["min-max"], log });
      // The second KV head of every layer.
      expect(read?.selection).toBe("quest+heads(x55)");
    });
  }, 120_000);

  it("goes on from what --out holds: nothing is measured twice, times included", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const out = join(folder, "measured");
      const calibrate = async () => {
        await captured(process.stdout, () => calibrateCommand.run([model, ...SMALL, "--out", out]));
        return JSON.parse(await readFile(join(model, "selection.json"), "utf8"));
      };
      const first = await calibrate();
      const journal = await readFile(join(out, "journal.jsonl"), "utf8");
      // Two texts behind two contexts, the settings and what they name.
      expect(journal.trimEnd().split("\n")).toHaveLength(6);
      expect((await calibrate()).measured).toEqual(first.measured);
      expect(await readFile(join(out, "journal.jsonl"), "utf8")).toBe(journal);
    });
  }, 120_000);

  it("promises answers, by questions, in the place of the next token", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house");
      await cp("weights/house", model, {
        recursive: true,
        filter: (path) => !/train|documents|cases|selection/.test(path),
      });
      const few = ["--contexts", "512", "--budgets", "128", "--documents", "1", "--tokens", "2", "--threads", "1"];
      const selection = ["--selection", "quest+layer-budgets(4)+heads(0.125)"];
      const asked = ["--answers-lost-max", "100", "--cases", "4", "--kinds", "single"];
      const out = await captured(process.stdout, () => calibrateCommand.run([model, ...few, ...selection, ...asked]));
      expect(out).toContain("lost %");
      const written = JSON.parse(await readFile(join(model, "selection.json"), "utf8"));
      // One head of eight, the second layer's first.
      expect(written).toMatchObject({
        selection: "quest+layer-budgets(4)+heads(x20)",
        promise: { answersLostMax: 1 },
      });
      expect(written.promise).not.toHaveProperty("divergenceMax");
    });
  }, 120_000);

  it.each([
    [[], "calibrate needs a model folder"],
    [["weights/house-0", "--divergence-max", "0"], "--divergence-max: must be a number above 0"],
    [["weights/house-0", "--answers-lost-max", "101"], "--answers-lost-max: must be a number above 0, at most 100"],
    [["weights/house-0", "--selection", "auto"], `--selection: "auto": expected a policy`],
    [["/nowhere"], "/nowhere: is not there"],
  ])("refuses %j in one line", async (args, message) => {
    let code = 0;
    const err = await captured(process.stderr, async () => {
      code = await main(["calibrate", ...args]);
    });
    expect([code, err]).toEqual([1, expect.stringContaining(message)]);
    expect(err.trimEnd()).not.toContain("\n");
  });
});
