/** How the page writes numbers and tells selections apart. */
import type { Estimate } from "./statistics.ts";

const COLORS = [
  "#1f77b4",
  "#d62728",
  "#2ca02c",
  "#9467bd",
  "#ff7f0e",
  "#17becf",
  "#8c564b",
  "#e377c2",
  "#bcbd22",
  "#393b79",
];

/** Names in the order of the figures, baselines first. */
export function namesOf(rows: readonly { name: string }[]): string[] {
  return [...new Set(rows.map(({ name }) => name))];
}

/** A selection keeps its colour over the whole page; `index` is its place in {@link namesOf}. */
export function colorOf(name: string, index: number): { color: string; isDashed: boolean } {
  if (name === "oracle") return { color: "#111", isDashed: true };
  if (name === "random") return { color: "#999", isDashed: true };
  return { color: COLORS[(index - 2 + COLORS.length) % COLORS.length] as string, isDashed: false };
}

/** A share in per cent, with a sign if it is a change. */
export function percent(share: number, isSigned = false): string {
  return `${isSigned && share > 0 ? "+" : ""}${digits(share)} %`;
}

function digits(share: number): string {
  const value = share * 100;
  return value.toFixed(Math.abs(value) >= 10 || value === 0 ? 1 : 2);
}

/** Three digits. */
export function number(value: number): string {
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** A difference of shares in points, with its sign. */
export function points(share: number): string {
  const value = (share * 100).toFixed(1);
  return share > 0 && value !== "0.0" ? `+${value}` : value.replace("-0.0", "0.0");
}

/** As {@link points}, with its interval. */
export function pointsOf(estimate: Estimate): string {
  return withBounds(estimate, points);
}

/** A share in per cent with the ends of its interval. */
export function shareOf({ mean, low, high }: Estimate): string {
  const ends = low === undefined || high === undefined ? "" : ` (${digits(low)} to ${digits(high)})`;
  return `${digits(mean)}${ends} %`;
}

/** A count of tokens: 2K for 2048. */
export function tokens(count: number): string {
  return count % 1024 === 0 ? `${count / 1024}K` : String(count);
}

/** A mean share in per cent with half of its interval. */
export function percentOf({ mean, low, high }: Estimate, isSigned = false): string {
  if (low === undefined || high === undefined || low === high) return percent(mean, isSigned);
  return `${percent(mean, isSigned).slice(0, -2)} \u00b1 ${digits((high - low) / 2)} %`;
}

/** A mean with its interval. */
export function withBounds({ mean, low, high }: Estimate, write: (value: number) => string): string {
  return low === undefined || high === undefined ? write(mean) : `${write(mean)} (${write(low)} to ${write(high)})`;
}
