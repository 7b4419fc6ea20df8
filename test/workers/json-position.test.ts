/** Where a body stops being JSON: against the runtime's own parser, which knows whether, and in some of its messages where. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { jsonErrorIndex } from "../../workers/json-position.ts";

/** The parser's message, or undefined for JSON. */
function refusal(text: string): string | undefined {
  try {
    JSON.parse(text);
    return undefined;
  } catch (error) {
    return String(error);
  }
}

describe("the place at which a text stops being JSON", () => {
  it.each([
    ["", 0],
    ["  ", 2],
    ['{"model":"house",}', 17],
    ["{'a':1}", 1],
    ['{"a":1', 6],
    ['{"a" 1}', 5],
    ['{"a":"b', 7],
    ['{"a":"\\x"}', 7],
    ['{"a":"line\nbreak"}', 10],
    ["[1 2]", 3],
    ["[01]", 2],
    ["[1]x", 3],
    ['{"a":tru}', 5],
    ['\u00a0{"a":1}', 0],
    [' {"a":[1,{"b":null}],"c":-1.5e3,"d":"\\u00e4"} \r\n', undefined],
  ])("of %j is %j", (text, index) => {
    expect(jsonErrorIndex(text)).toBe(index);
    expect(refusal(text) === undefined).toBe(index === undefined);
  });

  it("is none of what the parser takes, and one of what it refuses, at the place that it names where it does", () => {
    const edits = fc.array(fc.tuple(fc.nat(), fc.nat(2), fc.constantFrom(...'{}[]:,"\\u0e+-.1tn \n\u0001')), {
      maxLength: 3,
    });
    let [taken, refused, named] = [0, 0, 0];
    const property = fc.property(fc.json({ maxDepth: 4 }), edits, (json, changes) => {
      let text = json;
      for (const [at, dropCount, added] of changes) {
        const index = at % (text.length + 1);
        text = text.slice(0, index) + added + text.slice(index + dropCount);
      }
      const message = refusal(text);
      const index = jsonErrorIndex(text);
      expect([text, index === undefined]).toEqual([text, message === undefined]);
      if (message === undefined) taken += 1;
      else refused += 1;
      const place = /at position (\d+)/.exec(message ?? "")?.[1];
      if (place === undefined || index === undefined || /escape/i.test(message ?? "")) return;
      named += 1;
      // Of a word or a number that is none it names the letter, we the beginning.
      const between = index > Number(place) ? "behind" : text.slice(index, Number(place));
      expect([text, between]).toEqual([text, /^(?!behind)[a-z\d.+-]*$/i.exec(between)?.[0]]);
    });
    fc.assert(property, { numRuns: 3_000 });
    expect(Math.min(taken, refused, named)).toBeGreaterThan(100);
  });

  it("is found in megabytes, and behind a string of them", () => {
    const text = `{"a":"${"x".repeat(8_000_000)}",}`;
    expect(jsonErrorIndex(text)).toBe(text.length - 1);
  });
});
