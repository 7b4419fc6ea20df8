/** The loop and a store that answers nothing: counted on a virtual clock. */
import { describe, expect, it } from "vitest";
import { idsToBytes } from "../../protocol/ids.ts";
import { type PutOptions, type PutResult, StoreError } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import type { VirtualTime } from "../sim/virtual-time.ts";
import { SIMULATION_TIMEOUT, type SimulatedTurn, simulateEngine, simulateTurn } from "./schedule/simulation.ts";

const PUT_MS = 40;
/** More than there is time for in a stall. */
const TOKENS = 850;
const STALL = { fromMs: 2_000, endMs: 32_000 };

/** Puts take their time; those under way in a stall end with it, or with their caller's patience. */
class SlowStore extends MemoryStore {
  readonly puts: { atMs: number; key: string }[] = [];
  readonly #time: VirtualTime;
  readonly #stalls: boolean;

  constructor(time: VirtualTime, stalls: boolean) {
    super({ now: () => time.nowMs });
    this.#time = time;
    this.#stalls = stalls;
  }

  override async put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<PutResult> {
    const atMs = this.#time.nowMs;
    this.puts.push({ atMs, key });
    const endMs = this.#stalls && atMs + PUT_MS > STALL.fromMs ? Math.max(STALL.endMs, atMs) + PUT_MS : atMs + PUT_MS;
    await new Promise<void>((resolve, reject) => {
      options?.signal?.addEventListener("abort", () => reject(new StoreError("timeout", "took too long")));
      this.#time.after(endMs - atMs, resolve);
    });
    return await super.put(key, bytes, { ...options, signal: undefined });
  }
}

async function decode(how: { stalls: boolean; session: boolean }): Promise<{ turn: SimulatedTurn; store: SlowStore }> {
  let store: SlowStore | undefined;
  const simulated = simulateEngine({
    store(time) {
      store = new SlowStore(time, how.stalls);
      return store;
    },
    settings: { segmentTokens: 64 },
    // Steps cost the same wherever they are: what differs is the loop.
    cost: { fixedMs: 39.5, rowMs: 0.5, attendedMsPer1024: 0 },
  });
  const tokens = idsToBytes(Array.from({ length: 64 }, (_, index) => index % 50));
  const turn = await simulated.run(
    simulateTurn(simulated, { tokens, maxTokens: TOKENS, ...(how.session ? { session: { id: "one" } } : {}) }),
  );
  return { turn, store: store as SlowStore };
}

const tokensIn = ({ tokensMs }: SimulatedTurn, fromMs: number, endMs: number) =>
  tokensMs.filter((ms) => ms >= fromMs && ms < endMs).length;

describe("decoding while the store answers nothing", () => {
  it(
    "goes on as fast as with a store that answers, and all but as fast as without a session",
    SIMULATION_TIMEOUT,
    async () => {
      const [without, calm, stalled] = [
        await decode({ stalls: false, session: false }),
        await decode({ stalls: false, session: true }),
        await decode({ stalls: true, session: true }),
      ];
      const counts = [without, calm, stalled].map(({ turn }) => tokensIn(turn, STALL.fromMs, STALL.endMs));
      const [free, answered, unanswered] = counts as [number, number, number];
      // The stall is one: segments were asked to be written in it, and none ended before it was over.
      const asked = stalled.store.puts.filter(({ atMs }) => atMs >= STALL.fromMs && atMs < STALL.endMs);
      expect(asked.length).toBeGreaterThan(5);
      expect(unanswered / free).toBeGreaterThan(0.99);
      expect(unanswered / answered).toBeGreaterThan(0.99);
      expect(answered / free).toBeGreaterThan(0.99);
      expect(stalled.turn.endMs).toBeGreaterThan(STALL.endMs);
    },
  );
});
