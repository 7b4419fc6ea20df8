/** Where the time of a resumed turn went, read from its trace: as lines of text and as an SVG. */
import type { RequestTrace, TraceEvent } from "../protocol/generate.ts";

/** A stretch of time; one that takes none is a mark. */
export interface TimelineBar {
  fromMs: number;
  toMs: number;
}

/** One line of a timeline. */
export interface TimelineRow {
  label: string;
  kind: "store" | "compute" | "token" | "background";
  bars: TimelineBar[];
  /** What it was about: counts and bytes. */
  note: string;
}

/** Of the bars in text: as a rule, and at least where notes are to stand behind them. */
const TEXT_WIDTH = 48;
const TEXT_WIDTH_MIN = 24;

/** The rows of a trace that a resumed session left: store, compute and tokens, in the order in which they began; times after admission. */
export function timelineRows({ events }: Pick<RequestTrace, "events">): TimelineRow[] {
  const startMs = find(events, "admitted")?.atMs ?? 0;
  const rows = [...attachRows(events), ...missRows(events), ...computeRows(events)];
  for (const row of rows) {
    for (const bar of row.bars) {
      bar.fromMs = Math.max(0, bar.fromMs - startMs);
      bar.toMs = Math.max(0, bar.toMs - startMs);
    }
  }
  return rows
    .filter(({ bars }) => bars.length > 0)
    .sort((a, b) => (a.bars[0] as TimelineBar).fromMs - (b.bars[0] as TimelineBar).fromMs);
}

function find(events: readonly TraceEvent[], name: string): TraceEvent | undefined {
  return events.find((event) => event.name === name);
}

/** What is read before the first step. */
function attachRows(events: readonly TraceEvent[]): TimelineRow[] {
  const [admitted, manifest, summaries, attached] = ["admitted", "manifest", "summaries", "attached"].map((name) =>
    find(events, name),
  );
  const burst = find(events, "burst");
  const rows: TimelineRow[] = [];
  const add = (label: string, from: TraceEvent | undefined, to: TraceEvent | undefined, note: string): void => {
    if (from && to) rows.push({ label, kind: "store", bars: [{ fromMs: from.atMs, toMs: to.atMs }], note });
  };
  add("manifest", admitted, manifest, `${manifest?.fields.tokenCount ?? 0} tokens are stored`);
  add("summaries, tail", manifest, summaries, `${bytes(summaries?.fields.bytes)} with the manifest`);
  add("first burst", summaries, attached, `sinks, recent and hot pages: ${burst?.fields.pages ?? 0} pages`);
  return rows;
}

/** A row for each layer whose selected blocks were waited for. */
function missRows(events: readonly TraceEvent[]): TimelineRow[] {
  const waits = events.flatMap((event, index) => {
    if (event.name !== "miss") return [];
    const came = events.slice(index).find(({ name }) => name === "blocks came");
    const { layer, blocks = 0 } = event.fields;
    return came ? [{ layer, blocks, bar: { fromMs: event.atMs, toMs: came.atMs } }] : [];
  });
  const byLayer = Map.groupBy(waits, ({ layer }) => layer);
  return Array.from(byLayer, ([layer, all]) => ({
    label: layer === undefined ? "pages" : `pages, layer ${layer}`,
    kind: "store",
    bars: all.map(({ bar }) => bar),
    note: `${all.reduce((sum, { blocks }) => sum + blocks, 0)} blocks of 64 tokens that its queries chose`,
  }));
}

function computeRows(events: readonly TraceEvent[]): TimelineRow[] {
  const bars = (name: string): TimelineBar[] =>
    events
      .filter((event) => event.name === name)
      .map(({ atMs, fields }) => ({ fromMs: atMs, toMs: atMs + (fields.ms ?? 0) }));
  const total = (name: string, field: string): number =>
    events.filter((event) => event.name === name).reduce((sum, { fields }) => sum + (fields[field] ?? 0), 0);
  const prompt = bars("prefill chunk");
  const first = find(events, "first token");
  const end = find(events, "filled") ?? events.find(({ name }) => name.startsWith("ended"));
  const rows: TimelineRow[] = [
    { label: "prompt", kind: "compute", bars: prompt, note: prompt.length === 1 ? "1 step" : `${prompt.length} steps` },
    { label: "reply", kind: "compute", bars: bars("decode"), note: `${total("decode", "tokens") + 1} tokens` },
  ];
  if (first === undefined) return rows;
  rows.push({
    label: "first token",
    kind: "token",
    bars: bars("first token"),
    note: `after ${bytes(first.fields.bytes)}`,
  });
  if (end?.name === "filled") {
    const fill = { fromMs: first.atMs, toMs: end.atMs };
    rows.push({ label: "the rest", kind: "background", bars: [fill], note: `${bytes(end.fields.bytes)} in all` });
  }
  return rows;
}

