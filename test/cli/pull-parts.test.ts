import { describe, expect, it } from "vitest";
import { checkPaths, type HubFile } from "../../cli/pull/hub-files.ts";
import { PullProgress } from "../../cli/pull/progress.ts";
import { PullError, TransientError } from "../../cli/pull/pull-error.ts";
import { withRetries } from "../../cli/pull/retry.ts";
import { selectFiles } from "../../cli/pull/select-files.ts";

const companions = ["config.json", "tokenizer.json"];
const index = "model.safetensors.index.json";
const shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

describe("the files of a model", () => {
  it.each<[string, string[], string | undefined, string[]]>([
    [
      "safetensors, not what is beside them",
      [
        "README.md",
        ...companions,
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "onnx/model.safetensors",
        "model.pth",
      ],
      undefined,
      [companions[0]!, "generation_config.json", companions[1]!, "tokenizer_config.json", "model.safetensors"],
    ],
    [
      "shards with their index, not the same once more",
      [...companions, index, ...shards, "consolidated.safetensors"],
      undefined,
      [...companions, index, ...shards],
    ],
    ["the one GGUF file, alone", ["config.json", "tokenizer.json", "m.gguf"], undefined, ["m.gguf"]],
    [
      "safetensors before GGUF",
      [...companions, "model.safetensors", "m.gguf"],
      undefined,
      [...companions, "model.safetensors"],
    ],
    [
      "what a pattern names",
      [...companions, "model.safetensors", "q/m.Q4_K.gguf", "mxQ4_K.gguf"],
      "*m.Q4_?.gguf",
      ["q/m.Q4_K.gguf"],
    ],
    [
      "shards by pattern",
      [...companions, index, ...shards, "m.gguf"],
      "*.safetensors",
      [...companions, index, ...shards],
    ],
  ])("are %s", (_name, paths, include, chosen) => {
    expect(selectFiles(paths, include)).toEqual(chosen);
  });

  it.each<[string[], string | undefined, RegExp]>([
    [
      ["pytorch_model.bin", ...companions],
      undefined,
      /no model\.safetensors, no shards with an index, and no GGUF file/,
    ],
    [["a.gguf", "b.gguf"], undefined, /several GGUF files, choose one with --include: a\.gguf, b\.gguf/],
    [["model.safetensors"], undefined, /no config\.json and no tokenizer\.json/],
    [
      ["a.gguf", "pytorch_model.bin"],
      "*.bin",
      /no weights of the repository match --include \*\.bin: there are a\.gguf/,
    ],
    [["a.gguf", "model.safetensors"], "*", /matches safetensors and GGUF/],
  ])("of %j with %j are refused in one line", (paths, include, message) => {
    expect(() => selectFiles(paths, include)).toThrow(PullError);
    expect(() => selectFiles(paths, include)).toThrow(message);
  });

  it.each([
    "..",
    "a/../b",
    ".git",
    "-rf",
    "~x",
    "a:b",
    "a\\b",
    "a\u0000",
    "a\u001b[2J",
    "a\u202eb",
    "a ",
    "a.",
    "",
    "a//b",
    "x".repeat(201),
  ])("are not stored under the name %j", (name) => {
    expect(() => checkPaths([name])).toThrow(PullError);
  });

  it("do not meet in one file on a disk that knows no case", () => {
    expect(() => checkPaths(["M.gguf", "m.gguf"])).toThrow(/differ only in case/);
    expect(() => checkPaths(["q4/m v1 (x).gguf", "q8/m v1 (x).gguf", "модель.gguf"])).not.toThrow();
  });
});

