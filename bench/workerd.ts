/** A bare workerd on a free port: what the edge costs without wrangler around it. */
import { spawn } from "node:child_process";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { rolldown } from "rolldown";
import { makeRunFolder, noteProcess } from "./temp-folder.ts";

const LISTEN_MS_MAX = 20_000;

/** What to run. */
export interface WorkerdOptions {
  /** Absolute path of the entry; it is bundled as `worker.js`. */
  entry: string;
  /** The configuration (Cap'n Proto text) in the same folder as `worker.js`; one socket, at 127.0.0.1:0. */
  config: string;
  /** More files of that folder, by name. */
  files?: Readonly<Record<string, string | Uint8Array>>;
  /** Folders to make in it, for disk services. */
  folders?: readonly string[];
  /** Its V8 can be asked for what it holds, and to collect it: {@link BareWorkerd.inspectorUrl}. */
  isInspected?: boolean;
}

/** A running workerd, until it is closed. */
export interface BareWorkerd {
  version: string;
  url: string;
  readonly pid: number;
  /** Web socket of the inspector of the Worker `main`, where it was asked for. */
  inspectorUrl?: string;
  /** As `kill -9`, then the same once more: on its port, with what lies on its disk. The inspector is elsewhere then. */
  restart(): Promise<void>;
  close(): Promise<void>;
}

/** Starts the workerd that wrangler brings. @throws {Error} when it does not come up; nothing is left of it. */
export async function startWorkerd(options: WorkerdOptions): Promise<BareWorkerd> {
  const require = createRequire(createRequire(import.meta.url).resolve("wrangler"));
  const program = (require("workerd") as { default: string }).default;
  const { version } = require("workerd/package.json") as { version: string };
  const folder = await makeRunFolder();
  await bundle(options.entry, join(folder, "worker.js"));
  const files = { ...options.files, "config.capnp": options.config };
  for (const [name, contents] of Object.entries(files)) await writeFile(join(folder, name), contents);
  for (const name of options.folders ?? []) await mkdir(join(folder, name));
  const isInspected = options.isInspected === true;
  let running: Serving | undefined;
  const serve = async (port: number): Promise<Serving> => {
    running = spawnWorkerd(program, folder, { port, isInspected });
    if (running.pid !== undefined) await noteProcess(folder, running.pid);
    return running;
  };
  const kill = async (): Promise<void> => {
    running?.kill();
    await running?.gone;
  };
  const close = async (): Promise<void> => {
    await kill();
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const { control, gone } = await serve(0);
    const ports = await listeningPorts(control, gone, isInspected);
    return {
      ...{ version, url: `http://127.0.0.1:${ports.http}`, close },
      get pid() {
        return running?.pid ?? 0;
      },
      restart: async () => {
        await kill();
        const again = await serve(ports.http);
        await listeningPorts(again.control, again.gone, isInspected);
      },
      ...(ports.inspector === undefined ? {} : { inspectorUrl: `ws://127.0.0.1:${ports.inspector}/main` }),
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** A process of it. */
interface Serving {
  pid: number | undefined;
  control: Readable;
  gone: Promise<void>;
  kill(): void;
}

function spawnWorkerd(
  program: string,
  folder: string,
  { port, isInspected }: { port: number; isInspected: boolean },
): Serving {
  const listen = [`--socket-addr=http=127.0.0.1:${port}`, ...(isInspected ? ["--inspector-addr=127.0.0.1:0"] : [])];
  const child = spawn(program, ["serve", "config.capnp", "--control-fd=3", "--experimental", ...listen], {
    cwd: folder,
    stdio: ["ignore", "ignore", "inherit", "pipe"],
  });
  const gone = new Promise<void>((resolve) => child.once("close", () => resolve()));
  return { pid: child.pid, control: child.stdio[3] as Readable, gone, kill: () => void child.kill("SIGKILL") };
}

/** The playground's files are text to the Worker, as `wrangler.toml` says. */
const webFiles = {
  name: "web-files-as-text",
  async load(id: string) {
    if (!/\/web\/(index\.html|app\.js|style\.css)$/.test(id)) return null;
    return { code: `export default ${JSON.stringify(await readFile(id, "utf8"))};`, moduleType: "js" as const };
  },
};

async function bundle(input: string, file: string): Promise<void> {
  const build = await rolldown({
    input,
    platform: "browser",
    external: ["cloudflare:workers"],
    plugins: [webFiles],
  });
  await build.write({ file, format: "esm" });
  await build.close();
}

async function listeningPorts(
  control: Readable,
  gone: Promise<void>,
  isInspected: boolean,
): Promise<{ http: number; inspector: number | undefined }> {
  const found = new Promise<{ http: number; inspector: number | undefined }>((resolve, reject) => {
    let text = "";
    control.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      const [http, inspector] = [portOf(text, "listen"), portOf(text, "listen-inspector")];
      if (http !== undefined && (inspector !== undefined || !isInspected)) resolve({ http, inspector });
    });
    void gone.then(() => reject(new Error("workerd ended before it listened")));
    setTimeout(() => reject(new Error("workerd does not listen")), LISTEN_MS_MAX).unref();
  });
  return found;
}

/** workerd writes a line of JSON for each of its sockets. */
function portOf(text: string, event: string): number | undefined {
  const port = new RegExp(`"event":"${event}".*?"port":(\\d+)`).exec(text)?.[1];
  return port === undefined ? undefined : Number(port);
}
