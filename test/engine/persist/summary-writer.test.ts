import { expect, it } from "vitest";
import { rebuildSummary } from "../../../engine/kv/rebuild-summary.ts";
import type { StoredSegment } from "../../../engine/kv/stored-segment.ts";
import { writeSummaries } from "../../../engine/persist/summary-writer.ts";
import type { SummaryRef } from "../../../storage/manifest.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { decodeSegment } from "../../../storage/segment.ts";
import { decodeSummaryObject } from "../../../storage/summary-object.ts";
import { CommitWorld, GEOMETRY } from "./commit-world.ts";

/** A store that remembers every content a key ever had. */
class Remembering extends MemoryStore {
  readonly contents = new Map<string, Set<string>>();
  override async put(...args: Parameters<MemoryStore["put"]>) {
    const known = this.contents.get(args[0]) ?? new Set();
    this.contents.set(args[0], known.add(Buffer.from(args[1]).toString("base64")));
    return await super.put(...args);
  }
  get overwritten(): string[] {
    return [...this.contents].filter(([key, all]) => !key.includes("/session/") && all.size > 1).map(([key]) => key);
  }
}

/** Summary objects put of each kind, of which there are as many. */
async function puts(store: Remembering, run: () => Promise<void>): Promise<number> {
  const put = store.put.bind(store);
  const counts = { "/sum-min-max/": 0, "/sum-mean-deviation/": 0 };
  store.put = (...args) => {
    for (const kind of Object.keys(counts) as (keyof typeof counts)[]) if (args[0].includes(kind)) counts[kind] += 1;
    return put(...args);
  };
  await run();
  store.put = put;
  expect(counts["/sum-min-max/"]).toBe(counts["/sum-mean-deviation/"]);
  return counts["/sum-min-max/"];
}

/** Of one kind; the other's are the same runs. */
function runsOf(summaries: readonly SummaryRef[]) {
  const [one, other] = GEOMETRY.summaryKinds.map((kind) =>
    summaries.filter((ref) => ref.kind === kind).map(({ fromToken, tokenCount }) => ({ fromToken, tokenCount })),
  );
  expect(one).toEqual(other);
  expect(one!.length * 2).toBe(summaries.length);
  return one!;
}

it("writes one object for the segments of a turn, and none for those that have one", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  const first = await world.turn("a", 320);
  expect(await puts(store, () => world.push(first))).toBe(1);
  expect(runsOf((await world.readAll()).summaries)).toEqual([{ fromToken: 0, tokenCount: 320 }]);
  const second = await world.turn("a", 460, { known: first.segments });
  expect(await puts(store, () => world.push(second))).toBe(1);
  expect(runsOf((await world.readAll()).summaries)).toEqual([
    { fromToken: 0, tokenCount: 320 },
    { fromToken: 320, tokenCount: 128 },
  ]);
  expect(
    first.segments.every(({ slots }) => slots.size === 0),
    "memory of written summaries is given back",
  ).toBe(true);
});

it("forks that diverge inside an object write their own and leave each other's alone, turn after turn", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  const parent = await world.turn("aa", 256);
  await world.push(parent);
  // Shares the first 128 tokens; the segments it shares are the same objects in memory.
  const child = await world.turn("ab", 300, { sessionId: "child", known: parent.segments.slice(0, 2) });
  await world.push(child);
  await world.readAll("child");
  await world.readAll("s");
  let [parentSegments, childSegments]: StoredSegment[][] = [parent.segments, child.segments] as never;
  for (let turn = 1; turn <= 3; turn++) {
    const longerParent = await world.turn("aa", 256 + 64 * turn, { known: parentSegments! });
    const longerChild = await world.turn("ab", 300 + 64 * turn, { sessionId: "child", known: childSegments! });
    const written = await puts(store, async () => {
      await world.push(longerParent);
      await world.push(longerChild);
    });
    expect(written, "one object each").toBe(2);
    for (const id of ["child", "s"])
      expect((await world.readAll(id)).summaries.at(-1), "only what is new").toMatchObject({ tokenCount: 64 });
    [parentSegments, childSegments] = [longerParent.segments, longerChild.segments];
  }
  expect(store.overwritten).toEqual([]);
});

