import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { GetOptions, PageStore, PutOptions } from "../../storage/contract.ts";
import { EncryptedStore } from "../../storage/encrypted-store.ts";
import { collectGarbage } from "../../storage/gc.ts";
import { parseKeyRing } from "../../storage/key-ring.ts";
import { loadManifest } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openStore } from "../../storage/open.ts";
import { rekeyStore } from "../../storage/rekey.ts";
import { segmentRange } from "../../storage/segment.ts";
import { Verifier } from "../../storage/verify.ts";
import { describeStore } from "./conformance.ts";
import { goldenPath } from "./golden.ts";
import * as independent from "./independent-decoder.mjs";
import { noise, seededRandom } from "./random.ts";
import { blockOf, chainOf, sampleKeys } from "./samples.ts";
import { storeWholeSession, WHOLE_GEOMETRY } from "./whole-session.ts";

const keyOf = (seed: number): string => Buffer.from(noise(seed, 32)).toString("base64");
const RING = parseKeyRing(keyOf(1));
const OTHER = parseKeyRing(keyOf(2));
const KEY = `kv/ab01/x/seg/${chainOf(1)}`;

/** Shows the tenant's part of an encrypted store as a whole one, with plain sizes, as the suite expects it. */
class Below implements PageStore {
  readonly name = "below";
  readonly #store = new EncryptedStore(new MemoryStore(), RING);
  get = (key: string, options?: GetOptions) => this.#store.get(this.#at(key), options);
  put = (key: string, bytes: Uint8Array, options?: PutOptions) => this.#store.put(this.#at(key), bytes, options);
  delete = (keys: readonly string[]) => this.#store.delete(keys.map((key) => this.#at(key)));
  close = () => this.#store.close();
  async list(prefix: string, options?: Parameters<PageStore["list"]>[1]) {
    const page = await this.#store.list(this.#at(prefix), options);
    const keys = page.keys.map(async (item) => {
      const object = await this.#store.get(item.key);
      return {
        ...item,
        key: item.key.replace(/^kv\/a\//, "keys/").replace(/^kv\/ab01\//, ""),
        bytes: object?.objectBytes ?? 0,
      };
    });
    return { ...page, keys: await Promise.all(keys) };
  }
  #at(key: string): string {
    // What is no key stays none, and the longest key fits.
    if (key === "" || key.startsWith("/")) return key;
    return key.startsWith("keys/") ? key.replace("keys/", "kv/a/") : `kv/ab01/${key}`;
  }
}

describeStore("encrypted", { open: async () => new Below(), rounds: 10, interruptible: false });

/** Remembers what it has given. */
class RememberingStore extends MemoryStore {
  readonly given: Uint8Array[] = [];
  override async get(key: string, options: GetOptions = {}) {
    const object = await super.get(key, options);
    if (object) this.given.push(object.bytes);
    return object;
  }
}

