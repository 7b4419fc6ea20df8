/** The figures that a resume is judged by. */
import type { Column } from "../table.ts";
import type { ResumeRow } from "./measure-resume.ts";

/** A figure beside what it must reach. */
export interface BarRow {
  figure: string;
  value: number;
  /** The value must be at most (or, with `atLeast`, at least) this. */
  bar: number;
  atLeast: boolean;
  unit: "ms" | "%" | "x";
  holds: boolean;
}

/** The figure of default mode's pages. */
export const PAGES_THERE = "selected pages that are there at the first token";

/** The figure of the store, which no selection changes. */
export const STORED_BYTES = "stored bytes of a token / K and V in f16";

/** What is measured of an engine beside its turns. */
export interface EngineFigures {
  readyMs: number;
  persistingShare: number;
  stalledShare: number;
}

/** What is judged beside turns; what is absent was left out. */
export interface OtherFigures extends Partial<EngineFigures> {
  /** Stored bytes of a token against its K and V in f16. */
  storedShare: number;
}

/** The bars of one context; figures that were not measured are left out. */
export function barRows(rows: readonly ResumeRow[], other: OtherFigures): BarRow[] {
  const of = (mode: ResumeRow["mode"]) => rows.find((row) => row.mode === mode);
  const [lazy, lazyDefault, full, resident] = [of("lazy"), of("lazy-default"), of("full"), of("resident")];
  const per = (a: number | undefined, b: number | undefined) =>
    a === undefined || b === undefined ? undefined : a / b;
  const missed = per(lazyDefault?.pagesMissedBefore, lazy?.pagesBeforeFirstToken);
  const bars: [figure: string, value: number | undefined, bar: number, unit: BarRow["unit"], atLeast?: true][] = [
    ["first token, exact", lazy?.ttftMs, 1500, "ms"],
    ["first token, default mode", lazyDefault?.ttftMs, 800, "ms"],
    ["full restore / lazy, exact", per(full?.ttftMs, lazy?.ttftMs), 2, "x", true],
    ["full restore / lazy, default mode", per(full?.ttftMs, lazyDefault?.ttftMs), 3.5, "x", true],
    ["read before the first token, of the session, exact", lazy?.bytesShare, 0.2, "%"],
    [PAGES_THERE, missed === undefined ? undefined : 1 - missed, 0.95, "%", true],
    ["decode speed, lazy / resident", per(resident?.msPerToken, lazy?.msPerToken), 0.7, "x", true],
    ["decode speed, default mode / resident", per(resident?.msPerToken, lazyDefault?.msPerToken), 0.7, "x", true],
    [STORED_BYTES, other.storedShare, 0.58, "x"],
    ["start of the engine's process to ready, house model", other.readyMs, 1500, "ms"],
    ["decode speed with write-behind / without", other.persistingShare, 0.95, "x", true],
    ["decode speed while the store answers nothing / while it answers", other.stalledShare, 0.95, "x", true],
  ];
  return bars.flatMap(([figure, value, bar, unit, atLeast = false]) =>
    value === undefined ? [] : [{ figure, value, bar, unit, atLeast, holds: atLeast ? value >= bar : value <= bar }],
  );
}

/** How the bars are printed. */
export const barColumns: readonly Column<BarRow>[] = [
  { header: "figure", align: "left", cell: (row) => row.figure },
  { header: "measured", cell: (row) => inUnit(row.value, row.unit) },
  { header: "bar", cell: (row) => `${row.atLeast ? ">=" : "<="} ${inUnit(row.bar, row.unit)}` },
  { header: "holds", align: "left", cell: (row) => (row.holds ? "yes" : "NO") },
];

function inUnit(value: number, unit: BarRow["unit"]): string {
  if (unit === "ms") return `${value.toFixed(0)} ms`;
  return unit === "%" ? `${(100 * value).toFixed(1)} %` : value.toFixed(2);
}
