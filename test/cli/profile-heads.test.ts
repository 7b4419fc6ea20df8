/** `quire profile-heads`: what it writes is what an engine and the instrument read. */
import { cp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { copyingShare } from "../../bench/eval/profile-heads.ts";
import { main } from "../../cli/main.ts";
import { profileHeadsCommand } from "../../cli/profile-heads.ts";
import { readHeadProfile } from "../../engine/calibration.ts";
import { captured } from "./captured.ts";
import { withTempFolder } from "./run-quire.ts";

/** 4 layers of 2 KV heads. */
const SHAPE = { layerCount: 4, kvHeadCount: 2 };

describe("quire profile-heads", () => {
  it("a head that copies looks at the same token of the first reading, or at the one behind it", () => {
    // Ten tokens, read twice: the row of token 13 looks back at 3 and 4.
    const weights = Float64Array.from({ length: 14 }, (_, token) => 2 ** -token);
    expect(copyingShare(weights, 10)).toBe(2 ** -3 + 2 ** -4);
  });

  it("writes a score for every KV head beside the model, which an engine of that model takes, and no other", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const profile = () => profileHeadsCommand.run([model, "--tokens", "128", "--threads", "1"]);
      const out = await captured(process.stdout, profile);
      expect(out).toContain(`written: ${join(model, "heads.json")}`);
      const written = JSON.parse(await readFile(join(model, "heads.json"), "utf8"));
      const logged: string[] = [];
      const log = (event: string) => void logged.push(event);
      const read = await readHeadProfile(model, { ...SHAPE, fingerprint: written.fingerprint, log });
      expect(read).toEqual({ format: 1, fingerprint: written.fingerprint, scores: written.scores });
      // The model answers by copying from a passage, so something in it copies: a head that looks anywhere has 2 of 128 tokens at most.
      const scores: number[] = written.scores.flat();
      expect(Math.max(...scores)).toBeGreaterThan(2 * (2 / 128));
      for (const score of scores) expect(score >= 0 && score <= 1).toBe(true);
      expect(logged).toEqual([]);
      expect(await readHeadProfile(model, { ...SHAPE, fingerprint: "0".repeat(64), log })).toBeUndefined();
      expect(logged).toEqual(["heads.ignored"]);
      await captured(process.stdout, profile);
      expect(JSON.parse(await readFile(join(model, "heads.json"), "utf8")).scores).toEqual(written.scores);
    });
  }, 120_000);

  it("by damage: heads that see everything lose nothing, heads that stream do, and what is proposed keeps to the bytes", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const few = ["--context", "512", "--kinds", "code", "--cases", "2", "--budget", "128", "--threads", "1"];
      const damage = ["--by", "damage", "--bytes-max", "0.5", ...few];
      let out = "";
      await captured(process.stderr, async () => {
        out = await captured(process.stdout, () => profileHeadsCommand.run([model, ...damage]));
      });
      const [, shares, percent] = /quest\+head-budgets\(([\d.,]+)\) with 128 tokens reads ([\d.]+) %/.exec(out) ?? [];
      expect(shares?.split(",")).toHaveLength(8);
      expect(Number(percent)).toBeLessThanOrEqual(50);
      expect(Number(percent)).toBeGreaterThan(20);
      const { scores, measured } = JSON.parse(await readFile(join(model, "heads.json"), "utf8"));
      expect(measured).toMatchObject({ by: "damage", selection: "quest", budgetTokens: 128, cases: 2 });
      for (const score of scores.flat()) expect(score).toBeGreaterThan(0);
      // It answers by copying: one head at least is missed more than the idlest by far.
      expect(Math.max(...scores.flat())).toBeGreaterThan(100 * Math.min(...scores.flat()));
    });
  }, 120_000);

  it.each([
    [[], "profile-heads needs a model folder"],
    [["weights/house-0", "--tokens", "100"], "--tokens: must be a multiple of 64"],
    [["weights/house-0", "--by", "guess"], "--by: "],
    [["weights/house-0", "--bytes-max", "2"], "--bytes-max: must be a number above 0, at most 1"],
    [["/nowhere"], "/nowhere: is not there"],
  ])("refuses %j in one line", async (args, message) => {
    let code = 0;
    const err = await captured(process.stderr, async () => {
      code = await main(["profile-heads", ...args]);
    });
    expect([code, err]).toEqual([1, expect.stringContaining(message)]);
    expect(err.trimEnd()).not.toContain("\n");
  });
});
