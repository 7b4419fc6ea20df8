import { EventEmitter } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { LoadResult } from "../../bench/load/report.ts";
import { benches } from "../../bench/registry.ts";
import { ENGINE_NODE_FLAGS } from "../../cli/engine-start.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { type Behaviour, type FakeEdge, type FakeEdgeOptions, openFakeEdge, replyTokens } from "./fake-edge.ts";
import { runBench } from "./run-bench.ts";

async function withFakeEdge<T>(options: FakeEdgeOptions, use: (edge: FakeEdge) => Promise<T>): Promise<T> {
  const edge = await openFakeEdge(options);
  try {
    return await use(edge);
  } finally {
    await edge.close();
  }
}

/** Runs the load test against `edge` and reads its JSON. */
async function runLoad(edge: FakeEdge, args: readonly string[], signals?: EventEmitter) {
  return withTempFolder(async (folder) => {
    const path = join(folder, "load.json");
    const target = [`--url=${edge.url}`, `--key=${edge.key}`, "--warmup=0", `--json=${path}`];
    const run = await runBench(["load", ...target, ...args], signals ? { signals } : {});
    const json = JSON.parse(await readFile(path, "utf8")) as LoadResult & Record<string, unknown>;
    return { ...run, json };
  });
}

describe("the bench command", () => {
  it("runs on Node as an engine does, since engines run in it", async () => {
    const { scripts } = JSON.parse(await readFile(new URL("../../package.json", import.meta.url), "utf8"));
    expect(scripts.bench).toBe(`exec node ${ENGINE_NODE_FLAGS.join(" ")} bench/main.ts`);
  });

  it("explains itself and its benchmarks", async () => {
    const overview = await runBench([]);
    expect(overview).toMatchObject({ code: 0, err: "" });
    expect(overview.out).toMatch(/npm run bench -- NAME[\s\S]*\n {2}load /);
    expect((await runBench(["--help"])).out).toBe(overview.out);
    for (const [name, { summary }] of Object.entries(benches)) {
      expect(overview.out.replace(/\s+/g, " ")).toContain(` ${name} ${summary} `);
    }
    const load = await runBench(["load", "--help"]);
    expect(load).toMatchObject({ code: 0, err: "" });
    expect(load.out.replace(/\s+/g, " ")).toContain(
      "--rate NUMBER sessions that arrive per second (Poisson) (default 1)",
    );
    expect(load.out).toMatch(/--json FILE/);
    expect(load.out).toMatch(/--allow-429 +refusals/);
  });

  it("explains every benchmark within 80 columns", async () => {
    for (const args of [[], ...Object.keys(benches).map((name) => [name, "--help"])]) {
      const { out } = await runBench(args);
      expect(out.split("\n").filter((line) => line.length > 80)).toEqual([]);
      // One table of flags behind the prose, which nothing but its second column breaks.
      const [table = ""] = out.slice(out.search(/^ {2}--/m)).split(/\n(?=\n|$)/);
      if (args.length > 0) expect(table.split("\n").filter((line) => !line.startsWith("  "))).toEqual([]);
    }
  });

  it.each(["resume", "interference", "speculation", "batching", "peers", "tight-pool"])(
    "%s runs on the CPU with int8 weights, and takes no flag that says otherwise",
    async (name) => {
      for (const flag of ["--device=webgpu", "--weights=int4"]) {
        const [, unknown] = /^(--\w+)/.exec(flag) ?? [];
        expect(await runBench([name, flag])).toEqual({
          code: 1,
          out: "",
          err: `bench: unknown flag ${unknown}; --help lists them\n`,
        });
      }
    },
  );

  it.each([
    [["decode", "--model=/nowhere"], "/nowhere: is not there"],
    [["make-shape", "--shape=tiny", "--out=/dev/null/x"], "/dev/null/x cannot be written (ENOTDIR)"],
    [
      ["tight-pool", "--shape=tiny", "--threads=1", "--context=512", "--percent=20", "--budget=128"],
      "a pool of 0.2 of the context: The request may grow to 640 tokens, of which a step may need 10 blocks of a layer on the device; the KV pool holds 4.",
    ],
  ])("refuses %j in one line once it has tried", async (args, message) => {
    const { code, err } = await runBench(args);
    expect(code).toBe(1);
    expect(err.trimEnd().split("\n").at(-1)).toBe(`bench: ${message}`);
  });

  it.each([
    [["sing"], `unknown benchmark "sing"; there is: ${Object.keys(benches).join(", ")}`],
    [["--rate", "1"], "unknown flag --rate; the benchmark's name comes first"],
    [["load", "--rat", "1"], "unknown flag --rat (did you mean --rate?); --help lists them"],
    [["load", "now"], 'unexpected argument "now"'],
    [["load", "--rate", "0"], '--rate: must be a number from 0.001 to 1000, not "0"'],
    [["load", "--duration=1e3"], '--duration: must be a number from 1 to 3600, not "1e3"'],
    [["load", "--mix", "1,2"], '--mix: must be three weights such as 70,25,5, not "1,2"'],
    [["load", "--mix", "0,0,0"], '--mix: must be three weights such as 70,25,5, not "0,0,0"'],
    [["load", "--budget", "100"], '--budget: must be a multiple of 16 (whole pages) from 128 to 1048576, not "100"'],
    [["load", "--url", "ftp://x"], '--url: must be an http or https address, not "ftp://x"'],
    ...["resume", "resume-answers", "tight-pool", "interference"].map((name): [string[], string] => {
      return [[name, "--budget=130"], '--budget: must be a multiple of 16 and at least 128, not "130"'];
    }),
    [["load", "--json", "/nowhere/at/all.json"], "--json: /nowhere/at/all.json cannot be written (ENOENT)"],
  ])("refuses %j with one clear line", async (args, message) => {
    expect(await runBench(args)).toEqual({ code: 1, out: "", err: `bench: ${message}\n` });
  });

  it.each([
    [["--rate=1000", "--duration=3600"], "--rate and --duration make 3600000 sessions, at most 100000"],
    [["--url=http://127.0.0.1:1"], "--url needs the edge's API key: --key or QUIRE_API_KEY"],
    [["--url=http://127.0.0.1:1", "--key=k"], /^the edge at http:\/\/127.0.0.1:1 does not list its models: /],
  ])("refuses %j together", async (args, message) => {
    const run = await runBench(["load", "--retries=0", ...args]);
    expect(run.code).toBe(1);
    expect(run.err.replace(/^bench: |\n$/g, "")).toMatch(message);
  });
});

