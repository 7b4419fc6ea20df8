/** What a long load has to meet: memory that does not grow, engines that hold nothing at rest, sessions that forget nothing. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it } from "vitest";
import { atLeast, atMost, barLines } from "../../bench/load/bars.ts";
import { liveLines, openLiveView } from "../../bench/load/live.ts";
import { Measures } from "../../bench/load/measures.ts";
import { MemoryBook, residentBytes } from "../../bench/load/memory.ts";
import { memoryParts, partsOf } from "../../bench/load/memory-parts.ts";
import { loadPage } from "../../bench/load/page.ts";
import { isFine, type LoadResult, leakedCount, loadResult, reportLines } from "../../bench/load/report.ts";
import { plainValues, restOf } from "../../bench/load/rest.ts";
import { soakBars } from "../../bench/load/soak.ts";
import type { LoadSample } from "../../bench/load/watch.ts";

const MIB = 2 ** 20;

/** One sample a second of `[fromS, toS)`. */
function remember(book: MemoryBook, name: string, pid: number, life: [number, number], mib: (atS: number) => number) {
  for (let atS = life[0]; atS < life[1]; atS++) book.add({ name, pid }, { atS, bytes: mib(atS) * MIB });
}

describe("memory of a run", () => {
  it("is compared between the first and the last third behind the warm-up, for what lived that long", () => {
    const book = new MemoryBook();
    // Fills for a fifth of the run, then saws about 100 MiB.
    remember(book, "steady", 1, [0, 100], (atS) => (atS < 20 ? atS : 100 + (atS % 3)));
    // A heap that is collected once in 25 s: the thirds lie differently in it.
    remember(book, "collected", 5, [0, 100], (atS) => 100 + 3 * (atS % 25));
    // 1 MiB in 10 s behind the warm-up: lowest at 20 and 74 s.
    remember(book, "leaking", 2, [0, 100], (atS) => 100 + Math.max(0, atS - 20) / 10);
    remember(book, "killed", 3, [0, 60], () => 100);
    remember(book, "restarted", 4, [60, 100], () => 100);
    const growth = Object.fromEntries(book.trends(100).map((trend) => [trend.name, trend.growth]));
    expect(growth.steady).toBe(0);
    expect(growth.collected).toBe(0);
    expect(growth.leaking).toBeCloseTo(0.054, 3);
    expect(growth.killed).toBeUndefined();
    expect(growth.restarted).toBeUndefined();
    expect(book.trends(100).find(({ name }) => name === "killed")).toMatchObject({ fromS: 0, toS: 59 });
  });

  it("is judged by what is left behind collections of garbage, where there were any", () => {
    const book = new MemoryBook();
    // Grows by a third between two collections, and keeps nothing.
    remember(book, "garbage", 1, [0, 100], (atS) => 100 + atS / 3);
    remember(book, "leak", 2, [0, 100], (atS) => 150 + atS / 3);
    for (let atS = 0; atS < 100; atS += 4) {
      book.addCollected({ name: "garbage", pid: 1 }, { atS, bytes: 100 * MIB, heapBytes: 10 * MIB });
      // 100 at 20 s, 140.5 at 74 s and 76 s.
      book.addCollected({ name: "leak", pid: 2 }, { atS, bytes: (85 + 0.75 * atS) * MIB, heapBytes: atS * MIB });
    }
    const [garbage, leak] = book.trends(100);
    expect(garbage).toMatchObject({ isCollected: true, growth: 0, peakBytes: 133 * MIB });
    expect(leak).toMatchObject({ isCollected: true, firstThirdBytes: 100 * MIB, lastThirdBytes: 142 * MIB });
    expect(leak).toMatchObject({ growth: 0.42, firstThirdHeapBytes: 20 * MIB, lastThirdHeapBytes: 76 * MIB });
    const result = resultWith(({ totals }) => Object.assign(totals, { memory: book.trends(100) }));
    expect(result.bars.filter(({ isMet }) => !isMet).map(({ name }) => name)).toEqual([
      "growth of memory, leak",
      "growth of leak's heap in use, MiB",
    ]);
    expect(reportLines(result).join("\n")).toContain(
      "memory of leak, behind collections of garbage, lowest of the first and the last third behind the warm-up: 100.0 to 142.0 MiB (42.0 %); " +
        "heap in use 20.0 to 76.0 MiB; highest seen at any moment 183.0 MiB",
    );
  });

  it.skipIf(process.platform !== "linux")("is asked of the system", async () => {
    const before = await residentBytes(process.pid);
    expect(before! / process.memoryUsage.rss()).toBeCloseTo(1, 0);
    const block = Buffer.alloc(64 * MIB, 1);
    expect((await residentBytes(process.pid))! - before!).toBeGreaterThan(0.8 * block.length);
    expect(await residentBytes(2 ** 30)).toBeUndefined();
  });
});

