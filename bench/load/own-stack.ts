/**
 * A stack of the benchmark's own, in a temporary folder, and gone afterwards: engines as a user starts them, with one file store between them,
 * and before them the whole edge in a bare workerd (or nothing, for the engine alone).
 */
import { randomBytes } from "node:crypto";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { BenchContext } from "../bench.ts";
import { type BareEdgeOptions, startBareEdge } from "../edge/bare-edge.ts";
import { makeRunFolder } from "../temp-folder.ts";
import type { BareWorkerd } from "../workerd.ts";
import { type EngineProcess, startEngineProcess } from "./engine-process.ts";
import type { ProcessAtWork } from "./memory.ts";
import type { EngineAddress } from "./rest.ts";

/** A running target of this run's own. */
export interface OwnStack {
  url: string;
  /** The edge's API key, or the engine's key. */
  key: string;
  /** The edge's API keys by number of the tenant; the first is `key`. */
  tenantKeys: readonly string[];
  /** Of a tenant that is nobody's: nothing that others left is found with it. */
  referenceKey: string;
  /** Engines as they run now, and the edge. */
  processes(): ProcessAtWork[];
  engines(): EngineAddress[];
  /**
   * Kills an engine (`kill -9`), each but the spared ones in its turn, and starts it again after a moment. Resolves when it serves again.
   */
  killOne(): Promise<void>;
  /** Ends it, in order, and removes its folder; at once when the user insists. */
  stop(): Promise<void>;
}

/** What to start. */
export interface OwnStackOptions {
  kind: "edge" | "engine";
  engineCount: number;
  /** The first so many are never killed. */
  spareCount: number;
  /** Tenants of the edge. */
  tenantCount: number;
  /** HF folder or GGUF file of the engines. */
  model: string;
  /** Flags of the engine, as `quire serve` takes them. */
  engineArgs: readonly string[];
  /** Garbage of its processes can be collected from outside. */
  isInspected: boolean;
  context: BenchContext;
}

const graceMs = 45_000;
const restartMs = 2_000;
const knownMsMax = 30_000;

/**
 * Starts edge and engines on free ports and waits until they serve. Undefined when the user stopped it.
 * @throws {UsageError} with the last words of what did not come up; nothing is left of it.
 */
export async function startOwnStack(options: OwnStackOptions): Promise<OwnStack | undefined> {
  const stack = new Stack(options, await makeRunFolder());
  try {
    if (await stack.start()) return stack;
    await stack.stop();
    return undefined;
  } catch (error) {
    await stack.stop();
    throw error;
  }
}

class Stack implements OwnStack {
  readonly #options: OwnStackOptions;
  readonly #folder: string;
  readonly #engineKey = randomBytes(32).toString("hex");
  readonly referenceKey = newKey();
  readonly tenantKeys: readonly string[];
  readonly #engines: EngineProcess[] = [];
  #workerd: BareWorkerd | undefined;
  #killedCount = 0;
  #isStopping = false;

  constructor(options: OwnStackOptions, folder: string) {
    this.#options = options;
    this.#folder = folder;
    this.tenantKeys = Array.from({ length: options.tenantCount }, newKey);
  }

  get url(): string {
    return this.#workerd?.url ?? this.#engines[0]?.url ?? "";
  }

  get key(): string {
    return this.#workerd ? this.tenantKeys[0]! : this.#engineKey;
  }

  /** False when the user stopped it. */
  async start(): Promise<boolean> {
    const { kind, engineCount } = this.#options;
    if (kind === "edge") this.#workerd = await this.#startEdge();
    for (let index = 0; index < engineCount; index++) if (!(await this.#startEngine(index))) return false;
    if (kind === "edge") await this.#untilKnown();
    return true;
  }

  async killOne(): Promise<void> {
    const { spareCount } = this.#options;
    const index = spareCount + (this.#killedCount % (this.#engines.length - spareCount));
    this.#killedCount += 1;
    const engine = this.#engines[index] as EngineProcess;
    engine.child.kill();
    await engine.child.ended;
    await sleep(restartMs);
    if (!this.#isStopping) await this.#startEngine(index);
  }

  engines(): EngineAddress[] {
    return this.#engines.map(({ url }, index) => ({ name: `engine ${index + 1}`, url }));
  }

  processes(): ProcessAtWork[] {
    const engines = this.#engines.flatMap(({ inspectorUrl, child: { pid, endedWith } }, index) =>
      pid === undefined || endedWith !== undefined ? [] : [{ name: `engine ${index + 1}`, pid, inspectorUrl }],
    );
    const { pid, inspectorUrl } = this.#workerd ?? {};
    return [...engines, ...(pid === undefined ? [] : [{ name: "edge", pid, inspectorUrl }])];
  }

  async stop(): Promise<void> {
    this.#isStopping = true;
    const kill = () => this.#engines.forEach(({ child }) => void child.kill());
    void this.#options.context.insisted.then(kill);
    await Promise.all(this.#engines.map(({ child }) => child.stop(graceMs)));
    await this.#workerd?.close();
    await rm(this.#folder, { recursive: true, force: true, maxRetries: 5 });
  }

  async #startEngine(index: number): Promise<boolean> {
    const { engineArgs, isInspected, context } = this.#options;
    const logPath = join(this.#folder, `engine-${index}.log`);
    const edge = this.#workerd ? [`--edge=${this.#workerd.url}`] : [];
    const args = [`--store=fs:${join(this.#folder, "pages")}`, ...edge, ...engineArgs];
    try {
      const engine = await startEngineProcess({ args, engineKey: this.#engineKey, logPath, isInspected, context });
      if (engine === undefined) return false;
      this.#engines[index] = engine;
      if (this.#isStopping) engine.child.kill();
      return true;
    } catch (error) {
      // The log goes with the folder, so what it says is shown now.
      const text = await readFile(logPath, "utf8").catch(() => "");
      for (const line of text.trimEnd().split("\n").slice(-12)) context.progress(`  ${line}`);
      throw error;
    }
  }

  async #startEdge(): Promise<BareWorkerd> {
    const { path } = await openModelFolder(this.#options.model);
    return startBareEdge({
      tenants: tenantRows(this.tenantKeys, this.referenceKey),
      limits: {
        requests_per_minute: LIMITS.requestsPerMinuteMax,
        tokens_per_minute: LIMITS.tokensPerMinuteMax,
        turns_concurrent: LIMITS.turnsConcurrentMax,
      },
      ...{ engineKey: this.#engineKey, modelFolder: path, isInspected: this.#options.isInspected },
    });
  }

  async #untilKnown(): Promise<void> {
    const { signal } = this.#options.context;
    for (const endMs = performance.now() + knownMsMax; performance.now() < endMs && !signal.aborted; ) {
      const response = await fetch(`${this.url}/v1/models`, { headers: { authorization: `Bearer ${this.key}` } });
      const { data = [] } = (await response.json()) as { data?: unknown[] };
      if (data.length > 0) return;
      await sleep(50);
    }
    if (!signal.aborted) throw new UsageError("the edge does not know its engine");
  }
}

function newKey(): string {
  return `qk-${randomBytes(16).toString("hex")}`;
}

function tenantRows(tenantKeys: readonly string[], referenceKey: string): BareEdgeOptions["tenants"] {
  return [
    ...tenantKeys.map((key, index) => [key, { tenant: `bench-${index}` }] as const),
    [referenceKey, { tenant: "bench-reference" }],
  ];
}
