/** Checkpoints as others write them, served: shards of a Qwen3 model and a GGUF file; the first token is HF's. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { startEngineServer } from "../../engine/server.ts";
import { encodeFrame, FrameDecoder } from "../../protocol/frames.ts";
import { ENGINE_PATHS, type EngineEvent } from "../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import { argmax } from "../models/measures.ts";
import { request as tinyRequest } from "./harness.ts";

const FIXTURES = "test/models/vectors/fixtures";

interface Expected {
  ids: number[];
  logits: number[][];
}

const read = (name: string) => JSON.parse(readFileSync(`${FIXTURES}/${name}`, "utf8"));
const served: [name: string, expected: Expected][] = [
  ["sharded", read("sharded.json")],
  ...read("gguf.json").cases.map((each: Expected & { file: string }) => [each.file, each]),
];

describe("served from disk", () => {
  it.each(served)("%s: starts on a small pool and answers as HF does", async (name, { ids, logits }) => {
    const server = await startEngineServer({
      host: "127.0.0.1",
      port: 0,
      modelFolder: `${FIXTURES}/${name}`,
      modelId: "model",
      storeUrl: "memory:",
      env: {},
      device: "wasm",
      threads: 1,
      weightEncoding: "f32",
      kvEncoding: "f32",
      summaryKinds: ["min-max"],
      poolBytes: 2 * 1024 * 1024,
      log: () => {},
    });
    try {
      const request = tinyRequest({ model: "model", tokens: idsToBytes(ids), maxTokens: 1, stopTokens: [] });
      const body = encodeFrame(request);
      const response = await fetch(server.url + ENGINE_PATHS.generate, { method: "POST", body });
      expect(response.status).toBe(200);
      const events = new FrameDecoder().push(new Uint8Array(await response.arrayBuffer())) as EngineEvent[];
      const tokens = events.flatMap((event) => (event.type === "tokens" ? [...bytesToIds(event.ids)] : []));
      expect(tokens).toEqual([argmax(logits.at(-1)!)]);
    } finally {
      await server.stop(1000);
    }
  });
});
