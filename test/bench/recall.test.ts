/** The recall benchmark: its texts against those of the training scripts, its arithmetic, and a run on house-0. */
import { createHash } from "node:crypto";
import { EventEmitter } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { beforeAll, describe, expect, it } from "vitest";
import { main } from "../../bench/main.ts";
import { type CaseFile, isRight, passageOf, readCases } from "../../bench/recall/cases.ts";
import { type RecallRow, recallRow, wilsonInterval } from "../../bench/recall/report.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

const CASE_FILE = "weights/house/eval-cases.jsonl.gz";

describe("evaluation cases", () => {
  let file: CaseFile;
  beforeAll(async () => {
    file = await readCases(CASE_FILE);
  });

  const bytes = (text: string) => Buffer.byteLength(text);

  it("are 200 of each kind, with answers that are right themselves and items that hold what is asked for", () => {
    const kinds = new Map<string, number>();
    for (const { kind, items, turns } of file.cases) {
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      const told = items.map(({ text }) => text).join("");
      for (const { answer, expect: wanted } of turns) {
        expect(isRight(answer, wanted)).toBe(true);
        expect(wanted.every((text) => told.includes(text))).toBe(kind !== "absent");
      }
      expect(turns.at(-1)?.expect.length).toBeGreaterThan(0);
    }
    expect([...kinds.keys()].length).toBe(9);
    expect(new Set(kinds.values())).toEqual(new Set([200]));
  });

  it("ask for names of the tenth that training never uses", () => {
    const syllables = [..."bdfgklmnprstvz"].flatMap((consonant) => [..."aeiou"].map((vowel) => consonant + vowel));
    let nameCount = 0;
    for (const { turns } of file.cases) {
      for (const { answer } of turns) {
        const name = /^The [a-z]+ of ([A-Z][a-z]{5}) (?:is|are) /.exec(answer)?.[1]?.toLowerCase();
        if (name === undefined) continue;
        const [a = -1, b = -1, c = -1] = [0, 2, 4].map((at) => syllables.indexOf(name.slice(at, at + 2)));
        expect(Math.min(a, b, c)).toBeGreaterThanOrEqual(0);
        expect((a + 3 * b + 7 * c) % 10).toBe(0);
        nameCount++;
      }
    }
    // All kinds but variable and quote have one, second-turn three.
    expect(nameCount).toBe(6 * 200 + 3 * 200);
  });

  // Length and SHA-256 of what `passage` in weights/house/train/prompts.py makes of case 3 of each kind, a byte counted as a token.
  it.each([
    ["code", 2912, "df0a89e91bfd7b71"],
    ["single", 2790, "51450d786bdbc980"],
    ["multi-key", 2896, "251bedc07dc16b30"],
    ["multi-value", 2741, "1b589a27b2419e41"],
    ["table", 2842, "323a69dc4bf0c058"],
    ["variable", 2686, "6bc8355a31b83134"],
    ["quote", 2399, "20295785ba6275b7"],
    ["absent", 2875, "b64b4ec5e01476af"],
    ["second-turn", 2633, "969529ac5c107420"],
  ])("make the same passage of a %s case as the training scripts", (kind, byteCount, sha256) => {
    const found = file.cases.filter((each) => each.kind === kind)[3];
    if (found === undefined) throw new Error(`no case 3 of kind ${kind}`);
    const sentenceTokens = file.sentences.map(bytes);
    const text = passageOf(found, file.sentences, { tokens: 3000, sentenceTokens, count: bytes });
    expect(bytes(text)).toBe(byteCount);
    expect(createHash("sha256").update(text).digest("hex").slice(0, 16)).toBe(sha256);
  });

  it("begin again with the first sentence behind the last, and end where every sentence was used", () => {
    const question = {
      kind: "single",
      intro: "Read.",
      start: 2,
      items: [
        { at: 0, text: " First." },
        { at: 0.5, text: " Half." },
        { at: 0.99, text: " Last." },
      ],
      turns: [],
    };
    const sentences = [" A.", " B.", " C."];
    const sentenceTokens = [3, 3, 3];
    const make = (tokens: number) => passageOf(question, sentences, { tokens, sentenceTokens, count: bytes });
    expect(make(1000)).toBe("Read. First. C. A. Half. B. Last.");
    expect(make(5 + 7 + 6 + 6 + 6)).toBe("Read. First. C. Half. A. Last.");
    expect(make(0)).toBe("Read. First. Half. Last.");
  });

  it("take a reply as right when it holds everything in order", () => {
    expect(isRight("They are 12, 345 and 6.", ["12", "345", "6"])).toBe(true);
    expect(isRight("They are 345, 12 and 6.", ["12", "345", "6"])).toBe(false);
    expect(isRight("It is 1.", ["1", "1"])).toBe(false);
    expect(isRight("", [])).toBe(true);
  });
});

describe("the interval of a share", () => {
  // Wilson's score interval as in Brown, Cai and DasGupta (2001) and in common tables.
  it.each([
    [8, 10, 0.4902, 0.9433],
    [0, 10, 0, 0.2775],
    [10, 10, 0.7225, 1],
    [198, 200, 0.9643, 0.9973],
  ])("of %d right in %d", (right, cases, min, max) => {
    const interval = wilsonInterval(right, cases);
    expect(interval.min).toBeCloseTo(min, 4);
    expect(interval.max).toBeCloseTo(max, 4);
  });
});

