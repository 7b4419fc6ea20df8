/** The stack that lives are lived on: the whole edge in a workerd of its own, engines as users start them, one store on disk. All of it can be killed. */
import { randomBytes } from "node:crypto";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startBareEdge } from "../../../bench/edge/bare-edge.ts";
import { type EngineProcess, startEngineProcess } from "../../../bench/load/engine-process.ts";
import { scrape } from "../../../bench/load/rest.ts";
import { makeRunFolder } from "../../../bench/temp-folder.ts";
import type { BareWorkerd } from "../../../bench/workerd.ts";
import { FsStore } from "../../../storage/fs-store.ts";
import { collectGarbage } from "../../../storage/gc.ts";
import { repositoryRoot } from "../../style/source-tree.ts";
import { CONTEXT_TOKENS } from "./twin.ts";

const knownMsMax = 30_000;
const graceMs = 25_000;
const preloads = ["./slow-store.ts", "./skewed-clock.ts"].map(
  (name) => `--import=${new URL(name, import.meta.url).href}`,
);

/** Tenants by name; `strangers` says nothing but to find nothing, `operators` manages keys. */
export const TENANTS = ["one", "two", "strangers", "operators"] as const;
/** One of them. */
export type TenantName = (typeof TENANTS)[number];

/** What engines of a life are like. */
export interface StackOptions {
  /** Flags of `quire serve` beside those that every life has, of one engine after the other. */
  engineArgs: () => readonly string[];
  /** How wrong the clock of the next engine is. */
  skewMs: () => number;
  /** Engines share a disk cache of so many bytes. */
  diskCacheBytes: number | undefined;
  /** Turns of a tenant at a time. */
  turnsConcurrent: number;
  signal: AbortSignal;
}

/** Running; {@link Stack.close} leaves nothing of it. */
export class Stack {
  /** API keys. */
  readonly keys: Readonly<Record<TenantName, string>>;
  readonly engines: EngineProcess[] = [];
  readonly #options: StackOptions;
  readonly #folder: string;
  readonly #engineKey = randomBytes(32).toString("hex");
  readonly store: FsStore;
  /** Ends what still starts. */
  readonly #closing = new AbortController();
  #edge: BareWorkerd | undefined;
  #engineCount = 0;

  private constructor(options: StackOptions, folder: string, store: FsStore) {
    this.#options = options;
    this.#folder = folder;
    this.store = store;
    const entries = TENANTS.map((name) => [name, `qk-${randomBytes(16).toString("hex")}`] as const);
    this.keys = Object.fromEntries(entries) as Record<TenantName, string>;
  }

  static async open(options: StackOptions): Promise<Stack> {
    const folder = await makeRunFolder();
    const stack = new Stack(options, folder, await FsStore.open(join(folder, "pages")));
    try {
      await stack.#startEdge();
      await Promise.all([stack.addEngine(), stack.addEngine()]);
      await stack.#untilKnown();
      return stack;
    } catch (error) {
      await stack.close();
      throw error;
    }
  }

  get turnsConcurrent(): number {
    return this.#options.turnsConcurrent;
  }

  get url(): string {
    return this.#edge?.url ?? "";
  }

