/**
 * The house model as it was exported against HF transformers: ids of rendered conversations, logits, greedy replies.
 * QUIRE_TEST_HOUSE names another folder that weights/house/train/export.py wrote.
 */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { openModel } from "../../models/open.ts";
import type { ChatMessage, ChatTemplate, Tokenizer } from "../../tokenizer/contract.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { Conversation, poolCounts } from "./conversation.ts";
import { relativeError } from "./measures.ts";

const FOLDER = process.env.QUIRE_TEST_HOUSE ?? "weights/house";
const isThere = existsSync(join(FOLDER, "model.safetensors"));
const ROWS_MAX = 256;
/** As for house-0: the vectors are rounded to four decimals. */
const LOGITS_ERROR_MAX = 1e-4;

interface Turn {
  prompt_tokens: number;
  last_logits: number[];
  ids?: number[];
  logits_at?: Record<string, number[]>;
  greedy: number[];
  text: string;
}

interface VectorCase {
  messages: ChatMessage[];
  turns: Turn[];
}

describe.skipIf(!isThere)(
  `the house model in ${FOLDER} against HF transformers${isThere ? "" : " (not there)"}`,
  () => {
    let device: Device;
    let cases: VectorCase[];
    let words: { tokenizer: Tokenizer; template: ChatTemplate };
    let layerCount: number;
    let endId: number;

    beforeAll(async () => {
      const readJson = async (name: string) => JSON.parse(await readFile(join(FOLDER, name), "utf8"));
      cases = (await readJson("vectors.json")).cases;
      const tokenizerJson = await readJson("tokenizer.json");
      words = openTokenizer({ tokenizerJson, tokenizerConfig: await readJson("tokenizer_config.json") });
      const config = await readJson("config.json");
      layerCount = config.num_hidden_layers;
      endId = config.eos_token_id;
      device = await openDevice({ kind: "wasm" });
    });
    afterAll(() => device?.close());

    /** One turn from nothing: the prompt in chunks that end where there are logits, then the greedy reply. */
    async function check(turn: Turn, prompt: readonly number[]): Promise<void> {
      const contextTokens = prompt.length + turn.greedy.length;
      const logits = new Map<number, Float32Array>();
      let conversation: Conversation;
      const runner = await openModel({
        folder: FOLDER,
        device,
        encoding: "f32",
        kv: {
          encoding: "f32",
          summaryKinds: [],
          ...poolCounts({ layerCount, contextTokens, rowsMax: ROWS_MAX }),
        },
        rowsMax: ROWS_MAX,
        observe: ({ stage, rows, width, values }) => {
          if (stage === "logits") logits.set(conversation.tokens.length, values.slice((rows - 1) * width));
        },
      });
      conversation = new Conversation(runner, { contextTokens, chunkTokens: ROWS_MAX });
      const ends = Object.keys(turn.logits_at ?? {}).map((position) => Number(position) + 1);
      const cuts = ends.map((end, i) => end - (ends[i - 1] ?? 0));
      const first = await conversation.prefill(prompt, cuts);
      ends.forEach((end, i) => {
        const expected = turn.logits_at?.[String(end - 1)] ?? [];
        expect(relativeError(logits.get(end - (cuts[i] ?? 0)) ?? [], expected)).toBeLessThan(LOGITS_ERROR_MAX);
      });
      const last = logits.get(Math.max(...[...logits.keys()].filter((start) => start < prompt.length))) ?? [];
      expect(relativeError(last, turn.last_logits)).toBeLessThan(LOGITS_ERROR_MAX);
      expect(await conversation.generate(first, { tokensMax: turn.greedy.length, endId })).toEqual(turn.greedy);
      expect(words.tokenizer.decode(turn.greedy)).toBe(turn.text);
    }

    it.each([0, 1, 2])(
      "case %d: ids, logits and greedy replies of every turn",
      async (index) => {
        const found = cases[index];
        if (found === undefined) throw new Error(`vectors.json has no case ${index}`);
        for (const [i, turn] of found.turns.entries()) {
          const text = words.template.render(found.messages.slice(0, 2 * i + 1), { addGenerationPrompt: true });
          const prompt = words.tokenizer.encode(text, { special: true });
          if (turn.ids !== undefined) expect(prompt).toEqual(turn.ids);
          expect(prompt.length).toBe(turn.prompt_tokens);
          await check(turn, prompt);
        }
      },
      60_000,
    );
  },
);
