/** `npm run eval` from flags to files, on house-0 and a few tokens of text. */
import { EventEmitter } from "node:events";
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import type { Figures } from "../../../bench/eval/figures.ts";
import { main } from "../../../bench/main.ts";
import { withTempFolder } from "../../cli/run-quire.ts";
import { runBench } from "../run-bench.ts";

const SMALL = [
  ...["--contexts", "256,512", "--budgets", "128,320", "--documents", "2", "--tokens", "3", "--threads", "1"],
  ...["--cases", "2", "--kinds", "code", "--policies", "quest,streaming,quest+scope(layer)", "--bytes-max", "1"],
  ...["--continuations", "3", "--generated", "4"],
];

const run = (folder: string, ...more: string[]) => runBench(["eval", ...SMALL, "--out", folder, ...more]);
const figuresIn = async (folder: string): Promise<Figures> =>
  JSON.parse(await readFile(join(folder, "figures.json"), "utf8"));

/** Without what a clock has measured. */
function withoutTimes(figures: Figures): unknown {
  return JSON.parse(
    JSON.stringify(figures, (key, value) => (/machine|settings|[sS]tepMs/.test(key) ? undefined : value)),
  );
}

describe("npm run eval", { timeout: 120_000 }, () => {
  it("writes a page, JSON and CSV; a run that was cut goes on; the same seed gives the same numbers", async () => {
    await withTempFolder(async (folder) => {
      const [one, two] = [join(folder, "one"), join(folder, "two")];
      const { code, out } = await run(one);
      expect(code).toBe(0);
      expect(out).toContain("quest+scope(layer)");
      const figures = await figuresIn(one);
      // Two contexts, two budgets, three selections and two baselines.
      expect(figures.fidelity.length).toBe(20);
      expect(figures.fidelity.filter(({ isActive }) => isActive).length).toBe(15);
      const active = figures.fidelity.find((row) => row.name === "quest" && row.contextTokens === 512 && row.isActive);
      expect(active?.metadataBytes).toBeGreaterThan(0);
      expect(active?.text?.divergence.mean).toBeGreaterThan(0);
      const idle = figures.fidelity.find((row) => row.name === "quest" && !row.isActive);
      expect(idle).toMatchObject({ metadataBytes: 0, pagesShare: 1, mass: { mean: 1 }, outputError: { mean: 0 } });
      expect(idle?.text).toMatchObject({ divergence: { mean: 0 }, topAgreement: { mean: 1 } });
      expect(figures.tasks.map(({ cases }) => cases)).toEqual(Array(12).fill(2));
      // Baselines once for each of the two texts.
      const generated = figures.continuations.map(({ name, cases }) => [/^(oracle|random)$/.test(name), cases]);
      expect(generated.filter(([isBaseline]) => isBaseline)).toEqual(Array(8).fill([true, 2]));
      expect(generated.filter(([isBaseline]) => !isBaseline)).toEqual(Array(12).fill([false, 3]));
      expect(await readFile(join(one, "tables.md"), "utf8")).toContain("| `quest` |");
      expect((await readFile(join(one, "continuations.csv"), "utf8")).trimEnd().split("\n").length).toBe(21);

      const csv = (await readFile(join(one, "fidelity.csv"), "utf8")).trimEnd().split("\n");
      expect(csv.length).toBe(21);
      expect(new Set(csv.map((line) => line.split(",").length)).size).toBe(1);
      expectWellFormed(await readFile(join(one, "index.html"), "utf8"));

      // The last piece of work is lost in the middle of its line.
      const journal = await readFile(join(one, "journal.jsonl"), "utf8");
      await writeFile(join(one, "journal.jsonl"), journal.slice(0, -40));
      const again = await run(one);
      expect(again.code).toBe(0);
      expect((await readFile(join(one, "journal.jsonl"), "utf8")).split("\n").length).toBe(journal.split("\n").length);
      expect(withoutTimes(await figuresIn(one))).toEqual(withoutTimes(figures));
      await run(two);
      expect(withoutTimes(await figuresIn(two))).toEqual(withoutTimes(figures));

      const other = await run(one, "--seed", "2");
      expect([other.code, other.err]).toEqual([1, expect.stringContaining("holds results of other settings")]);
    });
  });

  it("does not go on with questions that have changed since, under a name that is the same", async () => {
    await withTempFolder(async (folder) => {
      const questions = join(folder, "questions.jsonl.gz");
      const few = ["--contexts", "256", "--budgets", "128", "--documents", "1", "--cases", "1", "--continuations", "0"];
      const ask = () => run(join(folder, "out"), ...few, "--case-file", questions);
      await cp("weights/house/eval-cases.jsonl.gz", questions);
      expect((await ask()).code).toBe(0);
      const lines = gunzipSync(await readFile(questions)).toString("utf8");
      await writeFile(questions, gzipSync(lines.replace('"start": ', '"start": 1')));
      const again = await ask();
      expect([again.code, again.err]).toEqual([1, expect.stringContaining("holds results of other questions")]);
    });
  });

  it("asks nothing of selections that read too many of dense's bytes, and has a grid of its own for questions and long generations", async () => {
    await withTempFolder(async (folder) => {
      const few = [
        "--contexts",
        "256",
        "--lengths",
        "256,320",
        "--continued",
        "512",
        "--budgets",
        "128,320",
        "--policies",
        "streaming",
      ];
      const small = [
        "--documents",
        "1",
        "--tokens",
        "1",
        "--cases",
        "1",
        "--kinds",
        "code",
        "--continuations",
        "1",
        "--generated",
        "2",
      ];
      expect(await runBench(["eval", ...few, ...small, "--threads", "1", "--out", folder])).toMatchObject({ code: 0 });
      const { tasks, continuations } = await figuresIn(folder);
      // Behind 256 tokens a budget of 320 is dense. No window stands behind the other two.
      expect(tasks.map(({ lengthTokens, budgetTokens }) => [lengthTokens, budgetTokens])).toEqual([
        ...[
          [256, 128],
          [320, 128],
          [320, 320],
        ],
      ]);
      const generating = continuations.filter(({ name }) => name === "streaming");
      expect(generating.map(({ contextTokens, budgetTokens }) => [contextTokens, budgetTokens])).toEqual([
        ...[
          [512, 128],
          [512, 320],
        ],
      ]);
    });
  });

  it("judges as auto what the calibration beside the model names, without one the default", async () => {
    await withTempFolder(async (folder) => {
      const model = join(folder, "house-0");
      await cp("weights/house-0", model, { recursive: true });
      const few = ["--contexts", "256", "--budgets", "128", "--documents", "1", "--tokens", "1", "--cases", "0"];
      const judged = async (out: string) => {
        const names = [
          "--threads",
          "1",
          "--continuations",
          "0",
          "--policies",
          "quest,auto",
          "--model",
          model,
          "--out",
          join(folder, out),
        ];
        expect(await runBench(["eval", ...few, ...names])).toMatchObject({ code: 0 });
        return (await figuresIn(join(folder, out))).fidelity.map(({ name }) => name);
      };
      expect(await judged("bare")).toEqual(["oracle", "random", "quest", "quest+radius(0.5)+combine(sum)"]);
      const calibration = { format: 1, fingerprint: "f", selection: "quest+sink(16)", budgets: [] };
      await writeFile(join(model, "selection.json"), JSON.stringify(calibration));
      expect(await judged("calibrated")).toEqual(["oracle", "random", "quest", "quest+sink(16)"]);
    });
  });

  it("stops when it is told to, reports what it has, and goes on there", async () => {
    await withTempFolder(async (folder) => {
      const signals = new EventEmitter();
      const args = [...SMALL, "--cases", "40", "--continuations", "0", "--out", folder];
      const code = await main(["eval", ...args], {
        ...{ env: {}, signals, out: () => undefined },
        // All windows are done: progress is said of the last, however long they took. A signal comes as a timer does, between turns of the event loop.
        err: (text) => void (text.includes("4 of 4 windows") && setTimeout(() => signals.emit("SIGINT"), 0)),
      });
      expect(code).toBe(0);
      const half = await figuresIn(folder);
      expect(half).toMatchObject({ interrupted: true });
      expect(half.fidelity.length).toBe(20);
      const asked = half.tasks[0]?.cases ?? 0;
      expect(asked).toBeLessThan(40);
      expect(await readFile(join(folder, "index.html"), "utf8")).toContain("stopped before its end");
      const noted = (await readFile(join(folder, "journal.jsonl"), "utf8")).split("\n");
      // Settings and contents, four windows, the documents whose questions were answered (sixteen each), and the end of the last line.
      expect(noted.length).toBe(2 + 4 + Math.ceil(asked / 16) + 1);
    });
  });

  it.each([
    [[], "--out is needed"],
    [["--out", "/dev/null/x"], "--out: /dev/null/x cannot be used"],
    [["--out", "x", "--policies", "best"], `"best": expected a policy`],
    [["--out", "x", "--contexts", "999999"], "are more than the model's context of 32768"],
    [["--out", "x", "--text", "/nowhere"], "--text: /nowhere cannot be read"],
  ])("refuses %j", async (args, message) => {
    await withTempFolder(async (folder) => {
      const placed = args.map((arg) => (arg === "x" ? join(folder, arg) : arg));
      const { code, err } = await runBench(["eval", "--threads", "1", "--cases", "0", ...placed]);
      expect([code, err]).toEqual([1, expect.stringContaining(message)]);
    });
  });
});

/** Every element that is opened is closed, in order; no number of a plot is missing. */
function expectWellFormed(html: string): void {
  const open: string[] = [];
  for (const [, isEnd, name, isWhole] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)[^>]*?(\/?)>/g)) {
    if (isWhole === "/" || name === "meta" || name === "br") continue;
    if (isEnd === "/") expect(open.pop()).toBe(name);
    else open.push(name as string);
  }
  expect(open).toEqual([]);
  expect(html).not.toMatch(/NaN|undefined|Infinity/);
  expect(html).toContain("quest+scope(layer)");
  expect(html.match(/<svg /g)?.length).toBeGreaterThan(10);
}