  /** @param port of one that is no more */
  async addEngine(port?: number): Promise<EngineProcess> {
    const logPath = join(this.#folder, `engine-${this.#engineCount++}.log`);
    const { engineArgs, skewMs, diskCacheBytes } = this.#options;
    const cache = `--disk-cache=${join(this.#folder, "cache")}`;
    const args = [
      ...(diskCacheBytes === undefined ? [] : [cache, `--disk-bytes=${diskCacheBytes}`]),
      ...[
        `--store=fs:${join(this.#folder, "pages")}`,
        `--edge=${this.url}`,
        `--model=${repositoryRoot}/weights/house-0`,
      ],
      ...["--device=wasm", "--threads=1", `--context=${CONTEXT_TOKENS}`, ...engineArgs()],
    ];
    const signal = AbortSignal.any([this.#options.signal, this.#closing.signal]);
    const env = { ...process.env, NODE_OPTIONS: preloads.join(" "), QUIRE_LIFE_SKEW_MS: String(skewMs()) };
    const engine = await startEngineProcess({
      ...{ args, engineKey: this.#engineKey, logPath, port },
      context: { env, signal },
    });
    if (engine === undefined || this.#closing.signal.aborted) {
      engine?.child.kill();
      throw new Error("stopped");
    }
    this.engines.push(engine);
    return engine;
  }

  /** The engine that runs most turns now. */
  async busiest(): Promise<EngineProcess | undefined> {
    const busy = this.engines.map(async (engine) => {
      const values = await scrape(engine.url).catch(() => new Map<string, number>());
      return { engine, runningCount: values.get("quire_running_sequences") ?? 0 };
    });
    return (await Promise.all(busy)).sort((a, b) => b.runningCount - a.runningCount)[0]?.engine;
  }

  /** As `kill -9`. */
  async killEngine(engine: EngineProcess): Promise<void> {
    this.#forget(engine);
    engine.child.kill();
    await engine.child.ended;
  }

  /** As a supervisor does it: killed, and another process in its place, at its address. */
  async restartEngine(engine: EngineProcess): Promise<void> {
    await this.killEngine(engine);
    await this.addEngine(Number(new URL(engine.url).port));
  }

  /** Its turns come to their end; it takes no new ones. */
  async drainEngine(engine: EngineProcess): Promise<void> {
    this.#forget(engine);
    await engine.child.stop(graceMs);
  }

  /** An engine stands still, and goes on as if nothing had been. */
  async freezeEngine({ child }: EngineProcess, ms: number): Promise<void> {
    if (child.pid !== undefined && child.endedWith === undefined) await freeze(child.pid, ms);
  }

  /** As {@link Stack.freezeEngine}. */
  async freezeEdge(ms: number): Promise<void> {
    if (this.#edge) await freeze(this.#edge.pid, ms);
  }

  /** The page store of an engine answers late, or fails, for a while. */
  disturbStore(engine: EngineProcess): void {
    if (engine.child.pid !== undefined && engine.child.endedWith === undefined)
      process.kill(engine.child.pid, "SIGUSR2");
  }

  /** As `kill -9`, and up again. */
  async restartEdge(): Promise<void> {
    await this.#edge?.restart();
    await this.#untilKnown();
  }

  /** Garbage goes, however young, and pages of sessions that are older than `sessionAgeMsMax`: misses, and no more. */
  async collect(sessionAgeMsMax: number | undefined): Promise<number> {
    const age = sessionAgeMsMax === undefined ? {} : { sessionAgeMsMax };
    const report = await collectGarbage(this.store, "kv/", { graceMs: 0, nowMs: Date.now(), ...age });
    return report.deletedKeys.length;
  }

  /** The last lines that each engine wrote. */
  async words(): Promise<string[]> {
    const logs = Array.from({ length: this.#engineCount }, async (_, index) => {
      const text = await readFile(join(this.#folder, `engine-${index}.log`), "utf8").catch(() => "");
      const lines = text
        .trimEnd()
        .split("\n")
        .filter((line) => /"level":"(warn|error)"|Error/.test(line));
      return lines.slice(-8).map((line) => `engine ${index}: ${line}`);
    });
    return (await Promise.all(logs)).flat();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    const engines = this.engines.splice(0);
    for (const { child } of engines) child.kill();
    await Promise.all(engines.map(({ child }) => child.ended));
    await this.store.close();
    await this.#edge?.close();
    await rm(this.#folder, { recursive: true, force: true, maxRetries: 5 });
  }

  #forget(engine: EngineProcess): void {
    const at = this.engines.indexOf(engine);
    if (at >= 0) this.engines.splice(at, 1);
  }

  async #startEdge(): Promise<void> {
    this.#edge = await startBareEdge({
      tenants: TENANTS.map((name) => [
        this.keys[name],
        { tenant: name, ...(name === "operators" ? { scopes: ["keys"] } : {}) },
      ]),
      engineKey: this.#engineKey,
      limits: { requests_per_minute: 1e6, tokens_per_minute: 1e8, turns_concurrent: this.turnsConcurrent },
      modelFolder: `${repositoryRoot}/weights/house-0`,
    });
  }

  async #untilKnown(): Promise<void> {
    for (const endMs = performance.now() + knownMsMax; performance.now() < endMs; ) {
      const headers = { authorization: `Bearer ${this.keys.one}` };
      const body = await fetch(`${this.url}/v1/models`, { headers, signal: AbortSignal.timeout(5_000) })
        .then((response) => response.json() as Promise<{ data?: unknown[] }>)
        .catch(() => undefined);
      if ((body?.data?.length ?? 0) > 0) return;
      await sleep(50);
    }
    throw new Error("the edge does not know its engines");
  }
}

/** What is killed meanwhile is not there to go on. */
async function freeze(pid: number, ms: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  await sleep(ms);
  try {
    process.kill(pid, "SIGCONT");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
