/** A load test as one HTML page: what was asked, what came of it, and plots. No script and nothing from elsewhere. */
import type { Bar } from "./bars.ts";
import { type LoadResult, leakedCount } from "./report.ts";
import type { LoadSample } from "./watch.ts";

const WIDTH = 720;
const HEIGHT = 180;
const COLORS = ["#2563a8", "#2e7d4f", "#8e5ea2", "#b9770e", "#c0392b", "#4b5563"];
const MARGIN = { left: 56, bottom: 24, top: 22 };
/** Between the names of lines, which stand in a row above them. */
const NAME_WIDTH = 96;

/** The whole page. */
export function loadPage(result: LoadResult, lines: readonly string[], samples: readonly LoadSample[]): string {
  const { totals } = result;
  const good = `${totals.rates.goodTurnsPerS}/s within objectives of ${totals.rates.turnsPerSCompleted}/s completed`;
  const verdict =
    totals.verification === undefined
      ? "texts not compared"
      : `${totals.verification.turnsCompared} texts compared with a run alone, ${totals.verification.wrong.length} differ`;
  const perSecond = rates(samples);
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Load test</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2330; }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem }
p { margin: .2rem 0 } .muted { color: #667 } pre { font: 12px/1.5 ui-monospace, monospace; overflow-x: auto; background: #f6f7f9; padding: .8rem; border-radius: 6px }
svg { width: 100%; height: auto } text { font: 11px system-ui, sans-serif; fill: #667 } .grid { stroke: #e3e6eb } .line { fill: none; stroke-width: 1.6 }
table { border-collapse: collapse; margin: .8rem 0 } td, th { text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #e3e6eb } .met { color: #2e7d4f } .missed { color: #c0392b }
</style>
<h1>Load test</h1>
<p class="muted">${escapeHtml(result.measured)}</p>
<p>${escapeHtml(good)}; ${escapeHtml(verdict)}; ${escapeHtml(ends(totals))}</p>
${barTable(result.bars)}
<h2>Turns per second</h2>
${plot([
  { name: "completed", color: "#2563a8", points: perSecond.map(({ atS, completed }) => [atS, completed]) },
  { name: "failed", color: "#c0392b", points: perSecond.map(({ atS, failed }) => [atS, failed]) },
])}
<h2>Slowest first token of each second, ms</h2>
${plot([{ name: "first token", color: "#2563a8", points: samples.flatMap(({ atS, firstTokenMsMax }) => (firstTokenMsMax === undefined ? [] : [[atS, firstTokenMsMax]])) }])}
<h2>Sessions in progress</h2>
${plot([{ name: "sessions", color: "#2e7d4f", points: samples.map(({ atS, sessionsActive }) => [atS, sessionsActive]) }])}
${memoryPlot(samples)}
<h2>Figures</h2>
<pre>${escapeHtml(lines.join("\n"))}</pre>
<h2>Settings</h2>
<pre>${escapeHtml(JSON.stringify(result.settings, undefined, 2))}</pre>
</html>
`;
}

function ends(totals: LoadResult["totals"]): string {
  const leaked = leakedCount(totals);
  return [
    `${totals.lostTurns} turns lost`,
    `${totals.refusals} refused`,
    ...(totals.engineKills === 0 ? [] : [`${totals.engineKills} engines killed`]),
    ...(leaked === undefined ? [] : [`${leaked} blocks and slots leaked`]),
    ...(totals.fairness === undefined ? [] : [`fairness between tenants ${totals.fairness}`]),
  ].join("; ");
}

function barTable(bars: readonly Bar[]): string {
  if (bars.length === 0) return "";
  const rows = bars.map(({ name, value, most, least, isMet }) => {
    const bound = most === undefined ? `at least ${least}` : `at most ${most}`;
    const cells = [name, value === undefined ? "-" : String(Math.round(value * 1000) / 1000), bound];
    const verdict = `<td class="${isMet ? "met" : "missed"}">${isMet ? "met" : "missed"}</td>`;
    return `<tr>${cells.map((cell) => `<td>${escapeHtml(cell)}</td>`).join("")}${verdict}</tr>`;
  });
  return `<table><tr><th>what</th><th>figure</th><th>bar</th><th></th></tr>${rows.join("")}</table>`;
}

/** One line for each process; an engine that was killed is missing for a moment. */
function memoryPlot(samples: readonly LoadSample[]): string {
  const names = [...new Set(samples.flatMap(({ memoryBytes }) => Object.keys(memoryBytes)))].sort();
  if (names.length === 0) return "";
  const series = names.map((name, index) => ({
    name,
    color: COLORS[index % COLORS.length]!,
    points: samples.flatMap(({ atS, memoryBytes: { [name]: bytes } }) =>
      bytes === undefined ? [] : [[atS, bytes / 2 ** 20]],
    ),
  }));
  return `<h2>Resident memory, MiB</h2>\n${plot(series)}`;
}

function rates(samples: readonly LoadSample[]): { atS: number; completed: number; failed: number }[] {
  return samples.slice(1).map((sample, i) => {
    const before = samples[i]!;
    const seconds = sample.atS - before.atS || 1;
    return {
      atS: sample.atS,
      completed: (sample.turnsCompleted - before.turnsCompleted) / seconds,
      failed: (sample.turnsFailed - before.turnsFailed) / seconds,
    };
  });
}

interface Series {
  name: string;
  color: string;
  points: readonly (readonly number[])[];
}

function plot(series: readonly Series[]): string {
  const xs = series.flatMap(({ points }) => points.map(([x]) => x ?? 0));
  const ys = series.flatMap(({ points }) => points.map(([, y]) => y ?? 0));
  const xMax = Math.max(1, ...xs);
  const yMax = niceAbove(Math.max(0, ...ys));
  const plotWidth = WIDTH - MARGIN.left - 8;
  const plotHeight = HEIGHT - MARGIN.bottom - MARGIN.top;
  const x = (value: number): string => (MARGIN.left + (value / xMax) * plotWidth).toFixed(1);
  const y = (value: number): string => (MARGIN.top + plotHeight - (value / yMax) * plotHeight).toFixed(1);
  const grid = [0, 0.5, 1].map((share) => {
    const value = yMax * share;
    return `<line class="grid" x1="${MARGIN.left}" x2="${WIDTH - 8}" y1="${y(value)}" y2="${y(value)}"/><text x="${MARGIN.left - 6}" y="${Number(y(value)) + 4}" text-anchor="end">${shown(value)}</text>`;
  });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const anchor = share === 1 ? "end" : "middle";
    return `<text x="${x(xMax * share)}" y="${HEIGHT - 6}" text-anchor="${anchor}">${(xMax * share).toFixed(1)} s</text>`;
  });
  const lines = series.map(
    ({ points, color }) =>
      `<polyline class="line" stroke="${color}" points="${points.map(([px = 0, py = 0]) => `${x(px)},${y(py)}`).join(" ")}"/>`,
  );
  const names = series.map(
    ({ name, color }, i) =>
      `<text x="${MARGIN.left + NAME_WIDTH * i}" y="${MARGIN.top - 10}" style="fill:${color}">${escapeHtml(name)}</text>`,
  );
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img">${[...grid, ...ticks, ...lines, ...(series.length > 1 ? names : [])].join("")}</svg>`;
}

/** 1, 2 or 5 times a power of ten. */
function niceAbove(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5, 10].find((step) => step * power >= value) ?? 10) * power;
}

function shown(value: number): string {
  return value >= 10 ? value.toFixed(0) : String(Math.round(value * 100) / 100);
}

function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
