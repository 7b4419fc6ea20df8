/** What an engine counts of itself, under Prometheus names (base units: seconds, bytes, tokens). No tenant and no request is a label. */
import { cpuUsage, memoryUsage } from "node:process";
import type { DiskCacheStatus, EngineParts, EngineStatus } from "../engine-parts.ts";
import type { EngineObserver } from "../observer.ts";
import type { PlannedPart } from "../schedule/step-planner.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { type Counter, type Histogram, MetricRegistry } from "./exposition.ts";

const SECONDS_SHORT = [0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5];
const SECONDS_LONG = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/** What is read at the moment of a scrape. */
export interface EngineGauges {
  engineId: string;
  modelId: string;
  numericsId: string;
  diskCache: DiskCacheStatus | undefined;
  storeCalls: EngineParts["storeCalls"];
  status(): EngineStatus;
  /** Requests that were told when to come back. */
  promisedCount(): number;
  pendingStoreBytes(): number;
}

/** Listens to an engine. */
export class EngineMetrics implements EngineObserver {
  readonly #registry = new MetricRegistry();
  readonly #requests: Counter;
  readonly #refusals: Counter;
  readonly #promptTokens: Counter;
  readonly #cachedTokens: Counter;
  readonly #computed: Counter;
  readonly #recomputed: Counter;
  readonly #completionTokens: Counter;
  readonly #storeBytes: Counter;
  readonly #kvBytes: Counter;
  readonly #missedPages: Counter;
  readonly #drafted: Counter;
  readonly #waits: Counter;
  readonly #preemptions: Counter;
  readonly #steps: Counter;
  readonly #queueSeconds: Histogram;
  readonly #firstTokenSeconds: Histogram;
  readonly #interTokenSeconds: Histogram;
  readonly #turnSeconds: Histogram;
  readonly #stepSeconds: Histogram;
  readonly #stepRows: Histogram;

