/** Line plots as SVG text, for a page without scripts: marks carry their numbers as tooltips. */

/** A point with an interval if there is one. */
export interface PlotPoint {
  x: number;
  y: number;
  low?: number | undefined;
  high?: number | undefined;
  /** Shown while the pointer rests on it. */
  tip: string;
}

/** One line. */
export interface PlotSeries {
  color: string;
  /** Baselines are dashed and grey. */
  isDashed: boolean;
  points: readonly PlotPoint[];
}

/** A plot's frame. */
export interface PlotOptions {
  title: string;
  xLabel: string;
  yLabel: string;
  xScale: "log" | "linear";
  yScale: "log" | "linear";
  /** What the vertical axis shows at least. */
  yRange?: readonly [number, number];
  /** How a tick is written. */
  xTick(value: number): string;
  yTick(value: number): string;
  /** Where the horizontal axis has its ticks; absent: where numbers are round. */
  xTicks?: readonly number[];
  /** A horizontal line to compare with. */
  reference?: number;
}

const WIDTH = 340;
const HEIGHT = 230;
const FRAME = { left: 66, right: 10, top: 24, bottom: 38 };

interface Scale {
  at(value: number): number;
  ticks: number[];
}

/** The plot as an `<svg>` element. */
export function linePlot(options: PlotOptions, series: readonly PlotSeries[]): string {
  const points = series.flatMap((line) => [...line.points]);
  const xs = points.map(({ x }) => x);
  const ys = [...points.flatMap(({ y, low, high }) => [y, low ?? y, high ?? y]), ...(options.yRange ?? [])];
  if (options.reference !== undefined) ys.push(options.reference);
  const x = scaleOf(options.xScale, xs, [FRAME.left, WIDTH - FRAME.right]);
  const y = scaleOf(options.yScale, ys, [HEIGHT - FRAME.bottom, FRAME.top]);
  const parts = [
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-label="${escapeText(options.title)}">`,
    `<text class="title" x="${FRAME.left}" y="14">${escapeText(options.title)}</text>`,
    axes(options, x, y),
    ...series.map((line) => drawSeries(line, x, y)),
    "</svg>",
  ];
  return parts.join("\n");
}

/** Text as it may stand in HTML and SVG. */
export function escapeText(text: string): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (sign) => names[sign] as string);
}

function axes(options: PlotOptions, x: Scale, y: Scale): string {
  const [right, bottom] = [WIDTH - FRAME.right, HEIGHT - FRAME.bottom];
  const parts: string[] = [];
  for (const tick of y.ticks) {
    parts.push(
      `<line class="grid" x1="${FRAME.left}" x2="${right}" y1="${px(y.at(tick))}" y2="${px(y.at(tick))}"/>`,
      `<text class="tick" x="${FRAME.left - 5}" y="${px(y.at(tick) + 3)}" text-anchor="end">${options.yTick(tick)}</text>`,
    );
  }
  for (const tick of options.xTicks ?? x.ticks) {
    parts.push(
      `<line class="grid" x1="${px(x.at(tick))}" x2="${px(x.at(tick))}" y1="${FRAME.top}" y2="${bottom}"/>`,
      `<text class="tick" x="${px(x.at(tick))}" y="${bottom + 13}" text-anchor="middle">${options.xTick(tick)}</text>`,
    );
  }
  if (options.reference !== undefined) {
    const at = px(y.at(options.reference));
    parts.push(`<line class="reference" x1="${FRAME.left}" x2="${right}" y1="${at}" y2="${at}"/>`);
  }
  const middle = (FRAME.top + bottom) / 2;
  parts.push(
    `<text class="label" x="${(FRAME.left + right) / 2}" y="${HEIGHT - 6}" text-anchor="middle">${escapeText(options.xLabel)}</text>`,
    `<text class="label" x="11" y="${middle}" text-anchor="middle" transform="rotate(-90 11 ${middle})">${escapeText(options.yLabel)}</text>`,
  );
  return parts.join("\n");
}

function drawSeries({ color, isDashed, points }: PlotSeries, x: Scale, y: Scale): string {
  const sorted = points.toSorted((a, b) => a.x - b.x);
  const path = sorted.map((point) => `${px(x.at(point.x))},${px(y.at(point.y))}`).join(" ");
  const dash = isDashed ? ` stroke-dasharray="4 3"` : "";
  const parts = [`<polyline points="${path}" fill="none" stroke="${color}" stroke-width="1.6"${dash}/>`];
  for (const point of sorted) {
    const [cx, cy] = [px(x.at(point.x)), px(y.at(point.y))];
    if (point.low !== undefined && point.high !== undefined) {
      const ends = `y1="${px(y.at(point.low))}" y2="${px(y.at(point.high))}"`;
      parts.push(`<line x1="${cx}" x2="${cx}" ${ends} stroke="${color}" stroke-width="1" opacity="0.6"/>`);
    }
    parts.push(`<circle cx="${cx}" cy="${cy}" r="3" fill="${color}"><title>${escapeText(point.tip)}</title></circle>`);
  }
  return parts.join("\n");
}

/** Values at or below 0 lie at the foot of a logarithmic scale. */
function scaleOf(kind: "log" | "linear", values: readonly number[], [from, to]: readonly [number, number]): Scale {
  if (kind === "linear") {
    const [min, max] = widen(Math.min(...values), Math.max(...values));
    const step = niceStep((max - min) / 4);
    const ticks: number[] = [];
    for (let tick = Math.ceil(min / step - 1e-9) * step; tick <= max + step * 1e-9; tick += step) ticks.push(tick);
    return { at: (value) => from + ((value - min) / (max - min)) * (to - from), ticks };
  }
  const positive = values.filter((value) => value > 0);
  const floor = positive.length === 0 ? 1e-6 : Math.min(...positive);
  const ceiling = positive.length === 0 ? 1 : Math.max(...positive);
  const [min, max] = widen(Math.log10(floor), Math.log10(ceiling));
  const at = (value: number) => from + ((Math.log10(Math.max(value, 10 ** min)) - min) / (max - min)) * (to - from);
  return { at, ticks: logTicks(min, max) };
}

function widen(min: number, max: number): [number, number] {
  const spare = (max - min) * 0.04 || 0.05;
  return [min - spare, max + spare];
}

function logTicks(min: number, max: number): number[] {
  const factors = max - min > 3 ? [1] : max - min > 1.2 ? [1, 3] : [1, 2, 5];
  const ticks: number[] = [];
  for (let power = Math.floor(min); power <= max; power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (Math.log10(tick) >= min && Math.log10(tick) <= max) ticks.push(tick);
    }
  }
  return ticks;
}

function niceStep(raw: number): number {
  const power = 10 ** Math.floor(Math.log10(raw));
  return ([1, 2, 5, 10].find((factor) => factor * power >= raw) ?? 10) * power;
}

function px(value: number): string {
  return value.toFixed(1);
}
