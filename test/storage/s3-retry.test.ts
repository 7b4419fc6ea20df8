import { AwsClient } from "aws4fetch";
import { afterEach, describe, expect, it, vi } from "vitest";
import { S3Store, type S3StoreOptions } from "../../storage/s3-store.ts";

type Answer = (request: Request, count: number, signal: AbortSignal) => Response | Promise<Response>;

/** A store whose server is `answer`; also gives how many requests it saw. */
function storeWith(answer: Answer, options: Partial<S3StoreOptions> = {}): { store: S3Store; count: () => number } {
  let count = 0;
  const store = new S3Store({
    endpoint: "http://s3.test",
    bucket: "bucket",
    region: "auto",
    accessKeyId: "key",
    secretAccessKey: "secret",
    random: () => 0,
    // A test that is about deadlines sets its own; the others hold on a machine that stands still for a while.
    getMsMax: 600_000,
    putMsMax: 600_000,
    fetch: async (request, { signal }) => answer(request, ++count, signal),
    ...options,
  });
  return { store, count: () => count };
}

function xmlError(status: number, code: string): Response {
  return new Response(`<?xml version="1.0"?><Error><Code>${code}</Code></Error>`, { status });
}

function object(bytes: string): Response {
  return new Response(bytes, { status: 200, headers: { etag: '"e"' } });
}

async function stalled(signal: AbortSignal): Promise<Response> {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
}

/** Timers are told the time: whatever happens without them happens between two of its steps. Signing is left out, which threads do at their own pace. */
function inFakeTime<T>(begin: () => Promise<T>, onStep: (passedMs: number) => void = () => {}) {
  const STEP_MS = 10;
  vi.spyOn(AwsClient.prototype, "sign").mockImplementation(
    async (url, init) => new Request(url as string, init ?? undefined),
  );
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const work = begin();
  let isSettled = false;
  let passedMs = 0;
  const over = () => {
    isSettled = true;
  };
  work.then(over, over);
  const settled = (async () => {
    while (!isSettled) {
      for (let turn = 0; turn < 20 && !isSettled; turn++) await new Promise<void>((resolve) => setImmediate(resolve));
      if (isSettled) break;
      vi.advanceTimersByTime(STEP_MS);
      passedMs += STEP_MS;
      onStep(passedMs);
    }
    return await work;
  })();
  return { settled, passedMs: () => passedMs };
}

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

it("says whom it asked, and why there was no answer", async () => {
  const { store } = storeWith(async () => {
    throw new TypeError("fetch failed", { cause: Object.assign(new Error("getaddrinfo"), { code: "ENOTFOUND" }) });
  });
  await expect(store.get("a")).rejects.toMatchObject({
    code: "unavailable",
    message: "s3 store: GET a got no answer from s3.test (ENOTFOUND)",
  });
});

