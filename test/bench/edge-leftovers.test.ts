/** What the edge keeps of turns that are over, counted object by object in the heap of a real workerd: nothing, also of those that were broken off. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { type EdgeStack, openEdgeStack } from "../../bench/edge/edge-stack.ts";
import { inspect } from "../../bench/load/inspector.ts";
import { Quire } from "../../sdk/index.ts";

/** What a turn is made of. */
const classes = ["AnswerBatches", "HeldSession", "TurnCourse", "TurnListener", "TurnRunner", "TurnStream"] as const;
const TURNS = 12;
const REST_MS_MAX = 30_000;

/** Live objects of each class, behind a collection of garbage. */
async function counts(url: string): Promise<Record<string, number>> {
  let text = "";
  const keep = (method: string, params: unknown) => {
    if (method === "HeapProfiler.addHeapSnapshotChunk") text += (params as { chunk: string }).chunk;
  };
  await inspect(
    url,
    async (call) => {
      await call("HeapProfiler.enable");
      await call("HeapProfiler.collectGarbage");
      await call("HeapProfiler.takeHeapSnapshot", { reportProgress: false });
    },
    keep,
  );
  const { snapshot, nodes, strings } = JSON.parse(text) as {
    snapshot: { meta: { node_fields: string[]; node_types: [string[]] } };
    nodes: number[];
    strings: string[];
  };
  const { node_fields: fields, node_types: types } = snapshot.meta;
  const objectType = types[0].indexOf("object");
  const found: Record<string, number> = Object.fromEntries(classes.map((name) => [name, 0]));
  for (let at = 0; at < nodes.length; at += fields.length) {
    const name = strings[nodes[at + fields.indexOf("name")] as number] ?? "";
    if (nodes[at + fields.indexOf("type")] === objectType && name in found) found[name] = (found[name] ?? 0) + 1;
  }
  return found;
}

/** A turn whose client leaves behind its first word; the engine goes on when it is asked to end, and is cut off. */
async function leave(quire: Quire, model: string, options: { resumable: boolean }): Promise<void> {
  const left = new AbortController();
  const reply = quire.session({ model, maxTokens: 1_000 }).send("a", { ...options, signal: left.signal });
  await expect(
    (async () => {
      for await (const _ of reply) left.abort();
    })(),
  ).rejects.toThrow();
}

/** The same with an answer that is one object. */
async function leavePlain({ edgeUrl, apiKey, model }: EdgeStack): Promise<void> {
  const left = AbortSignal.timeout(600);
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "a" }] });
  const headers = { authorization: `Bearer ${apiKey}`, "content-type": "application/json" };
  const asked = fetch(`${edgeUrl}/v1/chat/completions`, { method: "POST", headers, body, signal: left });
  await expect(asked.then((response) => response.text())).rejects.toThrow();
}

/** Counts until nothing is left, or the time is over. */
async function untilNothing({ inspectorUrl = "" }: EdgeStack): Promise<Record<string, number>> {
  for (const endMs = performance.now() + REST_MS_MAX; ; ) {
    const left = await counts(inspectorUrl);
    if (performance.now() > endMs || Object.values(left).every((count) => count === 0)) return left;
    await sleep(500);
  }
}

it("nothing, of turns that were left and whose engines had to be cut off", { timeout: 120_000 }, async () => {
  const stack = await openEdgeStack({ tokenCount: 1_000, gapMs: 20, firstMs: 0, isInspected: true });
  try {
    const quire = new Quire({ baseUrl: stack.edgeUrl, apiKey: stack.apiKey, maxRetries: 0 });
    const turns = Array.from({ length: TURNS }, (_, index) =>
      index % 3 === 2 ? leavePlain(stack) : leave(quire, stack.model, { resumable: index % 3 === 1 }),
    );
    // The count sees what is there, or this would show nothing.
    await sleep(200);
    expect((await counts(stack.inspectorUrl ?? "")).TurnRunner).toBeGreaterThan(0);
    await Promise.all(turns);
    expect(await untilNothing(stack)).toEqual(Object.fromEntries(classes.map((name) => [name, 0])));
  } finally {
    await stack.close();
  }
});
