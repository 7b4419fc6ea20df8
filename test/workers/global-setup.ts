/** Starts the fake engines in Node, beside workerd. */
import type { TestProject } from "vitest/node";
import { startFakeEngines } from "./fake-engine/server.ts";

declare module "vitest" {
  interface ProvidedContext {
    fakeEngineUrl: string;
    /** `npm run test:full`: the long tests run as often as they promise. */
    isFull: boolean;
  }
}

/** Vitest calls this once, before any test file, and what it returns after the last one. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const engines = await startFakeEngines();
  project.provide("fakeEngineUrl", engines.url);
  project.provide("isFull", process.env.QUIRE_TEST_FULL === "1");
  return engines.close;
}
