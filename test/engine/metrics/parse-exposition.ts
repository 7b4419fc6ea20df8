/** A strict reader of Prometheus' text format 0.0.4, for tests: every line is checked, every series comes once, buckets are cumulative. */

const SAMPLE =
  /^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"(?:,(?!\})|(?=\})))*\})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|NaN|[+-]Inf)$/;
const TYPES = new Set(["counter", "gauge", "histogram", "summary", "untyped"]);

/** Values by series (`name{labels}`). @throws for anything that a scraper would refuse. */
export function parseExposition(text: string): Map<string, number> {
  if (!text.endsWith("\n")) throw new Error("the text does not end with a line feed");
  const types = new Map<string, string>();
  const values = new Map<string, number>();
  for (const line of text.slice(0, -1).split("\n")) {
    const comment = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (comment) {
      if (comment[1] === "HELP") continue;
      if (!TYPES.has(comment[3]!) || types.has(comment[2]!)) throw new Error(`not a type: ${line}`);
      types.set(comment[2]!, comment[3]!);
      continue;
    }
    const sample = SAMPLE.exec(line);
    if (!sample) throw new Error(`not a sample: ${line}`);
    const [, name, labels = "", value] = sample;
    const base = name!.replace(/_(bucket|sum|count)$/, "");
    if (!types.has(name!) && types.get(base) !== "histogram") throw new Error(`no type: ${line}`);
    const series = `${name}${labels}`;
    if (values.has(series)) throw new Error(`twice: ${series}`);
    values.set(series, Number(value!.replace("Inf", "Infinity")));
  }
  checkBuckets(types, values);
  return values;
}

function checkBuckets(types: ReadonlyMap<string, string>, values: ReadonlyMap<string, number>): void {
  for (const [name, type] of types) {
    if (type !== "histogram") continue;
    const counts = [...values].filter(([series]) => series.startsWith(`${name}_bucket{`)).map(([, value]) => value);
    if (counts.some((count, i) => i > 0 && count < counts[i - 1]!)) throw new Error(`${name} is not cumulative`);
    if (counts.at(-1) !== values.get(`${name}_count`)) throw new Error(`${name} does not add up`);
  }
}
