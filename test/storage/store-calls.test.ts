import { expect, it } from "vitest";
import { StoreError } from "../../storage/contract.ts";
import { HedgedStore } from "../../storage/hedged-reads.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { failureOutcome } from "../../storage/store-calls.ts";

const clock = { nowMs: () => performance.now(), deadline: (ms: number) => AbortSignal.timeout(ms) };

it("counts calls by what became of them", async () => {
  const inner = new MemoryStore();
  const store = new HedgedStore(inner, { clock, hedgeShareMax: 0, absentMs: 0 });
  const counted = () =>
    Object.fromEntries(
      store.calls.entries().flatMap(({ call, outcome, count }) => (count > 0 ? [[`${call} ${outcome}`, count]] : [])),
    );
  expect(counted()).toEqual({});
  expect(store.calls.entries()).toContainEqual({ call: "put", outcome: "denied", count: 0 });
  await store.put("a", new Uint8Array(1));
  await store.put("a", new Uint8Array(1), { condition: "absent" });
  await store.get("a");
  await store.get("b");
  await store.list("");
  await store.delete(["a"]);
  expect(counted()).toEqual({ "put ok": 2, "get ok": 2, "list ok": 1, "delete ok": 1 });
  inner.put = async () => {
    throw new StoreError("denied", "403");
  };
  inner.get = async () => {
    throw new StoreError("unavailable", "no answer");
  };
  await expect(store.put("a", new Uint8Array(1))).rejects.toMatchObject({ code: "denied" });
  await expect(store.get("a")).rejects.toMatchObject({ code: "unavailable" });
  expect(counted()).toMatchObject({ "put denied": 1, "get unavailable": 1, "put ok": 2 });
});

it("takes a caller's deadline for a store that is late, and a caller that leaves for none of its faults", async () => {
  const late = AbortSignal.timeout(1);
  await new Promise((resolve) => late.addEventListener("abort", resolve));
  expect(failureOutcome(new StoreError("aborted", "", { cause: late.reason }))).toBe("timeout");
  expect(failureOutcome(new StoreError("aborted", "", { cause: AbortSignal.abort().reason }))).toBe("aborted");
  expect(failureOutcome(new StoreError("corrupt", ""))).toBe("corrupt");
  expect(failureOutcome(new TypeError("fetch failed"))).toBe("unavailable");
});