describe("the interval of a row", () => {
  const row = (answers: { isRight: boolean; document: number }[]) =>
    recallRow({ kind: "code", lengthTokens: 1024, policy: "dense" }, { answers, pagesSelected: 1, pagesInContext: 1 });

  it("is Wilson's where every question has a document of its own", () => {
    const answers = Array.from({ length: 10 }, (_, document) => ({ isRight: document < 8, document }));
    expect(row(answers)).toMatchObject({ cases: 10, right: 8, share: 0.8 });
    expect(row(answers).shareMin).toBeCloseTo(0.4902, 4);
    expect(row(answers).shareMax).toBeCloseTo(0.9433, 4);
  });

  it("is that of the documents where answers about one are all alike, and knows nothing more of one document", () => {
    const answers = Array.from({ length: 160 }, (_, at) => ({ isRight: at < 128, document: Math.floor(at / 16) }));
    const { share, shareMin, shareMax } = row(answers);
    expect(share).toBe(0.8);
    // A sandwich's degrees of freedom: as if there were some tenth fewer.
    expect(shareMin).toBeGreaterThan(0.45);
    expect(shareMin).toBeLessThan(0.4902);
    expect(shareMax).toBeGreaterThan(0.9433);
    const one = row(answers.slice(0, 16).map((answer) => ({ ...answer, document: 0 })));
    expect(one.shareMin).toBeCloseTo(wilsonInterval(1, 1).min, 9);
  });
});

describe("npm run bench -- recall", () => {
  it("measures house-0 at its own kind of question, dense and selected from a fraction of the pages", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "recall.json");
      const flags = ["--kinds=code", "--lengths=1024,2048", "--cases=2", "--policy=dense,quest", "--budget=256"];
      const run = await runBench(["recall", ...flags, "--model=weights/house-0", "--threads=1", `--json=${path}`]);
      expect(run).toMatchObject({ code: 0 });
      const { rows, ok } = JSON.parse(await readFile(path, "utf8")) as { rows: RecallRow[]; ok: boolean };
      expect(ok).toBe(true);
      const key = { kind: "code", cases: 2, right: 2, share: 1, shareMax: 1 };
      expect(rows).toMatchObject([
        { ...key, lengthTokens: 1024, policy: "dense", pagesReadShare: 1 },
        { ...key, lengthTokens: 1024, policy: "quest" },
        { ...key, lengthTokens: 2048, policy: "dense", pagesReadShare: 1 },
        { ...key, lengthTokens: 2048, policy: "quest" },
      ]);
      const [short, long] = rows.filter(({ policy }) => policy === "quest");
      expect(short?.pagesReadShare).toBeLessThan(0.35);
      expect(long?.pagesReadShare).toBeLessThan(0.2);
      expect(run.out).toMatch(/code +2048 +quest +2 +100\.0 +34\.2-100\.0/);
    });
  }, 60_000);

  it("asks again in a later turn, with the model's own replies before it", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "cases.jsonl.gz");
      const facts = ["Badoru is 4821", "Kelino is 7350"];
      const question = {
        kind: "turns",
        intro: "Here is a text.",
        start: 0,
        items: facts.map((fact, i) => ({ at: 0.3 * (i + 1), text: ` The code of ${fact}. ` })),
        turns: facts.map((fact) => ({
          ask: `What is the code of ${fact.slice(0, 6)}?`,
          answer: `The code of ${fact}.`,
          expect: [`The code of ${fact}.`],
        })),
      };
      const sentences = (await readCases(CASE_FILE)).sentences.slice(100, 140);
      const lines = [{ sentences }, question].map((line) => JSON.stringify(line)).join("\n");
      await writeFile(path, gzipSync(lines));
      const flags = ["--lengths=600", "--policy=dense", "--model=weights/house-0", "--threads=1"];
      const run = await runBench(["recall", `--case-file=${path}`, ...flags]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/turns +600 +dense +1 +100\.0/);
    });
  }, 60_000);

  it("stops when it is told to, and reports what was measured until then", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "recall.json");
      const signals = new EventEmitter();
      const flags = ["--kinds=code", "--lengths=512,8192", "--cases=20", "--policy=dense", "--threads=1"];
      const code = await main(["recall", ...flags, `--json=${path}`], {
        env: {},
        signals,
        out: () => undefined,
        // The first length is done. A signal comes as a timer does, between turns of the event loop.
        err: (text) => {
          if (/code +512/.test(text)) setTimeout(() => signals.emit("SIGINT"), 0);
        },
      });
      expect(code).toBe(0);
      const { rows, interrupted } = JSON.parse(await readFile(path, "utf8")) as {
        rows: RecallRow[];
        interrupted: boolean;
      };
      expect(interrupted).toBe(true);
      expect(rows.map(({ lengthTokens, cases }) => ({ lengthTokens, cases }))).toEqual([
        { lengthTokens: 512, cases: 20 },
      ]);
    });
  }, 60_000);

  it.each([
    [["--kinds=code,song"], '--kinds: the file has no cases "song"'],
    [["--policy=dense,best"], /^bench: --policy: "best": expected a policy: dense, .*, not "dense,best"$/],
    [["--lengths=100"], '--lengths: must be whole numbers from 256 on with commas between them, not "100"'],
    [
      ["--model=weights/house-0", "--lengths=40000"],
      "--lengths: 40000 is more than the model's context of 32768 tokens",
    ],
    [["--case-file=weights/none.gz"], "cases weights/none.gz cannot be read (ENOENT)"],
    [["--case-file=package.json"], /^bench: cases package\.json cannot be read \(Z_DATA_ERROR\)$/],
  ])("refuses %j with one clear line", async (flags, message) => {
    const { code, err } = await runBench(["recall", ...flags]);
    expect(code).toBe(1);
    if (typeof message === "string") expect(err).toBe(`bench: ${message}\n`);
    else expect(err.trimEnd()).toMatch(message);
  });
});