describe("trying again", () => {
  const patience = { attemptsMax: 3, delayMs: 4, delayMsMax: 10, headMsMax: 1, stallMsMax: 1 };

  it("waits longer each time, at most so long, and as long as the server asks", async () => {
    const waits: number[] = [];
    const errors = [new TransientError("busy"), new TransientError("busy", 9), new TransientError("busy", 1e9)];
    const attempt = async () => {
      const error = errors.shift();
      if (error !== undefined) throw error;
      return "there";
    };
    const signal = new AbortController().signal;
    const onRetry = (_message: string, delayMs: number) => waits.push(delayMs);
    expect(
      await withRetries(attempt, { patience: { ...patience, attemptsMax: 4 }, signal, random: () => 1, onRetry }),
    ).toBe("there");
    expect(waits).toEqual([4, 9, 10]);
  });

  it("ends a wait with what the user said", async () => {
    const stop = new AbortController();
    const attempt = () => Promise.reject(new TransientError("busy"));
    const onRetry = () => stop.abort("Ctrl-C");
    const longer = { ...patience, delayMs: 60_000, delayMsMax: 60_000 };
    const options = { patience: longer, signal: stop.signal, random: () => 1, onRetry };
    await expect(withRetries(attempt, options)).rejects.toBe("Ctrl-C");
  });

  it("counts attempts in a row that brought nothing", async () => {
    let attempts = 0;
    let bytes = 0;
    const attempt = async () => {
      attempts++;
      if (attempts === 2) bytes++;
      throw new TransientError("cut");
    };
    const signal = new AbortController().signal;
    const options = { patience, signal, random: () => 0, onRetry: () => undefined, progress: () => bytes };
    await expect(withRetries(attempt, options)).rejects.toThrow("cut (gave up after 3 attempts)");
    expect(attempts).toBe(4);
  });
});

describe("the progress of a pull", () => {
  const file = (path: string, sizeBytes: number): HubFile => ({ path, sizeBytes, hash: { kind: "sha256", hex: "" } });
  const [big, small] = [file("model.safetensors", 2 ** 21), file("config.json", 100)];

  function watch(isTerminal: boolean, columns = 80): string {
    let text = "";
    let nowMs = 0;
    const write = (more: string) => {
      text += more;
    };
    const progress = new PullProgress({ write, isTerminal, columns: () => columns, nowMs: () => nowMs });
    progress.onStart([big, small]);
    nowMs = 20_000;
    progress.onProgress(big, 0);
    nowMs = 30_000;
    progress.onProgress(big, 2 ** 20);
    progress.onProgress(small, 100);
    progress.onDone(small);
    progress.onRetry("model.safetensors: cut by hub", 1500);
    progress.close();
    return text;
  }

  /** Escape sequences as `<`. */
  const plain = (text: string): string => text.replaceAll("\u001b[", "<");

  it("is plain lines where nobody can draw", () => {
    expect(watch(false)).toBe(
      [
        "quire: 2 files, 2.0 MiB",
        "quire: 0 % of 2.0 MiB, 0 B/s",
        "quire: 49 % of 2.0 MiB, 34.1 KiB/s",
        "quire: config.json: 100 B, checked",
        "quire: model.safetensors: cut by hub; again in 1.5 s\n",
      ].join("\n"),
    );
  });

  it("is bars on a terminal, which leave only the lines behind", () => {
    const text = watch(true);
    expect(text).toContain(`[${"#".repeat(12)}${"-".repeat(12)}]  50 %  model.safetensors (2.0 MiB)\n`);
    const lines: string[] = [];
    for (const [, up, line] of plain(text).matchAll(/<(\d+)A<J|([^\n<]*)\n/g)) {
      if (up === undefined) lines.push(line!);
      else lines.splice(lines.length - Number(up));
    }
    expect(lines).toEqual([
      "quire: 2 files, 2.0 MiB",
      "quire: config.json: 100 B, checked",
      "quire: model.safetensors: cut by hub; again in 1.5 s",
    ]);
    const bars = plain(watch(true, 30)).match(/\[[#-][^\n]*/g)!;
    expect(Math.max(...bars.map((line) => line.length))).toBe(29);
  });
});
