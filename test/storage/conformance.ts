/** What every page store must do. Each driver's test calls this with a way to open it. */
import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import type { ListPage, PageStore } from "../../storage/contract.ts";
import { markExercised } from "../exercised.ts";
import { runHistory } from "./history.ts";
import { noise } from "./random.ts";

const MIB = 1024 * 1024;

/** How a driver is opened and what may be asked of it. */
export interface ConformanceOptions {
  open: () => Promise<PageStore>;
  close?: () => Promise<void>;
  /** Rounds of the contention tests: fewer for a store behind HTTP. */
  rounds: number;
  /** Keys of one page of a list, if not the contract's 1,000. */
  listKeysMax?: number;
  /** Whether a call takes long enough to be aborted in the middle. */
  interruptible: boolean;
}

/** Registers the suite. All tests share one store and use keys of their own. */
export function describeStore(name: string, options: ConformanceOptions): void {
  describe(`page store conformance: ${name}`, () => {
    markExercised("store", name);
    let store: PageStore;
    beforeAll(async () => {
      store = await options.open();
    });
    afterAll(async () => {
      await store?.close();
      await options.close?.();
    });
    objects(() => store);
    ranges(() => store);
    conditions(() => store, options.rounds);
    listing(() => store, options.listKeysMax ?? 1_000);
    keys(() => store);
    cancelling(() => store, options.interruptible);
    it("agrees with a naive model over random histories", async () => {
      for (let seed = 1; seed <= 2; seed++) await runHistory(store, `history/${seed}/`, seed, options.rounds * 12);
    });
  });
}

function text(value: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.from(value, "utf8"));
}

async function storedEtag(store: PageStore, key: string, bytes: Uint8Array): Promise<string> {
  const result = await store.put(key, bytes);
  if (result.outcome !== "stored") throw new Error("an unconditional put met a conflict");
  return result.etag;
}

function objects(store: () => PageStore): void {
  it("gives back what was put, under the same etag", async () => {
    for (const bytes of [text("hello"), new Uint8Array(0), noise(1, 100_000)]) {
      const etag = await storedEtag(store(), "objects/one", bytes);
      const object = await store().get("objects/one");
      expect(Buffer.from(object?.bytes ?? []).equals(bytes)).toBe(true);
      expect(object?.etag).toBe(etag);
      expect(object?.objectBytes).toBe(bytes.byteLength);
    }
  });

  it("answers undefined for what was never there or is deleted", async () => {
    expect(await store().get("objects/none")).toBeUndefined();
    expect(await store().get("objects/none", { range: { offset: 0, bytes: 1 } })).toBeUndefined();
    await store().put("objects/gone", text("x"));
    await store().delete(["objects/gone", "objects/never"]);
    await store().delete([]);
    expect(await store().get("objects/gone")).toBeUndefined();
    expect((await store().list("objects/gone")).keys).toEqual([]);
  });

  it("keeps no reference to the bytes it took or gave", async () => {
    const bytes = text("original");
    await store().put("objects/own", bytes);
    bytes.fill(0);
    (await store().get("objects/own"))?.bytes.fill(1);
    expect(Buffer.from((await store().get("objects/own"))?.bytes ?? []).toString()).toBe("original");
  });

  it("stores a view's bytes, not its buffer's", async () => {
    await store().put("objects/view", text("0123456789").subarray(3, 6));
    expect(Buffer.from((await store().get("objects/view"))?.bytes ?? []).toString()).toBe("345");
  });

  it("carries 8 MiB and ranges of it", async () => {
    const bytes = new Uint8Array(8 * MIB);
    const pattern = noise(2, 65_521);
    for (let offset = 0; offset < bytes.byteLength; offset += pattern.byteLength) {
      bytes.set(pattern.subarray(0, bytes.byteLength - offset), offset);
    }
    await store().put("objects/big", bytes);
    const object = await store().get("objects/big");
    const digest = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex");
    expect(digest(object?.bytes ?? new Uint8Array(0))).toBe(digest(bytes));
    const range = { offset: 5 * MIB + 13, bytes: 137_216 };
    const part = await store().get("objects/big", { range });
    expect(digest(part?.bytes ?? new Uint8Array(0))).toBe(
      digest(bytes.slice(range.offset, range.offset + range.bytes)),
    );
    expect(part?.objectBytes).toBe(8 * MIB);
    await store().delete(["objects/big"]);
  });

  it("never shows half of a write", async () => {
    const versions = [text("a".repeat(30_000)), text("b".repeat(50_000)), text("c".repeat(1))];
    await store().put("objects/torn", versions[0] as Uint8Array);
    let writing = true;
    const writer = (async () => {
      for (let i = 0; i < 24; i++) await store().put("objects/torn", versions[i % 3] as Uint8Array);
      writing = false;
    })();
    let seen = 0;
    while (writing) {
      const object = await store().get("objects/torn");
      const content = Buffer.from(object?.bytes ?? []);
      expect(versions.some((version) => content.equals(version))).toBe(true);
      seen++;
      await new Promise((resolve) => setImmediate(resolve));
    }
    await writer;
    expect(seen).toBeGreaterThan(0);
  });
}

