/** Starts the fake engines in Node, beside workerd. */
import type { TestProject } from "vitest/node";
import { startFakeEngines } from "./fake-engine/server.ts";

declare module "vitest" {
  interface ProvidedContext {
    fakeEngineUrl: string;
  }
}

/** Vitest calls this once, before any test file, and what it returns after the last one. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const engines = await startFakeEngines();
  project.provide("fakeEngineUrl", engines.url);
  return engines.close;
}
