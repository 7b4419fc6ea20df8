/** The parts of the GPU run that need no GPU: finding Vulkan, guarding stages, judging figures. */
import { existsSync, statSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { gpuBars } from "../../bench/gpu/bars.ts";
import { runStage } from "../../bench/gpu/run-stage.ts";
import { gpuStages } from "../../bench/gpu/stages.ts";
import { findVulkan, type VulkanSearch } from "../../bench/gpu/vulkan.ts";
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
    const place = findVulkan(machine([LOADER, "/usr/share/vulkan/icd.d/nvidia_icd.json"]));
    expect(place.env).toEqual({});
    expect(place.notes[1]).toBe("Vulkan drivers: /usr/share/vulkan/icd.d/nvidia_icd.json");
  });

  it("brings a loader, and names the driver of a container, also where a software driver is installed", () => {
    const nvidia = "/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json";
    const place = findVulkan(machine(["/usr/share/vulkan/icd.d/lvp_icd.json", nvidia], { LD_LIBRARY_PATH: "/a" }));
    expect(place.env).toEqual({ LD_LIBRARY_PATH: "/own:/a", VK_DRIVER_FILES: nvidia });
  });

  it.each([
    [["/usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.0", "/usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0"], "libEGL_nvidia"],
    [["/usr/lib64/libX11.so.6", "/usr/lib64/libEGL_nvidia.so.0", "/usr/lib64/libGLX_nvidia.so.0"], "libGLX_nvidia"],
  ])("writes a manifest where there are libraries only: %j", (files, library) => {
    const found = machine([LOADER, ...files]);
    expect(findVulkan(found).env).toEqual({ VK_DRIVER_FILES: "/tmp/nvidia_icd.json" });
    const manifest = JSON.parse(found.written[0]!) as { ICD: { library_path: string } };
    expect(manifest.ICD.library_path).toBe(files.find((file) => file.includes(library)));
  });

  it("keeps what the environment says, and says what there is not", () => {
    const given = findVulkan(machine([LOADER, "/etc/vulkan/icd.d/nvidia_icd.json"], { VK_ICD_FILENAMES: "/sw.json" }));
    expect(given).toMatchObject({ env: {}, notes: [expect.any(String), "Vulkan driver as given: /sw.json"] });
    const bare = { ...machine([]), ownLoader: () => undefined };
    expect(findVulkan(bare)).toEqual({ env: {}, notes: ["no Vulkan loader (libvulkan.so.1)", "no Vulkan driver"] });
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
  const kernels = (rows: [op: string, size: string, ms: number, gigabytesPerS: number][]) => ({
    limits: { copyBytesPerS: 4e12 },
    rows: rows.map(([op, size, min, gigabytesPerS]) => ({ op, size, ms: { min }, gigabytesPerS })),
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
        ["attend, decode, dense", "8 x 1", dense, 2600],
        ["select and attend, decode, quest", "8 x 1", quest, 9],
      ]);
    const bars = gpuBars(
      {
        "attention-short": attention(8, 4),
        "attention-long": attention(48, 4),
        linear: kernels([
          ["matmul int4 (down)", "8 x 4096 x 14336", 1, 1],
          ["matmul int4 (down)", "1 x 4096 x 14336", 1, 3600],
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
