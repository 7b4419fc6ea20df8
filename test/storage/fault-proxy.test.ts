/**
 * The S3 driver, and whole conversations on engines above it, over a real S3 API (wrangler's local R2) behind a proxy that goes wrong. No token may
 * differ, and what was said to be stored must be there.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { PageStore } from "../../storage/contract.ts";
import { StoreError } from "../../storage/contract.ts";
import { S3Store } from "../../storage/s3-store.ts";
import { Verifier } from "../../storage/verify.ts";
import { faultRun } from "../engine/fault-run.ts";
import { type FaultProxy, PROXY_FAULTS, type ProxyFault, startFaultProxy } from "./fault-proxy.ts";
import { type LocalR2, startLocalR2 } from "./local-r2.ts";
import { seededRandom } from "./random.ts";

const RATES: Record<ProxyFault, number> = {
  delayed: 0.1,
  dropped: 0.04,
  error500: 0.04,
  error503: 0.04,
  slowDown: 0.04,
  page: 0.04,
  cutAnswer: 0.04,
  shortAnswer: 0.06,
  wrongRange: 0.08,
  bitFlip: 0.06,
  duplicated: 0.06,
  lostAnswer: 0.06,
};
/** An engine reads little of what it has just written: of that, more goes wrong. */
const ENGINE_RATES = { ...RATES, shortAnswer: 0.15, wrongRange: 0.2, bitFlip: 0.2 };
const WRITE_FAULTS: readonly ProxyFault[] = ["duplicated", "lostAnswer"];
const READ_FAULTS: readonly ProxyFault[] = ["shortAnswer", "wrongRange", "bitFlip"];
const TIMEOUT = { timeout: 120_000 };

let r2: LocalR2;
let direct: S3Store;
const proxies: FaultProxy[] = [];

beforeAll(async () => {
  r2 = await startLocalR2();
  direct = new S3Store(r2);
}, 60_000);
afterAll(async () => {
  for (const proxy of proxies) await proxy.close();
  await r2?.stop();
});

async function behindProxy(seed: number): Promise<{ proxy: FaultProxy; store: S3Store }> {
  const proxy = await startFaultProxy(r2.endpoint, { seed, rates: { ...RATES } });
  proxies.push(proxy);
  // No call is given up while it is under way, however busy the machine: what it does is over when it has an answer.
  const patient = { getMsMax: 60_000, putMsMax: 60_000, random: () => 0 };
  return { proxy, store: new S3Store({ ...r2, ...patient, endpoint: proxy.endpoint }) };
}

async function empty(store: PageStore): Promise<void> {
  for (;;) {
    const { keys } = await store.list("");
    if (keys.length === 0) return;
    await store.delete(keys.map(({ key }) => key));
  }
}

function count({ counts }: FaultProxy, faults: readonly ProxyFault[]): number {
  return faults.reduce((sum, fault) => sum + counts[fault], 0);
}

describe("the S3 driver behind a proxy that goes wrong", () => {
  it("tells of every write what became of it", TIMEOUT, async () => {
    const { proxy, store } = await behindProxy(11);
    const random = seededRandom(12);
    const held = new Map<string, { etag: string; text: string }>();
    const outcomes = { stored: 0, conflict: 0, failed: 0 };
    for (let write = 0; write < 80; write++) {
      const key = `driver/${Math.floor(random() * 6)}`;
      const before = held.get(key);
      // Of one writer, a condition that its own last write fulfils, or one that it does not.
      const isRight = random() < 0.7;
      const condition = isRight === (before !== undefined) ? { etag: before?.etag ?? '"0"' } : ("absent" as const);
      const text = `write ${write} ${"x".repeat(Math.floor(random() * 200))}`;
      const outcome = await store.put(key, Buffer.from(text), { condition }).then(
        (result) => result.outcome,
        (error) => {
          expect(error).toBeInstanceOf(StoreError);
          return "failed" as const;
        },
      );
      outcomes[outcome] += 1;
      const now = await direct.get(key);
      const found = now && Buffer.from(now.bytes).toString();
      const isExpected = isRight ? ["stored", "failed"] : ["conflict", "failed"];
      expect(isExpected, `write ${write} of ${key}`).toContain(outcome);
      if (outcome === "stored") expect(found).toBe(text);
      if (outcome === "conflict") expect(found).toBe(before?.text);
      if (outcome === "failed") expect([before?.text, isRight ? text : before?.text]).toContain(found);
      if (now && found !== undefined) held.set(key, { etag: now.etag, text: found });
    }
    expect(outcomes.stored).toBeGreaterThan(15);
    expect(outcomes.conflict).toBeGreaterThan(3);
    expect(count(proxy, WRITE_FAULTS)).toBeGreaterThan(0);
  });

  it("gives what is there, fails, or was given something else", TIMEOUT, async () => {
    const { proxy, store } = await behindProxy(13);
    const random = seededRandom(14);
    const whole = Buffer.from(Array.from({ length: 3_000 }, () => Math.floor(random() * 256)));
    await direct.put("driver/read", whole);
    const outcomes = { right: 0, wrong: 0, failed: 0 };
    for (let read = 0; read < 80; read++) {
      const range = { offset: Math.floor(random() * 2_000), bytes: 1 + Math.floor(random() * 1_000) };
      const wrongBefore = count(proxy, READ_FAULTS);
      const object = await store.get("driver/read", { range }).catch((error) => {
        expect(error).toBeInstanceOf(StoreError);
      });
      const wasGivenWrong = count(proxy, READ_FAULTS) > wrongBefore;
      const isRight =
        object && Buffer.compare(object.bytes, whole.subarray(range.offset, range.offset + range.bytes)) === 0;
      if (object && !isRight) expect(wasGivenWrong, `read ${read}`).toBe(true);
      outcomes[isRight ? "right" : object ? "wrong" : "failed"] += 1;
    }
    // What is wrong in a body is for checksums to find, above the driver.
    expect(outcomes.wrong).toBeGreaterThan(0);
    expect(outcomes.right).toBeGreaterThan(30);
  });

  it("conversations keep every token and every write", TIMEOUT, async () => {
    await empty(direct);
    const { proxy, store } = await behindProxy(21);
    proxy.rates = ENGINE_RATES;
    const cease = () => {
      proxy.rates = {};
      return count(proxy, Object.keys(PROXY_FAULTS) as ProxyFault[]);
    };
    const report = await faultRun(5, 7, { store, cease });
    expect(report.turns).toBeGreaterThan(10);
    // How many requests there are depends on what comes first: of each kind of fault there may be none.
    expect(Math.min(report.storeTokens, report.faults)).toBeGreaterThan(0);
    const verifier = new Verifier(direct);
    let sessions = 0;
    for (const { key } of (await direct.list("")).keys) {
      if (!key.includes("/session/")) continue;
      sessions += 1;
      expect((await verifier.session(key)).problems, key).toEqual([]);
    }
    expect(sessions).toBeGreaterThan(1);
  });
});
