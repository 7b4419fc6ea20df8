/** The order in which vitest takes up test files: one that takes a minute does not begin when all others are over. */
import { BaseSequencer, type TestSpecification } from "vitest/node";

/**
 * Files that take 10 s and more on two cores, longest first. Vitest alone begins with the longest texts where it
 * remembers no run, and the conformance suites, a few lines each, would come last.
 */
export const LONGEST_FIRST = [
  "test/kernels/wasm.test.ts",
  "test/kernels/webgpu-lanes.test.ts",
  "test/kernels/reference.test.ts",
  "test/kernels/webgpu-device.test.ts",
  "test/engine/resume.test.ts",
  "test/kernels/webgpu.test.ts",
  "test/kernels/webgpu-browser.test.ts",
  "test/storage/fault-proxy.test.ts",
  "test/bench/main.test.ts",
  "test/bench/eval/lab-scores.test.ts",
  "test/engine/faults.test.ts",
  "test/engine/loss.test.ts",
  "test/storage/s3-store.test.ts",
] as const;

/** {@link LONGEST_FIRST}, then the rest as vitest has it. */
export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return longestFirst(await super.sort(files), ({ moduleId }) => moduleId);
  }
}

/** `files` with those of {@link LONGEST_FIRST} at their head; the others keep their order. */
export function longestFirst<T>(files: readonly T[], pathOf: (file: T) => string): T[] {
  const rank = (file: T): number => {
    const path = pathOf(file).replaceAll("\\", "/");
    const found = LONGEST_FIRST.findIndex((name) => path.endsWith(`/${name}`));
    return found < 0 ? LONGEST_FIRST.length : found;
  };
  return [...files].sort((a, b) => rank(a) - rank(b));
}
