/** A thin layer over the parser that the bundler brings: imports, exports and comments with their places. */
import { parseSync } from "rolldown/utils";
import type { SourceFile } from "./source-tree.ts";

/** Nodes are walked generically: only `type`, `start` and `end` are common to all. */
export interface SyntaxNode {
  type: string;
  start: number;
  end: number;
  [key: string]: unknown;
}

/** A parsed file: its top-level statements and its comments in source order. */
export interface ParsedFile {
  file: SourceFile;
  body: SyntaxNode[];
  comments: { type: string; value: string; start: number; end: number }[];
}

/**
 * Parses TypeScript or JavaScript.
 * @throws {Error} when the text does not parse.
 */
export function parseFile(file: SourceFile): ParsedFile {
  const result = parseSync(file.path.replace(/^.*\//, ""), file.text);
  const [error] = result.errors;
  if (error) throw new Error(`${file.path}: ${error.message}`);
  return { file, body: result.program.body as unknown as SyntaxNode[], comments: result.comments };
}

/** Calls `visit` on every node, parents first. */
export function walkSyntax(root: unknown, visit: (node: SyntaxNode) => void): void {
  if (Array.isArray(root)) {
    for (const item of root) walkSyntax(item, visit);
  } else if (isNode(root)) {
    visit(root);
    for (const key in root) if (key !== "parent") walkSyntax(root[key], visit);
  }
}

/** Whether a value of a syntax tree is a node. */
export function isNode(value: unknown): value is SyntaxNode {
  return typeof value === "object" && value !== null && typeof (value as SyntaxNode).type === "string";
}

/** Every module that a file names: static, re-exported, dynamic and type imports, `new URL(..., import.meta.url)`. */
export function importsOf(parsed: ParsedFile): { specifier: string; start: number }[] {
  const found: { specifier: string; start: number }[] = [];
  const add = (literal: unknown): void => {
    if (isNode(literal) && typeof literal.value === "string") {
      found.push({ specifier: literal.value, start: literal.start });
    }
  };
  walkSyntax(parsed.body, (node) => {
    switch (node.type) {
      case "ImportDeclaration":
      case "ExportNamedDeclaration":
      case "ExportAllDeclaration":
      case "ImportExpression":
      case "TSImportType":
        add(node.source);
        break;
      case "NewExpression":
        if (isUrlOfModule(node)) add((node.arguments as unknown[])[0]);
        break;
    }
  });
  return found;
}

function isUrlOfModule(node: SyntaxNode): boolean {
  const [, base] = node.arguments as SyntaxNode[];
  const callee = node.callee as SyntaxNode;
  if (callee.name !== "URL" || base?.type !== "MemberExpression") return false;
  return (base.object as SyntaxNode).type === "MetaProperty";
}
