/** From a hub to an answer: folders as HF transformers saves them, pulled, opened and asked, say what transformers says with them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openModelFolder } from "../../cli/model-folder.ts";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { openModel } from "../../models/open.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { compileTokenizer } from "../../tokenizer/open.ts";
import { buildModelAssets, type ModelAssets } from "../../workers/model-assets.ts";
import { Conversation, poolCounts } from "../models/conversation.ts";
import { repositoryRoot } from "../style/source-tree.ts";
import { startHub } from "./hostile-hub.ts";
import { runQuire, withTempFolder } from "./run-quire.ts";

interface Checkpoint {
  name: string;
  /** Prompt ids, the greedy reply, and its text without special tokens. */
  chats: { messages: ChatMessage[]; ids: number[]; reply: number[]; text: string }[];
  raw: { text: string; ids: number[] };
}

const fixtures = join(repositoryRoot, "test/cli/hub-checkpoint/fixtures");
const checkpoints: Checkpoint[] = JSON.parse(readFileSync(join(fixtures, "expected.json"), "utf8"));
const contextTokens = 192;

/** Serves a folder and pulls it into `out`. */
async function pull(folder: string, out: string): Promise<void> {
  const hub = await startHub();
  try {
    for (const name of readdirSync(folder)) hub.files.set(name, readFileSync(join(folder, name)));
    expect(await runQuire(["pull", "owner/name", "--endpoint", hub.url, "--out", out])).toMatchObject({ code: 0 });
  } finally {
    await hub.close();
  }
}

/** What the edge knows of a pulled model, its tokenizer compiled. */
async function assetsOf(folder: string): Promise<ModelAssets> {
  const { edgeFiles, readEdgeFile } = await openModelFolder(folder);
  const read = async (name: string) => JSON.parse(new TextDecoder().decode(await readEdgeFile(name)));
  expect(edgeFiles).toContain("generation_config.json");
  return buildModelAssets({
    tokenizerTables: (compileTokenizer(await read("tokenizer.json")) as Uint8Array<ArrayBuffer>).buffer,
    tokenizerConfig: await read("tokenizer_config.json"),
    config: await read("config.json"),
    generationConfig: await read("generation_config.json"),
  });
}

describe("a checkpoint from a hub", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind: "wasm" });
  });
  afterAll(() => device?.close());

  async function replyTo(folder: string, ids: readonly number[], endId: number): Promise<number[]> {
    const rowsMax = contextTokens;
    const counts = poolCounts({ layerCount: 2, contextTokens, rowsMax });
    const kv = { encoding: "f32", summaryKinds: [], ...counts } as const;
    const runner = await openModel({ device, folder, encoding: "f32", kv, rowsMax });
    const conversation = new Conversation(runner, { contextTokens });
    return conversation.generate(await conversation.prefill(ids), { tokensMax: 24, endId });
  }

  it.each(checkpoints)("$name: the same prompt ids, greedy ids and words", async ({ name, chats, raw }) => {
    await withTempFolder(async (parent) => {
      const folder = join(parent, name);
      await pull(join(fixtures, name), folder);
      const { tokenizer, template, bosToken, stopTokens, sampling } = await assetsOf(folder);
      expect(sampling.temperature).toBe(0);
      expect([...(bosToken === undefined ? [] : [bosToken]), ...tokenizer.encode(raw.text)]).toEqual(raw.ids);
      expect(chats.length).toBeGreaterThan(1);
      for (const { messages, ids, reply, text } of chats) {
        const rendered = template.render(messages, { addGenerationPrompt: true });
        expect(tokenizer.encode(rendered, { special: true })).toEqual(ids);
        expect(await replyTo(folder, ids, stopTokens[0]!)).toEqual(reply);
        expect(tokenizer.decode(reply)).toBe(text);
      }
    });
  });
});