describe("s3 store retries", () => {
  it("tries again after errors that pass, on reads, writes, lists and deletes", async () => {
    const passing: Answer[] = [
      () => new Response("", { status: 500 }),
      () => xmlError(503, "SlowDown"),
      () => new Response("", { status: 429 }),
      () => xmlError(400, "RequestTimeout"),
      () => Promise.reject(new TypeError("fetch failed")),
    ];
    for (const failure of passing) {
      const then =
        (good: () => Response): Answer =>
        (request, count, signal) =>
          count <= 2 ? failure(request, count, signal) : good();
      const get = storeWith(then(() => object("x")));
      expect((await get.store.get("a"))?.objectBytes).toBe(1);
      expect(get.count()).toBe(3);
      const put = storeWith(then(() => object("")));
      expect(await put.store.put("a", Buffer.from("x"))).toEqual({ outcome: "stored", etag: '"e"' });
      const list = storeWith(then(() => new Response("<ListBucketResult></ListBucketResult>")));
      expect(await list.store.list("")).toEqual({ keys: [] });
      const remove = storeWith(then(() => new Response("<DeleteResult></DeleteResult>")));
      await remove.store.delete(["a"]);
      expect(remove.count()).toBe(3);
    }
  });

  it("gives up with unavailable after four attempts, with denied at once", async () => {
    const down = storeWith(() => new Response("", { status: 500 }));
    await expect(down.store.get("a")).rejects.toMatchObject({ name: "StoreError", code: "unavailable" });
    expect(down.count()).toBe(4);
    for (const status of [400, 401, 403, 301, 405]) {
      const refused = storeWith(() => new Response(null, { status }));
      await expect(refused.store.put("a", Buffer.from("x"))).rejects.toMatchObject({ code: "denied" });
      expect(refused.count()).toBe(1);
    }
  });

  it.each([
    { header: "2", status: 503, ms: 2_000 },
    { header: "1", status: 429, ms: 1_000 },
    { header: "3600", status: 503, ms: 5_000 },
    { header: "0", status: 503, ms: 25 },
    { header: "Fri, 31 Dec 1999 23:59:59 GMT", status: 503, ms: 25 },
    { header: "-5", status: 503, ms: 25 },
  ])("waits as long as a server asks, at most five seconds: Retry-After $header after $status", async (asked) => {
    const { header, status, ms } = asked;
    const busy = () => new Response("", { status, headers: { "retry-after": header } });
    const once = storeWith((_, count) => (count === 1 ? busy() : object("x")));
    const work = inFakeTime(() => once.store.get("a"));
    expect((await work.settled)?.objectBytes).toBe(1);
    // Time passes in steps of 10 ms.
    expect([once.count(), work.passedMs()]).toEqual([2, Math.ceil(ms / 10) * 10]);
  });

  it("does not wait for a server beyond the deadline of the call", async () => {
    const busy = storeWith(() => new Response("", { status: 503, headers: { "retry-after": "4" } }), { getMsMax: 300 });
    const work = inFakeTime(() => busy.store.get("a"));
    await expect(work.settled).rejects.toMatchObject({ code: "timeout" });
    expect([busy.count(), work.passedMs()]).toEqual([1, 300]);
  });

  it("tries a stalled attempt again, and answers timeout at the deadline", async () => {
    const once = storeWith((_, count, signal) => (count === 1 ? stalled(signal) : object("x")), { getMsMax: 2_000 });
    const again = inFakeTime(() => once.store.get("a"));
    expect((await again.settled)?.objectBytes).toBe(1);
    expect([once.count(), again.passedMs()]).toEqual([2, expect.closeTo(1_050, -2)]);
    const always = storeWith((_, __, signal) => stalled(signal), { getMsMax: 200, putMsMax: 200 });
    const timeout = { name: "StoreError", code: "timeout" };
    const get = inFakeTime(() => always.store.get("a"));
    await expect(get.settled).rejects.toMatchObject(timeout);
    expect(get.passedMs()).toBe(200);
    await expect(inFakeTime(() => always.store.put("a", Buffer.from("x"))).settled).rejects.toMatchObject(timeout);
  });

  it("aborts between attempts, and while it waits for its turn", async () => {
    const controller = new AbortController();
    const failing = storeWith(() => new Response("", { status: 500 }), { random: () => 100 });
    // The first pause is of some seconds.
    const pending = inFakeTime(
      () => failing.store.get("a", { signal: controller.signal }),
      (passedMs) => {
        if (passedMs === 1_000) controller.abort();
      },
    );
    await expect(pending.settled).rejects.toMatchObject({ name: "StoreError", code: "aborted" });
    expect(failing.count()).toBe(1);

    const busy = storeWith((_, __, signal) => stalled(signal), { concurrency: 1, getMsMax: 1_000 });
    const first = inFakeTime(() => busy.store.get("a"));
    const waiting = new AbortController();
    const second = busy.store.get("b", { signal: waiting.signal });
    waiting.abort();
    await expect(second).rejects.toMatchObject({ code: "aborted" });
    await expect(first.settled).rejects.toMatchObject({ code: "timeout" });
    expect(busy.count()).toBe(2);
  });

  it("never has more requests open than it may", async () => {
    let open = 0;
    let openMax = 0;
    const { store } = storeWith(
      async () => {
        openMax = Math.max(openMax, ++open);
        await new Promise((resolve) => setTimeout(resolve, 2));
        open--;
        return object("x");
      },
      { concurrency: 3 },
    );
    await Promise.all(Array.from({ length: 30 }, (_, i) => store.get(`k${i}`)));
    expect(openMax).toBe(3);
  });
});

