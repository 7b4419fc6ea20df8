/** An edge on this machine and the engines that serve it: what `quire start` and the demonstration are made of. */
import type { PageStore } from "../storage/contract.ts";
import { openStore } from "../storage/open.ts";
import type { Child } from "./child-process.ts";
import type { DataFolder } from "./data-folder.ts";
import { bucketName, type DefaultSelection, startEdge } from "./edge-process.ts";
import { startEngine, storeEnvironment } from "./engine-process.ts";
import { uploadModelAssets } from "./model-assets.ts";
import type { ModelFolder } from "./model-folder.ts";
import { waitUntil } from "./wait-until.ts";

const edgeUpMsMax = 60_000;
const engineUpMsMax = 120_000;
/** The engine ends its turns and persists them; then it is killed. */
const engineGraceMs = 30_000;
const edgeGraceMs = 10_000;

/** What a stack is made of; nothing runs yet. */
export interface StackOptions {
  data: DataFolder;
  model: ModelFolder;
  host: string;
  edgePort: number;
  inspectorPort: number;
  selection: DefaultSelection;
  /** Further settings of the Worker, by name. */
  vars?: Readonly<Record<string, string>> | undefined;
  /** Flags of its engines, as they are typed; the model's is among them. */
  engineFlags: readonly string[];
  /** Gets what a user should see of the children's output. */
  onWarning(name: string, line: string): void;
  /** Aborted: whatever is waited for ends with the signal's reason. */
  signal: AbortSignal;
}

/** See {@link StackOptions}. The caller ends it with {@link Stack.stop} or {@link Stack.kill}, whatever happened before. */
export class Stack {
  /** Where this machine reaches the edge. */
  readonly edgeUrl: string;
  /** The edge's object store, as `quire serve --store` takes it. */
  readonly storeAddress: string;
  readonly #options: StackOptions;
  #edge: Child | undefined;
  #device: string | undefined;
  /** Engines that have not ended. */
  readonly #engines = new Set<Child>();

  constructor(options: StackOptions) {
    this.#options = options;
    this.edgeUrl = `http://${reachableHost(options.host)}:${options.edgePort}`;
    const endpoint = `${this.edgeUrl}/cdn-cgi/local/r2/s3`;
    this.storeAddress = `s3://${bucketName}?endpoint=${encodeURIComponent(endpoint)}`;
  }

  /** What the engine started last computes on and why, where the choice was its own (`--device auto`) and is made. */
  get device(): string | undefined {
    return this.#device;
  }

  /**
   * Starts the edge and gives it the model's tokenizer; resolves when it answers.
   * @throws {UsageError} one line, when it does not.
   */
  async startEdge(): Promise<Child> {
    const { data, host, edgePort, inspectorPort, selection, vars, model, signal } = this.#options;
    const onWarning = (line: string) => this.#options.onWarning("edge", line);
    this.#edge = await startEdge({ data, host, port: edgePort, inspectorPort, selection, vars, onWarning });
    const isUp = async () => (await fetch(`${this.edgeUrl}/healthz`, { signal })).ok;
    await waitUntil(isUp, { what: "the edge to answer", children: [this.#edge], timeoutMs: edgeUpMsMax, signal });
    const store = await this.openStore();
    await uploadModelAssets(store, model, signal);
    await store.close();
    return this.#edge;
  }

  /** The edge's object store, for one who has the data folder's keys; the caller closes it. */
  openStore(): Promise<PageStore> {
    return openStore(this.storeAddress, storeEnvironment(this.#options.data.secrets));
  }

  /** Starts an engine; it registers with the edge by itself, see {@link Stack.untilServed}. */
  startEngine(port: number): Child {
    const { data, engineFlags: flags } = this.#options;
    const engine = startEngine({
      port,
      edgeUrl: this.edgeUrl,
      storeAddress: this.storeAddress,
      secrets: data.secrets,
      flags,
      logPath: data.at("logs", "engine.log"),
      onWarning: (line) => {
        const chosen = /^quire: device (.*)$/.exec(line)?.[1];
        if (chosen === undefined) this.#options.onWarning("engine", line);
        else this.#device = chosen;
      },
    });
    this.#engines.add(engine);
    void engine.ended.then(() => this.#engines.delete(engine));
    return engine;
  }

  /**
   * Resolves when the engine on `port` takes requests and the edge knows the model.
   * @throws {UsageError} one line, when it ends before.
   */
  async untilServed(engine: Child, port: number): Promise<void> {
    const { data, model, signal } = this.#options;
    const isServed = async (): Promise<boolean> => {
      // Any answer: an engine that listens has its model, its pool and its store.
      await fetch(`http://127.0.0.1:${port}/`, { signal });
      const headers = { authorization: `Bearer ${data.secrets.apiKey}` };
      const response = await fetch(`${this.edgeUrl}/v1/models`, { headers, signal });
      const body = (await response.json()) as { data?: { id: string }[] };
      return body.data?.some(({ id }) => id === model.modelId) === true;
    };
    const children = this.#edge === undefined ? [engine] : [this.#edge, engine];
    await waitUntil(isServed, { what: "the engine to register", children, timeoutMs: engineUpMsMax, signal });
  }

  /** Ends everything in order: engines first, because they need the edge's object store to persist. */
  async stop(): Promise<void> {
    await Promise.all([...this.#engines].map((engine) => engine.stop(engineGraceMs)));
    await this.#edge?.stop(edgeGraceMs);
  }

  /** Ends everything at once; resolves when nothing of it is left. */
  async kill(): Promise<void> {
    const children = [...this.#engines, ...(this.#edge === undefined ? [] : [this.#edge])];
    for (const child of children) child.kill();
    await Promise.all(children.map((child) => child.ended));
  }
}

/** An address at which this machine reaches what listens on `host`. */
function reachableHost(host: string): string {
  if (host === "0.0.0.0" || host === "::") return "127.0.0.1";
  return host.includes(":") ? `[${host}]` : host;
}
