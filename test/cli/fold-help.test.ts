import { describe, expect, it } from "vitest";
import { foldHelp } from "../../cli/fold-help.ts";

const words = (count: number, word: string): string => Array.from({ length: count }, () => word).join(" ");

describe("help text", () => {
  it("leaves alone what fits", () => {
    const text = "Usage: quire x\n\nShort.\nAlso short.\n\n  --a TEXT  what it is\n";
    expect(foldHelp(text)).toBe(text);
  });

  it("keeps to its second column", () => {
    const row = foldHelp(`  --flag NAME  ${words(30, "word")}`).split("\n");
    expect(row.length).toBe(3);
    expect(row.map((line) => line.search(/word/))).toEqual([15, 15, 15]);
  });

  it("sets prose anew where it was broken at more than 80 columns", () => {
    const text = `Usage: x\n\n${words(20, "seven77")}\n${words(3, "seven77")}.\nLast.\n\n  --flag  help\n`;
    const lines = foldHelp(text).split("\n");
    expect(lines.slice(2)).toEqual([
      words(10, "seven77"),
      words(10, "seven77"),
      `${words(3, "seven77")}. Last.`,
      "",
      "  --flag  help",
      "",
    ]);
  });
});
