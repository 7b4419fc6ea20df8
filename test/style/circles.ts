/** Circles of imports by value: files that need each other to be loaded first. Imports of types alone are free, they are gone at run time. */
import { posix } from "node:path";
import { isNode, type ParsedFile } from "./parse.ts";
import type { Violation } from "./source-tree.ts";

/** One violation for each set of files that import each other by value in a circle, named by all of them, in order of path. */
export function checkCircles(parsed: readonly ParsedFile[]): Violation[] {
  const graph = new Map(parsed.map((one) => [one.file.path, valueImportsOf(one)]));
  return circlesOf(graph).map((paths) => ({
    ...{ path: paths[0] as string, line: 1, rule: "circle" },
    message: `imported by value in a circle: ${paths.join(", ")}`,
  }));
}

/** Files of ours that are loaded with a file: those of all imports and re-exports but `import type` (`import { type X }` loads its file too). */
function valueImportsOf({ file, body }: ParsedFile): string[] {
  return body.flatMap(({ source, importKind, exportKind }) => {
    if (importKind === "type" || exportKind === "type") return [];
    if (!isNode(source) || typeof source.value !== "string" || !source.value.startsWith(".")) return [];
    return [posix.join(posix.dirname(file.path), source.value)];
  });
}

/** Sets of files that reach each other, each in ascending order (Tarjan's strongly connected components). */
function circlesOf(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const order = new Map<string, number>();
  const lowest = new Map<string, number>();
  const stack: string[] = [];
  const circles: string[][] = [];
  const visit = (path: string): void => {
    const index = order.size;
    order.set(path, index);
    lowest.set(path, index);
    stack.push(path);
    for (const next of graph.get(path) ?? []) {
      if (!graph.has(next)) continue;
      if (!order.has(next)) visit(next);
      if (stack.includes(next)) lowest.set(path, Math.min(lowest.get(path) as number, lowest.get(next) as number));
    }
    if (lowest.get(path) !== index) return;
    const members = stack.splice(stack.indexOf(path));
    if (members.length > 1 || graph.get(path)?.includes(path)) circles.push(members.sort());
  };
  for (const path of graph.keys()) if (!order.has(path)) visit(path);
  return circles;
}
