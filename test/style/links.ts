/** Links of documents to files, and to headings within them: what they name is there. Fences of code stand alone. */
import { posix } from "node:path";
import { lineAt, type SourceFile, type Violation } from "./source-tree.ts";

const LINK = /\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)/g;

/** Violations of one document. `paths`: every file there is; `documents`: those whose headings may be named, by path. */
export function checkLinks(
  { path, text }: SourceFile,
  paths: ReadonlySet<string>,
  documents: ReadonlyMap<string, string>,
): Violation[] {
  const prose = withoutCode(text);
  return [...prose.matchAll(LINK)].flatMap(({ 1: target = "", 2: heading, index }) => {
    const file = target === "" ? path : posix.join(posix.dirname(path), target);
    const report = (message: string) => [{ path, line: lineAt(prose, index), rule: "link", message }];
    if (!paths.has(file)) return report(`${file} is not there`);
    if (heading === undefined) return [];
    return headingsOf(documents.get(file) ?? "").has(heading) ? [] : report(`${file} has no heading #${heading}`);
  });
}

/** Violations of one document: three backticks open or close a block, at the beginning of a line that holds nothing but a language. */
export function checkFences({ path, text }: SourceFile): Violation[] {
  const message = "``` stands within a line: the block is none";
  return [...text.matchAll(/^.*```.*$/gm)]
    .filter(([line]) => !/^ *```[a-z]*$/.test(line))
    .map(({ index }) => ({ path, line: lineAt(text, index), rule: "fence", message }));
}

/** Anchors of a document's headings, as GitHub makes them. */
function headingsOf(text: string): Set<string> {
  const headings = withoutCode(text).matchAll(/^#{1,6} (.*)$/gm);
  return new Set(Array.from(headings, ([, words = ""]) => anchorOf(words)));
}

function anchorOf(words: string): string {
  return words
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
}

/** Fenced blocks, which are no prose, become empty lines. */
function withoutCode(text: string): string {
  return text.replaceAll(/^( *)```.*?^\1```$/gms, (block) => block.replaceAll(/[^\n]/g, ""));
}