/** What sums of figures that are rounded to a microsecond may lack. */
const roundedMs = 0.01;

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

describe("a load test of a server with known delays", () => {
  it("reports them, in a table and as JSON, and leaves no session behind", async () => {
    await withFakeEdge({ firstTokenMs: 60, betweenMs: 25 }, async (edge) => {
      const flags = ["--rate=12", "--duration=3", "--think=0.1", "--turns=3", "--policy=quest", "--budget=512"];
      const { code, out, json } = await runLoad(edge, flags);
      expect(out).toMatch(/^machine: .* cores, .* Node 2\d/);
      expect(out).toMatch(/\nlatency, ms +turns +first token p50 +p90 +p95 +p99 +between p50/);
      expect(out).toMatch(/\nerrors: none\n/);
      expect(code).toBe(0);
      expect(json).toMatchObject({ bench: "load", ok: true, machine: { coreCount: expect.any(Number) } });
      expect(json.settings).toMatchObject({ rate: 12, seed: 1, policy: "quest" });
      expect(JSON.stringify(json)).not.toContain(edge.key);
      const { totals, classes, turns } = json;
      expect(totals.turns).toEqual({ completed: edge.bodies.length, failed: 0, interrupted: 0 });
      expect(totals.turns.completed).toBeGreaterThan(20);
      // However late a busy machine makes everything: no client sees a token before the server, on one clock, has sent it, nor its turn end before its last.
      const sent = (what: (delays: FakeEdge["delays"][number]) => number) => mean(edge.delays.map(what));
      const { firstTokenMs, betweenDeltasMs, perTokenMs, turnMs } = totals;
      const lastTokenMs = firstTokenMs.mean! + (replyTokens - 1) * betweenDeltasMs.mean!;
      expect(edge.delays).toHaveLength(totals.turns.completed);
      expect(firstTokenMs.mean).toBeGreaterThanOrEqual(sent(({ firstMs }) => firstMs) - roundedMs);
      expect(lastTokenMs).toBeGreaterThanOrEqual(sent(({ lastMs }) => lastMs) - roundedMs);
      expect(turnMs.mean).toBeGreaterThanOrEqual(lastTokenMs - roundedMs);
      expect(perTokenMs.mean).toBeCloseTo(betweenDeltasMs.mean!, 1);
      expect(totals.tokens.completion).toBe(replyTokens * totals.turns.completed);
      expect(totals.answers).toEqual({ right: totals.turns.completed, wrong: 0 });
      expect(classes.map(({ name }) => name)).toEqual(["short", "medium", "long"]);
      expect(classes.reduce((sum, group) => sum + group.turns.completed, 0)).toBe(totals.turns.completed);
      // A first turn has nothing to reuse, a later one all of the turns before.
      expect(turns.map(({ cachedShare = 0 }) => cachedShare > 0)).toEqual([false, true]);
      expect(totals.cachedShareBySource?.device).toBe(totals.cachedShare);
      expect(edge.deletedSessions).toHaveLength(totals.sessions.started);
      expect(edge.bodies[0]).toMatchObject({
        model: "fake-1",
        max_tokens: 32,
        temperature: 0,
        quire: { selection: { policy: "quest", budget_tokens: 512 } },
      });
    });
  });

  it("notices a session that has forgotten a turn", async () => {
    const behaviour = (): Behaviour => "forget-turn";
    await withFakeEdge({ firstTokenMs: 1, betweenMs: 1, behaviour }, async (edge) => {
      const { code, json } = await runLoad(edge, ["--rate=20", "--duration=1", "--turns=3", "--think=0"]);
      expect(code).toBe(1);
      const later = json.totals.turns.completed + json.totals.turns.failed - json.totals.sessions.started;
      expect(later).toBeGreaterThan(5);
      // But for turns that bring more text than was ever said.
      expect(Object.keys(json.totals.errors)).toEqual(["lost_turn"]);
      expect(json.totals.lostTurns).toBeGreaterThan(0.7 * later);
      expect(json.totals.lostTurns).toBe(json.totals.turns.failed);
    });
  });

  it("counts every kind of failure under its own code and ends with exit code 1", async () => {
    const kinds: Behaviour[] = [
      "answer",
      "refuse-429",
      "fail-500",
      "error-in-stream",
      "no-terminal-event",
      "no-usage",
      "bad-usage",
      "drop",
    ];
    const behaviour = (index: number): Behaviour => kinds[index % kinds.length] ?? "answer";
    await withFakeEdge({ firstTokenMs: 5, betweenMs: 1, behaviour }, async (edge) => {
      const { code, out, json } = await runLoad(edge, ["--rate=40", "--duration=1", "--turns=1", "--allow-429"]);
      expect(code).toBe(1);
      const sent = edge.bodies.length;
      expect(sent).toBeGreaterThan(16);
      const countOf = (...names: Behaviour[]) =>
        edge.bodies.filter((_, index) => names.includes(behaviour(index))).length;
      expect(json.totals.errors).toEqual({
        queue_full: countOf("refuse-429"),
        internal: countOf("fail-500"),
        engine_failed: countOf("error-in-stream"),
        bad_stream: countOf("no-terminal-event", "no-usage"),
        bad_usage: countOf("bad-usage"),
        connection: countOf("drop"),
      });
      expect(json.totals.turns.completed).toBe(countOf("answer"));
      expect(json.totals.refusals).toBe(countOf("refuse-429"));
      expect(out).toMatch(/\nerrors:\n {2}\d+ bad_stream: /);
    });
  });

  it("forgives refusals where they are allowed, and only there", async () => {
    const behaviour = (index: number): Behaviour => (index % 2 === 0 ? "answer" : "refuse-429");
    await withFakeEdge({ firstTokenMs: 1, betweenMs: 0, behaviour }, async (edge) => {
      const flags = ["--rate=20", "--duration=1", "--turns=1", "--seed=4"];
      expect((await runLoad(edge, [...flags, "--allow-429"])).code).toBe(0);
      expect((await runLoad(edge, flags)).code).toBe(1);
    });
  });

  it("stays within the bound on sessions and says what it did not send", async () => {
    await withFakeEdge({ firstTokenMs: 300, betweenMs: 10 }, async (edge) => {
      const { code, out, json } = await runLoad(edge, [
        "--rate=40",
        "--duration=1",
        "--turns=1",
        "--concurrency-max=3",
      ]);
      expect(code).toBe(0);
      const { offered, notSent, started } = json.totals.sessions;
      expect(edge.active.max).toBeLessThanOrEqual(3);
      expect(notSent).toBeGreaterThan(5);
      expect(offered).toBe(notSent + started);
      expect(out).toContain(`${notSent} not sent (bound on concurrency)`);
    });
  });

  it("stops at Ctrl-C and reports what was measured until then", async () => {
    await withFakeEdge({ firstTokenMs: 20, betweenMs: 5 }, async (edge) => {
      const signals = new EventEmitter();
      const poll = setInterval(() => {
        if (edge.bodies.length - edge.active.now >= 5) signals.emit("SIGINT");
      }, 20);
      const { code, out, err, json } = await runLoad(edge, ["--rate=20", "--duration=600"], signals);
      clearInterval(poll);
      expect(code).toBe(0);
      expect(err).toContain("stopping early");
      expect(out).toContain("stopped early: what follows was measured until then");
      expect(json.totals.interrupted).toBe(true);
      expect(json.totals.windowS).toBeLessThan(30);
      expect(json.totals.turns.completed).toBeGreaterThan(0);
      expect(edge.deletedSessions).toHaveLength(json.totals.sessions.started);
    });
  });

  it("warms up first, outside the figures, and does not measure a target that fails already then", async () => {
    await withFakeEdge({ firstTokenMs: 1, betweenMs: 0 }, async (edge) => {
      const { code, json } = await runLoad(edge, ["--rate=10", "--duration=1", "--turns=1", "--warmup=3"]);
      expect(code).toBe(0);
      expect(json.totals.turns.completed).toBe(edge.bodies.length - 3);
      expect(edge.deletedSessions).toHaveLength(edge.bodies.length);
    });
    await withFakeEdge({ firstTokenMs: 1, betweenMs: 0, behaviour: () => "fail-500" }, async (edge) => {
      const run = await runBench(["load", `--url=${edge.url}`, "--duration=60"], { env: { QUIRE_API_KEY: edge.key } });
      expect(run).toMatchObject({ code: 1, err: "bench: the warm-up failed: scripted: internal\n" });
    });
  });

  it("does not overwrite a file before there is a result", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "old.json");
      await writeFile(path, "old");
      const run = await runBench(["load", "--url=http://127.0.0.1:1", "--key=k", `--json=${path}`]);
      expect(run.code).toBe(1);
      expect(await readFile(path, "utf8")).toBe("old");
    });
  });
});
