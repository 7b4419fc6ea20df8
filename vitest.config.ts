import { configDefaults, defineConfig } from "vitest/config";
import { LongestFirst } from "./test/frame/longest-first.ts";

/** Tests named `*.long.test.ts` run only with `npm run test:full`, so that `npm test` stays under 15 minutes. */
const longTests = process.env.QUIRE_TEST_FULL === "1" ? [] : ["test/**/*.long.test.ts"];

/** The Node project. Worker tests (in workerd) and end-to-end tests have their own configs, see test/run.ts. */
export default defineConfig({
  test: {
    name: "node",
    include: ["test/**/*.test.ts"],
    exclude: [...configDefaults.exclude, "test/workers/**", "test/e2e/**", ...longTests],
    pool: "forks",
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: 30_000,
    hookTimeout: 60_000,
    teardownTimeout: 20_000,
    passWithNoTests: false,
  },
});
