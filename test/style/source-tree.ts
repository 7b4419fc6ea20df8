/** The repository's own source files, as the style tests see them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** A source file: path from the repository root with `/`, and its text. */
export interface SourceFile {
  path: string;
  text: string;
}

/** One breach of a rule; `line` counts from 1. */
export interface Violation {
  path: string;
  line: number;
  rule: string;
  message: string;
}

/** Absolute path of the repository root. */
export const repositoryRoot = fileURLToPath(new URL("../..", import.meta.url));

const ignoredFolders = new Set(["node_modules", ".git", ".data", ".state", ".wrangler", "dist", "coverage"]);
const sourceExtensions = [".ts", ".mts", ".mjs", ".cjs", ".js", ".html", ".css", ".wgsl", ".py", ".md", ".sh"];

/** Weights are data with a training script of their own; golden and recorded inputs are data too. */
function isData(path: string): boolean {
  return path.startsWith("weights/") || path.includes("/fixtures/");
}

/** Every path below the root except ignored folders, `/`-separated, ascending. */
export function listPaths(root: string = repositoryRoot): string[] {
  const paths: string[] = [];
  const walk = (folder: string): void => {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
      const path = folder === "" ? entry.name : `${folder}/${entry.name}`;
      if (entry.isDirectory()) {
        if (!ignoredFolders.has(entry.name)) walk(path);
      } else if (entry.isFile()) {
        paths.push(path);
      }
    }
  };
  walk("");
  return paths.sort();
}

/** Reads the source files (code, pages, shaders, documents) that the style rules are about. */
export function readSourceFiles(root: string = repositoryRoot): SourceFile[] {
  return listPaths(root)
    .filter((path) => sourceExtensions.some((extension) => path.endsWith(extension)) && !isData(path))
    .map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));
}

/** True for files that are parsed as TypeScript or JavaScript; AssemblyScript has a grammar of its own. */
export function isScript(path: string): boolean {
  return /\.(ts|mts|mjs|cjs|js)$/.test(path) && !path.startsWith("kernels/wasm/assembly/");
}

/** The line (from 1) of a character offset. */
export function lineAt(text: string, offset: number): number {
  let line = 1;
  for (let index = text.indexOf("\n"); index !== -1 && index < offset; index = text.indexOf("\n", index + 1)) line++;
  return line;
}

/** One line per violation, for an assertion message. */
export function describeViolations(violations: readonly Violation[]): string {
  return violations.map((v) => `${v.path}:${v.line} ${v.rule}: ${v.message}`).join("\n");
}