  constructor(gauges: EngineGauges) {
    const registry = this.#registry;
    this.#gauges(gauges);
    this.#requests = registry.counter("quire_requests_total", "Requests that ended, by finish reason or error code.");
    this.#refusals = registry.counter("quire_refusals_total", "Requests that were not taken in, by error code.");
    this.#promptTokens = registry.counter("quire_prompt_tokens_total", "Prompt tokens of requests that ended.");
    this.#cachedTokens = registry.counter("quire_cached_tokens_total", "Prompt tokens whose KV was reused, by source.");
    this.#recomputed = registry.counter("quire_recomputed_tokens_total", "Tokens of earlier turns computed again.");
    this.#completionTokens = registry.counter("quire_completion_tokens_total", "Tokens sampled.");
    this.#computed = registry.counter("quire_step_rows_total", "Rows (tokens) computed in steps, by kind.");
    this.#storeBytes = registry.counter(
      "quire_store_read_bytes_total",
      "Read from the page store for requests that ended.",
    );
    this.#kvBytes = registry.counter(
      "quire_attention_read_bytes_total",
      "Read by attention and page scoring, by what.",
    );
    this.#missedPages = registry.counter("quire_missed_pages_total", "Selected pages that were attended around.");
    this.#drafted = registry.counter(
      "quire_drafted_tokens_total",
      "Tokens that were guessed (speculation), by outcome.",
    );
    this.#waits = registry.counter("quire_block_waits_total", "Times that a sequence waited for selected blocks.");
    this.#waits.add(0);
    this.#preemptions = registry.counter(
      "quire_preemptions_total",
      "Times that a sequence was suspended because others needed its memory.",
    );
    this.#preemptions.add(0);
    this.#steps = registry.counter("quire_step_seconds_total", "Time spent in steps.");
    this.#queueSeconds = registry.histogram("quire_queue_seconds", "From arrival to admission.", SECONDS_LONG);
    this.#firstTokenSeconds = registry.histogram(
      "quire_first_token_seconds",
      "From arrival to the first token.",
      SECONDS_LONG,
    );
    this.#interTokenSeconds = registry.histogram(
      "quire_inter_token_seconds",
      "Between tokens of a sequence.",
      SECONDS_SHORT,
    );
    this.#turnSeconds = registry.histogram("quire_turn_seconds", "From arrival to the terminal event.", SECONDS_LONG);
    this.#stepSeconds = registry.histogram("quire_step_seconds", "Length of a step.", SECONDS_SHORT);
    this.#stepRows = registry.histogram("quire_step_rows", "Rows of a step.", ROWS);
  }

  /** The text of a scrape. */
  expose(): string {
    return this.#registry.expose();
  }

  queued(): void {}

  refused(_requestId: string, code: string): void {
    this.#refusals.add(1, { code });
  }

  admitted({ usage }: Sequence): void {
    this.#queueSeconds.observe(usage.queueMs / 1000);
  }

  attached(): void {}

  stepped(parts: readonly PlannedPart[], { startMs, endMs }: { startMs: number; endMs: number }): void {
    let rows = 0;
    let decodes = 0;
    for (const { sequence, slice } of parts) {
      rows += slice.to - slice.from;
      if (sequence.started) decodes += slice.to - slice.from;
    }
    this.#computed.add(decodes, { kind: "decode" });
    this.#computed.add(rows - decodes, { kind: "prefill" });
    this.#steps.add((endMs - startMs) / 1000);
    this.#stepSeconds.observe((endMs - startMs) / 1000);
    this.#stepRows.observe(rows);
  }

  missed(): void {
    this.#waits.add(1);
  }

  resumed(): void {}

  filled(): void {}

  preempted(): void {
    this.#preemptions.add(1);
  }

  restored(): void {}

  token({ usage }: Sequence, nowMs: number, previousMs: number): void {
    this.#completionTokens.add(1);
    if (previousMs === 0) this.#firstTokenSeconds.observe(usage.firstTokenMs / 1000);
    else this.#interTokenSeconds.observe((nowMs - previousMs) / 1000);
  }

  concluded({ usage }: Sequence, outcome: string): void {
    this.#requests.add(1, { outcome });
    this.#turnSeconds.observe(usage.totalMs / 1000);
    this.#promptTokens.add(usage.promptTokens);
    for (const [source, tokens] of Object.entries(usage.source))
      this.#cachedTokens.add(Math.max(0, tokens), { source });
    this.#recomputed.add(usage.recomputedTokens);
    this.#storeBytes.add(usage.bytesFetched);
    this.#missedPages.add(usage.pagesMissed);
    const { draftedTokens = 0, draftedTokensRight = 0 } = usage;
    this.#drafted.add(draftedTokensRight, { outcome: "right" });
    this.#drafted.add(draftedTokens - draftedTokensRight, { outcome: "wrong" });
    this.#kvBytes.add(usage.kvBytesRead, { what: "kv" });
    this.#kvBytes.add(usage.metadataBytesRead, { what: "metadata" });
  }

  settled(): void {}

  #gauges(of: EngineGauges): void {
    const registry = this.#registry;
    const info = { engine: of.engineId, model: of.modelId, numerics: of.numericsId };
    registry.gauge("quire_engine_info", "What runs here; always 1.", () => [[info, 1]]);
    registry.gauge(
      "quire_running_sequences",
      "Sequences that are attached, computed or persisted.",
      () => of.status().runningCount,
    );
    registry.gauge("quire_queued_requests", "Requests that wait to be admitted.", () => of.status().queuedCount);
    registry.gauge(
      "quire_retry_promises",
      "Times to come back that were given and are still to come.",
      of.promisedCount,
    );
    registry.gauge("quire_pool_blocks", "Logical blocks of 64 tokens in the pool.", () => of.status().blockCount);
    registry.gauge("quire_pool_free_blocks", "Blocks that may still be reserved.", () => of.status().freeBlockCount);
    registry.gauge(
      "quire_pool_held_blocks",
      "Blocks on the device (of one layer each) that sequences hold; what is left at idle has leaked.",
      () => of.status().heldBlockCount,
    );
    registry.gauge(
      "quire_pool_held_slots",
      "Open slots that sequences hold; what is left at idle has leaked.",
      () => of.status().heldSlotCount,
    );
    registry.gauge(
      "quire_preempted_sequences",
      "Running sequences that are suspended.",
      () => of.status().preemptedCount,
    );
    hostPoolMetrics(registry, of);
    if (of.diskCache !== undefined) diskCacheMetrics(registry, of.diskCache);
    registry.gauge(
      "quire_store_pending_bytes",
      "Bytes that wait to be written to the page store.",
      of.pendingStoreBytes,
    );
    registry.total(
      "quire_store_calls_total",
      "Calls of the page store (of the disk cache before it, where there is one), by what became of them.",
      () => of.storeCalls.entries().map(({ call, outcome, count }) => [{ call, outcome }, count]),
    );
    registry.gauge("quire_draining", "1 while the engine refuses new requests.", () => Number(of.status().draining));
    registry.gauge("process_resident_memory_bytes", "Resident memory.", () => memoryUsage.rss());
    registry.gauge("nodejs_heap_size_used_bytes", "Of it, JavaScript objects.", () => memoryUsage().heapUsed);
    registry.gauge(
      "nodejs_external_memory_bytes",
      "Memory that JavaScript objects stand for: buffers, and what waits to be written.",
      () => memoryUsage().external,
    );
    const { timeOrigin } = performance;
    registry.gauge("process_start_time_seconds", "When it was started, since 1970.", () => timeOrigin / 1000);
    registry.total("process_cpu_seconds_total", "User and system time since the start.", () => {
      const { user, system } = cpuUsage();
      return [[{}, (user + system) / 1e6]];
    });
  }
}

