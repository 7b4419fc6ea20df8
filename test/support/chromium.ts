/** The Chromium of the npm package @sparticuz/chromium, driven over its DevTools port: one page, on a software GPU. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const START_MS_MAX = 30_000;
const CALL_MS_MAX = 30_000;

// Neither --single-process (a request of the page is then refused) nor --dump-dom, which this build has not.
const FLAGS = [
  "--headless=shell",
  "--no-sandbox",
  "--no-zygote",
  "--remote-debugging-port=0",
  "--use-gl=angle",
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader",
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
];

/** An open page. */
export interface BrowserPage {
  /** The value of an expression, as JSON carries it. @throws {Error} when it throws. */
  evaluate(expression: string): Promise<unknown>;
  /** Gives the window another size, in CSS pixels. */
  resize(window: { width: number; height: number }): Promise<void>;
  /** Ends the browser and removes its profile. */
  close(): Promise<void>;
}

/** Opens an address in a fresh browser; undefined where the package has none for this platform or it does not start. */
export async function openBrowserPage(url: string): Promise<BrowserPage | undefined> {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  const program = await unpack();
  if (program === undefined) return undefined;
  const profile = await mkdtemp(join(tmpdir(), "quire-browser-"));
  const child = spawn(program, [...FLAGS, `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, LD_LIBRARY_PATH: join(tmpdir(), "al2023/lib") },
  });
  const gone = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const close = async (): Promise<void> => {
    child.kill("SIGKILL");
    await gone;
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  try {
    const port = await debuggingPort(child, gone);
    if (port === undefined) return void (await close());
    const targets = (await (await fetch(`http://127.0.0.1:${port}/json/list`)).json()) as Record<string, string>[];
    const call = await connect(String(targets[0]?.webSocketDebuggerUrl));
    await call("Page.enable", {});
    const { errorText } = await call("Page.navigate", { url });
    if (errorText !== undefined) throw new Error(`the browser cannot open ${url}: ${errorText}`);
    return {
      close,
      async resize(window) {
        await call("Emulation.setDeviceMetricsOverride", { ...window, deviceScaleFactor: 1, mobile: false });
      },
      async evaluate(expression) {
        const answer = await call("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
        const { result, exceptionDetails } = answer as { result: { value?: unknown }; exceptionDetails?: object };
        if (exceptionDetails !== undefined) throw new Error(`in the page: ${JSON.stringify(exceptionDetails)}`);
        return result.value;
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Path of the browser, unpacked once per machine. */
async function unpack(): Promise<string | undefined> {
  // Only for this does the package unpack the libraries that a bare machine lacks.
  process.env.AWS_EXECUTION_ENV ??= "AWS_Lambda_nodejs22.x";
  try {
    const { default: chromium } = await import("@sparticuz/chromium");
    return await chromium.executablePath();
  } catch {
    return undefined;
  }
}

async function debuggingPort(child: ChildProcess, gone: Promise<void>): Promise<number | undefined> {
  const found = new Promise<number>((resolve) => {
    let text = "";
    child.stderr?.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      const port = /DevTools listening on ws:\/\/[^:]+:(\d+)/.exec(text)?.[1];
      if (port !== undefined) resolve(Number(port));
    });
  });
  const late = new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), START_MS_MAX).unref());
  return Promise.race([found, gone.then(() => undefined), late]);
}

type Call = (method: string, params: object) => Promise<Record<string, unknown>>;

async function connect(address: string): Promise<Call> {
  const socket = new WebSocket(address);
  await new Promise<void>((resolve, reject) => {
    socket.onopen = () => resolve();
    socket.onerror = () => reject(new Error(`no connection to ${address}`));
  });
  let lastId = 0;
  const waiting = new Map<number, (answer: Record<string, unknown>) => void>();
  socket.onmessage = ({ data }) => {
    const { id, result } = JSON.parse(String(data)) as { id?: number; result?: Record<string, unknown> };
    if (id !== undefined) waiting.get(id)?.(result ?? {});
  };
  return (method, params) =>
    new Promise((resolve, reject) => {
      const id = ++lastId;
      setTimeout(() => reject(new Error(`the browser does not answer ${method}`)), CALL_MS_MAX).unref();
      waiting.set(id, resolve);
      socket.send(JSON.stringify({ id, method, params }));
    });
}