function ranges(store: () => PageStore): void {
  const content = "0123456789";

  it("reads ranges up to the last byte", async () => {
    const etag = await storedEtag(store(), "ranges/digits", text(content));
    for (const [offset, bytes] of [
      [0, 1],
      [0, 10],
      [3, 4],
      [9, 1],
    ] as const) {
      const object = await store().get("ranges/digits", { range: { offset, bytes } });
      expect(Buffer.from(object?.bytes ?? []).toString()).toBe(content.slice(offset, offset + bytes));
      expect(object?.objectBytes).toBe(10);
      expect(object?.etag).toBe(etag);
    }
  });

  it("fails with corrupt for a range that goes beyond the object", async () => {
    await store().put("ranges/short", text(content));
    await store().put("ranges/empty", new Uint8Array(0));
    for (const [key, offset, bytes] of [
      ["ranges/short", 9, 2],
      ["ranges/short", 10, 1],
      ["ranges/short", 0, 11],
      ["ranges/short", 5_000_000, 1],
      ["ranges/empty", 0, 1],
    ] as const) {
      const read = store().get(key, { range: { offset, bytes } });
      await expect(read, `${key} ${offset}+${bytes}`).rejects.toMatchObject({ name: "StoreError", code: "corrupt" });
    }
  });

  it("takes an impossible range for a programmer's error", async () => {
    for (const range of [
      { offset: -1, bytes: 1 },
      { offset: 0, bytes: 0 },
      { offset: 0.5, bytes: 1 },
      { offset: 0, bytes: Number.NaN },
    ]) {
      await expect(store().get("ranges/digits", { range })).rejects.toBeInstanceOf(AssertionError);
    }
  });
}

