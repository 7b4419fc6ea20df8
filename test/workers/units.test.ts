import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { EngineHeartbeat, Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { compileTokenizer, openTokenizer } from "../../tokenizer/open.ts";
import tokenizerConfig from "../../weights/house-0/tokenizer_config.json?raw";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { chainHashes, chainStart } from "../../workers/chain.ts";
import { within } from "../../workers/deadline.ts";
import { FleetTable } from "../../workers/fleet-table.ts";
import { buildModelAssets, ModelAssetCache } from "../../workers/model-assets.ts";
import { responseFrame, textChunk, usageChunk } from "../../workers/openai-shapes.ts";
import { streamAnswer } from "../../workers/respond.ts";
import { selectionDefaults } from "../../workers/selection-defaults.ts";
import { FRAMES, sseCoding } from "../../workers/session-log/event-coding.ts";
import { Reply } from "../../workers/session-log/reply.ts";
import { cutSpans, joinSpans } from "../../workers/session-log/spans.ts";
import { StopScanner } from "../../workers/session-log/stop-strings.ts";
import { commonPrefixLength, planTurn } from "../../workers/session-log/turn-plan.ts";
import { TurnStream } from "../../workers/session-log/turn-stream.ts";
import type { TurnUsage } from "../../workers/turn-job.ts";
import { mergedTokenizerJson } from "./merged-words.ts";
import { END, env, FakeEngine, heartbeatOf, ids, until } from "./world.ts";

const merged = openTokenizer({
  tokenizerJson: JSON.parse(mergedTokenizerJson()),
  tokenizerConfig: JSON.parse(tokenizerConfig),
});

/** Cuts `items` into runs of the given lengths. */
function pieces<T>(items: readonly T[], lengths: readonly number[]): T[][] {
  const out: T[][] = [];
  let at = 0;
  for (const length of lengths) {
    out.push(items.slice(at, at + length));
    at += length;
  }
  out.push(items.slice(at));
  return out;
}

describe("streamAnswer", () => {
  it("passes a stream on as it is, without a copy, where its client can come back for it or it ends as it should", () => {
    const head = { kind: "chat", id: "c", createdS: 1, model: "m", includeUsage: false } as const;
    const newFeed = () => ({ stream: new IdentityTransformStream().readable, head, streamId: "s", numericsId: "n" });
    const { signal } = new AbortController();
    const feed = newFeed();
    expect(streamAnswer({ feed, resumable: true, signal }).body).toBe(feed.stream);
    const here = { ...newFeed(), isHere: true };
    expect(streamAnswer({ feed: here, resumable: false, signal }).body).toBe(here.stream);
  });
});

describe("sseCoding", () => {
  it("writes text as one chunk's JSON would be, whatever the text, the names and the choice are", () => {
    const words = fc.string({
      unit: fc.constantFrom('"content":""', '"text":""', '"', "\\", "\n", "é🙂", "a"),
      maxLength: 6,
    });
    const kinds = fc.constantFrom("chat", "text");
    const check = (
      kind: "chat" | "text",
      [id, model, includeUsage]: [string, string, boolean],
      texts: [number, string][],
    ) => {
      const head = { kind, id, createdS: 1, model, includeUsage };
      const frame = responseFrame(head, "n");
      const events = texts.map(([choice, text], number) => {
        return { number, event: { type: "text" as const, choice, text, offset: 0 } };
      });
      const asJson = texts.map(([index, text], number) => {
        const chunk = textChunk(frame, { index, text, logprobs: undefined, offset: 0 }, includeUsage);
        return `id: s.${number}\ndata: ${JSON.stringify(chunk)}\n\n`;
      });
      const written = new TextDecoder().decode(sseCoding({ streamId: "s", numericsId: "n", head }).encode(events));
      expect(written).toBe(asJson.join(""));
    };
    const names = fc.tuple(words, words, fc.boolean());
    fc.assert(fc.property(kinds, names, fc.array(fc.tuple(fc.nat(3), words)), check));
  });
});

describe("StopScanner", () => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 40 });
  const stops = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 5 }), {
    maxLength: 3,
  });

  it("releases the text before the first stop string, however the text is cut", () => {
    const check = (text: string, stopStrings: string[], lengths: number[]) => {
      const scanner = new StopScanner(stopStrings);
      let released = "";
      let stopped = false;
      for (const piece of pieces([...text], lengths)) {
        if (stopped) break;
        const step = scanner.push(piece.join(""));
        released += step.released;
        stopped = step.stopped;
      }
      if (!stopped) released += scanner.flush();
      // A stop string is complete once its last letter has come: the one that ends first wins.
      let expected: string | undefined;
      for (let end = 1; end <= text.length && expected === undefined; end++) {
        const hits = stopStrings.filter((stop) => text.slice(0, end).endsWith(stop));
        if (hits.length > 0) expected = text.slice(0, end - Math.max(...hits.map((hit) => hit.length)));
      }
      return { released, stopped, expected };
    };
    fc.assert(
      fc.property(letters, stops, (text, stopStrings) => {
        const { released, stopped, expected } = check(
          text,
          stopStrings,
          [...text].map(() => 1),
        );
        expect(stopped).toBe(expected !== undefined);
        expect(released).toBe(expected ?? text);
      }),
      { seed: 1, numRuns: 500 },
    );
    fc.assert(
      fc.property(letters, stops, fc.array(fc.nat(6)), (text, stopStrings, lengths) => {
        const { released, stopped, expected } = check(text, stopStrings, lengths);
        expect(stopped).toBe(expected !== undefined);
        expect(text.startsWith(released)).toBe(true);
        for (const stop of stopStrings) expect(released).not.toContain(stop);
      }),
      { seed: 2, numRuns: 500 },
    );
  });
});

