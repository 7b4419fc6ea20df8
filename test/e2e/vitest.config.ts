import { configDefaults, defineConfig } from "vitest/config";

const longTests = process.env.QUIRE_TEST_FULL === "1" ? [] : ["test/e2e/**/*.long.test.ts"];

/** End to end: real processes on free ports, one file after the other because each has the machine to itself. */
export default defineConfig({
  test: {
    name: "e2e",
    include: ["test/e2e/**/*.test.ts"],
    exclude: [...configDefaults.exclude, ...longTests],
    globalSetup: ["test/e2e/support/global-setup.ts"],
    fileParallelism: false,
    maxWorkers: 1,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    teardownTimeout: 30_000,
    passWithNoTests: false,
  },
});
