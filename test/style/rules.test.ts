import { describe, expect, it } from "vitest";
import { checkCircles } from "./circles.ts";
import { checkBarrel, checkImports } from "./import-rule.ts";
import { checkLinks } from "./links.ts";
import { parseFile } from "./parse.ts";
import { checkDocstrings, checkGlobals, checkLength, checkName, checkNotes } from "./rules.ts";
import { lineAt } from "./source-tree.ts";

const parsed = (path: string, text: string) => parseFile({ path, text });
const importMessages = (path: string, text: string) =>
  checkImports(parsed(path, text)).map((v) => `${v.line} ${v.message}`);
const undocumented = (text: string) => checkDocstrings(parsed("protocol/a.ts", text)).map((v) => v.message);

describe("the import rule", () => {
  it.each([
    ["protocol/a.ts", `import { x } from "../kernels/contract.ts";`, "1 protocol must not import kernels"],
    ["kernels/a.ts", `\nimport type { S } from "../storage/contract.ts";`, "2 kernels must not import storage"],
    ["storage/a.ts", `type K = import("../kernels/contract.ts").Device;`, "1 storage must not import kernels"],
    ["storage/a.ts", `export { y } from "../kernels/layout.ts";`, "1 storage must not import kernels"],
    ["storage/a.ts", `export * from "../engine/chain.ts";`, "1 storage must not import engine"],
    ["models/a.ts", `const m = await import("../engine/server.ts");`, "1 models must not import engine"],
    ["tokenizer/deep/a.ts", `import "../../models/a.ts";`, "1 tokenizer must not import models"],
    ["workers/a.ts", `import { p } from "../engine/chain.ts";`, "1 workers must not import engine"],
    ["sdk/a.ts", `import { p } from "../storage/open.ts";`, "1 sdk must not import storage"],
    ["engine/a.ts", `new Worker(new URL("../cli/x.ts", import.meta.url));`, "1 engine must not import cli"],
    ["engine/a.ts", `import { f } from "../../elsewhere/x.ts";`, "1 ../../elsewhere/x.ts leaves the repository"],
    ["engine/a.ts", `import { f } from "/srv/x.ts";`, "1 absolute import /srv/x.ts"],
    [
      "engine/a.ts",
      `import { f } from "../kernels/wasm/device.ts";`,
      "1 kernels/wasm/device.ts is an implementation: go through kernels/open.ts",
    ],
    [
      "engine/a.ts",
      `import { f } from "../storage/s3-store.ts";`,
      "1 storage/s3-store.ts is an implementation: go through storage/open.ts",
    ],
    ["somewhere/a.ts", `import { f } from "../protocol/ids.ts";`, "1 somewhere must not import protocol"],
  ])("refuses in %s: %s", (path, text, message) => {
    expect(importMessages(path, text)).toEqual([message]);
  });

  it.each([
    ["engine/a.ts", `import { f } from "../storage/open.ts"; import { g } from "../kernels/open.ts";`],
    ["models/a.ts", `import { f } from "../kernels/contract.ts"; import { LIMITS } from "../protocol/limits.ts";`],
    ["storage/a.ts", `import { f } from "./s3-store.ts"; import { createHash } from "node:crypto"; import "msgpackr";`],
    ["test/engine/a.ts", `import { f } from "../../kernels/reference/device.ts";`],
    ["storage/a.ts", `// import { x } from "../kernels/contract.ts";\nconst text = 'import "../kernels/contract.ts"';`],
  ])("accepts in %s: %s", (path, text) => {
    expect(importMessages(path, text)).toEqual([]);
  });
});

describe("the circle rule", () => {
  const circles = (files: Record<string, string>) =>
    checkCircles(Object.entries(files).map(([path, text]) => parsed(path, text))).map(({ message }) => message);
  const named = (...paths: string[]) => `imported by value in a circle: ${paths.join(", ")}`;

  it("refuses files that load each other, however far around, and names each circle once", () => {
    const three = {
      "a/x.ts": `import { y } from "./y.ts";`,
      "a/y.ts": `export { z } from "../b/z.ts";`,
      "b/z.ts": `import "../a/x.ts";`,
      "b/outside.ts": `import { x } from "../a/x.ts";`,
    };
    expect(circles(three)).toEqual([named("a/x.ts", "a/y.ts", "b/z.ts")]);
    const two = { "p.ts": `import { type Q } from "./q.ts";`, "q.ts": `export * from "./p.ts";` };
    expect(circles({ ...three, ...two })).toEqual([named("a/x.ts", "a/y.ts", "b/z.ts"), named("p.ts", "q.ts")]);
    expect(circles({ "a.ts": `import { a } from "./a.ts";` })).toEqual([named("a.ts")]);
  });

  it("accepts types in a circle, and two ways to one file", () => {
    const files = {
      "a.ts": `import { b } from "./b.ts"; import { c } from "./c.ts"; import { join } from "node:path";`,
      "b.ts": `import type { A } from "./a.ts"; import { c } from "./c.ts";`,
      "c.ts": `export type { B } from "./b.ts"; export const c = "./a.ts";`,
    };
    expect(circles(files)).toEqual([]);
  });
});

