/** Shares of right answers, with how sure they are. */
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { designEffect } from "../eval/statistics.ts";
import { type Column, renderTable } from "../table.ts";

/** The answers to one kind of question, at one length, under one policy. */
export interface RecallRow {
  kind: string;
  lengthTokens: number;
  policy: SelectionConfiguration;
  cases: number;
  right: number;
  /** `right / cases`, and the bounds of its 95 % interval. */
  share: number;
  shareMin: number;
  shareMax: number;
  /** Of the pages in the context of questions and answers, those that were attended; 1 for dense. */
  pagesReadShare: number;
}

/** What is counted for a row while cases run. */
export interface RecallCount {
  /** Questions about one document are not independent. */
  answers: { isRight: boolean; document: number }[];
  pagesSelected: number;
  pagesInContext: number;
}

/** Two-sided 95 %. */
const Z = 1.959_963_985;

/** Wilson's score interval of a share of `right` in `cases` (at least 1): useful for shares near 0 and 1, too. */
export function wilsonInterval(right: number, cases: number): { min: number; max: number } {
  const share = right / cases;
  const spread = (Z * Math.sqrt((share * (1 - share)) / cases + (Z * Z) / (4 * cases * cases))) / (1 + (Z * Z) / cases);
  const centre = (share + (Z * Z) / (2 * cases)) / (1 + (Z * Z) / cases);
  return { min: Math.max(0, centre - spread), max: Math.min(1, centre + spread) };
}

/** A row of counts; at least one case was asked. The interval is as wide as the documents behind the cases make it ({@link designEffect}). */
export function recallRow(
  key: { kind: string; lengthTokens: number; policy: SelectionConfiguration },
  { answers, pagesSelected, pagesInContext }: RecallCount,
): RecallRow {
  const cases = answers.length;
  const right = answers.filter(({ isRight }) => isRight).length;
  const effect = designEffect(answers.map(({ isRight, document }) => ({ value: Number(isRight), cluster: document })));
  const { min, max } = wilsonInterval(right / effect, cases / effect);
  const pagesReadShare = pagesInContext === 0 ? 1 : pagesSelected / pagesInContext;
  return { ...key, cases, right, share: right / cases, shareMin: min, shareMax: max, pagesReadShare };
}

const percent = (share: number): string => (share * 100).toFixed(1);

const columns: readonly Column<RecallRow>[] = [
  { header: "kind", align: "left", cell: ({ kind }) => kind },
  { header: "tokens", cell: ({ lengthTokens }) => String(lengthTokens) },
  { header: "policy", align: "left", cell: ({ policy }) => policy },
  { header: "cases", cell: ({ cases }) => String(cases) },
  { header: "right %", cell: ({ share }) => percent(share) },
  { header: "95 % interval", cell: ({ shareMin, shareMax }) => `${percent(shareMin)}-${percent(shareMax)}` },
  { header: "pages read %", cell: ({ pagesReadShare }) => percent(pagesReadShare) },
];

/** The table. */
export function recallLines(rows: readonly RecallRow[]): string[] {
  return renderTable(columns, rows);
}
