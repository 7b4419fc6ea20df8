/** Which heads a share of them stands for, and which files say so. */
import { describe, expect, it } from "vitest";
import {
  type HeadProfile,
  namesHeadsOf,
  parseHeadProfile,
  resolveHeads,
} from "../../../models/selection/head-profile.ts";

const SHAPE = { layerCount: 3, kvHeadCount: 2 };
const HEADS: HeadProfile = {
  format: 1,
  fingerprint: "f".repeat(64),
  scores: [
    [0.1, 0.9],
    [0.3, 0.2],
    [0.3, 0.8],
  ],
};
const resolve = (selection: string, heads: HeadProfile | undefined = HEADS) =>
  resolveHeads(selection, { ...SHAPE, heads });
const refused = { code: "invalid_request", param: "quire.selection.policy" };

describe("a share of the heads", () => {
  it.each([
    // Of six heads in layer order: the second, the last; then the fourth-best tie goes to the lower layer.
    [0.33, "x44"],
    [0.5, "x64"],
    [0.6, "x6c"],
    [0, "x40"],
    [1, "xfc"],
  ])("%d becomes the best of them, by name", (share, named) => {
    expect(resolve(`quest+heads(${share})`)).toBe(`quest+heads(${named})`);
  });

  it("leaves the rest of a selection, and one without heads, as it is", () => {
    expect(resolve("quest+sink(64)+heads(0.5)")).toBe("quest+sink(64)+heads(x64)");
    expect(resolve("quest+sink(64)")).toBe("quest+sink(64)");
    expect(resolveHeads("quest+heads(x64)", SHAPE)).toBe("quest+heads(x64)");
  });

  it("is refused on a model without a profile, and so are heads of another shape", () => {
    expect(() => resolveHeads("quest+heads(0.5)", SHAPE)).toThrow(expect.objectContaining(refused));
    expect(() => resolveHeads("quest+heads(0.5)", SHAPE)).toThrow(
      /heads\(0\.5\) needs a profile .* quire profile-heads/,
    );
    expect(() => resolve("quest+heads(x6)")).toThrow(/heads\(x6\) is not of a model of 3 layers of 2 KV heads/);
    expect(
      ["quest+heads(x64)", "quest+heads(x6)", "quest+heads(x641)", "quest"].map((text) => namesHeadsOf(text, SHAPE)),
    ).toEqual([true, false, false, true]);
  });
});

describe("a profile", () => {
  const parse = (fields: object) =>
    parseHeadProfile(JSON.stringify({ ...HEADS, ...fields }), { ...SHAPE, fingerprint: HEADS.fingerprint });

  it("is read with whatever else it says for people", () => {
    expect(parse({ measured: "on a text" })).toEqual(HEADS);
  });

  it.each([
    [{ format: 2 }, "heads.json: format is not 1"],
    [{ fingerprint: "0" }, "it is of another model or weight encoding"],
    [{ scores: undefined }, "scores are not 3 layers of 2 KV heads"],
    [{ scores: HEADS.scores.slice(1) }, "scores are not 3 layers"],
    [{ scores: [[0.1, 0.9], [0.3], [0.3, 0.8]] }, "scores are not 3 layers"],
    [
      {
        scores: [
          [0.1, "0.9"],
          [0.3, 0.2],
          [0.3, 0.8],
        ],
      },
      "scores are not 3 layers",
    ],
  ])("with %j is refused by name", (fields, message) => {
    expect(() => parse(fields)).toThrow(message);
  });

  it.each(["", "null", "7", "[]"])("that is %j is none", (text) => {
    expect(() => parseHeadProfile(text, { ...SHAPE, fingerprint: "" })).toThrow(/^heads\.json: /);
  });
});