function conditions(store: () => PageStore, rounds: number): void {
  it("stores under a condition only when it holds", async () => {
    const key = "conditions/one";
    const bogus = { etag: await storedEtag(store(), "conditions/other", text("other")) };
    expect(await store().put(key, text("1"), { condition: bogus })).toEqual({ outcome: "conflict" });
    expect(await store().get(key)).toBeUndefined();
    const first = await store().put(key, text("1"), { condition: "absent" });
    expect(first.outcome).toBe("stored");
    expect(await store().put(key, text("2"), { condition: "absent" })).toEqual({ outcome: "conflict" });
    expect(await store().put(key, text("2"), { condition: bogus })).toEqual({ outcome: "conflict" });
    expect(Buffer.from((await store().get(key))?.bytes ?? []).toString()).toBe("1");
    const etag = first.outcome === "stored" ? first.etag : "";
    const second = await store().put(key, text("2"), { condition: { etag } });
    expect(second.outcome).toBe("stored");
    expect(await store().put(key, text("3"), { condition: { etag } })).toEqual({ outcome: "conflict" });
    expect(Buffer.from((await store().get(key))?.bytes ?? []).toString()).toBe("2");
    await store().delete([key]);
    expect(await store().put(key, text("3"), { condition: { etag } })).toEqual({ outcome: "conflict" });
    expect((await store().put(key, text("3"), { condition: "absent" })).outcome).toBe("stored");
  });

  it("lets exactly one of many writers create an object", async () => {
    for (let round = 0; round < rounds; round++) {
      const key = `conditions/create-${round}`;
      const results = await Promise.all(
        Array.from({ length: 12 }, (_, i) => store().put(key, text(`writer ${i}`), { condition: "absent" })),
      );
      const winners = results.flatMap((result, i) => (result.outcome === "stored" ? [i] : []));
      expect(winners).toHaveLength(1);
      expect(Buffer.from((await store().get(key))?.bytes ?? []).toString()).toBe(`writer ${winners[0]}`);
    }
  });

  it("lets exactly one of many writers replace a version, each round", async () => {
    const key = "conditions/replace";
    let etag = await storedEtag(store(), key, text("start"));
    for (let round = 0; round < rounds; round++) {
      const results = await Promise.all(
        Array.from({ length: 12 }, (_, i) => store().put(key, text(`${round}.${i}`), { condition: { etag } })),
      );
      const stored = results.flatMap((result, i) => (result.outcome === "stored" ? [{ i, etag: result.etag }] : []));
      expect(stored).toHaveLength(1);
      const object = await store().get(key);
      expect(Buffer.from(object?.bytes ?? []).toString()).toBe(`${round}.${stored[0]?.i}`);
      expect(object?.etag).toBe(stored[0]?.etag);
      etag = object?.etag ?? "";
    }
  });

  it("loses no update of counters that are read, increased and swapped", async () => {
    const key = "conditions/counter";
    await store().put(key, text("0"));
    const tasks = Array.from({ length: 4 }, async () => {
      for (let done = 0; done < rounds; ) {
        const object = await store().get(key);
        const next = Number(Buffer.from(object?.bytes ?? []).toString()) + 1;
        const result = await store().put(key, text(String(next)), { condition: { etag: object?.etag ?? "" } });
        if (result.outcome === "stored") done++;
      }
    });
    await Promise.all(tasks);
    expect(Buffer.from((await store().get(key))?.bytes ?? []).toString()).toBe(String(4 * rounds));
  });
}

function listing(store: () => PageStore, pageKeysMax: number): void {
  it("lists by prefix, ascending, with sizes and times", async () => {
    const names = [
      "list/b",
      "list/a",
      "list/a/c",
      "list/a-b",
      "list/a.b",
      "list/ab",
      "list/A",
      "list/a/b/c",
      "list0/x",
    ];
    for (const [i, name] of names.entries()) await store().put(name, new Uint8Array(i));
    const { keys: found, cursor } = await store().list("list/");
    expect(cursor).toBeUndefined();
    const expected = names.filter((name) => name.startsWith("list/")).sort();
    expect(found.map(({ key }) => key)).toEqual(expected);
    for (const { key, bytes, modifiedMs } of found) {
      expect(bytes).toBe(names.indexOf(key));
      expect(Math.abs(modifiedMs - Date.now())).toBeLessThan(60_000);
    }
    const under = await store().list("list/a");
    expect(under.keys.map(({ key }) => key)).toEqual(expected.filter((name) => name.startsWith("list/a")));
    expect((await store().list("list/nothing")).keys).toEqual([]);
    expect((await store().list("list/a/b/")).keys.map(({ key }) => key)).toEqual(["list/a/b/c"]);
  });

  it("pages through more keys than fit a page, each once, and deletes them", async () => {
    const names = Array.from(
      { length: pageKeysMax + 40 },
      (_, i) => `pages/${i % 7}/${String(i).padStart(5, "0")}`,
    ).sort();
    for (let from = 0; from < names.length; from += 16) {
      await Promise.all(names.slice(from, from + 16).map((name) => store().put(name, text(name))));
    }
    const pages: ListPage[] = [];
    let cursor: string | undefined;
    do {
      const page = await store().list("pages/", cursor === undefined ? {} : { cursor });
      pages.push(page);
      cursor = page.cursor;
    } while (cursor !== undefined && pages.length < 10);
    expect(pages.length).toBeGreaterThan(1);
    for (const page of pages) expect(page.keys.length).toBeLessThanOrEqual(pageKeysMax);
    expect(pages.flatMap((page) => page.keys.map(({ key }) => key))).toEqual(names);
    await store().delete(names);
    expect((await store().list("pages/")).keys).toEqual([]);
  });
}