function diskCacheMetrics(registry: MetricRegistry, cache: DiskCacheStatus): void {
  registry.gauge("quire_disk_cache_bytes", "Disk taken by pages of the store, as far as is known.", () => cache.bytes);
  registry.gauge("quire_disk_cache_max_bytes", "Its bound.", () => cache.bytesMax);
  registry.total(
    "quire_disk_cache_reads_total",
    "Reads of what may be on the disk, by where they were answered.",
    () => [
      [{ source: "disk" }, cache.counts.hits],
      [{ source: "store" }, cache.counts.misses],
    ],
  );
  registry.total("quire_disk_cache_bytes_total", "Bytes given by the disk cache, and written into it.", () => [
    [{ event: "read" }, cache.counts.hitBytes],
    [{ event: "written" }, cache.counts.writtenBytes],
  ]);
  registry.total("quire_disk_cache_files_total", "Files that gave way, were damaged, and calls that failed.", () => [
    [{ event: "evicted" }, cache.counts.evictions],
    [{ event: "damaged" }, cache.counts.damaged],
    [{ event: "failed" }, cache.counts.failures],
  ]);
}

function hostPoolMetrics(registry: MetricRegistry, of: EngineGauges): void {
  const help = "Host memory taken by what left the page pool.";
  registry.gauge("quire_host_pool_bytes", help, () => of.status().hostPool.bytes);
  registry.gauge("quire_host_pool_max_bytes", "Its bound.", () => of.status().hostPool.bytesMax);
  registry.total("quire_host_pool_blocks_total", "Blocks that moved between pool and host memory, by event.", () => {
    const { copies, hits, evictions } = of.status().hostPool.counts;
    return [
      [{ event: "copied" }, copies],
      [{ event: "hit" }, hits],
      [{ event: "evicted" }, evictions],
    ];
  });
  const left = "Layers of blocks that left the pool while sequences of a larger context held them.";
  registry.total("quire_pool_layers_left_total", left, () => [[{}, of.status().leftLayerCount]]);
}
