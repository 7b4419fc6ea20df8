/** `quire devices`, and what a GPU that is not there does to `--device webgpu`. */
import { describe, expect, it } from "vitest";
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