describe("Reply", () => {
  const alphabet = [97, 98, 99, 260, 261, 263, 0xe2, 0x82, 0xac, 0xc3, 0xa9];
  const replyIds = fc.array(fc.constantFrom(...alphabet), { maxLength: 30 });

  it("lets out exactly the text of its ids, and keeps ids whose text was let out", () => {
    fc.assert(
      fc.property(replyIds, fc.array(fc.nat(4)), fc.boolean(), (all, lengths, ends) => {
        const reply = new Reply({ tokenizer: merged.tokenizer, stopTokens: [END], stopStrings: [] });
        const generated = ends ? [...all, END] : all;
        const text =
          pieces(generated, lengths)
            .map((part) => reply.push(part).text)
            .join("") + reply.finish().text;
        expect(text).toBe(merged.tokenizer.decode(all));
        const kept = reply.kept();
        expect(kept).toEqual({ content: text, text, ids: all, endToken: ends ? END : undefined });
        expect(reply.generatedCount).toBe(generated.length);
      }),
      { seed: 3, numRuns: 300 },
    );
  });

  it("cut anywhere, keeps ids that decode to a beginning of what was let out, and no token less than it must", () => {
    fc.assert(
      fc.property(replyIds, fc.constantFrom("b", "ca", "€", "é", "\n", "xx"), (all, stop) => {
        const reply = new Reply({ tokenizer: merged.tokenizer, stopTokens: [END], stopStrings: [stop] });
        const text = all.map((id) => reply.push([id]).text).join("");
        const kept = reply.kept();
        expect(kept.content).toBe(text);
        expect(text.startsWith(kept.text)).toBe(true);
        expect(merged.tokenizer.decode(kept.ids)).toBe(kept.text);
        expect(all.slice(0, kept.ids.length)).toEqual(kept.ids);
        // The longest token has three letters; one that is cut loses at most the two before the stop string.
        if (!text.includes("\uFFFD")) expect(kept.content.length - kept.text.length).toBeLessThan(3);
        if (reply.ended === "stop-string") expect(text).not.toContain(stop);
      }),
      { seed: 4, numRuns: 300 },
    );
  });
});