const metrics = (values: Record<string, number>): string =>
  [
    "# TYPE quire_step_seconds histogram",
    'quire_step_seconds_bucket{le="0.1"} 12',
    ...Object.entries({
      ...{ quire_running_sequences: 0, quire_queued_requests: 0, quire_store_pending_bytes: 0 },
      ...{ quire_pool_blocks: 100, quire_pool_free_blocks: 100, quire_pool_held_blocks: 0, quire_pool_held_slots: 0 },
      ...values,
    }).map(([name, value]) => `${name} ${value}`),
  ].join("\n");

describe("memory of an engine by parts", () => {
  it("is what its own metrics tell, and nothing of one that does not answer", async () => {
    const told = { process_resident_memory_bytes: 5e8, nodejs_heap_size_used_bytes: 3e7, quire_store_pending_bytes: 7 };
    expect(partsOf("engine 1", 20, plainValues(metrics(told)))).toEqual({
      ...{ name: "engine 1", atS: 20 },
      ...{ residentBytes: 5e8, heapBytes: 3e7, pendingBytes: 7 },
    });
    const server = createServer((_, response) => response.end(metrics(told)));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const engines = [
      { name: "engine 1", url: "http://127.0.0.1:1" },
      { name: "engine 2", url },
    ];
    expect(await memoryParts(engines, 30)).toMatchObject([{ name: "engine 2", atS: 30, pendingBytes: 7 }]);
    server.close();
  });
});

describe("an engine at rest", () => {
  it("holds nothing, or has leaked it", () => {
    const rest = (values: Record<string, number>) => restOf("engine 1", plainValues(metrics(values)));
    expect(rest({})).toEqual({ name: "engine 1", busy: 0, leakedBlocks: 0, leakedSlots: 0 });
    expect(rest({ quire_pool_free_blocks: 97, quire_pool_held_blocks: 12, quire_pool_held_slots: 1 })).toMatchObject({
      leakedBlocks: 15,
      leakedSlots: 1,
    });
    expect(rest({ quire_running_sequences: 2, quire_store_pending_bytes: 5 }).busy).toBe(7);
    expect(() => restOf("engine 1", plainValues("quire_pool_blocks 1"))).toThrow("does not tell");
  });
});

function resultWith(change: (result: LoadResult) => void = () => {}): LoadResult {
  const measures = new Measures();
  const usage = { promptTokens: 9, completionTokens: 2, cachedTokens: 0, source: { device: 0, host: 0, store: 0 } };
  for (const tenant of [0, 1]) {
    const times = { firstTokenMs: 10, betweenDeltasMs: [5], perTokenMs: 5, turnMs: 15 };
    measures.complete({ className: "short", tenant, isFirst: true }, { usage, isRight: true, ...times });
  }
  const book = new MemoryBook();
  remember(book, "engine 1", 1, [0, 100], () => 200);
  const result = loadResult({
    ...{ measured: "a stack", settings: {}, measures, times: { windowMs: 100_000, elapsedMs: 100_000 } },
    ...{ ratePerS: 1, interrupted: false, memory: book.trends(100) },
    verification: { sessionsCompared: 2, turnsCompared: 2, failed: 0, wrong: [] },
    enginesAtRest: [{ name: "engine 1", busy: 0, leakedBlocks: 0, leakedSlots: 0 }],
  });
  change(result);
  result.bars = soakBars(result);
  return result;
}

