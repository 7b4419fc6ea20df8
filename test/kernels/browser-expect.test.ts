/** The suite runs in a browser and in `gpu-check` with a small `expect` in vitest's place: it must not ask for what is not there. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { KNOWN } from "./browser/expect-in-page.ts";

const FOLDERS = ["test/kernels/conformance", "test/kernels/support"];

/** What is called on `expect(...)` and on `expect`, with the file that does. */
function used(pattern: RegExp): Map<string, string> {
  const names = new Map<string, string>();
  for (const folder of FOLDERS) {
    for (const file of readdirSync(folder)) {
      for (const [, name] of readFileSync(join(folder, file), "utf8").matchAll(pattern)) names.set(name!, file);
    }
  }
  return names;
}

it("the conformance suite asks only for matchers that the page has", () => {
  const matchers = used(/\.(to[A-Z]\w*)\(/g);
  expect(matchers.has("toEqual")).toBe(true);
  expect([...matchers].filter(([name]) => !KNOWN.matchers.includes(name) && !NOT_OF_EXPECT.has(name))).toEqual([]);
  const statics = used(/\bexpect\.(\w+)\(/g);
  expect(statics.has("fail")).toBe(true);
  expect([...statics].filter(([name]) => !(KNOWN.statics as readonly string[]).includes(name))).toEqual([]);
});

/** Methods of values. */
const NOT_OF_EXPECT = new Set(["toSorted", "toReversed", "toFixed", "toString", "toSpliced"]);
