/** Puts an engine together from a model, a page store and settings. */

import { BLOCK_TOKENS, PAGE_TOKENS } from "../kernels/contract.ts";
import type { ModelRunner } from "../models/contract.ts";
import { assert } from "../protocol/assert.ts";
import type { PageStore } from "../storage/contract.ts";
import { kvGeometry } from "../storage/geometry.ts";
import { HedgedStore } from "../storage/hedged-reads.ts";
import { Engine } from "./engine.ts";
import type { DiskCacheStatus, EngineParts } from "./engine-parts.ts";
import { Attacher } from "./kv/attacher.ts";
import { BlockCache } from "./kv/block-cache.ts";
import { BlockFetcher } from "./kv/block-fetcher.ts";
import { FreeList } from "./kv/free-list.ts";
import { Gate } from "./kv/gate.ts";
import { HostPool } from "./kv/host-pool.ts";
import { OpenBlocks } from "./kv/open-blocks.ts";
import { ReadAhead } from "./kv/read-ahead.ts";
import { residentPrefixes } from "./kv/resident-prefixes.ts";
import { storedPool } from "./kv/stored-pool.ts";
import { SummarySupply } from "./kv/summary-supply.ts";
import { Persister } from "./persist/persister.ts";
import { SessionKeys } from "./persist/session-keys.ts";
import type { Clock, EngineLog, EngineSettings } from "./settings.ts";

/** Everything that an engine does not make itself. */
export interface OpenEngineOptions {
  runner: ModelRunner;
  numericsId: string;
  store: PageStore;
  /** In front of that store, already; for metrics. */
  diskCache?: DiskCacheStatus | undefined;
  settings: EngineSettings;
  clock: Clock;
  log: EngineLog;
  onDeviceLost?: EngineParts["onDeviceLost"];
}

/** A running engine and the parts that its owner may speak to. */
export interface OpenedEngine {
  engine: Engine;
  persister: Persister;
  keys: SessionKeys;
  /** Which prefixes are on the device, for the heartbeat (`protocol/prefix-filter.ts`). */
  residentPrefixes(): string;
  /** Bytes of a token's K and V, all layers. */
  kvBytesPerToken: number;
  /** Frees what idles in the pool and in host memory (tests count leaks after it). */
  evictIdle(): void;
  /** What idles in the pool goes to host memory, as if its room were needed (tests). */
  demoteIdle(): void;
}

