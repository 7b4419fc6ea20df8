/** Where the demonstration takes place: a stack in a temporary folder, whose engines are killed and whose pages are damaged. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { assert } from "../protocol/assert.ts";
import { Quire } from "../sdk/index.ts";
import type { PageStore } from "../storage/contract.ts";
import { ROOT_PREFIX, sessionKeyOf } from "../storage/keys.ts";
import { loadManifest, type Manifest } from "../storage/manifest.ts";
import { segmentRange } from "../storage/segment.ts";
import type { Child } from "./child-process.ts";
import { type DataFolder, openDataFolder } from "./data-folder.ts";
import { openModelFolder } from "./model-folder.ts";
import { findPort } from "./ports.ts";
import { Stack } from "./stack.ts";

const host = "127.0.0.1";
const persistMsMax = 30_000;
const readyMsMax = 10_000;
const pollMs = 50;
const warningCountMax = 20;

/** How much of a session the page store holds. */
export interface Persisted {
  tokenCount: number;
  segmentCount: number;
}

interface StageParts {
  data: DataFolder;
  stack: Stack;
  store: PageStore;
  enginePort: number;
  warnings: readonly string[];
}

/** An engine that runs beside others. */
export interface StageEngine {
  /** As the edge and `usage.quire.engines` call it. */
  id: string;
  pid: number;
  /** Where this machine reaches it. */
  url: string;
  /** Says how it ended, when it has. */
  ended: Promise<string>;
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>;
}

/** See the head of this file. Ports are free ones; {@link Stage.close} leaves no process and no file behind. */
export class Stage {
  readonly client: Quire;
  /** For requests that the client library has no word for. */
  readonly edgeUrl: string;
  readonly apiKey: string;
  /** Secret of edge and engines, and of the wake hook. */
  readonly engineKey: string;
  /** The last lines in which edge and engines warned; damage is warned of, so they matter only when something did not go well. */
  readonly warnings: readonly string[];
  readonly #data: DataFolder;
  readonly #stack: Stack;
  readonly #store: PageStore;
  #enginePort: number;
  #engine: Child | undefined;

  private constructor(parts: StageParts) {
    this.warnings = parts.warnings;
    this.#data = parts.data;
    this.#stack = parts.stack;
    this.#store = parts.store;
    this.#enginePort = parts.enginePort;
    this.edgeUrl = parts.stack.edgeUrl;
    this.apiKey = parts.data.secrets.apiKey;
    this.engineKey = parts.data.secrets.engineKey;
    this.client = new Quire({ baseUrl: parts.stack.edgeUrl, apiKey: parts.data.secrets.apiKey });
  }

  /**
   * An edge without an engine; the model is house-0 unless another of `weights/` is named, its KV int8. `vars` are further settings of the edge.
   * @throws {UsageError} one line, when the edge does not come up.
   */
  static async open(
    signal: AbortSignal,
    vars?: Readonly<Record<string, string>>,
    modelName: "house-0" | "house" = "house-0",
  ): Promise<Stage> {
    const modelFolder = fileURLToPath(new URL(`../weights/${modelName}`, import.meta.url));
    const model = await openModelFolder(modelFolder);
    const data = await openDataFolder(await mkdtemp(join(tmpdir(), "quire-demo-")));
    const warnings: string[] = [];
    const freePort = () => findPort({ host, port: 0, flag: "--port" });
    const stack = new Stack({
      data,
      model,
      host,
      edgePort: await freePort(),
      inspectorPort: await freePort(),
      selection: {},
      vars,
      engineFlags: [`--model=${modelFolder}`, "--kv=int8", "--weights=int8", "--pool-bytes=64M"],
      onWarning: (name, line) => {
        warnings.push(`[${name}] ${line}`);
        if (warnings.length > warningCountMax) warnings.shift();
      },
      signal,
    });
    try {
      await stack.startEdge();
      return new Stage({ data, stack, store: await stack.openStore(), enginePort: await freePort(), warnings });
    } catch (error) {
      await stack.kill();
      await rm(data.path, { recursive: true, force: true });
      throw error;
    }
  }