describe("the bars of a soak", () => {
  const missed = (change?: (result: LoadResult) => void) =>
    resultWith(change)
      .bars.filter(({ isMet }) => !isMet)
      .map(({ name }) => name);

  it("are met by a run in which nothing went wrong, and missed by every other", () => {
    expect(missed()).toEqual([]);
    const wrong = { session: 0, turn: 0, loaded: "a", alone: "b" };
    expect(missed(({ totals }) => totals.verification!.wrong.push(wrong))).toEqual(["wrong texts"]);
    expect(missed(({ totals }) => Object.assign(totals.verification!, { failed: 1 }))).toEqual(["wrong texts"]);
    expect(missed(({ totals }) => Object.assign(totals, { verification: undefined }))).toEqual(["wrong texts"]);
    expect(missed(({ totals }) => Object.assign(totals, { lostTurns: 1 }))).toEqual(["lost turns"]);
    expect(missed(({ totals }) => Object.assign(totals, { refusals: 1 }))).toEqual(["lost turns"]);
    const leak = { name: "engine 2", busy: 0, leakedBlocks: 0, leakedSlots: 1 };
    expect(missed(({ totals }) => totals.enginesAtRest.push(leak))).toEqual(["leaked blocks and slots at rest"]);
    expect(missed(({ totals }) => Object.assign(totals.memory[0]!, { growth: 0.06 }))).toEqual([
      "growth of memory, engine 1",
    ]);
    expect(missed(({ totals }) => Object.assign(totals, { memory: [] }))).toEqual(["growth of memory"]);
    // A leak that resident memory does not show: 2 MiB of JavaScript's heap are allowed.
    const heap = (name: string, mebibytes: number) => {
      const heapBytes = { firstThirdHeapBytes: 8 * MIB, lastThirdHeapBytes: (8 + mebibytes) * MIB };
      return missed(({ totals }) => Object.assign(totals.memory[0]!, { name, ...heapBytes }));
    };
    expect(heap("edge", 2)).toEqual([]);
    expect(heap("edge", 2.1)).toEqual(["growth of the edge's heap in use, MiB"]);
    expect(heap("engine 1", 2)).toEqual([]);
    expect(heap("engine 1", 2.1)).toEqual(["growth of engine 1's heap in use, MiB"]);
    // The generator is shown only.
    expect(heap("generator", 9)).toEqual(["growth of memory"]);
  });

  it("are not those of memory and leaks where the target is not the run's own, and the report says so", () => {
    const foreign = resultWith((result) => {
      Object.assign(result.settings, { url: "http://edge" });
      Object.assign(result.totals, { memory: [], enginesAtRest: [] });
    });
    expect(foreign.bars.map(({ name, isMet }) => [name, isMet])).toEqual([
      ["wrong texts", true],
      ["lost turns", true],
    ]);
    expect(reportLines(foreign).join("\n")).toContain("memory, and what engines hold at rest: not judged");
  });

  it("count no leak of an engine that was busy when its user stopped the run", () => {
    const busy = { name: "engine 2", busy: 1, leakedBlocks: 36, leakedSlots: 1 };
    const stopped = resultWith(({ totals }) => {
      Object.assign(totals, { interrupted: true });
      totals.enginesAtRest.push(busy);
    });
    expect(leakedCount(stopped.totals)).toBe(0);
    expect(isFine(stopped, false)).toBe(true);
    const lines = reportLines(stopped).join("\n");
    expect(lines).toContain("at rest: 0 leaked blocks and slots in 1 engines");
    expect(lines).toContain("at rest: not judged in 1 engines, which were still busy when the run was stopped");
    const idle = resultWith(({ totals }) => {
      Object.assign(totals, { interrupted: true });
      totals.enginesAtRest.push({ ...busy, busy: 0 });
    });
    expect(leakedCount(idle.totals)).toBe(37);
    // Nobody stopped it, and it never came to rest.
    expect(leakedCount(resultWith(({ totals }) => totals.enginesAtRest.push(busy)).totals)).toBe(37);
  });

  it("stand in the report and on the page, with memory, leaks and fairness", () => {
    const result = resultWith();
    const lines = reportLines(result);
    expect(lines.join("\n")).toContain("at rest: 0 leaked blocks and slots in 1 engines");
    expect(lines.join("\n")).toContain("met     lost turns: 0 (bar <= 0)");
    const samples: LoadSample[] = [0, 1, 2].map((atS) => ({
      ...{ atS, sessionsActive: 1, turnsCompleted: atS, turnsFailed: 0, firstTokenMsMax: 10 },
      memoryBytes: { "engine 1": 200 * MIB, ...(atS === 1 ? {} : { "engine 2": 100 * MIB }) },
    }));
    const page = loadPage(result, lines, samples);
    expect(page).toContain("0 turns lost; 0 refused; 0 blocks and slots leaked; fairness between tenants 1");
    expect(page).toContain('<td>lost turns</td><td>0</td><td>at most 0</td><td class="met">met</td>');
    expect(page.match(/<svg/g)).toHaveLength(4);
    expect(page).toContain(">engine 2</text>");
  });
});

describe("a bar", () => {
  it("is missed by a figure on its other side, and by none", () => {
    const bars = [atMost("a", 1, 1), atMost("b", 1.01, 1), atLeast("c", 0.9, 0.9), atLeast("d", undefined, 0.9)];
    expect(bars.map(({ isMet }) => isMet)).toEqual([true, false, true, false]);
    expect(barLines(bars)[3]).toBe("MISSED  d: no figure (bar >= 0.9)");
  });
});

describe("the view at a terminal", () => {
  const sample = (atS: number): LoadSample => ({
    ...{ atS, sessionsActive: 3, turnsCompleted: 2 * atS, turnsFailed: 0, firstTokenMsMax: 10 },
    memoryBytes: { edge: 100 * MIB },
  });

  it("says how far it is, and draws over itself what notes leave alone", () => {
    let screen = "";
    const write = (text: string): void => {
      screen += text;
    };
    const view = openLiveView({ write, columns: () => 60 }, 10);
    const samples = [0, 1, 2, 3, 4, 5].map(sample);
    const lines = liveLines(samples, new Measures(), 10);
    expect(lines[0]).toBe(`[${"#".repeat(15)}${".".repeat(15)}] 5 of 10 s, 3 sessions in progress`);
    expect(lines.at(-1)).toBe("memory, MiB  edge 100");
    view.show(samples, new Measures());
    expect(screen).not.toContain("\u001b[5A");
    view.show(samples, new Measures());
    expect(screen).toContain("\u001b[5A");
    screen = "";
    view.note("killing an engine (1)");
    expect(screen.startsWith("\u001b[5A\u001b[0Jkilling an engine (1)\n")).toBe(true);
    expect(screen).toContain("5 of 10 s");
    for (const line of screen.replaceAll("\u001b[2K", "").split("\n")) expect(line.length).toBeLessThan(80);
  });
});
