/** The import rule of the architecture: which folder may name which, and who may name an implementation. */
import { posix } from "node:path";
import { importsOf, type ParsedFile } from "./parse.ts";
import { lineAt, type Violation } from "./source-tree.ts";

/** What each folder may import besides itself; a folder that is not listed may import nothing of ours. */
export const allowedImports: Record<string, readonly string[] | "anything"> = {
  protocol: [],
  kernels: ["protocol"],
  storage: ["protocol"],
  tokenizer: ["protocol"],
  models: ["kernels", "protocol"],
  engine: ["protocol", "kernels", "storage", "models", "tokenizer"],
  workers: ["protocol", "tokenizer", "web"],
  sdk: ["protocol", "tokenizer"],
  web: [],
  bench: "anything",
  test: "anything",
  cli: "anything",
  bin: ["cli"],
};

/** Files that are an implementation behind a contract: only their own folder, and the tools, may name them. */
const implementations = [/^kernels\/(reference|wasm|webgpu)\//, /^storage\/[a-z0-9-]*-store\.ts$/];

const barrelsAllowed = new Set(["sdk/index.ts", "workers/index.ts"]);

function folderOf(path: string): string {
  const slash = path.indexOf("/");
  return slash === -1 ? "" : path.slice(0, slash);
}

/** Violations of the import rule in one file. Imports of packages and of Node's modules are free. */
export function checkImports(parsed: ParsedFile): Violation[] {
  const { path, text } = parsed.file;
  const folder = folderOf(path);
  const violations: Violation[] = [];
  const report = (start: number, message: string): void => {
    violations.push({ path, line: lineAt(text, start), rule: "imports", message });
  };
  if (folder === "") return violations;
  for (const { specifier, start } of importsOf(parsed)) {
    if (specifier.startsWith("/") || specifier.startsWith("file:")) report(start, `absolute import ${specifier}`);
    if (!specifier.startsWith(".")) continue;
    const target = posix.join(posix.dirname(path), specifier);
    if (target.startsWith("../")) {
      if (folder !== "test" && folder !== "bench") report(start, `${specifier} leaves the repository`);
      continue;
    }
    const targetFolder = folderOf(target);
    if (targetFolder === folder) continue;
    const allowed = allowedImports[folder];
    if (allowed === "anything") continue;
    if (!allowed?.includes(targetFolder)) report(start, `${folder} must not import ${targetFolder || target}`);
    else if (implementations.some((pattern) => pattern.test(target))) {
      report(start, `${target} is an implementation: go through ${targetFolder}/open.ts`);
    }
  }
  return violations;
}

/** A file that only re-exports is a barrel; the SDK's entry and the Worker's are the ones there are. */
export function checkBarrel(parsed: ParsedFile): Violation[] {
  const { path } = parsed.file;
  const statements = parsed.body.filter((node) => node.type !== "ImportDeclaration");
  const isBarrel =
    statements.length > 0 &&
    statements.every(
      (node) => node.type === "ExportAllDeclaration" || (node.type === "ExportNamedDeclaration" && node.source),
    );
  if (!isBarrel || barrelsAllowed.has(path)) return [];
  return [{ path, line: 1, rule: "barrel", message: "only re-exports: import from where the thing is" }];
}
