/** What `auto` stands for, and which files say so. */
import { describe, expect, it } from "vitest";
import { type Calibration, chooseSelection, parseCalibration } from "../../../models/selection/calibration.ts";

const CALIBRATION: Calibration = {
  format: 1,
  fingerprint: "f".repeat(64),
  selection: "mean-deviation+sink(64)",
  denseBelowTokens: 4096,
  budgets: [
    { contextTokens: 4096, budgetTokens: 512 },
    { contextTokens: 16384, budgetTokens: 1024 },
  ],
};
const choose = (contextTokens: number, calibration: Calibration | undefined = CALIBRATION) =>
  chooseSelection(calibration, { contextTokens, budgetTokens: 0 });
const selected = (budgetTokens: number) => ({ policy: "mean-deviation+sink(64)", budgetTokens });

describe("auto", () => {
  it("is dense below the break-even, then has the budget measured, interpolated between contexts in whole pages", () => {
    expect(choose(1)).toEqual({ policy: "dense", budgetTokens: 2048 });
    expect(choose(4095)).toEqual({ policy: "dense", budgetTokens: 2048 });
    expect(choose(4096)).toEqual(selected(512));
    expect(choose(4097)).toEqual(selected(528));
    // A third of the way: 512 + 512 / 3 is 682.7.
    expect(choose(8192)).toEqual(selected(688));
    expect(choose(10240)).toEqual(selected(768));
    expect(choose(16384)).toEqual(selected(1024));
    const late = { ...CALIBRATION, denseBelowTokens: 1000 };
    expect(choose(1000, late)).toEqual(selected(512));
  });

  it("grows with the context beyond what was measured, in whole pages", () => {
    expect(choose(32768)).toEqual(selected(2048));
    expect(choose(16385)).toEqual(selected(1040));
  });

  it("takes a budget that the request names, still dense below the break-even", () => {
    const choice = (contextTokens: number) => chooseSelection(CALIBRATION, { contextTokens, budgetTokens: 256 });
    expect(choice(4095)).toEqual({ policy: "dense", budgetTokens: 256 });
    expect(choice(16384)).toEqual(selected(256));
  });

  it("is dense everywhere where nothing paid, and what the request names where nobody measured", () => {
    const { denseBelowTokens: _, ...never } = { ...CALIBRATION, budgets: [] };
    expect(choose(1_000_000, never)).toEqual({ policy: "dense", budgetTokens: 2048 });
    const uncalibrated = "quest+radius(0.5)+combine(sum)";
    const choice = (budgetTokens: number) => chooseSelection(undefined, { contextTokens: 9000, budgetTokens });
    expect(choice(256)).toEqual({ policy: uncalibrated, budgetTokens: 256 });
    expect(choice(0)).toEqual({ policy: uncalibrated, budgetTokens: 2048 });
  });
});

describe("a calibration file", () => {
  const parse = (fields: object) => parseCalibration(JSON.stringify({ ...CALIBRATION, ...fields }), "f".repeat(64));

  it("is read with whatever else it says for people", () => {
    expect(parse({ promise: { divergenceMax: 0.01 }, measured: [1, 2] })).toEqual(CALIBRATION);
  });

  it.each([
    [{ format: 2 }, "format is not 1"],
    [{ fingerprint: "0" }, "it is of another model or weight encoding"],
    [{ selection: "magic" }, "selection is none in canonical form"],
    [{ selection: "auto" }, "selection is none in canonical form"],
    [{ denseBelowTokens: -1 }, "denseBelowTokens is not a token count"],
    [{ budgets: [] }, "budgets are empty"],
    [{ budgets: 7 }, "budgets is not a list"],
    [{ budgets: [{ contextTokens: 4096 }] }, "budgets do not ascend"],
    [{ budgets: [null] }, "budgets do not ascend"],
    [{ budgets: [...CALIBRATION.budgets].reverse() }, "budgets do not ascend"],
    [{ budgets: [{ contextTokens: 4096, budgetTokens: 500 }] }, "multiple of 16"],
    [{ selection: "quest+sink(512)" }, "too small for a selection"],
  ])("with %j is refused by name", (fields, message) => {
    expect(() => parse(fields)).toThrow(message);
    expect(() => parse(fields)).toThrow(expect.objectContaining({ code: "invalid_request" }));
  });

  it.each(["", "[]", "null", "{"])("that is %j is refused", (text) => {
    expect(() => parseCalibration(text, "f")).toThrow("it is not a JSON object");
  });
});