describe("s3 store answers", () => {
  it("takes 412, 409 and AWS's 404 to a conditional put for a conflict, at the first attempt and a look at whose object is there", async () => {
    for (const [status, code] of [
      [412, "PreconditionFailed"],
      [409, "ConditionalRequestConflict"],
      [404, "NoSuchKey"],
    ] as const) {
      const { store, count } = storeWith(({ method }) =>
        method === "PUT"
          ? xmlError(status, code)
          : new Response(null, { status: status === 404 ? 404 : 200, headers: { etag: '"f"' } }),
      );
      expect(await store.put("a", Buffer.from("x"), { condition: { etag: '"e"' } })).toEqual({ outcome: "conflict" });
      expect(count()).toBe(2);
    }
  });

  it("knows its own put that something on the way delivered twice, whose second answer is a 412", async () => {
    let mark = "";
    const { store } = storeWith(({ method, headers }) => {
      if (method !== "PUT") return new Response(null, { headers: { etag: '"e2"', "x-amz-meta-quire-write": mark } });
      mark = headers.get("x-amz-meta-quire-write") ?? "";
      return xmlError(412, "PreconditionFailed");
    });
    expect(await store.put("a", Buffer.from("x"), { condition: "absent" })).toEqual({
      outcome: "stored",
      etag: '"e2"',
    });
  });

  it("does not take a 412 after a retry for a success unless the object carries its own mark", async () => {
    const marks: string[] = [];
    const answers =
      (own: boolean): Answer =>
      (request, count) => {
        marks.push(request.headers.get("x-amz-meta-quire-write") ?? "");
        if (count === 1) return new Response("", { status: 500 });
        if (request.method === "PUT") return xmlError(412, "PreconditionFailed");
        const mark = own ? (marks[0] as string) : "somebody else";
        return new Response(null, { headers: { etag: '"e2"', "x-amz-meta-quire-write": mark } });
      };
    const stored = await storeWith(answers(true)).store.put("a", Buffer.from("x"), { condition: "absent" });
    expect(stored).toEqual({ outcome: "stored", etag: '"e2"' });
    expect(marks[0]).not.toBe("");
    expect(marks[1]).toBe(marks[0]);
    marks.length = 0;
    const lost = await storeWith(answers(false)).store.put("a", Buffer.from("x"), { condition: "absent" });
    expect(lost).toEqual({ outcome: "conflict" });
  });

  it("takes a range from a server that ignores ranges, and none that is short or elsewhere", async () => {
    const range = { offset: 2, bytes: 3 };
    const whole = await storeWith(() => object("0123456789")).store.get("a", { range });
    expect(Buffer.from(whole?.bytes ?? []).toString()).toBe("234");
    expect(whole?.objectBytes).toBe(10);
    const partial = (bytes: string, contentRange: string): Response =>
      new Response(bytes, { status: 206, headers: { etag: '"e"', "content-range": contentRange } });
    for (const answer of [
      () => object("0123"),
      () => partial("23", "bytes 2-3/4"),
      () => partial("345", "bytes 3-5/10"),
      () => partial("234", "nonsense"),
      () => xmlError(416, "InvalidRange"),
    ]) {
      await expect(storeWith(answer).store.get("a", { range })).rejects.toMatchObject({ code: "corrupt" });
    }
  });

  it("reports objects that a bulk delete could not delete", async () => {
    const failed = (code: string): Response =>
      new Response(`<DeleteResult><Error><Key>a</Key><Code>${code}</Code></Error></DeleteResult>`);
    await expect(storeWith(() => failed("InternalError")).store.delete(["a"])).rejects.toMatchObject({
      code: "unavailable",
    });
    await expect(storeWith(() => failed("AccessDenied")).store.delete(["a"])).rejects.toMatchObject({ code: "denied" });
    const page = storeWith(() => new Response("<!DOCTYPE html><title>Sign in</title>"));
    await expect(page.store.delete(["a"])).rejects.toMatchObject({ code: "unavailable" });
  });

  it("reads a list with entities, and leaves out keys that are none of ours", async () => {
    const entry = (key: string): string =>
      `<Contents><Key>${key}</Key><Size>3</Size><LastModified>2026-01-02T03:04:05.678Z</LastModified></Contents>`;
    const xml = `<ListBucketResult>${entry("a")}${entry("b &amp; c")}<IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken></ListBucketResult>`;
    const { store } = storeWith((request) => {
      expect(new URL(request.url).searchParams.get("prefix")).toBe("p/");
      return new Response(xml);
    });
    expect(await store.list("p/")).toEqual({
      keys: [{ key: "a", bytes: 3, modifiedMs: Date.UTC(2026, 0, 2, 3, 4, 5, 678) }],
      cursor: "a&b",
    });
  });

  it("takes no list that is cut or unclear for the end of one: what it lacks would be taken for garbage", async () => {
    const entry = (fields: string): string => `<Contents><Key>a</Key>${fields}</Contents>`;
    const whole = entry("<Size>3</Size><LastModified>2026-01-02T03:04:05.678Z</LastModified>");
    const list = (inside: string): string => `<ListBucketResult>${inside}</ListBucketResult>`;
    const refused: Record<string, string> = {
      "an answer to the first version of the call": list(`${whole}<IsTruncated>true</IsTruncated><Marker>a</Marker>`),
      "an end that is missing": `<ListBucketResult><IsTruncated>false</IsTruncated>${whole}${whole.slice(0, 40)}`,
      "an entry without its size": list(entry("<LastModified>2026-01-02T03:04:05.678Z</LastModified>")),
      "an entry of no time": list(entry("<Size>3</Size><LastModified>long ago</LastModified>")),
    };
    for (const [what, xml] of Object.entries(refused)) {
      const { store } = storeWith(() => new Response(xml));
      await expect(store.list(""), what).rejects.toMatchObject({ name: "StoreError", code: "unavailable" });
    }
    expect((await storeWith(() => new Response(list(whole))).store.list("")).keys).toHaveLength(1);
  });

  it("takes no page of something on the way for a store's answer: not for an object, nor for a write that took place", async () => {
    const page = (status = 200) =>
      new Response("<!DOCTYPE html><title>Sign in</title>", {
        status,
        headers: { etag: '"e"', "content-type": "text/html; charset=utf-8" },
      });
    const { store } = storeWith(() => page());
    const put = (condition?: "absent") =>
      store.put("a", Buffer.from("x"), condition === undefined ? {} : { condition });
    const calls = [
      () => store.get("a"),
      () => store.get("a", { range: { offset: 0, bytes: 4 } }),
      () => put(),
      () => put("absent"),
      () => store.list(""),
      () => store.delete(["a"]),
    ];
    for (const call of calls) await expect(call()).rejects.toMatchObject({ name: "StoreError", code: "unavailable" });
    // An object that is absent is one thing, a gateway that does not know the way another.
    const astray = storeWith(() => page(404));
    await expect(astray.store.get("a")).rejects.toMatchObject({ code: "unavailable" });
    const passing = storeWith((_, count) => (count === 1 ? page() : object("x")));
    expect((await passing.store.get("a"))?.objectBytes).toBe(1);
  });
});