describe("TurnStream", () => {
  it("lets its producer wait while nobody reads, until there is room or the turn ends", async () => {
    const stream = new TurnStream({ resumable: false });
    const readable = stream.subscribe(0, FRAMES);
    const open = new AbortController().signal;
    const text = "x".repeat(1024 * 1024);
    const send = () => stream.send({ type: "text", choice: 0, text, offset: 0 });
    send();
    await stream.ready(open);
    // The first is on its way to the reader; more than the limit waits behind it.
    for (let index = 0; index < 5; index++) send();
    const ending = new AbortController();
    let state = "waiting";
    const ready = stream.ready(ending.signal).then(() => {
      state = "ready";
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(state).toBe("waiting");
    ending.abort();
    await ready;
    let hasRoom = false;
    void stream.ready(open).then(() => {
      hasRoom = true;
    });
    const reader = (readable as ReadableStream<Uint8Array>).getReader();
    let byteCount = 0;
    while (!hasRoom) byteCount += (await reader.read()).value?.byteLength ?? 0;
    // Two bytes a letter: of the six, one was on its way, and two are more than may wait.
    expect(byteCount).toBeGreaterThan(4 * text.length);
    await reader.cancel();
    await until(() => {
      stream.send({ type: "begin", choice: 0 });
      return stream.gone.aborted;
    });
    await stream.close();
  });
});

describe("within", () => {
  it("gives what comes in time and an error for what does not", async () => {
    expect(await within(1_000, Promise.resolve(1))).toBe(1);
    await expect(within(1_000, Promise.reject(new Error("no")))).rejects.toThrow("no");
    await expect(within(10, new Promise(() => undefined))).rejects.toMatchObject({ code: "deadline_exceeded" });
  });
});

describe("planTurn", () => {
  const encode = (text: string) => merged.tokenizer.encode(text, { special: true });

  it("always ends in ids that mean the new text, and keeps a checkpoint's ids when the text before it is equal", () => {
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c", "x", "\n"), maxLength: 8 });
    fc.assert(
      fc.property(word, word, word, fc.nat(20), (prompt, reply, more, changeAt) => {
        const promptText = `<|bos|>${prompt}<|assistant|>`;
        const promptIds = encode(promptText);
        // The engine writes letter by letter, not as the tokenizer would.
        const log = Uint32Array.from([...promptIds, ...ids(reply), END]);
        const checkpoints = [
          { tokens: promptIds.length, textLength: promptText.length },
          { tokens: promptIds.length + reply.length, textLength: promptText.length + reply.length },
        ];
        const oldText = promptText + reply;
        const grown = `${oldText}<|end|><|user|>${more}`;
        const plan = planTurn({ log, checkpoints, oldText, newText: grown, encode });
        expect(plan.keep).toBe(log.length);
        expect(plan.appended).toEqual(encode(`<|user|>${more}`));
        const changed = `${grown.slice(0, changeAt)}#${grown.slice(changeAt)}`;
        const cut = planTurn({ log, checkpoints, oldText, newText: changed, encode });
        const result = [...log.subarray(0, cut.keep), ...cut.appended];
        expect(merged.tokenizer.decode(result, { special: true })).toBe(changed);
      }),
      { seed: 5, numRuns: 300 },
    );
  });

  it("finds how much two texts share", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.string(), (shared, a, b) => {
        const [left, right] = [shared + a, shared + b];
        let expected = 0;
        while (expected < Math.min(left.length, right.length) && left[expected] === right[expected]) expected += 1;
        expect(commonPrefixLength(left, right)).toBe(expected);
      }),
      { seed: 6 },
    );
  });
});

describe("usage", () => {
  it("tells no more sources than cached tokens: an engine that took a turn over has reused words of the reply, too", () => {
    const head = { kind: "chat", id: "c", createdS: 1, model: "m", includeUsage: true } as const;
    const sourcesOf = (cachedTokens: number, source: object) => {
      const turn = { promptTokens: 900, completionTokens: 200, engineIds: ["e"], sessionId: "s" };
      const usage = { ...turn, engine: { cachedTokens, source } } as unknown as TurnUsage;
      const told = usageChunk(responseFrame(head, "n"), usage) as { usage: Record<string, Record<string, unknown>> };
      return [told.usage.prompt_tokens_details?.cached_tokens, told.usage.quire?.source];
    };
    const taken = { device: 300, host: 100, store: 700 };
    expect(sourcesOf(1_100, taken)).toEqual([900, { device: 100, host: 100, store: 700 }]);
    expect(sourcesOf(1_000, { device: 20, host: 30, store: 950 })).toEqual([900, { device: 0, host: 0, store: 900 }]);
    expect(sourcesOf(600, { device: 1, host: 2, store: 597 })).toEqual([600, { device: 1, host: 2, store: 597 }]);
  });
});

