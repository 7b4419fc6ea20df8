/** The parts of the GPU run that need no GPU: finding Vulkan, guarding stages, judging figures. */
import { EventEmitter } from "node:events";
import { existsSync, statSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { gpuBars } from "../../bench/gpu/bars.ts";
import { runStage } from "../../bench/gpu/run-stage.ts";
import { gpuStages } from "../../bench/gpu/stages.ts";
import { findVulkan, type VulkanSearch } from "../../bench/gpu/vulkan.ts";
import { main } from "../../bench/main.ts";
import { withTempFolder } from "../cli/run-quire.ts";

/** A machine with these files. */
function machine(files: readonly string[], env: Record<string, string> = {}): VulkanSearch & { written: string[] } {
  const written: string[] = [];
  return {
    ...{ env, written },
    exists: (path) => files.includes(path),
    list: (folder) =>
      files.filter((path) => path.startsWith(`${folder}/`)).map((path) => path.slice(folder.length + 1)),
    ownLoader: () => "/own",
    write(name, text) {
      written.push(text);
      return `/tmp/${name}`;
    },
  };
}

const LOADER = "/usr/lib/x86_64-linux-gnu/libvulkan.so.1";

describe("finding Vulkan", () => {
  it("leaves a machine alone that has loader and driver where they belong", () => {
    const [place, ...others] = findVulkan(machine([LOADER, "/usr/share/vulkan/icd.d/nvidia_icd.json"]));
    expect(place!.env).toEqual({});
    expect(place!.notes[1]).toBe("Vulkan drivers: /usr/share/vulkan/icd.d/nvidia_icd.json");
    expect(others).toEqual([]);
  });

  it("brings a loader, and names the driver of a container, also where a software driver is installed", () => {
    const nvidia = "/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json";
    const [place] = findVulkan(machine(["/usr/share/vulkan/icd.d/lvp_icd.json", nvidia], { LD_LIBRARY_PATH: "/a" }));
    expect(place!.env).toEqual({ LD_LIBRARY_PATH: "/own:/a", VK_DRIVER_FILES: nvidia });
  });

  it.each([
    [["/usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.0", "/usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0"], "libEGL_nvidia"],
    [["/usr/lib64/libX11.so.6", "/usr/lib64/libEGL_nvidia.so.0", "/usr/lib64/libGLX_nvidia.so.0"], "libGLX_nvidia"],
  ])(
    "writes manifests where there are libraries only, first that of the one that should load: %j",
    (files, library) => {
      const found = machine([LOADER, ...files]);
      const places = findVulkan(found);
      expect(places.length).toBe(2);
      expect(places[0]!.env).toEqual({ VK_DRIVER_FILES: `/tmp/${library}_icd.json` });
      const manifest = JSON.parse(found.written[0]!) as { ICD: { library_path: string } };
      expect(manifest.ICD.library_path).toBe(files.find((file) => file.includes(library)));
    },
  );

  it("tries the libraries themselves behind a manifest, which may name one that does not load or is not found", () => {
    const manifest = "/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json";
    const folder = "/usr/local/nvidia/lib64";
    const libraries = ["libEGL_nvidia", "libGLX_nvidia"].map((name) => `${folder}/${name}.so.0`);
    const places = findVulkan(machine([LOADER, manifest, ...libraries]));
    expect(places.map(({ env }) => env.VK_DRIVER_FILES)).toEqual([
      ...[manifest, "/tmp/libEGL_nvidia_icd.json", "/tmp/libGLX_nvidia_icd.json"],
    ]);
    expect(places.every(({ env }) => env.LD_LIBRARY_PATH === folder)).toBe(true);
  });

  it("keeps what the environment says, and says what there is not", () => {
    const given = findVulkan(machine([LOADER, "/etc/vulkan/icd.d/nvidia_icd.json"], { VK_ICD_FILENAMES: "/sw.json" }));
    expect(given).toMatchObject([{ env: {}, notes: [expect.any(String), "Vulkan driver as given: /sw.json"] }]);
    const bare = { ...machine([]), ownLoader: () => undefined };
    expect(findVulkan(bare)).toEqual([{ env: {}, notes: ["no Vulkan loader (libvulkan.so.1)", "no Vulkan driver"] }]);
  });
});

describe("the GPU run", () => {
  it("says in one probe what there is to install where no GPU opens, runs no stage, and writes that", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "gpu.json");
      const printed: string[] = [];
      const code = await main(["gpu", `--json=${path}`], {
        env: { ...process.env, VK_DRIVER_FILES: "/nowhere/icd.json", VK_ICD_FILENAMES: undefined },
        signals: new EventEmitter(),
        out: (text) => void printed.push(text),
        err: () => {},
      });
      expect(code).toBe(1);
      const result = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
      expect(result).toMatchObject({ ok: false, stages: [], tried: [{ tail: expect.stringContaining("no adapter") }] });
      expect((result.tried as unknown[]).length).toBe(1);
      expect((result.bars as { verdict: string }[]).every(({ verdict }) => verdict === "not measured")).toBe(true);
      expect(printed.join("")).toContain("NVIDIA_DRIVER_CAPABILITIES");
    });
  });
});

