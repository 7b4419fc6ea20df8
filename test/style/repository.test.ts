import { beforeAll, describe, expect, it } from "vitest";
import { checkCircles } from "./circles.ts";
import { checkBarrel, checkImports } from "./import-rule.ts";
import { checkFences, checkLinks } from "./links.ts";
import { type ParsedFile, parseFile } from "./parse.ts";
import { checkDocstrings, checkGlobals, checkLength, checkName, checkNotes } from "./rules.ts";
import { describeViolations, isScript, listPaths, readSourceFiles, type SourceFile } from "./source-tree.ts";

describe("the repository", () => {
  let files: SourceFile[] = [];
  let parsed: ParsedFile[] = [];
  beforeAll(() => {
    files = readSourceFiles();
    parsed = files.filter((file) => isScript(file.path)).map(parseFile);
  });

  it("is really read: the contracts are among the files", () => {
    const paths = new Set(parsed.map((one) => one.file.path));
    for (const path of ["protocol/generate.ts", "kernels/contract.ts", "storage/contract.ts", "test/style/rules.ts"]) {
      expect(paths).toContain(path);
    }
  });

  it("keeps the import rule", () => {
    expect(describeViolations(parsed.flatMap(checkImports))).toBe("");
  });

  it("has no files that import each other by value", () => {
    expect(describeViolations(checkCircles(parsed))).toBe("");
  });

  it("has no barrels but the SDK's", () => {
    expect(describeViolations(parsed.flatMap(checkBarrel))).toBe("");
  });

  it("has no source file over 500 lines", () => {
    expect(describeViolations(files.flatMap(checkLength))).toBe("");
  });

  it("has kebab-case names", () => {
    expect(describeViolations(listPaths().filter(isNamedByUs).flatMap(checkName))).toBe("");
  });

  it("leaves no notes about unfinished work", () => {
    expect(describeViolations(files.flatMap(checkNotes))).toBe("");
  });

  it("has documents whose links lead somewhere", () => {
    const documents = files.filter(({ path }) => path.endsWith(".md"));
    const texts = new Map(documents.map(({ path, text }) => [path, text]));
    const paths = new Set(listPaths());
    expect(describeViolations(documents.flatMap((one) => checkLinks(one, paths, texts)))).toBe("");
  });

  it("has documents whose blocks of code are blocks", () => {
    const documents = files.filter(({ path }) => path.endsWith(".md"));
    expect(describeViolations(documents.flatMap(checkFences))).toBe("");
  });

  it("has a docstring on every export", () => {
    expect(describeViolations(parsed.flatMap(checkDocstrings))).toBe("");
  });

  it("has no variable at module level that can be assigned again", () => {
    expect(describeViolations(parsed.flatMap(checkGlobals))).toBe("");
  });
});

/** Weights and fixtures keep the names of the formats they follow; LICENSE has the name that tools look for. */
function isNamedByUs(path: string): boolean {
  return !path.startsWith("weights/") && !path.includes("/fixtures/") && path !== "LICENSE";
}
