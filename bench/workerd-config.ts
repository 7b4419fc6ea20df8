/** Configuration of a bare workerd with one Worker whose Durable Objects lie on this machine's disk (Cap'n Proto text). */

/** What the Worker is given. */
export interface WorkerdParts {
  /** Text bindings: the value itself, or a file of the folder that workerd is started in. */
  texts: Readonly<Record<string, string | { file: string }>>;
  /** Durable Object classes that it exports; the binding of `SessionLog` is SESSION_LOG. */
  classes: readonly string[];
}

const bindingName = (className: string): string => className.replaceAll(/(?<=[a-z])[A-Z]/g, "_$&").toUpperCase();

/** One socket on a free port of 127.0.0.1; `worker.js` and a folder `disk` lie beside it. */
export function workerdConfig({ texts, classes }: WorkerdParts): string {
  const bindings = Object.entries(texts).map(([name, text]) => {
    const value = typeof text === "string" ? JSON.stringify(text) : `embed ${JSON.stringify(text.file)}`;
    return `(name = "${name}", text = ${value})`;
  });
  const namespaces = classes.map((name) => `(name = "${bindingName(name)}", durableObjectNamespace = "${name}")`);
  const objects = classes.map((name) => `(className = "${name}", uniqueKey = "${name}", enableSql = true)`);
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      modules = [(name = "worker.js", esModule = embed "worker.js")],
      compatibilityDate = "2026-10-01",
      compatibilityFlags = ["enable_request_signal"],
      bindings = [${[...bindings, ...namespaces].join(", ")}],
      durableObjectNamespaces = [${objects.join(", ")}],
      durableObjectStorage = (localDisk = "disk"),
    )),
    (name = "disk", disk = (path = "disk", writable = true)),
    (name = "internet", network = (allow = ["public", "private"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
`;
}
