/** Heat maps as SVG text. */
import { escapeText } from "./line-plot.ts";

/** A map of cells; undefined ones stay empty. */
export interface HeatMapOptions {
  title: string;
  rowLabel: string;
  columnLabel: string;
  rows: readonly string[];
  columns: readonly string[];
  /** `[row][column]` */
  values: readonly (readonly (number | undefined)[])[];
  /** The value of the palest and of the darkest cell. */
  range: readonly [number, number];
  format(value: number): string;
}

const CELL = { width: 40, height: 22 };
const FRAME = { left: 92, top: 38, bottom: 22 };

/** The map as an `<svg>` element: each cell shows its number. */
export function heatMap(options: HeatMapOptions): string {
  const { rows, columns, values } = options;
  const width = FRAME.left + columns.length * CELL.width + 8;
  const height = FRAME.top + rows.length * CELL.height + FRAME.bottom;
  const fullWidth = Math.max(width, options.title.length * 7.2 + 8);
  const parts = [
    `<svg viewBox="0 0 ${fullWidth} ${height}" width="${fullWidth}" height="${height}" role="img" aria-label="${escapeText(options.title)}">`,
    `<text class="title" x="4" y="14">${escapeText(options.title)}</text>`,
    `<text class="label" x="4" y="${FRAME.top - 5}">${escapeText(options.rowLabel)}</text>`,
    `<text class="label" x="${FRAME.left}" y="${height - 6}">${escapeText(options.columnLabel)}</text>`,
  ];
  columns.forEach((name, column) => {
    const x = FRAME.left + (column + 0.5) * CELL.width;
    parts.push(`<text class="tick" x="${x}" y="${FRAME.top - 5}" text-anchor="middle">${escapeText(name)}</text>`);
  });
  rows.forEach((name, row) => {
    const y = FRAME.top + row * CELL.height;
    const at = `x="${FRAME.left - 5}" y="${y + 15}"`;
    parts.push(`<text class="tick" ${at} text-anchor="end">${escapeText(name)}</text>`);
    columns.forEach((_, column) => {
      parts.push(cell(options, { value: values[row]?.[column], x: FRAME.left + column * CELL.width, y }));
    });
  });
  return [...parts, "</svg>"].join("\n");
}

function cell(
  { range, format }: HeatMapOptions,
  { value, x, y }: { value: number | undefined; x: number; y: number },
): string {
  const box = `x="${x}" y="${y}" width="${CELL.width - 1}" height="${CELL.height - 1}"`;
  if (value === undefined) return `<rect ${box} fill="#f2f2f2"/>`;
  const share = Math.min(1, Math.max(0, (value - range[0]) / (range[1] - range[0] || 1)));
  // From paper to ink: readable also without colours.
  const [from, to] = [
    [255, 250, 235],
    [120, 30, 60],
  ] as const;
  const color = from.map((part, index) => Math.round(part + ((to[index] as number) - part) * share)).join(",");
  const ink = share > 0.55 ? "#fff" : "#222";
  const text = `<text x="${x + CELL.width / 2}" y="${y + 15}" text-anchor="middle" font-size="10" fill="${ink}">${format(value)}</text>`;
  return `<rect ${box} fill="rgb(${color})"/>${text}`;
}
