/** The configuration language of selection: what is read, what is refused, and how a text becomes canonical. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { QuireError } from "../../protocol/errors.ts";
import {
  isCanonicalSelection,
  parseRequestedSelection,
  parseSelection,
  SELECTION_POLICIES,
  splitSelections,
} from "../../protocol/selection.ts";
import { selectionParts } from "./arbitrary-selection.ts";

function messageOf(text: string): string {
  try {
    parseSelection(text);
  } catch (error) {
    expect(error).toBeInstanceOf(QuireError);
    expect(error).toMatchObject({ code: "invalid_request", param: "quire.selection.policy" });
    return (error as QuireError).message;
  }
  throw new Error(`${text} was read`);
}

describe("the configuration language", () => {
  it.each(SELECTION_POLICIES)("reads the bare policy %s", (policy) => {
    expect(parseSelection(policy)).toEqual({ policy, modifiers: [], canonical: policy });
  });

  it("reads modifiers in any order, with spaces, and writes them one way", () => {
    expect(parseSelection(" mean-deviation + sink( 64 )+combine(max) +radius(0.50) ")).toEqual({
      policy: "mean-deviation",
      modifiers: [
        { name: "radius", value: 0.5 },
        { name: "combine", value: "max" },
        { name: "sink", value: 64 },
      ],
      canonical: "mean-deviation+radius(0.5)+combine(max)+sink(64)",
    });
  });

  it("reads numbers for layers, and heads by share or by name", () => {
    expect(parseSelection("quest+heads(0.50)+layer-budgets( 2 , 0.5,1)").modifiers).toEqual([
      { name: "layer-budgets", value: "2,0.5,1" },
      { name: "heads", value: 0.5 },
    ]);
    expect(parseSelection("streaming + heads( x0a )").canonical).toBe("streaming+heads(x0a)");
  });

  it.each([
    [
      "",
      `the end at position 0 of "": expected a policy: dense, streaming, quest, mean-deviation, arkvale, infllm, sign-hash, residual-signs, tokenselect`,
    ],
    ["magic", `': "magic": expected a policy: dense`],
    ["questx", `': "questx": expected a policy`],
    ["Quest", `': "Quest": expected a policy`],
    [
      "quest+",
      `the end at position 6 of "quest+": expected a modifier of quest: radius, combine, scope, top-p, coarse, sink, recent, first-turn, group, dense-layers, own-layers, share, reuse, layer-budgets, head-budgets, heads`,
    ],
    ["quest+candidates(2)", `"candidates" at position 6`],
    [
      "tokenselect+scope(layer)",
      `expected a modifier of tokenselect: radius, candidates, sink, recent, first-turn, group, dense-layers, own-layers, share`,
    ],
    ["dense+sink(16)", `"sink" at position 6 of "dense+sink(16)": there is no further modifier`],
    ["quest sink(16)", `"sink" at position 6 of "quest sink(16)": expected "+" or the end`],
    ["quest+scope", `the end at position 11 of "quest+scope": expected "(" behind scope`],
    ["quest+scope(page)", `"page" at position 12 of "quest+scope(page)": expected the argument of scope: head, layer`],
    ["quest+scope(layer", `the end at position 17 of "quest+scope(layer": expected ")"`],
    ["quest+sink(15)", `"15" at position 11 of "quest+sink(15)": sink takes a multiple of 16 from 0 to 1048576`],
    ["quest+sink(-16)", `"-16" at position 11`],
    ["quest+recent(0)", `recent takes a multiple of 16 from 16 to 1048576`],
    ["quest+radius(1e2)", `"e2" at position 14 of "quest+radius(1e2)": expected ")"`],
    ["quest+reuse(6)", `"6" at position 12 of "quest+reuse(6)": reuse takes one of 2, 4, 8, 16`],
    ["streaming+reuse(4)", `"reuse" at position 10`],
    ["tokenselect+candidates(1.5)", `candidates takes a whole number from 1 to 1024`],
    [
      "quest+sink(16)+sink(32)",
      `"sink" at position 15 of "quest+sink(16)+sink(32)": expected a modifier of quest: radius`,
    ],
    ["quest+__proto__(1)", `"_" at position 6`],
    ["quest+constructor(1)", `"constructor" at position 6`],
    [`quest${"+sink(16)".repeat(71)}`, "a selection has at most 640 characters, not 644"],
    ["tokenselect+layer-budgets(1)", `"layer-budgets" at position 12`],
    [
      "quest+layer-budgets()",
      `")" at position 20 of "quest+layer-budgets()": layer-budgets takes a number from 0 to 64`,
    ],
    ["quest+layer-budgets(1,)", `")" at position 22`],
    ["quest+layer-budgets(1,65)", `"65" at position 22`],
    [`quest+layer-budgets(${"1,".repeat(128)}1)`, "layer-budgets takes at most 128 numbers"],
    [
      "quest+heads(2)",
      `"2" at position 12 of "quest+heads(2)": heads takes a number from 0 to 1, or x and the heads in hex`,
    ],
    ["quest+heads(x)", `"x" at position 12`],
    ["quest+heads(x0G)", `"G" at position 14 of "quest+heads(x0G)": expected ")"`],
    ["dense+heads(0.5)", `"heads" at position 6`],
  ])("refuses %j and says where and what could stand there", (text, message) => {
    expect(messageOf(text)).toContain(message);
  });

  it("is canonical after one reading, whatever the order", () => {
    fc.assert(
      fc.property(selectionParts(), ([policy, modifiers]) => {
        const text = [policy, ...modifiers].join("+");
        fc.pre(text.length <= 120);
        const { canonical, modifiers: read } = parseSelection(text);
        expect(isCanonicalSelection(canonical)).toBe(true);
        expect(parseSelection([policy, ...modifiers.toReversed()].join("+")).canonical).toBe(canonical);
        expect([...modifiers].sort()).toEqual(read.map(({ name, value }) => `${name}(${value})`).sort());
      }),
      { seed: 7 },
    );
  });

  it("knows what is not canonical", () => {
    for (const text of ["quest ", "quest+sink(064)", "quest+sink(64)+radius(1)", "magic", "dense.1:128@16"]) {
      expect(isCanonicalSelection(text), text).toBe(false);
    }
  });

  it("lets a request name auto, and nothing else do so", () => {
    expect(parseRequestedSelection(" auto ")).toBe("auto");
    expect(parseRequestedSelection("quest + sink(64)")).toBe("quest+sink(64)");
    expect(() => parseRequestedSelection("autos")).toThrow(/expected a policy: dense, .*, tokenselect, auto/);
    expect(() => parseRequestedSelection("auto+sink(64)")).toThrow(QuireError);
    expect(messageOf("auto")).toContain(`': "auto": expected a policy`);
    expect(isCanonicalSelection("auto")).toBe(false);
  });

  it("splits lists at commas outside of parentheses", () => {
    expect(splitSelections("quest,quest+sink(1,2),dense")).toEqual(["quest", "quest+sink(1,2)", "dense"]);
  });
});
