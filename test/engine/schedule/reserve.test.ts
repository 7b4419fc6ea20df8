/** What it is worth to admit requests by their prompts, in simulated time: copies to and from host memory take none of it. */
import { describe, expect, it } from "vitest";
import type { ReserveMode } from "../../../engine/settings.ts";
import { openDevice } from "../../../kernels/open.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { SIM_CONFIG, SimEngine } from "../../sim/sim-engine.ts";
import { SimStore } from "../../sim/sim-store.ts";
import { VirtualTime } from "../../sim/virtual-time.ts";
import { randomIds, request } from "../harness.ts";
import { uniform } from "../tiny-model.ts";

const REQUEST_COUNT = 16;
const PROMPT_TOKENS = 100;
/** Four blocks a request at most, two to start with. */
const REPLY_TOKENS = 96;
const POOL_BLOCKS = 16;

interface Figures {
  tokensPerS: number;
  firstTokenMs: number;
  preemptions: number;
}

async function serve(reserve: ReserveMode): Promise<Figures> {
  const time = new VirtualTime();
  const inner = new MemoryStore({ now: () => time.nowMs });
  const store = new SimStore({ inner, time, random: uniform(1), rates: {}, onChange: () => undefined });
  const settings = { reserve, runningMax: REQUEST_COUNT };
  return await time.run(
    SimEngine.open({ time, store, blockCount: POOL_BLOCKS, settings }).then(async (engine) => {
      const firsts = await Promise.all(Array.from({ length: REQUEST_COUNT }, (_, seed) => firstTokenMs(engine, seed)));
      const metrics = engine.opened.engine.metrics.expose();
      const endMs = time.nowMs;
      engine.kill();
      return {
        tokensPerS: (1000 * REQUEST_COUNT * REPLY_TOKENS) / endMs,
        firstTokenMs: firsts.reduce((sum, ms) => sum + ms) / REQUEST_COUNT,
        preemptions: Number(/quire_preemptions_total (\d+)/.exec(metrics)?.[1]),
      };
    }),
    1_000_000,
  );
}

function firstTokenMs(engine: SimEngine, seed: number): Promise<number> {
  const ids = randomIds(seed, PROMPT_TOKENS).map((id) => id % SIM_CONFIG.vocabularySize);
  const fields = request({ tokens: idsToBytes(ids), maxTokens: REPLY_TOKENS });
  return new Promise((resolve, reject) => {
    engine.opened.engine.submit(fields, {
      token: () => undefined,
      done: (_reason, { firstTokenMs: ms }) => resolve(ms),
      failed: reject,
    });
  });
}

describe("admission by prompts, against admission by the longest reply", () => {
  it("serves more tokens a second and first tokens sooner, even where every reply is as long as it may be", async () => {
    await (await openDevice({ kind: "reference" })).close();
    const [full, prompt] = [await serve("full"), await serve("prompt")];
    expect(full.preemptions).toBe(0);
    expect(prompt.preemptions).toBeGreaterThan(0);
    expect(prompt.tokensPerS).toBeGreaterThan(1.05 * full.tokensPerS);
    expect(prompt.firstTokenMs).toBeLessThan(0.9 * full.firstTokenMs);
  });
});