function keys(store: () => PageStore): void {
  it("takes every key of the contract, an object beside objects below it", async () => {
    const long = `keys/${"x".repeat(200)}/${"y".repeat(200)}/${"z".repeat(105)}`;
    expect(long).toHaveLength(512);
    const names = [
      "keys/a",
      "keys/a/b",
      "keys/a/b/c",
      "keys/...",
      "keys/-._",
      "keys/.hidden",
      "keys/K",
      "keys/k",
      long,
    ];
    for (const name of names) await store().put(name, text(name));
    for (const name of names) expect(Buffer.from((await store().get(name))?.bytes ?? []).toString()).toBe(name);
    expect((await store().list("keys/")).keys.map(({ key }) => key)).toEqual([...names].sort());
    await store().delete(["keys/a"]);
    expect(await store().get("keys/a")).toBeUndefined();
    expect(await store().get("keys/a/b/c")).toBeDefined();
    await store().delete(["keys/a/b/c"]);
    expect(await store().get("keys/a/b")).toBeDefined();
  });

  it("takes any other key for a programmer's error", async () => {
    const nasty = [
      "",
      "/a",
      "a/",
      "a//b",
      ".",
      "..",
      "a/..",
      "../a",
      "a/../../b",
      "a/./b",
      "a b",
      "a\\b",
      "ä",
      "a\0b",
      "a%2fb",
    ];
    nasty.push(
      "a?b",
      "a#b",
      "a&b",
      "<a>",
      "~tmp/a",
      "a~",
      "a:b",
      "C:/a",
      "a\nb",
      "x".repeat(513),
      `${"x".repeat(201)}/a`,
    );
    for (const key of nasty) {
      const label = JSON.stringify(key);
      await expect(store().get(key), label).rejects.toBeInstanceOf(AssertionError);
      await expect(store().put(key, text("x")), label).rejects.toBeInstanceOf(AssertionError);
      await expect(store().delete([key]), label).rejects.toBeInstanceOf(AssertionError);
    }
    await expect(store().list("a b")).rejects.toBeInstanceOf(AssertionError);
  });
}

function cancelling(store: () => PageStore, interruptible: boolean): void {
  const aborted = { name: "StoreError", code: "aborted" };

  it("refuses a call whose signal has fired already", async () => {
    const signal = AbortSignal.abort();
    await expect(store().get("cancel/a", { signal })).rejects.toMatchObject(aborted);
    await expect(store().put("cancel/a", text("x"), { signal })).rejects.toMatchObject(aborted);
    await expect(store().list("cancel/", { signal })).rejects.toMatchObject(aborted);
    expect(await store().get("cancel/a")).toBeUndefined();
  });

  if (!interruptible) return;
  it("ends a call in the middle, and goes on working", async () => {
    await store().put("cancel/big", new Uint8Array(4 * MIB));
    for (const call of [
      (signal: AbortSignal) => store().get("cancel/big", { signal }),
      (signal: AbortSignal) => store().put("cancel/big", new Uint8Array(4 * MIB), { signal }),
    ]) {
      const controller = new AbortController();
      const pending = call(controller.signal);
      setImmediate(() => controller.abort());
      await expect(pending).rejects.toMatchObject(aborted);
    }
    expect((await store().get("cancel/big"))?.objectBytes).toBe(4 * MIB);
  });
}
