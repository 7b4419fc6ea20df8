/** One `quire start` for all the files that only talk to it. */
import type { TestProject } from "vitest/node";
import { startQuire, temporaryFolder } from "./quire-process.ts";

declare module "vitest" {
  interface ProvidedContext {
    edgeUrl: string;
    engineUrl: string;
    apiKey: string;
    dataPath: string;
  }
}

/** Starts it, tells the tests where it is, and ends it when they are over. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await temporaryFolder();
  const quire = await startQuire({ dataPath: folder.path });
  project.provide("edgeUrl", quire.url);
  project.provide("engineUrl", quire.engineUrl);
  project.provide("apiKey", quire.apiKey);
  project.provide("dataPath", folder.path);
  return async () => {
    await quire.kill();
    await folder.remove();
  };
}