describe("a stage of the GPU run", () => {
  /** Runs a program of these lines in the place of the benchmark; `path` is its JSON file. */
  function run(lines: string, { isLateOnceWritten = false } = {}) {
    return withTempFolder(async (folder) => {
      const program = join(folder, "stage.mjs");
      const head = `import { writeFileSync } from "node:fs";\nconst path = process.argv.at(-1).slice("--json=".length);\n`;
      await writeFile(program, head + lines);
      // No timer: the limit is reached when the program has written, or never.
      const after = (_ms: number, fire: () => void): (() => void) => {
        const path = join(folder, "one.json");
        const poll = setInterval(() => isLateOnceWritten && existsSync(path) && statSync(path).size > 0 && fire(), 20);
        return () => clearInterval(poll);
      };
      const place = { folder, env: process.env, signal: new AbortController().signal, program, after };
      return runStage({ name: "one", args: ["x"], limitS: 1 }, place);
    });
  }

  it("gives its result", async () => {
    const outcome = await run(`writeFileSync(path, '{"rows":[1]}'); console.log("said", process.argv[2]);`);
    expect(outcome).toMatchObject({ name: "one", status: "done", result: { rows: [1] }, tail: "said x\n" });
  });

  it("that fails keeps what it had written, and says its last words", async () => {
    const outcome = await run(`writeFileSync(path, '{"rows":[1]}'); throw new Error("no memory");`);
    expect(outcome).toMatchObject({ status: "failed", result: { rows: [1] } });
    expect(outcome.tail).toContain("no memory");
  });

  it("that hangs is killed at its limit and keeps what it had written", async () => {
    const outcome = await run(`writeFileSync(path, '{"rows":[2]}'); setInterval(() => {}, 1000);`, {
      isLateOnceWritten: true,
    });
    expect(outcome).toMatchObject({ status: "timeout", result: { rows: [2] } });
  });

  it("that ends because the run is stopped has not failed", async () => {
    await withTempFolder(async (folder) => {
      const program = join(folder, "stage.mjs");
      await writeFile(program, "setInterval(() => {}, 1000);");
      const stop = new AbortController();
      const place = { folder, env: process.env, signal: stop.signal, program };
      const outcome = runStage({ name: "one", args: ["x"], limitS: 60 }, place);
      stop.abort();
      expect((await outcome).status).toBe("stopped");
    });
  });

  it("that was killed while it wrote has no result", async () => {
    const outcome = await run(`writeFileSync(path, '{"rows":['); process.exit(3);`);
    expect(outcome.status).toBe("failed");
    expect("result" in outcome).toBe(false);
  });

  it("and all others together end within 8 minutes, whatever they do", () => {
    const sum = gpuStages("8b").reduce((seconds, { limitS }) => seconds + limitS, 0);
    expect(sum).toBeLessThanOrEqual(460);
  });
});

describe("bars", () => {
  const kernels = (
    rows: [op: string, size: string, ms: number, bytes: number, kernels?: Record<string, number>][],
  ) => ({
    limits: { copyBytesPerS: 4e12 },
    rows: rows.map(([op, size, min, bytes, kernels]) => ({ op, size, ms: { min }, bytes, kernels })),
  });
  const decode = (dense: number, quest: number, outside: number) => ({
    rows: [
      { policy: "dense", msPerToken: { p50: dense }, gpu: { outsideMs: outside } },
      { policy: "quest", msPerToken: { p50: quest }, gpu: { outsideMs: 0.1 } },
    ],
  });

  it("are computed from what stages wrote", () => {
    const attention = (dense: number, quest: number) =>
      kernels([
        ["attend, decode, dense", "8 x 1", dense, dense * 2.6e9, { attend: dense / 2, merge_splits: dense / 2 }],
        ["select and attend, decode, quest", "8 x 1", quest, 9],
      ]);
    const bars = gpuBars(
      {
        "attention-short": attention(8, 4),
        "attention-long": attention(48, 4),
        linear: kernels([
          ["matmul int4 (down)", "8 x 4096 x 14336", 1, 1],
          // The input's quantization is another kernel's time.
          ["matmul int4 (down)", "1 x 4096 x 14336", 1.5, 3.6e9, { quantize_rows: 0.5, gemv_int4_1: 1 }],
        ]),
        "decode-short": decode(20, 10, 1.2),
        "decode-long": decode(10, 8, 0.4),
      },
      "8b",
    );
    expect(bars.map(({ value, verdict }) => [value, verdict])).toEqual([
      [65, "met"],
      [90, "aim met"],
      [12, "aim met"],
      [2, "missed"],
      [2, "met"],
      [1.25, "missed"],
      [1.2, "met"],
    ]);
  });

  it("of stages that gave nothing are not measured", () => {
    const bars = gpuBars({ "decode-long": { rows: [] }, linear: kernels([]) }, "8b");
    expect(bars.length).toBe(7);
    expect(new Set(bars.map(({ verdict }) => verdict))).toEqual(new Set(["not measured"]));
  });
});
