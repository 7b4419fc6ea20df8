/** Configuration of a bare workerd with one Worker whose Durable Objects lie on this machine's disk (Cap'n Proto text). */

/** What the Worker is given. */
export interface WorkerdParts {
  /** Text bindings: the value itself, or a file of the folder that workerd is started in. */
  texts: Readonly<Record<string, string | { file: string }>>;
  /** Durable Object classes that it exports; the binding of `SessionLog` is SESSION_LOG. */
  classes: readonly string[];
  /** Other Workers, by the binding that reaches them: files of the folder that are their modules, the entry first. */
  workers?: Readonly<Record<string, readonly string[]>>;
  /**
   * What V8's heap may come to before the process ends, its young generation an eighth of it from the start; default: what V8 takes for a machine of this size,
   * which is gigabytes, in steps.
   */
  heapMiBMax?: number;
}

const COMPATIBILITY_DATE = "2026-10-01";
const MODULE_KINDS: Readonly<Record<string, string>> = { js: "esModule", wasm: "wasm", onnx: "data" };

const bindingName = (className: string): string => className.replaceAll(/(?<=[a-z])[A-Z]/g, "_$&").toUpperCase();

/** One socket on a free port of 127.0.0.1; `worker.js` and a folder `disk` lie beside it. */
export function workerdConfig({ texts, classes, workers = {}, heapMiBMax }: WorkerdParts): string {
  const bindings = Object.entries(texts).map(([name, text]) => {
    const value = typeof text === "string" ? JSON.stringify(text) : `embed ${JSON.stringify(text.file)}`;
    return `(name = "${name}", text = ${value})`;
  });
  const namespaces = classes.map((name) => `(name = "${bindingName(name)}", durableObjectNamespace = "${name}")`);
  const objects = classes.map((name) => `(className = "${name}", uniqueKey = "${name}", enableSql = true)`);
  const others = Object.entries(workers).map(([name, files]) => {
    const modules = files.map((file) => {
      return `(name = "${file}", ${MODULE_KINDS[file.split(".").at(-1) ?? ""]} = embed "${file}")`;
    });
    return {
      binding: `(name = "${name}", service = "${name}")`,
      service: `(name = "${name}", worker = (modules = [${modules.join(", ")}], compatibilityDate = "${COMPATIBILITY_DATE}")),`,
    };
  });
  const given = [...bindings, ...namespaces, ...others.map(({ binding }) => binding)];
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  v8Flags = [${heapMiBMax === undefined ? "" : heapFlags(heapMiBMax)}],
  services = [
    (name = "main", worker = (
      modules = [(name = "worker.js", esModule = embed "worker.js")],
      compatibilityDate = "${COMPATIBILITY_DATE}",
      compatibilityFlags = ["enable_request_signal"],
      bindings = [${given.join(", ")}],
      durableObjectNamespaces = [${objects.join(", ")}],
      durableObjectStorage = (localDisk = "disk"),
    )),
    ${others.map(({ service }) => service).join("\n    ")}
    (name = "disk", disk = (path = "disk", writable = true)),
    (name = "internet", network = (allow = ["public", "private"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
`;
}

function heapFlags(heapMiBMax: number): string {
  const halfMiB = heapMiBMax / 16;
  const flags = { "max-heap-size": heapMiBMax, "min-semi-space-size": halfMiB, "max-semi-space-size": halfMiB };
  return Object.entries(flags)
    .map(([name, value]) => `"--${name}=${value}"`)
    .join(", ");
}