describe("the link rule", () => {
  const other = "# Other\n\n## What it does: load, memory\n\n```sh\n# no heading\n```\n";
  const documents = new Map([["docs/other.md", other]]);
  const links = (text: string) =>
    checkLinks(
      { path: "docs/a.md", text },
      new Set(["docs/a.md", "docs/other.md", "docs/plot.png", "README.md"]),
      documents,
    );

  it("refuses a file or a heading that is not there, and says where", () => {
    const text = "# A\n\nSee [b](b.md), [o](other.md#no-heading)\nand [up](../docs/none/other.md).\n";
    expect(links(text).map(({ line, message }) => [line, message])).toEqual([
      [3, "docs/b.md is not there"],
      [3, "docs/other.md has no heading #no-heading"],
      [4, "docs/none/other.md is not there"],
    ]);
  });

  it("accepts files, headings, other sites, and what stands in code", () => {
    const text =
      "[o](other.md#what-it-does-load-memory) ![p](plot.png) [r](../README.md) [w](https://example.org/x#y)\n\n```md\n[b](b.md)\n```\n";
    expect(links(text)).toEqual([]);
  });
});

describe("the barrel rule", () => {
  it("refuses a file that only re-exports, but not the SDK's entry", () => {
    const text = `export { a } from "./a.ts";\nexport * from "./b.ts";`;
    expect(checkBarrel(parsed("storage/all.ts", text))).toHaveLength(1);
    expect(checkBarrel(parsed("sdk/index.ts", text))).toHaveLength(0);
    expect(checkBarrel(parsed("storage/a.ts", `${text}\nconst own = 1;`))).toHaveLength(0);
  });
});

describe("the docstring rule", () => {
  it.each([
    ["export function f(): void {}", "f"],
    ["// a line comment is not a docstring\nexport const limit = 1;", "limit"],
    ["/* one star */\nexport class C {}", "C"],
    ["/** Of another. */\nconst other = 1;\nexport interface Shape { n: number }", "Shape"],
    ["export type Name = string;", "Name"],
    ["export default { a: 1 };", "default"],
    ["function g(): void {}\nexport { g };", "g"],
    ["export const { left, right } = pair;", "(destructured)"],
  ])("finds what is missing in %j", (text, name) => {
    expect(undocumented(text)).toEqual([`export "${name}" has no docstring`]);
  });

  it.each([
    "/** Documented. */\nexport async function f(): Promise<void> {}",
    "/** Of the first overload. */\nexport function f(a: string): void;\nexport function f(a: number): void;\nexport function f(a: unknown): void { use(a); }",
    "/** Documented. */\nfunction g(): void {}\nexport { g };",
    "const local = 1;\nfunction helper(): void {}",
    'export { z } from "./z.ts";',
  ])("is content with %j", (text) => {
    expect(undocumented(text)).toEqual([]);
  });
});

describe("the other rules", () => {
  it("measures length in lines, with or without a last newline", () => {
    const lines = (count: number) => Array.from({ length: count }, () => "x").join("\n");
    expect(checkLength({ path: "a.ts", text: lines(500) })).toHaveLength(0);
    expect(checkLength({ path: "a.ts", text: `${lines(500)}\n` })).toHaveLength(0);
    expect(checkLength({ path: "a.ts", text: lines(501) })).toHaveLength(1);
  });

  it.each([
    "engine/pagePool.ts",
    "engine/page_pool.ts",
    "Engine/a.ts",
    "kernels/webgpu/attend-split.wgsl",
    "docs/Notes.md",
  ])("refuses the name %s", (path) => {
    expect(checkName(path)).toHaveLength(1);
  });

  it.each([
    "engine/page-pool.ts",
    "test/engine/page-pool.test.ts",
    "kernels/webgpu/attend_split.wgsl",
    "README.md",
    ".ci/run",
    "vitest.config.ts",
    ".gitattributes",
  ])("accepts the name %s", (path) => {
    expect(checkName(path)).toHaveLength(0);
  });

  it("finds notes about unfinished work and silenced types", () => {
    const todo = ["TO", "DO"].join("");
    const ignore = ["@ts-ig", "nore"].join("");
    expect(checkNotes({ path: "a.ts", text: `ok\n// ${todo}: later\n// ${ignore}\n` }).map((v) => v.line)).toEqual([
      2, 3,
    ]);
    expect(checkNotes({ path: "a.ts", text: "a method, autoDOMs, @ts-expect-error with a reason\n" })).toEqual([]);
  });

  it("finds module-level variables, also exported ones, and leaves constants and locals alone", () => {
    const globals = (text: string) => checkGlobals(parsed("engine/a.ts", text)).map((v) => v.line);
    expect(globals("let count = 0;\nexport var other = 1;")).toEqual([1, 2]);
    expect(
      globals("const fixed = 1;\nfunction f() { let local = 1; return local; }\ndeclare let given: number;"),
    ).toEqual([]);
  });

  it("counts lines from 1", () => {
    expect([0, 1, 2, 3].map((offset) => lineAt("a\nb\n", offset))).toEqual([1, 1, 2, 2]);
  });
});
