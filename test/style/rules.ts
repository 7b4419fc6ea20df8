/** Style rules over one file each; every rule returns its violations and never throws on style. */
import type { ParsedFile, SyntaxNode } from "./parse.ts";
import { isScript, lineAt, type SourceFile, type Violation } from "./source-tree.ts";

/** No file is longer than this. */
export const fileLinesMax = 500;

/** Source files stop at {@link fileLinesMax} lines. */
export function checkLength({ path, text }: SourceFile): Violation[] {
  const lines = text.split("\n").length - (text.endsWith("\n") ? 1 : 0);
  if (lines <= fileLinesMax) return [];
  return [{ path, line: fileLinesMax + 1, rule: "length", message: `${lines} lines, at most ${fileLinesMax}` }];
}

const documentsByConvention = /^(README|ARCHITECTURE|CHANGELOG|CONTRIBUTING)\.md$/;
const kebabCase = /^\.?[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)*$/;
const snakeCase = /^[a-z0-9]+(_[a-z0-9]+)*\.wgsl$/;

/** Folders and files are kebab-case; shaders are snake_case; documents at a folder's head are in capitals. */
export function checkName(path: string): Violation[] {
  const parts = path.split("/");
  const fileName = parts.pop() ?? "";
  const isFine = fileName.endsWith(".wgsl")
    ? snakeCase.test(fileName)
    : kebabCase.test(fileName) || documentsByConvention.test(fileName);
  if (isFine && parts.every((part) => kebabCase.test(part))) return [];
  return [{ path, line: 1, rule: "name", message: "file and folder names are kebab-case" }];
}

/** Spelled in pieces so that the rule does not find itself. */
const unfinished = new RegExp(`\\b(${["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"].join("|")})\\b`);
const silenced = new RegExp(`@ts-(${["no" + "check", "ig" + "nore"].join("|")})\\b`);

/** No notes about unfinished work and no switched-off type checks (AssemblyScript's decorators need them). */
export function checkNotes({ path, text }: SourceFile): Violation[] {
  const violations: Violation[] = [];
  text.split("\n").forEach((lineText, index) => {
    const match = unfinished.exec(lineText) ?? (isScript(path) ? silenced.exec(lineText) : null);
    if (match) violations.push({ path, line: index + 1, rule: "notes", message: `"${match[0]}" is not left behind` });
  });
  return violations;
}

/** Modules hold no variable that can be assigned again: state has an owner. Test files set theirs up in hooks. */
export function checkGlobals({ file, body }: ParsedFile): Violation[] {
  const violations: Violation[] = [];
  if (file.path.endsWith(".test.ts")) return violations;
  for (const node of body) {
    const declaration = node.type === "ExportNamedDeclaration" ? (node.declaration as SyntaxNode | null) : node;
    if (declaration?.type !== "VariableDeclaration" || declaration.declare === true) continue;
    if (declaration.kind === "let" || declaration.kind === "var") {
      const line = lineAt(file.text, declaration.start);
      violations.push({ path: file.path, line, rule: "globals", message: `module-level "${declaration.kind}"` });
    }
  }
  return violations;
}

/** Every export has a docstring: a block comment with two stars that ends right before it. */
export function checkDocstrings(parsed: ParsedFile): Violation[] {
  const { file, body } = parsed;
  const violations: Violation[] = [];
  const exportedLater = namesExportedLater(body);
  let previousName: string | undefined;
  for (const node of body) {
    const isExport = node.type === "ExportNamedDeclaration" || node.type === "ExportDefaultDeclaration";
    const declaration = isExport ? (node.declaration as SyntaxNode | null) : node;
    const names = declaration ? namesOf(declaration) : [];
    const label = names[0] ?? (node.type === "ExportDefaultDeclaration" ? "default" : undefined);
    const needed = isExport ? declaration !== null : names.some((name) => exportedLater.has(name));
    const isOverload = previousName !== undefined && label === previousName;
    if (needed && label !== undefined && !isOverload && !hasDocstring(parsed, node.start)) {
      const line = lineAt(file.text, node.start);
      violations.push({ path: file.path, line, rule: "docstring", message: `export "${label}" has no docstring` });
    }
    previousName = label;
  }
  return violations;
}

function namesExportedLater(body: readonly SyntaxNode[]): Set<string> {
  const names = new Set<string>();
  for (const node of body) {
    if (node.type === "ExportNamedDeclaration" && !node.source) {
      for (const specifier of node.specifiers as SyntaxNode[]) names.add(nameOf(specifier.local));
    }
    if (node.type === "ExportDefaultDeclaration") names.add(nameOf(node.declaration));
  }
  names.delete("");
  return names;
}

function namesOf(declaration: SyntaxNode): string[] {
  if (declaration.type === "VariableDeclaration") {
    return (declaration.declarations as SyntaxNode[]).map((item) => nameOf(item.id) || "(destructured)");
  }
  return [nameOf(declaration.id)].filter((name) => name !== "");
}

function nameOf(node: unknown): string {
  const name = (node as { name?: unknown } | null | undefined)?.name;
  return typeof name === "string" ? name : "";
}

function hasDocstring({ file, comments }: ParsedFile, start: number): boolean {
  return comments.some(
    (comment) =>
      comment.type === "Block" &&
      comment.value.startsWith("*") &&
      comment.end <= start &&
      file.text.slice(comment.end, start).trim() === "",
  );
}