describe("spans", () => {
  it("cut and join like the tokens they describe", () => {
    const lengths = fc.array(
      fc.tuple(fc.integer({ min: 1, max: 9 }), fc.constantFrom("dense", "a.1:64@1", "b.1:64@16")),
    );
    const spansOf = (list: [number, string][], from = 0): Span[] => {
      let end = from;
      return list.map(([length, how]) => {
        end += length;
        return { end, how };
      });
    };
    const spell = (spans: Span[]): string[] => {
      const out: string[] = [];
      for (const { end, how } of spans) while (out.length < end) out.push(how);
      return out;
    };
    fc.assert(
      fc.property(lengths, lengths, fc.nat(30), (before, after, cutAt) => {
        const old = spansOf(before);
        const end = Math.min(cutAt, old.at(-1)?.end ?? 0);
        const kept = cutSpans(old, end);
        expect(spell(kept)).toEqual(spell(old).slice(0, end));
        const next = spansOf(after, end);
        const whole = next.at(-1)?.end ?? end;
        const joined = joinSpans(kept, next, whole);
        expect(spell(joined)).toEqual([...spell(kept), ...spell(next).slice(end)]);
        const isOne = (how: string, index: number) => how !== joined[index + 1]?.how || how.endsWith("@16");
        expect(joined.every(({ how }, index) => isOne(how, index))).toBe(true);
        if (whole > 0) expect(joinSpans(kept, next, whole + 1).at(-1)).toMatchObject({ end: whole + 1 });
      }),
      { seed: 7 },
    );
  });

  it("keep a border between tokens that chose together: what stands in front of an edit knew nothing of it", () => {
    const border = { end: 40, how: "b.1:64@16" };
    const old = [
      { end: 20, how: "dense" },
      { end: 90, how: border.how },
    ];
    const next = [
      { end: 70, how: border.how },
      { end: 80, how: "b.1:64@1" },
    ];
    expect(joinSpans(cutSpans(old, 40), next, 80)).toEqual([old[0], border, ...next]);
    const alone = ["dense", "b.1:64@1"].map((how) => joinSpans([{ end: 40, how }], [{ end: 70, how }], 70));
    expect(alone.map((spans) => spans.length)).toEqual([1, 1]);
  });
});

describe("FleetTable", () => {
  const beat = (model: string, changes: object = {}): EngineHeartbeat =>
    heartbeatOf(new FakeEngine(), model, changes) as EngineHeartbeat;

  it("forgets an engine that is silent", () => {
    const table = new FleetTable();
    const engine = beat("m");
    table.heartbeat(engine, 0);
    const ask = (nowMs: number) => table.pick({ model: "m", excludeIds: [] }, nowMs)?.engineId;
    expect(ask(LIMITS.engineExpiryMs)).toBe(engine.engineId);
    expect(ask(LIMITS.engineExpiryMs + 1)).toBeUndefined();
    expect(table.models(LIMITS.engineExpiryMs + 1)).toEqual([]);
    table.heartbeat(engine, 20_000);
    expect(ask(20_000)).toBe(engine.engineId);
  });

  it("spreads turns between two heartbeats, and never picks what drains, fails or serves another model", () => {
    const table = new FleetTable();
    const [a, b] = [beat("m"), beat("m")];
    const others = [beat("m", { draining: true }), beat("other")];
    for (const engine of [a, b, ...others]) table.heartbeat(engine, 0);
    const picks = Array.from({ length: 10 }, () => table.pick({ model: "m", excludeIds: [] }, 0)?.engineId);
    expect(picks.filter((id) => id === a.engineId)).toHaveLength(5);
    expect(picks.filter((id) => id === b.engineId)).toHaveLength(5);
    expect(table.pick({ model: "m", excludeIds: [a.engineId, b.engineId] }, 0)).toBeUndefined();
    expect(table.models(0)).toEqual(["m", "other"]);
  });
});

