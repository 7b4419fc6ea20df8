/** Tables for terminals. */

/** A column: its header carries the unit. */
export interface Column<Row> {
  header: string;
  cell(row: Row): string;
  /** Numbers stand right, words left. Default "right". */
  align?: "left" | "right";
}

/** Lines of a table: the header, then one line per row; columns are two spaces apart. */
export function renderTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string[] {
  const cells = [
    columns.map((column) => column.header),
    ...rows.map((row) => columns.map((column) => column.cell(row))),
  ];
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index]?.length ?? 0)));
  return cells.map((line) =>
    line
      .map((cell, index) => {
        const width = widths[index] ?? 0;
        return columns[index]?.align === "left" ? cell.padEnd(width) : cell.padStart(width);
      })
      .join("  ")
      .trimEnd(),
  );
}
