/** `quire devices`, and what a GPU that is not there does to `--device webgpu`. */
import { describe, expect, it } from "vitest";
import { mayHaveGpu } from "../../kernels/auto-device.ts";
import { softwareGpuFolder } from "../support/software-gpu.ts";
import { runQuire } from "./run-quire.ts";

/** A Vulkan loader that is told of a driver that does not exist finds no other. */
const NO_DRIVER = { VK_ICD_FILENAMES: "/nowhere.json", VK_DRIVER_FILES: "/nowhere.json" };
const canHideDrivers = process.platform === "linux";

describe("quire devices", () => {
  it.skipIf(!canHideDrivers)("says what computes here, and why a GPU does not", async () => {
    const text = await runQuire(["devices"], NO_DRIVER);
    expect(text.code).toBe(0);
    expect(text.stdout).toMatch(
      /^wasm +.+, \d+ threads?\nwebgpu +no adapter \(no GPU, or no Vulkan driver for it\)\n$/,
    );
    const json = await runQuire(["devices", "--json"], NO_DRIVER);
    expect(JSON.parse(json.stdout)).toMatchObject({
      wasm: { threads: expect.any(Number) },
      webgpu: { reason: expect.any(String) },
    });
  });

  it.skipIf(mayHaveGpu())("says it without the warnings of a Vulkan that is not there", async () => {
    expect(await runQuire(["devices"])).toMatchObject({ code: 0, stderr: "" });
    const loader = softwareGpuFolder();
    if (loader !== undefined) {
      // A loader without a driver warns of other things.
      const bare = { LD_LIBRARY_PATH: loader, XDG_DATA_DIRS: "/nowhere", XDG_CONFIG_DIRS: "/nowhere" };
      expect(await runQuire(["devices"], bare)).toMatchObject({ code: 0, stderr: "" });
    }
  });

  it.skipIf(process.platform !== "linux")("shows them where a driver is named, which they may be about", async () => {
    expect((await runQuire(["devices"], NO_DRIVER)).stderr).toMatch(/^Warning: /m);
  });

  it("survives a driver that does not", async () => {
    const dies = 'if (process.argv[1]?.endsWith("find-gpu.ts")) process.kill(process.pid, "SIGSEGV");';
    const env = { NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(dies)}` };
    const { code, stdout } = await runQuire(["devices"], env);
    expect(code).toBe(0);
    expect(stdout).toMatch(/\nwebgpu +the driver ended the process that asked it for a GPU \(SIGSEGV\)\n$/);
  });

  it.skipIf(!canHideDrivers)("is what an engine says in one line when it is to run on a GPU", async () => {
    const { code, stderr } = await runQuire(
      ["serve", "--device", "webgpu", "--port", "0", "--store", "memory:"],
      NO_DRIVER,
    );
    expect(code).toBe(1);
    expect(stderr).toContain("quire: device webgpu: no adapter (no GPU, or no Vulkan driver for it)\n");
  });

  it("refuses names of Dawn's toggles that are none", async () => {
    const { code, stderr } = await runQuire(["devices"], { QUIRE_DAWN_FEATURES: "skip_validation,-x" });
    expect(code).toBe(1);
    expect(stderr).toContain('quire: QUIRE_DAWN_FEATURES: "-x" is no name of a toggle (a-z, 0-9 and _)\n');
  });

  it("refuses what it does not know", async () => {
    const { code, stderr } = await runQuire(["devices", "--gpu"]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: "quire: unknown argument --gpu\n" });
  });
});
