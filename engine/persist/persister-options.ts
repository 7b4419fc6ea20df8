import type { KvPool } from "../../kernels/contract.ts";
import type { PageStore } from "../../storage/contract.ts";
import type { KvGeometry } from "../../storage/geometry.ts";
import type { BlockFetcher } from "../kv/block-fetcher.ts";
import type { Gate } from "../kv/gate.ts";
import type { Clock, EngineLog } from "../settings.ts";
import type { SessionKeys } from "./session-keys.ts";

/** What persistence works with; names of model and numerics go into keys and manifests. */
export interface PersisterOptions {
  store: PageStore;
  pool: KvPool;
  fetcher: BlockFetcher;
  /** Bounds puts; not shared with reads, so that neither starves the other. */
  gate: Gate;
  geometry: KvGeometry;
  keys: SessionKeys;
  clock: Clock;
  log: EngineLog;
  modelFingerprint: string;
  numericsId: string;
  putMsMax: number;
  writeBehindBytesMax: number;
  manifestCommitMs: number;
  /** Summaries of so many tokens are one object, once they are whole: a multiple of a segment's tokens. */
  summaryRunTokens: number;
  /** Told of every turn whose manifest is in the store. */
  onCommitted?(requestId: string, what: { tokens: number; generation: number }): void;
}
