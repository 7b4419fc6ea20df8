import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStore } from "../../storage/open.ts";
import { S3Store, type S3StoreOptions } from "../../storage/s3-store.ts";
import { markExercised } from "../exercised.ts";
import { describeStore } from "./conformance.ts";
import { type LocalR2, startLocalR2 } from "./local-r2.ts";

let r2: LocalR2;
beforeAll(async () => {
  r2 = await startLocalR2();
});
afterAll(async () => {
  await r2?.stop();
});

describeStore("s3 (local R2 of wrangler dev)", {
  open: async () => new S3Store({ ...r2, listKeysMax: 60 }),
  rounds: 4,
  listKeysMax: 60,
  interruptible: true,
});

/** Sends each request, and then lets `after` change what the client sees, as a bad network would. */
function storeBehind(after: (request: Request, count: number) => "answer" | "lose" | "error"): S3Store {
  let count = 0;
  const fetchBehind: NonNullable<S3StoreOptions["fetch"]> = async (request, init) => {
    const fate = after(request, ++count);
    const response = await fetch(request, init);
    await response.clone().arrayBuffer();
    if (fate === "lose") throw new TypeError("terminated");
    return fate === "error" ? new Response("", { status: 503 }) : response;
  };
  return new S3Store({ ...r2, fetch: fetchBehind, random: () => 0 });
}

describe("s3 store against the local R2", () => {
  markExercised("store", "s3 (local R2 of wrangler dev)");
  const text = (value: string): Buffer => Buffer.from(value);

  it("opens by its address, with credentials from the environment", async () => {
    const address = `s3://${r2.bucket}?endpoint=${encodeURIComponent(r2.endpoint)}&region=${r2.region}`;
    const env = { AWS_ACCESS_KEY_ID: r2.accessKeyId, AWS_SECRET_ACCESS_KEY: r2.secretAccessKey };
    const store = await openStore(address, env);
    await store.put("address/a", text("x"));
    expect((await new S3Store(r2).get("address/a"))?.objectBytes).toBe(1);
  });

  it("answers denied for bad credentials and for a bucket that does not exist", async () => {
    const denied = { name: "StoreError", code: "denied" };
    for (const change of [{ secretAccessKey: "wrong" }, { accessKeyId: "nobody" }, { bucket: "no-such-bucket" }]) {
      const store = new S3Store({ ...r2, ...change });
      await expect(store.get("a")).rejects.toMatchObject(denied);
      await expect(store.put("a", text("x"))).rejects.toMatchObject(denied);
      await expect(store.put("a", text("x"), { condition: "absent" })).rejects.toMatchObject(denied);
      await expect(store.list("")).rejects.toMatchObject(denied);
      await expect(store.delete(["a"])).rejects.toMatchObject(denied);
    }
  });

  it("tells its own put, whose answer was lost, from somebody else's", async () => {
    for (const loss of ["lose", "error"] as const) {
      const key = `lost/${loss}`;
      const store = storeBehind((request, count) => (request.method === "PUT" && count === 1 ? loss : "answer"));
      const own = await store.put(key, text("own"), { condition: "absent" });
      expect(own.outcome).toBe("stored");
      const object = await store.get(key);
      expect(own).toEqual({ outcome: "stored", etag: object?.etag });
      const swapped = await storeBehind((request, count) =>
        request.method === "PUT" && count === 1 ? loss : "answer",
      ).put(key, text("swapped"), { condition: { etag: object?.etag ?? "" } });
      expect(swapped).toEqual({ outcome: "stored", etag: (await store.get(key))?.etag });
    }
  });

  it("answers conflict when a lost put met somebody else's object, be its bytes the same", async () => {
    const other = new S3Store(r2);
    await other.put("lost/other", text("same bytes"));
    const store = storeBehind((request, count) => (request.method === "PUT" && count === 1 ? "lose" : "answer"));
    expect(await store.put("lost/other", text("same bytes"), { condition: "absent" })).toEqual({ outcome: "conflict" });
  });

  it("refuses an upload that was damaged on its way", async () => {
    let puts = 0;
    const damaging: NonNullable<S3StoreOptions["fetch"]> = async (request, init) => {
      if (request.method !== "PUT") return fetch(request, init);
      const body = new Uint8Array(await request.arrayBuffer());
      if (++puts === 1) body[3] = (body[3] as number) ^ 1;
      return fetch(new Request(request.url, { method: "PUT", headers: request.headers, body }), init);
    };
    const store = new S3Store({ ...r2, fetch: damaging, random: () => 0 });
    expect((await store.put("damaged/up", text("0123456789"), { condition: "absent" })).outcome).toBe("stored");
    expect(puts).toBe(2);
    expect(Buffer.from((await store.get("damaged/up"))?.bytes ?? []).toString()).toBe("0123456789");
  });
});
