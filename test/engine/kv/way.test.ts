import { describe, expect, it } from "vitest";
import { parseHow } from "../../../engine/kv/provenance.ts";
import { parseWay, Ways } from "../../../engine/kv/way.ts";
import { policyNamed } from "../../../models/selection/registry.ts";

describe("a way", () => {
  it.each([
    ["quest.1:2048@16", 1],
    ["quest+reuse(8).1:1024@1", 8],
    ["quest+reuse(8).1:1024@16", 1],
    ["tokenselect.1:512@1~0a1b", 1],
  ])("of %s is what it says, with its policy's plan and %i rows that share a choice", (text, runTokens) => {
    const how = parseHow(text)!;
    expect(parseWay(text)).toEqual({ ...how, plan: policyNamed(how.policy).plan(how.budgetTokens), runTokens });
  });

  it("of dense is none, of nonsense an error", () => {
    expect(parseWay("dense")).toBeUndefined();
    expect(() => parseWay("quest")).toThrow("not a provenance");
    expect(() => parseWay("unheard.1:2048@16")).toThrow("expected a policy");
  });

  it("is parsed once while it is asked for again, and is never another span's", () => {
    const ways = new Ways();
    const first = ways.of("quest.1:2048@16");
    expect(ways.of("quest.1:2048@16")).toBe(first);
    expect(ways.of("quest.1:2048@1")?.groupTokens).toBe(1);
    expect(ways.of("dense")).toBeUndefined();
    expect(ways.of("quest.1:2048@16")).toEqual(first);
  });
});