/** The runner's pool and the store belong to the engine from now on; closing them is still the caller's. */
export function openEngine(options: OpenEngineOptions): OpenedEngine {
  const { runner, clock, log } = options;
  const settings = settled(options.settings, runner.rowsMax);
  const { hedgeShareMax, absentMs } = settings;
  const store = new HedgedStore(options.store, { clock, hedgeShareMax, absentMs });
  const { spec } = runner.pool;
  const geometry = kvGeometry({
    layerCount: spec.layerCount,
    kvHeadCount: spec.kvHeadCount,
    headDim: spec.headDim,
    encoding: spec.rounding ?? spec.encoding,
    summaryKinds: spec.summaryKinds,
    segmentTokens: settings.segmentTokens,
  });
  const pool = storedPool(runner.pool, geometry);
  assert(
    geometry.blockBytes === pool.blockBytes && geometry.summaryBytes === pool.summaryBytes,
    "stored bytes are pool bytes",
  );
  const host = new HostPool({ pool, bytesMax: settings.hostPoolBytes });
  const cache = new BlockCache({
    layerCount: spec.layerCount,
    deviceBlocks: new FreeList(spec.blockCount),
    summarySlots: new FreeList(spec.summarySlotCount),
    host: { copies: host, pool },
  });
  const opens = new OpenBlocks(new FreeList(spec.openSlotCount));
  const keys = new SessionKeys({ modelFingerprint: runner.fingerprint, numericsId: options.numericsId, geometry });
  const reads = new Gate(settings.storeConcurrency, Math.max(1, Math.floor(settings.storeConcurrency / 2)));
  const onFailure = ({ objectKey }: { objectKey: string }, cause: unknown) => {
    store.forget(objectKey);
    log("fetch.lost", { objectKey, error: String(cause) });
  };
  const getMsMax = settings.storeGetMsMax;
  const ahead = new ReadAhead({ store, gate: reads, clock, getMsMax });
  const fetcher = new BlockFetcher({
    store: ahead,
    pool,
    cache,
    geometry,
    gate: reads,
    clock,
    getMsMax,
    fillBytesPerS: settings.fillBytesPerS,
    onFailure,
  });
  const supply = new SummarySupply({
    ...{ store, ahead, pool, fetcher, gate: reads, geometry, clock, log, getMsMax },
    firstBytesMax: settings.summaryFirstBytesMax,
    storeSpeed: () => store.times.speed,
  });
  const persister = new Persister({
    store,
    pool,
    fetcher,
    gate: new Gate(Math.max(1, Math.floor(settings.storeConcurrency / 2))),
    geometry,
    keys,
    clock,
    log,
    modelFingerprint: runner.fingerprint,
    numericsId: options.numericsId,
    putMsMax: settings.storePutMsMax,
    writeBehindBytesMax: settings.writeBehindBytesMax,
    manifestCommitMs: settings.manifestCommitMs,
    summaryRunTokens: settings.summaryRunTokens,
    onCommitted: (requestId, what) => engine.traces.committed(requestId, what, clock.nowMs()),
  });
  const attacher = new Attacher({
    store,
    pool,
    cache,
    opens,
    fetcher,
    ahead,
    supply,
    gate: reads,
    geometry,
    keys,
    clock,
    log,
    getMsMax: settings.storeGetMsMax,
    missWaitMs: settings.missWaitMs,
    summaryRunTokens: settings.summaryRunTokens,
    resume: settings.resume,
    speeds(attendedTokens) {
      const { cost } = engine.status;
      const isKnown = cost.typicalRowMs !== undefined;
      return { store: store.times.speed, rowMs: isKnown ? cost.rowMs(attendedTokens) : undefined };
    },
    onResume: (sequence, usage) => engine.traces.resumeChosen(sequence, clock.nowMs(), usage),
    onSummaries: (sequence) => engine.traces.summariesRead(sequence, clock.nowMs()),
    onManifest: (sequence, loaded) => {
      engine.traces.manifestRead(sequence, clock.nowMs(), loaded.manifest.tokenCount);
      persister.noteManifest(sequence, loaded);
    },
  });
  const engine = new Engine({
    settings,
    numericsId: options.numericsId,
    runner,
    cache,
    host,
    opens,
    fetcher,
    supply,
    attacher,
    persister,
    storeActivity: store.activity,
    storeCalls: store.calls,
    diskCache: options.diskCache,
    storeSpeed: () => store.times.speed,
    clock,
    log,
    onDeviceLost: options.onDeviceLost,
  });
  return {
    engine,
    persister,
    keys,
    residentPrefixes: () => residentPrefixes(cache.published()),
    kvBytesPerToken: (geometry.blockBytes * spec.layerCount) / BLOCK_TOKENS,
    demoteIdle: () => cache.demoteIdle(),
    evictIdle() {
      cache.evictIdle();
      opens.evictIdle();
    },
  };
}

/**
 * Fewer sequences than rows, by a query group: otherwise those that decode could take every row of every step. Nobody is suspended without host
 * memory to go to.
 */
function settled(settings: EngineSettings, rowsMax: number): EngineSettings {
  const rows = Math.min(settings.stepRowsMax, rowsMax);
  assert(rows >= PAGE_TOKENS, `a step takes at least ${PAGE_TOKENS} rows`);
  const reserve = settings.hostPoolBytes === 0 ? "full" : settings.reserve;
  return { ...settings, reserve, runningMax: Math.max(1, Math.min(settings.runningMax, rows - PAGE_TOKENS)) };
}
