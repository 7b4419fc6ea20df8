/** What any edge costs in a bare workerd: a Worker and one Durable Object that pass an engine's answer on, and do nothing else. */
import { fileURLToPath } from "node:url";
import { type BareWorkerd, startWorkerd } from "../workerd.ts";

const config = `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      modules = [(name = "worker.js", esModule = embed "worker.js")],
      compatibilityDate = "2026-10-01",
      compatibilityFlags = ["enable_request_signal"],
      bindings = [
        (name = "ENGINE_URL", text = embed "engine-url"),
        (name = "BETWEEN", durableObjectNamespace = "Between"),
      ],
      durableObjectNamespaces = [(className = "Between", uniqueKey = "Between", enableSql = true)],
      durableObjectStorage = (localDisk = "disk"),
    )),
    (name = "disk", disk = (path = "disk", writable = true)),
    (name = "internet", network = (allow = ["public", "private"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
`;

/** Starts it in front of an engine. At `/new` each request takes a new object, elsewhere all take one. @throws {Error} when it does not come up */
export function openFloor(engineUrl: string): Promise<BareWorkerd> {
  const entry = fileURLToPath(new URL("../../test/workers/floor-worker.ts", import.meta.url));
  return startWorkerd({ entry, config, files: { "engine-url": engineUrl }, folders: ["disk"] });
}