function bytes(count = 0): string {
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} KB` : `${(count / 1e6).toFixed(2)} MB`;
}

function endOf(rows: readonly TimelineRow[]): number {
  return Math.max(0.001, ...rows.flatMap(({ bars }) => bars.map(({ toMs }) => toMs)));
}

/** One line a row: label, bars over the whole time, when, what; the last below the bars where `columns` has no room for it behind them. */
export function timelineText(rows: readonly TimelineRow[], columns = Number.POSITIVE_INFINITY): string[] {
  const endMs = endOf(rows);
  const labelWidth = Math.max(0, ...rows.map(({ label }) => label.length));
  const noteWidth = Math.max(0, ...rows.map(({ note }) => note.length));
  const isBehind = columns - labelWidth - FIXED_WIDTH - 2 - noteWidth >= TEXT_WIDTH_MIN;
  const room = columns - labelWidth - FIXED_WIDTH - (isBehind ? 2 + noteWidth : 0);
  const width = Math.max(TEXT_WIDTH_MIN, Math.min(TEXT_WIDTH, room));
  return rows.flatMap(({ label, bars, note }) => {
    const cells = Array<string>(width).fill(" ");
    for (const { fromMs, toMs } of bars) {
      const from = Math.min(width - 1, Math.floor((fromMs / endMs) * width));
      const to = Math.max(from + 1, Math.round((toMs / endMs) * width));
      cells.fill(fromMs === toMs ? "|" : "=", from, to);
    }
    const at = (bars[0] as TimelineBar).fromMs.toFixed(0).padStart(5);
    const until = (bars.at(-1) as TimelineBar).toMs.toFixed(0).padStart(5);
    const line = `${label.padEnd(labelWidth)} |${cells.join("")}| ${at} -${until} ms`;
    return isBehind ? [`${line}  ${note}`] : [line, `${" ".repeat(labelWidth + 2)}${note}`];
  });
}

/** Of a line beside its label, its bars and its note: signs between them, and two times. */
const FIXED_WIDTH = " || 12345 -12345 ms".length;

const COLORS: Readonly<Record<TimelineRow["kind"], string>> = {
  store: "#2f6f9f",
  compute: "#c2762b",
  token: "#b3261e",
  background: "#9db4c0",
};
const ROW_HEIGHT = 30;
const LEFT = 150;
const PLOT_WIDTH = 560;
const NOTE_WIDTH = 330;
const TOP = 76;

/** A whole SVG document. `caption`: one line under the title. */
export function timelineSvg(title: string, caption: string, rows: readonly TimelineRow[]): string {
  const endMs = endOf(rows);
  const x = (ms: number): number => LEFT + (ms / endMs) * PLOT_WIDTH;
  const [width, height] = [LEFT + PLOT_WIDTH + NOTE_WIDTH, TOP + rows.length * ROW_HEIGHT + 44];
  const bottom = TOP + rows.length * ROW_HEIGHT;
  const ticks = ticksUpTo(endMs).map((ms) => {
    const line = `<line x1="${x(ms).toFixed(1)}" y1="${TOP - 6}" x2="${x(ms).toFixed(1)}" y2="${bottom}" stroke="#ddd8cf"/>`;
    return `${line}<text x="${x(ms).toFixed(1)}" y="${bottom + 20}" text-anchor="middle" fill="#6b665e">${ms} ms</text>`;
  });
  const lines = rows.map(({ label, kind, bars, note }, index) => {
    const y = TOP + index * ROW_HEIGHT;
    const shapes = bars.map(({ fromMs, toMs }) => {
      const size = Math.max(3, x(toMs) - x(fromMs));
      return `<rect x="${x(fromMs).toFixed(1)}" y="${y + 5}" width="${size.toFixed(1)}" height="18" rx="2" fill="${COLORS[kind]}"/>`;
    });
    const texts = `<text x="${LEFT - 12}" y="${y + 19}" text-anchor="end">${escaped(label)}</text><text x="${LEFT + PLOT_WIDTH + 12}" y="${y + 19}" fill="#6b665e">${escaped(note)}</text>`;
    return texts + shapes.join("");
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif" font-size="13" fill="#26231f">
<rect width="${width}" height="${height}" fill="#fdfbf7"/>
<text x="20" y="30" font-size="18" font-weight="600">${escaped(title)}</text>
<text x="20" y="52" fill="#6b665e">${escaped(caption)}</text>
${ticks.join("\n")}
${lines.join("\n")}
</svg>
`;
}

/** About six round times from 0 on. */
function ticksUpTo(endMs: number): number[] {
  const rough = endMs / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) as number;
  return Array.from({ length: Math.floor(endMs / step) + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
