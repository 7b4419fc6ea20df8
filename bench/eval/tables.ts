/** The figures as CSV, and as the page's tables. */
import { type Column, renderTable } from "../table.ts";
import type { Figures } from "./figures.ts";
import { escapeText } from "./line-plot.ts";
import type { Estimate } from "./statistics.ts";

/** Columns of a table: a header and what stands below it. */
export type Columns<Row> = readonly (readonly [header: string, cell: (row: Row) => string | number])[];

/** Rows of comma-separated values, with a header. */
export function csvOf<Row>(columns: Columns<Row>, rows: readonly Row[]): string {
  const quote = (value: string | number) =>
    /[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : value;
  const lines = [columns.map(([header]) => header), ...rows.map((row) => columns.map(([, cell]) => quote(cell(row))))];
  return `${lines.map((line) => line.join(",")).join("\n")}\n`;
}

/** The columns in which some row says something: of what was not measured there is no column. */
export function filledColumns<Row>(columns: Columns<Row>, rows: readonly Row[]): Columns<Row> {
  return columns.filter(([, cell]) => rows.some((row) => cell(row) !== ""));
}

/** A table of HTML; cells are escaped. */
export function htmlTable<Row>(columns: Columns<Row>, rows: readonly Row[]): string {
  const line = (tag: string, cells: readonly (string | number)[]) =>
    `<tr>${cells.map((value) => `<${tag}>${escapeText(String(value))}</${tag}>`).join("")}</tr>`;
  const head = line(
    "th",
    columns.map(([header]) => header),
  );
  const body = rows.map((row) =>
    line(
      "td",
      columns.map(([, cell]) => cell(row)),
    ),
  );
  return `<table>\n<thead>${head}</thead>\n<tbody>\n${body.join("\n")}\n</tbody></table>`;
}

/** A table of Markdown; names in the first column are set as code. */
export function markdownTable<Row>(columns: Columns<Row>, rows: readonly Row[]): string {
  const line = (cells: readonly (string | number)[]): string =>
    `| ${cells.map((cell) => String(cell).replaceAll("|", "\\|")).join(" | ")} |`;
  const head = [line(columns.map(([header]) => header)), line(columns.map(() => "---"))];
  const cells = (row: Row) => columns.map(([, cell], place) => (place === 0 ? `\`${cell(row)}\`` : cell(row)));
  return [...head, ...rows.map((row) => line(cells(row)))].join("\n");
}

type FidelityRow = Figures["fidelity"][number];
type TaskRow = Figures["tasks"][number];
type ContinuationRow = Figures["continuations"][number];

function bounds<Row>(name: string, of: (row: Row) => Estimate | undefined): Columns<Row> {
  return [
    [name, (row) => of(row)?.mean ?? ""],
    [`${name}_low`, (row) => of(row)?.low ?? ""],
    [`${name}_high`, (row) => of(row)?.high ?? ""],
  ];
}

/** `fidelity.csv`. */
export const fidelityCsv: Columns<FidelityRow> = [
  ["selection", (row) => row.name],
  ["budget_tokens", (row) => row.budgetTokens],
  ["context_tokens", (row) => row.contextTokens],
  ["kv_bytes", (row) => row.kvBytes],
  ["metadata_bytes", (row) => row.metadataBytes],
  ["bytes_share", (row) => row.bytesShare],
  ["pages_share", (row) => row.pagesShare],
  ...bounds<FidelityRow>("mass", (row) => row.mass),
  ...bounds<FidelityRow>("oracle_mass", (row) => row.oracleMass),
  ...bounds<FidelityRow>("page_recall", (row) => row.pageRecall),
  ...bounds<FidelityRow>("output_error", (row) => row.outputError),
  ...bounds<FidelityRow>("perplexity_growth", (row) => row.text?.perplexityGrowth),
  ...bounds<FidelityRow>("divergence_nats", (row) => row.text?.divergence),
  ...bounds<FidelityRow>("top_agreement", (row) => row.text?.topAgreement),
  ["step_ms", (row) => row.text?.stepMs ?? ""],
  ["dense_step_ms", (row) => row.text?.denseStepMs ?? ""],
];

/** `tasks.csv`. */
export const tasksCsv: Columns<TaskRow> = [
  ["kind", (row) => row.kind],
  ["length_tokens", (row) => row.lengthTokens],
  ["selection", (row) => row.name],
  ["budget_tokens", (row) => row.budgetTokens],
  ["cases", (row) => row.cases],
  ["right", (row) => row.right],
  ["dense_right", (row) => row.denseRight],
  ["beyond_dense", (row) => row.beyondDense ?? ""],
  ...bounds<TaskRow>("difference", (row) => row.difference),
  ["bytes_share", (row) => row.bytesShare],
];

/** `continuations.csv`. */
export const continuationsCsv: Columns<ContinuationRow> = [
  ["selection", (row) => row.name],
  ["budget_tokens", (row) => row.budgetTokens],
  ["context_tokens", (row) => row.contextTokens],
  ["cases", (row) => row.cases],
  ["tokens", (row) => row.tokenCount],
  ...bounds<ContinuationRow>("diverged_at", (row) => row.divergedAt),
  ["diverged_at_median", (row) => row.divergedAtMedian ?? ""],
  ...bounds<ContinuationRow>("same", (row) => row.same),
  ...bounds<ContinuationRow>("agreement", (row) => row.agreement),
  ...bounds<ContinuationRow>("divergence_nats", (row) => row.divergence),
  ["bytes_share", (row) => row.bytesShare],
  ["dense_fresh_share", (row) => row.freshShare],
];

/** The terminal's table: one line per selection, budget and context. */
export function fidelityLines(rows: readonly FidelityRow[]): string[] {
  const share = (value: number | undefined, digits = 1): string =>
    value === undefined ? "" : (value * 100).toFixed(digits);
  const columns: readonly Column<FidelityRow>[] = [
    { header: "selection", align: "left", cell: (row) => row.name },
    { header: "tokens", cell: (row) => String(row.contextTokens) },
    { header: "budget", cell: (row) => String(row.budgetTokens) },
    { header: "bytes %", cell: (row) => share(row.bytesShare) },
    { header: "mass %", cell: (row) => share(row.mass.mean) },
    { header: "oracle %", cell: (row) => share(row.oracleMass.mean) },
    { header: "recall %", cell: (row) => share(row.pageRecall.mean) },
    { header: "error %", cell: (row) => share(row.outputError.mean, 2) },
    { header: "KL nats", cell: (row) => row.text?.divergence.mean.toExponential(1) ?? "" },
    { header: "top-1 %", cell: (row) => share(row.text?.topAgreement.mean) },
    { header: "ppl %", cell: (row) => share(row.text?.perplexityGrowth.mean, 2) },
    { header: "ms", cell: (row) => row.text?.stepMs.toFixed(2) ?? "" },
  ];
  return renderTable(
    columns.filter(({ cell }) => rows.some((row) => cell(row) !== "")),
    rows,
  );
}