describe("model assets", () => {
  const words = { tokenizerJson: JSON.parse(mergedTokenizerJson()), tokenizerConfig: JSON.parse(tokenizerConfig) };

  it("take stop tokens and defaults from the model's files", () => {
    const config = { eos_token_id: 259, bos_token_id: 256 };
    expect(buildModelAssets({ ...words, config, generationConfig: {} })).toMatchObject({
      stopTokens: [259],
      bosToken: undefined,
      sampling: { temperature: 1, topP: 1, topK: 0, repetitionPenalty: 1 },
    });
    const generationConfig = {
      eos_token_id: [259, 257],
      temperature: 0.6,
      top_p: 0.9,
      top_k: 20,
      repetition_penalty: 1.1,
    };
    const tokenizerConfigJson = { ...words.tokenizerConfig, add_bos_token: true };
    expect(
      buildModelAssets({ ...words, tokenizerConfig: tokenizerConfigJson, config, generationConfig }),
    ).toMatchObject({
      stopTokens: [259, 257],
      bosToken: 256,
      sampling: { temperature: 0.6, topP: 0.9, topK: 20, repetitionPenalty: 1.1 },
    });
  });

  it("come from the compiled tokenizer where there is one, and a damaged one is an error, not a guess", async () => {
    const tables = compileTokenizer(words.tokenizerJson) as Uint8Array<ArrayBuffer>;
    const asked: string[] = [];
    const bucketOf = (file: Uint8Array<ArrayBuffer>) =>
      ({
        get: async (key: string) => {
          asked.push(key);
          if (key.endsWith("tokenizer.tables")) return { arrayBuffer: async () => file.buffer };
          return { json: async () => (key.endsWith("tokenizer_config.json") ? words.tokenizerConfig : {}) };
        },
      }) as unknown as R2Bucket;
    const cache = new ModelAssetCache({ modelCountMax: 2, ageMsMax: 1000, now: () => 0 });
    const { tokenizer } = await cache.get(bucketOf(tables), "compiled");
    expect(tokenizer.encode("The code of Badoru is 4821.")).toEqual(
      merged.tokenizer.encode("The code of Badoru is 4821."),
    );
    expect(asked).not.toContain("models/compiled/tokenizer.json");
    const damaged = tables.slice();
    damaged[damaged.length - 9] = (damaged.at(-9) as number) ^ 1;
    await expect(cache.get(bucketOf(damaged), "damaged")).rejects.toThrow(
      "The compiled tokenizer cannot be used: its checksum does not match.",
    );
  });

  it("put the post-processor's first token before raw prompts when the configuration says nothing", () => {
    const post_processor = {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<|bos|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      special_tokens: { "<|bos|>": { id: "<|bos|>", ids: [256], tokens: ["<|bos|>"] } },
    };
    const tokenizerJson = { ...words.tokenizerJson, post_processor };
    const assets = (tokenizerConfig: object) =>
      buildModelAssets({ tokenizerJson, tokenizerConfig, config: { bos_token_id: 256 }, generationConfig: {} });
    const { add_bos_token: _, ...silent } = words.tokenizerConfig;
    expect(assets(silent).bosToken).toBe(256);
    expect(assets({ ...silent, add_bos_token: false }).bosToken).toBeUndefined();
  });

  it("are read once, kept for a time, and bounded", async () => {
    let nowMs = 0;
    let reads = 0;
    const bucket = {
      get: async (key: string) => {
        reads += 1;
        if (key.endsWith("tokenizer.tables")) return null;
        const isWords = key.endsWith("tokenizer.json");
        const file = isWords ? words.tokenizerJson : key.endsWith("tokenizer_config.json") ? words.tokenizerConfig : {};
        return { json: async () => file };
      },
    } as unknown as R2Bucket;
    const cache = new ModelAssetCache({ modelCountMax: 2, ageMsMax: 1000, now: () => nowMs });
    const first = await cache.get(bucket, "a");
    expect(await cache.get(bucket, "a")).toBe(first);
    expect(reads).toBe(5);
    await cache.get(bucket, "b");
    await cache.get(bucket, "a");
    await cache.get(bucket, "c");
    expect(reads).toBe(15);
    expect(await cache.get(bucket, "a")).toBe(first);
    await cache.get(bucket, "b");
    expect(reads).toBe(20);
    nowMs = 1000;
    expect(await cache.get(bucket, "b")).not.toBe(first);
    expect(reads).toBe(25);
  });
});

describe("names", () => {
  // The expected values are from Python (hashlib, hmac, json).
  it("of transcripts and tenants are the same in every process", async () => {
    const messages = [
      { role: "user" as const, content: "hé" },
      { role: "assistant" as const, name: "n", content: 'a"b' },
    ];
    const expected = [
      "9276c3d6ed9ac2aacb26ab10ef20ad998d1c575235dcb08779637036c7ac0ca3",
      "07aa46ec43bc4620e7c0d030390f049fad0c0f02d492b15a92cac6c87251b786",
    ];
    expect(await chainHashes(chainStart("m"), messages)).toEqual(expected);
    expect(await chainHashes(expected[0] ?? "", messages.slice(1))).toEqual(expected.slice(1));
    expect(await namespaceOf("dev", "salt")).toBe("6d76618a2fb7af7581632bb3c2f2d50402cb795a8e801fed77da0872a03e68ce");
  });
});

describe("QUIRE_SELECTION", () => {
  it("replaces the defaults field by field", () => {
    expect(selectionDefaults({ ...env, QUIRE_SELECTION: '{"policy":"dense"}' })).toEqual({
      policy: "dense",
      budgetTokens: 2048,
      exact: false,
    });
    const auto = selectionDefaults({ ...env, QUIRE_SELECTION: '{"policy":"auto"}' });
    expect(auto).toEqual({ policy: "auto", budgetTokens: 0, exact: false });
    expect(selectionDefaults(env)).toEqual(auto);
    for (const broken of ['{"policy":"magic"}', '{"budget_tokens":1}', '{"exact":1}', "1"]) {
      expect(() => selectionDefaults({ ...env, QUIRE_SELECTION: broken })).toThrow();
    }
  });
});
