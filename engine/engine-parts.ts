/** What an engine is made of. */
import type { DeviceLostError } from "../kernels/device-lost.ts";
import type { ModelRunner } from "../models/contract.ts";
import type { DiskCache } from "../storage/disk-cache.ts";
import type { StoreSpeed } from "../storage/read-times.ts";
import type { StoreActivity } from "../storage/store-activity.ts";
import type { StoreCalls } from "../storage/store-calls.ts";
import type { Attacher } from "./kv/attacher.ts";
import type { BlockCache } from "./kv/block-cache.ts";
import type { BlockFetcher } from "./kv/block-fetcher.ts";
import type { HostPool, HostPoolCounts } from "./kv/host-pool.ts";
import type { OpenBlocks } from "./kv/open-blocks.ts";
import type { SummarySupply } from "./kv/summary-supply.ts";
import type { Persister } from "./persist/persister.ts";
import type { CostModel } from "./schedule/cost-model.ts";
import type { Clock, EngineLog, EngineSettings } from "./settings.ts";

/** The parts an engine drives; see `open.ts`. */
export interface EngineParts {
  settings: EngineSettings;
  /** Of the device. */
  numericsId: string;
  runner: ModelRunner;
  cache: BlockCache;
  host: HostPool;
  opens: OpenBlocks;
  fetcher: BlockFetcher;
  supply: SummarySupply;
  attacher: Attacher;
  persister: Persister;
  /** Of the page store. */
  storeActivity: StoreActivity;
  /** What became of its calls. */
  storeCalls: Pick<StoreCalls, "entries">;
  /** The tier on the local disk, where there is one. */
  diskCache?: DiskCacheStatus | undefined;
  /** What reads of the page store take; undefined before it is known. */
  storeSpeed(): StoreSpeed | undefined;
  clock: Clock;
  log: EngineLog;
  /** The device is gone and the engine has stopped, in the middle of its turns: whoever holds it ends it like a process that died. */
  onDeviceLost?: ((error: DeviceLostError) => void) | undefined;
}

/** What a disk cache tells of itself. */
export type DiskCacheStatus = Readonly<Pick<DiskCache, "bytes" | "bytesMax" | "counts">>;

/** What the engine tells of itself. */
export interface EngineStatus {
  runningCount: number;
  /** Of these, suspended ones. */
  preemptedCount: number;
  queuedCount: number;
  freeBlockCount: number;
  blockCount: number;
  /** Device blocks, open slots held by sequences: 0 when idle, else something leaked. */
  heldBlockCount: number;
  heldSlotCount: number;
  /** Layers of blocks that have left the device while sequences held them, whose context is larger than the pool. */
  leftLayerCount: number;
  /** Host memory that holds blocks which left the device. */
  hostPool: { bytes: number; bytesMax: number; counts: Readonly<HostPoolCounts> };
  draining: boolean;
  /** What steps have told of their cost. */
  cost: Pick<CostModel, "typicalRowMs" | "rowMs">;
}

/** What is taken of the engine's memory. */
export function memoryStatus({ cache, host, opens, runner }: EngineParts) {
  return {
    freeBlockCount: cache.reservations.unreservedCount,
    blockCount: cache.reservations.capacity,
    heldBlockCount: runner.pool.spec.blockCount - cache.freeDeviceBlockCount - cache.idleDeviceBlockCount,
    heldSlotCount: opens.takenCount,
    leftLayerCount: cache.leftLayerCount,
    hostPool: { bytes: host.bytes, bytesMax: host.bytesMax, counts: host.counts },
  };
}