  /** Starts an engine, which begins with an empty memory and has no disk: on the port of the one before, or as another one. */
  async startEngine(which: "again" | "another" = "again"): Promise<void> {
    assert(this.#engine === undefined, "one engine at a time");
    if (which === "another") this.#enginePort = await findPort({ host, port: 0, flag: "--engine-port" });
    this.#engine = this.#stack.startEngine(this.#enginePort);
    await this.#stack.untilServed(this.#engine, this.#enginePort);
  }

  /** Starts an engine beside those that run; resolves when it takes requests and has told the edge. */
  async addEngine(): Promise<StageEngine> {
    const port = await findPort({ host, port: 0, flag: "--engine-port" });
    const child = this.#stack.startEngine(port);
    await this.#stack.untilServed(child, port);
    const isReady = /engine (engine-[0-9a-f]+) is ready/;
    let id = isReady.exec(child.lastLines().join("\n"))?.[1];
    for (const endMs = performance.now() + readyMsMax; id === undefined && performance.now() < endMs; ) {
      await sleep(pollMs);
      id = isReady.exec(child.lastLines().join("\n"))?.[1];
    }
    assert(id !== undefined && child.pid !== undefined, "an engine that serves says its name");
    return {
      id,
      pid: child.pid,
      url: `http://${host}:${port}`,
      ended: child.ended,
      kill: async () => {
        child.kill();
        await child.ended;
      },
    };
  }

  /** SIGKILL: the engine has no chance to persist anything. Resolves to its process id when it is gone. */
  async killEngine(): Promise<number> {
    const engine = this.#engine;
    assert(engine?.pid !== undefined, "an engine runs");
    engine.kill();
    await engine.ended;
    this.#engine = undefined;
    return engine.pid;
  }

  /** Resolves when the store's manifest of a session covers this many tokens. @throws {Error} after half a minute. */
  async untilPersisted(sessionId: string, tokenCount: number): Promise<Persisted> {
    const endMs = performance.now() + persistMsMax;
    for (;;) {
      const manifest = await sessionManifest(this.#store, sessionId);
      if (manifest !== undefined && manifest.tokenCount >= tokenCount) {
        return { tokenCount: manifest.tokenCount, segmentCount: manifest.segments.length };
      }
      if (performance.now() > endMs) throw new Error(`the store holds ${manifest?.tokenCount} tokens of ${tokenCount}`);
      await sleep(pollMs);
    }
  }

  /** Removes the segment that holds a token. */
  async deleteSegment(sessionId: string, token: number): Promise<void> {
    const { ref } = await this.#segmentOf(sessionId, token);
    await this.#store.delete([ref.objectKey]);
  }

  /** Flips one bit of the first layer's block that holds a token. */
  async flipByte(sessionId: string, token: number): Promise<void> {
    const { manifest, ref } = await this.#segmentOf(sessionId, token);
    const object = await this.#store.get(ref.objectKey);
    assert(object !== undefined, "the segment is in the store");
    const range = segmentRange(manifest.geometry, 0, Math.floor((token - ref.fromToken) / 64));
    const offset = ref.objectOffset + range.offset + Math.floor(range.bytes / 2);
    object.bytes[offset] = (object.bytes[offset] ?? 0) ^ 0x10;
    await this.#store.put(ref.objectKey, object.bytes);
  }

  /** Removes every page, manifest and tail: a store as on the first day. The edge keeps the words. */
  async emptyStore(): Promise<void> {
    for (let keys = await storedKeys(this.#store); keys.length > 0; keys = await storedKeys(this.#store))
      await this.#store.delete(keys);
  }

  /** Bytes of everything that is stored. */
  async storedBytes(): Promise<number> {
    const { keys } = await this.#store.list(ROOT_PREFIX);
    return keys.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Kills what runs and removes the folder; a second time nothing. */
  async close(): Promise<void> {
    await this.#store.close();
    await this.#stack.kill();
    await rm(this.#data.path, { recursive: true, force: true });
  }

  async #segmentOf(sessionId: string, token: number) {
    const manifest = await sessionManifest(this.#store, sessionId);
    const ref = manifest?.segments.find(({ fromToken, tokenCount }) => token - fromToken < tokenCount);
    assert(manifest !== undefined && ref !== undefined, "a sealed segment holds the token");
    return { manifest, ref };
  }
}

async function storedKeys(store: PageStore): Promise<string[]> {
  return (await store.list(ROOT_PREFIX)).keys.map(({ key }) => key);
}

/** What a store holds of a session; undefined for nothing. Looks for it among at most 1,000 objects. */
export async function sessionManifest(store: PageStore, sessionId: string): Promise<Manifest | undefined> {
  const key = (await storedKeys(store)).find((name) => name.endsWith(`/session/${sessionKeyOf(sessionId)}`));
  return key === undefined ? undefined : (await loadManifest(store, key))?.manifest;
}
