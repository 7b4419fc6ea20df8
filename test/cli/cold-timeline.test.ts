import { describe, expect, it } from "vitest";
import { coldDocument } from "../../cli/cold-scenario.ts";
import { timelineRows, timelineSvg, timelineText } from "../../cli/cold-timeline.ts";
import { demoPassage } from "../../cli/demo-passage.ts";
import type { TraceEvent } from "../../protocol/generate.ts";

const event = (atMs: number, name: string, fields: Record<string, number> = {}): TraceEvent => ({ atMs, name, fields });

const EVENTS = [
  event(2, "queued"),
  event(10, "admitted"),
  event(40, "manifest", { tokenCount: 4096 }),
  event(41, "resume lazy"),
  event(70, "summaries", { bytes: 250_000 }),
  event(100, "attached", { cachedTokens: 4096 }),
  event(100, "burst", { bytes: 900_000, pages: 64 }),
  event(100, "prefill chunk", { ms: 12 }),
  event(112, "miss", { blocks: 5, layer: 0 }),
  event(142, "blocks came", { waitedMs: 30 }),
  event(150, "miss", { blocks: 3, layer: 2 }),
  event(170, "blocks came", { waitedMs: 20 }),
  event(175, "miss", { blocks: 2, layer: 0 }),
  event(190, "blocks came", { waitedMs: 15 }),
  event(200, "first token", { firstTokenMs: 198, bytes: 1_500_000 }),
  event(200, "decode", { tokens: 9, ms: 80 }),
  event(410, "filled", { bytes: 6_000_000, pages: 900 }),
  event(500, "ended stop"),
];

describe("the timeline of a cold resume", () => {
  it("tells what was waited for, layer by layer, from admission on", () => {
    const rows = timelineRows({ events: EVENTS });
    const shown = rows.map(({ label, kind, bars }) => [label, kind, bars.map(({ fromMs, toMs }) => [fromMs, toMs])]);
    expect(shown).toEqual([
      ["manifest", "store", [[0, 30]]],
      ["summaries, tail", "store", [[30, 60]]],
      ["first burst", "store", [[60, 90]]],
      ["prompt", "compute", [[90, 102]]],
      // biome-ignore format: a row
      ["pages, layer 0", "store", [[102, 132], [165, 180]]],
      ["pages, layer 2", "store", [[140, 160]]],
      ["reply", "compute", [[190, 270]]],
      ["first token", "token", [[190, 190]]],
      ["the rest", "background", [[190, 400]]],
    ]);
    expect(rows.find(({ label }) => label === "pages, layer 0")?.note).toBe(
      "7 blocks of 64 tokens that its queries chose",
    );
    expect(rows.find(({ label }) => label === "the rest")?.note).toBe("6.00 MB in all");
  });

  it("draws bars in text where the times are", () => {
    const lines = timelineText(timelineRows({ events: EVENTS }));
    expect(lines).toHaveLength(9);
    expect(new Set(lines.map((text) => text.indexOf("|"))).size).toBe(1);
    const cells = (label: string) => lines.find((text) => text.startsWith(label))?.split("|")[1] as string;
    // 48 characters are 400 ms.
    expect(cells("manifest")).toBe("====".padEnd(48));
    expect(cells("the rest").trimEnd()).toBe(`${" ".repeat(22)}${"=".repeat(26)}`);
    expect(lines.find((text) => text.startsWith("first token"))).toContain("  190 -  190 ms  after 1.50 MB");
  });

  it.each([80, 100, 120, 200])("fits into %d columns", (columns) => {
    const rows = timelineRows({ events: EVENTS });
    const lines = timelineText(rows, columns);
    expect(lines.filter((line) => line.length > columns)).toEqual([]);
    for (const { label, note } of rows) {
      const at = lines.findIndex((line) => line.startsWith(`${label} `));
      // What it was about stands behind its times, or below its bars.
      expect([lines[at], lines[at + 1]].some((line) => line?.endsWith(note))).toBe(true);
      const [first = 0, last = 0] = [lines[at]?.indexOf("|"), lines[at]?.lastIndexOf("|")];
      expect(last - first - 1).toBeGreaterThanOrEqual(24);
    }
  });

  it("is an SVG whose words are escaped, with a bar for each stretch and ticks to its end", () => {
    const svg = timelineSvg("a < b & c", "caption", timelineRows({ events: EVENTS }));
    expect(svg).toMatch(/^<svg [^>]*viewBox="0 0 \d+ \d+"/);
    expect(svg).toContain("a &lt; b &amp; c");
    expect(svg.match(/<rect x=/g)).toHaveLength(10);
    expect([...svg.matchAll(/>(\d+) ms</g)].map(([, ms]) => Number(ms))).toEqual([0, 100, 200, 300, 400]);
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
  });

  it("has no rows for a turn that needed no store", () => {
    const rows = timelineRows({ events: [event(0, "admitted"), event(5, "attached"), event(9, "first token")] });
    expect(rows.map(({ label }) => label)).toEqual(["first token"]);
  });
});

describe("the document of a cold resume", () => {
  it("holds each fact once", () => {
    const text = coldDocument(5);
    expect(text.length).toBeGreaterThan(5 * demoPassage.length);
    const facts = demoPassage.match(/The code of \w+ is \d{4}\./g) as string[];
    expect(facts.length).toBeGreaterThan(2);
    for (const fact of facts) expect(text.split(fact)).toHaveLength(2);
  });
});
