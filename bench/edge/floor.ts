/** What any edge costs in a bare workerd: a Worker and one Durable Object that pass an engine's answer on, and do nothing else. */
import { fileURLToPath } from "node:url";
import { type BareWorkerd, startWorkerd } from "../workerd.ts";
import { workerdConfig } from "../workerd-config.ts";

/** Starts it in front of an engine. At `/new` each request takes a new object, elsewhere all take one. @throws {Error} when it does not come up */
export function openFloor(engineUrl: string): Promise<BareWorkerd> {
  const entry = fileURLToPath(new URL("../../test/workers/floor-worker.ts", import.meta.url));
  const config = workerdConfig({ texts: { ENGINE_URL: engineUrl }, classes: ["Between"] });
  return startWorkerd({ entry, config, folders: ["disk"] });
}
