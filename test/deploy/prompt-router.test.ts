/** The prompt router as it would be uploaded, in a bare workerd behind a Worker that asks it. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openChances } from "../../bench/router/router.ts";
import { bundleRouter, startRouter } from "../../bench/router/router-workerd.ts";
import type { BareWorkerd } from "../../bench/workerd.ts";
import { bestChoice, expectedBytes } from "../../workers/prompt-router/decide.ts";
import { charsOf, promptFeatures } from "../../workers/prompt-router/features.ts";
import { repositoryRoot } from "../style/source-tree.ts";

/** Paid plans take 10 MB compressed; it is about 3.7 MB now, nearly all of it onnxruntime. */
const uploadGzipBytesMax = 5e6;

let bundle: Map<string, Uint8Array>;
let workerd: BareWorkerd | undefined;
let chances: Awaited<ReturnType<typeof openChances>>;
const folder = join(repositoryRoot, "workers/prompt-router");

beforeAll(async () => {
  bundle = await bundleRouter();
  workerd = await startRouter(bundle);
  chances = await openChances(await readFile(join(folder, "classifier.onnx")));
}, 180_000);

afterAll(() => workerd?.close());

async function ask(path: string, content: string): Promise<{ status: number; body: unknown }> {
  const body = JSON.stringify({ messages: [{ role: "user", content }] });
  const response = await fetch(`${workerd?.url}${path}`, { method: "POST", body });
  return { status: response.status, body: await response.json() };
}

describe("the prompt router's Worker", () => {
  it("is one module, one runtime and one classifier, small enough to be deployed", () => {
    const kinds = [...bundle.keys()].map((name) => name.split(".").at(-1)).sort();
    expect(kinds).toEqual(["js", "onnx", "wasm"]);
    const bytes = [...bundle.values()].reduce((sum, each) => sum + gzipSync(each).byteLength, 0);
    expect(bytes).toBeLessThan(uploadGzipBytesMax);
  });

  it("chooses what the committed classifier says, as onnxruntime computes it in Node", async () => {
    const settings = JSON.parse(await readFile(join(folder, "classifier.json"), "utf8"));
    const fact = "They say that the room of Badoru is 4821. ";
    const book = "It rained all day, and nobody came to the house by the river. ";
    const prompts = [
      "",
      `${fact}What is the room of Badoru?`,
      `${book.repeat(300)}${fact}${book.repeat(300)}What is the room of Badoru?`,
      `${book.repeat(500)}Thank you.`,
      `${book.repeat(60)}Which sentence follows this one: It rained all day`,
      book.repeat(30),
    ];
    const chosen = new Set<string>();
    for (const content of prompts) {
      const features = promptFeatures([{ role: "user", content }]);
      const best = bestChoice(
        await chances(features),
        expectedBytes(settings.choices, charsOf(features)),
        settings.price,
      );
      const { policy, budgetTokens } = settings.choices[best];
      expect(await ask("/choose", content)).toEqual({
        status: 200,
        body: { model: settings.model, policy, budgetTokens },
      });
      chosen.add(policy);
    }
    // Not one answer for everything.
    expect(chosen.size).toBeGreaterThan(1);
  });

  it("refuses features of another number and goes on", async () => {
    expect((await ask("/broken", "Hello.")).status).toBe(500);
    expect((await ask("/choose", "Hello.")).status).toBe(200);
  });
});