async function outcomeOf(store: PageStore, key: string, options?: GetOptions): Promise<string> {
  try {
    return (await store.get(key, options)) === undefined ? "absent" : "read";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}

async function stored(bytes: Uint8Array, key = KEY) {
  const inner = new MemoryStore();
  const store = new EncryptedStore(inner, RING);
  await store.put(key, bytes);
  return { inner, store };
}

describe("encrypted objects", () => {
  it("show nothing of what they hold, and are never the same twice", async () => {
    const words = Buffer.from("the words of a conversation ".repeat(300));
    const { inner, store } = await stored(words);
    const first = (await inner.get(KEY))!.bytes;
    expect(Buffer.from(first).includes("conversation")).toBe(false);
    await store.put(KEY, words);
    const second = (await inner.get(KEY))!.bytes;
    for (let at = 20; at + 16 <= first.length; at += 4132)
      expect(Buffer.compare(first.subarray(at, at + 16), second.subarray(at, at + 16))).not.toBe(0);
    // Equal chunks of one object differ, too.
    await store.put(KEY, new Uint8Array(3 * 4096));
    const zeros = (await inner.get(KEY))!.bytes;
    expect(
      new Set([0, 1, 2].map((i) => Buffer.from(zeros.subarray(4132 * i + 20, 4132 * i + 60)).toString("hex"))).size,
    ).toBe(3);
  });

  it.each([0, 1, 4095, 4096, 4097, 20_000])("of %i bytes give every range", async (length) => {
    const bytes = noise(length, length);
    const { store, inner } = await stored(bytes);
    const object = (await store.get(KEY))!;
    expect(Buffer.compare(object.bytes, bytes)).toBe(0);
    expect(object.objectBytes).toBe(length);
    expect((await inner.get(KEY))!.objectBytes).toBe(4132 * Math.max(1, Math.ceil(length / 4096)));
    const random = seededRandom(length);
    for (let round = 0; round < 60 && length > 0; round++) {
      const offset = Math.floor(random() * length);
      const range = { offset, bytes: 1 + Math.floor(random() * (length - offset)) };
      const part = (await store.get(KEY, { range }))!;
      expect(Buffer.compare(part.bytes, bytes.subarray(offset, offset + range.bytes)), JSON.stringify(range)).toBe(0);
      expect(part.objectBytes).toBe(length);
      expect(await outcomeOf(store, KEY, { range: { offset, bytes: length - offset + 1 } })).toBe("corrupt");
    }
  });

  it("are not read with any bit flipped", async () => {
    const { inner, store } = await stored(noise(3, 300));
    const { bytes } = (await inner.get(KEY))!;
    // All of header, first text and tag; of what is between them every seventh.
    const [textEnd, tagStart, end] = [400 * 8, 4116 * 8, bytes.length * 8];
    for (let bit = 0; bit < end; bit += bit < textEnd || bit >= tagStart ? 1 : 7) {
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      await inner.put(KEY, bytes);
      const outcome = await outcomeOf(store, KEY);
      // Without its mark or with another key's name it is not ours to judge; else it is damaged.
      expect(outcome, `bit ${bit}`).toBe(bit < 64 ? "denied" : "corrupt");
      bytes[bit >> 3]! ^= 1 << (bit & 7);
    }
    await inner.put(KEY, bytes);
    expect(await outcomeOf(store, KEY)).toBe("read");
  });

  it("are not read with chunks moved, cut off, added, taken from another object, tenant or write", async () => {
    const bytes = noise(4, 3 * 4096);
    const { inner, store } = await stored(bytes);
    const good = (await inner.get(KEY))!.bytes;
    const chunk = (of: Uint8Array, index: number) => of.subarray(4132 * index, 4132 * (index + 1));
    await store.put(KEY, bytes);
    const again = (await inner.get(KEY))!.bytes;
    const neighbour = KEY.replace(/.$/, "0");
    await store.put(neighbour, bytes);
    const moved = (await inner.get(neighbour))!.bytes;
    const [a, b, c] = [0, 1, 2].map((index) => chunk(good, index)) as [Uint8Array, Uint8Array, Uint8Array];
    const wrong: Record<string, Uint8Array[]> = {
      "two changed for each other": [b, a, c],
      "one twice": [a, b, b],
      "the last cut off": [a, b],
      "one added": [a, b, c, c],
      "cut inside": [a, b, c.subarray(0, 4000)],
      "one of another write": [a, chunk(again, 1), c],
      "one of another object": [a, chunk(moved, 1), c],
      "all of another object": [0, 1, 2].map((index) => chunk(moved, index)),
    };
    for (const [what, chunks] of Object.entries(wrong)) {
      await inner.put(KEY, Buffer.concat(chunks));
      expect(await outcomeOf(store, KEY), what).toBe("corrupt");
    }
    // A range notices as much of it as it reads.
    await inner.put(KEY, Buffer.concat([b, a, c]));
    expect(await outcomeOf(store, KEY, { range: { offset: 0, bytes: 10 } })).toBe("corrupt");
    const foreign = KEY.replace("ab01", "ab02");
    await inner.put(foreign, good);
    expect(await outcomeOf(store, foreign)).toBe("corrupt");
  });

  it("are another ring's, or nobody's, and then denied; what is no tenant's passes through", async () => {
    const { inner, store } = await stored(noise(5, 100));
    expect(await outcomeOf(new EncryptedStore(inner, OTHER), KEY)).toBe("denied");
    await inner.put(KEY, noise(5, 9000));
    expect(await outcomeOf(store, KEY)).toBe("denied");
    await store.put("models/tokenizer.json", Buffer.from("{}"));
    expect(Buffer.from((await inner.get("models/tokenizer.json"))!.bytes).toString()).toBe("{}");
    expect(Buffer.from((await store.get("models/tokenizer.json"))!.bytes).toString()).toBe("{}");
  });

  it("leave no memory behind for the collector to find when they have been read", async () => {
    const inner = new RememberingStore();
    const store = new EncryptedStore(inner, RING);
    const bytes = noise(4, 200_000);
    await store.put(KEY, bytes);
    for (const range of [undefined, { offset: 0, bytes: 10 }, { offset: 70_000, bytes: 100_000 }]) {
      const { offset, bytes: count } = range ?? { offset: 0, bytes: bytes.byteLength };
      const object = await store.get(KEY, range && { range });
      expect(object?.bytes).toEqual(bytes.slice(offset, offset + count));
      expect(object?.bytes.buffer.byteLength, "the plain chunks are not kept").toBe(count);
    }
    expect(inner.given).toHaveLength(3);
    expect(inner.given.filter(({ byteLength }) => byteLength > 0)).toEqual([]);
  });

  it("are as the document says: a decoder of its own reads the golden file", async () => {
    const key = `kv/ab01/x/tail/${chainOf(2)}/${chainOf(3)}-1`;
    const master = noise(9, 32);
    const plain = noise(10, 5000);
    const file = new Uint8Array(readFileSync(goldenPath("encrypted")));
    expect(Buffer.compare(independent.decryptObject(master, key, file), plain)).toBe(0);
    const inner = new MemoryStore();
    await inner.put(key, file);
    const ours = await new EncryptedStore(inner, parseKeyRing(Buffer.from(master).toString("hex"))).get(key);
    expect(Buffer.compare(ours!.bytes, plain)).toBe(0);
    expect(() => independent.decryptObject(noise(11, 32), key, file)).toThrow();
  });
});

describe("an encrypted session", () => {
  it("is whole, its blocks are read by range; without the keys it is left alone", async () => {
    const inner = new MemoryStore();
    const store = new EncryptedStore(inner, RING);
    const { key, manifest } = await storeWholeSession(store, { sessionId: "s" });
    expect(await new Verifier(store).session(key)).toMatchObject({ problems: [], trustedTokens: 582 });
    const { offset, bytes } = segmentRange(WHOLE_GEOMETRY, 1, 1);
    const part = await store.get(manifest.segments[1]!.objectKey, { range: { offset, bytes } });
    expect(Buffer.compare(part!.bytes, blockOf(WHOLE_GEOMETRY, 128, 1, 1))).toBe(0);

    const before = (await inner.list("")).keys.length;
    const options = { graceMs: 0, nowMs: Date.now() + 1e9 };
    for (const reader of [inner, new EncryptedStore(inner, OTHER)]) {
      const report = await collectGarbage(reader, "kv/", options);
      expect(report).toMatchObject({ deletedKeys: [], unreadableKeys: [key] });
    }
    await expect(loadManifest(inner, key)).rejects.toMatchObject({ code: "unsupported_version" });
    expect(await new Verifier(inner, { repair: true }).session(key)).toMatchObject({ action: "left" });
    await expect(new Verifier(new EncryptedStore(inner, OTHER), { repair: true }).session(key)).rejects.toMatchObject({
      code: "denied",
    });
    expect((await inner.list("")).keys).toHaveLength(before);
    expect(await collectGarbage(store, "kv/", options)).toMatchObject({ deletedKeys: [], unreadableKeys: [] });
  });

  it("moves to a new key while it is in use, and the old one can go", async () => {
    const inner = new MemoryStore();
    const { key, manifest } = await storeWholeSession(inner, { sessionId: "s" });
    const both = parseKeyRing(`${keyOf(2)}, ${keyOf(1)}`);
    const count = (await inner.list("")).keys.length;
    // From plain to the first key, then to the second.
    expect(await rekeyStore(inner, RING, { prefix: "kv/", dryRun: true })).toMatchObject({ rekeyedCount: count });
    expect(await rekeyStore(inner, RING, { prefix: "kv/" })).toMatchObject({ rekeyedCount: count, changedCount: 0 });
    expect(await rekeyStore(inner, RING, { prefix: "kv/" })).toMatchObject({ rekeyedCount: 0, objectCount: count });
    await expect(rekeyStore(inner, OTHER, { prefix: "kv/" })).rejects.toMatchObject({ code: "denied" });
    expect(await new Verifier(new EncryptedStore(inner, both)).session(key)).toMatchObject({ problems: [] });
    // A commit during the change keeps its own bytes.
    const put = inner.put.bind(inner);
    inner.put = async (name, bytes, options) => {
      if (name === key && options?.condition !== undefined) {
        inner.put = put;
        await new EncryptedStore(inner, both).put(key, Buffer.from("newer"));
      }
      return await put(name, bytes, options);
    };
    expect(await rekeyStore(inner, both, { prefix: "kv/" })).toMatchObject({ rekeyedCount: count, changedCount: 1 });
    const rekeyed = new EncryptedStore(inner, OTHER);
    expect(Buffer.from((await rekeyed.get(key))!.bytes).toString()).toBe("newer");
    for (const { objectKey } of manifest.segments) expect(await outcomeOf(rekeyed, objectKey)).toBe("read");
    expect(sampleKeys(WHOLE_GEOMETRY).session("s")).toBe(key);
  });
});

describe("rekeying", () => {
  it("leaves a damaged object as it is, names it, and goes on to all others", async () => {
    const inner = new MemoryStore();
    await storeWholeSession(new EncryptedStore(inner, RING), { sessionId: "s" });
    const names = (await inner.list("")).keys.map(({ key }) => key);
    const damaged = names[2] as string;
    const { bytes } = (await inner.get(damaged))!;
    bytes[bytes.length - 1]! ^= 1;
    await inner.put(damaged, bytes);
    const both = parseKeyRing(`${keyOf(2)}, ${keyOf(1)}`);
    const report = { objectCount: names.length, rekeyedCount: names.length - 1, damagedKeys: [damaged] };
    expect(await rekeyStore(inner, both, { prefix: "kv/" })).toMatchObject(report);
    expect((await inner.get(damaged))!.bytes).toEqual(bytes);
    expect(await rekeyStore(inner, both, { prefix: "kv/" })).toMatchObject({ rekeyedCount: 0, damagedKeys: [damaged] });
    for (const name of names.filter((name) => name !== damaged))
      expect(await outcomeOf(new EncryptedStore(inner, OTHER), name)).toBe("read");
  });
});

describe("the key ring", () => {
  it("takes 32 bytes in base64, base64url or hex, and names a key without showing it", () => {
    const secret = randomBytes(32);
    const [id] = (["base64", "base64url", "hex"] as const).map((encoding) => {
      const [key] = parseKeyRing(secret.toString(encoding));
      expect(Buffer.compare(key.secret, secret)).toBe(0);
      return key.id;
    });
    expect(id).toMatch(/^[0-9a-f]{8}$/);
    expect(secret.toString("hex")).not.toContain(id);
  });

  it.each([
    ["", /key 1 is not 32 bytes/],
    ["hunter2", /key 1 is not 32 bytes/],
    [`${keyOf(1)},${keyOf(1)}`, /holds a key twice/],
    [`${keyOf(1)},`, /key 2 is not 32 bytes/],
  ])("refuses %j in one line that does not repeat it", async (text, message) => {
    expect(() => parseKeyRing(text)).toThrow(message);
    expect(() => parseKeyRing(text)).not.toThrow(/hunter2|\n/);
    if (text !== "") await expect(openStore("memory:", { QUIRE_STORE_KEYS: text })).rejects.toThrow(message);
  });

  it("is what openStore encrypts by", async () => {
    expect((await openStore("memory:", { QUIRE_STORE_KEYS: keyOf(1) })).name).toBe("memory, encrypted");
    expect((await openStore("memory:", { QUIRE_STORE_KEYS: "" })).name).toBe("memory");
  });
});
