import type { Arena, WasmHeap } from "./heap.ts";
import type { ThreadPool } from "./thread-pool.ts";

/** What every op of the device needs: memory, threads, and memory that lasts for one op. */
export interface Machine {
  heap: WasmHeap;
  threads: ThreadPool;
  /** Cleared by each op that takes from it, when it begins. */
  opArena: Arena;
}
