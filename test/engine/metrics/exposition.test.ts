import { describe, expect, it } from "vitest";
import { MetricRegistry } from "../../../engine/metrics/exposition.ts";
import { parseExposition } from "./parse-exposition.ts";

describe("the text of a scrape", () => {
  it("is what the format says, value by value", () => {
    const registry = new MetricRegistry();
    const count = registry.counter("things_total", "Things.");
    count.add(2, { kind: 'a "b"\\\n' });
    count.add(0.5, { kind: "c" });
    count.add(1, { kind: "c" });
    registry.gauge("level_bytes", "Level.", () => 7);
    const time = registry.histogram("wait_seconds", "Wait.", [0.1, 1]);
    for (const value of [0.05, 0.1, 0.5, 3]) time.observe(value);
    expect(registry.expose()).toBe(
      [
        "# HELP things_total Things.",
        "# TYPE things_total counter",
        'things_total{kind="a \\"b\\"\\\\\\n"} 2',
        'things_total{kind="c"} 1.5',
        "# HELP level_bytes Level.",
        "# TYPE level_bytes gauge",
        "level_bytes 7",
        "# HELP wait_seconds Wait.",
        "# TYPE wait_seconds histogram",
        'wait_seconds_bucket{le="0.1"} 2',
        'wait_seconds_bucket{le="1"} 3',
        'wait_seconds_bucket{le="+Inf"} 4',
        "wait_seconds_sum 3.65",
        "wait_seconds_count 4",
        "",
      ].join("\n"),
    );
    expect(parseExposition(registry.expose()).get('things_total{kind="c"}')).toBe(1.5);
  });

  it("has a bound on the labels of a metric", () => {
    const registry = new MetricRegistry();
    const count = registry.counter("codes_total", "Codes.");
    for (let i = 0; i < 1000; i++) count.add(1, { code: `c${i}` });
    const values = parseExposition(registry.expose());
    expect(values.size).toBeLessThanOrEqual(65);
    expect([...values.values()].reduce((a, b) => a + b)).toBe(1000);
  });

  it("refuses counters that shrink and names that are taken or not in snake case", () => {
    const registry = new MetricRegistry();
    expect(() => registry.counter("a_total", "A.").add(-1)).toThrow("only grows");
    expect(() => registry.counter("a_total", "A.")).toThrow("named once");
    expect(() => registry.counter("b", "B.")).toThrow("_total");
    expect(() => registry.gauge("bad-name", "B.", () => 1)).toThrow("snake case");
  });
});