it("compacts a whole run of 4,096 tokens to one object, which goes on being used", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  let known: StoredSegment[] = [];
  for (let tokenCount = 512; tokenCount <= 4096 + 512; tokenCount += 512) {
    const turn = await world.turn("a", tokenCount, { known });
    await world.push(turn);
    known = turn.segments;
    const summaries = runsOf((await world.readAll()).summaries);
    if (tokenCount < 4096) expect(summaries).toHaveLength(tokenCount / 512);
    else expect(summaries[0]).toMatchObject({ fromToken: 0, tokenCount: 4096 });
    if (tokenCount > 4096) expect(summaries).toMatchObject([{}, { fromToken: 4096, tokenCount: 512 }]);
  }
  // One turn over the border makes two objects, and an engine that knows nothing but the manifest writes none again.
  const long = new CommitWorld(new Remembering());
  const turn = await long.turn("a", 4096 + 128);
  await long.push(turn);
  expect(runsOf((await long.readAll()).summaries).map(({ tokenCount }) => tokenCount)).toEqual([4096, 128]);
  expect(store.overwritten).toEqual([]);
});

it("makes summaries whose object is gone again from their segment", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  const first = await world.turn("a", 256);
  await world.push(first);
  const [lost] = (await world.readAll()).summaries;
  await store.delete([lost!.objectKey]);
  // Others of the same object, which is not used any more: segment 0 needs one of its own.
  const again = await world.turn("a", 256);
  await world.push(await world.turn("a", 300, { known: [...first.segments.slice(0, 1), ...again.segments.slice(1)] }));
  expect(world.logged).toEqual(["persist.summary-lost"]);
  const { summaries, tokenCount } = await world.readAll();
  expect(tokenCount).toBe(300);
  const ref = summaries.find(({ fromToken, kind }) => fromToken === 0 && kind === lost!.kind)!;
  const object = decodeSummaryObject((await store.get(ref.objectKey))!.bytes, { sha256: ref.sha256 });
  const { block } = decodeSegment((await store.get(first.segments[0]!.objectKey))!.bytes);
  const layers = [0, 1].map((layer) => block(layer, 0).slice());
  expect(object.segments[0]!.slots).toEqual(rebuildSummary(GEOMETRY, "min-max", layers));
});

it("asks for a segment to be put again whose summaries and bytes are both gone", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  const first = await world.turn("a", 256);
  await world.push(first);
  await store.delete([(await world.readAll()).summaries[0]!.objectKey]);
  const again = await world.turn("a", 256);
  await store.delete([first.segments[0]!.objectKey]);
  await world.push(await world.turn("a", 300, { known: [...first.segments.slice(0, 1), ...again.segments.slice(1)] }));
  expect(world.logged).toEqual(["persist.summary-lost", "persist.commit-failed"]);
  expect(first.segments[0]!.damaged).toBe(true);
  const whole = await world.turn("a", 300);
  await world.push(whole);
  expect((await world.readAll()).tokenCount).toBe(300);
});

it("a compaction that fails leaves the objects as they are", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  const half = await world.turn("a", 2048);
  await world.push(half);
  const whole = await world.turn("a", 4096, { known: half.segments });
  const put = store.put.bind(store);
  store.put = async (key, ...rest) => {
    if (key.endsWith("-4096-layers")) throw new Error("no room");
    return await put(key, ...rest);
  };
  const refs = await writeSummaries(world.options, world.keys, whole.segments);
  expect(runsOf(refs).map(({ tokenCount }) => tokenCount)).toEqual([2048, 2048]);
  expect(world.logged).toEqual(["persist.compaction-failed", "persist.compaction-failed"]);
  store.put = put;
  const [compacted] = await writeSummaries(world.options, world.keys, whole.segments, refs);
  const object = decodeSummaryObject((await store.get(compacted!.objectKey))!.bytes, {
    ...compacted!,
    geometry: GEOMETRY,
  });
  expect(object.segments.map(({ chain }) => chain)).toEqual(whole.segments.map(({ chain }) => chain));
});

it("a kind that cannot be put leaves the other's object in use for the next commit", async () => {
  const store = new Remembering();
  const world = new CommitWorld(store);
  const turn = await world.turn("a", 256);
  const put = store.put.bind(store);
  store.put = async (key, ...rest) => {
    if (key.includes("/sum-mean-deviation/")) throw new Error("no room");
    return await put(key, ...rest);
  };
  await world.push(turn);
  expect(world.logged).toEqual(["persist.commit-failed"]);
  expect(turn.segments.map(({ slots }) => [...slots.keys()])).toEqual(Array(4).fill(["mean-deviation"]));
  let minMaxPuts = 0;
  store.put = async (key, ...rest) => {
    if (key.includes("/sum-min-max/")) minMaxPuts += 1;
    return await put(key, ...rest);
  };
  await world.push(await world.turn("a", 300, { known: turn.segments }));
  expect(runsOf((await world.readAll()).summaries)).toEqual([{ fromToken: 0, tokenCount: 256 }]);
  expect(minMaxPuts).toBe(0);
});
